//! Buckets: list, create, head, delete, location.

use super::context::Context;
use super::failure::Result;
use crate::http::Response;
use crate::s3::error::ErrorCode;
use crate::s3::list::ListBucketsParameters;
use crate::s3::operation::BucketOnly;

pub(super) async fn list_buckets(_: &mut Context, _: ListBucketsParameters) -> Result<Response> {
    Err(ErrorCode::NotImplemented.into())
}

pub(super) async fn create_bucket(_: &mut Context, _: BucketOnly) -> Result<Response> {
    Err(ErrorCode::NotImplemented.into())
}

pub(super) async fn head_bucket(_: &mut Context, _: BucketOnly) -> Result<Response> {
    Err(ErrorCode::NotImplemented.into())
}

pub(super) async fn delete_bucket(_: &mut Context, _: BucketOnly) -> Result<Response> {
    Err(ErrorCode::NotImplemented.into())
}

pub(super) async fn get_location(_: &mut Context, _: BucketOnly) -> Result<Response> {
    Err(ErrorCode::NotImplemented.into())
}
