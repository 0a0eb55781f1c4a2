//! DeleteObject.

use http::StatusCode;

use super::context::Context;
use super::failure::Result;
use super::precondition;
use crate::http::Response;
use crate::s3::operation::DeleteObject;
use crate::s3::version_id::VersionId;

/// Whether there was anything to delete makes no difference to the answer, except to conditions.
pub(super) async fn delete_object(context: &mut Context, operation: DeleteObject) -> Result<Response> {
    // No bucket here has any but `null` versions; deleting what is not there is done.
    if !matches!(operation.version_id, Some(VersionId::Named(_))) {
        let name = operation.key.as_str().as_bytes();
        let guard = precondition::guard(operation.conditions);
        context.engine().delete(context.bucket().id, name, guard).await?;
    }
    Ok(Response::new(StatusCode::NO_CONTENT))
}
