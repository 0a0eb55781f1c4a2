//! Writing a new index beside whatever is there: tables and manifest in slots that no file had before, then the root.
//!
//! Until the root is durable nothing that could be read before has changed. Slots that a rebuild which was cut off has
//! left behind are free again as soon as a server runs.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use basalt_reactor::Core;
use basalt_reactor::WriteMode;
use basalt_reactor::arena::BUF_LEN_MAX;
use basalt_reactor::disk::BLOCK_LEN;

use super::RebuildError;
use super::history::slots;
use super::set::ShardFiles;
use crate::body::DeviceError;
use crate::checksum::crc32c;
use crate::extent::{ArenaFiles, Column, DiskIndex, ExtentClass, ExtentId, Placement};
use crate::format::manifest::Manifest;
use crate::format::root::{MANIFEST_EXTENT_COUNT_MAX, ROOT_COPY_LEN, Root};
use crate::index::{NoSpace, TableAllocator};

/// Slots behind the end of the table arenas.
pub(super) struct NewSlots {
    files: Rc<ArenaFiles>,
    disks: Vec<DiskIndex>,
    next_id: Cell<u64>,
    /// Per disk: the next slot, and how many the file has.
    slots: RefCell<BTreeMap<DiskIndex, (u32, u32)>>,
}

impl NewSlots {
    pub(super) fn new(files: &Rc<ArenaFiles>, disks: Vec<DiskIndex>) -> Rc<NewSlots> {
        let ends = disks.iter().map(|&disk| {
            let end = slots(files, ExtentClass::Table, disk);
            (disk, (end, end))
        });
        let slots = RefCell::new(ends.collect());
        Rc::new(NewSlots { files: Rc::clone(files), disks, next_id: Cell::new(1), slots })
    }

    /// Ids below `next` are taken.
    pub(super) fn set_next_id(&self, next: u64) {
        self.next_id.set(next);
    }

    pub(super) fn next_id(&self) -> u64 {
        self.next_id.get()
    }

    /// Grows the arenas until `count` more extents can be placed.
    ///
    /// # Errors
    /// [`RebuildError::NoSpace`], [`RebuildError::Device`].
    pub(super) async fn reserve(&self, count: u32) -> Result<(), RebuildError> {
        let slot_len = self.files.geometry().table_slot_len;
        for &disk in &self.disks {
            let (next, grown) = self.slots.borrow()[&disk];
            if next + count <= grown {
                continue;
            }
            let (file, _) =
                self.files.locate(ExtentClass::Table, Column { disk, slot: 0 }).expect("it is present");
            let result = match file.grow(u64::from(next + count) * slot_len).await {
                Ok(()) => self.files.sync(disk, &file).await,
                Err(error) => Err(error),
            };
            result.map_err(|error| match error.kind() {
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                    RebuildError::NoSpace { disk }
                }
                _ => device("table arena", disk, &error),
            })?;
            self.slots.borrow_mut().insert(disk, (next, next + count));
        }
        Ok(())
    }
}

impl TableAllocator for NewSlots {
    fn allocate(&self) -> Result<Placement, NoSpace> {
        let copies = self.files.geometry().replicas().min(self.disks.len());
        let id = self.next_id.get();
        let first = (id % self.disks.len() as u64) as usize;
        let chosen =
            (0..copies).map(|turn| self.disks[(first + turn) % self.disks.len()]).collect::<Vec<_>>();
        let mut slots = self.slots.borrow_mut();
        if chosen.iter().any(|disk| slots[disk].0 == slots[disk].1) {
            return Err(NoSpace);
        }
        self.next_id.set(id + 1);
        let columns = chosen.into_iter().map(|disk| {
            let (next, _) = slots.get_mut(&disk).expect("every disk has its end");
            *next += 1;
            Column { disk, slot: *next - 1 }
        });
        Ok(Placement { id: ExtentId(id), class: ExtentClass::Table, columns: columns.collect() })
    }

    /// The slot stays unused: a rebuild that cannot write a table ends.
    fn discard(&self, _id: ExtentId) {}
}

/// A manifest that is durable and that no root names yet.
pub(super) struct WrittenManifest {
    pub(super) placements: Vec<Placement>,
    pub(super) len: u64,
    pub(super) crc: u32,
}

/// Writes the manifest, durably.
///
/// # Errors
/// [`RebuildError`].
pub(super) async fn write_manifest(
    core: &Core,
    files: &Rc<ArenaFiles>,
    slots: &NewSlots,
    manifest: &Manifest,
) -> Result<WrittenManifest, RebuildError> {
    let bytes = manifest.encode();
    let slot_len = files.geometry().table_slot_len as usize;
    let count = bytes.len().div_ceil(slot_len);
    if count > MANIFEST_EXTENT_COUNT_MAX {
        return Err(RebuildError::Device(format!("a manifest of {} bytes has no place", bytes.len())));
    }
    slots.reserve(count as u32).await?;
    let mut placements = Vec::with_capacity(count);
    for part in bytes.chunks(slot_len) {
        let placement = slots.allocate().expect("reserved just now");
        for &column in &placement.columns {
            let fail = |error: std::io::Error| device("manifest", column.disk, &error);
            let (file, start) = files.locate(ExtentClass::Table, column).expect("it is present");
            let mark = files.flushes().mark(column.disk);
            for (index, piece) in part.chunks(BUF_LEN_MAX).enumerate() {
                let len = piece.len().next_multiple_of(BLOCK_LEN);
                let mut buf = core.arena().alloc(len).await;
                buf.set_len(len);
                buf[..piece.len()].copy_from_slice(piece);
                buf[piece.len()..].fill(0);
                let offset = start + (index * BUF_LEN_MAX) as u64;
                file.write_at(buf.freeze(), offset, WriteMode::Volatile).await.map_err(fail)?;
            }
            files.sync_since(core, column.disk, &file, mark).await.map_err(fail)?;
        }
        placements.push(placement);
    }
    Ok(WrittenManifest { placements, len: bytes.len() as u64, crc: crc32c(&bytes) })
}

/// Makes `root` durable on every present disk, and then once more with the next number: both copies say the same.
///
/// # Errors
/// [`RebuildError::Device`]; run the rebuild again then.
pub(super) async fn write_root(core: &Core, shard: &ShardFiles, mut root: Root) -> Result<(), RebuildError> {
    for _ in 0..2 {
        let bytes = root.encode();
        let offset = (root.sequence & 1) * ROOT_COPY_LEN as u64;
        for (disk, file) in (0..).map(DiskIndex).zip(&shard.roots) {
            let Some(file) = file else { continue };
            let mut buf = core.arena().alloc(bytes.len()).await;
            buf.copy_from_slice(&bytes);
            let written = shard.files.flushes().write_stable(disk, file, buf.freeze(), offset).await;
            written.map_err(|error| device("root", disk, &error))?;
        }
        root.sequence += 1;
    }
    Ok(())
}

fn device(what: &str, disk: DiskIndex, error: &std::io::Error) -> RebuildError {
    RebuildError::Device(format!("{what} on disk {}: {}", disk.0, DeviceError::from(error)))
}
