//! Checksums of multipart objects: which type goes with which algorithm, and how parts become one.
//!
//! A *full-object* checksum is what the algorithm gives over all bytes; only CRCs can be combined to
//! it from the parts' values. A *composite* checksum is the algorithm over the parts' values, written
//! with the number of parts, like a multipart ETag.

use http::HeaderMap;

use super::hasher::{Hasher, crc_algorithm};
use super::requested::{checksum_mismatch, invalid_value, single_checksum_header};
use super::{Algorithm, Checksum, DEFAULT_ALGORITHM};
use crate::s3::error::{Result, S3Error};

/// How an object's checksum relates to its bytes. The discriminants are stored; they never change.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u8)]
pub enum ChecksumType {
    FullObject = 1,
    Composite = 2,
}

impl ChecksumType {
    pub fn name(self) -> &'static str {
        match self {
            Self::FullObject => "FULL_OBJECT",
            Self::Composite => "COMPOSITE",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        [Self::FullObject, Self::Composite].into_iter().find(|t| t.name().eq_ignore_ascii_case(name))
    }

    /// The type with this discriminant.
    pub fn from_id(id: u8) -> Option<Self> {
        [Self::FullObject, Self::Composite].into_iter().find(|t| *t as u8 == id)
    }

    /// What `x-amz-checksum-type` says.
    ///
    /// # Errors
    /// `InvalidRequest` if it names no type or is given twice.
    pub fn from_header(headers: &HeaderMap) -> Result<Option<Self>> {
        let mut values = headers.get_all("x-amz-checksum-type").iter();
        let Some(value) = values.next() else { return Ok(None) };
        let parsed = value.to_str().ok().and_then(Self::parse).filter(|_| values.next().is_none());
        parsed
            .map(Some)
            .ok_or_else(|| S3Error::invalid_request("Value for x-amz-checksum-type header is invalid."))
    }
}

/// Algorithm and type of an upload: a pair that AWS allows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MultipartChecksum {
    algorithm: Algorithm,
    checksum_type: ChecksumType,
}

impl Default for MultipartChecksum {
    /// What an upload gets whose client asks for nothing.
    fn default() -> Self {
        Self { algorithm: DEFAULT_ALGORITHM, checksum_type: ChecksumType::FullObject }
    }
}

impl MultipartChecksum {
    /// `None` for a pair that the documented table does not hold: CRC64NVME is always full-object,
    /// SHA-1 and SHA-256 are always composite, CRC32 and CRC32C may be either.
    pub fn new(algorithm: Algorithm, checksum_type: ChecksumType) -> Option<Self> {
        let allowed = match algorithm {
            Algorithm::Crc32 | Algorithm::Crc32c => true,
            Algorithm::Crc64Nvme => checksum_type == ChecksumType::FullObject,
            Algorithm::Sha1 | Algorithm::Sha256 => checksum_type == ChecksumType::Composite,
        };
        allowed.then_some(Self { algorithm, checksum_type })
    }

    /// What CreateMultipartUpload's headers ask for; `None` if they ask for nothing.
    ///
    /// # Errors
    /// `InvalidRequest` for unknown names, a type without an algorithm, and pairs that do not go together.
    pub fn from_headers(headers: &HeaderMap) -> Result<Option<Self>> {
        let algorithm = Algorithm::from_algorithm_header(headers)?;
        let checksum_type = ChecksumType::from_header(headers)?;
        match (algorithm, checksum_type) {
            (None, None) => Ok(None),
            (None, Some(_)) => Err(S3Error::invalid_request(
                "The x-amz-checksum-type header can only be used with the x-amz-checksum-algorithm header.",
            )),
            (Some(algorithm), None) => {
                let checksum_type = match algorithm {
                    Algorithm::Crc64Nvme => ChecksumType::FullObject,
                    _ => ChecksumType::Composite,
                };
                Ok(Some(Self { algorithm, checksum_type }))
            }
            (Some(algorithm), Some(checksum_type)) => {
                Self::new(algorithm, checksum_type).map(Some).ok_or_else(|| {
                    S3Error::invalid_request(format!(
                        "The {} checksum type cannot be used with the {} checksum algorithm.",
                        checksum_type.name(),
                        algorithm.name().to_lowercase()
                    ))
                })
            }
        }
    }

    pub fn algorithm(self) -> Algorithm {
        self.algorithm
    }

    pub fn checksum_type(self) -> ChecksumType {
        self.checksum_type
    }

    /// A part may bring a checksum only by the upload's algorithm.
    ///
    /// # Errors
    /// `InvalidRequest`.
    pub fn check_part(self, part: Option<Algorithm>) -> Result<()> {
        match part {
            Some(actual) if actual != self.algorithm => Err(S3Error::invalid_request(format!(
                "Checksum Type mismatch occurred, expected checksum Type: {}, actual checksum Type: {}",
                self.algorithm.name().to_lowercase(),
                actual.name().to_lowercase()
            ))),
            _ => Ok(()),
        }
    }

    /// The object's checksum from its parts, given in order as (checksum, length in bytes). `None` for no
    /// parts, or if a part's checksum is by another algorithm.
    pub fn of_parts(self, parts: impl IntoIterator<Item = (Checksum, u64)>) -> Option<ObjectChecksum> {
        let mut part_count = 0u32;
        let mut composite = Hasher::new().checksum(self.algorithm);
        let mut full: Option<Checksum> = None;
        for (checksum, len) in parts {
            if checksum.algorithm() != self.algorithm {
                return None;
            }
            part_count += 1;
            match self.checksum_type {
                ChecksumType::Composite => composite.update(checksum.as_bytes()),
                ChecksumType::FullObject => {
                    full = Some(match full {
                        None => checksum,
                        Some(before) => append(before, checksum, len),
                    });
                }
            }
        }
        match self.checksum_type {
            _ if part_count == 0 => None,
            ChecksumType::FullObject => Some(ObjectChecksum { value: full?, composite_of: None }),
            ChecksumType::Composite => Some(ObjectChecksum {
                value: composite.finish().checksum(self.algorithm)?,
                composite_of: Some(part_count),
            }),
        }
    }
}

/// The CRC of two pieces in a row, from their own CRCs and the length of the second.
fn append(first: Checksum, second: Checksum, second_len: u64) -> Checksum {
    let crc = crc_algorithm(first.algorithm()).expect("only CRCs are full-object in multipart uploads");
    if second_len == 0 {
        return first;
    }
    let value = |checksum: Checksum| checksum.as_crc().expect("checked to be a CRC");
    let combined = crc_fast::checksum_combine(crc, value(first), value(second), second_len);
    Checksum::from_crc(first.algorithm(), combined)
}

/// The checksum of an object as it is stored and shown.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ObjectChecksum {
    value: Checksum,
    /// The number of parts, for a composite checksum.
    composite_of: Option<u32>,
}

impl ObjectChecksum {
    /// The checksum of an object uploaded whole, or of a full-object multipart upload.
    pub fn full(value: Checksum) -> Self {
        Self { value, composite_of: None }
    }

    /// A composite checksum from what was stored.
    pub fn composite(value: Checksum, part_count: u32) -> Self {
        Self { value, composite_of: Some(part_count) }
    }

    pub fn value(self) -> Checksum {
        self.value
    }

    /// The number of parts of a composite checksum.
    pub fn composite_of(self) -> Option<u32> {
        self.composite_of
    }

    pub fn checksum_type(self) -> ChecksumType {
        if self.composite_of.is_some() { ChecksumType::Composite } else { ChecksumType::FullObject }
    }

    /// The wire form: base64, and `-N` for a composite of N parts.
    pub fn to_text(self) -> String {
        let value = self.value.to_base64();
        self.composite_of.map(|count| format!("{value}-{count}")).unwrap_or(value)
    }

    /// Holds the object that CompleteMultipartUpload made against the checksum in its request, which is
    /// that of the object, not of the request's body. A composite may be given without its count.
    ///
    /// # Errors
    /// `InvalidRequest` for a malformed checksum or several, `BadDigest` for another value or algorithm.
    pub fn check_completed(self, headers: &HeaderMap) -> Result<()> {
        let Some((algorithm, text)) = single_checksum_header(headers)? else { return Ok(()) };
        let invalid = || invalid_value(&algorithm.header_name());
        let (value, count) = match text.split_once('-') {
            None => (text, None),
            Some((value, count)) => (value, Some(count.parse::<u32>().map_err(|_| invalid())?)),
        };
        let expected = Checksum::from_base64(algorithm, value).ok_or_else(invalid)?;
        let count_holds = count.is_none() || count == self.composite_of;
        if expected == self.value && count_holds { Ok(()) } else { Err(checksum_mismatch(algorithm)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::s3::error::ErrorCode;
    use http::HeaderValue;
    use proptest::prelude::*;

    fn map(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse::<HeaderValue>().expect("a header value"));
        }
        headers
    }

    fn checksum_of(algorithm: Algorithm, data: &[u8]) -> Checksum {
        let mut hasher = Hasher::new().checksum(algorithm);
        hasher.update(data);
        hasher.finish().checksum(algorithm).expect("computed")
    }

    #[test]
    fn the_documented_table() {
        let allowed = |algorithm| {
            [ChecksumType::FullObject, ChecksumType::Composite]
                .map(|checksum_type| MultipartChecksum::new(algorithm, checksum_type).is_some())
        };
        assert_eq!(allowed(Algorithm::Crc64Nvme), [true, false]);
        assert_eq!(allowed(Algorithm::Crc32), [true, true]);
        assert_eq!(allowed(Algorithm::Crc32c), [true, true]);
        assert_eq!(allowed(Algorithm::Sha1), [false, true]);
        assert_eq!(allowed(Algorithm::Sha256), [false, true]);
    }

    #[test]
    fn headers_of_create_multipart_upload() {
        let parse = |algorithm: Option<&str>, checksum_type: Option<&str>| {
            let algorithm = algorithm.map(|a| ("x-amz-checksum-algorithm", a));
            let checksum_type = checksum_type.map(|t| ("x-amz-checksum-type", t));
            let pairs: Vec<_> = algorithm.into_iter().chain(checksum_type).collect();
            MultipartChecksum::from_headers(&map(&pairs))
        };
        let of = |algorithm, checksum_type| Ok(MultipartChecksum::new(algorithm, checksum_type));
        assert_eq!(parse(None, None), Ok(None));
        assert_eq!(parse(Some("CRC32"), None), of(Algorithm::Crc32, ChecksumType::Composite));
        assert_eq!(parse(Some("CRC64NVME"), None), of(Algorithm::Crc64Nvme, ChecksumType::FullObject));
        assert_eq!(parse(Some("SHA1"), None), of(Algorithm::Sha1, ChecksumType::Composite));
        assert_eq!(
            parse(Some("CRC32C"), Some("FULL_OBJECT")),
            of(Algorithm::Crc32c, ChecksumType::FullObject)
        );
        let error = parse(Some("SHA256"), Some("FULL_OBJECT")).expect_err("not in the table");
        assert_eq!(
            error.text(),
            "The FULL_OBJECT checksum type cannot be used with the sha256 checksum algorithm."
        );
        for (algorithm, checksum_type) in
            [(None, Some("COMPOSITE")), (Some("CRC32"), Some("HALF")), (Some("X"), None)]
        {
            let error = parse(algorithm, checksum_type).expect_err("malformed");
            assert_eq!(error.code(), ErrorCode::InvalidRequest);
        }
    }

    #[test]
    fn composite_is_the_checksum_of_checksums() {
        for algorithm in [Algorithm::Crc32, Algorithm::Crc32c, Algorithm::Sha1, Algorithm::Sha256] {
            let upload = MultipartChecksum::new(algorithm, ChecksumType::Composite).expect("allowed");
            let parts = [b"first".as_slice(), b"second", b""].map(|data| checksum_of(algorithm, data));
            let object = upload.of_parts(parts.map(|part| (part, 1))).expect("parts of one algorithm");
            let values = parts.iter().flat_map(|part| part.as_bytes().to_vec()).collect::<Vec<u8>>();
            let expected = checksum_of(algorithm, &values).to_base64();
            assert_eq!(object.to_text(), format!("{expected}-3"));
            assert_eq!(object.checksum_type(), ChecksumType::Composite);
        }
    }

    #[test]
    fn parts_must_be_of_the_upload() {
        let upload = MultipartChecksum::default();
        assert!(upload.check_part(None).is_ok() && upload.check_part(Some(Algorithm::Crc64Nvme)).is_ok());
        let error = upload.check_part(Some(Algorithm::Sha1)).expect_err("another algorithm");
        assert!(error.text().ends_with("expected checksum Type: crc64nvme, actual checksum Type: sha1"));
        assert_eq!(upload.of_parts([]), None);
        assert_eq!(upload.of_parts([(checksum_of(Algorithm::Crc32, b"x"), 1)]), None);
    }

    #[test]
    fn the_completed_object_is_held_against_the_request() {
        let value = checksum_of(Algorithm::Crc32, b"object");
        let text = value.to_base64();
        let (full, composite) = (ObjectChecksum::full(value), ObjectChecksum::composite(value, 2));
        let check = |object: ObjectChecksum, name: &'static str, text: &str| {
            object.check_completed(&map(&[(name, text)])).map_err(|error| error.code())
        };
        let name = "x-amz-checksum-crc32";
        assert_eq!(check(full, name, &text), Ok(()));
        assert_eq!(check(composite, name, &text), Ok(()));
        assert_eq!(check(composite, name, &format!("{text}-2")), Ok(()));
        assert_eq!(check(composite, name, &format!("{text}-3")), Err(ErrorCode::BadDigest));
        assert_eq!(check(full, name, &format!("{text}-1")), Err(ErrorCode::BadDigest));
        assert_eq!(check(full, name, "AAAAAA=="), Err(ErrorCode::BadDigest));
        assert_eq!(check(full, "x-amz-checksum-crc32c", &text), Err(ErrorCode::BadDigest));
        assert_eq!(check(full, name, &format!("{text}-x")), Err(ErrorCode::InvalidRequest));
        assert_eq!(check(full, name, "A"), Err(ErrorCode::InvalidRequest));
        assert_eq!(full.check_completed(&HeaderMap::new()), Ok(()));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Combined CRCs are those of the whole, empty parts included.
        #[test]
        fn full_object_is_the_checksum_of_the_bytes(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3_000), 1..6),
        ) {
            for algorithm in [Algorithm::Crc32, Algorithm::Crc32c, Algorithm::Crc64Nvme] {
                let upload = MultipartChecksum::new(algorithm, ChecksumType::FullObject).expect("allowed");
                let pieces = parts.iter().map(|part| (checksum_of(algorithm, part), part.len() as u64));
                let object = upload.of_parts(pieces).expect("parts of one algorithm");
                prop_assert_eq!(object, ObjectChecksum::full(checksum_of(algorithm, &parts.concat())));
            }
        }
    }
}
