//! Operations on multipart uploads.

use super::Request;
use super::subresource::Verb;
use crate::s3::bucket_name::BucketName;
use crate::s3::checksum::multipart::{ChecksumType, MultipartChecksum};
use crate::s3::conditions::{ReadConditions, WriteConditions};
use crate::s3::copy_source::CopySource;
use crate::s3::error::{ErrorCode, Result, S3Error};
use crate::s3::list::ListPartsParameters;
use crate::s3::metadata::ObjectMetadata;
use crate::s3::object_key::ObjectKey;
use crate::s3::operation::{
    AbortMultipartUpload, CompleteMultipartUpload, CreateMultipartUpload, ListParts, Operation, PartNumber,
    UploadPart, UploadPartCopy,
};
use crate::s3::range::CopySourceRange;

/// The longest upload id that is looked up, in bytes.
const UPLOAD_ID_LEN_MAX: usize = 1024;

pub(super) fn create(request: &Request<'_>, bucket: BucketName, key: ObjectKey) -> Result<Operation> {
    request.refuse_version_id()?;
    let checksum = MultipartChecksum::from_headers(request.headers)?;
    let metadata = ObjectMetadata::of_request(request.headers)?;
    Ok(Operation::CreateMultipartUpload(Box::new(CreateMultipartUpload { bucket, key, metadata, checksum })))
}

/// Everything that names its upload by `uploadId`.
pub(super) fn of_upload(
    request: &Request<'_>,
    verb: Verb,
    bucket: BucketName,
    key: ObjectKey,
) -> Result<Operation> {
    request.refuse_version_id()?;
    let upload_id = request.query.first("uploadId").unwrap_or_default().to_owned();
    if upload_id.is_empty() || upload_id.len() > UPLOAD_ID_LEN_MAX {
        return Err(S3Error::new(ErrorCode::NoSuchUpload).with("UploadId", upload_id));
    }
    match verb {
        Verb::Get => {
            let parameters = ListPartsParameters::of_query(request.query)?;
            Ok(Operation::ListParts(ListParts { bucket, key, upload_id, parameters }))
        }
        Verb::Put => upload_part(request, bucket, key, upload_id),
        Verb::Post => complete(request, bucket, key, upload_id),
        Verb::Delete => Ok(Operation::AbortMultipartUpload(AbortMultipartUpload { bucket, key, upload_id })),
        Verb::Head => unreachable!("the table has no HEAD of an upload"),
    }
}

fn upload_part(
    request: &Request<'_>,
    bucket: BucketName,
    key: ObjectKey,
    upload_id: String,
) -> Result<Operation> {
    // A missing number is refused like an empty one.
    let part_number = PartNumber::parse(request.query.first("partNumber").unwrap_or_default())?;
    if !request.headers.contains_key("x-amz-copy-source") {
        return Ok(Operation::UploadPart(UploadPart { bucket, key, upload_id, part_number }));
    }
    Ok(Operation::UploadPartCopy(Box::new(UploadPartCopy {
        bucket,
        key,
        upload_id,
        part_number,
        source: CopySource::parse(request.header("x-amz-copy-source").unwrap_or_default())?,
        source_conditions: ReadConditions::of_copy_source(request.headers)?,
        range: request.header("x-amz-copy-source-range").map(CopySourceRange::parse).transpose()?,
    })))
}

fn complete(
    request: &Request<'_>,
    bucket: BucketName,
    key: ObjectKey,
    upload_id: String,
) -> Result<Operation> {
    let object_size = request.header("x-amz-mp-object-size").map(object_size).transpose()?;
    Ok(Operation::CompleteMultipartUpload(Box::new(CompleteMultipartUpload {
        bucket,
        key,
        upload_id,
        conditions: WriteConditions::of_write(request.headers)?,
        checksum_type: ChecksumType::from_header(request.headers)?,
        object_size,
    })))
}

fn object_size(text: &str) -> Result<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|_| digits).ok_or_else(|| {
        S3Error::invalid_request("Value for x-amz-mp-object-size header is invalid.")
            .with("ArgumentValue", text)
    })
}
