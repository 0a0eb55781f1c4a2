//! Version ids as requests name them: `null`, or an opaque name that versioning will give out.
//!
//! A never-versioned bucket holds only `null` versions, so every other well-formed id is unknown
//! there; whether it is unknown is for the owner of the key to say, after bucket and key were found.

use super::error::{ErrorCode, Result, S3Error};

/// The lengths of an id that a version could have, in bytes.
const NAMED_LEN_MIN: usize = 32;
const NAMED_LEN_MAX: usize = 64;

/// A version id that can be looked up.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum VersionId {
    Null,
    /// 32 to 64 letters, digits and `._-+/=`.
    Named(Box<str>),
}

impl VersionId {
    /// Errors: `InvalidArgument` for what no version can be called.
    pub fn parse(text: &str) -> Result<Self> {
        let well_formed = |b: u8| b.is_ascii_alphanumeric() || b"._-+/=".contains(&b);
        match text {
            "null" => Ok(Self::Null),
            "" => Err(S3Error::invalid_argument("Version id cannot be the empty string", "versionId", "")),
            _ if (NAMED_LEN_MIN..=NAMED_LEN_MAX).contains(&text.len()) && text.bytes().all(well_formed) => {
                Ok(Self::Named(text.into()))
            }
            _ => Err(S3Error::invalid_argument("Invalid version id specified", "versionId", text)),
        }
    }

    /// The 404 for a version that `key` does not have.
    pub fn not_found(&self, key: &str) -> S3Error {
        S3Error::new(ErrorCode::NoSuchVersion).with("Key", key).with("VersionId", self.as_str())
    }

    pub fn as_str(&self) -> &str {
        match self {
            Self::Null => "null",
            Self::Named(name) => name,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behaviour_21_a_malformed_version_id_is_400_and_a_well_formed_one_is_looked_up() {
        assert_eq!(VersionId::parse("null"), Ok(VersionId::Null));
        let named = VersionId::parse("3sL4kqtJlcpXroDTDmJ.rmSpXd3dIbrH").expect("32 characters");
        assert_eq!(named.as_str(), "3sL4kqtJlcpXroDTDmJ.rmSpXd3dIbrH");
        assert_eq!(named.not_found("k").status(), 404);
        for text in ["", "notaversionid", "Null", &"a".repeat(65), &"é".repeat(20), &" ".repeat(32)] {
            let error = VersionId::parse(text).expect_err(text);
            assert_eq!(error.code(), ErrorCode::InvalidArgument, "{text}");
        }
    }
}
