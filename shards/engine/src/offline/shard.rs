//! A shard as its files say it is: roots, manifest, and what the log adds to them.
//!
//! Every copy is read and kept with what is wrong with it. What the shard is comes from the newest whole root, as a start
//! would have it, but without writing anything: the log is applied to maps in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use basalt_reactor::{Core, Disk, File};

use super::media::{Defect, read};
use super::set::OfflineSet;
use crate::checksum::crc32c;
use crate::deployment::shard_file;
use crate::extent::{
    ArenaFiles, Column, DiskFiles, DiskIndex, ExtentClass, ExtentId, Geometry, Placement, round_up_to_block,
};
use crate::format::manifest::{ExtentEntry, Manifest};
use crate::format::record::{LiveDelta, Record};
use crate::format::root::{LogPosition, ROOT_COPY_LEN, Root};
use crate::index::IndexManifest;
use crate::log::replay::{Replay, ReplayError, ReplayedBatch, refuse_unreached};
use crate::value::{self, InlinePlace};

/// Longest manifest that is read, bytes.
const MANIFEST_LEN_MAX: u64 = 256 << 20;

/// Ways to put a manifest of several extents together from replicas that are tried.
const ASSEMBLY_COUNT_MAX: usize = 256;

/// A shard's files on one disk.
pub(super) struct MemberFiles {
    pub(super) disk: Disk,
    pub(super) root: Result<File, Defect>,
    pub(super) log: Result<File, Defect>,
    pub(super) data: Result<File, Defect>,
    pub(super) table: Result<File, Defect>,
}

/// A shard's files on all disks; `None` for disks that are not at hand.
pub(super) struct ShardFiles {
    pub(super) shard: u16,
    pub(super) geometry: Geometry,
    /// Disks that the shard's log, tables and roots lie on.
    pub(super) home: Vec<DiskIndex>,
    pub(super) members: Vec<Option<MemberFiles>>,
}

/// The kind of a class's arena file.
pub(super) fn arena_kind(class: ExtentClass) -> &'static str {
    match class {
        ExtentClass::Log => "log",
        ExtentClass::Data => "data",
        ExtentClass::Table => "table",
    }
}

impl ShardFiles {
    pub(super) fn open(set: &OfflineSet, shard: u16) -> ShardFiles {
        let open = |disk: Option<usize>| {
            let disk = &set.disks[disk?];
            let file = |kind| disk.open_file(&shard_file(shard, kind));
            Some(MemberFiles {
                disk: disk.disk.clone(),
                root: file("root"),
                log: file("log"),
                data: file("data"),
                table: file("table"),
            })
        };
        let members = set.members.iter().map(|&disk| open(disk)).collect();
        let home = set.superblock.groups().disks(set.superblock.home_of(shard));
        ShardFiles { shard, geometry: set.superblock.geometry, home, members }
    }

    /// The arena file that holds `column`, and where in it; `None` when the disk is not at hand.
    pub(super) fn locate(&self, class: ExtentClass, column: Column) -> Option<(&Result<File, Defect>, u64)> {
        let files = self.members.get(usize::from(column.disk.0))?.as_ref()?;
        let file = match class {
            ExtentClass::Log => &files.log,
            ExtentClass::Data => &files.data,
            ExtentClass::Table => &files.table,
        };
        Some((file, u64::from(column.slot) * self.geometry.slot_len(class)))
    }

    /// Bytes of a column; `None` when its disk is not at hand.
    pub(super) async fn read(
        &self,
        core: &Core,
        class: ExtentClass,
        column: Column,
        offset: u64,
        len: usize,
    ) -> Option<Result<Vec<u8>, Defect>> {
        let (file, start) = self.locate(class, column)?;
        Some(match file {
            Ok(file) => read(core, file, start + offset, len).await,
            Err(defect) => Err(defect.clone()),
        })
    }

    /// The arena files as the engine's own readers take them.
    fn arena(&self) -> Rc<ArenaFiles> {
        let disks = self.members.iter().map(|files| {
            let files = files.as_ref()?;
            Some(DiskFiles {
                disk: files.disk.clone(),
                root: files.root.as_ref().ok()?.clone(),
                log: files.log.as_ref().ok()?.clone(),
                data: files.data.as_ref().ok()?.clone(),
                table: files.table.as_ref().ok()?.clone(),
            })
        });
        ArenaFiles::new(self.geometry, disks.collect())
    }
}

/// One copy of a root.
pub(super) struct RootCopy {
    pub(super) disk: DiskIndex,
    pub(super) copy: u8,
    pub(super) root: Result<Root, Defect>,
}

/// Both copies on every disk at hand.
pub(super) async fn read_roots(core: &Core, set: &OfflineSet, files: &ShardFiles) -> Vec<RootCopy> {
    let mut copies = Vec::new();
    for &disk in &files.home {
        let Some(own) = &files.members[usize::from(disk.0)] else { continue };
        for copy in 0..2u8 {
            let root = match &own.root {
                Ok(file) => read_root(core, file, copy).await,
                Err(defect) => Err(defect.clone()),
            };
            copies.push(RootCopy { disk, copy, root });
        }
    }
    for copy in &mut copies {
        if let Ok(root) = &copy.root
            && (root.deployment, root.shard) != (set.superblock.deployment, files.shard)
        {
            let what = format!("it is of shard {} of another deployment or shard", root.shard);
            copy.root = Err(Defect::Contradiction(what));
        }
    }
    copies
}

pub(super) async fn read_root(core: &Core, file: &File, copy: u8) -> Result<Root, Defect> {
    let bytes = read(core, file, u64::from(copy) * ROOT_COPY_LEN as u64, ROOT_COPY_LEN).await?;
    Root::decode(&bytes).map_err(Defect::Frame)
}

pub(super) fn newest_root(copies: &[RootCopy]) -> Option<&Root> {
    copies.iter().filter_map(|copy| copy.root.as_ref().ok()).max_by_key(|root| root.sequence)
}

/// What one extent holds of a manifest, on each disk at hand.
pub(super) struct ManifestPiece {
    pub(super) placement: Placement,
    pub(super) len: usize,
    /// Whole blocks.
    pub(super) replicas: Vec<(Column, Result<Vec<u8>, Defect>)>,
}

/// # Errors
/// When the root's description of it makes no sense.
pub(super) async fn read_manifest(
    core: &Core,
    files: &ShardFiles,
    root: &Root,
) -> Result<Vec<ManifestPiece>, Defect> {
    let slot_len = files.geometry.table_slot_len;
    if root.manifest_len > MANIFEST_LEN_MAX || root.manifest_len > slot_len * root.manifest.len() as u64 {
        return Err(Defect::Contradiction(format!("a manifest of {} bytes", root.manifest_len)));
    }
    let mut pieces = Vec::new();
    let mut left = root.manifest_len;
    for placement in &root.manifest {
        let len = usize::try_from(left.min(slot_len)).expect("bounded above");
        left -= len as u64;
        let padded = usize::try_from(round_up_to_block(len as u64)).expect("as above");
        let mut replicas = Vec::new();
        for &column in &placement.columns {
            if let Some(bytes) = files.read(core, ExtentClass::Table, column, 0, padded).await {
                replicas.push((column, bytes));
            }
        }
        pieces.push(ManifestPiece { placement: placement.clone(), len, replicas });
    }
    Ok(pieces)
}

/// The manifest's bytes, from whichever replicas give those that the root vouches for, and which replica of each piece
/// that was.
///
/// # Errors
/// [`Defect`] of the last attempt.
pub(super) fn assemble_manifest(
    root: &Root,
    pieces: &[ManifestPiece],
) -> Result<(Vec<u8>, Vec<usize>), Defect> {
    if pieces.is_empty() {
        return Ok((
            Manifest { extents: Vec::new(), index: IndexManifest::default().encode() }.encode(),
            Vec::new(),
        ));
    }
    let whole = |piece: &ManifestPiece| {
        piece
            .replicas
            .iter()
            .enumerate()
            .filter(|(_, (_, bytes))| bytes.is_ok())
            .map(|(index, _)| index)
            .collect()
    };
    let choices: Vec<Vec<usize>> = pieces.iter().map(whole).collect();
    if let Some(index) = choices.iter().position(Vec::is_empty) {
        let defect = pieces[index].replicas.iter().find_map(|(_, bytes)| bytes.as_ref().err().cloned());
        let absent = || Defect::Contradiction("no disk with a replica is at hand".to_owned());
        return Err(defect.unwrap_or_else(absent));
    }
    let mut defect = Defect::Contradiction("no replica".to_owned());
    for attempt in 0..ASSEMBLY_COUNT_MAX {
        let mut rest = attempt;
        let mut bytes = Vec::new();
        let mut chosen = Vec::new();
        for (piece, choices) in pieces.iter().zip(&choices) {
            let index = choices[rest % choices.len()];
            rest /= choices.len();
            chosen.push(index);
            let replica = piece.replicas[index].1.as_ref().expect("only whole ones were chosen");
            bytes.extend_from_slice(&replica[..piece.len]);
        }
        if rest > 0 {
            break;
        }
        let got = crc32c(&bytes);
        if got == root.manifest_crc {
            return Ok((bytes, chosen));
        }
        defect = Defect::Checksum { expected: root.manifest_crc, got };
    }
    Err(defect)
}

/// A shard at the end of its log.
pub(super) struct ShardState {
    pub(super) index: IndexManifest,
    /// Extents of class log and data.
    pub(super) extents: BTreeMap<ExtentId, ExtentEntry>,
    /// What the log made of keys since the root; `None` for those it deleted.
    pub(super) overlay: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    pub(super) replayed: Replayed,
}

/// What came out of the log behind the root.
#[derive(Default)]
pub(super) struct Replayed {
    pub(super) batches: u64,
    /// Where the last batch lies, if there is one: it may not be on every replica, for nobody need have been told of it.
    pub(super) last: Option<(ExtentId, std::ops::Range<u64>)>,
    /// Why it was not read to its end.
    pub(super) error: Option<String>,
    /// Where records are at odds with the extents.
    pub(super) contradictions: Vec<String>,
}

impl ShardState {
    /// # Errors
    /// When the manifest's bytes are not a manifest.
    pub(super) async fn load(
        core: &Core,
        files: &ShardFiles,
        root: &Root,
        manifest: &[u8],
    ) -> Result<ShardState, Defect> {
        let manifest = Manifest::decode(manifest).map_err(Defect::Decode)?;
        let index = IndexManifest::decode(&manifest.index).map_err(Defect::Decode)?;
        let extents = manifest.extents.iter().map(|entry| (entry.placement.id, entry.clone())).collect();
        let mut state =
            ShardState { index, extents, overlay: BTreeMap::new(), replayed: Replayed::default() };
        let missing = match root.log.extent.0 {
            0 => Ok(root.log.sequence),
            _ => state.replay(core, files, root.log).await,
        };
        let arena = files.arena();
        let reached = match missing {
            Ok(missing) => {
                let columns = state.log_columns_behind(&arena);
                refuse_unreached(core, &arena, files.shard, root.deployment, &columns, missing).await
            }
            Err(error) => Err(error),
        };
        state.replayed.error = reached.err().map(|error| error.to_string());
        Ok(state)
    }

    /// Goes through the log; gives the number of the batch that would be next.
    async fn replay(
        &mut self,
        core: &Core,
        files: &ShardFiles,
        from: LogPosition,
    ) -> Result<u64, ReplayError> {
        let extents = self.extents.values();
        let mut reader = Replay::behind(core.clone(), files.arena(), files.shard, from, extents)?;
        while let Some(batch) = reader.next().await? {
            self.apply(batch);
        }
        Ok(reader.next_sequence())
    }

    /// Places of log extents where batches behind the log's end could be: of none, or of one that is not sealed.
    fn log_columns_behind(&self, files: &ArenaFiles) -> Vec<Column> {
        let sealed = self.extents_of(ExtentClass::Log).filter(|entry| entry.sealed);
        let taken: BTreeSet<Column> =
            sealed.flat_map(|entry| entry.placement.columns.iter().copied()).collect();
        let slots = |disk| files.slot_count(ExtentClass::Log, disk).and_then(Result::ok).unwrap_or(0);
        let disks = (0..files.disk_count()).map(DiskIndex);
        let columns = disks.flat_map(|disk| (0..slots(disk)).map(move |slot| Column { disk, slot }));
        columns.filter(|column| !taken.contains(column)).collect()
    }

    fn apply(&mut self, batch: ReplayedBatch) {
        let (extent, start) = (batch.header.extent, u64::from(batch.offset));
        let payload = start + batch.header.payload_offset() as u64;
        self.replayed.batches += 1;
        self.replayed.last = Some((extent, start..start + batch.header.disk_len() as u64));
        for record in batch.records {
            self.apply_record(record, extent, payload);
        }
    }

    fn apply_record(&mut self, record: Record, batch_extent: ExtentId, payload: u64) {
        match record {
            Record::Put { key, mut value, inline, deltas } => {
                deltas.iter().for_each(|delta| self.apply_delta(delta));
                if let Some(span) = inline {
                    let offset = payload + u64::from(span.offset);
                    if value.len() >= value::VALUE_HEAD_LEN {
                        let place = InlinePlace { extent: batch_extent, offset, len: span.len };
                        value::set_inline_place(&mut value, place);
                    }
                    let delta = LiveDelta { extent: batch_extent, bytes: span.len.into(), end_block: 0 };
                    self.apply_delta(&delta);
                }
                self.overlay.insert(key, Some(value));
            }
            Record::Delete { key, deltas } => {
                deltas.iter().for_each(|delta| self.apply_delta(delta));
                self.overlay.insert(key, None);
            }
            Record::ExtentOpened { placement, nonce } => {
                let entry = ExtentEntry { placement, sealed: false, live_len: 0, next_block: 0, nonce };
                self.extents.insert(entry.placement.id, entry);
            }
            Record::ExtentSealed { extent } => {
                if let Some(entry) = self.extents.get_mut(&extent) {
                    entry.sealed = true;
                }
            }
        }
    }

    fn apply_delta(&mut self, delta: &LiveDelta) {
        let Some(entry) = self.extents.get_mut(&delta.extent) else {
            let what = format!("a record changes extent {}, which does not exist", delta.extent.0);
            self.replayed.contradictions.push(what);
            return;
        };
        match entry.live_len.checked_add_signed(delta.bytes) {
            Some(live_len) => entry.live_len = live_len,
            None => {
                let what = format!("extent {} would hold less than nothing", delta.extent.0);
                self.replayed.contradictions.push(what);
            }
        }
        entry.next_block = entry.next_block.max(delta.end_block);
    }

    /// The extents of class log, or data.
    pub(super) fn extents_of(&self, class: ExtentClass) -> impl Iterator<Item = &ExtentEntry> {
        self.extents.values().filter(move |entry| entry.placement.class == class)
    }
}
