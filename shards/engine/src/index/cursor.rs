//! A scan of the index in key order.

use basalt_reactor::Core;

use super::error::IndexError;
use super::merge::{Merge, Step};

/// Entries walked before other tasks get their turn.
const YIELD_STEPS: u32 = 4096;

/// Walks the live entries of a key range forward. It sees each key at most once and every write applied before it was
/// made; of later ones it may see some. It keeps the tables and memtables it was made over alive, so it is not to be
/// kept for long.
pub struct Cursor {
    core: Core,
    merge: Merge,
    steps: u32,
}

impl Cursor {
    pub(crate) fn new(core: Core, merge: Merge) -> Cursor {
        Cursor { core, merge, steps: 0 }
    }

    /// The next live entry, key and value; `None` at the end of the range. Waits only for blocks that are not in memory.
    ///
    /// # Errors
    /// [`IndexError::Corrupt`], [`IndexError::Read`] or [`IndexError::Absent`] when a block has no readable replica.
    pub async fn next(&mut self) -> Result<Option<(&[u8], &[u8])>, IndexError> {
        loop {
            match self.merge.step()? {
                Step::Entry if self.merge.value().is_some() => break,
                Step::Entry => {}
                Step::Load => self.merge.load().await?,
                Step::End => return Ok(None),
            }
            self.steps += 1;
            if self.steps.is_multiple_of(YIELD_STEPS) {
                self.core.yield_now().await;
            }
        }
        Ok(self.merge.value().map(|value| (self.merge.key(), value)))
    }

    /// Jumps forward: [`Cursor::next`] then gives the first entry with a key not below `target`. What lies between is
    /// not walked. Never goes back.
    pub fn seek(&mut self, target: &[u8]) {
        self.merge.seek(target);
    }
}
