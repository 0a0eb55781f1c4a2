//! Operations on objects.

use http::header::{IF_RANGE, RANGE};

use super::subresource::{Found, Scope, SubResource, Verb, method_not_allowed};
use super::{Request, multipart};
use crate::s3::bucket_name::BucketName;
use crate::s3::checksum::Algorithm;
use crate::s3::conditions::{ReadConditions, WriteConditions};
use crate::s3::copy_source::CopySource;
use crate::s3::error::{Result, S3Error};
use crate::s3::metadata::{ObjectMetadata, ResponseOverrides};
use crate::s3::object_key::ObjectKey;
use crate::s3::operation::{
    CopiedMetadata, CopyObject, DeleteObject, Operation, PartNumber, PutObject, ReadObject, RequestedRange,
    UnsetConfigRead,
};
use crate::s3::range::RangeSpec;

pub(super) fn operation(request: &Request<'_>, bucket: BucketName, key: ObjectKey) -> Result<Operation> {
    let verb = request.verb()?;
    if let Some(found) = request.subresource(Scope::Object)? {
        return match found {
            Found::Unset(config) => Ok(Operation::UnsetConfig(UnsetConfigRead {
                bucket,
                key: Some(key),
                version_id: request.version_id()?,
                config,
                by_id: false,
            })),
            Found::Built(SubResource::Uploads) => multipart::create(request, bucket, key),
            Found::Built(SubResource::UploadId) => multipart::of_upload(request, verb, bucket, key),
            Found::Built(SubResource::Delete | SubResource::Location | SubResource::Versions) => {
                unreachable!("the table has no such sub-resource of an object")
            }
        };
    }
    match verb {
        Verb::Get => Ok(Operation::GetObject(Box::new(read(request, bucket, key)?))),
        Verb::Head => Ok(Operation::HeadObject(Box::new(read(request, bucket, key)?))),
        Verb::Put => put(request, bucket, key),
        Verb::Delete => Ok(Operation::DeleteObject(Box::new(DeleteObject {
            bucket,
            key,
            version_id: request.version_id()?,
            conditions: WriteConditions::of_write(request.headers)?,
        }))),
        Verb::Post => {
            let allowed = [Verb::Get, Verb::Head, Verb::Put, Verb::Delete];
            Err(method_not_allowed(verb.name(), "OBJECT", &allowed))
        }
    }
}

fn read(request: &Request<'_>, bucket: BucketName, key: ObjectKey) -> Result<ReadObject> {
    let part_number = request.query.first("partNumber").map(PartNumber::parse).transpose()?;
    // Several Range lines are several ranges, which are ignored like a list of them.
    let mut lines = request.headers.get_all(RANGE).iter();
    let text = match (lines.next(), lines.next()) {
        (Some(line), None) => line.to_str().ok(),
        _ => None,
    };
    let range =
        text.and_then(|text| Some(RequestedRange { spec: RangeSpec::parse(text)?, text: text.to_owned() }));
    if part_number.is_some() && range.is_some() {
        return Err(S3Error::invalid_request(
            "Cannot specify both Range header and partNumber query parameter",
        ));
    }
    let with_checksums = match request.header("x-amz-checksum-mode") {
        None => false,
        Some(mode) if mode.eq_ignore_ascii_case("ENABLED") => true,
        Some(mode) => {
            let message = "The x-amz-checksum-mode header must be ENABLED";
            return Err(S3Error::invalid_argument(message, "x-amz-checksum-mode", mode));
        }
    };
    Ok(ReadObject {
        bucket,
        key,
        version_id: request.version_id()?,
        range,
        if_range: request.headers.get(IF_RANGE).and_then(|value| Some(value.to_str().ok()?.to_owned())),
        part_number,
        conditions: ReadConditions::of_read(request.headers)?,
        overrides: ResponseOverrides::of_query(request.query)?,
        with_checksums,
    })
}

fn put(request: &Request<'_>, bucket: BucketName, key: ObjectKey) -> Result<Operation> {
    request.refuse_version_id()?;
    // A part without its upload must not overwrite the object.
    if let Some(number) = request.query.first("partNumber") {
        return Err(S3Error::invalid_argument(
            "This operation does not accept a part number without an upload id.",
            "partNumber",
            number,
        ));
    }
    let conditions = WriteConditions::of_write(request.headers)?;
    match request.header("x-amz-copy-source") {
        Some(source) => copy(request, bucket, key, CopySource::parse(source)?, conditions),
        // A source that is no text is still not a plain PUT.
        None if request.headers.contains_key("x-amz-copy-source") => {
            CopySource::parse("").and_then(|source| copy(request, bucket, key, source, conditions))
        }
        None => {
            let metadata = ObjectMetadata::of_request(request.headers)?;
            Ok(Operation::PutObject(Box::new(PutObject { bucket, key, metadata, conditions })))
        }
    }
}

fn copy(
    request: &Request<'_>,
    bucket: BucketName,
    key: ObjectKey,
    source: CopySource,
    conditions: WriteConditions,
) -> Result<Operation> {
    // To copy the whole object instead would be to answer another question.
    if let Some(range) = request.header("x-amz-copy-source-range") {
        let message = "Only the copy of a part can have a range.";
        return Err(S3Error::invalid_argument(message, "x-amz-copy-source-range", range));
    }
    let requested = ObjectMetadata::of_request(request.headers)?;
    let metadata = match request.header("x-amz-metadata-directive") {
        None | Some("COPY") => {
            CopiedMetadata::FromSource { website_redirect_location: requested.website_redirect_location }
        }
        Some("REPLACE") => CopiedMetadata::Replaced(requested),
        Some(directive) => {
            let message = "Unknown metadata directive.";
            return Err(S3Error::invalid_argument(message, "x-amz-metadata-directive", directive));
        }
    };
    let changes_nothing = metadata == CopiedMetadata::FromSource { website_redirect_location: None };
    if changes_nothing && source.version_id.is_none() && source.bucket == bucket && source.key == key {
        return Err(S3Error::invalid_request(
            "This copy request is illegal because it is trying to copy an object to itself without changing \
             the object's metadata, storage class, website redirect location or encryption attributes.",
        ));
    }
    Ok(Operation::CopyObject(Box::new(CopyObject {
        bucket,
        key,
        source,
        source_conditions: ReadConditions::of_copy_source(request.headers)?,
        conditions,
        metadata,
        checksum_algorithm: Algorithm::from_algorithm_header(request.headers)?,
    })))
}
