//! The S3 protocol, pure: requests become typed operations, results become XML. No I/O happens here.
#![expect(clippy::len_without_is_empty, reason = "an algorithm's digest is never empty")]
#![expect(unreachable_pub, reason = "tests and fuzz targets reach the parsers from outside")]

pub mod addressing;
pub mod auth;
pub mod body;
pub mod bucket_name;
pub mod checksum;
pub mod conditions;
pub mod copy_source;
pub mod error;
pub mod etag;
pub mod list;
pub mod metadata;
pub mod object_key;
pub mod operation;
pub mod percent;
pub mod query;
pub mod range;
pub mod request;
pub mod response;
pub mod time;
pub mod unset;
pub mod version_id;
pub mod xml;
