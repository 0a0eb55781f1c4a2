//! Why an operation did not happen, and the one table that turns the engine's reasons into S3's.

use basalt_engine::EngineError;
use basalt_engine::body::BodyError;
use http::HeaderValue;
use http::header::RETRY_AFTER;

use super::precondition;
use crate::http::RequestId;
use crate::s3::error::{ErrorCode, S3Error};

/// When a client that was told to slow down may try again.
const RETRY_AFTER_SECS: HeaderValue = HeaderValue::from_static("1");

/// A refusal of the protocol, or something the engine could not do.
#[derive(Debug)]
pub(super) enum Failure {
    Refused(S3Error),
    Engine(EngineError),
}

pub(super) type Result<T> = std::result::Result<T, Failure>;

impl From<S3Error> for Failure {
    fn from(error: S3Error) -> Failure {
        Failure::Refused(error)
    }
}

impl From<ErrorCode> for Failure {
    fn from(code: ErrorCode) -> Failure {
        Failure::Refused(code.into())
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Failure {
        Failure::Engine(error)
    }
}

impl Failure {
    /// What the client is told. Where the fault is ours, the evidence goes to the log under the request's id.
    pub(super) fn into_error(self, id: RequestId, operation: &'static str) -> S3Error {
        let error = match self {
            Failure::Refused(error) => return error,
            Failure::Engine(error) => error,
        };
        let (answer, is_ours) = answer_to(&error);
        if is_ours {
            tracing::error!(request = %id, operation, %error, "the engine failed");
        }
        answer
    }
}

/// The S3 error, and whether an operator should hear of it.
fn answer_to(error: &EngineError) -> (S3Error, bool) {
    let code = match error {
        EngineError::NoSuchBucket => ErrorCode::NoSuchBucket,
        EngineError::BucketExists => ErrorCode::BucketAlreadyOwnedByYou,
        EngineError::BucketNotEmpty => ErrorCode::BucketNotEmpty,
        EngineError::NoSuchUpload => ErrorCode::NoSuchUpload,
        EngineError::InvalidPart { number } => {
            let part = S3Error::new(ErrorCode::InvalidPart).with("PartNumber", number.to_string());
            return (part, false);
        }
        EngineError::Refused(refused) => return (precondition::refusal(*refused), false),
        EngineError::NoSpace => ErrorCode::InsufficientStorage,
        EngineError::Busy => {
            return (S3Error::new(ErrorCode::SlowDown).header(RETRY_AFTER, RETRY_AFTER_SECS), false);
        }
        EngineError::Closed | EngineError::MembersChanged => ErrorCode::ServiceUnavailable,
        // It shows in the readiness and in the metrics; a line per request would say no more.
        EngineError::Degraded { .. } => ErrorCode::ServiceUnavailable,
        EngineError::ShardFailed { .. } => return (ErrorCode::ServiceUnavailable.into(), true),
        EngineError::Body(error) => return answer_to_body(error),
        // No request of S3 asks anything of the disks.
        EngineError::Damaged(_) | EngineError::DisksRefused(_) => {
            return (ErrorCode::InternalError.into(), true);
        }
    };
    (code.into(), false)
}

fn answer_to_body(error: &BodyError) -> (S3Error, bool) {
    match error {
        BodyError::NoSpace => (ErrorCode::InsufficientStorage.into(), false),
        BodyError::Closed => (ErrorCode::ServiceUnavailable.into(), false),
        BodyError::Failed(first) => answer_to_body(first),
        // The disk is gone or failing; the same request may find another one.
        BodyError::Device { .. } | BodyError::Absent { .. } => (ErrorCode::ServiceUnavailable.into(), true),
        BodyError::UnknownExtent { .. }
        | BodyError::Malformed { .. }
        | BodyError::OutOfRange { .. }
        | BodyError::Lost { .. } => (ErrorCode::InternalError.into(), true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_status() {
        let id = RequestId::from_u64(1);
        for (error, status, code) in [
            (EngineError::NoSpace, 507, "InsufficientStorage"),
            (EngineError::Degraded { in_sync: 4, needed: 5 }, 503, "ServiceUnavailable"),
            (EngineError::Busy, 503, "SlowDown"),
            (EngineError::Closed, 503, "ServiceUnavailable"),
            (EngineError::ShardFailed { shard: 1, reason: "EIO".to_owned() }, 503, "ServiceUnavailable"),
            (EngineError::Damaged("x".to_owned()), 500, "InternalError"),
            (EngineError::Body(BodyError::Failed(Box::new(BodyError::NoSpace))), 507, "InsufficientStorage"),
            (EngineError::Body(BodyError::Malformed { what: "x" }), 500, "InternalError"),
            (EngineError::NoSuchUpload, 404, "NoSuchUpload"),
        ] {
            let answer = Failure::from(error.clone()).into_error(id, "GetObject");
            assert_eq!((answer.status().as_u16(), answer.code().name()), (status, code), "{error:?}");
        }
        let part = Failure::from(EngineError::InvalidPart { number: 7 }).into_error(id, "GetObject");
        assert_eq!(part.field("PartNumber"), Some("7"));
    }
}
