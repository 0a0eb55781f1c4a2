//! Bucket names: the naming rules of AWS's general-purpose buckets, checked once.
//!
//! The rules are applied to every request, not only to CreateBucket: a name that no bucket can have
//! is refused before anything is looked up, and the rest of the server never sees one.
//! Source: Amazon S3 User Guide, "General purpose bucket naming rules".

use std::fmt;

use super::error::{ErrorCode, Result, S3Error};

pub const BUCKET_NAME_LEN_MIN: usize = 3;
pub const BUCKET_NAME_LEN_MAX: usize = 63;

const PREFIXES_RESERVED: [&str; 3] = ["xn--", "sthree-", "amzn-s3-demo-"];
const SUFFIXES_RESERVED: [&str; 5] = ["-s3alias", "--ol-s3", ".mrap", "--x-s3", "--table-s3"];

/// A name that a general-purpose bucket may have.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct BucketName(Box<str>);

impl BucketName {
    /// Errors: `InvalidBucketName`.
    pub fn parse(name: &str) -> Result<Self> {
        if is_valid(name) {
            Ok(Self(name.into()))
        } else {
            Err(S3Error::new(ErrorCode::InvalidBucketName).with("BucketName", name))
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BucketName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_valid(name: &str) -> bool {
    let bytes = name.as_bytes();
    let alphanumeric = |b: &u8| matches!(b, b'a'..=b'z' | b'0'..=b'9');
    (BUCKET_NAME_LEN_MIN..=BUCKET_NAME_LEN_MAX).contains(&bytes.len())
        && bytes.iter().all(|b| alphanumeric(b) || matches!(b, b'-' | b'.'))
        && bytes.first().is_some_and(alphanumeric)
        && bytes.last().is_some_and(alphanumeric)
        // As labels of a host name, each begins and ends with a letter or digit.
        && !["..", ".-", "-."].iter().any(|pair| name.contains(pair))
        && !looks_like_ipv4(name)
        && !PREFIXES_RESERVED.iter().any(|p| name.starts_with(p))
        && !SUFFIXES_RESERVED.iter().any(|s| name.ends_with(s))
}

/// Four dotted runs of digits, whatever their values: such a name could be taken for an address.
fn looks_like_ipv4(name: &str) -> bool {
    name.split('.').count() == 4
        && name.split('.').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_that_aws_accepts() {
        let longest = "a".repeat(63);
        for name in ["abc", "a-b", "a.b", "1.2.3", "1.2.3.4.5", "my-bucket.example.com", "a--b", &longest] {
            assert!(BucketName::parse(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn names_that_aws_refuses() {
        let long = "a".repeat(64);
        for name in [
            "",
            "ab",
            &long,
            "Abc",
            "a_b",
            "-ab",
            "ab-",
            ".ab",
            "ab.",
            "a..b",
            "a.-b",
            "a-.b",
            "192.168.5.4",
            "1.2.3.444",
            "xn--abc",
            "sthree-abc",
            "amzn-s3-demo-x",
            "abc-s3alias",
            "abc--ol-s3",
            "abc.mrap",
            "abc--x-s3",
            "abc--table-s3",
            "a/b",
            "a b",
            "äbc",
            "abc\n",
        ] {
            let error = BucketName::parse(name).expect_err(name);
            assert_eq!(error.code(), ErrorCode::InvalidBucketName, "{name}");
        }
    }

    proptest! {
        #[test]
        fn hostile_names_never_panic_and_valid_ones_are_kept(name in "[a-zA-Z0-9.-]{0,70}|.{0,70}") {
            if let Ok(parsed) = BucketName::parse(&name) {
                prop_assert_eq!(parsed.as_str(), name);
            }
        }
    }
}
