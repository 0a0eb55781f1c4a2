//! Verifying a stopped deployment, every copy of everything that is of use, and mending what redundancy allows.
//!
//! From the top down: superblocks, roots, manifests, logs, index tables; then every entry of the index with the bytes that it
//! names, on every column and replica. What is damaged is mended where it is found, so that what comes later rests on whole
//! ground. What nothing names is not looked at: it may hold anything.

mod anchor;
mod bodies;
mod chunk;
mod entries;
mod log;
mod packs;
mod report;
pub(super) mod stripe;
mod tables;

use std::collections::BTreeMap;
use std::path::PathBuf;

use basalt_reactor::Core;

pub use self::report::{FAULTS_KEPT_MAX, Fault, Listener, Owner, Phase, Progress, Remedy, Report, Structure};

use super::inspect::Place;
use super::media::Defect;
use super::mend::mend;
use super::set::{Access, OfflineDisk, OfflineError, OfflineSet};
use super::shard::{ShardFiles, ShardState, arena_kind};
use super::table::Runs;
use crate::body::stripe::Codec;
use crate::deployment::{SUPERBLOCK_FILE, shard_file};
use crate::extent::{Column, DiskIndex, ExtentClass};
use crate::format::root::ROOT_COPY_LEN;
use crate::format::superblock::SUPERBLOCK_COPY_LEN;

/// Checks the disks at `paths`, which no server may use meanwhile, and with `repair` mends what can be mended.
///
/// # Errors
/// [`OfflineError`] when a disk cannot be opened or locked, or none says what it is.
pub async fn check(
    core: &Core,
    paths: &[PathBuf],
    repair: bool,
    listener: &mut dyn Listener,
) -> Result<Report, OfflineError> {
    let access = if repair { Access::Repair } else { Access::Check };
    let mut disks = Vec::with_capacity(paths.len());
    for path in paths {
        disks.push(OfflineDisk::open(core, path, access).await?);
    }
    let mut set = OfflineSet::assemble(disks)?;
    anchor::identify(core, &mut set).await;
    let geometry = set.superblock.geometry;
    let member = |(index, disk): (usize, &Option<usize>)| {
        disk.map(|disk| (DiskIndex(index as u8), set.disks[disk].path.clone()))
    };
    let report = Report {
        disks: set.members.iter().enumerate().filter_map(member).collect(),
        missing: set.missing().collect(),
        strangers: set
            .strangers
            .iter()
            .map(|(disk, why)| (set.disks[*disk].path.clone(), why.clone()))
            .collect(),
        shard_count: set.superblock.shard_count,
        ..Report::default()
    };
    let codec = Codec::new(geometry.k, geometry.m);
    let mut checker = Checker { core, set: &set, repair, listener, report, codec, buckets: BTreeMap::new() };
    checker.superblocks().await;
    let mut shards = Vec::new();
    for id in 0..set.superblock.shard_count {
        if let Some(shard) = checker.shard(id).await {
            shards.push(shard);
        }
    }
    // Names first: reports say whose bytes they are about.
    for shard in &shards {
        checker.learn_buckets(shard).await;
    }
    for shard in &shards {
        checker.entries(shard).await;
    }
    Ok(checker.report)
}

/// What a fault is cured with.
enum Cure {
    /// Whole blocks, to be put where the fault is.
    Bytes(Vec<u8>),
    /// Nothing, and why.
    None(&'static str),
}

struct Checker<'a> {
    core: &'a Core,
    set: &'a OfflineSet,
    repair: bool,
    listener: &'a mut dyn Listener,
    report: Report,
    codec: Codec,
    /// Names by id.
    buckets: BTreeMap<u64, String>,
}

/// A shard whose log and tables have been looked at.
struct CheckedShard {
    files: ShardFiles,
    state: ShardState,
    runs: Runs,
    /// Parts of the index are lost: what is left may be older than what was there.
    index_lost: bool,
}

impl Checker<'_> {
    fn place(&self, disk: DiskIndex, file: String, offset: u64) -> Place {
        let path = self.set.member(disk).map(|disk| disk.path.clone()).unwrap_or_default();
        Place { path, disk, file, offset }
    }

    fn place_in(&self, files: &ShardFiles, class: ExtentClass, column: Column, offset: u64) -> Place {
        let start = u64::from(column.slot) * files.geometry.slot_len(class);
        self.place(column.disk, shard_file(files.shard, arena_kind(class)), start + offset)
    }

    /// A fault in one place of one disk.
    async fn damaged(
        &mut self,
        structure: Structure,
        shard: Option<u16>,
        place: Place,
        defect: &Defect,
        owner: Option<&Owner>,
        cure: Cure,
    ) {
        let (len, remedy) = match cure {
            Cure::None(why) => (0, Remedy::None(why.to_owned())),
            Cure::Bytes(bytes) if !self.repair => (bytes.len(), Remedy::Mendable),
            Cure::Bytes(bytes) => (bytes.len(), self.mend(&place, &bytes).await),
        };
        let (len, reason) = (len as u64, defect.to_string());
        self.tell(Fault { structure, shard, place: Some(place), len, owner: owner.cloned(), reason, remedy });
    }

    async fn mend(&self, place: &Place, bytes: &[u8]) -> Remedy {
        let geometry = &self.set.superblock.geometry;
        let grain = match place.file.rsplit_once('.') {
            _ if place.file == SUPERBLOCK_FILE => 2 * SUPERBLOCK_COPY_LEN as u64,
            Some((_, "log")) => geometry.log_slot_len,
            Some((_, "data")) => geometry.data_slot_len,
            Some((_, "table")) => geometry.table_slot_len,
            _ => 2 * ROOT_COPY_LEN as u64,
        };
        let disk = self.set.member(place.disk).expect("a fault was found on it");
        match mend(self.core, disk, &place.file, place.offset, bytes, grain).await {
            Ok(()) => Remedy::Mended,
            Err(defect) => Remedy::Failed(defect.to_string()),
        }
    }

    /// A fault of no one disk, which nothing here can mend.
    fn contradiction(&mut self, structure: Structure, shard: u16, owner: Option<&Owner>, reason: String) {
        self.lost(structure, shard, owner, reason, "no copy says otherwise");
    }

    /// Something that no copy has.
    fn lost(&mut self, structure: Structure, shard: u16, owner: Option<&Owner>, reason: String, why: &str) {
        self.tell(Fault {
            structure,
            shard: Some(shard),
            place: None,
            len: 0,
            owner: owner.cloned(),
            reason,
            remedy: Remedy::None(why.to_owned()),
        });
    }

    fn tell(&mut self, fault: Fault) {
        self.listener.fault(&fault);
        self.report.note(&fault);
    }

    /// Files that formatting made and that are not there any more are made again, empty: what belongs into them is found to be
    /// missing, and mended, afterwards.
    async fn missing_files(&mut self, shard: u16) {
        let set = self.set;
        for (index, disk) in (0..).map(DiskIndex).zip(&set.members) {
            let Some(disk) = disk.map(|disk| &set.disks[disk]) else { continue };
            for kind in ["root", "log", "data", "table"] {
                let file = shard_file(shard, kind);
                if disk.names.contains(&file) {
                    continue;
                }
                let remedy = match self.repair {
                    false => Remedy::Mendable,
                    true => match disk.create_file(&file).await {
                        Ok(()) => Remedy::Mended,
                        Err(defect) => Remedy::Failed(defect.to_string()),
                    },
                };
                let place = Some(self.place(index, file, 0));
                let (structure, reason) = (Structure::File, "it is not there".to_owned());
                self.tell(Fault {
                    structure,
                    shard: Some(shard),
                    place,
                    len: 0,
                    owner: None,
                    reason,
                    remedy,
                });
            }
        }
    }

    /// Looks at one shard but for the bytes that its index names.
    async fn shard(&mut self, id: u16) -> Option<CheckedShard> {
        self.missing_files(id).await;
        let files = ShardFiles::open(self.set, id);
        let (root, manifest) = self.anchors(&files).await?;
        let state = match ShardState::load(self.core, &files, &root, &manifest).await {
            Ok(state) => state,
            Err(defect) => {
                self.contradiction(Structure::Manifest, id, None, defect.to_string());
                return None;
            }
        };
        self.extents(&files, &root, &state);
        self.log(&files, &root, &state).await;
        let (runs, index_lost) = self.tables(&files, &state).await;
        Some(CheckedShard { files, state, runs, index_lost })
    }
}
