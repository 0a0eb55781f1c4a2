//! The real world: one io_uring per core.

use std::future::Future;
use std::io;
use std::path::Path;
use std::rc::Rc;

use crate::arena::{Arena, Buf, Slice};
use crate::clock::{Monotonic, WallTime};
use crate::core::{Core, CoreId};
use crate::disk::{Space, WriteMode};
use crate::task::Task;

/// How to set up one core.
#[derive(Clone, Debug)]
pub struct Config {
    pub id: CoreId,
    /// CPU to pin the thread to; `None` leaves it to the scheduler.
    pub cpu: Option<usize>,
    /// Bytes of the buffer arena.
    pub arena_len: usize,
    /// Entries of the submission queue, a power of two.
    pub entries: u32,
}

/// Why this machine cannot run a ring, in words for its operator.
#[derive(Debug)]
pub enum SetupError {
    /// io_uring_setup was refused: a container's seccomp profile or `kernel.io_uring_disabled`.
    Refused(String),
    /// The kernel has no io_uring.
    Missing,
    /// The kernel lacks a feature we need; names it and the first release that has it.
    KernelTooOld(String),
    Other(io::Error),
}

/// Monotonic counters of one core since its start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    /// io_uring_enter calls.
    pub enters: u64,
    /// Submission entries handed to the kernel.
    pub submissions: u64,
    pub completions: u64,
    /// Writes with RWF_DSYNC and fdatasyncs: each makes the device flush.
    pub flushes: u64,
    pub disk_bytes_read: u64,
    pub disk_bytes_written: u64,
    pub net_bytes_received: u64,
    pub net_bytes_sent: u64,
    /// Body bytes that were copied in user space on their way out.
    pub payload_bytes_copied: u64,
    /// Wake-ups sent to other cores.
    pub wakes_sent: u64,
}

/// Runs `main` on this thread as the core `config` describes, until it completes.
///
/// # Errors
/// [`SetupError`] when there is no ring to be had.
pub fn run<T: 'static, F: Future<Output = T> + 'static>(
    config: &Config,
    main: impl FnOnce(Core) -> F,
) -> Result<T, SetupError> {
    let _ = (config, main);
    unimplemented!()
}

/// The ring's counters of `core`.
///
/// # Panics
/// On a simulated core.
#[must_use]
pub fn stats(core: &Core) -> Stats {
    let _ = core;
    unimplemented!()
}

pub(crate) struct RingCore {}

#[derive(Clone)]
pub(crate) struct RingDisk {}

#[derive(Clone)]
pub(crate) struct RingFile {}

pub(crate) struct RingLock {}

impl RingCore {
    pub(crate) fn id(&self) -> CoreId {
        unimplemented!()
    }
    pub(crate) fn arena(&self) -> &Arena {
        unimplemented!()
    }
    pub(crate) fn now(&self) -> Monotonic {
        unimplemented!()
    }
    pub(crate) fn wall(&self) -> WallTime {
        unimplemented!()
    }
    pub(crate) fn fill_random(&self, _out: &mut [u8]) {
        unimplemented!()
    }
    pub(crate) fn spawn(&self, _task: Task) {
        unimplemented!()
    }
    pub(crate) async fn sleep_until(&self, _deadline: Monotonic) {
        unimplemented!()
    }
}

impl RingDisk {
    pub(crate) fn open(_core: &Rc<RingCore>, _path: &Path) -> io::Result<RingDisk> {
        unimplemented!()
    }
    pub(crate) fn lock(&self, _name: &str) -> io::Result<RingLock> {
        unimplemented!()
    }
    pub(crate) fn list(&self) -> io::Result<Vec<String>> {
        unimplemented!()
    }
    pub(crate) fn open_file(&self, _name: &str) -> io::Result<RingFile> {
        unimplemented!()
    }
    pub(crate) fn create_file(&self, _name: &str) -> io::Result<RingFile> {
        unimplemented!()
    }
    pub(crate) fn remove_file(&self, _name: &str) -> io::Result<()> {
        unimplemented!()
    }
    pub(crate) async fn sync(&self) -> io::Result<()> {
        unimplemented!()
    }
    pub(crate) fn space(&self) -> io::Result<Space> {
        unimplemented!()
    }
}

impl RingFile {
    pub(crate) fn len(&self) -> io::Result<u64> {
        unimplemented!()
    }
    pub(crate) async fn grow(&self, _len: u64) -> io::Result<()> {
        unimplemented!()
    }
    pub(crate) async fn read_at(&self, _buf: Buf, _offset: u64) -> (io::Result<usize>, Buf) {
        unimplemented!()
    }
    pub(crate) async fn write_at(&self, _data: Slice, _offset: u64, _mode: WriteMode) -> io::Result<()> {
        unimplemented!()
    }
    pub(crate) async fn write_vectored_at(
        &self,
        _data: Vec<Slice>,
        _offset: u64,
        _mode: WriteMode,
    ) -> io::Result<()> {
        unimplemented!()
    }
    pub(crate) async fn sync(&self) -> io::Result<()> {
        unimplemented!()
    }
}
