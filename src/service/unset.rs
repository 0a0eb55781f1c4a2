//! Reads of configuration that no request can set yet: they answer as a fresh bucket of AWS does.

use super::context::Context;
use super::failure::Result;
use crate::http::Response;
use crate::s3::error::ErrorCode;
use crate::s3::operation::UnsetConfigRead;

pub(super) async fn read_config(_: &mut Context, _: UnsetConfigRead) -> Result<Response> {
    Err(ErrorCode::NotImplemented.into())
}
