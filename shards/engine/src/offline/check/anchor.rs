//! What everything else hangs on: superblocks, roots, manifests, and that extents do not share their places.

use std::collections::BTreeMap;

use basalt_reactor::Core;
use basalt_reactor::disk::BLOCK_LEN;

use super::{Checker, Cure, Structure};
use crate::deployment::{SUPERBLOCK_FILE, shard_file};
use crate::extent::{DiskIndex, ExtentClass, ExtentId, Placement};
use crate::format::frame::FrameError;
use crate::format::root::{ROOT_COPY_LEN, Root};
use crate::format::superblock::{SUPERBLOCK_COPY_LEN, State, Superblock};
use crate::offline::media::Defect;
use crate::offline::set::OfflineSet;
use crate::offline::shard::{
    ManifestPiece, RootCopy, ShardFiles, ShardState, assemble_manifest, newest_root, read_manifest,
    read_root, read_roots,
};

/// A disk that has lost both copies of its superblock is known by elimination: it is the only one without, one member alone that
/// is to be in sync is missing, and its roots are those that the other disks have.
pub(super) async fn identify(core: &Core, set: &mut OfflineSet) {
    let nameless = set
        .strangers
        .iter()
        .filter(|(disk, _)| set.disks[*disk].superblock().is_none())
        .map(|(disk, _)| *disk)
        .collect::<Vec<_>>();
    let unclaimed = set.unclaimed();
    let (&[disk], &[member]) = (nameless.as_slice(), unclaimed.as_slice()) else { return };
    for shard in 0..set.superblock.shard_count {
        let known = read_roots(core, set, &ShardFiles::open(set, shard)).await;
        let Ok(file) = set.disks[disk].open_file(&shard_file(shard, "root")) else { return };
        let mut newest = None;
        for copy in 0..2 {
            if let Ok(root) = read_root(core, &file, copy).await
                && root.deployment == set.superblock.deployment
            {
                newest = newest.max(Some(root.sequence));
            }
        }
        if newest.is_none() || newest < newest_root(&known).map(|root| root.sequence) {
            return;
        }
    }
    set.members[usize::from(member.0)] = Some(disk);
    set.strangers.retain(|(stranger, _)| *stranger != disk);
}

impl Checker<'_> {
    pub(super) async fn superblocks(&mut self) {
        let set = self.set;
        for (index, disk) in (0..).map(DiskIndex).zip(&set.members) {
            let Some(disk) = disk.map(|disk| &set.disks[disk]) else { continue };
            for (copy, found) in (0..).zip(&disk.copies) {
                let Err(defect) = found else { continue };
                // Formatting was cut off before there was a second copy, whole. The next start writes it.
                if disk.superblock().is_some_and(|own| own.state == State::Formatting) {
                    let path = disk.path.display();
                    self.report
                        .notes
                        .push(format!("{path}: formatting was cut off; a start goes on with it"));
                    continue;
                }
                let place = self.place(index, SUPERBLOCK_FILE.to_owned(), copy * SUPERBLOCK_COPY_LEN as u64);
                let right = right_superblock(set, index, disk.superblock(), copy);
                let cure = Cure::Bytes(right.encode());
                self.damaged(Structure::Superblock, None, place, defect, None, cure).await;
            }
            if let Some(own) = disk.superblock()
                && !is_of_one_mind(own, &set.superblock)
            {
                let place = self.place(index, SUPERBLOCK_FILE.to_owned(), 0);
                let defect = Defect::Contradiction(
                    "it describes another layout than the newest of the set".to_owned(),
                );
                let cure = Cure::None("both are whole");
                self.damaged(Structure::Superblock, None, place, &defect, None, cure).await;
            }
        }
    }

    /// The newest root and the bytes of its manifest.
    pub(super) async fn anchors(&mut self, files: &ShardFiles) -> Option<(Root, Vec<u8>)> {
        let shard = files.shard;
        let copies = read_roots(self.core, self.set, files).await;
        let Some(root) = newest_root(&copies).cloned() else {
            let reason = "no copy on any disk can be believed".to_owned();
            self.lost(
                Structure::Root,
                shard,
                None,
                reason,
                "without a root nothing of the shard can be found",
            );
            return None;
        };
        for copy in &copies {
            self.root_copy(files, copy, &copies, &root).await;
        }
        let pieces = match read_manifest(self.core, files, &root).await {
            Ok(pieces) => pieces,
            Err(defect) => {
                self.contradiction(Structure::Manifest, shard, None, defect.to_string());
                return None;
            }
        };
        match assemble_manifest(&root, &pieces) {
            Ok((bytes, chosen)) => {
                for (piece, right) in pieces.iter().zip(chosen) {
                    self.manifest_piece(files, piece, right).await;
                }
                Some((root, bytes))
            }
            Err(defect) => {
                let reason = format!("no replica is whole: {defect}");
                self.lost(
                    Structure::Manifest,
                    shard,
                    None,
                    reason,
                    "it is needed to find anything of the shard",
                );
                None
            }
        }
    }

    async fn root_copy(&mut self, files: &ShardFiles, copy: &RootCopy, all: &[RootCopy], newest: &Root) {
        let Err(defect) = &copy.root else { return };
        // A shard that was only formatted has one copy alone; the second one may have reached some of the disks.
        if newest.sequence <= 1 && copy.copy == 1 && *defect == Defect::Frame(FrameError::Empty) {
            return;
        }
        let offset = u64::from(copy.copy) * ROOT_COPY_LEN as u64;
        let place = self.place(copy.disk, shard_file(files.shard, "root"), offset);
        let cure = Cure::Bytes(right_root(copy.copy, all, newest).encode());
        self.damaged(Structure::Root, Some(files.shard), place, defect, None, cure).await;
    }

    async fn manifest_piece(&mut self, files: &ShardFiles, piece: &ManifestPiece, right: usize) {
        let right = piece.replicas[right].1.as_ref().expect("a replica that was chosen is whole");
        for (column, found) in &piece.replicas {
            let (offset, cure, defect) = match found {
                Err(defect) => (0, right.clone(), defect.clone()),
                Ok(bytes) => {
                    let Some(differing) = differing_blocks(&bytes[..piece.len], &right[..piece.len]) else {
                        continue;
                    };
                    let defect = Defect::Contradiction("it is not what the root vouches for".to_owned());
                    (differing.start, right[differing].to_vec(), defect)
                }
            };
            let place = self.place_in(files, ExtentClass::Table, *column, offset as u64);
            let cure = Cure::Bytes(cure);
            self.damaged(Structure::Manifest, Some(files.shard), place, &defect, None, cure).await;
        }
    }

    /// No two extents share a slot, and each lies on disks of the set.
    pub(super) fn extents(&mut self, files: &ShardFiles, root: &Root, state: &ShardState) {
        let mut taken: BTreeMap<(ExtentClass, DiskIndex, u32), ExtentId> = BTreeMap::new();
        let of_log_and_data = state.extents.values().map(|entry| &entry.placement);
        let placements = of_log_and_data.chain(&root.manifest).chain(state.index.placements());
        let mut reasons = state.replayed.contradictions.clone();
        for placement in placements {
            reasons.extend(self.misplaced(files, placement));
            for column in &placement.columns {
                let slot = (placement.class, column.disk, column.slot);
                if let Some(other) = taken.insert(slot, placement.id) {
                    reasons.push(format!(
                        "extents {} and {} share slot {} of disk {}",
                        other.0, placement.id.0, column.slot, column.disk.0
                    ));
                }
            }
        }
        for reason in reasons {
            self.contradiction(Structure::Extents, files.shard, None, reason);
        }
    }

    fn misplaced(&self, files: &ShardFiles, placement: &Placement) -> Option<String> {
        let id = placement.id.0;
        let columns = placement.columns.len();
        let wanted = match placement.class {
            ExtentClass::Data => columns == files.geometry.columns(),
            ExtentClass::Log | ExtentClass::Table => columns >= 1,
        };
        if !wanted {
            return Some(format!("extent {id} has {columns} columns"));
        }
        let stray =
            placement.columns.iter().find(|column| usize::from(column.disk.0) >= self.set.members.len());
        stray.map(|column| format!("extent {id} lies on disk {}, which the set does not have", column.disk.0))
    }
}

/// What belongs into copy `copy` of a disk whose copy there is damaged.
fn right_superblock(set: &OfflineSet, index: DiskIndex, other: Option<&Superblock>, copy: u64) -> Superblock {
    match other {
        // The one number that belongs into the other copy and is newer.
        Some(other) => Superblock { sequence: other.sequence + 1, ..other.clone() },
        None => Superblock {
            sequence: set.superblock.sequence.next_multiple_of(2) + copy,
            disk: set.superblock.members[usize::from(index.0)].disk,
            disk_index: index.0,
            ..set.superblock.clone()
        },
    }
}

fn is_of_one_mind(own: &Superblock, newest: &Superblock) -> bool {
    let members =
        |superblock: &Superblock| superblock.members.iter().map(|member| member.disk).collect::<Vec<_>>();
    let layout = |superblock: &Superblock| {
        (superblock.geometry, superblock.shard_count, superblock.hash, superblock.hash_seed, superblock.code)
    };
    layout(own) == layout(newest)
        && own.slot_map == newest.slot_map
        && (own.epoch < newest.epoch || members(own) == members(newest))
}

/// What belongs into copy `copy`: what another disk has there, or the newest root under the number before its own.
fn right_root(copy: u8, all: &[RootCopy], newest: &Root) -> Root {
    let others = all.iter().filter(|other| other.copy == copy).filter_map(|other| other.root.as_ref().ok());
    match others.max_by_key(|root| root.sequence) {
        Some(root) => root.clone(),
        None if newest.sequence % 2 == u64::from(copy) => newest.clone(),
        // Both copies are written with one content, one number after the other.
        None if newest.sequence > 0 => Root { sequence: newest.sequence - 1, ..newest.clone() },
        None => Root { sequence: 1, ..newest.clone() },
    }
}

/// The blocks from the first to the last that differs, in bytes of whole blocks.
fn differing_blocks(a: &[u8], b: &[u8]) -> Option<std::ops::Range<usize>> {
    let mut differing = (0..a.len()).step_by(BLOCK_LEN).filter(|&at| {
        let end = (at + BLOCK_LEN).min(a.len());
        a[at..end] != b[at..end]
    });
    let first = differing.next()?;
    let last = differing.next_back().unwrap_or(first);
    Some(first..last + BLOCK_LEN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differing_blocks_are_whole_and_cover_all() {
        let a = vec![0; 5 * BLOCK_LEN + 10];
        assert_eq!(differing_blocks(&a, &a), None);
        let mut b = a.clone();
        b[BLOCK_LEN + 7] = 1;
        assert_eq!(differing_blocks(&a, &b), Some(BLOCK_LEN..2 * BLOCK_LEN));
        b[5 * BLOCK_LEN + 9] = 1;
        assert_eq!(differing_blocks(&a, &b), Some(BLOCK_LEN..6 * BLOCK_LEN));
    }
}
