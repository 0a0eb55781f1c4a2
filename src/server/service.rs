//! What one core serves: the deployment opened, this core's part of the engine started, the service on top.
//!
//! The first core prepares the disks; the others wait for it. No core serves before every core's shards do, so that the
//! first request already sees the whole keyspace. Each core holds the disks' locks through its own ring: what a killed
//! process still has in flight is over before anybody opens the disks again.

use std::io::ErrorKind;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use basalt_engine::deployment::{DiskState, LOCK_FILE, MissingDisks, inspect, set_width};
use basalt_engine::extent::DiskIndex;
use basalt_engine::extent::groups::GroupRole;
use basalt_engine::extent::members::MemberState;
use basalt_engine::format::superblock::{DiskClass, State};
use basalt_engine::request::{Reply, Request};
use basalt_engine::{Deployment, Engine, EngineOptions, FormatOptions, OpenError, ShardStats};
use basalt_reactor::disk::DiskLock;
use basalt_reactor::mesh::PortSeed;
use basalt_reactor::{Core, CoreId, Disk};

use super::{START_POLL, Shared, StartError};
use crate::config::Config;
use crate::http::{Handler, Readiness};
use crate::metrics::{CoreMetrics, Scalar};
use crate::service::{Service, ServiceParts};

/// How long the disks of a process that was killed may stay locked; the kernel needs milliseconds, a slow disk longer.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(5);
/// How often a lock is tried meanwhile.
const LOCK_POLL: Duration = Duration::from_millis(10);

/// One core's service, ready to answer.
pub(super) struct CoreService {
    pub handler: Handler,
    pub readiness: Rc<dyn Fn() -> Readiness>,
    pub minio_bucket_exists: Rc<dyn Fn() -> bool>,
    pub engine: Engine,
    /// What the deployment survives, in plain words.
    pub redundancy: String,
}

/// Opens the service of `core`.
///
/// # Errors
/// [`StartError`] for the disks, or for what recovery found on them.
pub(super) async fn open(
    core: &Core,
    shared: &Shared,
    seed: PortSeed<Request, Reply>,
) -> Result<CoreService, StartError> {
    let config = &shared.config;
    // Attached first: cores that start earlier already ask this one.
    let port = seed.attach(core);
    // Until the members are known, and locked by each core.
    let before = match core.id() {
        CoreId(0) => lock_disks(core, config).await?,
        _ => Vec::new(),
    };
    let deployment = deployment(core, shared).await?;
    let locks = lock_members(core, &deployment).await?;
    drop(before);
    let cores = u16::try_from(config.cpus.len()).expect("cores are capped far below");
    if let Some(needed) = config.write_quorum.filter(|&needed| usize::from(needed) > deployment.disk_count())
    {
        let reason = format!("--write-quorum {needed}: there are only {} disks", deployment.disk_count());
        return Err(StartError::Deployment(OpenError::Layout(reason)));
    }
    let options = EngineOptions { spare_after: config.spare_after, write_quorum: config.write_quorum };
    let engine = Engine::start_with(core, Arc::clone(&deployment), cores, port, options)
        .await
        .map_err(StartError::Engine)?;
    for (disk, lock) in locks {
        engine.hold_lock(disk, lock);
    }
    let (mut batches, mut log_len) = (0, 0);
    for (shard, recovered) in engine.recovered() {
        tracing::debug!(core = core.id().0, shard, ?recovered, "shard open");
        batches += recovered.batches;
        log_len += recovered.log_len;
    }
    tracing::info!(core = core.id().0, shards = engine.recovered().len(), batches, log_len, "log replayed");
    shared.started.fetch_add(1, Ordering::Relaxed);
    while shared.started.load(Ordering::Relaxed) < config.cpus.len() {
        core.sleep(START_POLL).await;
    }

    engine.start_scrub(config.scrub_deadline);
    if engine.is_read_only() && core.id().0 == 0 {
        for missing in &deployment.missing {
            tracing::warn!("{missing}");
        }
        let unserved: Vec<u16> = engine.unserved().into_iter().map(|(shard, _)| shard).collect();
        tracing::warn!(?unserved, "started read-only: nothing is written to any disk");
    }

    let service = Service::new(ServiceParts {
        engine: engine.clone(),
        root: shared.root.credentials.clone(),
        region: config.region.clone(),
        domains: config.domains.clone(),
    });
    let buckets = engine.clone();
    Ok(CoreService {
        handler: Rc::new(move |request| Box::pin(Rc::clone(&service).handle(request))),
        readiness: {
            let engine = engine.clone();
            Rc::new(move || readiness(&engine))
        },
        minio_bucket_exists: Rc::new(move || buckets.buckets().get("minio").is_some()),
        redundancy: if deployment.read_only { what_can_be_read(&engine) } else { redundancy(&deployment) },
        engine,
    })
}

/// Takes over what the engine counts itself.
pub(super) fn sample(engine: &Engine, metrics: &CoreMetrics) {
    let memory = engine.memory();
    metrics.set(Scalar::MemoryCapacity, memory.capacity as u64);
    metrics.set(Scalar::MemoryReserved, memory.used as u64);
    metrics.set(Scalar::MemoryWaiting, memory.waiting as u64);
    metrics.set(Scalar::MemoryRefused, memory.refused);
    metrics.set(Scalar::MeshBacklog, engine.backlog() as u64);
    let log_slot_len = engine.deployment().superblock.geometry.log_slot_len;
    let stats = engine.stats();
    let sum = |of: fn(&ShardStats) -> u64| stats.iter().map(|(_, shard)| of(shard)).sum::<u64>();
    metrics.set(Scalar::LogQueue, sum(|shard| shard.commit_backlog as u64));
    metrics.set(Scalar::LogBytes, sum(|shard| shard.log_extents as u64) * log_slot_len);
    metrics.set(Scalar::IndexBytes, sum(|shard| shard.index_len));
    metrics.set(Scalar::IndexEntries, sum(|shard| shard.index_entries));
    metrics.set(Scalar::MemtableBytes, sum(|shard| shard.memtable_len as u64));
    metrics.set(Scalar::LiveBytes, sum(|shard| shard.live_body_len));
    metrics.set(Scalar::ExtentBytes, sum(|shard| shard.used_len));
    metrics.set(Scalar::ExtentLiveBytes, sum(|shard| shard.needed_len));
    metrics.set(Scalar::CollectionMoved, sum(|shard| shard.moved_len));
    metrics.set(Scalar::CollectionEmptied, sum(|shard| shard.emptied_count));
    let blocks = engine.block_counts();
    metrics.set(Scalar::BlocksCorrupt, blocks.corrupt);
    metrics.set(Scalar::BlocksRestored, blocks.restored);
    metrics.set(Scalar::BlocksRepaired, sum(|shard| shard.repair.repaired));
    metrics.set(Scalar::BlocksUnrepairable, sum(|shard| shard.repair.unrepairable));
    metrics.set(Scalar::ScrubBytes, sum(|shard| shard.scrub.scrubbed_len));
    let oldest = stats.iter().map(|(_, shard)| shard.scrub.oldest).max().unwrap_or_default();
    metrics.set(Scalar::ScrubOldest, oldest.as_secs());
    let reads = engine.read_counts();
    metrics.set(Scalar::ReadsHedged, reads.hedged);
    metrics.set(Scalar::HedgesWon, reads.hedges_won);
    metrics.set(Scalar::FailuresTolerated, engine.failures_tolerated().unwrap_or(0).into());
}

/// Takes the locks that are there before anything is read, so that nobody else opens the disks meanwhile. A lock file is
/// created only where a new deployment is to be formatted: an empty directory may be a mount point without its disk, and
/// what holds other files is not ours.
async fn lock_disks(core: &Core, config: &Config) -> Result<Vec<DiskLock>, StartError> {
    // What is wrong with a disk that cannot even be opened is for opening to judge: it may be one too many, or not.
    let disks: Vec<_> =
        config.disks.iter().filter_map(|path| Some((path, Disk::open(core, path).ok()?))).collect();
    let mut is_new = true;
    for (_, disk) in &disks {
        is_new &= match inspect(core, disk).await {
            Ok(DiskState::Empty) => true,
            Ok(DiskState::Ours(superblock)) => superblock.state == State::Formatting,
            Ok(DiskState::Foreign { .. } | DiskState::Unreadable { .. }) | Err(_) => false,
        };
    }
    let has_lock = |disk: &Disk| disk.list().is_ok_and(|names| names.iter().any(|name| name == LOCK_FILE));
    let mut locks = Vec::with_capacity(disks.len());
    is_new &= !config.start_read_only;
    for (path, disk) in disks.iter().filter(|(_, disk)| is_new || has_lock(disk)) {
        locks.extend(lock(core, path, disk, config.start_read_only).await?);
    }
    Ok(locks)
}

/// Each core locks the members through its own ring.
async fn lock_members(
    core: &Core,
    deployment: &Deployment,
) -> Result<Vec<(DiskIndex, DiskLock)>, StartError> {
    let mut locks = Vec::with_capacity(deployment.disk_count());
    for ((place, path), state) in (0..).map(DiskIndex).zip(&deployment.paths).zip(deployment.states()) {
        let Some(path) = path.as_ref().filter(|_| state != MemberState::Out) else { continue };
        if let Ok(disk) = Disk::open(core, path)
            && let Some(lock) = lock(core, path, &disk, deployment.read_only).await?
        {
            locks.push((place, lock));
        }
    }
    Ok(locks)
}

/// Takes a disk's lock, without writing anything if it is for reading alone. That of a process that was killed is free once the kernel has ended its writes.
async fn lock(
    core: &Core,
    path: &Path,
    disk: &Disk,
    read_only: bool,
) -> Result<Option<DiskLock>, StartError> {
    let patience = core.now() + LOCK_WAIT_MAX;
    loop {
        let taken = if read_only { disk.lock_existing(LOCK_FILE) } else { disk.lock(LOCK_FILE) };
        match taken {
            Ok(lock) => return Ok(Some(lock)),
            Err(error) if error.kind() != ErrorKind::WouldBlock => {
                tracing::warn!(path = %path.display(), %error, "the disk cannot be locked");
                return Ok(None);
            }
            Err(_) if core.now() > patience => {
                return Err(StartError::Deployment(OpenError::Locked { path: path.to_owned() }));
            }
            Err(_) => core.sleep(LOCK_POLL).await,
        }
    }
}

/// The deployment, prepared by the first core.
async fn deployment(core: &Core, shared: &Shared) -> Result<Arc<Deployment>, StartError> {
    if core.id().0 > 0 {
        loop {
            match shared.deployment.get() {
                Some(deployment) => return Ok(Arc::clone(deployment)),
                None => core.sleep(START_POLL).await,
            }
        }
    }
    let config = &shared.config;
    let cores = u16::try_from(config.cpus.len()).expect("cores are capped far below");
    let (class, metadata_class) = shared.disk_classes;
    let options = FormatOptions {
        shard_count: config.shards.unwrap_or_else(|| default_shards(config, class, cores)),
        erasure: config.erasure.map(|shape| (shape.data, shape.parity)),
        geometry: None,
        metadata: (config.metadata_count > 0).then_some((config.metadata_count, metadata_class)),
    };
    let missing = if config.start_degraded { MissingDisks::AreLost } else { MissingDisks::MayHaveGoneOn };
    let prepared = if config.start_read_only {
        Deployment::prepare_for_reading(core, &config.disks, missing).await
    } else {
        Deployment::prepare_without(core, &config.disks, class, &options, missing).await
    };
    let deployment = prepared.map_err(StartError::Deployment)?;
    Ok(Arc::clone(shared.deployment.get_or_init(|| deployment)))
}

/// One shard per core; where log and data share hard disks, one per set, so that no two logs compete for a head.
fn default_shards(config: &Config, class: DiskClass, cores: u16) -> u16 {
    if class == DiskClass::Flash || config.metadata_count > 0 {
        return cores;
    }
    let width = match config.erasure {
        Some(shape) => usize::from(shape.data) + usize::from(shape.parity),
        // What does not fit is said when the disks are formatted.
        None => set_width(config.disks.len()).unwrap_or(config.disks.len()),
    };
    u16::try_from((config.disks.len() / width.max(1)).max(1)).unwrap_or(cores)
}

fn readiness(engine: &Engine) -> Readiness {
    match engine.failures_tolerated() {
        Some(count) => {
            Readiness { ready: true, json: format!("{{\"ready\":true,\"failures_tolerated\":{count}}}") }
        }
        None if engine.is_read_only() => {
            Readiness { ready: false, json: "{\"ready\":false,\"read_only\":true}".to_owned() }
        }
        None => Readiness { ready: false, json: "{\"ready\":false}".to_owned() },
    }
}

/// What the operator is told of a start that writes nothing.
fn what_can_be_read(engine: &Engine) -> String {
    let deployment = engine.deployment();
    let missing: Vec<_> = deployment.missing.iter().map(ToString::to_string).collect();
    let unserved: Vec<_> = engine.unserved().iter().map(|(shard, _)| shard.to_string()).collect();
    let missing = if missing.is_empty() { "all disks are there".to_owned() } else { missing.join(", ") };
    let mut text = format!("READ-ONLY, nothing is written to any disk: {missing}");
    if !unserved.is_empty() {
        let (unserved, count) = (unserved.join(", "), deployment.superblock.shard_count);
        text.push_str(&format!("; of {count} shards, these cannot be served: {unserved}"));
    }
    text
}

/// What the operator is told of how many disks may fail.
fn redundancy(deployment: &Deployment) -> String {
    let superblock = &deployment.superblock;
    let (k, m) = (superblock.geometry.k, superblock.geometry.m);
    let (groups, states) = (superblock.groups(), deployment.states());
    let disks = deployment.disk_count();
    let (sets, metadata): (Vec<_>, Vec<_>) =
        groups.all().partition(|&group| groups.role(group) == GroupRole::Set);
    let away = states.iter().filter(|&&state| state != MemberState::InSync).count();
    let mut text = match (m, disks, sets.len()) {
        (0, 1, _) => "none: what is on the disk is lost with it".to_owned(),
        (0, disks, _) => format!("none: each of the {disks} disks takes data with it when it is lost"),
        (m, disks, 1) if metadata.is_empty() => format!("{k}+{m}: any {m} of the {disks} disks may fail"),
        (m, _, count) => format!("{count} sets of {k}+{m}: any {m} disks of each may fail"),
    };
    for group in metadata {
        let count = groups.disks(group).len();
        let spare = count - groups.needed(group);
        text.push_str(&format!("; log and index on {count} disks of their own, of which {spare} may fail"));
    }
    match (m, away) {
        (0, _) => {}
        (_, 0) => text.push_str(", and nothing is lost or stops"),
        (_, away) => {
            let more = groups.tolerated(&states).unwrap_or(0);
            text.push_str(&format!(". DEGRADED: {away} missing or being rebuilt; {more} more may fail"));
        }
    }
    match deployment.spares.len() {
        0 => {}
        1 => text.push_str("; 1 spare disk"),
        count => text.push_str(&format!("; {count} spare disks")),
    }
    text
}
