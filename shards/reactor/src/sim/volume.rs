//! One simulated disk: a flat directory of files with a capacity, faults, and locks.
//!
//! The directory follows the files' own rule: what was created or removed since the last directory sync may be
//! undone by a power cut, name by name, whatever happened to the data.

use std::collections::{BTreeMap, BTreeSet};

use crate::disk::{BLOCK_LEN, Space};
use crate::sim::media::Media;
use crate::sim::random::Random;
use crate::sim::{DiskConfig, Faults};

/// What a disk can be told to fail at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Access {
    Read,
    Write,
    /// Of a file or of the directory; also the flush within a stable write.
    Sync,
}

/// Everything on a disk at one moment, to be put back later or into another disk.
#[derive(Clone)]
pub struct DiskImage {
    files: Files,
}

pub(super) struct Volume {
    pub(super) name: String,
    pub(super) sector_len: usize,
    pub(super) capacity: u64,
    /// Bytes that others occupy on the same file system.
    pub(super) foreign: u64,
    pub(super) faults: Faults,
    pub(super) failing: BTreeSet<Access>,
    pub(super) plugged: bool,
    pub(super) own_filesystem: bool,
    /// Changes when the disk goes away or its content is exchanged; older handles are stale.
    pub(super) generation: u64,
    pub(super) stuck: bool,
    /// Operations that came due while the disk was stuck.
    pub(super) parked: Vec<u64>,
    /// Every latency is multiplied by it.
    pub(super) slowness: u32,
    pub(super) locks: BTreeMap<String, Holder>,
    pub(super) files: Files,
}

/// Who holds a lock. The entry outlives its holder until nobody's writes stand behind it.
pub(super) struct Holder {
    pub(super) process: u64,
    pub(super) count: u32,
}

#[derive(Clone, Default)]
pub(super) struct Files {
    pub(super) entries: BTreeMap<String, u64>,
    entries_stable: BTreeMap<String, u64>,
    /// Creations (`Some`) and removals since the last directory sync, in order, with their stamps.
    changes: Vec<(u64, String, Option<u64>)>,
    stamp: u64,
    inode_next: u64,
    inodes: BTreeMap<u64, Inode>,
}

#[derive(Clone)]
struct Inode {
    media: Media,
    /// Handles and operations in flight that keep it alive.
    users: u32,
}

impl Volume {
    pub(super) fn new(config: DiskConfig) -> Volume {
        Volume {
            name: config.name,
            sector_len: config.sector_len,
            capacity: config.capacity,
            foreign: 0,
            faults: config.faults,
            failing: BTreeSet::new(),
            plugged: true,
            own_filesystem: false,
            generation: 0,
            stuck: false,
            parked: Vec::new(),
            slowness: 1,
            locks: BTreeMap::new(),
            files: Files::default(),
        }
    }

    pub(super) fn space(&self) -> Space {
        let used = self.files.used().saturating_add(self.foreign);
        Space { total: self.capacity, available: self.capacity.saturating_sub(used) }
    }

    /// Whether `inode` can have `len` bytes.
    pub(super) fn has_room(&self, inode: u64, len: u64) -> bool {
        let len_now = self.files.media(inode).map_or(0, Media::len);
        len <= len_now || allocated(len) - allocated(len_now) <= self.space().available
    }

    pub(super) fn fails(&self, access: Access, random: &mut Random) -> bool {
        let probability = match access {
            Access::Read => self.faults.read_error,
            Access::Write => self.faults.write_error,
            Access::Sync => self.faults.sync_error,
        };
        self.failing.contains(&access) || random.chance(probability)
    }

    pub(super) fn power_cut(&mut self, random: &mut Random) {
        self.files.power_cut(random);
        self.parked.clear();
        self.invalidate();
    }

    pub(super) fn image(&self) -> DiskImage {
        let mut files = self.files.clone();
        files.inodes.values_mut().for_each(|inode| inode.media.forget_in_flight());
        DiskImage { files }
    }

    pub(super) fn put(&mut self, image: DiskImage) {
        self.files = image.files;
        self.invalidate();
    }

    /// Makes every handle stale.
    fn invalidate(&mut self) {
        self.files.disown();
        self.generation += 1;
        self.locks.clear();
    }
}

impl Files {
    pub(super) fn media(&self, inode: u64) -> Option<&Media> {
        self.inodes.get(&inode).map(|inode| &inode.media)
    }

    pub(super) fn media_mut(&mut self, inode: u64) -> Option<&mut Media> {
        self.inodes.get_mut(&inode).map(|inode| &mut inode.media)
    }

    pub(super) fn media_named(&mut self, name: &str) -> Option<&mut Media> {
        let inode = *self.entries.get(name)?;
        self.media_mut(inode)
    }

    pub(super) fn stamp(&self) -> u64 {
        self.stamp
    }

    pub(super) fn create(&mut self, name: &str, sector_len: usize) -> u64 {
        self.inode_next += 1;
        let inode = self.inode_next;
        self.inodes.insert(inode, Inode { media: Media::new(sector_len), users: 0 });
        self.entries.insert(name.to_owned(), inode);
        self.stamp += 1;
        self.changes.push((self.stamp, name.to_owned(), Some(inode)));
        inode
    }

    /// Whether there was such a file.
    pub(super) fn remove(&mut self, name: &str) -> bool {
        if self.entries.remove(name).is_none() {
            return false;
        }
        self.stamp += 1;
        self.changes.push((self.stamp, name.to_owned(), None));
        true
    }

    pub(super) fn finish_sync(&mut self, started: u64) {
        let (settled, open) =
            std::mem::take(&mut self.changes).into_iter().partition(|change| change.0 <= started);
        self.changes = open;
        settle(&mut self.entries_stable, settled);
        self.reap();
    }

    pub(super) fn acquire(&mut self, inode: u64) {
        if let Some(inode) = self.inodes.get_mut(&inode) {
            inode.users += 1;
        }
    }

    pub(super) fn release(&mut self, inode: u64) {
        if let Some(found) = self.inodes.get_mut(&inode) {
            found.users = found.users.saturating_sub(1);
            if found.users == 0 && !self.entries.values().any(|&named| named == inode) {
                self.reap();
            }
        }
    }

    /// Each name keeps a prefix of its changes; each file what its media keep.
    pub(super) fn power_cut(&mut self, random: &mut Random) {
        let mut kept = Vec::new();
        let mut undone = BTreeSet::new();
        for change in std::mem::take(&mut self.changes) {
            if undone.contains(&change.1) || random.coin() {
                undone.insert(change.1);
            } else {
                kept.push(change);
            }
        }
        settle(&mut self.entries_stable, kept);
        self.entries = self.entries_stable.clone();
        self.disown();
        for inode in self.inodes.values_mut() {
            inode.media.power_cut(random);
        }
    }

    /// Forgets all users: their process is gone, or their disk.
    fn disown(&mut self) {
        for inode in self.inodes.values_mut() {
            inode.users = 0;
        }
        self.reap();
    }

    fn used(&self) -> u64 {
        let named: BTreeSet<u64> = self.entries.values().copied().collect();
        let live = self.inodes.iter().filter(|(number, inode)| inode.users > 0 || named.contains(number));
        live.map(|(_, inode)| allocated(inode.media.len())).sum()
    }

    /// Drops files that neither a name, nor a name that may come back, nor a user holds.
    fn reap(&mut self) {
        let mut held: BTreeSet<u64> =
            self.entries.values().chain(self.entries_stable.values()).copied().collect();
        held.extend(self.changes.iter().filter_map(|change| change.2));
        self.inodes.retain(|number, inode| inode.users > 0 || held.contains(number));
    }
}

fn settle(entries: &mut BTreeMap<String, u64>, changes: Vec<(u64, String, Option<u64>)>) {
    for (_, name, inode) in changes {
        match inode {
            Some(inode) => entries.insert(name, inode),
            None => entries.remove(&name),
        };
    }
}

fn allocated(len: u64) -> u64 {
    len.div_ceil(BLOCK_LEN as u64).saturating_mul(BLOCK_LEN as u64)
}
