//! Continuation tokens: opaque to clients, and nothing but a position to us.
//!
//! A token holds the last key or common prefix of a page, so it survives restarts, the deletion of
//! that key, and any change of shards or disks. It is Base64url without padding, so it needs no
//! escaping in a URL, and it carries a short checksum, so that garbage is refused instead of
//! listing from a nonsensical place. The checksum is no secret: a client may list from anywhere anyway.
//!
//! Layout: version (1 byte), kind (1 byte), CRC-32C of version, kind and position (4 bytes, little-endian),
//! position (UTF-8).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use crc_fast::{CrcAlgorithm, Digest};

use super::ListStart;
use crate::s3::error::{Result, S3Error};
use crate::s3::object_key::KEY_LEN_MAX;

const VERSION: u8 = 1;
const KIND_AFTER_KEY: u8 = 0;
const KIND_AFTER_PREFIX: u8 = 1;
const HEADER_LEN: usize = 6;
/// The longest token that can be ours, in characters.
const TOKEN_LEN_MAX: usize = (HEADER_LEN + KEY_LEN_MAX).div_ceil(3) * 4;

/// The position after which the next page starts.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ContinuationToken {
    AfterKey(String),
    AfterPrefix(String),
}

impl ContinuationToken {
    pub fn encode(&self) -> String {
        let (kind, position) = match self {
            Self::AfterKey(key) => (KIND_AFTER_KEY, key),
            Self::AfterPrefix(prefix) => (KIND_AFTER_PREFIX, prefix),
        };
        let mut bytes = Vec::with_capacity(HEADER_LEN + position.len());
        bytes.extend([VERSION, kind]);
        bytes.extend(checksum(kind, position.as_bytes()).to_le_bytes());
        bytes.extend(position.as_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Errors: `InvalidArgument` for anything that [`Self::encode`] did not make.
    pub fn decode(token: &str) -> Result<Self> {
        Self::decode_bytes(token).ok_or_else(|| {
            S3Error::invalid_argument(
                "The continuation token provided is incorrect",
                "continuation-token",
                token,
            )
        })
    }

    fn decode_bytes(token: &str) -> Option<Self> {
        if token.len() > TOKEN_LEN_MAX {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let (header, position) = bytes.split_first_chunk::<HEADER_LEN>()?;
        let [version, kind, crc @ ..] = *header;
        // Whole groups of Base64 leave room for a byte or two more than any key has.
        let is_position =
            position.len() <= KEY_LEN_MAX && u32::from_le_bytes(crc) == checksum(kind, position);
        if version != VERSION || !is_position {
            return None;
        }
        let position = std::str::from_utf8(position).ok()?.to_owned();
        match kind {
            KIND_AFTER_KEY => Some(Self::AfterKey(position)),
            KIND_AFTER_PREFIX => Some(Self::AfterPrefix(position)),
            _ => None,
        }
    }
}

impl From<ContinuationToken> for ListStart {
    fn from(token: ContinuationToken) -> Self {
        match token {
            ContinuationToken::AfterKey(key) => Self::AfterKey(key),
            ContinuationToken::AfterPrefix(prefix) => Self::AfterPrefix(prefix),
        }
    }
}

fn checksum(kind: u8, position: &[u8]) -> u32 {
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    digest.update(&[VERSION, kind]);
    digest.update(position);
    // A 32-bit CRC comes in the low half.
    digest.finalize() as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::s3::error::ErrorCode;

    #[test]
    fn behaviour_02_garbage_is_400() {
        let good = ContinuationToken::AfterKey("photos/1".to_owned()).encode();
        let mut flipped = good.clone().into_bytes();
        flipped[9] ^= 1;
        let flipped = String::from_utf8(flipped).expect("still ASCII");
        let longest = "A".repeat(TOKEN_LEN_MAX + 1);
        for token in ["", "garbage", "photos/1", "====", &flipped, &good[..good.len() - 1], &longest, "é"] {
            let error = ContinuationToken::decode(token).expect_err(token);
            assert_eq!(error.code(), ErrorCode::InvalidArgument, "{token}");
            assert_eq!(error.text(), "The continuation token provided is incorrect");
        }
    }

    #[test]
    fn behaviour_02_a_position_is_no_longer_than_a_key() {
        for make in [ContinuationToken::AfterKey, ContinuationToken::AfterPrefix] {
            let longest = make("k".repeat(KEY_LEN_MAX));
            assert_eq!(ContinuationToken::decode(&longest.encode()), Ok(longest));
            for len in KEY_LEN_MAX + 1..KEY_LEN_MAX + 5 {
                let error = ContinuationToken::decode(&make("k".repeat(len)).encode()).expect_err("too long");
                assert_eq!(error.code(), ErrorCode::InvalidArgument, "{len}");
            }
        }
    }

    #[test]
    fn behaviour_02_a_token_of_this_version_stays_readable() {
        // Issued by the first release: clients keep tokens across upgrades.
        let token = ContinuationToken::AfterPrefix("photos/".to_owned());
        assert_eq!(token.encode(), "AQHfFhsGcGhvdG9zLw");
        assert_eq!(ContinuationToken::decode("AQHfFhsGcGhvdG9zLw"), Ok(token));
    }

    proptest! {
        #[test]
        fn behaviour_02_tokens_survive_a_url_and_come_back(key in "\\PC{1,100}|[\\x00-\\x7f]{1,300}", prefix: bool) {
            let token = if prefix { ContinuationToken::AfterPrefix(key) } else { ContinuationToken::AfterKey(key) };
            let text = token.encode();
            prop_assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
            prop_assert_eq!(ContinuationToken::decode(&text), Ok(token));
        }

        #[test]
        fn hostile_tokens_never_panic(text in "[A-Za-z0-9_=-]{0,60}|.{0,60}") {
            let _ = ContinuationToken::decode(&text);
        }
    }
}
