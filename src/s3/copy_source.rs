//! The source of a copy: `x-amz-copy-source`, with or without a leading slash, URL-encoded.
//!
//! The version is split off before decoding, so that an encoded `?` stays part of the key; the slash
//! between bucket and key is looked for after decoding, because some clients encode that one too.

use super::bucket_name::BucketName;
use super::error::{ErrorCode, Result, S3Error};
use super::object_key::ObjectKey;
use super::percent::decode_path;
use super::version_id::VersionId;

const VERSION_QUERY: &str = "?versionId=";

/// The object that a copy reads.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CopySource {
    pub bucket: BucketName,
    pub key: ObjectKey,
    pub version_id: Option<VersionId>,
}

impl CopySource {
    /// Errors: `InvalidArgument`, `InvalidURI`, `InvalidBucketName`, `KeyTooLongError`; `NotImplemented`
    /// for access point ARNs.
    pub fn parse(header: &str) -> Result<Self> {
        let (path, version) = match header.rsplit_once(VERSION_QUERY) {
            Some((path, version)) => (path, Some(version)),
            None => (header, None),
        };
        let decoded = decode_path(path)?;
        if decoded.starts_with("arn:") {
            return Err(S3Error::new(ErrorCode::NotImplemented)
                .message("A copy source cannot be an access point.")
                .with("Header", "x-amz-copy-source"));
        }
        let path = decoded.strip_prefix('/').unwrap_or(&decoded);
        let (bucket, key) = path.split_once('/').filter(|(_, key)| !key.is_empty()).ok_or_else(|| {
            S3Error::invalid_argument(
                "Copy Source must mention the source bucket and key: sourcebucket/sourcekey",
                "x-amz-copy-source",
                header,
            )
        })?;
        Ok(Self {
            bucket: BucketName::parse(bucket)?,
            key: ObjectKey::parse(key)?,
            version_id: version.map(|v| VersionId::parse(&decode_path(v)?)).transpose()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(header: &str) -> (String, String, Option<VersionId>) {
        let source = CopySource::parse(header).expect(header);
        (source.bucket.to_string(), source.key.into_string(), source.version_id)
    }

    fn named(bucket: &str, key: &str) -> (String, String, Option<VersionId>) {
        (bucket.to_owned(), key.to_owned(), None)
    }

    #[test]
    fn behaviour_16_the_source_is_url_encoded_with_or_without_a_leading_slash() {
        assert_eq!(parse("bucket/a/b"), named("bucket", "a/b"));
        assert_eq!(parse("/bucket/a/b"), named("bucket", "a/b"));
        assert_eq!(parse("bucket%2Fa%20b"), named("bucket", "a b"));
        assert_eq!(parse("%2Fbucket%2Fa%2Bb+c"), named("bucket", "a+b+c"));
        assert_eq!(parse("bucket//a"), named("bucket", "/a"));
        assert_eq!(parse("bucket/a%3FversionId=null"), named("bucket", "a?versionId=null"));
        assert_eq!(parse("bucket/what?"), named("bucket", "what?"));
        let (bucket, key, version) = parse("/bucket/a%252Fb?versionId=null");
        assert_eq!((bucket.as_str(), key.as_str(), version), ("bucket", "a%2Fb", Some(VersionId::Null)));
    }

    #[test]
    fn what_names_no_object_is_refused() {
        for (header, code) in [
            ("", ErrorCode::InvalidArgument),
            ("/", ErrorCode::InvalidArgument),
            ("bucket", ErrorCode::InvalidArgument),
            ("bucket/", ErrorCode::InvalidArgument),
            ("/bucket/", ErrorCode::InvalidArgument),
            ("//bucket/key", ErrorCode::InvalidBucketName),
            ("Bucket/key", ErrorCode::InvalidBucketName),
            ("bucket/%zz", ErrorCode::InvalidURI),
            ("bucket/k?versionId=", ErrorCode::InvalidArgument),
            ("bucket/k?versionId=short", ErrorCode::InvalidArgument),
            ("arn:aws:s3:us-east-1:1:accesspoint/a/object/k", ErrorCode::NotImplemented),
        ] {
            assert_eq!(CopySource::parse(header).expect_err(header).code(), code, "{header}");
        }
    }

    proptest! {
        #[test]
        fn hostile_sources_never_panic(header in "(bucket/)?[a-z%/?=0-9]{0,60}|.{0,60}") {
            let _ = CopySource::parse(&header);
        }
    }
}
