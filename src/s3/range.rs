//! Ranges: which bytes of an object a read asks for.
//!
//! RFC 9110 lets a server ignore a Range it does not understand, and S3 does: bad syntax, another
//! unit and several ranges at once all answer 200 with the whole object. Only a well-formed single
//! range that lies outside the object is an error. The range of UploadPartCopy is S3's own and strict.

use http::HeaderValue;
use http::header::CONTENT_RANGE;

use super::error::{ErrorCode, Result, S3Error};
use super::etag::ETag;
use super::time::Timestamp;

/// A single byte range as the client wrote it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RangeSpec {
    /// `first-last`, both included; `first <= last`.
    Between { first: u64, last: u64 },
    /// `first-`.
    From { first: u64 },
    /// `-len`: the last `len` bytes.
    Suffix { len: u64 },
}

/// A range against an object of known length.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ResolvedRange {
    Whole,
    /// Inside the object and not empty: answered with 206.
    Partial {
        start: u64,
        len: u64,
    },
    Unsatisfiable,
}

impl RangeSpec {
    /// Reads a Range header. `None` means: ignore it and serve the whole object.
    pub fn parse(header: &str) -> Option<Self> {
        let (unit, set) = header.trim().split_once('=')?;
        if !unit.eq_ignore_ascii_case("bytes") {
            return None;
        }
        // A second range would bring a comma, which no number contains.
        let (first, last) = set.trim().split_once('-')?;
        match (first, last) {
            ("", len) => Some(Self::Suffix { len: offset(len)? }),
            (first, "") => Some(Self::From { first: offset(first)? }),
            (first, last) => {
                let (first, last) = (offset(first)?, offset(last)?);
                (first <= last).then_some(Self::Between { first, last })
            }
        }
    }

    /// Clips the range to an object of `size` bytes.
    pub fn resolve(self, size: u64) -> ResolvedRange {
        let (start, len) = match self {
            Self::Between { first, last } => (first, last.saturating_sub(first).saturating_add(1)),
            Self::From { first } => (first, u64::MAX),
            Self::Suffix { len } => (size.saturating_sub(len), len),
        };
        let len = len.min(size.saturating_sub(start));
        if len == 0 { ResolvedRange::Unsatisfiable } else { ResolvedRange::Partial { start, len } }
    }
}

/// Digits only; a number too large for any object is the largest.
fn offset(text: &str) -> Option<u64> {
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().unwrap_or(u64::MAX))
}

/// `Content-Range` of a 206: `bytes first-last/size`. `len` is at least 1.
pub fn content_range(start: u64, len: u64, size: u64) -> HeaderValue {
    let last = start + len.saturating_sub(1);
    HeaderValue::from_str(&format!("bytes {start}-{last}/{size}")).expect("digits are printable ASCII")
}

/// The 416 for a range outside an object of `size` bytes; carries `Content-Range: bytes */size`.
pub fn unsatisfiable(requested: &str, size: u64) -> S3Error {
    let content_range =
        HeaderValue::from_str(&format!("bytes */{size}")).expect("digits are printable ASCII");
    S3Error::new(ErrorCode::InvalidRange)
        .with("RangeRequested", requested)
        .with("ActualObjectSize", size.to_string())
        .header(CONTENT_RANGE, content_range)
}

/// Whether an If-Range header lets the Range stand: its entity tag is the object's (a weak one never
/// is), or its date is exactly the object's. Otherwise the whole object is served.
pub fn if_range_holds(header: &str, etag: ETag, last_modified: Timestamp) -> bool {
    match Timestamp::parse_http(header) {
        Some(date) => date == last_modified,
        None => ETag::parse(header) == Some(etag),
    }
}

/// `x-amz-copy-source-range`: exactly `bytes=first-last`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CopySourceRange {
    first: u64,
    last: u64,
}

impl CopySourceRange {
    /// Errors: `InvalidArgument`.
    pub fn parse(header: &str) -> Result<Self> {
        match RangeSpec::parse(header) {
            Some(RangeSpec::Between { first, last }) if header.starts_with("bytes=") => {
                Ok(Self { first, last })
            }
            _ => Err(S3Error::invalid_argument(
                "The x-amz-copy-source-range value must be of the form bytes=first-last where first and \
                 last are the zero-based offsets of the first and last bytes to copy",
                "x-amz-copy-source-range",
                header,
            )),
        }
    }

    /// Start and length within a source of `size` bytes, which must hold the whole range.
    /// Errors: `InvalidArgument`.
    pub fn resolve(self, size: u64) -> Result<(u64, u64)> {
        if self.last >= size {
            return Err(S3Error::invalid_argument(
                format!("Range specified is not valid for source object of size: {size}"),
                "x-amz-copy-source-range",
                format!("bytes={}-{}", self.first, self.last),
            ));
        }
        Ok((self.first, self.last - self.first + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn resolve(header: &str, size: u64) -> ResolvedRange {
        RangeSpec::parse(header).map_or(ResolvedRange::Whole, |range| range.resolve(size))
    }

    fn partial(start: u64, len: u64) -> ResolvedRange {
        ResolvedRange::Partial { start, len }
    }

    #[test]
    fn single_ranges_are_clipped_to_the_object() {
        assert_eq!(resolve("bytes=0-0", 10), partial(0, 1));
        assert_eq!(resolve("bytes=2-5", 10), partial(2, 4));
        assert_eq!(resolve("bytes=5-100", 10), partial(5, 5));
        assert_eq!(resolve("bytes=3-", 10), partial(3, 7));
        assert_eq!(resolve("bytes=-3", 10), partial(7, 3));
        assert_eq!(resolve("bytes=-100", 10), partial(0, 10));
        assert_eq!(resolve("bytes=0-99999999999999999999999", 10), partial(0, 10));
        assert_eq!(resolve("bytes=0-18446744073709551615", 10), partial(0, 10));
    }

    #[test]
    fn behaviour_19_several_ranges_and_bad_syntax_answer_the_whole_object() {
        for header in [
            "bytes=0-1,3-4",
            "bytes=5-2",
            "bytes=a-b",
            "bytes=",
            "bytes=-",
            "bytes",
            "items=0-1",
            "0-1",
            "bytes=1-2-3",
            "bytes=+1-2",
            "bytes=1- 2",
            "",
        ] {
            assert_eq!(resolve(header, 10), ResolvedRange::Whole, "{header}");
        }
    }

    #[test]
    fn behaviour_19_a_range_outside_the_object_is_416_with_its_size() {
        for (header, size) in
            [("bytes=10-", 10), ("bytes=10-20", 10), ("bytes=-0", 10), ("bytes=0-", 0), ("bytes=-5", 0)]
        {
            assert_eq!(resolve(header, size), ResolvedRange::Unsatisfiable, "{header} of {size}");
        }
        let error = unsatisfiable("bytes=10-", 10);
        assert_eq!(error.status(), 416);
        assert_eq!(error.headers(), [(CONTENT_RANGE, HeaderValue::from_static("bytes */10"))]);
    }

    #[test]
    fn content_range_names_first_last_and_size() {
        assert_eq!(content_range(2, 4, 10), "bytes 2-5/10");
    }

    #[test]
    fn behaviour_19_if_range_guards_the_range() {
        let etag = ETag::of_md5([7; 16]);
        let modified = Timestamp::from_secs(784_111_777);
        assert!(if_range_holds(&etag.quoted(), etag, modified));
        assert!(if_range_holds(&etag.to_string(), etag, modified));
        assert!(!if_range_holds(&format!("W/{}", etag.quoted()), etag, modified));
        assert!(!if_range_holds(&ETag::of_md5([8; 16]).quoted(), etag, modified));
        assert!(if_range_holds("Sun, 06 Nov 1994 08:49:37 GMT", etag, modified));
        assert!(!if_range_holds("Sun, 06 Nov 1994 08:49:38 GMT", etag, modified));
        assert!(!if_range_holds("nonsense", etag, modified));
    }

    #[test]
    fn the_copy_source_range_is_strict() {
        assert_eq!(CopySourceRange::parse("bytes=0-9").and_then(|r| r.resolve(10)), Ok((0, 10)));
        assert!(CopySourceRange::parse("bytes=0-10").and_then(|r| r.resolve(10)).is_err());
        for header in ["bytes=0-", "bytes=-5", "0-5", "bytes=5-2", "bytes=0-1,2-3", "BYTES=0-1", ""] {
            let error = CopySourceRange::parse(header).expect_err(header);
            assert_eq!(error.code(), ErrorCode::InvalidArgument, "{header}");
        }
    }

    proptest! {
        #[test]
        fn resolving_agrees_with_counting_bytes(first in 0..20u64, last in 0..20u64, size in 0..20u64) {
            let expected: Vec<u64> = (0..size).filter(|i| (first..=last).contains(i)).collect();
            let got = resolve(&format!("bytes={first}-{last}"), size);
            if first > last {
                prop_assert_eq!(got, ResolvedRange::Whole);
            } else if let Some(start) = expected.first() {
                prop_assert_eq!(got, partial(*start, expected.len() as u64));
            } else {
                prop_assert_eq!(got, ResolvedRange::Unsatisfiable);
            }
        }

        #[test]
        fn hostile_ranges_never_panic(header in "(bytes=)?[-0-9,]{0,50}|.{0,50}", size: u64) {
            let _ = resolve(&header, size);
            let _ = CopySourceRange::parse(&header).and_then(|range| range.resolve(size));
        }
    }
}
