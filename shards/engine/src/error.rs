//! What the engine answers when it cannot do what was asked.

use crate::body::BodyError;
use crate::extent::DiskIndex;
use crate::index::IndexError;
use crate::value::ValueError;

/// A caller's guard said no; the number is the caller's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused(pub u32);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EngineError {
    NoSuchBucket,
    BucketExists,
    BucketNotEmpty,
    NoSuchUpload,
    /// A listed part does not exist or is not the one meant.
    InvalidPart {
        number: u16,
    },
    Refused(Refused),
    /// What was asked of the disks cannot be done with them; says why.
    DisksRefused(String),
    /// The disks are full; deletes still work.
    NoSpace,
    /// These have no room for what a start or a new epoch must write, and too few are left without them.
    DisksFull {
        disks: Vec<DiskIndex>,
    },
    /// A shard stopped taking writes after a device failed under its log.
    ShardFailed {
        shard: u16,
        reason: String,
    },
    /// A disk was taken out of the set in the middle of it; what was asked for can be tried again without that disk.
    MembersChanged,
    /// Fewer disks are in sync than an operator wants for writes.
    Degraded {
        in_sync: usize,
        needed: usize,
    },
    /// The deployment was opened for reading alone.
    ReadOnly,
    /// Disks fail that their sets cannot do without: nothing is written. What was asked for has not happened, or, where it was
    /// under way already, may still happen.
    DisksFail {
        disks: Vec<DiskIndex>,
    },
    /// The core's memory is spent, and was for as long as a request may wait for it.
    Busy,
    /// The core that owns the shard is shutting down.
    Closed,
    /// Bytes of a body could not be written or read.
    Body(BodyError),
    /// No disk that has what was asked for is there and answers; `what` says what that is.
    Unreadable {
        disks: Vec<DiskIndex>,
        what: String,
    },
    /// The index or another structure is damaged beyond what its copies can mend.
    Damaged(String),
}

impl std::fmt::Display for EngineError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            EngineError::NoSuchBucket => write!(f, "the bucket does not exist"),
            EngineError::BucketExists => write!(f, "the bucket exists"),
            EngineError::BucketNotEmpty => write!(f, "the bucket is not empty"),
            EngineError::NoSuchUpload => write!(f, "the upload does not exist"),
            EngineError::InvalidPart { number } => write!(f, "part {number} is missing or another one"),
            EngineError::Refused(Refused(code)) => write!(f, "refused by the caller's guard ({code})"),
            EngineError::DisksRefused(why) => f.write_str(why),
            EngineError::NoSpace => write!(f, "the disks are full"),
            EngineError::DisksFull { disks } => write!(
                f,
                "no room for what a start writes ({}), and too few disks are left without; make room there, or read what is \
                 there with --start-read-only",
                places(disks)
            ),
            EngineError::ShardFailed { shard, reason } => {
                write!(f, "shard {shard} takes no writes: {reason}")
            }
            EngineError::MembersChanged => write!(f, "a disk was taken out of the set meanwhile"),
            EngineError::Degraded { in_sync, needed } => {
                write!(f, "{in_sync} disks are in sync, and writes want {needed}")
            }
            EngineError::ReadOnly => write!(f, "it was started read-only"),
            EngineError::DisksFail { disks } => {
                write!(f, "nothing is written while too many disks fail ({})", places(disks))
            }
            EngineError::Busy => write!(f, "memory is spent"),
            EngineError::Closed => write!(f, "the engine is closing"),
            EngineError::Unreadable { disks, what } => write!(f, "{what} ({})", places(disks)),
            EngineError::Body(error) => write!(f, "{error}"),
            EngineError::Damaged(what) => write!(f, "damaged: {what}"),
        }
    }
}

/// The places of disks among the members, as a list.
fn places(disks: &[DiskIndex]) -> String {
    let places: Vec<_> = disks.iter().map(|disk| disk.0.to_string()).collect();
    format!("disk {}", places.join(", "))
}

impl EngineError {
    /// The disks that kept the engine from doing what was asked.
    #[must_use]
    pub fn disks(&self) -> Vec<DiskIndex> {
        match self {
            EngineError::DisksFail { disks }
            | EngineError::DisksFull { disks }
            | EngineError::Unreadable { disks, .. } => disks.clone(),
            EngineError::Body(error) => error.disks(),
            _ => Vec::new(),
        }
    }
}

impl std::error::Error for EngineError {}

impl From<BodyError> for EngineError {
    fn from(error: BodyError) -> EngineError {
        match error {
            BodyError::NoSpace => EngineError::NoSpace,
            BodyError::Closed => EngineError::Closed,
            other => EngineError::Body(other),
        }
    }
}

impl From<IndexError> for EngineError {
    fn from(error: IndexError) -> EngineError {
        match error {
            IndexError::NoSpace(_) => EngineError::NoSpace,
            IndexError::Out { .. } => EngineError::MembersChanged,
            IndexError::Absent { ref disks, .. } | IndexError::Read { ref disks, .. } => {
                EngineError::Unreadable { disks: disks.clone(), what: error.to_string() }
            }
            other => EngineError::Damaged(other.to_string()),
        }
    }
}

impl From<ValueError> for EngineError {
    fn from(error: ValueError) -> EngineError {
        EngineError::Damaged(error.to_string())
    }
}
