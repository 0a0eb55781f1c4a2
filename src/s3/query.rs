//! The query string as S3 reads it: decoded names and values in order, duplicates kept.
//!
//! A name without `=` has an empty value, which is how sub-resources are written (`?acl`). Where a
//! name is given twice, the first one counts. Values without escapes are borrowed, so the query of an
//! ordinary request costs one allocation.

use std::borrow::Cow;

use super::error::{ErrorCode, Result, S3Error};
use super::percent::decode_query;

/// The longest raw query string, in bytes. Presigned URLs with session tokens stay well below.
pub const QUERY_LEN_MAX: usize = 32 * 1024;
/// The most parameters of one request.
pub const QUERY_PARAMETERS_MAX: usize = 128;

/// Decoded parameters of one request, in the order they were given.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Query<'a> {
    parameters: Vec<(Cow<'a, str>, Cow<'a, str>)>,
}

impl<'a> Query<'a> {
    /// Decodes a raw query string, without its `?`. Errors: `InvalidURI`.
    pub fn parse(raw: &'a str) -> Result<Self> {
        if raw.len() > QUERY_LEN_MAX {
            return Err(S3Error::new(ErrorCode::InvalidURI).message("The query string is too long."));
        }
        let mut parameters = Vec::new();
        for pair in raw.split('&').filter(|pair| !pair.is_empty()) {
            if parameters.len() == QUERY_PARAMETERS_MAX {
                return Err(
                    S3Error::new(ErrorCode::InvalidURI).message("The query string has too many parameters.")
                );
            }
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            parameters.push((decode_query(name)?, decode_query(value)?));
        }
        Ok(Self { parameters })
    }

    /// The value of `name`, empty when it was given without one.
    pub fn first(&self, name: &str) -> Option<&str> {
        self.iter().find(|(n, _)| *n == name).map(|(_, value)| value)
    }

    pub fn all<'q>(&'q self, name: &'q str) -> impl Iterator<Item = &'q str> {
        self.iter().filter(move |(n, _)| *n == name).map(|(_, value)| value)
    }

    pub fn has(&self, name: &str) -> bool {
        self.first(name).is_some()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.parameters.iter().map(|(name, value)| (name.as_ref(), value.as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn values_are_decoded_once_and_may_be_missing() {
        let query = Query::parse("acl&prefix=a%2Fb+c&x=1&x=2&=v&&y=a=b").expect("valid");
        assert_eq!(query.first("acl"), Some(""));
        assert_eq!(query.first("prefix"), Some("a/b c"));
        assert_eq!(query.first("x"), Some("1"));
        assert_eq!(query.all("x").collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(query.first("y"), Some("a=b"));
        assert_eq!(query.first("ACL"), None);
        assert!(Query::parse("").expect("valid").iter().next().is_none());
    }

    #[test]
    fn limits_hold() {
        let many = "a&".repeat(QUERY_PARAMETERS_MAX);
        assert!(Query::parse(&many).is_ok());
        assert!(Query::parse(&format!("{many}a")).is_err());
        assert!(Query::parse(&"a".repeat(QUERY_LEN_MAX + 1)).is_err());
        assert!(Query::parse("a=%ff").is_err());
        assert!(Query::parse("%=b").is_err());
    }

    proptest! {
        #[test]
        fn hostile_queries_never_panic(raw in "[a-c=&%0-9+]{0,200}|.{0,200}") {
            let _ = Query::parse(&raw);
        }
    }
}
