//! Merges sorted sources into one sequence of keys; of equal keys the newest source's entry counts.
//!
//! The sources stand in a short list ordered by key: after a step the first one usually stays first, which costs one
//! comparison. With the ten or so sources that compaction allows, that beats a heap.

use std::rc::Rc;

use super::error::IndexError;
use super::source::{Arrival, Source};
use super::table::store::{TableStore, count};

/// Where a step led.
pub(crate) enum Step {
    /// To an entry, maybe a tombstone.
    Entry,
    End,
    /// A source has to load first.
    Load,
}

pub(crate) struct Merge {
    store: Rc<TableStore>,
    /// Newest first.
    sources: Vec<Source>,
    /// Indices of the sources that stand on an entry, by key, then newest first.
    order: Vec<usize>,
    /// Indices of those that have moved and not arrived.
    moving: Vec<usize>,
    /// Whether the first entry has been handed out.
    consumed: bool,
    /// Exclusive.
    end: Option<Rc<[u8]>>,
}

impl Merge {
    pub(crate) fn new(
        store: Rc<TableStore>,
        mut sources: Vec<Source>,
        from: &[u8],
        end: Option<Rc<[u8]>>,
    ) -> Merge {
        for source in &mut sources {
            source.seek(from);
        }
        count(&store.counters.steps, sources.len() as u64);
        let moving = (0..sources.len()).rev().collect();
        Merge { store, order: Vec::with_capacity(sources.len()), sources, moving, consumed: false, end }
    }

    /// On to the next entry.
    pub(crate) fn step(&mut self) -> Result<Step, IndexError> {
        if self.consumed {
            self.consumed = false;
            self.leave_first()?;
        }
        while let Some(&index) = self.moving.last() {
            match self.sources[index].arrive(&self.store)? {
                Arrival::Load => return Ok(Step::Load),
                Arrival::Entry => self.insert(index),
                Arrival::End => {}
            }
            self.moving.pop();
        }
        let Some(&first) = self.order.first() else { return Ok(Step::End) };
        if self.end.as_ref().is_some_and(|end| self.sources[first].key() >= end.as_ref()) {
            return Ok(Step::End);
        }
        self.consumed = true;
        count(&self.store.counters.steps, 1);
        Ok(Step::Entry)
    }

    /// Loads what [`Step::Load`] asked for.
    pub(crate) async fn load(&mut self) -> Result<(), IndexError> {
        match self.moving.last() {
            Some(&index) => self.sources[index].load(&self.store).await,
            None => Ok(()),
        }
    }

    /// Forward, so that the next step leads to the first entry not below `target` that has not been handed out.
    pub(crate) fn seek(&mut self, target: &[u8]) {
        if self.consumed {
            if self.key() >= target {
                return;
            }
            self.consumed = false;
        }
        let below = self.order.partition_point(|&index| self.sources[index].key() < target);
        self.moving.extend(self.order.drain(..below));
        for &index in &self.moving {
            self.sources[index].seek(target);
        }
        count(&self.store.counters.steps, self.moving.len() as u64);
    }

    /// Key of the current entry.
    #[inline]
    pub(crate) fn key(&self) -> &[u8] {
        self.sources[self.order[0]].key()
    }

    /// Value of the current entry; `None` for a tombstone.
    #[inline]
    pub(crate) fn value(&self) -> Option<&[u8]> {
        self.sources[self.order[0]].value()
    }

    /// Moves on every source that stands on the first key.
    fn leave_first(&mut self) -> Result<(), IndexError> {
        let first = self.order[0];
        while let Some(&older) = self.order.get(1)
            && self.sources[older].key() == self.sources[first].key()
        {
            self.order.remove(1);
            self.moving.push(older);
            self.sources[older].advance()?;
        }
        self.sources[first].advance()?;
        if matches!(self.sources[first].arrive(&self.store)?, Arrival::Entry) {
            let stays = self.order.get(1).is_none_or(|&second| self.is_before(first, second));
            if !stays {
                self.order.remove(0);
                self.insert(first);
            }
        } else {
            self.order.remove(0);
            self.moving.push(first);
        }
        Ok(())
    }

    fn insert(&mut self, index: usize) {
        let at = self.order.iter().position(|&other| self.is_before(index, other));
        self.order.insert(at.unwrap_or(self.order.len()), index);
    }

    fn is_before(&self, a: usize, b: usize) -> bool {
        (self.sources[a].key(), a) < (self.sources[b].key(), b)
    }
}
