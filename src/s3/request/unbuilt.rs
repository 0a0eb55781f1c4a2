//! Headers that ask for something unbuilt: refused, because to ignore one would be to lie.
//!
//! A client that asks for encryption, a lock, tags or another storage class and gets a 200 believes it
//! has them. The few values that describe what happens anyway are accepted.

use http::HeaderMap;

use crate::s3::error::{ErrorCode, Result, S3Error};

const REFUSED: [&str; 9] = [
    "x-amz-tagging",
    "x-amz-bypass-governance-retention",
    "x-amz-write-offset-bytes",
    "x-amz-rename-source",
    "x-amz-if-match-last-modified-time",
    "x-amz-if-match-size",
    "x-amz-if-match-initiated-time",
    "x-amz-object-ownership",
    "x-amz-bucket-object-lock-enabled",
];

const REFUSED_PREFIXES: [&str; 5] = [
    "x-amz-server-side-encryption",
    "x-amz-copy-source-server-side-encryption",
    "x-amz-grant-",
    "x-amz-object-lock-",
    "x-amz-rename-source-",
];

/// The storage classes of AWS; STANDARD is the only one there is here.
const STORAGE_CLASSES: [&str; 13] = [
    "STANDARD",
    "REDUCED_REDUNDANCY",
    "STANDARD_IA",
    "ONEZONE_IA",
    "INTELLIGENT_TIERING",
    "GLACIER",
    "DEEP_ARCHIVE",
    "OUTPOSTS",
    "GLACIER_IR",
    "SNOW",
    "EXPRESS_ONEZONE",
    "FSX_OPENZFS",
    "FSX_ONTAP",
];

/// Canned ACLs of AWS.
const CANNED_ACLS: [&str; 8] = [
    "private",
    "public-read",
    "public-read-write",
    "authenticated-read",
    "aws-exec-read",
    "bucket-owner-read",
    "bucket-owner-full-control",
    "log-delivery-write",
];

/// Errors: `NotImplemented`; `InvalidArgument` or `InvalidStorageClass` for values that S3 does not know.
pub(super) fn refuse(headers: &HeaderMap) -> Result<()> {
    for (name, value) in headers {
        let name = name.as_str();
        if !name.starts_with("x-amz-") {
            continue;
        }
        let value = value.to_str().unwrap_or_default();
        match name {
            "x-amz-acl" if matches!(value, "private" | "bucket-owner-full-control") => {}
            "x-amz-acl" if CANNED_ACLS.contains(&value) => return Err(not_implemented(name)),
            "x-amz-acl" => return Err(S3Error::invalid_argument("Invalid Argument", name, value)),
            "x-amz-storage-class" if value == "STANDARD" => {}
            "x-amz-storage-class" if STORAGE_CLASSES.contains(&value) => return Err(not_implemented(name)),
            "x-amz-storage-class" => return Err(ErrorCode::InvalidStorageClass.into()),
            // Nothing has tags, so both directives have the same, true effect.
            "x-amz-tagging-directive" if matches!(value, "COPY" | "REPLACE") => {}
            "x-amz-tagging-directive" => {
                return Err(S3Error::invalid_argument("Unknown tagging directive.", name, value));
            }
            "x-amz-bypass-governance-retention" | "x-amz-bucket-object-lock-enabled"
                if value.eq_ignore_ascii_case("false") => {}
            // Without ACLs, the bucket's owner owns everything in it.
            "x-amz-object-ownership" if value == "BucketOwnerEnforced" => {}
            _ if REFUSED.contains(&name) || REFUSED_PREFIXES.iter().any(|p| name.starts_with(p)) => {
                return Err(not_implemented(name));
            }
            _ => {}
        }
    }
    Ok(())
}

fn not_implemented(header: &str) -> S3Error {
    S3Error::new(ErrorCode::NotImplemented).with("Header", header)
}
