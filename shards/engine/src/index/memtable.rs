//! The newest entries of the index, in memory, ordered.
//!
//! A B-tree of shared byte strings: a read or a scan takes a reference count instead of a copy, and a scan that has to
//! wait holds no borrow, it takes entries in chunks and finds its place again by key. One memtable takes writes; frozen
//! ones wait for their flush and stay readable through the reference that each reader holds.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Bound;
use std::rc::Rc;

/// What a key maps to: a value, or the tombstone of a deleted key (`None`).
pub(crate) type Value = Option<Rc<[u8]>>;

/// Memory of an entry beyond its key and value bytes: two reference-counted headers and its share of a B-tree node.
const ENTRY_OVERHEAD: usize = 96;

#[derive(Default)]
pub(crate) struct Memtable {
    entries: RefCell<BTreeMap<Rc<[u8]>, Value>>,
    len: Cell<usize>,
}

impl Memtable {
    /// Sets what `key` maps to.
    pub(crate) fn insert(&self, key: &[u8], value: Option<&[u8]>) {
        let value_len = value.map_or(0, <[u8]>::len);
        let replaced_len = match self.entries.borrow_mut().entry(Rc::from(key)) {
            Entry::Vacant(entry) => {
                entry.insert(value.map(Rc::from));
                self.len.set(self.len.get() + key.len() + ENTRY_OVERHEAD);
                0
            }
            Entry::Occupied(mut entry) => {
                entry.insert(value.map(Rc::from)).map_or(0, |replaced| replaced.len())
            }
        };
        self.len.set(self.len.get() + value_len - replaced_len);
    }

    /// What `key` maps to here; the outer `None` when this memtable does not know it.
    pub(crate) fn get(&self, key: &[u8]) -> Option<Value> {
        self.entries.borrow().get(key).cloned()
    }

    /// Appends up to `count` entries from `from` on, below `to`, in order.
    pub(crate) fn read_chunk(
        &self,
        from: Bound<&[u8]>,
        to: Option<&[u8]>,
        count: usize,
        out: &mut Vec<(Rc<[u8]>, Value)>,
    ) {
        let entries = self.entries.borrow();
        let range = entries.range::<[u8], _>((from, Bound::Unbounded));
        let range = range.take_while(|(key, _)| to.is_none_or(|to| key.as_ref() < to));
        out.extend(range.take(count).map(|(key, value)| (Rc::clone(key), value.clone())));
    }

    /// Bytes of memory it takes, estimated.
    pub(crate) fn len(&self) -> usize {
        self.len.get()
    }

    pub(crate) fn entry_count(&self) -> usize {
        self.entries.borrow().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_bytes_through_overwrites_and_deletes() {
        let table = Memtable::default();
        assert_eq!((table.len(), table.entry_count()), (0, 0));
        table.insert(b"key", Some(b"value"));
        assert_eq!(table.len(), 8 + ENTRY_OVERHEAD);
        table.insert(b"key", Some(b"longer value"));
        assert_eq!(table.len(), 15 + ENTRY_OVERHEAD);
        table.insert(b"key", None);
        assert_eq!((table.len(), table.entry_count()), (3 + ENTRY_OVERHEAD, 1));
        assert_eq!((table.get(b"key"), table.get(b"other")), (Some(None), None));
    }

    #[test]
    fn chunks_continue_where_the_last_one_ended() {
        let table = Memtable::default();
        for index in (0..100_u8).rev() {
            table.insert(&[index], Some(&[index, index]));
        }
        let mut all = Vec::new();
        table.read_chunk(Bound::Included(&[10]), Some(&[90]), 30, &mut all);
        while let Some(last) = all.last().map(|(key, _)| Rc::clone(key)) {
            let before = all.len();
            table.read_chunk(Bound::Excluded(&last), Some(&[90]), 30, &mut all);
            if all.len() == before {
                break;
            }
        }
        assert!(all.iter().map(|(key, _)| key[0]).eq(10..90));
    }
}
