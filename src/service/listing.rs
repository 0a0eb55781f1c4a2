//! Listings of a bucket's objects.

use super::context::Context;
use super::failure::Result;
use crate::http::Response;
use crate::s3::error::ErrorCode;
use crate::s3::list::{ListObjectsParameters, ListObjectsV2Parameters, ListVersionsParameters};
use crate::s3::operation::List;

pub(super) async fn list_objects_v1(_: &mut Context, _: List<ListObjectsParameters>) -> Result<Response> {
    Err(ErrorCode::NotImplemented.into())
}

pub(super) async fn list_objects_v2(_: &mut Context, _: List<ListObjectsV2Parameters>) -> Result<Response> {
    Err(ErrorCode::NotImplemented.into())
}

pub(super) async fn list_versions(_: &mut Context, _: List<ListVersionsParameters>) -> Result<Response> {
    Err(ErrorCode::NotImplemented.into())
}
