//! Log extents: every replica has every batch, and no batch is missing.
//!
//! A batch is written once its predecessor is durable everywhere. So one that a later batch or a root names as its predecessor is
//! on every replica, and where it is not, that is damage. The last one before a crash need not be: nobody was told of it, and the next
//! start either finishes it or forgets it.

use std::collections::{BTreeMap, BTreeSet};

use basalt_reactor::disk::BLOCK_LEN;

use super::{Checker, Cure, Phase, Progress, Structure};
use crate::extent::{Column, ExtentClass, ExtentId};
use crate::format::batch::BatchHeader;
use crate::format::log_header::LogHeader;
use crate::format::manifest::ExtentEntry;
use crate::format::root::Root;
use crate::log::LOG_HEADER_LEN;
use crate::offline::log_walk::{LogWalk, Step, read_header};
use crate::offline::media::Defect;
use crate::offline::shard::{ShardFiles, ShardState};

/// What one replica has.
struct Replica {
    column: Column,
    header: Result<LogHeader, Defect>,
    /// Headers that are whole, and what is wrong with the rest of their batches.
    batches: BTreeMap<u64, (BatchHeader, Option<Defect>)>,
    unreadable: Vec<(std::ops::Range<u64>, Defect)>,
}

impl Replica {
    /// What is wrong with the batch at `offset`, if anything is.
    fn defect(&self, offset: u64, right: &BatchHeader) -> Option<Defect> {
        let end = offset + right.disk_len() as u64;
        let unreadable = self.unreadable.iter().find(|(range, _)| range.start < end && range.end > offset);
        match self.batches.get(&offset) {
            Some((header, None)) if header == right => None,
            Some((header, Some(defect))) if header == right => Some(defect.clone()),
            Some(_) => Some(Defect::Contradiction("another batch than on other disks".to_owned())),
            None => Some(match unreadable {
                Some((_, defect)) => defect.clone(),
                None => Defect::Contradiction("no whole header where other disks have a batch".to_owned()),
            }),
        }
    }
}

impl Checker<'_> {
    pub(super) async fn log(&mut self, files: &ShardFiles, root: &Root, state: &ShardState) {
        if let Some(error) = &state.replayed.error {
            let why = "the log ends for good where a start refuses it";
            self.lost(Structure::LogBatch, files.shard, None, error.clone(), why);
        }
        let entries = state.extents_of(ExtentClass::Log).collect::<Vec<_>>();
        let slot_len = files.geometry.log_slot_len;
        let total = entries.iter().map(|entry| entry.placement.columns.len() as u64 * slot_len).sum();
        let mut done = 0;
        let mut extents = Vec::new();
        for entry in entries {
            let mut replicas = Vec::new();
            for &column in &entry.placement.columns {
                replicas.extend(self.replica(files, entry, column).await);
                done += slot_len;
                let progress = Progress { shard: files.shard, phase: Phase::Log, done, total };
                self.listener.progress(progress);
            }
            extents.push((entry, replicas));
        }
        // Hashes that something later names.
        let mut proven = BTreeSet::from([root.log.previous]);
        for (_, replicas) in &extents {
            let whole = replicas.iter().flat_map(|replica| replica.batches.values());
            proven.extend(whole.map(|(header, _)| header.previous));
        }
        for (entry, replicas) in &extents {
            self.headers(files, entry, replicas).await;
            self.batches(files, entry, replicas, &proven).await;
        }
    }

    async fn replica(&mut self, files: &ShardFiles, entry: &ExtentEntry, column: Column) -> Option<Replica> {
        let header = read_header(self.core, files, column).await?;
        let mut replica = Replica { column, header, batches: BTreeMap::new(), unreadable: Vec::new() };
        match LogWalk::new(self.core, files, column, entry.placement.id, entry.nonce)? {
            Err(defect) => replica.unreadable.push((0..files.geometry.log_slot_len, defect)),
            Ok(mut walk) => {
                while let Some(step) = walk.next().await {
                    match step {
                        Step::Batch { offset, header, records } => {
                            replica.batches.insert(offset, (header, records.err()));
                        }
                        Step::Unreadable { offset, len, defect } => {
                            replica.unreadable.push((offset..offset + len, defect));
                        }
                    }
                }
                self.report.read_len += files.geometry.log_slot_len;
            }
        }
        Some(replica)
    }

    async fn headers(&mut self, files: &ShardFiles, entry: &ExtentEntry, replicas: &[Replica]) {
        let is_right = |header: &LogHeader| {
            header.extent == entry.placement.id
                && header.nonce == entry.nonce
                && header.shard == files.shard
                && header.deployment == self.set.superblock.deployment
        };
        let right = replicas
            .iter()
            .filter_map(|replica| replica.header.as_ref().ok())
            .find(|header| is_right(header))
            .cloned();
        for replica in replicas {
            let defect = match &replica.header {
                Ok(header) if is_right(header) => continue,
                Ok(header) => Defect::Contradiction(format!("it is that of extent {}", header.extent.0)),
                Err(defect) => defect.clone(),
            };
            let place = self.place_in(files, ExtentClass::Log, replica.column, 0);
            let cure = match &right {
                Some(right) => Cure::Bytes(right.encode()),
                None => Cure::None("no replica has it"),
            };
            self.damaged(Structure::LogHeader, Some(files.shard), place, &defect, None, cure).await;
        }
    }

    async fn batches(
        &mut self,
        files: &ShardFiles,
        entry: &ExtentEntry,
        replicas: &[Replica],
        proven: &BTreeSet<[u8; 16]>,
    ) {
        let id = entry.placement.id;
        // By offset: the batch, and a replica that has it whole.
        let mut right: BTreeMap<u64, (BatchHeader, Option<Column>)> = BTreeMap::new();
        for replica in replicas {
            for (&offset, (header, defect)) in &replica.batches {
                let whole = defect.is_none().then_some(replica.column);
                let known = right.entry(offset).or_insert_with(|| (header.clone(), whole));
                if known.1.is_none() && whole.is_some() {
                    *known = (header.clone(), whole);
                }
            }
        }
        let last_whole =
            right.iter().filter(|(_, (_, whole))| whole.is_some()).map(|(&offset, _)| offset).next_back();
        let mut expected = u64::from(LOG_HEADER_LEN);
        let mut before: Option<BatchHeader> = None;
        for (&offset, (header, source)) in &right {
            self.succession(files, id, before.as_ref(), expected, offset, header);
            (before, expected) = (Some(header.clone()), offset + header.disk_len() as u64);
            let acknowledged =
                proven.contains(&header.hash()) || last_whole.is_some_and(|last| last > offset);
            let mut unfinished = false;
            for replica in replicas {
                let Some(defect) = replica.defect(offset, header) else { continue };
                if !acknowledged {
                    unfinished = true;
                    continue;
                }
                let cure = match source {
                    Some(source) => match self.batch_bytes(files, *source, offset, header.disk_len()).await {
                        Ok(bytes) => Cure::Bytes(bytes),
                        Err(_) => Cure::None("the replica that had it cannot be read any more"),
                    },
                    None => Cure::None("no replica has it whole; objects in it are checked one by one"),
                };
                let place = self.place_in(files, ExtentClass::Log, replica.column, offset);
                self.damaged(Structure::LogBatch, Some(files.shard), place, &defect, None, cure).await;
            }
            if unfinished {
                self.report.notes.push(format!(
                    "shard {}: batch {} at {offset} of log extent {} is not on every replica; nothing proves that it was \
                     acknowledged",
                    files.shard, header.sequence, id.0
                ));
            }
        }
    }

    /// Batches of an extent follow one another without a gap.
    fn succession(
        &mut self,
        files: &ShardFiles,
        id: ExtentId,
        before: Option<&BatchHeader>,
        expected: u64,
        offset: u64,
        header: &BatchHeader,
    ) {
        let follows = before
            .is_none_or(|before| header.sequence == before.sequence + 1 && header.previous == before.hash());
        if offset == expected && follows {
            return;
        }
        let reason = if offset > expected {
            let blocks = (offset - expected) / BLOCK_LEN as u64;
            format!(
                "batches before {} are on no replica: {blocks} blocks at {expected} of log extent {}",
                header.sequence, id.0
            )
        } else {
            format!(
                "batch {} at {offset} of log extent {} does not follow the one before it",
                header.sequence, id.0
            )
        };
        self.lost(
            Structure::LogBatch,
            files.shard,
            None,
            reason,
            "objects that lay there are named one by one",
        );
    }

    async fn batch_bytes(
        &self,
        files: &ShardFiles,
        column: Column,
        offset: u64,
        len: usize,
    ) -> Result<Vec<u8>, Defect> {
        let bytes = files.read(self.core, ExtentClass::Log, column, offset, len).await;
        bytes.expect("a replica that was read is at hand")
    }
}
