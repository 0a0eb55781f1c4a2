//! A deployment in the simulated world: disks, locks, one engine per virtual core.

use std::path::PathBuf;
use std::time::Duration;

use basalt_engine::extent::Geometry;
use basalt_engine::format::superblock::DiskClass;
use basalt_engine::request::{Reply, Request};
use basalt_engine::{Deployment, Engine, FormatOptions};
use basalt_reactor::disk::DiskLock;
use basalt_reactor::{Core, Disk, mesh};

/// How the deployment under test is laid out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) k: u8,
    pub(crate) m: u8,
    pub(crate) shards: u16,
}

impl Layout {
    pub(crate) fn disk_count(self) -> usize {
        usize::from(self.k) + usize::from(self.m)
    }

    /// Everything tiny, so that extents fill, seal and are freed within a short run.
    fn geometry(self) -> Geometry {
        Geometry {
            k: self.k,
            m: self.m,
            strip_len: 8192,
            log_slot_len: 384 << 10,
            data_slot_len: 512 << 10,
            table_slot_len: 256 << 10,
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
        let core = &cores[0];
        let paths =
            (0..layout.disk_count()).map(|disk| PathBuf::from(format!("disk{disk}"))).collect::<Vec<_>>();
        let mut locks = Vec::new();
        for path in &paths {
            let disk = Disk::open(core, path).expect("the disk is there");
            locks.push(lock(core, &disk).await);
        }
        let options = FormatOptions {
            shard_count: layout.shards,
            erasure: Some((layout.k, layout.m)),
            geometry: Some(layout.geometry()),
        };
        let deployment = Deployment::prepare(core, &paths, DiskClass::Flash, &options)
            .await
            .unwrap_or_else(|error| panic!("the deployment does not open: {error}"));
        let count = u16::try_from(cores.len()).expect("few cores");
        let seeds = mesh::seeds::<Request, Reply>(count);
        let mut starting = Vec::new();
        for (core, seed) in cores.iter().zip(seeds) {
            let port = seed.attach(core);
            let (core, deployment) = (core.clone(), deployment.clone());
            starting
                .push(core.clone().spawn(async move { Engine::start(&core, deployment, count, port).await }));
        }
        let mut engines = Vec::new();
        for task in starting {
            let engine = task.await.expect("nobody cancels a start");
            engines.push(engine.unwrap_or_else(|error| panic!("an engine does not start: {error}")));
        }
        Cluster { engines, _locks: locks }
    }
}

async fn lock(core: &Core, disk: &Disk) -> DiskLock {
    loop {
        match disk.lock("lock") {
            Ok(lock) => return lock,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                core.sleep(Duration::from_millis(1)).await;
            }
            Err(error) => panic!("lock: {error}"),
        }
    }
}
