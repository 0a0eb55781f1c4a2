//! The extent table of a shard: which extents exist, how much of each is alive, which slots are free.
//!
//! Entries of class log and data are a pure function of manifest and log. Table extents are known only by the index's
//! manifest and the root, so their slots are merely kept here as taken. A slot returns to the free list in one place,
//! [`ExtentTable::release`], which the checkpoint calls once a root that no longer names it is durable everywhere.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::members::MemberState;
use super::{Column, DiskIndex, ExtentClass, ExtentId, Geometry, Placement};
use crate::format::manifest::ExtentEntry;
use crate::format::record::LiveDelta;

/// One extent of class log or data.
#[derive(Clone, Debug)]
pub(crate) struct Extent {
    pub(crate) placement: Rc<Placement>,
    pub(crate) sealed: bool,
    pub(crate) live_len: u64,
    /// First column block never given out (data).
    pub(crate) next_block: u32,
    pub(crate) nonce: [u8; 16],
    /// Leases on it that are neither committed nor returned.
    pub(crate) lease_count: u32,
    /// Readers that may still read it.
    pub(crate) pin_count: u32,
    /// A root that no longer names it is on its way to the disks.
    pub(crate) condemned: bool,
}

/// Slots of one class on one disk.
#[derive(Clone, Debug, Default)]
struct Slots {
    /// Slots the arena file has room for.
    grown: u32,
    free: BTreeSet<u32>,
}

pub(crate) struct ExtentTable {
    geometry: Geometry,
    extents: BTreeMap<ExtentId, Extent>,
    slots: BTreeMap<(ExtentClass, DiskIndex), Slots>,
    next_id: u64,
}

/// What a new extent still lacks before it can be placed: one more slot in these arena files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shortage {
    pub(crate) disks: Vec<DiskIndex>,
}

impl ExtentTable {
    pub(crate) fn new(geometry: Geometry, next_id: u64) -> ExtentTable {
        ExtentTable { geometry, extents: BTreeMap::new(), slots: BTreeMap::new(), next_id }
    }

    pub(crate) fn next_id(&self) -> u64 {
        self.next_id
    }

    /// No id at or below `id` is handed out from here on.
    pub(crate) fn raise_next_id(&mut self, id: ExtentId) {
        self.next_id = self.next_id.max(id.0 + 1);
    }

    pub(crate) fn get(&self, id: ExtentId) -> Option<&Extent> {
        self.extents.get(&id)
    }

    pub(crate) fn get_mut(&mut self, id: ExtentId) -> Option<&mut Extent> {
        self.extents.get_mut(&id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Extent> {
        self.extents.values()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Extent> {
        self.extents.values_mut()
    }

    /// Tells how many slots an arena file has; new ones are free until something is found in them.
    pub(crate) fn set_grown(&mut self, class: ExtentClass, disk: DiskIndex, grown: u32) {
        let slots = self.slots.entry((class, disk)).or_default();
        slots.free.extend(slots.grown..grown);
        slots.grown = slots.grown.max(grown);
    }

    pub(crate) fn grown(&self, class: ExtentClass, disk: DiskIndex) -> u32 {
        self.slots.get(&(class, disk)).map_or(0, |slots| slots.grown)
    }

    /// Extents of `class` that can surely be placed on the disks of a group without growing a file, whichever of them they
    /// fall to: the least that any disk has, because every placement takes at most one slot of a disk.
    pub(crate) fn free_extents(&self, class: ExtentClass, group: &[DiskIndex]) -> u32 {
        group.iter().map(|&disk| self.free_slots(class, disk)).min().unwrap_or(0)
    }

    /// Slots of `class` on one disk that hold no extent.
    pub(crate) fn free_slots(&self, class: ExtentClass, disk: DiskIndex) -> u32 {
        self.slots.get(&(class, disk)).map_or(0, |slots| slots.free.len() as u32)
    }

    /// The places of `class` that hold no extent.
    pub(crate) fn free_columns(&self, class: ExtentClass) -> Vec<Column> {
        let of_class = self.slots.iter().filter(|((of, _), _)| *of == class);
        of_class
            .flat_map(|(&(_, disk), slots)| slots.free.iter().map(move |&slot| Column { disk, slot }))
            .collect()
    }

    fn copies(&self, class: ExtentClass) -> usize {
        match class {
            ExtentClass::Data => self.geometry.columns(),
            ExtentClass::Log | ExtentClass::Table => self.geometry.replicas(),
        }
    }

    /// Takes slots for a new extent on the disks of one group. Columns start at a disk that moves on with the id, so that no disk carries
    /// more parity, log or index than another; where not every disk is needed, those in sync come first, and those that
    /// are out last.
    ///
    /// # Errors
    /// [`Shortage`] names the disks whose arena file must grow first.
    pub(crate) fn place(
        &mut self,
        class: ExtentClass,
        group: &[DiskIndex],
        states: &[MemberState],
    ) -> Result<Placement, Shortage> {
        let copies = self.copies(class);
        let first = (self.next_id % group.len() as u64) as usize;
        let mut disks = [&group[first..], &group[..first]].concat();
        if copies < group.len() {
            disks.sort_by_key(|disk| states[usize::from(disk.0)] as u8);
        }
        disks.truncate(copies);
        let missing = disks
            .iter()
            .copied()
            .filter(|&disk| self.slots.get(&(class, disk)).is_none_or(|slots| slots.free.is_empty()))
            .collect::<Vec<_>>();
        if !missing.is_empty() {
            return Err(Shortage { disks: missing });
        }
        let columns = disks
            .into_iter()
            .map(|disk| {
                let slots = self.slots.get_mut(&(class, disk)).expect("checked above");
                Column { disk, slot: slots.free.pop_first().expect("checked above") }
            })
            .collect();
        let id = ExtentId(self.next_id);
        self.next_id += 1;
        Ok(Placement { id, class, columns })
    }

    /// Marks the slots of a placement found in a root, manifest or log as taken.
    pub(crate) fn occupy(&mut self, placement: &Placement) {
        for column in &placement.columns {
            let slots = self.slots.entry((placement.class, column.disk)).or_default();
            slots.free.extend(slots.grown..=column.slot);
            slots.grown = slots.grown.max(column.slot + 1);
            slots.free.remove(&column.slot);
        }
        self.raise_next_id(placement.id);
    }

    /// Returns the slots of `placement`.
    pub(crate) fn release(&mut self, placement: &Placement) {
        for column in &placement.columns {
            let slots = self.slots.get_mut(&(placement.class, column.disk)).expect("it was occupied");
            let new = slots.free.insert(column.slot);
            assert!(new, "slot {} of extent {} was freed twice", column.slot, placement.id.0);
        }
    }

    /// Enters an extent of class log or data.
    pub(crate) fn insert(&mut self, entry: &ExtentEntry) {
        let extent = Extent {
            placement: Rc::new(entry.placement.clone()),
            sealed: entry.sealed,
            live_len: entry.live_len,
            next_block: entry.next_block,
            nonce: entry.nonce,
            lease_count: 0,
            pin_count: 0,
            condemned: false,
        };
        self.extents.insert(entry.placement.id, extent);
    }

    /// Forgets an extent; its slots stay taken until [`ExtentTable::release`].
    pub(crate) fn remove(&mut self, id: ExtentId) -> Option<Extent> {
        self.extents.remove(&id)
    }

    /// Applies what one record says of live bytes.
    ///
    /// # Panics
    /// If an extent is unknown or would hold less than nothing: log and table disagree, which only a bug can cause.
    pub(crate) fn apply(&mut self, delta: &LiveDelta) {
        let extent = self.extents.get_mut(&delta.extent).unwrap_or_else(|| {
            panic!("a record changes extent {} which does not exist", delta.extent.0);
        });
        extent.live_len = extent.live_len.checked_add_signed(delta.bytes).unwrap_or_else(|| {
            panic!("extent {} would hold less than nothing", delta.extent.0);
        });
        extent.next_block = extent.next_block.max(delta.end_block);
    }

    /// The entries as a manifest keeps them.
    pub(crate) fn snapshot(&self) -> Vec<ExtentEntry> {
        self.extents
            .values()
            .map(|extent| ExtentEntry {
                placement: (*extent.placement).clone(),
                sealed: extent.sealed,
                live_len: extent.live_len,
                next_block: extent.next_block,
                nonce: extent.nonce,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IN_SYNC: [MemberState; 3] = [MemberState::InSync; 3];

    const DISKS: [DiskIndex; 3] = [DiskIndex(0), DiskIndex(1), DiskIndex(2)];

    fn table(k: u8, m: u8) -> ExtentTable {
        let geometry = Geometry {
            k,
            m,
            strip_len: 4096,
            log_slot_len: 65536,
            data_slot_len: 65536,
            table_slot_len: 65536,
        };
        ExtentTable::new(geometry, 1)
    }

    #[test]
    fn places_columns_on_distinct_disks_and_says_where_room_is_missing() {
        let mut table = table(2, 1);
        let shortage = table.place(ExtentClass::Data, &DISKS, &IN_SYNC).expect_err("no file has a slot");
        assert_eq!(shortage.disks.len(), 3);
        for disk in 0..3 {
            table.set_grown(ExtentClass::Data, DiskIndex(disk), 1);
        }
        let placement = table.place(ExtentClass::Data, &DISKS, &IN_SYNC).expect("room");
        let mut disks = placement.columns.iter().map(|column| column.disk).collect::<Vec<_>>();
        disks.sort();
        assert_eq!(disks, [DiskIndex(0), DiskIndex(1), DiskIndex(2)]);
        assert!(table.place(ExtentClass::Data, &DISKS, &IN_SYNC).is_err());
        table.release(&placement);
        let again = table.place(ExtentClass::Data, &DISKS, &IN_SYNC).expect("room again");
        assert_ne!(again.id, placement.id, "an id is never used twice");
    }

    #[test]
    fn replicas_move_over_the_disks() {
        let mut table = table(2, 1);
        for disk in 0..3 {
            table.set_grown(ExtentClass::Log, DiskIndex(disk), 2);
        }
        let mut used = [0; 3];
        for _ in 0..3 {
            for column in table.place(ExtentClass::Log, &DISKS, &IN_SYNC).expect("room").columns {
                used[usize::from(column.disk.0)] += 1;
            }
        }
        assert_eq!(used, [2, 2, 2]);
    }

    #[test]
    fn replicas_avoid_disks_that_are_out_while_there_are_others() {
        let mut table = table(2, 1);
        for disk in 0..3 {
            table.set_grown(ExtentClass::Log, DiskIndex(disk), 6);
        }
        let mut states = IN_SYNC;
        states[1] = MemberState::Out;
        for _ in 0..3 {
            let placement = table.place(ExtentClass::Log, &DISKS, &states).expect("room");
            assert!(placement.columns.iter().all(|column| column.disk != DiskIndex(1)));
        }
        states[2] = MemberState::Behind;
        let placement = table.place(ExtentClass::Log, &DISKS, &states).expect("room");
        assert_eq!(placement.columns.iter().map(|column| column.disk.0).collect::<Vec<_>>(), [0, 2]);
    }

    #[test]
    fn what_counts_as_free_can_be_placed_whichever_disks_are_next() {
        for skipped in 0..3 {
            let mut table = table(2, 1);
            table.next_id += skipped;
            for (disk, grown) in [(0, 6), (1, 1), (2, 0)] {
                table.set_grown(ExtentClass::Table, DiskIndex(disk), grown);
            }
            for left in (0..table.free_extents(ExtentClass::Table, &DISKS)).rev() {
                assert!(
                    table.place(ExtentClass::Table, &DISKS, &IN_SYNC).is_ok(),
                    "{left} more were promised"
                );
            }
            table.set_grown(ExtentClass::Table, DiskIndex(1), 3);
            table.set_grown(ExtentClass::Table, DiskIndex(2), 2);
            for left in (0..table.free_extents(ExtentClass::Table, &DISKS)).rev() {
                assert!(
                    table.place(ExtentClass::Table, &DISKS, &IN_SYNC).is_ok(),
                    "{left} more were promised"
                );
            }
        }
    }

    #[test]
    #[should_panic(expected = "freed twice")]
    fn freeing_twice_is_a_bug() {
        let mut table = table(1, 0);
        table.set_grown(ExtentClass::Log, DiskIndex(0), 1);
        let placement = table.place(ExtentClass::Log, &DISKS[..1], &IN_SYNC).expect("room");
        table.release(&placement);
        table.release(&placement);
    }
}
