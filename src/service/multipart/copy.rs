//! UploadPartCopy: a part whose bytes are those of an object, or of a range of it.

use std::rc::Rc;

use super::{UploadChecksum, failure, open_upload};
use crate::http::Response;
use crate::s3::checksum::multipart::ObjectChecksum;
use crate::s3::etag::ETag;
use crate::s3::operation::UploadPartCopy;
use crate::s3::time::Timestamp;
use crate::s3::xml::results::write_copy_part;
use crate::service::context::Context;
use crate::service::copy_object::{copy_bytes, refuse_longer_than_copies};
use crate::service::failure::Result;
use crate::service::{keep_alive, read_object, stored};

pub(in crate::service) async fn upload_part_copy(
    context: &mut Context,
    operation: UploadPartCopy,
) -> Result<Response> {
    let UploadPartCopy { key, upload_id, part_number, source, source_conditions, range, .. } = operation;
    let (id, upload) = open_upload(context, &key, &upload_id).await?;
    let checksum = UploadChecksum::of(&upload)?;
    let source_bucket = context.service.bucket(&source.bucket)?;
    let reader =
        read_object::open(context, source_bucket.id, &source.key, source.version_id.as_ref()).await?;
    let object = reader.object();
    source_conditions.evaluate_copy_source(stored::etag(object), stored::modified(object))?;
    let (start, len) = match range {
        Some(range) => range.resolve(object.len)?,
        None => (0, object.len),
    };
    refuse_longer_than_copies(len)?;

    let (service, bucket) = (Rc::clone(&context.service), context.bucket().id);
    let work = async move {
        let engine = &service.engine;
        let name = key.as_str().as_bytes();
        let algorithm = checksum.effective().algorithm();
        let writer = engine.write_part(bucket, name, Some(len)).for_part(id.0, part_number.get());
        let range = start..start + len;
        let (memory, mut writer) = reader.admit_copy(&range, writer).await?;
        let digests = copy_bytes(&service, &reader, range, &memory, algorithm, &mut writer).await?;
        let written = writer.finish().await?;
        let etag = digests.md5.expect("a copy computes its MD5");
        let value =
            ObjectChecksum::full(digests.checksum(algorithm).expect("a copy computes what was asked for"));
        let kept = Some(stored::to_stored(value));
        let done = engine
            .put_part(bucket, name, id.0, part_number.get(), etag, kept, written)
            .await
            .map_err(|error| failure(error, &upload_id))?;
        let mut document = String::new();
        let shown = checksum.wished.map(|_| value);
        write_copy_part(&mut document, ETag::of_md5(etag), Timestamp::from_nanos(done.modified), shown);
        Ok(document)
    };
    keep_alive::answer(context, work).await
}
