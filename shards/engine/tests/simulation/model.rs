//! The naive model: what each key may hold, given what was acknowledged and what was still under way at a crash.

use std::collections::{BTreeMap, BTreeSet};

/// Content of an object: its length and the number all its bytes are made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Content {
    pub(crate) len: usize,
    pub(crate) tag: u64,
}

impl Content {
    /// The byte at each offset is a function of tag and offset, so any range can be checked without the rest.
    pub(crate) fn bytes(self, range: std::ops::Range<usize>) -> Vec<u8> {
        range
            .map(|at| {
                let mixed = (self.tag ^ (at as u64 / 8)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                (mixed >> ((at % 8) * 8)) as u8
            })
            .collect()
    }

    pub(crate) fn etag(self) -> [u8; 16] {
        let mut etag = [0; 16];
        etag[..8].copy_from_slice(&self.tag.to_le_bytes());
        etag[8..].copy_from_slice(&(self.len as u64).to_le_bytes());
        etag
    }
}

/// What one key may hold: exactly one of these.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    keys: BTreeMap<String, BTreeSet<Option<Content>>>,
}

impl Model {
    /// A mutation is under way: the key may hold its old or its new state from here on.
    pub(crate) fn begin(&mut self, key: &str, new: Option<Content>) {
        self.states(key).insert(new);
    }

    /// It was acknowledged: only the new state is possible.
    pub(crate) fn acknowledge(&mut self, key: &str, new: Option<Content>) {
        *self.states(key) = BTreeSet::from([new]);
    }

    /// It was refused: only what was possible before is.
    pub(crate) fn refuse(&mut self, key: &str, before: BTreeSet<Option<Content>>) {
        *self.states(key) = before;
    }

    pub(crate) fn possible(&mut self, key: &str) -> BTreeSet<Option<Content>> {
        self.states(key).clone()
    }

    /// The key was seen in this state, which settles it.
    pub(crate) fn observe(&mut self, key: &str, seen: Option<Content>) {
        let states = self.states(key);
        assert!(states.contains(&seen), "key {key} holds {seen:?}, possible are {states:?}");
        *states = BTreeSet::from([seen]);
    }

    pub(crate) fn keys(&self) -> Vec<String> {
        self.keys.keys().cloned().collect()
    }

    fn states(&mut self, key: &str) -> &mut BTreeSet<Option<Content>> {
        self.keys.entry(key.to_owned()).or_insert_with(|| BTreeSet::from([None]))
    }
}
