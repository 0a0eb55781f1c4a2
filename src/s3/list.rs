//! Listings: what a page asks for, and where it starts.
//!
//! Every listing is bytewise ordered and paged by position. A position is either "after this key" or
//! "after everything that this common prefix rolls up"; the two differ when a page ends on a prefix, and
//! a token says which it is. Markers are plain keys that clients can write themselves; a marker that is
//! itself a rolled-up prefix means the second kind, so that NextMarker works as documented.

pub mod token;

use super::error::{Result, S3Error};
use super::object_key::{KEY_LEN_MAX, too_long};
use super::query::Query;
use super::version_id::VersionId;
use token::ContinuationToken;

/// The most entries of one page of keys, versions, parts or uploads. Asking for more gets this many.
pub const PAGE_LEN_MAX: u32 = 1000;
/// The most buckets of one page.
pub const BUCKETS_PAGE_LEN_MAX: u32 = 10_000;

/// Where a page begins.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum ListStart {
    #[default]
    Beginning,
    /// At the first key greater than this.
    AfterKey(String),
    /// At the first key that does not begin with this and is greater.
    AfterPrefix(String),
}

/// ListObjects, version 1.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ListObjectsParameters {
    pub prefix: String,
    pub delimiter: Option<String>,
    /// As given; echoed in every answer, empty when absent.
    pub marker: String,
    pub start: ListStart,
    pub max_keys: u32,
    pub url_encoded: bool,
}

/// ListObjectsV2.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ListObjectsV2Parameters {
    pub prefix: String,
    pub delimiter: Option<String>,
    /// As given; echoed.
    pub start_after: Option<String>,
    /// As given; echoed.
    pub continuation_token: Option<String>,
    /// From the token if there is one, else from `start-after`.
    pub start: ListStart,
    pub max_keys: u32,
    pub url_encoded: bool,
    pub fetch_owner: bool,
}

/// ListObjectVersions.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ListVersionsParameters {
    pub prefix: String,
    pub delimiter: Option<String>,
    /// As given; echoed, empty when absent.
    pub key_marker: String,
    /// As given; echoed, empty when absent.
    pub version_id_marker: String,
    /// Exact while a key has one version, `null`: then a marker on it is past the whole key.
    pub start: ListStart,
    pub max_keys: u32,
    pub url_encoded: bool,
}

/// ListMultipartUploads.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ListUploadsParameters {
    pub prefix: String,
    pub delimiter: Option<String>,
    /// As given; echoed, empty when absent.
    pub key_marker: String,
    /// As given; echoed. Without a key marker it has no meaning.
    pub upload_id_marker: String,
    pub start: UploadStart,
    pub max_uploads: u32,
    pub url_encoded: bool,
}

/// Where a page of uploads begins; uploads are ordered by key, then by upload id.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum UploadStart {
    #[default]
    Beginning,
    AfterKey(String),
    AfterPrefix(String),
    /// At the upload of `key` with the first id greater than `upload_id`, or at the next key.
    AfterUpload {
        key: String,
        upload_id: String,
    },
}

/// ListParts.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ListPartsParameters {
    /// Parts with greater numbers are listed.
    pub part_number_marker: u32,
    pub max_parts: u32,
    pub url_encoded: bool,
}

/// ListBuckets.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ListBucketsParameters {
    pub prefix: Option<String>,
    pub start: ListStart,
    /// `None` when the client did not page; then every bucket is listed.
    pub max_buckets: Option<u32>,
    pub bucket_region: Option<String>,
}

impl ListObjectsParameters {
    pub fn of_query(query: &Query<'_>) -> Result<Self> {
        let prefix = bounded(query, "prefix")?.unwrap_or_default();
        let delimiter = delimiter(query)?;
        let marker = bounded(query, "marker")?.unwrap_or_default();
        Ok(Self {
            start: after_marker(&marker, &prefix, delimiter.as_deref()),
            prefix,
            delimiter,
            marker,
            max_keys: page_len(query, "max-keys")?,
            url_encoded: url_encoded(query)?,
        })
    }
}

impl ListObjectsV2Parameters {
    pub fn of_query(query: &Query<'_>) -> Result<Self> {
        let start_after = bounded(query, "start-after")?;
        let continuation_token = query.first("continuation-token").map(str::to_owned);
        let start = match (&continuation_token, &start_after) {
            (Some(token), _) => ContinuationToken::decode(token)?.into(),
            (None, Some(key)) if !key.is_empty() => ListStart::AfterKey(key.clone()),
            (None, _) => ListStart::Beginning,
        };
        Ok(Self {
            prefix: bounded(query, "prefix")?.unwrap_or_default(),
            delimiter: delimiter(query)?,
            start_after,
            continuation_token,
            start,
            max_keys: page_len(query, "max-keys")?,
            url_encoded: url_encoded(query)?,
            fetch_owner: query.first("fetch-owner") == Some("true"),
        })
    }
}

impl ListVersionsParameters {
    pub fn of_query(query: &Query<'_>) -> Result<Self> {
        let prefix = bounded(query, "prefix")?.unwrap_or_default();
        let delimiter = delimiter(query)?;
        let key_marker = bounded(query, "key-marker")?.unwrap_or_default();
        let version_id_marker = query.first("version-id-marker").unwrap_or_default().to_owned();
        let start = if version_id_marker.is_empty() {
            after_marker(&key_marker, &prefix, delimiter.as_deref())
        } else if key_marker.is_empty() {
            return Err(S3Error::invalid_argument(
                "A version-id marker cannot be specified without a key marker.",
                "version-id-marker",
                version_id_marker,
            ));
        } else {
            VersionId::parse(&version_id_marker)?;
            ListStart::AfterKey(key_marker.clone())
        };
        Ok(Self {
            prefix,
            delimiter,
            key_marker,
            version_id_marker,
            start,
            max_keys: page_len(query, "max-keys")?,
            url_encoded: url_encoded(query)?,
        })
    }
}

impl ListUploadsParameters {
    pub fn of_query(query: &Query<'_>) -> Result<Self> {
        let prefix = bounded(query, "prefix")?.unwrap_or_default();
        let delimiter = delimiter(query)?;
        let key_marker = bounded(query, "key-marker")?.unwrap_or_default();
        let upload_id_marker = bounded(query, "upload-id-marker")?.unwrap_or_default();
        let start = match after_marker(&key_marker, &prefix, delimiter.as_deref()) {
            ListStart::Beginning => UploadStart::Beginning,
            ListStart::AfterKey(key) | ListStart::AfterPrefix(key) if !upload_id_marker.is_empty() => {
                UploadStart::AfterUpload { key, upload_id: upload_id_marker.clone() }
            }
            ListStart::AfterKey(key) => UploadStart::AfterKey(key),
            ListStart::AfterPrefix(prefix) => UploadStart::AfterPrefix(prefix),
        };
        Ok(Self {
            prefix,
            delimiter,
            key_marker,
            upload_id_marker,
            start,
            max_uploads: page_len(query, "max-uploads")?,
            url_encoded: url_encoded(query)?,
        })
    }
}

impl ListPartsParameters {
    pub fn of_query(query: &Query<'_>) -> Result<Self> {
        Ok(Self {
            part_number_marker: integer(query, "part-number-marker")?.unwrap_or(0),
            max_parts: page_len(query, "max-parts")?,
            url_encoded: url_encoded(query)?,
        })
    }
}

impl ListBucketsParameters {
    pub fn of_query(query: &Query<'_>) -> Result<Self> {
        let max_buckets = integer(query, "max-buckets")?;
        if max_buckets.is_some_and(|n| n == 0 || n > BUCKETS_PAGE_LEN_MAX) {
            return Err(S3Error::invalid_argument(
                "max-buckets must be between 1 and 10000",
                "max-buckets",
                query.first("max-buckets").unwrap_or_default(),
            ));
        }
        let start = match query.first("continuation-token").filter(|token| !token.is_empty()) {
            Some(token) => ContinuationToken::decode(token)?.into(),
            None => ListStart::Beginning,
        };
        Ok(Self {
            prefix: bounded(query, "prefix")?,
            start,
            max_buckets,
            bucket_region: query.first("bucket-region").map(str::to_owned),
        })
    }
}

/// The common prefix under which `key` is rolled up, if the delimiter occurs after the prefix.
/// `key` must begin with `prefix`.
pub fn common_prefix<'k>(key: &'k str, prefix: &str, delimiter: &str) -> Option<&'k str> {
    let rest = key.strip_prefix(prefix)?;
    let end = rest.find(delimiter)? + delimiter.len();
    key.get(..prefix.len() + end)
}

/// A marker that is exactly a rolled-up prefix continues after that prefix.
fn after_marker(marker: &str, prefix: &str, delimiter: Option<&str>) -> ListStart {
    if marker.is_empty() {
        return ListStart::Beginning;
    }
    match delimiter {
        Some(delimiter) if common_prefix(marker, prefix, delimiter) == Some(marker) => {
            ListStart::AfterPrefix(marker.to_owned())
        }
        _ => ListStart::AfterKey(marker.to_owned()),
    }
}

/// A prefix, marker or delimiter is at most as long as a key.
fn bounded(query: &Query<'_>, name: &str) -> Result<Option<String>> {
    match query.first(name) {
        Some(value) if value.len() > KEY_LEN_MAX => Err(too_long(value.len())),
        value => Ok(value.map(str::to_owned)),
    }
}

/// An empty delimiter is no delimiter.
fn delimiter(query: &Query<'_>) -> Result<Option<String>> {
    Ok(bounded(query, "delimiter")?.filter(|delimiter| !delimiter.is_empty()))
}

fn url_encoded(query: &Query<'_>) -> Result<bool> {
    match query.first("encoding-type") {
        None | Some("") => Ok(false),
        Some(kind) if kind.eq_ignore_ascii_case("url") => Ok(true),
        Some(kind) => Err(S3Error::invalid_argument(
            "Invalid Encoding Method specified in Request",
            "encoding-type",
            kind,
        )),
    }
}

fn page_len(query: &Query<'_>, name: &'static str) -> Result<u32> {
    Ok(integer(query, name)?.unwrap_or(PAGE_LEN_MAX).min(PAGE_LEN_MAX))
}

/// An integer between 0 and 2147483647; an empty value is an absent one.
fn integer(query: &Query<'_>, name: &'static str) -> Result<Option<u32>> {
    let Some(text) = query.first(name).filter(|text| !text.is_empty()) else { return Ok(None) };
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    match text.parse::<i32>() {
        Ok(n) if digits => Ok(Some(n.unsigned_abs())),
        Ok(n) if n < 0 => Err(S3Error::invalid_argument(
            format!("Argument {name} must be an integer between 0 and 2147483647"),
            name,
            text,
        )),
        _ => Err(S3Error::invalid_argument(
            format!("Provided {name} not an integer or within integer range"),
            name,
            text,
        )),
    }
}

#[cfg(test)]
mod tests;
