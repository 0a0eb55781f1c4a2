//! Entity tags: the MD5 of an object's body, or `md5(md5s)-N` for an object of N parts.
//!
//! A tag is seventeen-odd bytes of value, not a string: it is stored, compared and copied far more
//! often than printed. It is always printed quoted in headers and XML, and always read with or without
//! quotes, because many clients strip them.

use std::fmt;

use http::HeaderValue;
use md5::{Digest, Md5};

/// An object's entity tag. Prints as 32 lower-case hex digits, then `-N` for a multipart object.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct ETag {
    md5: [u8; 16],
    /// 0 for an object uploaded whole.
    part_count: u16,
}

impl ETag {
    /// The tag of an object or part uploaded whole: the MD5 of its bytes.
    pub fn of_md5(md5: [u8; 16]) -> Self {
        Self { md5, part_count: 0 }
    }

    /// The tag of a multipart object: the MD5 over its parts' MD5 digests in order, then their number.
    /// `part_md5s` yields at most 10,000 digests.
    pub fn of_parts(part_md5s: impl IntoIterator<Item = [u8; 16]>) -> Self {
        let mut hash = Md5::new();
        let mut part_count = 0u16;
        for md5 in part_md5s {
            hash.update(md5);
            part_count = part_count.checked_add(1).expect("an upload has at most 10,000 parts");
        }
        Self { md5: hash.finalize().into(), part_count }
    }

    /// Rebuilds a tag from what was stored: digest, and the number of parts (0 when uploaded whole).
    pub fn from_raw(md5: [u8; 16], part_count: u16) -> Self {
        Self { md5, part_count }
    }

    pub fn md5(self) -> [u8; 16] {
        self.md5
    }

    /// 0 for an object uploaded whole.
    pub fn part_count(self) -> u16 {
        self.part_count
    }

    /// Reads a strong tag with or without its quotes. `None` when no object can have that tag.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let bare = match text.strip_prefix('"') {
            Some(rest) => rest.strip_suffix('"')?,
            None => text,
        };
        let (digest, count) = match bare.split_once('-') {
            Some((digest, count)) => (digest, Some(count)),
            None => (bare, None),
        };
        // Only the printed spelling is the tag: hex digits in lower case, no leading zero in the count.
        if digest.len() != 32 || !digest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return None;
        }
        let mut md5 = [0; 16];
        hex::decode_to_slice(digest, &mut md5).ok()?;
        let part_count = match count {
            None => 0,
            Some(count) if count.starts_with(|c: char| matches!(c, '1'..='9')) => count.parse().ok()?,
            Some(_) => return None,
        };
        Some(Self { md5, part_count })
    }

    /// Appends the tag without quotes.
    pub fn push_bare(self, out: &mut String) {
        let mut digits = [0; 32];
        hex::encode_to_slice(self.md5, &mut digits).expect("32 digits hold 16 bytes");
        out.push_str(std::str::from_utf8(&digits).expect("hex digits are ASCII"));
        if self.part_count > 0 {
            out.push('-');
            out.push_str(&self.part_count.to_string());
        }
    }

    /// The tag in quotes, as headers carry it.
    pub fn quoted(self) -> String {
        let mut out = String::with_capacity(40);
        out.push('"');
        self.push_bare(&mut out);
        out.push('"');
        out
    }

    pub fn header_value(self) -> HeaderValue {
        HeaderValue::from_str(&self.quoted()).expect("a tag is printable ASCII")
    }
}

/// Without quotes.
impl fmt::Display for ETag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = String::with_capacity(38);
        self.push_bare(&mut out);
        f.write_str(&out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EMPTY: &str = "d41d8cd98f00b204e9800998ecf8427e";

    #[test]
    fn behaviour_11_quoted_out_and_unquoted_accepted_in() {
        let tag = ETag::of_md5(Md5::digest(b"").into());
        assert_eq!(tag.quoted(), format!("\"{EMPTY}\""));
        assert_eq!(tag.to_string(), EMPTY);
        assert_eq!(ETag::parse(EMPTY), Some(tag));
        assert_eq!(ETag::parse(&tag.quoted()), Some(tag));
    }

    #[test]
    fn multipart_tag_is_the_md5_of_md5s_and_the_count() {
        let a: [u8; 16] = Md5::digest(b"a").into();
        let b: [u8; 16] = Md5::digest(b"b").into();
        let tag = ETag::of_parts([a, b]);
        let mut both = a.to_vec();
        both.extend(b);
        assert_eq!(tag.to_string(), format!("{}-2", hex::encode(Md5::digest(&both))));
        assert_eq!(tag.part_count(), 2);
    }

    #[test]
    fn what_no_object_can_have_is_no_tag() {
        let upper = EMPTY.to_uppercase();
        let half_quoted = format!("\"{EMPTY}");
        let zero = format!("{EMPTY}-0");
        let padded = format!("{EMPTY}-01");
        let huge = format!("{EMPTY}-99999999");
        for text in ["", "\"", "\"\"", "abc", "*", &upper, &half_quoted, &zero, &padded, &huge] {
            assert_eq!(ETag::parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn tags_survive_a_round_trip(md5: [u8; 16], part_count in 0..=10_000u16) {
            let tag = ETag::from_raw(md5, part_count);
            prop_assert_eq!(ETag::parse(&tag.quoted()), Some(tag));
            prop_assert_eq!(ETag::parse(&tag.to_string()), Some(tag));
        }

        #[test]
        fn hostile_tags_never_panic(text in ".{0,64}") {
            let _ = ETag::parse(&text);
        }
    }
}
