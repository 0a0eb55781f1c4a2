//! A new index for shards that have lost every copy of theirs, from what lies in log and data extents.
//!
//! The log has whole records, as far back as its extents have not been taken anew; directory chunks have names and
//! checksums of everything in stripes. Together they tell most of what the index knew, and the report says of every object how much. The
//! bytes stay where they are; new tables go to places that nothing names, and the root comes last, so that a
//! rebuild that was cut off leaves what was there. `docs/decisions/0012` has the reasons.

mod audit;
mod bodies;
mod history;
mod install;
mod names;
mod replay;
mod report;
mod set;
mod values;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::rc::Rc;

use basalt_reactor::Core;
use basalt_reactor::disk::BLOCK_LEN;

pub use self::report::{ETagSource, Entry, Fate, How, Line, NameSource, Summary, Why};

use self::audit::Named;
use self::bodies::DataSurvey;
use self::history::History;
use self::install::{NewSlots, WrittenManifest, write_manifest, write_root};
use self::replay::Replayed;
use self::set::{ShardFiles, StoppedSet};
use crate::body::directory::{Content, Origin};
use crate::body::{Bodies, BodyCore, BodyError, LeaseFuture, Lessor};
use crate::extent::{DiskIndex, ExtentClass, ExtentId, Placement};
use crate::format::manifest::{ExtentEntry, Manifest};
use crate::format::record::Record;
use crate::format::root::{LogPosition, Root};
use crate::index::key::{self, Family, Key};
use crate::index::{Index, IndexError, TableAllocator};
use crate::offline::OfflineError;
use crate::value::{self, Bucket};

/// Extent ids that are left out behind the highest one seen: those of lost tables are known to nobody.
const EXTENT_ID_MARGIN: u64 = 1 << 20;

/// By how much the sequence of a root rises when one was there that cannot be read.
const ROOT_SEQUENCE_MARGIN: u64 = 1 << 32;

#[derive(Clone, Copy, Debug)]
pub struct RebuildOptions {
    /// Rebuild also shards whose index opens.
    pub force: bool,
    /// Compute the ETags of objects without a record, which reads all their bytes.
    pub etags: bool,
}

/// Why there is no new index.
#[derive(Debug)]
pub enum RebuildError {
    /// The disks cannot be opened together.
    Open(OfflineError),
    /// A disk that counts for nothing.
    Stranger {
        path: PathBuf,
        reason: String,
    },
    /// More disks are missing than redundancy makes up for.
    Missing {
        disks: Vec<DiskIndex>,
    },
    /// Every shard's index opens, and nobody insisted.
    Valid,
    /// No room for the new tables.
    NoSpace {
        disk: DiskIndex,
    },
    /// A device refused.
    Device(String),
    Index(IndexError),
}

impl std::fmt::Display for RebuildError {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            RebuildError::Open(error) => error.fmt(out),
            RebuildError::Stranger { path, reason } => write!(out, "{}: {reason}; leave it out", path.display()),
            RebuildError::Missing { disks } => {
                let disks: Vec<String> = disks.iter().map(|disk| disk.0.to_string()).collect();
                write!(out, "disks {} are missing, which is more than redundancy makes up for", disks.join(", "))
            }
            RebuildError::Valid => out.write_str(
                "the index of every shard opens: a rebuild would know less than it does (--force does it all the same)",
            ),
            RebuildError::NoSpace { disk } => {
                write!(out, "disk {} has no room for the new index; make some outside of the deployment", disk.0)
            }
            RebuildError::Device(what) => out.write_str(what),
            RebuildError::Index(error) => write!(out, "index: {error}"),
        }
    }
}

impl std::error::Error for RebuildError {}

impl From<OfflineError> for RebuildError {
    fn from(error: OfflineError) -> RebuildError {
        RebuildError::Open(error)
    }
}

impl From<IndexError> for RebuildError {
    fn from(error: IndexError) -> RebuildError {
        RebuildError::Index(error)
    }
}

/// One shard being rebuilt.
struct Work<'a> {
    set: &'a StoppedSet,
    shard: ShardFiles,
    /// What is left of the old index.
    root: Option<Root>,
    manifest: Option<Manifest>,
    bodies: Rc<Bodies>,
    slots: Rc<NewSlots>,
    index: Index,
    history: History,
    survey: DataSurvey,
    /// Of data extents.
    placements: Rc<BTreeMap<ExtentId, Rc<Placement>>>,
    /// Blobs by the uuid of their body.
    blobs: BTreeMap<[u8; 16], usize>,
    replayed: Replayed,
    etags: bool,
    /// Keys whose values come from directories.
    how: BTreeMap<Vec<u8>, How>,
    /// Uploads that stay open: bucket, name, bytes.
    uploads: Vec<(u64, Vec<u8>, u64, How)>,
    /// Bodies that cannot be had, and why.
    refused: BTreeMap<usize, String>,
    named: Named,
}

/// Gives every shard of the deployment at `paths` an index again, if it has none. `report` hears of every object.
///
/// Memory: the checksums of all bodies in stripes (about 100 bytes per MiB), and some hundred bytes per body and per log batch.
///
/// # Errors
/// [`RebuildError`]. Shards whose root was written by then have their new index; for the others nothing has changed.
pub async fn rebuild(
    core: &Core,
    paths: &[PathBuf],
    options: &RebuildOptions,
    report: &mut dyn FnMut(&Line),
) -> Result<Summary, RebuildError> {
    let set = StoppedSet::open(core, paths).await?;
    let mut summary = Summary::default();
    let mut report = |line: &Line| {
        summary.count(line);
        report(line);
    };
    let body_core = BodyCore::new(core.clone(), &set.superblock.geometry);
    let mut works = Vec::new();
    let (mut buckets, mut used) = (BTreeMap::new(), BTreeSet::new());
    let mut untouched = 0;
    for id in 0..set.superblock.shard_count {
        let shard = set.shard(id).await?;
        let slots = NewSlots::new(&shard.files, set.present());
        let allocator: Rc<dyn TableAllocator> = Rc::clone(&slots) as Rc<dyn TableAllocator>;
        let standing = set.standing(&shard, Rc::clone(&allocator)).await;
        match standing.opened {
            Ok(index) if !options.force => {
                untouched += 1;
                let root = standing.root.expect("an index opens through its root");
                learn_buckets(&set, &shard, &index, &root, &mut buckets, &mut used).await?;
            }
            opened => {
                let why = opened.err().unwrap_or_else(|| "forced".to_owned());
                tracing::info!(shard = id, reason = why, "rebuilding the index");
                let index =
                    Index::new(core.clone(), Rc::clone(&shard.files), allocator, set.index_config(id));
                let left = (standing.root, standing.manifest);
                works.push(Work::open(&set, shard, left, &body_core, slots, index, options.etags).await?);
            }
        }
    }
    if works.is_empty() {
        return Err(RebuildError::Valid);
    }
    let gone: BTreeSet<u64> = works.iter().flat_map(|work| work.replayed.gone.iter().copied()).collect();
    for work in &mut works {
        work.decide(&gone).await?;
        let (shard, batches, gaps) = (work.shard.id, work.history.batches.len() as u64, work.history.gaps);
        report(&Line::Log { shard, batches, gaps });
        work.audit(&gone, &mut report).await?;
        used.append(&mut work.named.used);
        buckets.append(&mut work.named.buckets);
    }
    name_buckets(&set, &works, &buckets, &used, &mut report);
    let mut written = Vec::with_capacity(works.len());
    for work in &works {
        written.push(work.write_out().await?);
    }
    // Everything is durable that any root will name.
    for (work, written) in works.iter().zip(written) {
        work.install(written).await?;
    }
    summary.untouched = untouched;
    Ok(summary)
}

/// Takes the buckets from a shard whose index is fine, and those that its objects are in; its log may know more than its tables.
async fn learn_buckets(
    set: &StoppedSet,
    shard: &ShardFiles,
    index: &Index,
    root: &Root,
    buckets: &mut BTreeMap<u64, (String, NameSource)>,
    used: &mut BTreeSet<u64>,
) -> Result<(), RebuildError> {
    for family in [Family::Object, Family::Upload] {
        let mut bucket = 0;
        loop {
            let from = key::start_of_prefix(family, bucket, b"");
            let mut cursor = index.cursor(&from, Some(&[family as u8 + 1]));
            let Some((key, _)) = cursor.next().await? else { break };
            let (Ok(Key::Object { bucket: of, .. }) | Ok(Key::Upload { bucket: of, .. })) = Key::decode(key)
            else {
                break;
            };
            used.insert(of);
            let Some(next) = of.checked_add(1) else { break };
            bucket = next;
        }
    }
    let from = key::start_of_prefix(Family::Bucket, 0, b"");
    let mut cursor = index.cursor(&from, Some(&[Family::Bucket as u8 + 1]));
    while let Some((_, value)) = cursor.next().await? {
        if let Ok(bucket) = value::decode::<Bucket>(value) {
            buckets.insert(bucket.id, (bucket.name, NameSource::Current));
        }
    }
    let superblock = &set.superblock;
    let history =
        History::read(&set.core, &shard.files, &set.present(), superblock.deployment, shard.id).await;
    for at in history.batches.iter().filter(|at| at.sequence >= root.log.sequence) {
        let Some(batch) = history.batch(&set.core, &shard.files, at).await else { continue };
        for record in &batch.records {
            let Record::Put { key, value, .. } = record else { continue };
            match Key::decode(key) {
                Ok(Key::Object { bucket, .. } | Key::Upload { bucket, .. }) => {
                    used.insert(bucket);
                }
                Ok(Key::Bucket { .. }) => {
                    if let Ok(bucket) = value::decode::<Bucket>(value) {
                        buckets.insert(bucket.id, (bucket.name, NameSource::Current));
                    }
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// Makes a record for every bucket in use that has none.
fn name_buckets(
    set: &StoppedSet,
    works: &[Work<'_>],
    buckets: &BTreeMap<u64, (String, NameSource)>,
    used: &BTreeSet<u64>,
    report: &mut dyn FnMut(&Line),
) {
    for (&id, (name, source)) in buckets {
        report(&Line::Bucket { id, name: name.clone(), source: *source });
    }
    for &id in used.iter().filter(|id| !buckets.contains_key(id)) {
        // The record lies where its name belongs, and that must be a shard that is being rebuilt.
        let numbered = (2u32..).map(|number| format!("recovered-{id:016x}-{number}"));
        let (work, name) = std::iter::once(format!("recovered-{id:016x}"))
            .chain(numbered)
            .filter(|name| !buckets.values().any(|(taken, _)| taken == name))
            .find_map(|name| {
                let home = set.superblock.shard_of(0, name.as_bytes());
                works.iter().find(|work| work.shard.id == home).map(|work| (work, name))
            })
            .expect("names without end reach every shard");
        let created = set.core.wall().0;
        let bucket = Bucket {
            id,
            name: name.clone(),
            created,
            deleting: false,
            settings: Vec::new(),
            extensions: Vec::new(),
        };
        work.index.put(&key::bucket(name.as_bytes()), &value::encode(&bucket));
        report(&Line::Bucket { id, name, source: NameSource::Invented });
    }
}

impl<'a> Work<'a> {
    /// Reads what the shard's log and data extents say, and replays the log.
    async fn open(
        set: &'a StoppedSet,
        shard: ShardFiles,
        (root, manifest): (Option<Root>, Option<Manifest>),
        body_core: &Rc<BodyCore>,
        slots: Rc<NewSlots>,
        index: Index,
        etags: bool,
    ) -> Result<Work<'a>, RebuildError> {
        let superblock = &set.superblock;
        let (core, disks) = (&set.core, set.present());
        let history = History::read(core, &shard.files, &disks, superblock.deployment, shard.id).await;
        let origin = Origin { shard: shard.id, epoch: superblock.epoch, secret: superblock.hash_seed };
        let bodies = Bodies::new(Rc::clone(body_core), Rc::clone(&shard.files), Rc::new(NoLeases), origin);
        let mut work = Work {
            set,
            shard,
            root,
            manifest,
            bodies,
            slots,
            index,
            history,
            survey: DataSurvey::default(),
            placements: Rc::default(),
            blobs: BTreeMap::new(),
            replayed: Replayed::default(),
            etags,
            how: BTreeMap::new(),
            uploads: Vec::new(),
            refused: BTreeMap::new(),
            named: Named::default(),
        };
        let named = work.manifest.iter().flat_map(|manifest| &manifest.extents).map(|entry| &entry.placement);
        let opened = work.history.opened.iter().map(|(_, placement)| placement).chain(named);
        let opened = opened.filter(|placement| placement.class == ExtentClass::Data).cloned().collect();
        let alive = |id| work.alive(id);
        let survey = bodies::survey(core, &work.shard.files, &work.bodies, &disks, opened, &alive).await;
        work.survey = survey;
        work.placements = Rc::new(std::mem::take(&mut work.survey.placements));
        let blobs = work.survey.bodies.iter().enumerate().filter(|(_, body)| body.content == Content::Blob);
        work.blobs = blobs.map(|(index, body)| (body.owner.body, index)).collect();
        work.slots.set_next_id(work.extent_floor());
        work.replay().await?;
        // Records may have named extents that nothing else knows of; no table has been written under their ids, far below.
        work.slots.set_next_id(work.slots.next_id().max(work.extent_floor()));
        Ok(work)
    }

    /// Whether an extent can be live, as far as a manifest that can be read tells.
    fn alive(&self, id: ExtentId) -> bool {
        let (Some(root), Some(manifest)) = (&self.root, &self.manifest) else { return true };
        let opened = &self.history.opened;
        id.0 >= root.next_extent
            || manifest.extents.iter().any(|entry| entry.placement.id == id)
            || opened.iter().any(|(number, placement)| *number >= root.log.sequence && placement.id == id)
    }

    /// The lowest extent id that surely nobody has had.
    fn extent_floor(&self) -> u64 {
        let logs = self.history.uses.iter().map(|log| log.id.0).max().unwrap_or(0);
        let opened = self.history.opened.iter().map(|(_, placement)| placement.id.0).max().unwrap_or(0);
        let root = self.root.as_ref().map_or(0, |root| root.next_extent);
        let seen = logs.max(opened).max(root).max(self.survey.extent_max).max(self.replayed.extent_max);
        seen + EXTENT_ID_MARGIN
    }

    async fn flush_if_full(&self) -> Result<(), RebuildError> {
        if self.index.is_memtable_full() { self.flush().await } else { Ok(()) }
    }

    async fn flush(&self) -> Result<(), RebuildError> {
        self.index.rotate();
        let len = self.index.stats().memtable_len as u64;
        // Tables repeat keys in their directory and round up; twice the bytes and a few more slots is ample.
        let tables = 2 * len / self.shard.files.geometry().table_slot_len + 3;
        self.slots.reserve(u32::try_from(tables).unwrap_or(u32::MAX)).await?;
        Ok(self.index.flush().await?)
    }

    /// Brings tables and manifest to the disks.
    async fn write_out(&self) -> Result<WrittenManifest, RebuildError> {
        self.flush().await?;
        let column_blocks = self.shard.files.geometry().data_slot_len / BLOCK_LEN as u64;
        let mut extents = Vec::with_capacity(self.named.live.len());
        for (&id, &(live_len, _)) in &self.named.live {
            let log = self.replayed.logs.get(&id).map(|&of| &self.history.uses[of]);
            let entry = match (log, self.placements.get(&id)) {
                (Some(log), _) => ExtentEntry {
                    placement: Placement { id, class: ExtentClass::Log, columns: log.columns.clone() },
                    sealed: true,
                    live_len,
                    next_block: 0,
                    nonce: log.nonce,
                },
                (None, Some(placement)) => ExtentEntry {
                    placement: (**placement).clone(),
                    sealed: true,
                    live_len,
                    next_block: u32::try_from(column_blocks).unwrap_or(u32::MAX),
                    nonce: [0; 16],
                },
                (None, None) => unreachable!("the audit took out what lies nowhere"),
            };
            extents.push(entry);
        }
        let manifest = Manifest { extents, index: self.index.manifest().encode() };
        write_manifest(&self.set.core, &self.shard.files, &self.slots, &manifest).await
    }

    /// Puts the root behind what was written. It has no log extent: the next start begins one, with the number after the
    /// last that is known.
    async fn install(&self, written: WrittenManifest) -> Result<(), RebuildError> {
        let (sequence, previous) = self.history.end();
        let old = self.root.as_ref();
        let above = old.map_or(ROOT_SEQUENCE_MARGIN, |root| root.sequence + 1);
        let root = Root {
            deployment: self.set.superblock.deployment,
            shard: self.shard.id,
            sequence: above,
            epoch: self.set.superblock.epoch,
            manifest: written.placements,
            manifest_len: written.len,
            manifest_crc: written.crc,
            log: LogPosition { extent: ExtentId(0), offset: 0, sequence, previous },
            next_extent: self.slots.next_id(),
            clock_floor: self
                .history
                .clock_max()
                .max(self.named.clock)
                .max(old.map_or(0, |root| root.clock_floor)),
            rebuilds: Vec::new(),
        };
        write_root(&self.set.core, &self.shard, root).await
    }
}

/// Nobody writes a body here.
struct NoLeases;

impl Lessor for NoLeases {
    fn lease(&self, _blocks_min: u32, _blocks_max: u32) -> LeaseFuture {
        Box::pin(async { Err(BodyError::Closed) })
    }

    fn release(&self, _lease: u64) {}
}
