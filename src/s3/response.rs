//! What a read or a write of an object answers in its headers.
//!
//! [`select`] decides a read against the object that was found: served whole, in part, not modified,
//! or refused, in the order that S3 documents: conditions first, then the range. The headers follow from that
//! decision alone, so GET and HEAD cannot disagree.

use http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderName, LAST_MODIFIED};
use http::{HeaderMap, HeaderValue, StatusCode};

use super::checksum::multipart::ObjectChecksum;
use super::conditions::ReadOutcome;
use super::error::{ErrorCode, Result, S3Error};
use super::etag::ETag;
use super::metadata::ObjectMetadata;
use super::operation::{PartNumber, ReadObject};
use super::range::{ResolvedRange, content_range, if_range_holds, unsatisfiable};
use super::time::Timestamp;

const PARTS_COUNT: HeaderName = HeaderName::from_static("x-amz-mp-parts-count");
const CHECKSUM_TYPE: HeaderName = HeaderName::from_static("x-amz-checksum-type");

/// What the server knows about an object that is to be read.
#[derive(Clone, Copy, Debug)]
pub struct ObjectFacts<'o> {
    /// In bytes.
    pub size: u64,
    pub etag: ETag,
    pub last_modified: Timestamp,
    pub checksum: Option<ObjectChecksum>,
    pub metadata: &'o ObjectMetadata,
}

/// The bytes of a part within its object.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PartExtent {
    pub start: u64,
    pub len: u64,
}

/// What a read answers with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Selection {
    /// 200.
    Whole,
    /// 206 with these bytes, which lie within the object. A part may be empty, a range never is.
    Partial { start: u64, len: u64 },
    /// 304.
    NotModified,
}

/// Decides a read. `part` gives the place of a part of a multipart object, `None` when it has no such
/// part; it is asked only for objects of several parts.
///
/// Errors: `PreconditionFailed`, `InvalidRange`, `InvalidPartNumber`.
pub fn select(
    read: &ReadObject,
    facts: &ObjectFacts<'_>,
    part: impl FnOnce(PartNumber) -> Option<PartExtent>,
) -> Result<Selection> {
    if read.conditions.evaluate(facts.etag, facts.last_modified)? == ReadOutcome::NotModified {
        return Ok(Selection::NotModified);
    }
    if let Some(number) = read.part_number {
        let whole = PartExtent { start: 0, len: facts.size };
        // An object uploaded whole is its own first and only part.
        let extent = match facts.etag.part_count() {
            0 => (number.get() == 1).then_some(whole),
            _ => part(number),
        };
        return match extent {
            Some(PartExtent { start, len }) => Ok(Selection::Partial { start, len }),
            None => Err(S3Error::new(ErrorCode::InvalidPartNumber)
                .with("PartNumberRequested", number.get().to_string())
                .with("ActualPartCount", facts.etag.part_count().max(1).to_string())),
        };
    }
    let range = read.range.as_ref().filter(|_| {
        read.if_range.as_deref().is_none_or(|text| if_range_holds(text, facts.etag, facts.last_modified))
    });
    match range.map(|range| (range.spec.resolve(facts.size), range)) {
        None | Some((ResolvedRange::Whole, _)) => Ok(Selection::Whole),
        Some((ResolvedRange::Partial { start, len }, _)) => Ok(Selection::Partial { start, len }),
        Some((ResolvedRange::Unsatisfiable, range)) => Err(unsatisfiable(&range.text, facts.size)),
    }
}

impl Selection {
    pub fn status(self) -> StatusCode {
        match self {
            Self::Whole => StatusCode::OK,
            Self::Partial { .. } => StatusCode::PARTIAL_CONTENT,
            Self::NotModified => StatusCode::NOT_MODIFIED,
        }
    }

    /// The headers of the answer to GET and HEAD alike; Content-Length is that of the bytes a GET sends.
    pub fn headers(self, read: &ReadObject, facts: &ObjectFacts<'_>) -> HeaderMap {
        let mut out = HeaderMap::new();
        out.insert(ETAG, facts.etag.header_value());
        out.insert(LAST_MODIFIED, facts.last_modified.header_value());
        let len = match self {
            // A 304 must not say what a 200 would have carried.
            Self::NotModified => return out,
            Self::Whole => facts.size,
            Self::Partial { start, len } => {
                // An empty part has no range that could be written down.
                if len > 0 {
                    out.insert(CONTENT_RANGE, content_range(start, len, facts.size));
                }
                len
            }
        };
        facts.metadata.write_headers(&read.overrides, &mut out);
        out.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        out.insert(CONTENT_LENGTH, HeaderValue::from(len));
        if read.part_number.is_some() && facts.etag.part_count() > 0 {
            out.insert(PARTS_COUNT, HeaderValue::from(facts.etag.part_count()));
        }
        // The object's checksum says nothing about a part of its bytes, and clients would compare.
        let covers_answer = self == Self::Whole || len == facts.size;
        if let Some(checksum) = facts.checksum.filter(|_| read.with_checksums && covers_answer) {
            write_checksum_headers(checksum, &mut out);
        }
        out
    }
}

/// The headers of the answer to a PutObject or UploadPart: entity tag and checksum. A part has no
/// checksum type.
pub fn written_headers(etag: ETag, checksum: Option<ObjectChecksum>, is_part: bool) -> HeaderMap {
    let mut out = HeaderMap::new();
    out.insert(ETAG, etag.header_value());
    if let Some(checksum) = checksum {
        write_checksum_headers(checksum, &mut out);
        if is_part {
            out.remove(CHECKSUM_TYPE);
        }
    }
    out
}

fn write_checksum_headers(checksum: ObjectChecksum, out: &mut HeaderMap) {
    let value = HeaderValue::from_str(&checksum.to_text()).expect("Base64 is printable ASCII");
    out.insert(checksum.value().algorithm().header_name(), value);
    out.insert(CHECKSUM_TYPE, HeaderValue::from_static(checksum.checksum_type().name()));
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;
    use crate::s3::addressing::Addressing;
    use crate::s3::checksum::{Algorithm, Checksum};
    use crate::s3::operation::Operation;
    use crate::s3::request::{RequestHead, parse};

    const PARTS: [PartExtent; 2] = [PartExtent { start: 0, len: 6 }, PartExtent { start: 6, len: 4 }];

    fn read(query: &str, pairs: &[(&'static str, &'static str)]) -> ReadObject {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.insert(*name, HeaderValue::from_static(value));
        }
        let head = RequestHead {
            method: &Method::GET,
            raw_path: "/bucket/k",
            raw_query: query,
            authority: None,
            headers: &headers,
        };
        match parse(&head, &Addressing::default()).expect("valid").operation {
            Operation::GetObject(read) => *read,
            _ => panic!("a get"),
        }
    }

    fn answer(read: &ReadObject, part_count: u16) -> Result<(u16, HeaderMap)> {
        let metadata = ObjectMetadata { content_type: Some("text/x".to_owned()), ..Default::default() };
        let crc32 = Checksum::from_base64(Algorithm::Crc32, "AAAAAA==").expect("valid");
        let facts = ObjectFacts {
            size: 10,
            etag: ETag::from_raw([1; 16], part_count),
            last_modified: Timestamp::from_secs(784_111_777),
            checksum: Some(ObjectChecksum::full(crc32)),
            metadata: &metadata,
        };
        let selection = select(read, &facts, |n| PARTS.get(usize::from(n.get()) - 1).copied())?;
        Ok((selection.status().as_u16(), selection.headers(read, &facts)))
    }

    #[test]
    fn a_plain_read_answers_200_and_everything_known() {
        let (status, headers) = answer(&read("", &[("x-amz-checksum-mode", "ENABLED")]), 0).expect("200");
        assert_eq!(status, 200);
        assert_eq!(headers[ETAG], "\"01010101010101010101010101010101\"");
        assert_eq!(headers[LAST_MODIFIED], "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(headers[CONTENT_LENGTH], "10");
        assert_eq!(headers[ACCEPT_RANGES], "bytes");
        assert_eq!(headers["content-type"], "text/x");
        assert_eq!(headers["x-amz-checksum-crc32"], "AAAAAA==");
        assert_eq!(headers[CHECKSUM_TYPE], "FULL_OBJECT");
        let (_, headers) = answer(&read("", &[]), 0).expect("200");
        assert!(!headers.contains_key("x-amz-checksum-crc32"));
    }

    #[test]
    fn behaviour_19_a_range_answers_206_without_the_checksum_of_the_whole() {
        let ranged = read("", &[("range", "bytes=2-5"), ("x-amz-checksum-mode", "ENABLED")]);
        let (status, headers) = answer(&ranged, 0).expect("206");
        assert_eq!(
            (status, &headers[CONTENT_RANGE], &headers[CONTENT_LENGTH]),
            (206, &HeaderValue::from_static("bytes 2-5/10"), &HeaderValue::from_static("4"),)
        );
        assert!(!headers.contains_key("x-amz-checksum-crc32"));
        let error = answer(&read("", &[("range", "bytes=10-")]), 0).expect_err("416");
        assert_eq!(error.headers()[0].1, "bytes */10");
        let stale = read("", &[("range", "bytes=2-5"), ("if-range", "\"other\"")]);
        assert_eq!(answer(&stale, 0).expect("200").0, 200);
    }

    #[test]
    fn behaviour_18_a_part_answers_206_with_the_number_of_parts() {
        let (status, headers) = answer(&read("partNumber=2", &[]), 2).expect("206");
        assert_eq!((status, &headers[CONTENT_RANGE]), (206, &HeaderValue::from_static("bytes 6-9/10")));
        assert_eq!(headers[PARTS_COUNT], "2");
        let error = answer(&read("partNumber=3", &[]), 2).expect_err("416");
        assert_eq!((error.status().as_u16(), error.field("ActualPartCount")), (416, Some("2")));
        let (status, headers) = answer(&read("partNumber=1", &[]), 0).expect("206");
        assert_eq!((status, headers.contains_key(PARTS_COUNT)), (206, false));
        assert_eq!(answer(&read("partNumber=2", &[]), 0).expect_err("416").status(), 416);
    }

    #[test]
    fn conditions_are_decided_before_the_range() {
        let unchanged = read("", &[("if-none-match", "*"), ("range", "bytes=10-")]);
        let (status, headers) = answer(&unchanged, 0).expect("304");
        assert_eq!(status, 304);
        assert!(headers.contains_key(ETAG) && !headers.contains_key(CONTENT_LENGTH));
        let changed = read("", &[("if-match", "\"x\""), ("range", "bytes=10-")]);
        assert_eq!(answer(&changed, 0).expect_err("412").status(), 412);
    }

    #[test]
    fn writes_answer_with_tag_and_checksum() {
        let crc32 = ObjectChecksum::full(Checksum::from_base64(Algorithm::Crc32, "AAAAAA==").expect("valid"));
        let headers = written_headers(ETag::of_md5([1; 16]), Some(crc32), false);
        assert_eq!(headers["x-amz-checksum-crc32"], "AAAAAA==");
        assert_eq!(headers[CHECKSUM_TYPE], "FULL_OBJECT");
        assert!(!written_headers(ETag::of_md5([1; 16]), Some(crc32), true).contains_key(CHECKSUM_TYPE));
    }
}
