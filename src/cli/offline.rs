//! What the tools for stopped deployments have in common: a core to read with, and their exit codes.

use std::path::PathBuf;
use std::process::ExitCode;

use basalt_reactor::ring::{self, Config};
use basalt_reactor::{Core, CoreId};

use crate::config::disks;

/// Bytes of buffers: the widest stripe of the longest strips, and room beside it.
const ARENA_LEN: usize = 64 << 20;

/// Entries of the submission queue.
const RING_ENTRIES: u32 = 256;

/// How a tool ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Outcome {
    /// Nothing is wrong.
    Clean = 0,
    /// Faults were found; with `--repair` all of them are mended.
    Faults = 1,
    /// The tool could not do its work: its arguments, the host, or disks that say nothing of themselves.
    Unable = 2,
    /// With `--repair`: something could not be mended.
    Unmended = 3,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> ExitCode {
        ExitCode::from(outcome as u8)
    }
}

/// Runs `work` on a core of its own, with the disks that `names` stand for.
pub(super) fn run<T: 'static, F: Future<Output = T> + 'static>(
    names: &[String],
    work: impl FnOnce(Core, Vec<PathBuf>) -> F,
) -> Result<T, String> {
    let paths = disks::expand(names).map_err(|error| error.to_string())?;
    let config = Config { id: CoreId(0), cpu: None, arena_len: ARENA_LEN, entries: RING_ENTRIES };
    ring::run(&config, move |core| work(core, paths)).map_err(|error| match error {
        ring::SetupError::Refused(why) => format!("io_uring is refused: {why}"),
        ring::SetupError::Missing => "this kernel was built without io_uring".to_owned(),
        ring::SetupError::KernelTooOld(what) => format!("this kernel is too old: {what}"),
        ring::SetupError::Other(error) => format!("io_uring cannot be set up: {error}"),
    })
}
