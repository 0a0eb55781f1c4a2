//! One consistent state of the tables: levels of sorted runs.
//!
//! Never changed: a flush or a compaction makes the next version and the index swaps it in at once, while readers keep the one
//! they began with.

use std::rc::Rc;

use super::source::Run;
use super::table::Table;
use crate::extent::ExtentId;

/// Levels of the tree. Ten times the data per level: the last is never full.
pub const LEVEL_COUNT: usize = 7;

#[derive(Clone)]
pub(crate) struct Version {
    /// Level 0: one run per flush, newest first; they may overlap each other.
    pub(crate) flushed: Vec<Run>,
    /// Levels 1 and up: one run each.
    pub(crate) levels: Vec<Run>,
}

/// The table of `run` whose range holds `key`.
pub(crate) fn table_of<'a>(run: &'a Run, key: &[u8]) -> Option<&'a Rc<Table>> {
    let table = run.get(run.partition_point(|table| *table.descriptor.max_key < *key))?;
    (*table.descriptor.min_key <= *key).then_some(table)
}

impl Version {
    pub(crate) fn empty() -> Version {
        Version { flushed: Vec::new(), levels: vec![Rc::from([]); LEVEL_COUNT - 1] }
    }

    /// Every run, newest first.
    pub(crate) fn runs(&self) -> impl Iterator<Item = &Run> {
        self.flushed.iter().chain(&self.levels).filter(|run| !run.is_empty())
    }

    pub(crate) fn tables(&self) -> impl Iterator<Item = &Rc<Table>> {
        self.runs().flat_map(|run| run.iter())
    }

    /// Tables per level, each newest first or in key order.
    pub(crate) fn tables_of(&self, level: usize) -> Vec<&Rc<Table>> {
        match level.checked_sub(1) {
            None => self.flushed.iter().flat_map(|run| run.iter()).collect(),
            Some(index) => self.levels[index].iter().collect(),
        }
    }

    /// The runs of `level` cut down to `ids`; `None` unless all of them are there.
    pub(crate) fn select(&self, level: usize, ids: &[ExtentId]) -> Result<Vec<Run>, ExtentId> {
        let runs = match level.checked_sub(1) {
            None => self.flushed.as_slice(),
            Some(index) => std::slice::from_ref(&self.levels[index]),
        };
        let chosen = |run: &Run| -> Run {
            run.iter().filter(|table| ids.contains(&table.descriptor.placement.id)).map(Rc::clone).collect()
        };
        let selected: Vec<Run> = runs.iter().map(chosen).filter(|run| !run.is_empty()).collect();
        let found = |id: &ExtentId| {
            selected.iter().flat_map(|run| run.iter()).any(|table| table.descriptor.placement.id == *id)
        };
        match ids.iter().find(|id| !found(id)) {
            Some(missing) => Err(*missing),
            None => Ok(selected),
        }
    }

    /// The version without the tables `ids`, and with `added` in level `target` (1 and up).
    pub(crate) fn replace(&self, ids: &[ExtentId], target: usize, added: &[Rc<Table>]) -> Version {
        let keeps = |table: &&Rc<Table>| !ids.contains(&table.descriptor.placement.id);
        let kept = |run: &Run| -> Run { run.iter().filter(keeps).map(Rc::clone).collect() };
        let mut next = Version {
            flushed: self.flushed.iter().map(kept).filter(|run| !run.is_empty()).collect(),
            levels: self.levels.iter().map(kept).collect(),
        };
        let mut tables: Vec<Rc<Table>> = next.levels[target - 1].iter().chain(added).map(Rc::clone).collect();
        tables.sort_by(|a, b| a.descriptor.min_key.cmp(&b.descriptor.min_key));
        let overlap = tables.windows(2).any(|pair| pair[0].descriptor.max_key >= pair[1].descriptor.min_key);
        assert!(!overlap, "tables of level {target} overlap");
        next.levels[target - 1] = tables.into();
        next
    }

    /// Whether a level below `level` may hold `key`.
    pub(crate) fn is_key_below(&self, level: usize, key: &[u8]) -> bool {
        self.levels[level..].iter().any(|run| table_of(run, key).is_some())
    }
}
