//! Reading from media that may not give what was written, or anything at all.

use std::io;

use basalt_reactor::arena::BUF_LEN_MAX;
use basalt_reactor::disk::BLOCK_LEN;
use basalt_reactor::{Core, File};

use crate::body::DeviceError;
use crate::format::batch::BatchError;
use crate::format::codec::DecodeError;
use crate::format::frame::FrameError;
use crate::index;

/// Why something on a disk is not what belongs there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Defect {
    /// The device or the file system refused.
    Device(DeviceError),
    /// The file ends where this should be; it has `len` bytes.
    Short {
        len: u64,
    },
    Frame(FrameError),
    Batch(BatchError),
    Table(index::Fault),
    Decode(DecodeError),
    Checksum {
        expected: u32,
        got: u32,
    },
    /// Whole, but at odds with something else.
    Contradiction(String),
}

impl std::fmt::Display for Defect {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Defect::Device(error) => write!(out, "cannot be read: {error}"),
            Defect::Short { len } => write!(out, "the file ends after {len} bytes"),
            Defect::Frame(error) => error.fmt(out),
            Defect::Batch(error) => error.fmt(out),
            Defect::Table(error) => error.fmt(out),
            Defect::Decode(error) => error.fmt(out),
            Defect::Checksum { expected, got } => write!(out, "CRC32C is {got:08x}, expected {expected:08x}"),
            Defect::Contradiction(what) => out.write_str(what),
        }
    }
}

impl std::error::Error for Defect {}

impl From<&io::Error> for Defect {
    fn from(error: &io::Error) -> Defect {
        Defect::Device(DeviceError::from(error))
    }
}

/// Reads `len` bytes at `offset`, both whole blocks.
///
/// # Errors
/// [`Defect::Device`], [`Defect::Short`].
pub(super) async fn read(core: &Core, file: &File, offset: u64, len: usize) -> Result<Vec<u8>, Defect> {
    debug_assert!(len.is_multiple_of(BLOCK_LEN));
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let want = (len - bytes.len()).min(BUF_LEN_MAX);
        let at = offset + bytes.len() as u64;
        let buf = core.arena().alloc(want).await;
        match file.read_at(buf, at).await {
            (Ok(got), buf) if got == want => bytes.extend_from_slice(&buf[..want]),
            (Ok(got), _) => return Err(Defect::Short { len: at + got as u64 }),
            (Err(error), _) => return Err(Defect::from(&error)),
        }
    }
    Ok(bytes)
}

/// A part of a file, read ahead, for those who walk through it in small steps.
pub(super) struct Window<'a> {
    core: &'a Core,
    file: &'a File,
    /// The part that is walked through, in the file.
    start: u64,
    len: u64,
    held: Vec<u8>,
    /// Where `held` lies, from `start`.
    held_at: u64,
}

impl<'a> Window<'a> {
    pub(super) fn new(core: &'a Core, file: &'a File, start: u64, len: u64) -> Window<'a> {
        Window { core, file, start, len, held: Vec::new(), held_at: 0 }
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Bytes `at..at + len` of the part, which must lie in it; both whole blocks. What cannot be read together with what
    /// follows is tried alone, so that one bad sector hides nothing else.
    ///
    /// # Errors
    /// As [`read`].
    pub(super) async fn get(&mut self, at: u64, len: usize) -> Result<&[u8], Defect> {
        let held = self.held_at..self.held_at + self.held.len() as u64;
        if !(held.start <= at && at + len as u64 <= held.end) {
            let ahead = usize::try_from(self.len - at).unwrap_or(usize::MAX).min(BUF_LEN_MAX).max(len);
            let read_ahead = read(self.core, self.file, self.start + at, ahead).await;
            self.held = match read_ahead {
                Ok(bytes) => bytes,
                Err(_) if ahead > len => read(self.core, self.file, self.start + at, len).await?,
                Err(defect) => return Err(defect),
            };
            self.held_at = at;
        }
        let from = usize::try_from(at - self.held_at).expect("inside what is held");
        Ok(&self.held[from..from + len])
    }
}
