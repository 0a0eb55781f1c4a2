//! The results that are not listings: location, delete, copy, multipart.
//!
//! Copy and complete may take long, so their answers can begin before they are known: the declaration
//! is sent, then white space to keep the connection alive, then either the result or an `<Error>`. Their
//! writers therefore leave the declaration to the caller ([`DECLARATION`](super::writer::DECLARATION)).

use super::writer::Writer;
use crate::s3::checksum::Algorithm;
use crate::s3::checksum::multipart::{ChecksumType, ObjectChecksum};
use crate::s3::error::S3Error;
use crate::s3::etag::ETag;
use crate::s3::request::bodies::DeleteEntry;
use crate::s3::time::Timestamp;

/// The region whose buckets have an empty location.
pub const REGION_CLASSIC: &str = "us-east-1";

/// GetBucketLocation: empty for us-east-1, as it has been since S3 had one region.
pub fn write_location(out: &mut String, region: &str) {
    let mut w = Writer::document(out, "LocationConstraint");
    if region != REGION_CLASSIC {
        w.characters(region);
    }
    w.close("LocationConstraint");
}

/// DeleteObjects: starts the answer. Each entry is then written by [`write_delete_entry`] in the order of
/// the request, and [`end_delete_result`] closes it.
pub fn begin_delete_result(out: &mut String) {
    Writer::document(out, "DeleteResult");
}

/// One entry's outcome. What was deleted is left out when the request was quiet; a key that did not
/// exist was deleted.
pub fn write_delete_entry(out: &mut String, entry: &DeleteEntry, outcome: &Result<(), S3Error>, quiet: bool) {
    let mut w = Writer::continuing(out);
    match outcome {
        Ok(()) if quiet => {}
        Ok(()) => {
            w.open("Deleted");
            w.text("Key", &entry.key);
            w.text_if("VersionId", entry.version_id.as_deref());
            w.close("Deleted");
        }
        Err(error) => {
            w.open("Error");
            w.text("Key", &entry.key);
            w.text_if("VersionId", entry.version_id.as_deref());
            w.text("Code", error.code().name());
            w.text("Message", error.text());
            w.close("Error");
        }
    }
}

pub fn end_delete_result(out: &mut String) {
    Writer::continuing(out).close("DeleteResult");
}

/// CopyObject, without declaration.
pub fn write_copy_object(
    out: &mut String,
    etag: ETag,
    last_modified: Timestamp,
    checksum: Option<ObjectChecksum>,
) {
    write_copy(out, "CopyObjectResult", etag, last_modified, checksum, true);
}

/// UploadPartCopy, without declaration.
pub fn write_copy_part(
    out: &mut String,
    etag: ETag,
    last_modified: Timestamp,
    checksum: Option<ObjectChecksum>,
) {
    write_copy(out, "CopyPartResult", etag, last_modified, checksum, false);
}

fn write_copy(
    out: &mut String,
    root: &str,
    etag: ETag,
    last_modified: Timestamp,
    checksum: Option<ObjectChecksum>,
    with_type: bool,
) {
    let mut w = Writer::continuing(out);
    w.open_root(root);
    w.date("LastModified", last_modified);
    w.etag("ETag", etag);
    if let Some(checksum) = checksum {
        write_checksum(&mut w, checksum, with_type);
    }
    w.close(root);
}

fn write_checksum(w: &mut Writer<'_>, checksum: ObjectChecksum, with_type: bool) {
    w.text(checksum.value().algorithm().element_name(), &checksum.to_text());
    if with_type {
        w.text("ChecksumType", checksum.checksum_type().name());
    }
}

/// CreateMultipartUpload. Algorithm and type are also headers of the answer, written by the caller.
pub fn write_create_multipart_upload(out: &mut String, bucket: &str, key: &str, upload_id: &str) {
    let mut w = Writer::document(out, "InitiateMultipartUploadResult");
    w.text("Bucket", bucket);
    w.text("Key", key);
    w.text("UploadId", upload_id);
    w.close("InitiateMultipartUploadResult");
}

/// CompleteMultipartUpload, without declaration. `location` is the object's URL.
pub fn write_complete_multipart_upload(
    out: &mut String,
    location: &str,
    bucket: &str,
    key: &str,
    etag: ETag,
    checksum: Option<ObjectChecksum>,
) {
    let mut w = Writer::continuing(out);
    w.open_root("CompleteMultipartUploadResult");
    w.text("Location", location);
    w.text("Bucket", bucket);
    w.text("Key", key);
    w.etag("ETag", etag);
    if let Some(checksum) = checksum {
        write_checksum(&mut w, checksum, true);
    }
    w.close("CompleteMultipartUploadResult");
}

/// The headers with which an upload's algorithm and type are echoed.
pub fn checksum_headers(
    algorithm: Algorithm,
    kind: ChecksumType,
) -> [(http::HeaderName, http::HeaderValue); 2] {
    [
        (
            http::HeaderName::from_static("x-amz-checksum-algorithm"),
            http::HeaderValue::from_static(algorithm.name()),
        ),
        (http::HeaderName::from_static("x-amz-checksum-type"), http::HeaderValue::from_static(kind.name())),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::s3::checksum::Checksum;
    use crate::s3::error::ErrorCode;
    use crate::s3::request::bodies::DeleteRequest;
    use crate::s3::xml::writer::DECLARATION;

    const XMLNS: &str = "xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"";
    const TAG: &str = "&quot;01010101010101010101010101010101&quot;";

    fn etag() -> ETag {
        ETag::of_md5([1; 16])
    }

    fn crc32() -> ObjectChecksum {
        ObjectChecksum::full(Checksum::from_base64(Algorithm::Crc32, "AAAAAA==").expect("valid"))
    }

    #[test]
    fn behaviour_09_the_location_of_us_east_1_is_empty() {
        let location = |region| {
            let mut out = String::new();
            write_location(&mut out, region);
            out
        };
        let empty = format!("{DECLARATION}<LocationConstraint {XMLNS}></LocationConstraint>");
        assert_eq!(location("us-east-1"), empty);
        assert!(location("eu-west-1").ends_with(">eu-west-1</LocationConstraint>"));
    }

    #[test]
    fn behaviour_15_a_batch_delete_lists_what_is_gone_and_what_failed() {
        let body = "<Delete><Object><Key>a&amp;b</Key><VersionId>null</VersionId></Object>\
                    <Object><Key>c</Key></Object></Delete>";
        let request = DeleteRequest::parse_body(body.as_bytes()).expect("valid");
        let write = |quiet| {
            let mut out = String::new();
            begin_delete_result(&mut out);
            write_delete_entry(&mut out, &request.entries[0], &Ok(()), quiet);
            let denied = Err(S3Error::new(ErrorCode::AccessDenied));
            write_delete_entry(&mut out, &request.entries[1], &denied, quiet);
            end_delete_result(&mut out);
            out
        };
        let failed = "<Error><Key>c</Key><Code>AccessDenied</Code><Message>Access Denied</Message></Error>";
        let deleted = "<Deleted><Key>a&amp;b</Key><VersionId>null</VersionId></Deleted>";
        let document = |inner: &str| format!("{DECLARATION}<DeleteResult {XMLNS}>{inner}</DeleteResult>");
        assert_eq!(write(false), document(&format!("{deleted}{failed}")));
        assert_eq!(write(true), document(failed));
    }

    #[test]
    fn behaviour_16_and_17_results_may_follow_white_space() {
        let mut out = String::from(DECLARATION);
        out.push_str("  \n ");
        write_copy_object(&mut out, etag(), Timestamp::from_secs(0), Some(crc32()));
        assert_eq!(
            out,
            format!(
                "{DECLARATION}  \n <CopyObjectResult {XMLNS}><LastModified>1970-01-01T00:00:00.000Z</LastModified>\
                 <ETag>{TAG}</ETag><ChecksumCRC32>AAAAAA==</ChecksumCRC32>\
                 <ChecksumType>FULL_OBJECT</ChecksumType></CopyObjectResult>"
            )
        );
        let mut reader = quick_xml::Reader::from_str(&out);
        while reader.read_event().expect("well-formed") != quick_xml::events::Event::Eof {}
    }

    #[test]
    fn multipart_results_have_the_documented_order() {
        let mut out = String::new();
        write_create_multipart_upload(&mut out, "b", "k<", "u");
        assert_eq!(
            out,
            format!(
                "{DECLARATION}<InitiateMultipartUploadResult {XMLNS}><Bucket>b</Bucket><Key>k&lt;</Key>\
                 <UploadId>u</UploadId></InitiateMultipartUploadResult>"
            )
        );
        let mut out = String::new();
        write_complete_multipart_upload(&mut out, "http://h/b/k", "b", "k", etag(), None);
        assert_eq!(
            out,
            format!(
                "<CompleteMultipartUploadResult {XMLNS}><Location>http://h/b/k</Location><Bucket>b</Bucket>\
                 <Key>k</Key><ETag>{TAG}</ETag></CompleteMultipartUploadResult>"
            )
        );
        let mut out = String::new();
        write_copy_part(&mut out, etag(), Timestamp::from_secs(0), Some(crc32()));
        assert!(out.starts_with("<CopyPartResult") && !out.contains("ChecksumType"));
    }

    #[test]
    fn behaviour_29_algorithm_and_type_are_echoed() {
        let [algorithm, kind] = checksum_headers(Algorithm::Crc64Nvme, ChecksumType::FullObject);
        assert_eq!((algorithm.1.as_bytes(), kind.1.as_bytes()), (&b"CRC64NVME"[..], &b"FULL_OBJECT"[..]));
    }
}
