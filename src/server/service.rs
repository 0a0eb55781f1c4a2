//! What one core serves: the seam between start-up and the service layer.

use std::rc::Rc;

use basalt_reactor::Core;

use crate::http::{Handler, Readiness, Request, Response, refuse};
use crate::s3::error::{ErrorCode, S3Error};

/// One core's service, ready to answer.
pub(super) struct CoreService {
    pub handler: Handler,
    pub readiness: Rc<dyn Fn() -> Readiness>,
    pub minio_bucket_exists: Rc<dyn Fn() -> bool>,
    /// What the deployment survives, in plain words.
    pub redundancy: String,
}

/// Opens the service of `core`.
pub(super) async fn open(core: &Core) -> CoreService {
    core.yield_now().await;
    CoreService {
        handler: Rc::new(|request| Box::pin(answer_not_implemented(request))),
        readiness: Rc::new(|| Readiness { ready: true, json: "{\"ready\":true}".to_owned() }),
        minio_bucket_exists: Rc::new(|| false),
        redundancy: "none: nothing is stored".to_owned(),
    }
}

/// Stands in for the service: the S3 answer to everything that is not built.
async fn answer_not_implemented(request: Request) -> Response {
    let error = S3Error::new(ErrorCode::NotImplemented);
    refuse(&error, &request.head.method, request.head.uri.path(), request.id, &request.host_id)
}
