//! What can go wrong with the index, and where.

use std::io;

use super::table::frame::Fault;
use crate::extent::{Column, DiskIndex, ExtentId};
use crate::format::codec::DecodeError;

#[derive(Debug)]
pub enum IndexError {
    /// No replica holds what the manifest says is there; what the last one tried held instead. `offset` in bytes.
    Corrupt {
        extent: ExtentId,
        offset: u64,
        fault: Fault,
    },
    /// No replica could be read; what the last one's device said.
    Read {
        extent: ExtentId,
        offset: u64,
        disks: Vec<DiskIndex>,
        error: io::Error,
    },
    /// Every disk with a replica is absent, or does not answer.
    Absent {
        extent: ExtentId,
        disks: Vec<DiskIndex>,
    },
    /// A replica of a new table could not be written or synced. Nothing was installed.
    Write {
        extent: ExtentId,
        disk: DiskIndex,
        error: io::Error,
    },
    /// A disk with a replica of a new table was taken out of the set meanwhile. Nothing was installed.
    Out {
        extent: ExtentId,
    },
    NoSpace(NoSpace),
    Manifest(DecodeError),
    /// A table that a compaction names is not in the current version, or not where it says.
    Stale {
        extent: ExtentId,
    },
    /// A flush, or a compaction, is already under way; there is one of each at a time.
    Busy,
}

/// There is no free slot for a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoSpace;

/// A replica that did not hold what it should; another one was asked instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    pub extent: ExtentId,
    pub column: Column,
    /// The range in the extent, in bytes.
    pub offset: u64,
    pub len: u64,
    pub cause: DamageCause,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DamageCause {
    Fault(Fault),
    Io(io::ErrorKind),
}

impl std::fmt::Display for IndexError {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            IndexError::Corrupt { extent, offset, fault } => {
                write!(out, "index table {} at byte {offset}: {fault}, on every replica", extent.0)
            }
            IndexError::Read { extent, offset, error, .. } => {
                write!(out, "index table {} at byte {offset} cannot be read: {error}", extent.0)
            }
            IndexError::Absent { extent, .. } => {
                write!(out, "no disk with a replica of index table {} is there and answers", extent.0)
            }
            IndexError::Write { extent, disk, error } => {
                write!(out, "index table {} cannot be written to disk {}: {error}", extent.0, disk.0)
            }
            IndexError::Out { extent } => {
                write!(out, "a disk with index table {} was taken out meanwhile", extent.0)
            }
            IndexError::NoSpace(NoSpace) => write!(out, "no free slot for an index table"),
            IndexError::Manifest(error) => write!(out, "index manifest: {error}"),
            IndexError::Stale { extent } => {
                write!(out, "index table {} is not where a compaction expects it", extent.0)
            }
            IndexError::Busy => write!(out, "another flush or compaction is under way"),
        }
    }
}

impl std::error::Error for IndexError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            IndexError::Read { error, .. } | IndexError::Write { error, .. } => Some(error),
            IndexError::Manifest(error) => Some(error),
            _ => None,
        }
    }
}

impl From<NoSpace> for IndexError {
    fn from(error: NoSpace) -> IndexError {
        IndexError::NoSpace(error)
    }
}
