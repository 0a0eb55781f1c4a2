//! Looking: every structure on the disks at hand, copy by copy, decoded, or the reason why it cannot be.
//!
//! Nothing is written and no lock is taken, so it works beside a running server, which then moves on while it is being looked
//! at. Structures are handed out one after the other, as they are met: a deployment does not fit into memory.

mod item;
mod packs;

use std::collections::BTreeSet;
use std::path::PathBuf;

use basalt_reactor::Core;
use basalt_reactor::disk::BLOCK_LEN;

pub use self::item::{Item, ObjectName, Place, Query, TableSummary, What};

use super::log_walk::{LogWalk, Step, read_header};
use super::media::{Defect, Window};
use super::set::{Access, OfflineDisk, OfflineError, OfflineSet};
use super::shard::{
    ManifestPiece, ShardFiles, ShardState, arena_kind, assemble_manifest, newest_root, read_manifest,
    read_roots,
};
use super::table::{Entries, Runs, read_replica};
use crate::body::directory::{CHUNK_LEN_MAX, CHUNK_MAGIC, DirectoryChunk, Origin, SEAL_LEN, SEAL_OFFSET};
use crate::deployment::shard_file;
use crate::extent::{Column, DiskIndex, ExtentClass, ExtentId};
use crate::format::manifest::{ExtentEntry, Manifest};
use crate::format::root::ROOT_COPY_LEN;
use crate::index::table::frame::FrameKind;
use crate::index::{IndexManifest, key};
use crate::value::{self, Bucket, Object, UploadedPart};

/// Looks at what `query` asks for on the disks at `paths`, and tells `emit` of each structure.
///
/// # Errors
/// [`OfflineError`] when a disk cannot be opened, or none says what it is and more than superblocks are asked for.
pub async fn inspect(
    core: &Core,
    paths: &[PathBuf],
    query: &Query,
    emit: &mut dyn FnMut(Item),
) -> Result<(), OfflineError> {
    let mut disks = Vec::with_capacity(paths.len());
    for path in paths {
        disks.push(OfflineDisk::open(core, path, Access::Look).await?);
    }
    let wants = |what| query.what.contains(&what);
    if wants(What::Superblock) {
        show_superblocks(&disks, emit);
    }
    if query.object.is_none() && query.what.iter().all(|&what| what == What::Superblock) {
        return Ok(());
    }
    let set = OfflineSet::assemble(disks)?;
    for (disk, reason) in &set.strangers {
        emit(Item::Stranger { path: set.disks[*disk].path.clone(), reason: reason.clone() });
    }
    set.missing().for_each(|disk| emit(Item::Missing { disk }));
    for shard in 0..set.superblock.shard_count {
        if !query.what.is_empty() && query.shard.is_none_or(|only| only == shard) {
            Look { core, set: &set, query, emit, files: ShardFiles::open(&set, shard) }.shard().await;
        }
    }
    if let Some(name) = &query.object {
        show_object(core, &set, name, emit).await;
    }
    Ok(())
}

fn show_superblocks(disks: &[OfflineDisk], emit: &mut dyn FnMut(Item)) {
    for disk in disks {
        for (copy, found) in (0..).zip(&disk.copies) {
            let found = found.clone().map(Box::new);
            emit(Item::Superblock { path: disk.path.clone(), copy, found });
        }
    }
}

/// The state of a shard; tells `emit` if there is none to be had.
async fn load(
    core: &Core,
    files: &ShardFiles,
    set: &OfflineSet,
    emit: &mut dyn FnMut(Item),
) -> Option<ShardState> {
    let roots = read_roots(core, set, files).await;
    let Some(root) = newest_root(&roots) else {
        let defect = Defect::Contradiction("no copy of its root can be believed".to_owned());
        emit(Item::ShardLost { shard: files.shard, defect });
        return None;
    };
    let loaded = match read_manifest(core, files, root).await {
        Ok(pieces) => match assemble_manifest(root, &pieces) {
            Ok((bytes, _)) => ShardState::load(core, files, root, &bytes).await,
            Err(defect) => Err(defect),
        },
        Err(defect) => Err(defect),
    };
    loaded.map_err(|defect| emit(Item::ShardLost { shard: files.shard, defect })).ok()
}

/// One shard under the eye.
struct Look<'a> {
    core: &'a Core,
    set: &'a OfflineSet,
    query: &'a Query,
    emit: &'a mut dyn FnMut(Item),
    files: ShardFiles,
}

impl Look<'_> {
    fn wants(&self, what: What) -> bool {
        self.query.what.contains(&what)
    }

    fn wants_extent(&self, id: ExtentId) -> bool {
        self.query.extent.is_none_or(|only| only == id)
    }

    fn place(&self, disk: DiskIndex, kind: &str, offset: u64) -> Place {
        let path = self.set.member(disk).map(|disk| disk.path.clone()).unwrap_or_default();
        Place { path, disk, file: shard_file(self.files.shard, kind), offset }
    }

    fn place_in(&self, class: ExtentClass, column: Column, offset: u64) -> Place {
        let start = u64::from(column.slot) * self.files.geometry.slot_len(class);
        self.place(column.disk, arena_kind(class), start + offset)
    }

    async fn shard(mut self) {
        if self.wants(What::Root) {
            self.roots().await;
        }
        if self.wants(What::Manifest) {
            self.manifest().await;
        }
        if ![What::Extents, What::Log, What::Table, What::Directory, What::Pack]
            .iter()
            .any(|&what| self.wants(what))
        {
            return;
        }
        let Some(state) = load(self.core, &self.files, self.set, self.emit).await else { return };
        if self.wants(What::Extents) {
            self.extents(&state);
        }
        if self.wants(What::Log) {
            self.log(&state).await;
        }
        if self.wants(What::Table) {
            self.tables(&state).await;
        }
        if self.wants(What::Directory) {
            self.directories(&state).await;
        }
        if self.wants(What::Pack) {
            self.packs(&state).await;
        }
    }

    async fn roots(&mut self) {
        for copy in read_roots(self.core, self.set, &self.files).await {
            let offset = u64::from(copy.copy) * ROOT_COPY_LEN as u64;
            let place = self.place(copy.disk, "root", offset);
            let found = copy.root.map(Box::new);
            (self.emit)(Item::Root { place, shard: self.files.shard, copy: copy.copy, found });
        }
    }

    async fn manifest(&mut self) {
        let shard = self.files.shard;
        let roots = read_roots(self.core, self.set, &self.files).await;
        let Some(root) = newest_root(&roots) else {
            let defect = Defect::Contradiction("no copy of its root can be believed".to_owned());
            return (self.emit)(Item::ShardLost { shard, defect });
        };
        let pieces = match read_manifest(self.core, &self.files, root).await {
            Ok(pieces) => pieces,
            Err(defect) => return (self.emit)(Item::ShardLost { shard, defect }),
        };
        let assembled = assemble_manifest(root, &pieces);
        for (index, piece) in pieces.iter().enumerate() {
            let right = assembled.as_ref().ok().map(|(_, chosen)| chosen[index]);
            self.manifest_replicas(piece, right);
        }
        let decoded = assembled.and_then(|(bytes, _)| Manifest::decode(&bytes).map_err(Defect::Decode));
        match decoded {
            Ok(manifest) => {
                let index = IndexManifest::decode(&manifest.index).map_err(Defect::Decode);
                (self.emit)(Item::Manifest { shard, manifest: Box::new(manifest), index });
            }
            Err(defect) => (self.emit)(Item::ShardLost { shard, defect }),
        }
    }

    /// `right` is the replica that belongs to the manifest that the root vouches for, if there is such a manifest.
    fn manifest_replicas(&mut self, piece: &ManifestPiece, right: Option<usize>) {
        let right = right.and_then(|index| piece.replicas[index].1.as_ref().ok());
        for (column, bytes) in &piece.replicas {
            let defect = match (bytes, right) {
                (Err(defect), _) => Some(defect.clone()),
                (Ok(_), None) => {
                    Some(Defect::Contradiction("the root's checksum does not vouch for it".to_owned()))
                }
                (Ok(bytes), Some(right)) if bytes[..piece.len] != right[..piece.len] => Some(
                    Defect::Contradiction("it differs from the one that the root vouches for".to_owned()),
                ),
                (Ok(_), Some(_)) => None,
            };
            let place = self.place_in(ExtentClass::Table, *column, 0);
            let (shard, extent, len) = (self.files.shard, piece.placement.id, piece.len as u64);
            (self.emit)(Item::ManifestReplica { place, shard, extent, len, defect });
        }
    }

    fn extents(&mut self, state: &ShardState) {
        let shard = self.files.shard;
        let mut defects = state.replayed.contradictions.clone();
        defects.extend(state.replayed.error.clone());
        (self.emit)(Item::LogEnd { shard, batches: state.replayed.batches, defects });
        for entry in state.extents.values() {
            if self.wants_extent(entry.placement.id) {
                (self.emit)(Item::Extent { shard, entry: Box::new(entry.clone()) });
            }
        }
    }

    async fn log(&mut self, state: &ShardState) {
        let shard = self.files.shard;
        for entry in state.extents_of(ExtentClass::Log) {
            let id = entry.placement.id;
            if !self.wants_extent(id) {
                continue;
            }
            for &column in &entry.placement.columns {
                let Some(found) = read_header(self.core, &self.files, column).await else { continue };
                let place = self.place_in(ExtentClass::Log, column, 0);
                (self.emit)(Item::LogHeader { place, shard, extent: id, found });
                self.batches(entry, column).await;
            }
        }
    }

    async fn batches(&mut self, entry: &ExtentEntry, column: Column) {
        let start = u64::from(column.slot) * self.files.geometry.log_slot_len;
        let from = self.place(column.disk, "log", start);
        let at = |offset: u64| Place { offset: start + offset, ..from.clone() };
        let walk = LogWalk::new(self.core, &self.files, column, entry.placement.id, entry.nonce);
        let Some(Ok(mut walk)) = walk else { return };
        while let Some(step) = walk.next().await {
            (self.emit)(match step {
                Step::Batch { offset, header, records } => {
                    let (place, header) = (at(offset), Box::new(header));
                    Item::Batch { place, shard: self.files.shard, header, records }
                }
                Step::Unreadable { offset, len, defect } => {
                    Item::Unreadable { place: at(offset), len, defect }
                }
            });
        }
    }

    async fn tables(&mut self, state: &ShardState) {
        let shard = self.files.shard;
        let mut wanted = state.index.levels.clone();
        wanted.iter_mut().for_each(|level| level.retain(|table| self.wants_extent(table.placement.id)));
        let (runs, mut lost) = Runs::open(self.core, &self.files, &wanted).await;
        for table in runs.tables() {
            let id = table.descriptor.placement.id;
            let level = wanted.iter().position(|level| level.iter().any(|other| other.placement.id == id));
            let (header, descriptor) = (&table.header, &table.descriptor);
            let summary = TableSummary {
                placement: descriptor.placement.clone(),
                epoch: header.epoch,
                sequence: header.sequence,
                len: header.table_len,
                entry_count: header.entry_count,
                tombstone_count: header.tombstone_count,
                block_count: header.block_count,
                filter_len: header.filter_len,
                directory_len: header.directory_len,
                min_key: header.min_key.to_vec(),
                max_key: header.max_key.to_vec(),
            };
            (self.emit)(Item::Table { shard, level: level.unwrap_or(0), table: Box::new(summary) });
            for frame in table.frames() {
                for &column in &descriptor.placement.columns {
                    let Some(found) = read_replica(self.core, &self.files, column, frame).await else {
                        continue;
                    };
                    let place = self.place_in(ExtentClass::Table, column, frame.offset());
                    (self.emit)(Item::TableFrame {
                        place,
                        shard,
                        extent: id,
                        kind: kind_name(frame.place.kind),
                        len: frame.len as u64,
                        defect: found.err(),
                    });
                }
            }
        }
        if self.query.entries {
            let overlay =
                if self.query.extent.is_none() { state.overlay.clone() } else { Default::default() };
            let mut entries = Entries::new(self.core, &self.files, &overlay, &runs, b"", None);
            while let Some((key, value)) = entries.next_of_any_kind().await {
                (self.emit)(Item::Entry { shard, key, value });
            }
            lost.append(&mut entries.lost);
        }
        for lost in lost {
            let (extent, offset, len, defect) = (lost.extent, lost.offset, lost.len, lost.defect);
            (self.emit)(Item::TableLost { shard, extent, offset, len, defect });
        }
    }

    async fn directories(&mut self, state: &ShardState) {
        for entry in state.extents_of(ExtentClass::Data) {
            if !self.wants_extent(entry.placement.id) {
                continue;
            }
            for &column in &entry.placement.columns {
                for (offset, seen) in self.chunks(entry, column).await {
                    let place = self.place_in(ExtentClass::Data, column, offset);
                    (self.emit)(match seen {
                        Seen::Unreadable(defect) => Item::Unreadable { place, len: BLOCK_LEN as u64, defect },
                        Seen::Chunk(found) => Item::Chunk {
                            place,
                            shard: self.files.shard,
                            extent: entry.placement.id,
                            found: found.map(Box::new),
                        },
                    });
                }
            }
        }
    }

    fn origin(&self) -> Origin {
        let superblock = &self.set.superblock;
        Origin { shard: self.files.shard, epoch: superblock.epoch, secret: superblock.hash_seed }
    }

    /// What a column has of a directory, by offset in it. Every block may begin a chunk; blocks that were never given out hold none.
    async fn chunks(&self, entry: &ExtentEntry, column: Column) -> Vec<(u64, Seen)> {
        let (id, origin) = (entry.placement.id, self.origin());
        let mut chunks = Vec::new();
        let Some((Ok(file), start)) = self.files.locate(ExtentClass::Data, column) else { return chunks };
        let given_out = u64::from(entry.next_block) * BLOCK_LEN as u64;
        let mut window =
            Window::new(self.core, file, start, given_out.min(self.files.geometry.data_slot_len));
        let mut offset = 0;
        while offset < window.len() {
            let block = u32::try_from(offset / BLOCK_LEN as u64).expect("a column has less than 2^32 blocks");
            let sealed = match window.get(offset, BLOCK_LEN).await {
                Ok(bytes) => {
                    bytes.starts_with(&CHUNK_MAGIC)
                        && bytes[SEAL_OFFSET..SEAL_OFFSET + SEAL_LEN] == origin.seal(id, block)
                }
                Err(defect) => {
                    chunks.push((offset, Seen::Unreadable(defect)));
                    false
                }
            };
            let mut taken = BLOCK_LEN as u64;
            if sealed {
                let len = usize::try_from(window.len() - offset).unwrap_or(usize::MAX).min(CHUNK_LEN_MAX);
                let found = window.get(offset, len).await;
                let found =
                    found.and_then(|bytes| DirectoryChunk::decode(bytes, &origin).map_err(Defect::Frame));
                taken = found.as_ref().map_or(taken, DirectoryChunk::encoded_len);
                chunks.push((offset, Seen::Chunk(found)));
            }
            offset += taken;
        }
        chunks
    }
}

/// A place of a directory.
enum Seen {
    /// A block that the device does not give.
    Unreadable(Defect),
    Chunk(Result<DirectoryChunk, Defect>),
}

fn kind_name(kind: FrameKind) -> &'static str {
    match kind {
        FrameKind::Header => "header",
        FrameKind::Data => "data",
        FrameKind::Filter => "filter",
        FrameKind::Directory => "directory",
    }
}

/// Finds the bucket in its home shard, then every version of the key in its own.
async fn show_object(core: &Core, set: &OfflineSet, name: &ObjectName, emit: &mut dyn FnMut(Item)) {
    let superblock = &set.superblock;
    let home = superblock.shard_of(0, &name.bucket);
    let from = key::bucket(&name.bucket);
    let Some(mut found) = look_up(core, set, home, &from, key::successor(&from), emit).await else { return };
    let bucket = found.entries.pop().and_then(|(_, value)| value::decode::<Bucket>(&value).ok());
    let Some(bucket) = bucket else { return emit(Item::NoSuchBucket) };
    let shard = superblock.shard_of(bucket.id, &name.key);
    let mut versions = Vec::new();
    for family in [key::Family::Object, key::Family::Upload, key::Family::Part] {
        let from = key::start_of_name(family, bucket.id, &name.key);
        let Some(found) = look_up(core, set, shard, &from, key::successor(&from), emit).await else { return };
        let places = found.state;
        versions.extend(found.entries.into_iter().map(|(key, value)| {
            let named = extents_of(&value);
            let places =
                named.iter().filter_map(|id| places.extents.get(id)).map(|entry| entry.placement.clone());
            Item::Object { shard, places: places.collect(), key, value }
        }));
    }
    if versions.is_empty() {
        return emit(Item::NoSuchKey);
    }
    versions.into_iter().for_each(emit);
}

/// The extents that a value of any kind names.
fn extents_of(value: &[u8]) -> BTreeSet<ExtentId> {
    let footprint = match (value::decode::<Object>(value), value::decode::<UploadedPart>(value)) {
        (Ok(object), _) => object.footprint,
        (_, Ok(part)) => part.footprint,
        _ => Vec::new(),
    };
    let inline = value::inline_place(value).map(|place| place.extent);
    footprint.iter().map(|print| ExtentId(print.extent)).chain(inline).collect()
}

struct LookedUp {
    state: ShardState,
    entries: Vec<(Vec<u8>, Vec<u8>)>,
}

async fn look_up(
    core: &Core,
    set: &OfflineSet,
    shard: u16,
    from: &[u8],
    to: Option<Vec<u8>>,
    emit: &mut dyn FnMut(Item),
) -> Option<LookedUp> {
    let files = ShardFiles::open(set, shard);
    let state = load(core, &files, set, emit).await?;
    let (runs, mut lost) = Runs::open(core, &files, &state.index.levels).await;
    let mut walk = Entries::new(core, &files, &state.overlay, &runs, from, to);
    let mut entries = Vec::new();
    while let Some(entry) = walk.next().await {
        entries.push(entry);
    }
    lost.append(&mut walk.lost);
    for lost in lost {
        emit(Item::TableLost {
            shard,
            extent: lost.extent,
            offset: lost.offset,
            len: lost.len,
            defect: lost.defect,
        });
    }
    Some(LookedUp { state, entries })
}
