//! Object keys: 1 to 1024 bytes of UTF-8, and nothing else is asked of them.
//!
//! A key is not a path. `//`, a leading `/`, `.`, `..`, control characters and trailing slashes are all
//! part of the name and are kept exactly as the client wrote them.

use std::fmt;

use super::error::{ErrorCode, Result, S3Error};

/// The longest key, in bytes of UTF-8.
pub const KEY_LEN_MAX: usize = 1024;

/// An object's key, decoded.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ObjectKey(String);

impl ObjectKey {
    /// Takes a decoded key. Errors: `KeyTooLongError` past 1024 bytes, `InvalidArgument` when empty.
    pub fn parse(key: impl Into<String>) -> Result<Self> {
        let key = key.into();
        if key.is_empty() {
            return Err(S3Error::invalid_argument("An object key cannot be empty.", "Key", ""));
        }
        if key.len() > KEY_LEN_MAX {
            return Err(too_long(key.len()));
        }
        Ok(Self(key))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn into_string(self) -> String {
        self.0
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The refusal of a key, prefix or marker of `len` bytes.
pub fn too_long(len: usize) -> S3Error {
    S3Error::new(ErrorCode::KeyTooLongError)
        .with("Size", len.to_string())
        .with("MaxSizeAllowed", KEY_LEN_MAX.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_1024_bytes_not_characters() {
        assert!(ObjectKey::parse("é".repeat(512)).is_ok());
        let error = ObjectKey::parse("é".repeat(512) + "a").expect_err("1025 bytes");
        assert_eq!(error.code(), ErrorCode::KeyTooLongError);
        assert!(ObjectKey::parse("").is_err());
    }

    #[test]
    fn behaviour_27_keys_that_differ_by_a_slash_are_different_keys() {
        let keys = ["k", "k/", "k/x", "dir/"].map(|k| ObjectKey::parse(k).expect("valid"));
        for (i, a) in keys.iter().enumerate() {
            for (j, b) in keys.iter().enumerate() {
                assert_eq!(a == b, i == j);
            }
        }
    }
}
