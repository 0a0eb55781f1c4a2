//! What can go wrong with a body, with the evidence: which disk, which extent, what was expected and what was found.

use std::collections::BTreeSet;
use std::fmt;
use std::io;

use crate::extent::{DiskIndex, ExtentId};

/// What a device or file system answered, in a form that can be copied and compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceError {
    pub kind: io::ErrorKind,
    /// The errno, when there was one.
    pub os: Option<i32>,
}

impl From<&io::Error> for DeviceError {
    fn from(error: &io::Error) -> DeviceError {
        DeviceError { kind: error.kind(), os: error.raw_os_error() }
    }
}

impl From<DeviceError> for io::Error {
    fn from(error: DeviceError) -> io::Error {
        match error.os {
            Some(os) => io::Error::from_raw_os_error(os),
            None => error.kind.into(),
        }
    }
}

impl fmt::Display for DeviceError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.os {
            Some(os) => io::Error::from_raw_os_error(os).fmt(out),
            None => self.kind.fmt(out),
        }
    }
}

/// Why one block of one disk could not be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The bytes there are not the bytes written.
    Checksum { got: u32, expected: u32 },
    /// The read failed.
    Device(DeviceError),
    /// The file ends before the block does; `got` bytes were there.
    Short { got: usize },
    /// The disk is not part of the running set.
    Absent,
    /// The disk did not answer in time, or is known not to.
    Late,
    /// A directory chunk that other columns have is not there, or not whole.
    NoChunk,
    /// A batch, a frame or another structure that other copies have is not there, or not whole.
    NotWhole,
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Checksum { got, expected } => write!(out, "CRC32C {got:08x} instead of {expected:08x}"),
            Fault::Device(error) => write!(out, "read failed: {error}"),
            Fault::Short { got } => write!(out, "the file ends after {got} bytes"),
            Fault::Absent => write!(out, "the disk is absent"),
            Fault::Late => write!(out, "no answer in time"),
            Fault::NoChunk => write!(out, "no directory chunk where others have one"),
            Fault::NotWhole => write!(out, "what other copies have is not there, or not whole"),
        }
    }
}

impl Fault {
    /// Whether what the disk holds is in doubt; a disk that is absent or slow says nothing of that.
    #[must_use]
    pub fn is_damage(self) -> bool {
        !matches!(self, Fault::Absent | Fault::Late)
    }
}

/// A block that was read around: for repair, and for counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    pub extent: ExtentId,
    /// Which column (or replica) of the extent.
    pub column: u8,
    pub disk: DiskIndex,
    /// Where in the column the damaged run starts, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub len: u32,
    pub fault: Fault,
}

/// What the engine did when a device refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Write,
    Sync,
}

/// Why a body could not be written or read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BodyError {
    /// The shard has no room for it.
    NoSpace,
    /// The shard is closing, or the core that runs it is gone.
    Closed,
    /// A column could not be written or made durable.
    Device { operation: Operation, disk: DiskIndex, extent: ExtentId, error: DeviceError },
    /// A column's disk is not part of the running set.
    Absent { disk: DiskIndex, extent: ExtentId },
    /// An earlier call on this writer failed with the error inside.
    Failed(Box<BodyError>),
    /// No place is known for an extent that the description names.
    UnknownExtent { extent: ExtentId },
    /// The description contradicts itself or the geometry.
    Malformed { what: &'static str },
    /// The range does not lie inside the body.
    OutOfRange { start: u64, end: u64, len: u64 },
    /// A block is damaged and so is too much of what could restore it: every fault that was met.
    Lost { extent: ExtentId, offset: u64, len: u32, faults: Vec<Damage> },
}

impl fmt::Display for BodyError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BodyError::NoSpace => write!(out, "no space for the body"),
            BodyError::Closed => write!(out, "the shard is closed"),
            BodyError::Device { operation, disk, extent, error } => {
                let what = match operation {
                    Operation::Write => "write to",
                    Operation::Sync => "sync of",
                };
                write!(out, "{what} disk {} for extent {} failed: {error}", disk.0, extent.0)
            }
            BodyError::Absent { disk, extent } => {
                write!(out, "disk {} of extent {} is absent", disk.0, extent.0)
            }
            BodyError::Failed(first) => write!(out, "failed before: {first}"),
            BodyError::UnknownExtent { extent } => write!(out, "extent {} has no known place", extent.0),
            BodyError::Malformed { what } => write!(out, "malformed body description: {what}"),
            BodyError::OutOfRange { start, end, len } => {
                write!(out, "range {start}..{end} of a body of {len} bytes")
            }
            BodyError::Lost { extent, offset, len, faults } => {
                write!(out, "{len} bytes at {offset} of extent {} are lost", extent.0)?;
                for fault in faults {
                    write!(out, "; disk {} column {}: {}", fault.disk.0, fault.column, fault.fault)?;
                }
                Ok(())
            }
        }
    }
}

impl BodyError {
    /// The disks that failed, or did not have what they should, each once.
    #[must_use]
    pub fn disks(&self) -> Vec<DiskIndex> {
        match self {
            BodyError::Device { disk, .. } | BodyError::Absent { disk, .. } => vec![*disk],
            BodyError::Failed(first) => first.disks(),
            BodyError::Lost { faults, .. } => {
                let disks: BTreeSet<DiskIndex> = faults.iter().map(|fault| fault.disk).collect();
                disks.into_iter().collect()
            }
            _ => Vec::new(),
        }
    }

    /// Whether bytes are lost only as long as disks are away or do not answer.
    #[must_use]
    pub fn is_for_want_of_disks(&self) -> bool {
        let is_want = |fault: &Damage| matches!(fault.fault, Fault::Absent | Fault::Late | Fault::Device(_));
        matches!(self, BodyError::Lost { faults, .. } if faults.iter().any(is_want))
    }
}

impl std::error::Error for BodyError {}
