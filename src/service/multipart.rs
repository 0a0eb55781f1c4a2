//! Multipart uploads: open, add parts, list, complete, abort.
//!
//! An upload belongs to the shard of its key, so that completing it is one batch there; parts were written and made
//! durable by whatever cores received them, and completing moves no byte.

mod complete;
mod copy;
mod list;

use basalt_engine::value::{Upload, UploadState};
use basalt_engine::{EngineError, PartItem};
use http::StatusCode;

pub(super) use self::complete::complete;
pub(super) use self::copy::upload_part_copy;
pub(super) use self::list::{list_parts, list_uploads};
use super::context::{Context, xml_response};
use super::failure::{Failure, Result};
use super::payload::Payload;
use super::stored;
use crate::http::Response;
use crate::s3::checksum::multipart::{ChecksumType, MultipartChecksum, ObjectChecksum};
use crate::s3::checksum::{Algorithm, Checksum};
use crate::s3::error::{ErrorCode, S3Error};
use crate::s3::etag::ETag;
use crate::s3::object_key::ObjectKey;
use crate::s3::operation::{AbortMultipartUpload, CreateMultipartUpload, UploadPart};
use crate::s3::response::written_headers;
use crate::s3::xml::results::{checksum_headers, write_create_multipart_upload};

/// Characters of an upload id: 16 bytes in hexadecimal.
const UPLOAD_ID_LEN: usize = 32;

/// The engine's name of an upload. Clients see it in lower-case hexadecimal.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct UploadId([u8; 16]);

impl UploadId {
    /// `None` for what no upload is called.
    fn read(text: &str) -> Option<Self> {
        let mut id = [0; 16];
        let is_ours = text.len() == UPLOAD_ID_LEN && !text.bytes().any(|b| b.is_ascii_uppercase());
        (is_ours && hex::decode_to_slice(text, &mut id).is_ok()).then_some(Self(id))
    }

    /// # Errors
    /// `NoSuchUpload`.
    fn parse(text: &str) -> Result<Self> {
        Self::read(text).ok_or_else(|| no_such_upload(text).into())
    }

    fn text(self) -> String {
        hex::encode(self.0)
    }
}

fn no_such_upload(upload_id: &str) -> S3Error {
    S3Error::new(ErrorCode::NoSuchUpload).with("UploadId", upload_id)
}

/// The failure of what the engine was asked about the upload that the client calls `upload_id`.
fn failure(error: EngineError, upload_id: &str) -> Failure {
    match error {
        EngineError::NoSuchUpload => no_such_upload(upload_id).into(),
        EngineError::InvalidPart { number } => S3Error::new(ErrorCode::InvalidPart)
            .with("UploadId", upload_id)
            .with("PartNumber", number.to_string())
            .into(),
        error => error.into(),
    }
}

/// What only a damaged index can hold.
fn damaged(what: &str) -> Failure {
    EngineError::Damaged(what.to_owned()).into()
}

/// The checksums of an upload: what its client asked for, or the default it knows nothing of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct UploadChecksum {
    wished: Option<MultipartChecksum>,
}

impl UploadChecksum {
    fn of(upload: &Upload) -> Result<Self> {
        if upload.checksum_algorithm == 0 {
            return Ok(Self { wished: None });
        }
        let kind = if upload.checksum_composite { ChecksumType::Composite } else { ChecksumType::FullObject };
        let wished = Algorithm::from_id(upload.checksum_algorithm)
            .and_then(|algorithm| MultipartChecksum::new(algorithm, kind))
            .ok_or_else(|| damaged("an upload has a checksum that no upload can have"))?;
        Ok(Self { wished: Some(wished) })
    }

    /// What is computed for every part and for the object.
    fn effective(self) -> MultipartChecksum {
        self.wished.unwrap_or_default()
    }

    /// A part's checksum must be by the algorithm the client chose for the upload. Where it chose none, SDKs still
    /// protect each part by an algorithm of their own.
    fn check_part(self, algorithm: Option<Algorithm>) -> Result<()> {
        Ok(self.wished.map_or(Ok(()), |wished| wished.check_part(algorithm))?)
    }

    /// What listings and answers show.
    fn shown(self) -> Option<(Algorithm, ChecksumType)> {
        self.wished.map(|wished| (wished.algorithm(), wished.checksum_type()))
    }
}

/// The upload, if it is open. Asked before a body is read, so that a lost upload costs no transfer.
async fn open_upload(context: &Context, key: &ObjectKey, upload_id: &str) -> Result<(UploadId, Upload)> {
    let id = UploadId::parse(upload_id)?;
    let page = context.engine().list_parts(context.bucket().id, key.as_str().as_bytes(), id.0, 0, 0).await;
    let upload = page.map_err(|error| failure(error, upload_id))?.upload;
    match upload.state {
        UploadState::Open => Ok((id, upload)),
        _ => Err(no_such_upload(upload_id).into()),
    }
}

pub(super) async fn create(context: &mut Context, operation: CreateMultipartUpload) -> Result<Response> {
    let CreateMultipartUpload { bucket, key, metadata, checksum } = operation;
    let (algorithm, composite) = checksum.map_or((0, false), |checksum| {
        (checksum.algorithm() as u8, checksum.checksum_type() == ChecksumType::Composite)
    });
    let (engine, name) = (context.engine(), key.as_str().as_bytes());
    let attributes = stored::attributes(&metadata);
    let id = engine.create_upload(context.bucket().id, name, attributes, algorithm, composite).await?;
    let mut document = String::new();
    write_create_multipart_upload(&mut document, bucket.as_str(), key.as_str(), &UploadId(id).text());
    let mut response = xml_response(document);
    if let Some(checksum) = checksum {
        response.headers.extend(checksum_headers(checksum.algorithm(), checksum.checksum_type()));
    }
    Ok(response)
}

pub(super) async fn upload_part(context: &mut Context, operation: UploadPart) -> Result<Response> {
    let UploadPart { key, upload_id, part_number, .. } = operation;
    let payload = Payload::announced(context)?;
    let (id, upload) = open_upload(context, &key, &upload_id).await?;
    let checksum = UploadChecksum::of(&upload)?;
    checksum.check_part(payload.algorithm())?;
    let (engine, bucket, name) = (context.engine().clone(), context.bucket().id, key.as_str().as_bytes());
    let writer = engine.write_part(bucket, name, Some(payload.len())).for_part(id.0, part_number.get());
    let mut writer = writer.admit().await?;
    let algorithm = checksum.effective().algorithm();
    let received = payload.also(algorithm).receive(&mut context.body, algorithm, &mut writer).await?;
    let written = writer.finish().await?;
    let kept = ObjectChecksum::full(received.also.unwrap_or(received.checksum));
    engine
        .put_part(bucket, name, id.0, part_number.get(), received.md5, Some(stored::to_stored(kept)), written)
        .await
        .map_err(|error| failure(error, &upload_id))?;
    let mut response = Response::new(StatusCode::OK);
    let shown = ObjectChecksum::full(received.checksum);
    response.headers = written_headers(ETag::of_md5(received.md5), Some(shown), true);
    Ok(response)
}

pub(super) async fn abort(context: &mut Context, operation: AbortMultipartUpload) -> Result<Response> {
    let AbortMultipartUpload { key, upload_id, .. } = operation;
    let id = UploadId::parse(&upload_id)?;
    context
        .engine()
        .abort_upload(context.bucket().id, key.as_str().as_bytes(), id.0)
        .await
        .map_err(|error| failure(error, &upload_id))?;
    Ok(Response::new(StatusCode::NO_CONTENT))
}

/// The checksum kept of a part, which is always by the upload's algorithm.
fn part_checksum(item: &PartItem, algorithm: Algorithm) -> Result<Checksum> {
    let kept = item.part.checksum.as_ref().and_then(stored::part_checksum);
    kept.filter(|kept| kept.algorithm() == algorithm)
        .ok_or_else(|| damaged("a part has no checksum by its upload's algorithm"))
}
