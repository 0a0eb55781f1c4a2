//! Why an operation did not happen, and the one table that turns the engine's reasons into S3's.

use std::rc::Rc;

use basalt_engine::body::BodyError;
use basalt_engine::extent::DiskIndex;
use basalt_engine::{Engine, EngineError, LogPace};
use http::HeaderValue;
use http::header::RETRY_AFTER;

use super::precondition;
use crate::http::RequestId;
use crate::s3::error::{ErrorCode, S3Error};

/// When a client that was told to slow down may try again.
const RETRY_AFTER_SECS: HeaderValue = HeaderValue::from_static("1");

/// To whoever writes while disks are lost.
const WRITES_REFUSED: &str =
    "Writes are refused while too few disks are available. Reads go on as far as possible.";
const READ_ONLY: &str = "The server was started read-only: nothing is written.";
/// To whoever reads what is on lost disks alone.
const NOT_READABLE: &str = "Too many of the disks that hold what was asked for are not available.";

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

/// What was asked, as the log names it.
pub(super) struct Asked {
    pub(super) engine: Engine,
    /// Shared by all requests of the core: when disks are lost, every request has the same to say.
    pub(super) pace: Rc<LogPace>,
    pub(super) id: RequestId,
    pub(super) operation: &'static str,
    pub(super) bucket: Option<Box<str>>,
    pub(super) key: Option<Box<str>>,
}

impl Asked {
    /// One line for whatever of this request the engine could not do, with the disks that are to blame.
    pub(super) fn log(&self, error: &EngineError, what: &'static str) {
        let Some(left_out) = self.pace.admit(self.engine.core().now()) else { return };
        let (bucket, key) = (self.bucket.as_deref().unwrap_or("-"), self.key.as_deref().unwrap_or("-"));
        let paths = &self.engine.deployment().paths;
        let name = |disk: DiskIndex| match paths.get(usize::from(disk.0)) {
            Some(Some(path)) => format!("{} ({})", disk.0, path.display()),
            _ => disk.0.to_string(),
        };
        let disks = error.disks().into_iter().map(name).collect::<Vec<_>>().join(", ");
        tracing::error!(request = %self.id, operation = self.operation, bucket, key, %disks, %error, left_out, "{what}");
    }
}

impl Failure {
    /// What the client is told. Where the fault is ours, the evidence goes to the log under the request's id.
    pub(super) fn into_error(self, asked: &Asked) -> S3Error {
        let error = match self {
            Failure::Refused(error) => return error,
            Failure::Engine(error) => error,
        };
        let (answer, is_ours) = answer_to(&error);
        if is_ours {
            asked.log(&error, "the engine failed");
        }
        answer
    }
}

fn unavailable(message: &'static str) -> S3Error {
    S3Error::new(ErrorCode::ServiceUnavailable).message(message)
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
        EngineError::NoSpace | EngineError::DisksFull { .. } => ErrorCode::InsufficientStorage,
        EngineError::Busy => {
            return (S3Error::new(ErrorCode::SlowDown).header(RETRY_AFTER, RETRY_AFTER_SECS), false);
        }
        EngineError::Closed | EngineError::MembersChanged => ErrorCode::ServiceUnavailable,
        // It shows in the readiness and in the metrics; a line per request would say no more.
        EngineError::Degraded { .. } => return (unavailable(WRITES_REFUSED), false),
        EngineError::ReadOnly => return (unavailable(READ_ONLY), false),
        EngineError::DisksFail { .. } => return (unavailable(WRITES_REFUSED), false),
        EngineError::Unreadable { .. } => return (unavailable(NOT_READABLE), true),
        EngineError::ShardFailed { .. } => return (unavailable(WRITES_REFUSED), true),
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
        BodyError::UnknownExtent { .. } | BodyError::Malformed { .. } | BodyError::OutOfRange { .. } => {
            (ErrorCode::InternalError.into(), true)
        }
        // With the disks the bytes come back; what is damaged does not.
        BodyError::Lost { .. } if error.is_for_want_of_disks() => (unavailable(NOT_READABLE), true),
        BodyError::Lost { .. } => (ErrorCode::InternalError.into(), true),
    }
}

#[cfg(test)]
mod tests {
    use basalt_engine::body::{Damage, Fault};
    use basalt_engine::extent::ExtentId;

    use super::*;

    #[test]
    fn every_reason_has_its_status() {
        let of = |fault| {
            let (extent, disk) = (ExtentId(3), DiskIndex(1));
            let damage = Damage { extent, column: 1, disk, offset: 0, len: 4096, fault };
            let (offset, len, faults) = (0, 4096, vec![damage]);
            EngineError::Body(BodyError::Lost { extent, offset, len, faults })
        };
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
            (EngineError::ReadOnly, 503, "ServiceUnavailable"),
            (EngineError::DisksFail { disks: vec![DiskIndex(1)] }, 503, "ServiceUnavailable"),
            (of(Fault::Absent), 503, "ServiceUnavailable"),
            (of(Fault::Checksum { got: 1, expected: 2 }), 500, "InternalError"),
        ] {
            let (answer, _) = answer_to(&error);
            assert_eq!((answer.status().as_u16(), answer.code().name()), (status, code), "{error:?}");
        }
        let (part, _) = answer_to(&EngineError::InvalidPart { number: 7 });
        assert_eq!(part.field("PartNumber"), Some("7"));
    }
}
