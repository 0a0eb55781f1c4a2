//! Reads of configuration that no request can set yet: they answer as a fresh bucket of AWS does.

use super::context::{Context, xml_response};
use super::failure::Result;
use super::read_object::{no_such_key, refuse_named_version};
use crate::http::Response;
use crate::s3::operation::UnsetConfigRead;

pub(super) async fn read_config(context: &mut Context, operation: UnsetConfigRead) -> Result<Response> {
    if let Some(key) = &operation.key {
        refuse_named_version(key, operation.version_id.as_ref())?;
        let found = context.engine().lookup(context.bucket().id, key.as_str().as_bytes()).await?;
        if found.is_none() {
            return Err(no_such_key(key).into());
        }
    }
    let (bucket, owner) = (operation.bucket.as_str(), context.service.owner());
    Ok(xml_response(operation.config.answer(bucket, operation.by_id, owner)?))
}
