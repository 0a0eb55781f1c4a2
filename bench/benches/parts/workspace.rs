//! A directory for the files of one benchmark, on a real disk and gone with it.

use std::path::{Path, PathBuf};

/// Where the directories are made, unless it is unset: then it is below the target directory, which is on a disk where
/// `/tmp` is often memory.
const PARENT_VARIABLE: &str = "BASALT_BENCH_DIR";

pub(crate) struct Workspace {
    path: PathBuf,
}

impl Workspace {
    /// # Panics
    /// If it cannot be made: there is nothing to measure then.
    pub(crate) fn new(name: &str) -> Workspace {
        let parent = std::env::var_os(PARENT_VARIABLE)
            .map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
        let path = parent.join(format!("parts-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Workspace { path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}
