//! The engine as one core sees it: every key of the deployment, wherever its shard runs.
//!
//! Each core has one [`Engine`]. It runs the shards that fall to this core and asks the others over the mesh. Names,
//! allocations, the log and syncs are the owning shard's; the bytes of large bodies are written and read by
//! the core that has the connection.

mod body;
mod buckets;
mod damage;
mod files;
mod lessor;
mod membership;
pub mod objects;
mod reading;
mod superblocks;
mod uploads;
mod write;

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use basalt_reactor::disk::DiskLock;
use basalt_reactor::mesh::{Incoming, Port};
use basalt_reactor::{Core, CoreId};

pub use self::body::{BodyReader, ObjectReader};
use self::damage::{Reports, note_damage};
use self::files::{open_disks, open_files};
use self::lessor::MeshLessor;
use self::membership::Membership;
pub use self::membership::{
    Absence, DiskFigures, DiskOrder, DiskReport, DiskStatus, OrderError, RebuildStatus,
};
pub use self::write::{BodyWriter, WrittenBody};
use crate::body::budget::{BudgetUse, Permit};
use crate::body::directory::Origin;
use crate::body::{Bodies, BodyCore, Damage, OnDamage};
use crate::buckets::Buckets;
use crate::deployment::Deployment;
use crate::error::EngineError;
use crate::extent::flushes::CoreFlushes;
use crate::extent::members::{MemberState, Members, Unfit};
use crate::extent::reads::{DiskReads, ReadCounts};
use crate::extent::{ArenaFiles, DiskIndex};
use crate::request::{Ask, Reply, Request};
use crate::shard::collect::Collector;
use crate::shard::recovery::{Recovered, ShardContext};
use crate::shard::{Shard, ShardStats};
use crate::wait::{Event, KeyLocks};

/// What one core needs to move bodies of one shard, whoever owns it.
struct ShardAccess {
    owner: CoreId,
    bodies: Rc<Bodies>,
    /// Hears of damage that readers on this core meet.
    on_damage: OnDamage,
}

/// One core's view of the deployment. Cloning shares it.
#[derive(Clone)]
pub struct Engine {
    inner: Rc<Inner>,
}

struct Inner {
    core: Core,
    deployment: Arc<Deployment>,
    core_count: u16,
    port: Port<Request, Reply>,
    /// Shards, of whichever core, that cannot be read in a deployment that is opened for reading alone, and why.
    unserved: RefCell<BTreeMap<u16, EngineError>>,
    /// The shards this core runs.
    shards: RefCell<BTreeMap<u16, Rc<Shard>>>,
    /// By shard, once all of this core's are open.
    access: OnceCell<Vec<ShardAccess>>,
    /// The files of every shard, as this core opened them.
    files: RefCell<Vec<Rc<ArenaFiles>>>,
    members: Rc<Members>,
    /// What makes epochs; on the first core.
    membership: Option<Membership>,
    /// Disks that are being asked for a flush.
    probing: RefCell<BTreeSet<DiskIndex>>,
    /// Locks of disks that are members: the file system of one that is out can be unmounted.
    locks: RefCell<BTreeMap<DiskIndex, DiskLock>>,
    body_core: Rc<BodyCore>,
    reads: Rc<DiskReads>,
    buckets: Rc<Buckets>,
    /// One lock per bucket name, taken on the core of its home shard.
    bucket_locks: Rc<KeyLocks>,
    /// Whether every core has been told of the buckets of this core's shards.
    buckets_told: Cell<bool>,
    /// This core will never tell: its shards do not open.
    refused: Cell<bool>,
    told: Event,
    recovered: OnceCell<Vec<(u16, Recovered)>>,
    damage: Rc<RefCell<Vec<Damage>>>,
    /// Blocks whose checksum did not match.
    corrupt: Rc<Cell<u64>>,
}

/// What an operator decides of how the set behaves, the same on every core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// After how long a spare disk takes the place of one that is out.
    pub spare_after: Duration,
    /// Disks that must be in sync for writes to be taken, where that is more than it takes to read everything.
    pub write_quorum: Option<u8>,
}

impl Default for EngineOptions {
    fn default() -> EngineOptions {
        EngineOptions { spare_after: Duration::from_secs(60), write_quorum: None }
    }
}

/// What this core's readers of bodies have met since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockCounts {
    /// Blocks whose checksum did not match, each time one was read.
    pub corrupt: u64,
    /// Blocks that were served from redundancy, whatever was wrong with them.
    pub restored: u64,
}

impl Engine {
    /// Opens this core's shards and starts answering the mesh. Every core of the deployment calls it; it returns once all
    /// of this core's shards serve and all buckets are known here.
    ///
    /// # Errors
    /// [`EngineError::Damaged`] with the evidence.
    pub async fn start(
        core: &Core,
        deployment: Arc<Deployment>,
        core_count: u16,
        port: Port<Request, Reply>,
    ) -> Result<Engine, EngineError> {
        Engine::start_with(core, deployment, core_count, port, EngineOptions::default()).await
    }

    /// As [`Engine::start`], where an operator has decided otherwise than the defaults.
    ///
    /// # Errors
    /// As [`Engine::start`].
    pub async fn start_with(
        core: &Core,
        deployment: Arc<Deployment>,
        core_count: u16,
        port: Port<Request, Reply>,
        options: EngineOptions,
    ) -> Result<Engine, EngineError> {
        let superblock = &deployment.superblock;
        let members = Members::new(superblock.epoch, deployment.states(), superblock.groups());
        members.set_excluder(membership::excluder(&port));
        if deployment.read_only {
            members.set_read_only();
        }
        members.set_write_quorum(options.write_quorum.map_or(0, usize::from));
        let inner = Rc::new(Inner {
            core: core.clone(),
            core_count,
            port,
            unserved: RefCell::default(),
            shards: RefCell::default(),
            access: OnceCell::new(),
            files: RefCell::default(),
            membership: (core.id() == CoreId(0)).then(|| Membership::new(core, &deployment, options)),
            members: Rc::clone(&members),
            probing: RefCell::default(),
            locks: RefCell::default(),
            body_core: BodyCore::new(core.clone(), &superblock.geometry),
            reads: DiskReads::new(&superblock.geometry, members.groups()),
            buckets: Rc::new(Buckets::default()),
            bucket_locks: Rc::default(),
            buckets_told: Cell::new(false),
            refused: Cell::new(false),
            told: Event::default(),
            recovered: OnceCell::new(),
            damage: Rc::default(),
            corrupt: Rc::default(),
            deployment,
        });
        let engine = Engine { inner };
        // Before the shards open: a disk may have to be taken out under them.
        core.spawn(engine.clone().pump());
        if let Err(error) = engine.serve_all().await {
            // Cores that wait for this one hear that it is gone, and those that ask later do too.
            engine.inner.refused.set(true);
            engine.inner.told.notify();
            return Err(error);
        }
        if !engine.is_read_only() {
            engine.rebuild_disks_behind();
        }
        if engine.inner.membership.is_some() {
            core.spawn(engine.clone().watch_members());
        }
        Ok(engine)
    }

    /// Opens this core's shards, and waits until those of the others serve too.
    async fn serve_all(&self) -> Result<(), EngineError> {
        self.open_shards().await?;
        self.tell_unserved().await?;
        self.share_buckets().await?;
        self.inner.buckets_told.set(true);
        self.inner.told.notify();
        self.await_buckets().await
    }

    /// Opens this core's shards, and the files of all.
    async fn open_shards(&self) -> Result<(), EngineError> {
        let Inner { core, deployment, core_count, port, members, reads, .. } = &*self.inner;
        let superblock = &deployment.superblock;
        let disks = open_disks(core, deployment)?;
        let flushes = CoreFlushes::new(deployment.flushes(*core_count), core.id());
        let reports = Reports::new(core.clone(), port.clone());
        let collection_core = self.inner.body_core.for_collection(&superblock.geometry);
        let mut access = Vec::new();
        let mut recovered = Vec::new();
        let owned = (0..superblock.shard_count).filter(|&id| owner_of(id, *core_count) == core.id()).count();
        for id in 0..superblock.shard_count {
            let owner = owner_of(id, *core_count);
            let files = open_files(deployment, &disks, id, members, &flushes, reads)?;
            self.inner.files.borrow_mut().push(Rc::clone(&files));
            if owner == core.id() {
                let context = ShardContext {
                    core: core.clone(),
                    id,
                    deployment: superblock.deployment,
                    epoch: superblock.epoch,
                    homes: superblock.homes.clone(),
                    files: Rc::clone(&files),
                    buckets: Rc::clone(&self.inner.buckets),
                    // The arena is the other half of a core's memory.
                    memory: core.arena().usage().capacity / owned,
                    read_only: deployment.read_only,
                };
                let opened = if deployment.read_only {
                    Shard::open_for_reading(context).await
                } else {
                    Shard::open(context).await
                };
                match opened {
                    Ok((shard, found)) => {
                        self.inner.shards.borrow_mut().insert(id, shard);
                        recovered.push((id, found));
                    }
                    // The others can be read nevertheless.
                    Err(error) if deployment.read_only => self.note_unserved(id, &files, &error),
                    Err(error) => return Err(error),
                }
            }
            let lessor = Rc::new(MeshLessor { core: core.clone(), port: port.clone(), owner, shard: id });
            let origin = Origin { shard: id, epoch: superblock.epoch, secret: superblock.hash_seed };
            let bodies = Bodies::new(Rc::clone(&self.inner.body_core), files, lessor, origin);
            let own = self.own_shard(id);
            // Whatever works in the background writes.
            let at_work = own.as_ref().filter(|_| !deployment.read_only);
            if let Some(own) = at_work {
                core.spawn(Rc::clone(own).run_repairs(Rc::clone(&bodies)));
                let tell = membership::tell_rebuilt(port, id);
                core.spawn(Rc::clone(own).run_rebuilds(Rc::clone(&bodies), tell));
            }
            let note = note_damage(core, &self.inner.damage, &self.inner.corrupt);
            let on_damage = reports.clone().for_shard(id, owner, own.clone(), Rc::clone(members), note);
            if let Some(own) = at_work {
                let collector = Collector::new(own, &collection_core, origin, Rc::clone(&on_damage));
                core.spawn(collector.run());
            }
            access.push(ShardAccess { owner, bodies, on_damage });
        }
        let first = self.inner.access.set(access).is_ok() && self.inner.recovered.set(recovered).is_ok();
        debug_assert!(first, "shards are opened once");
        Ok(())
    }

    /// Answers the mesh, each request in a task of its own.
    async fn pump(self) {
        loop {
            let Incoming { request, reply, .. } = self.inner.port.next().await;
            if self.inner.refused.get() {
                // Dropped unanswered: this core did not start.
                continue;
            }
            match request {
                Request::Shard { shard, ask } => {
                    // Dropped unanswered when the shard is not here: a caller with another map, which is a bug there.
                    let Some(shard) = self.own_shard(shard) else {
                        if let Err(error) = self.check_served(shard) {
                            reply.send(Reply::Refused(error));
                        }
                        continue;
                    };
                    if !ask.is_write() {
                        self.inner.core.spawn(async move { reply.send(shard.serve(ask).await) });
                        continue;
                    }
                    let engine = self.clone();
                    self.inner.core.spawn(async move {
                        reply.send(engine.serve_write(shard, ask).await.unwrap_or_else(Reply::Refused));
                    });
                }
                Request::ChangeBucket(change) => {
                    let engine = self.clone();
                    self.inner.core.spawn(async move { reply.send(engine.change_bucket(change).await) });
                }
                Request::AwaitBuckets => {
                    let inner = Rc::clone(&self.inner);
                    self.inner.core.spawn(async move {
                        let told = || inner.buckets_told.get();
                        inner.told.wait_until(|| told() || inner.refused.get()).await;
                        if told() {
                            reply.send(Reply::Done(Ok(())));
                        }
                    });
                }
                Request::BucketChanged(bucket) => {
                    self.inner.buckets.insert(bucket);
                    reply.send(Reply::Done(Ok(())));
                }
                Request::ShardUnserved { shard, error } => {
                    self.inner.unserved.borrow_mut().insert(shard, error);
                    reply.send(Reply::Done(Ok(())));
                }
                Request::BucketGone(id) => {
                    self.inner.buckets.remove(id);
                    for shard in self.inner.shards.borrow().values() {
                        shard.unfence(id);
                    }
                    reply.send(Reply::Done(Ok(())));
                }
                Request::Exclude { disk, unfit } => {
                    let engine = self.clone();
                    self.inner.core.spawn(async move {
                        let out = match unfit {
                            Unfit::Failed(reason) => engine.exclude(disk, &reason).await,
                            Unfit::Full => engine.exclude_full(disk).await,
                        };
                        reply.send(Reply::Excluded(out));
                    });
                }
                Request::Failing { disks, shards_fail } => {
                    self.inner.members.set_failing(disks, shards_fail);
                    reply.send(Reply::Done(Ok(())));
                }
                Request::ProbeDisk(disk) => {
                    let engine = self.clone();
                    self.inner.core.spawn(async move {
                        let answers = engine.probe(disk).await;
                        reply.send(Reply::Done(if answers {
                            Ok(())
                        } else {
                            Err(EngineError::MembersChanged)
                        }));
                    });
                }
                Request::DiskFigures => {
                    let (figures, shards_fail) = (self.disk_figures(), !self.are_shards_healthy());
                    reply.send(Reply::DiskFigures { figures, shards_fail });
                }
                Request::DiskReport => {
                    let engine = self.clone();
                    self.inner.core.spawn(async move {
                        reply.send(Reply::DiskReport(engine.report_disks().await.map(Box::new)));
                    });
                }
                Request::DiskOrder(order) => {
                    let engine = self.clone();
                    self.inner.core.spawn(async move {
                        reply.send(Reply::DiskOrdered(engine.carry_out_order(order).await));
                    });
                }
                Request::MembersChanged { epoch, states, groups } => {
                    self.install_members(epoch, &states, groups);
                    reply.send(Reply::Done(Ok(())));
                }
                Request::OpenDisk { disk, path } => {
                    let engine = self.clone();
                    self.inner.core.spawn(async move {
                        reply.send(Reply::Done(engine.open_disk(disk, &path).await));
                    });
                }
                Request::AddSet { paths } => {
                    let engine = self.clone();
                    self.inner.core.spawn(async move {
                        reply.send(Reply::Done(engine.grow(&paths).await));
                    });
                }
                Request::Rebuild { disk, joined } => {
                    for shard in self.inner.shards.borrow().values() {
                        shard.begin_rebuild(disk, joined);
                    }
                    reply.send(Reply::Done(Ok(())));
                }
                Request::Rebuilt { shard, disk, joined } => {
                    let engine = self.clone();
                    self.inner.core.spawn(async move {
                        engine.note_rebuilt(shard, disk, joined).await;
                        reply.send(Reply::Done(Ok(())));
                    });
                }
            }
        }
    }

    #[must_use]
    pub fn deployment(&self) -> &Deployment {
        &self.inner.deployment
    }

    #[must_use]
    pub fn core(&self) -> &Core {
        &self.inner.core
    }

    /// The buckets of the deployment.
    #[must_use]
    pub fn buckets(&self) -> &Buckets {
        &self.inner.buckets
    }

    /// What recovery found in each shard of this core.
    #[must_use]
    pub fn recovered(&self) -> &[(u16, Recovered)] {
        self.inner.recovered.get().map_or(&[], Vec::as_slice)
    }

    /// Reserves `len` bytes of memory for a request that is not about one body; they are given back when the result is
    /// dropped.
    ///
    /// # Errors
    /// [`EngineError::Busy`] when they cannot be had in time.
    pub async fn admit(&self, len: usize) -> Result<Permit, EngineError> {
        let admitted = self.inner.body_core.budget().admit(&self.inner.core, len).await;
        admitted.ok_or(EngineError::Busy)
    }

    /// What has been reserved of this core's memory, and who waits for it.
    #[must_use]
    pub fn memory(&self) -> BudgetUse {
        self.inner.body_core.budget().usage()
    }

    /// Gauges of the shards this core runs.
    #[must_use]
    pub fn stats(&self) -> Vec<(u16, ShardStats)> {
        self.inner.shards.borrow().iter().map(|(&id, shard)| (id, shard.stats())).collect()
    }

    /// How many more disks may fail before data is lost; `None` when not every shard takes writes.
    #[must_use]
    pub fn failures_tolerated(&self) -> Option<u8> {
        let spare = self.inner.members.tolerated()?;
        (self.are_shards_healthy() && !self.is_read_only())
            .then_some(u8::try_from(spare).expect("a group has at most 240 disks"))
    }

    fn are_shards_healthy(&self) -> bool {
        self.inner.shards.borrow().values().all(|shard| shard.check_healthy().is_ok())
    }

    /// The state of every member, as this core knows it.
    #[must_use]
    pub fn members(&self) -> Vec<MemberState> {
        self.inner.members.states()
    }

    /// What late disks have cost this core's reads so far.
    #[must_use]
    pub fn read_counts(&self) -> ReadCounts {
        self.inner.reads.counts()
    }

    /// Blocks this core's readers had to read around since the last call.
    #[must_use]
    pub fn take_damage(&self) -> Vec<Damage> {
        self.inner.damage.take()
    }

    /// Blocks found damaged by this core's readers, and blocks they restored.
    #[must_use]
    pub fn block_counts(&self) -> BlockCounts {
        BlockCounts { corrupt: self.inner.corrupt.get(), restored: self.inner.body_core.restored() }
    }

    /// Requests of other cores that wait for this one to take them.
    #[must_use]
    pub fn backlog(&self) -> usize {
        self.inner.port.backlog()
    }

    /// Verifies everything at rest in this core's shards, over and over, each time within `deadline`; on the first core the
    /// superblocks too. To be called once.
    pub fn start_scrub(&self, deadline: Duration) {
        if self.is_read_only() {
            return;
        }
        if self.inner.membership.is_some() {
            self.inner.core.spawn(self.clone().scrub_superblocks(deadline));
        }
        for (&id, shard) in self.inner.shards.borrow().iter() {
            let bodies = Rc::clone(&self.access(id).bodies);
            self.inner.core.spawn(Rc::clone(shard).run_scrub(bodies, deadline));
        }
    }

    /// Brings every shard of the deployment under a new root: a shorter recovery, and dead space free.
    ///
    /// # Errors
    /// [`EngineError`] of the first shard that could not.
    pub async fn checkpoint(&self) -> Result<(), EngineError> {
        for shard in 0..self.shard_count() {
            match self.ask(shard, Ask::Checkpoint).await? {
                Reply::Done(result) => result?,
                _ => return Err(EngineError::Closed),
            }
        }
        Ok(())
    }

    /// Empties one extent in every shard of the deployment, as when space is short; `false` when none is worth it.
    ///
    /// # Errors
    /// [`EngineError`] of the first shard that could not.
    pub async fn collect(&self) -> Result<bool, EngineError> {
        let mut gained = false;
        for shard in 0..self.shard_count() {
            match self.ask(shard, Ask::Collect).await? {
                Reply::Collected(result) => gained |= result?,
                _ => return Err(EngineError::Closed),
            }
        }
        Ok(gained)
    }

    /// As [`Engine::checkpoint`], for the shards of this core alone. The last thing before a clean stop: the next start then
    /// has nothing to replay.
    ///
    /// # Errors
    /// As [`Engine::checkpoint`].
    pub async fn checkpoint_own(&self) -> Result<(), EngineError> {
        if self.is_read_only() {
            return Ok(());
        }
        let running: Vec<_> = self
            .inner
            .shards
            .borrow()
            .values()
            .map(|shard| {
                let shard = Rc::clone(shard);
                self.inner.core.spawn(async move { shard.serve(Ask::Checkpoint).await })
            })
            .collect();
        for checkpoint in running {
            match checkpoint.await {
                Some(Reply::Done(result)) => result?,
                _ => return Err(EngineError::Closed),
            }
        }
        Ok(())
    }

    fn shard_count(&self) -> u16 {
        self.inner.deployment.superblock.shard_count
    }

    /// The shard that owns `name` in `bucket`.
    fn shard_of(&self, bucket: u64, name: &[u8]) -> u16 {
        self.inner.deployment.superblock.shard_of(bucket, name)
    }

    /// The shard, if this core runs it: then nobody needs to be asked over the mesh.
    fn own_shard(&self, shard: u16) -> Option<Rc<Shard>> {
        self.inner.shards.borrow().get(&shard).cloned()
    }

    /// How bodies of `shard` are moved.
    fn access(&self, shard: u16) -> &ShardAccess {
        &self.inner.access.get().expect("shards are open before anybody asks")[usize::from(shard)]
    }

    async fn ask(&self, shard: u16, ask: Ask) -> Result<Reply, EngineError> {
        self.check_served(shard)?;
        let is_write = ask.is_write();
        if let Some(own) = self.own_shard(shard) {
            if is_write {
                return self.serve_write(own, ask).await;
            }
            // A task, as on another core: what a shard began it ends, whether or not the caller still waits.
            let task = self.inner.core.spawn(async move { own.serve(ask).await });
            return task.await.ok_or(EngineError::Closed);
        }
        if is_write && let Err(refused) = self.inner.members.take_writes() {
            ask.leases().into_iter().for_each(|lease| self.tell(shard, Ask::EndLease(lease)));
            return Err(refused);
        }
        let (owner, port) = (self.access(shard).owner, self.inner.port.clone());
        let asked = async move {
            let asked = port.call(owner, Request::Shard { shard, ask }).await;
            asked.map_err(|_| EngineError::Closed)
        };
        let reply = match is_write {
            // A task, so that it is sent whether or not anybody still waits: it may carry leases, which would be lost with it.
            true => {
                let task = self.inner.core.spawn(asked);
                let sent = async { task.await.unwrap_or(Err(EngineError::Closed)) };
                self.inner.members.unless_lost(sent).await
            }
            false => asked.await,
        };
        match reply? {
            Reply::Refused(error) => Err(error),
            reply => Ok(reply),
        }
    }

    /// Has a shard of this core carry out a client's write, unless disks fail without which it cannot.
    async fn serve_write(&self, shard: Rc<Shard>, ask: Ask) -> Result<Reply, EngineError> {
        let members = &self.inner.members;
        if let Err(refused) = members.take_writes() {
            ask.leases().into_iter().for_each(|lease| shard.end_lease(lease, 0));
            return Err(refused);
        }
        let task = self.inner.core.spawn(async move { shard.serve(ask).await });
        members.unless_lost(async { task.await.ok_or(EngineError::Closed) }).await
    }

    /// Tells a shard without waiting; for what must also work while something is dropped.
    fn tell(&self, shard: u16, ask: Ask) {
        let owner = self.access(shard).owner;
        self.inner.port.notify(owner, Request::Shard { shard, ask });
    }
}

/// The core that runs a shard: shards are dealt to the cores in turn, whatever their numbers are.
fn owner_of(shard: u16, core_count: u16) -> CoreId {
    CoreId(shard % core_count)
}
