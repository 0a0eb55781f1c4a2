//! The results of listings: objects (both versions), object versions, buckets, parts, uploads.
//!
//! A result borrows everything it prints, so that a page goes from the engine's buffers to the
//! response in one pass. With `url_encoded`, every field that `encoding-type=url` covers is encoded, and
//! the answer says so. Continuation tokens are never encoded: they need no escaping.

use super::writer::Writer;
use crate::s3::checksum::Algorithm;
use crate::s3::checksum::multipart::ChecksumType;
use crate::s3::etag::ETag;
use crate::s3::list::token::ContinuationToken;
use crate::s3::list::{
    ListBucketsParameters, ListObjectsParameters, ListObjectsV2Parameters, ListPartsParameters,
    ListUploadsParameters, ListVersionsParameters,
};
use crate::s3::time::Timestamp;
use crate::s3::unset::Owner;

/// What listings reserve per entry, in bytes: the markup of one, and a key of ordinary length.
const ENTRY_LEN_TYPICAL: usize = 320;

/// The only storage class there is.
const STORAGE_CLASS: &str = "STANDARD";

/// One object of a listing.
#[derive(Clone, Copy, Debug)]
pub struct ObjectEntry<'e> {
    pub key: &'e str,
    pub last_modified: Timestamp,
    pub etag: ETag,
    /// In bytes.
    pub size: u64,
    pub checksum: Option<(Algorithm, ChecksumType)>,
}

/// A page of objects or versions: entries and common prefixes, each in bytewise order.
#[derive(Clone, Copy, Debug)]
pub struct Page<'p> {
    pub entries: &'p [ObjectEntry<'p>],
    pub common_prefixes: &'p [&'p str],
    /// Whether anything follows the page.
    pub truncated: bool,
}

impl Page<'_> {
    /// Keys and common prefixes together, as KeyCount counts them.
    fn len(&self) -> usize {
        self.entries.len() + self.common_prefixes.len()
    }

    /// The greatest name on the page, and whether it is a common prefix.
    fn last(&self) -> Option<(&str, bool)> {
        let entry = self.entries.last().map(|entry| (entry.key, false));
        let prefix = self.common_prefixes.last().map(|prefix| (*prefix, true));
        entry.max(prefix)
    }

    /// The name that the next page starts after; `None` on the last page.
    fn next(&self) -> Option<(&str, bool)> {
        if self.truncated { self.last() } else { None }
    }
}

/// ListObjects. NextMarker is given only with a delimiter; without one the last key serves.
pub fn write_list_objects(
    out: &mut String,
    bucket: &str,
    parameters: &ListObjectsParameters,
    page: &Page<'_>,
    owner: &Owner,
) {
    out.reserve(ENTRY_LEN_TYPICAL * (page.len() + 2));
    let encoded = parameters.url_encoded;
    let mut w = Writer::document(out, "ListBucketResult");
    w.text("Name", bucket);
    w.listed("Prefix", &parameters.prefix, encoded);
    w.listed("Marker", &parameters.marker, encoded);
    if let (Some(_), Some((next, _))) = (&parameters.delimiter, page.next()) {
        w.listed("NextMarker", next, encoded);
    }
    w.number("MaxKeys", u64::from(parameters.max_keys));
    write_delimiter(&mut w, parameters.delimiter.as_deref(), encoded);
    w.boolean("IsTruncated", page.truncated);
    for entry in page.entries {
        w.open("Contents");
        write_entry(&mut w, entry, encoded, Some(owner));
        w.close("Contents");
    }
    write_common_prefixes(&mut w, page.common_prefixes, encoded);
    w.close("ListBucketResult");
}

/// ListObjectsV2.
pub fn write_list_objects_v2(
    out: &mut String,
    bucket: &str,
    parameters: &ListObjectsV2Parameters,
    page: &Page<'_>,
    owner: &Owner,
) {
    out.reserve(ENTRY_LEN_TYPICAL * (page.len() + 2));
    let encoded = parameters.url_encoded;
    let mut w = Writer::document(out, "ListBucketResult");
    w.text("Name", bucket);
    w.listed("Prefix", &parameters.prefix, encoded);
    if let Some(start_after) = &parameters.start_after {
        w.listed("StartAfter", start_after, encoded);
    }
    w.text_if("ContinuationToken", parameters.continuation_token.as_deref());
    if let Some((last, is_prefix)) = page.next() {
        let token = match is_prefix {
            true => ContinuationToken::AfterPrefix(last.to_owned()),
            false => ContinuationToken::AfterKey(last.to_owned()),
        };
        w.text("NextContinuationToken", &token.encode());
    }
    w.number("KeyCount", page.len() as u64);
    w.number("MaxKeys", u64::from(parameters.max_keys));
    write_delimiter(&mut w, parameters.delimiter.as_deref(), encoded);
    w.boolean("IsTruncated", page.truncated);
    for entry in page.entries {
        w.open("Contents");
        write_entry(&mut w, entry, encoded, parameters.fetch_owner.then_some(owner));
        w.close("Contents");
    }
    write_common_prefixes(&mut w, page.common_prefixes, encoded);
    w.close("ListBucketResult");
}

/// ListObjectVersions of a bucket that was never versioned: every object is its latest version, `null`.
pub fn write_list_null_versions(
    out: &mut String,
    bucket: &str,
    parameters: &ListVersionsParameters,
    page: &Page<'_>,
    owner: &Owner,
) {
    out.reserve(ENTRY_LEN_TYPICAL * (page.len() + 2));
    let encoded = parameters.url_encoded;
    let mut w = Writer::document(out, "ListVersionsResult");
    w.text("Name", bucket);
    w.listed("Prefix", &parameters.prefix, encoded);
    w.listed("KeyMarker", &parameters.key_marker, encoded);
    w.text("VersionIdMarker", &parameters.version_id_marker);
    if let Some((next, is_prefix)) = page.next() {
        w.listed("NextKeyMarker", next, encoded);
        // A common prefix has no version.
        if !is_prefix {
            w.text("NextVersionIdMarker", "null");
        }
    }
    w.number("MaxKeys", u64::from(parameters.max_keys));
    write_delimiter(&mut w, parameters.delimiter.as_deref(), encoded);
    w.boolean("IsTruncated", page.truncated);
    for entry in page.entries {
        w.open("Version");
        w.listed("Key", entry.key, encoded);
        w.raw("<VersionId>null</VersionId><IsLatest>true</IsLatest>");
        write_facts(&mut w, entry);
        write_owner(&mut w, "Owner", owner);
        w.text("StorageClass", STORAGE_CLASS);
        w.close("Version");
    }
    write_common_prefixes(&mut w, page.common_prefixes, encoded);
    w.close("ListVersionsResult");
}

fn write_entry(w: &mut Writer<'_>, entry: &ObjectEntry<'_>, encoded: bool, owner: Option<&Owner>) {
    w.listed("Key", entry.key, encoded);
    write_facts(w, entry);
    if let Some(owner) = owner {
        write_owner(w, "Owner", owner);
    }
    w.text("StorageClass", STORAGE_CLASS);
}

fn write_facts(w: &mut Writer<'_>, entry: &ObjectEntry<'_>) {
    w.date("LastModified", entry.last_modified);
    w.etag("ETag", entry.etag);
    if let Some((algorithm, kind)) = entry.checksum {
        w.text("ChecksumAlgorithm", algorithm.name());
        w.text("ChecksumType", kind.name());
    }
    w.number("Size", entry.size);
}

/// The delimiter and the encoding, which are given together in every listing.
fn write_delimiter(w: &mut Writer<'_>, delimiter: Option<&str>, encoded: bool) {
    if let Some(delimiter) = delimiter {
        w.listed("Delimiter", delimiter, encoded);
    }
    if encoded {
        w.text("EncodingType", "url");
    }
}

fn write_common_prefixes(w: &mut Writer<'_>, prefixes: &[&str], encoded: bool) {
    for prefix in prefixes {
        w.open("CommonPrefixes");
        w.listed("Prefix", prefix, encoded);
        w.close("CommonPrefixes");
    }
}

fn write_owner(w: &mut Writer<'_>, element: &str, owner: &Owner) {
    w.open(element);
    w.text("ID", &owner.id);
    w.text("DisplayName", &owner.display_name);
    w.close(element);
}

/// One bucket of ListBuckets.
#[derive(Clone, Copy, Debug)]
pub struct BucketEntry<'e> {
    pub name: &'e str,
    pub created: Timestamp,
    pub region: &'e str,
}

/// ListBuckets. Regions and the prefix are shown only to clients that page, as AWS does.
pub fn write_list_buckets(
    out: &mut String,
    parameters: &ListBucketsParameters,
    buckets: &[BucketEntry<'_>],
    truncated: bool,
    owner: &Owner,
) {
    let mut w = Writer::document(out, "ListAllMyBucketsResult");
    write_owner(&mut w, "Owner", owner);
    w.open("Buckets");
    for bucket in buckets {
        w.open("Bucket");
        w.text("Name", bucket.name);
        w.date("CreationDate", bucket.created);
        if parameters.max_buckets.is_some() || parameters.bucket_region.is_some() {
            w.text("BucketRegion", bucket.region);
        }
        w.close("Bucket");
    }
    w.close("Buckets");
    if let (true, Some(last)) = (truncated, buckets.last()) {
        w.text("ContinuationToken", &ContinuationToken::AfterKey(last.name.to_owned()).encode());
    }
    w.text_if("Prefix", parameters.prefix.as_deref());
    w.close("ListAllMyBucketsResult");
}

/// One part of ListParts.
#[derive(Clone, Debug)]
pub struct PartEntry {
    pub number: u16,
    pub last_modified: Timestamp,
    pub etag: ETag,
    /// In bytes.
    pub size: u64,
    /// Algorithm and Base64 text.
    pub checksum: Option<(Algorithm, String)>,
}

/// The upload that parts belong to.
#[derive(Clone, Copy, Debug)]
pub struct UploadFacts<'u> {
    pub bucket: &'u str,
    pub key: &'u str,
    pub upload_id: &'u str,
    pub owner: &'u Owner,
    pub checksum: Option<(Algorithm, ChecksumType)>,
}

/// ListParts.
pub fn write_list_parts(
    out: &mut String,
    upload: &UploadFacts<'_>,
    parameters: &ListPartsParameters,
    parts: &[PartEntry],
    truncated: bool,
) {
    out.reserve(ENTRY_LEN_TYPICAL * (parts.len() + 2));
    let mut w = Writer::document(out, "ListPartsResult");
    w.text("Bucket", upload.bucket);
    w.listed("Key", upload.key, parameters.url_encoded);
    w.text("UploadId", upload.upload_id);
    write_owner(&mut w, "Initiator", upload.owner);
    write_owner(&mut w, "Owner", upload.owner);
    w.text("StorageClass", STORAGE_CLASS);
    w.number("PartNumberMarker", u64::from(parameters.part_number_marker));
    if let (true, Some(last)) = (truncated, parts.last()) {
        w.number("NextPartNumberMarker", u64::from(last.number));
    }
    w.number("MaxParts", u64::from(parameters.max_parts));
    if parameters.url_encoded {
        w.text("EncodingType", "url");
    }
    w.boolean("IsTruncated", truncated);
    if let Some((algorithm, kind)) = upload.checksum {
        w.text("ChecksumAlgorithm", algorithm.name());
        w.text("ChecksumType", kind.name());
    }
    for part in parts {
        w.open("Part");
        w.number("PartNumber", u64::from(part.number));
        w.date("LastModified", part.last_modified);
        w.etag("ETag", part.etag);
        w.number("Size", part.size);
        if let Some((algorithm, text)) = &part.checksum {
            w.text(algorithm.element_name(), text);
        }
        w.close("Part");
    }
    w.close("ListPartsResult");
}

/// One upload of ListMultipartUploads.
#[derive(Clone, Copy, Debug)]
pub struct UploadEntry<'e> {
    pub key: &'e str,
    pub upload_id: &'e str,
    pub initiated: Timestamp,
    pub checksum: Option<(Algorithm, ChecksumType)>,
}

/// ListMultipartUploads. Common prefixes count like uploads, and the next page starts after the greater
/// of the last of each.
pub fn write_list_uploads(
    out: &mut String,
    bucket: &str,
    parameters: &ListUploadsParameters,
    uploads: &[UploadEntry<'_>],
    common_prefixes: &[&str],
    truncated: bool,
    owner: &Owner,
) {
    out.reserve(ENTRY_LEN_TYPICAL * (uploads.len() + common_prefixes.len() + 2));
    let encoded = parameters.url_encoded;
    let mut w = Writer::document(out, "ListMultipartUploadsResult");
    w.text("Bucket", bucket);
    w.listed("KeyMarker", &parameters.key_marker, encoded);
    w.text("UploadIdMarker", &parameters.upload_id_marker);
    let last_upload = uploads.last().map(|upload| (upload.key, upload.upload_id));
    let last_prefix = common_prefixes.last().map(|prefix| (*prefix, ""));
    if let (true, Some((key, upload_id))) = (truncated, last_upload.max(last_prefix)) {
        w.listed("NextKeyMarker", key, encoded);
        w.text("NextUploadIdMarker", upload_id);
    }
    w.listed("Prefix", &parameters.prefix, encoded);
    write_delimiter(&mut w, parameters.delimiter.as_deref(), encoded);
    w.number("MaxUploads", u64::from(parameters.max_uploads));
    w.boolean("IsTruncated", truncated);
    for upload in uploads {
        w.open("Upload");
        w.listed("Key", upload.key, encoded);
        w.text("UploadId", upload.upload_id);
        write_owner(&mut w, "Initiator", owner);
        write_owner(&mut w, "Owner", owner);
        w.text("StorageClass", STORAGE_CLASS);
        w.date("Initiated", upload.initiated);
        if let Some((algorithm, kind)) = upload.checksum {
            w.text("ChecksumAlgorithm", algorithm.name());
            w.text("ChecksumType", kind.name());
        }
        w.close("Upload");
    }
    write_common_prefixes(&mut w, common_prefixes, encoded);
    w.close("ListMultipartUploadsResult");
}

#[cfg(test)]
mod tests;
