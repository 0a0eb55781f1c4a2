//! PutObject.

use basalt_engine::ObjectDraft;
use http::StatusCode;

use super::context::Context;
use super::failure::Result;
use super::payload::Payload;
use super::{precondition, stored};
use crate::http::Response;
use crate::s3::checksum::DEFAULT_ALGORITHM;
use crate::s3::checksum::multipart::ObjectChecksum;
use crate::s3::etag::ETag;
use crate::s3::operation::PutObject;
use crate::s3::response::written_headers;

pub(super) async fn put_object(context: &mut Context, operation: PutObject) -> Result<Response> {
    let payload = Payload::announced(context)?;
    let PutObject { key, metadata, conditions, .. } = operation;
    let (engine, bucket, name) = (context.engine().clone(), context.bucket().id, key.as_str().as_bytes());
    if !conditions.is_empty() {
        // The guard decides; this only spares a client an upload that is refused already.
        let current = engine.lookup(bucket, name).await?;
        conditions.evaluate(current.as_ref().map(stored::etag))?;
    }
    let mut writer = engine.write(bucket, name, Some(payload.len())).admit().await?;
    let received = payload.receive(&mut context.body, DEFAULT_ALGORITHM, &mut writer).await?;
    let written = writer.finish().await?;
    let checksum = ObjectChecksum::full(received.checksum);
    let draft = ObjectDraft {
        etag: received.md5,
        attributes: stored::attributes(&metadata),
        checksum: Some(stored::to_stored(checksum)),
        extensions: Vec::new(),
    };
    engine.put(bucket, name, draft, written, precondition::guard(conditions)).await?;
    let mut response = Response::new(StatusCode::OK);
    response.headers = written_headers(ETag::of_md5(received.md5), Some(checksum), false);
    Ok(response)
}
