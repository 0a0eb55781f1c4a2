//! CopyObject: an object's bytes under another name, read, hashed and written like any other.

use std::ops::Range;
use std::rc::Rc;

use basalt_engine::body::ReadMemory;
use basalt_engine::{ObjectDraft, ObjectReader};

use super::Service;
use super::body_digest::BodyDigest;
use super::context::Context;
use super::failure::Result;
use super::{keep_alive, precondition, read_object, stored};
use crate::http::Response;
use crate::s3::checksum::hasher::{Digests, Hasher};
use crate::s3::checksum::multipart::ObjectChecksum;
use crate::s3::checksum::{Algorithm, DEFAULT_ALGORITHM};
use crate::s3::error::S3Error;
use crate::s3::etag::ETag;
use crate::s3::metadata::ObjectMetadata;
use crate::s3::operation::{CopiedMetadata, CopyObject};
use crate::s3::time::Timestamp;
use crate::s3::xml::results::write_copy_object;

/// The longest object that one CopyObject or UploadPartCopy copies, in bytes.
pub(super) const COPY_LEN_MAX: u64 = 5 << 30;

pub(super) async fn copy_object(context: &mut Context, operation: CopyObject) -> Result<Response> {
    let CopyObject { key, source, source_conditions, conditions, metadata, checksum_algorithm, .. } =
        operation;
    let source_bucket = context.service.bucket(&source.bucket)?;
    let reader =
        read_object::open(context, source_bucket.id, &source.key, source.version_id.as_ref()).await?;
    let object = reader.object();
    source_conditions.evaluate_copy_source(stored::etag(object), stored::modified(object))?;
    refuse_longer_than_copies(object.len)?;

    let algorithm = checksum_algorithm.unwrap_or_else(|| algorithm_of(&reader));
    let metadata = match metadata {
        CopiedMetadata::Replaced(metadata) => metadata,
        CopiedMetadata::FromSource { website_redirect_location } => {
            ObjectMetadata { website_redirect_location, ..stored::metadata(object) }
        }
    };
    let (service, bucket) = (Rc::clone(&context.service), context.bucket().id);
    let work = async move {
        let engine = &service.engine;
        let name = key.as_str().as_bytes();
        let len = reader.object().len;
        let (memory, mut writer) =
            reader.admit_copy(&(0..len), engine.write(bucket, name, Some(len))).await?;
        let digests = copy_bytes(&service, &reader, 0..len, &memory, algorithm, &mut writer).await?;
        let written = writer.finish().await?;
        let etag = digests.md5.expect("a copy computes its MD5");
        let checksum = digests.checksum(algorithm).map(ObjectChecksum::full);
        let draft = ObjectDraft {
            etag,
            attributes: stored::attributes(&metadata),
            checksum: checksum.map(stored::to_stored),
            extensions: Vec::new(),
        };
        let done = engine.put(bucket, name, draft, written, precondition::guard(conditions)).await?;
        let mut document = String::new();
        let modified = Timestamp::from_nanos(done.modified);
        write_copy_object(&mut document, ETag::of_md5(etag), modified, checksum);
        Ok(document)
    };
    keep_alive::answer(context, work).await
}

/// # Errors
/// `InvalidRequest` for a source of more than [`COPY_LEN_MAX`] bytes.
pub(super) fn refuse_longer_than_copies(len: u64) -> Result<()> {
    if len <= COPY_LEN_MAX {
        return Ok(());
    }
    Err(S3Error::invalid_request(format!(
        "The specified copy source is larger than the maximum allowable size for a copy source: {COPY_LEN_MAX}"
    ))
    .into())
}

/// The algorithm of the source's checksum, which its copy keeps.
fn algorithm_of(reader: &ObjectReader) -> Algorithm {
    stored::checksum(reader.object()).map_or(DEFAULT_ALGORITHM, |checksum| checksum.value().algorithm())
}

/// Moves the bytes `range` of an open object through `memory` into `writer`, and gives their MD5 and checksum.
///
/// # Errors
/// The engine's, reading or writing.
pub(super) async fn copy_bytes(
    service: &Service,
    reader: &ObjectReader,
    range: Range<u64>,
    memory: &Rc<ReadMemory>,
    algorithm: Algorithm,
    writer: &mut basalt_engine::BodyWriter,
) -> Result<Digests> {
    let mut digest = BodyDigest::new(service, range.end - range.start, Hasher::new().checksum(algorithm));
    let mut bytes = reader.read_in(range, memory).await?;
    while let Some(piece) = bytes.next().await {
        let piece = piece?;
        digest.update_read(piece.clone()).await;
        writer.write(&piece).await?;
    }
    Ok(digest.finish().await)
}
