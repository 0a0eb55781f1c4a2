//! Multipart uploads.

use super::context::Context;
use super::failure::Result;
use crate::http::Response;
use crate::s3::error::ErrorCode;
use crate::s3::list::ListUploadsParameters;
use crate::s3::operation::{
    AbortMultipartUpload, CompleteMultipartUpload, CreateMultipartUpload, List, ListParts, UploadPart,
    UploadPartCopy,
};

pub(super) async fn create(_: &mut Context, _: CreateMultipartUpload) -> Result<Response> {
    Err(ErrorCode::NotImplemented.into())
}

pub(super) async fn upload_part(_: &mut Context, _: UploadPart) -> Result<Response> {
    Err(ErrorCode::NotImplemented.into())
}

pub(super) async fn upload_part_copy(_: &mut Context, _: UploadPartCopy) -> Result<Response> {
    Err(ErrorCode::NotImplemented.into())
}

pub(super) async fn complete(_: &mut Context, _: CompleteMultipartUpload) -> Result<Response> {
    Err(ErrorCode::NotImplemented.into())
}

pub(super) async fn abort(_: &mut Context, _: AbortMultipartUpload) -> Result<Response> {
    Err(ErrorCode::NotImplemented.into())
}

pub(super) async fn list_parts(_: &mut Context, _: ListParts) -> Result<Response> {
    Err(ErrorCode::NotImplemented.into())
}

pub(super) async fn list_uploads(_: &mut Context, _: List<ListUploadsParameters>) -> Result<Response> {
    Err(ErrorCode::NotImplemented.into())
}
