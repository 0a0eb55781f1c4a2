//! The operations of S3 that are built, each with the input that its request line and headers gave.
//!
//! An operation carries the bucket and key it is about, so that no handler has to ask whether they are
//! there. Bodies are not part of it: an operation is known, and can be refused, before a byte of the
//! body is read; [`Operation::body`] says what has to follow.

use super::bucket_name::BucketName;
use super::checksum::Algorithm;
use super::checksum::multipart::{ChecksumType, MultipartChecksum};
use super::conditions::{ReadConditions, WriteConditions};
use super::copy_source::CopySource;
use super::error::{Result, S3Error};
use super::list::{
    ListBucketsParameters, ListObjectsParameters, ListObjectsV2Parameters, ListPartsParameters,
    ListUploadsParameters, ListVersionsParameters,
};
use super::metadata::{ObjectMetadata, ResponseOverrides};
use super::object_key::ObjectKey;
use super::range::{CopySourceRange, RangeSpec};
use super::unset::UnsetConfig;
use super::version_id::VersionId;

/// The largest part number.
pub const PART_NUMBER_MAX: u16 = 10_000;

/// One request, understood.
#[derive(Clone, Debug, PartialEq)]
pub enum Operation {
    ListBuckets(ListBucketsParameters),
    CreateBucket(BucketOnly),
    HeadBucket(BucketOnly),
    DeleteBucket(BucketOnly),
    GetBucketLocation(BucketOnly),
    ListObjects(List<ListObjectsParameters>),
    ListObjectsV2(List<ListObjectsV2Parameters>),
    ListObjectVersions(List<ListVersionsParameters>),
    ListMultipartUploads(List<ListUploadsParameters>),
    DeleteObjects(BucketOnly),
    PutObject(Box<PutObject>),
    GetObject(Box<ReadObject>),
    HeadObject(Box<ReadObject>),
    DeleteObject(Box<DeleteObject>),
    CopyObject(Box<CopyObject>),
    CreateMultipartUpload(Box<CreateMultipartUpload>),
    UploadPart(UploadPart),
    UploadPartCopy(Box<UploadPartCopy>),
    CompleteMultipartUpload(Box<CompleteMultipartUpload>),
    AbortMultipartUpload(AbortMultipartUpload),
    ListParts(ListParts),
    /// The read of a configuration that no request can set yet.
    UnsetConfig(UnsetConfigRead),
}

/// What the body of an operation is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Body {
    None,
    /// An XML document, read whole, of at most this many bytes.
    Document {
        len_max: usize,
    },
    /// The bytes of an object or part, streamed.
    Payload,
}

/// The number of a part, 1 to 10,000.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PartNumber(u16);

/// The input of operations that a bucket's name says all about.
#[derive(Clone, Debug, PartialEq)]
pub struct BucketOnly {
    pub bucket: BucketName,
}

/// The input of the listings within a bucket.
#[derive(Clone, Debug, PartialEq)]
pub struct List<P> {
    pub bucket: BucketName,
    pub parameters: P,
}

#[derive(Clone, Debug, PartialEq)]
pub struct PutObject {
    pub bucket: BucketName,
    pub key: ObjectKey,
    pub metadata: ObjectMetadata,
    pub conditions: WriteConditions,
}

/// The input of GetObject and HeadObject.
#[derive(Clone, Debug, PartialEq)]
pub struct ReadObject {
    pub bucket: BucketName,
    pub key: ObjectKey,
    pub version_id: Option<VersionId>,
    pub range: Option<RequestedRange>,
    /// The text of If-Range; judged with [`super::range::if_range_holds`].
    pub if_range: Option<String>,
    /// Never together with `range`.
    pub part_number: Option<PartNumber>,
    pub conditions: ReadConditions,
    pub overrides: ResponseOverrides,
    /// `x-amz-checksum-mode: ENABLED`.
    pub with_checksums: bool,
}

/// A range that can be resolved, and its text for the error that says it cannot be satisfied.
#[derive(Clone, Debug, PartialEq)]
pub struct RequestedRange {
    pub spec: RangeSpec,
    pub text: String,
}

#[derive(Clone, Debug, PartialEq)]
pub struct DeleteObject {
    pub bucket: BucketName,
    pub key: ObjectKey,
    pub version_id: Option<VersionId>,
    pub conditions: WriteConditions,
}

#[derive(Clone, Debug, PartialEq)]
pub struct CopyObject {
    pub bucket: BucketName,
    pub key: ObjectKey,
    pub source: CopySource,
    pub source_conditions: ReadConditions,
    pub conditions: WriteConditions,
    pub metadata: CopiedMetadata,
    /// The checksum to compute for the copy; that of the source when absent.
    pub checksum_algorithm: Option<Algorithm>,
}

/// `x-amz-metadata-directive`.
#[derive(Clone, Debug, PartialEq)]
pub enum CopiedMetadata {
    /// The source's, except for the website redirect, which is never copied.
    FromSource {
        website_redirect_location: Option<String>,
    },
    Replaced(ObjectMetadata),
}

#[derive(Clone, Debug, PartialEq)]
pub struct CreateMultipartUpload {
    pub bucket: BucketName,
    pub key: ObjectKey,
    pub metadata: ObjectMetadata,
    /// What the client asked for; without a wish the default applies.
    pub checksum: Option<MultipartChecksum>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct UploadPart {
    pub bucket: BucketName,
    pub key: ObjectKey,
    pub upload_id: String,
    pub part_number: PartNumber,
}

#[derive(Clone, Debug, PartialEq)]
pub struct UploadPartCopy {
    pub bucket: BucketName,
    pub key: ObjectKey,
    pub upload_id: String,
    pub part_number: PartNumber,
    pub source: CopySource,
    pub source_conditions: ReadConditions,
    /// The whole source when absent.
    pub range: Option<CopySourceRange>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct CompleteMultipartUpload {
    pub bucket: BucketName,
    pub key: ObjectKey,
    pub upload_id: String,
    pub conditions: WriteConditions,
    /// `x-amz-checksum-type`, which must be the upload's.
    pub checksum_type: Option<ChecksumType>,
    /// `x-amz-mp-object-size` in bytes, which must be the sum of the parts.
    pub object_size: Option<u64>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct AbortMultipartUpload {
    pub bucket: BucketName,
    pub key: ObjectKey,
    pub upload_id: String,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ListParts {
    pub bucket: BucketName,
    pub key: ObjectKey,
    pub upload_id: String,
    pub parameters: ListPartsParameters,
}

#[derive(Clone, Debug, PartialEq)]
pub struct UnsetConfigRead {
    pub bucket: BucketName,
    /// For the configurations of an object, which must exist.
    pub key: Option<ObjectKey>,
    pub version_id: Option<VersionId>,
    pub config: UnsetConfig,
    /// Whether one entry of a list of configurations was asked for by `id`.
    pub by_id: bool,
}

/// The longest document of CreateBucket, in bytes.
pub const BUCKET_DOCUMENT_LEN_MAX: usize = 1024 * 1024;
/// The longest document of DeleteObjects and CompleteMultipartUpload, in bytes.
pub const BATCH_DOCUMENT_LEN_MAX: usize = 4 * 1024 * 1024;

impl Operation {
    /// The operation's name in the S3 API.
    pub fn name(&self) -> &'static str {
        match self {
            Self::ListBuckets(_) => "ListBuckets",
            Self::CreateBucket(_) => "CreateBucket",
            Self::HeadBucket(_) => "HeadBucket",
            Self::DeleteBucket(_) => "DeleteBucket",
            Self::GetBucketLocation(_) => "GetBucketLocation",
            Self::ListObjects(_) => "ListObjects",
            Self::ListObjectsV2(_) => "ListObjectsV2",
            Self::ListObjectVersions(_) => "ListObjectVersions",
            Self::ListMultipartUploads(_) => "ListMultipartUploads",
            Self::DeleteObjects(_) => "DeleteObjects",
            Self::PutObject(_) => "PutObject",
            Self::GetObject(_) => "GetObject",
            Self::HeadObject(_) => "HeadObject",
            Self::DeleteObject(_) => "DeleteObject",
            Self::CopyObject(_) => "CopyObject",
            Self::CreateMultipartUpload(_) => "CreateMultipartUpload",
            Self::UploadPart(_) => "UploadPart",
            Self::UploadPartCopy(_) => "UploadPartCopy",
            Self::CompleteMultipartUpload(_) => "CompleteMultipartUpload",
            Self::AbortMultipartUpload(_) => "AbortMultipartUpload",
            Self::ListParts(_) => "ListParts",
            Self::UnsetConfig(read) => read.config.operation_name(),
        }
    }

    pub fn bucket(&self) -> Option<&BucketName> {
        match self {
            Self::ListBuckets(_) => None,
            Self::CreateBucket(op)
            | Self::HeadBucket(op)
            | Self::DeleteBucket(op)
            | Self::GetBucketLocation(op)
            | Self::DeleteObjects(op) => Some(&op.bucket),
            Self::ListObjects(op) => Some(&op.bucket),
            Self::ListObjectsV2(op) => Some(&op.bucket),
            Self::ListObjectVersions(op) => Some(&op.bucket),
            Self::ListMultipartUploads(op) => Some(&op.bucket),
            Self::UnsetConfig(op) => Some(&op.bucket),
            _ => self.object().map(|(bucket, _)| bucket),
        }
    }

    pub fn key(&self) -> Option<&ObjectKey> {
        match self {
            Self::UnsetConfig(op) => op.key.as_ref(),
            _ => self.object().map(|(_, key)| key),
        }
    }

    fn object(&self) -> Option<(&BucketName, &ObjectKey)> {
        match self {
            Self::PutObject(op) => Some((&op.bucket, &op.key)),
            Self::GetObject(op) | Self::HeadObject(op) => Some((&op.bucket, &op.key)),
            Self::DeleteObject(op) => Some((&op.bucket, &op.key)),
            Self::CopyObject(op) => Some((&op.bucket, &op.key)),
            Self::CreateMultipartUpload(op) => Some((&op.bucket, &op.key)),
            Self::UploadPart(op) => Some((&op.bucket, &op.key)),
            Self::UploadPartCopy(op) => Some((&op.bucket, &op.key)),
            Self::CompleteMultipartUpload(op) => Some((&op.bucket, &op.key)),
            Self::AbortMultipartUpload(op) => Some((&op.bucket, &op.key)),
            Self::ListParts(op) => Some((&op.bucket, &op.key)),
            _ => None,
        }
    }

    /// What must be read after the headers.
    pub fn body(&self) -> Body {
        match self {
            Self::PutObject(_) | Self::UploadPart(_) => Body::Payload,
            Self::CreateBucket(_) => Body::Document { len_max: BUCKET_DOCUMENT_LEN_MAX },
            Self::DeleteObjects(_) | Self::CompleteMultipartUpload(_) => {
                Body::Document { len_max: BATCH_DOCUMENT_LEN_MAX }
            }
            _ => Body::None,
        }
    }
}

impl PartNumber {
    /// Errors: `InvalidArgument`.
    pub fn parse(text: &str) -> Result<Self> {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        match text.parse::<u16>() {
            Ok(number @ 1..=PART_NUMBER_MAX) if digits => Ok(Self(number)),
            _ => Err(S3Error::invalid_argument(
                "Part number must be an integer between 1 and 10000, inclusive",
                "partNumber",
                text,
            )),
        }
    }

    pub fn get(self) -> u16 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn part_numbers_run_from_1_to_10000() {
        assert_eq!(PartNumber::parse("1").map(PartNumber::get), Ok(1));
        assert_eq!(PartNumber::parse("10000").map(PartNumber::get), Ok(10_000));
        for text in ["0", "10001", "", "-1", "+1", "x", "99999999999"] {
            assert!(PartNumber::parse(text).is_err(), "{text}");
        }
    }
}
