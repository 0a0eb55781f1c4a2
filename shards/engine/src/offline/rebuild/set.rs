//! The disks of a stopped deployment, owned, and the files of its shards.
//!
//! Nothing is formatted and no epoch begins here. A disk that is not given is absent: with at most m of them gone, the others say everything.

use std::io;
use std::path::PathBuf;
use std::rc::Rc;

use basalt_reactor::{Core, CoreId, Disk, File};

use super::RebuildError;
use crate::deployment::shard_file;
use crate::error::EngineError;
use crate::extent::flushes::{CoreFlushes, Flushes};
use crate::extent::members::{MemberState, Members};
use crate::extent::reads::DiskReads;
use crate::extent::{ArenaFiles, DiskFiles, DiskIndex};
use crate::format::manifest::Manifest;
use crate::format::root::{ROOT_COPY_LEN, Root};
use crate::format::superblock::Superblock;
use crate::index::{Index, IndexConfig, IndexManifest, TableAllocator};
use crate::offline::{Access, OfflineDisk, OfflineSet};
use crate::shard::recovery::{ShardContext, newest_root, read_manifest};

/// The disks, by member; held until dropped.
pub(super) struct StoppedSet {
    pub(super) core: Core,
    pub(super) superblock: Superblock,
    disks: Vec<Option<Disk>>,
    flushes: Rc<CoreFlushes>,
    reads: Rc<DiskReads>,
    /// With the locks.
    _held: OfflineSet,
}

/// One shard's files.
pub(super) struct ShardFiles {
    pub(super) id: u16,
    pub(super) files: Rc<ArenaFiles>,
    pub(super) roots: Vec<Option<File>>,
}

/// What is left of a shard's index.
pub(super) struct Standing {
    /// Whether all of it can be opened; otherwise why not.
    pub(super) opened: Result<Index, String>,
    pub(super) root: Option<Root>,
    pub(super) manifest: Option<Manifest>,
}

impl StoppedSet {
    pub(super) async fn open(core: &Core, paths: &[PathBuf]) -> Result<StoppedSet, RebuildError> {
        let mut disks = Vec::with_capacity(paths.len());
        for path in paths {
            disks.push(OfflineDisk::open(core, path, Access::Repair).await?);
        }
        let held = OfflineSet::assemble(disks)?;
        if let Some((stranger, reason)) = held.strangers.first() {
            let path = held.disks[*stranger].path.clone();
            return Err(RebuildError::Stranger { path, reason: reason.clone() });
        }
        let missing: Vec<DiskIndex> = held.missing().collect();
        let state = |member: &Option<usize>| match member {
            Some(_) => MemberState::InSync,
            None => MemberState::Out,
        };
        let states: Vec<_> = held.members.iter().map(state).collect();
        if !held.superblock.groups().are_enough(&states) {
            return Err(RebuildError::Missing { disks: missing });
        }
        let members = (0..held.members.len()).map(|index| DiskIndex(index as u8));
        let disks: Vec<Option<Disk>> =
            members.map(|index| held.member(index).map(|member| member.disk.clone())).collect();
        let flushes = CoreFlushes::new(Flushes::new(disks.len(), 1), CoreId(0));
        let (superblock, core) = (held.superblock.clone(), core.clone());
        let reads = DiskReads::new(&superblock.geometry, Rc::new(superblock.groups()));
        Ok(StoppedSet { core, superblock, disks, flushes, reads, _held: held })
    }

    /// Opens a shard's files, making durable what a killed process may have left in the drives' caches: what is read from
    /// here on, a power cut does not take back.
    pub(super) async fn shard(&self, id: u16) -> Result<ShardFiles, RebuildError> {
        let at = |name: &str, error: &io::Error| RebuildError::Device(format!("{name}: {error}"));
        let mut files = Vec::with_capacity(self.disks.len());
        let mut roots = Vec::with_capacity(self.disks.len());
        for (index, disk) in (0..).map(DiskIndex).zip(&self.disks) {
            let Some(disk) = disk else {
                files.push(None);
                roots.push(None);
                continue;
            };
            let mut opened = Vec::with_capacity(4);
            for kind in ["log", "data", "table", "root"] {
                let name = shard_file(id, kind);
                let fail = |error: io::Error| at(&name, &error);
                let file = match disk.open_file(&name) {
                    Ok(file) => file,
                    // It says nothing, but its successor needs a place.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        let file = disk.create_file(&name).map_err(fail)?;
                        disk.sync().await.map_err(fail)?;
                        file
                    }
                    Err(error) => return Err(fail(error)),
                };
                if kind == "root" && file.len().map_err(fail)? < 2 * ROOT_COPY_LEN as u64 {
                    file.grow(2 * ROOT_COPY_LEN as u64).await.map_err(fail)?;
                }
                let mark = self.flushes.mark(index);
                let settled = async {
                    self.flushes.begin(index).end(file.sync().await)?;
                    self.flushes.check(index, mark)
                };
                settled.await.map_err(fail)?;
                opened.push(file);
            }
            let [log, data, table, root] = <[File; 4]>::try_from(opened).ok().expect("four were opened");
            roots.push(Some(root.clone()));
            files.push(Some(DiskFiles { disk: disk.clone(), root, log, data, table }));
        }
        let (flushes, reads) = (Rc::clone(&self.flushes), Rc::clone(&self.reads));
        let state = |files: &Option<DiskFiles>| match files {
            Some(_) => MemberState::InSync,
            None => MemberState::Out,
        };
        let states = files.iter().map(state).collect();
        let members = Members::new(self.superblock.epoch, states, self.superblock.groups());
        let (geometry, home) = (self.superblock.geometry, self.superblock.home_of(id));
        let files = ArenaFiles::of_members(geometry, files, (members, home), flushes, reads);
        Ok(ShardFiles { id, files, roots })
    }

    /// Looks how much of a shard's index can be opened, as a server would.
    pub(super) async fn standing(&self, shard: &ShardFiles, allocator: Rc<dyn TableAllocator>) -> Standing {
        let context = ShardContext {
            core: self.core.clone(),
            id: shard.id,
            deployment: self.superblock.deployment,
            epoch: self.superblock.epoch,
            homes: self.superblock.homes.clone(),
            files: Rc::clone(&shard.files),
            buckets: Rc::default(),
            memory: self.core.arena().usage().capacity,
            read_only: true,
        };
        let lost =
            |error: EngineError, root, manifest| Standing { opened: Err(error.to_string()), root, manifest };
        let root = match newest_root(&context).await {
            Ok(root) => root,
            Err(error) => return lost(error, None, None),
        };
        let manifest = match read_manifest(&context, &root).await {
            Ok(manifest) => manifest,
            Err(error) => return lost(error, Some(root), None),
        };
        let opened = match IndexManifest::decode(&manifest.index) {
            Ok(tables) => {
                let config = self.index_config(shard.id);
                let files = Rc::clone(&shard.files);
                let index = Index::open(self.core.clone(), files, allocator, config, &tables).await;
                index.map_err(|error| error.to_string())
            }
            Err(error) => Err(error.to_string()),
        };
        Standing { opened, root: Some(root), manifest: Some(manifest) }
    }

    pub(super) fn index_config(&self, shard: u16) -> IndexConfig {
        IndexConfig {
            shard: u32::from(shard),
            epoch: self.superblock.epoch,
            memtable_len_max: (self.core.arena().usage().capacity / 4).clamp(1 << 20, 16 << 20),
            cache_len: 1 << 20,
            report: Rc::new(move |damage| tracing::debug!(shard, ?damage, "damaged index block read around")),
            ..IndexConfig::default()
        }
    }

    /// Members that are there.
    pub(super) fn present(&self) -> Vec<DiskIndex> {
        let present = (0..).map(DiskIndex).zip(&self.disks);
        present.filter_map(|(index, disk)| disk.as_ref().map(|_| index)).collect()
    }
}
