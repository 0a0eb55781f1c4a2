//! A deployment in the simulated world: disks, locks, one engine per virtual core.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use basalt_engine::deployment::MissingDisks;
use basalt_engine::extent::Geometry;
use basalt_engine::format::superblock::DiskClass;
use basalt_engine::request::{Reply, Request};
use basalt_engine::{Deployment, Engine, EngineError, EngineOptions as Options, FormatOptions};
use basalt_reactor::disk::DiskLock;
use basalt_reactor::sim::{Config, DiskConfig, Random, World};
use basalt_reactor::{Core, Disk, mesh};

/// How the deployment under test is laid out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) k: u8,
    pub(crate) m: u8,
    /// Erasure sets of k+m disks.
    pub(crate) sets: u8,
    /// Disks for log and index alone.
    pub(crate) metadata: u8,
    /// Disks that are there and no members, until they are added.
    pub(crate) spare: u8,
    pub(crate) shards: u16,
    pub(crate) strip_len: u32,
}

impl Layout {
    pub(crate) fn draw(random: &mut Random) -> Layout {
        let (k, m) = [(1, 0), (1, 0), (1, 1), (2, 1), (2, 2)][random.below(5) as usize];
        let layout = Layout::of(k, m, random);
        if random.below(3) == 0 { layout.in_groups(random) } else { layout }
    }

    pub(crate) fn of(k: u8, m: u8, random: &mut Random) -> Layout {
        let strip_len = if random.coin() { 4096 } else { 8192 };
        Layout { k, m, sets: 1, metadata: 0, spare: 0, shards: 1 + random.below(3) as u16, strip_len }
    }

    /// The same with more disks: several sets, or disks for log and index, or both.
    pub(crate) fn in_groups(self, random: &mut Random) -> Layout {
        let sets = 1 + random.below(3) as u8;
        let metadata = if sets == 1 || random.coin() { self.m + 1 + random.below(2) as u8 } else { 0 };
        Layout { sets, metadata, ..self }
    }

    pub(crate) fn disk_count(self) -> usize {
        usize::from(self.sets) * usize::from(self.k + self.m) + usize::from(self.metadata)
    }

    /// Disks that a shard's log, tables and roots lie on.
    pub(crate) fn home_of(self, shard: u16) -> Range<usize> {
        let width = usize::from(self.k + self.m);
        let data_count = usize::from(self.sets) * width;
        if self.metadata > 0 {
            return data_count..self.disk_count();
        }
        let set = usize::from(shard % u16::from(self.sets));
        set * width..(set + 1) * width
    }

    pub(crate) fn disk_names(self) -> Vec<String> {
        (0..self.disk_count()).map(|disk| format!("disk{disk}")).collect()
    }

    pub(crate) fn spare_names(self) -> Vec<String> {
        (0..self.spare).map(|disk| format!("spare{disk}")).collect()
    }

    /// A world with this layout's disks, of `capacity` bytes each.
    pub(crate) fn world(self, seed: u64, capacity: u64) -> World {
        let names = [self.disk_names(), self.spare_names()].concat();
        let disks = names.iter().map(|name| DiskConfig::new(name, capacity)).collect();
        World::new(seed, Config { disks, arena_len: 16 << 20, ..Config::default() })
    }

    /// Everything tiny, so that extents fill, seal and are freed within a short run; longer with strips as long as real ones.
    pub(crate) fn geometry(self) -> Geometry {
        let strip_len = u64::from(self.strip_len);
        Geometry {
            k: self.k,
            m: self.m,
            strip_len: self.strip_len,
            log_slot_len: (24 * strip_len).max(384 << 10),
            data_slot_len: (64 * strip_len).max(512 << 10),
            table_slot_len: (16 * strip_len).max(256 << 10),
        }
    }
}

/// The engines of all cores, and the locks that own the disks while they run.
pub(crate) struct Cluster {
    pub(crate) engines: Vec<Engine>,
    _locks: Vec<DiskLock>,
}

impl Cluster {
    /// Opens (or formats) the deployment on `cores`; to be run on the first of them.
    pub(crate) async fn start(cores: Vec<Core>, layout: Layout) -> Cluster {
        Cluster::try_start(cores, layout)
            .await
            .unwrap_or_else(|error| panic!("the deployment does not open: {error}"))
    }

    /// As [`Cluster::start`], with the operator's word that what is missing is lost.
    pub(crate) async fn start_degraded(cores: Vec<Core>, layout: Layout) -> Cluster {
        Cluster::start_without(cores, &layout.disk_names(), layout, MissingDisks::AreLost, Options::default())
            .await
            .unwrap_or_else(|error| panic!("the deployment does not open: {error}"))
    }

    /// As [`Cluster::start`]; a refusal says why.
    pub(crate) async fn try_start(cores: Vec<Core>, layout: Layout) -> Result<Cluster, String> {
        let names = layout.disk_names();
        Cluster::start_without(cores, &names, layout, MissingDisks::MayHaveGoneOn, Options::default()).await
    }

    /// On the disks of these names, as an operator may decide.
    pub(crate) async fn start_with(
        cores: Vec<Core>,
        names: &[String],
        layout: Layout,
        options: Options,
    ) -> Cluster {
        Cluster::start_without(cores, names, layout, MissingDisks::MayHaveGoneOn, options)
            .await
            .unwrap_or_else(|error| panic!("the deployment does not open: {error}"))
    }

    /// As [`Cluster::start_with`], with the operator's word that what is missing is lost.
    pub(crate) async fn start_lost(
        cores: Vec<Core>,
        names: &[String],
        layout: Layout,
        options: Options,
    ) -> Cluster {
        Cluster::start_without(cores, names, layout, MissingDisks::AreLost, options)
            .await
            .unwrap_or_else(|error| panic!("the deployment does not open: {error}"))
    }

    /// Why these disks are not opened.
    pub(crate) async fn refused(cores: Vec<Core>, names: &[String], layout: Layout) -> String {
        let missing = MissingDisks::MayHaveGoneOn;
        let started = Cluster::start_without(cores, names, layout, missing, Options::default()).await;
        started.err().unwrap_or_else(|| panic!("{names:?} are opened"))
    }

    /// What the disks of these names have, and not a byte written to them. A refusal says why.
    pub(crate) async fn start_reading(
        cores: Vec<Core>,
        names: &[String],
        missing: MissingDisks,
    ) -> Result<Cluster, String> {
        let core = &cores[0];
        let paths = names.iter().map(PathBuf::from).collect::<Vec<_>>();
        let mut locks = Vec::new();
        for path in &paths {
            let Ok(disk) = Disk::open(core, path) else { continue };
            locks.extend(disk.lock_existing("lock").ok());
        }
        let deployment = Deployment::prepare_for_reading(core, &paths, missing)
            .await
            .map_err(|error| error.to_string())?;
        Cluster::start_engines(&cores, &deployment, locks, Options::default()).await
    }

    async fn start_without(
        cores: Vec<Core>,
        names: &[String],
        layout: Layout,
        missing: MissingDisks,
        options: Options,
    ) -> Result<Cluster, String> {
        let core = &cores[0];
        let mut paths = names.iter().map(PathBuf::from).collect::<Vec<_>>();
        let is_formatted =
            |path| Disk::open(core, path).is_ok_and(|disk| disk.open_file("superblock").is_ok());
        if paths.iter().any(|path| is_formatted(path)) {
            paths.extend(layout.spare_names().into_iter().map(PathBuf::from));
        }
        let mut locks = Vec::new();
        for path in &paths {
            // One that is not there may be missed or not.
            let Ok(disk) = Disk::open(core, path) else { continue };
            locks.extend(lock(core, &disk).await.ok());
        }
        let format = FormatOptions {
            shard_count: layout.shards,
            erasure: Some((layout.k, layout.m)),
            geometry: Some(layout.geometry()),
            metadata: (layout.metadata > 0).then_some((layout.metadata.into(), DiskClass::Flash)),
        };
        let deployment = Deployment::prepare_without(core, &paths, DiskClass::Flash, &format, missing)
            .await
            .map_err(|error| error.to_string())?;
        Cluster::start_engines(&cores, &deployment, locks, options).await
    }

    async fn start_engines(
        cores: &[Core],
        deployment: &Arc<Deployment>,
        locks: Vec<DiskLock>,
        options: Options,
    ) -> Result<Cluster, String> {
        let count = u16::try_from(cores.len()).expect("few cores");
        let seeds = mesh::seeds::<Request, Reply>(count);
        let mut starting = Vec::new();
        for (core, seed) in cores.iter().zip(seeds) {
            let port = seed.attach(core);
            let (core, deployment) = (core.clone(), Arc::clone(deployment));
            starting.push(
                core.clone()
                    .spawn(async move { Engine::start_with(&core, deployment, count, port, options).await }),
            );
        }
        let mut engines = Vec::new();
        let mut refusal = None;
        for task in starting {
            match task.await.expect("nobody cancels a start") {
                Ok(engine) => engines.push(engine),
                // A core whose neighbour refused only says that it was left alone.
                Err(EngineError::Closed) => {
                    refusal.get_or_insert(EngineError::Closed.to_string());
                }
                Err(error) => refusal = Some(error.to_string()),
            }
        }
        match refusal {
            None => Ok(Cluster { engines, _locks: locks }),
            Some(reason) => Err(reason),
        }
    }

    /// Any of the cores.
    pub(crate) fn any(&self, random: &mut Random) -> Engine {
        self.engines[random.below(self.engines.len() as u64) as usize].clone()
    }
}

async fn lock(core: &Core, disk: &Disk) -> Result<DiskLock, String> {
    loop {
        match disk.lock("lock") {
            Ok(lock) => return Ok(lock),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                core.sleep(Duration::from_millis(1)).await;
            }
            Err(error) => return Err(format!("lock: {error}")),
        }
    }
}
