//! The tools for stopped deployments, on disks that clients have filled and that are harmed on purpose.

mod check;
mod chunks;
mod inspect;
mod moved;
mod packs;

use std::path::PathBuf;
use std::rc::Rc;

use basalt_engine::extent::ExtentId;
use basalt_engine::offline::OfflineError;
use basalt_engine::offline::check::{Fault, Listener, Progress, Report, check};
use basalt_engine::offline::inspect::{Item, ObjectName, Query, What, inspect};
use basalt_reactor::sim::{Crash, Random, World};

use crate::client::Shared;
use crate::cluster::Layout;
use crate::damage::{CAPACITY, reopen, work};

const LAYOUT: Layout = Layout { k: 2, m: 2, sets: 1, metadata: 0, spare: 0, shards: 2, strip_len: 8192 };

/// A deployment that clients have written to, and that nobody runs any more.
struct Filled {
    world: World,
    shared: Rc<Shared>,
    layout: Layout,
}

impl Filled {
    fn new(seed: u64, layout: Layout, checkpoint: bool) -> Filled {
        let mut world = layout.world(seed, CAPACITY);
        let shared = Shared::new();
        shared.len_max.set(300 << 10);
        work(&mut world, layout, &shared, Random::new(seed ^ 0x0ff1), checkpoint);
        // What was in flight lands.
        world.run_until_idle();
        Filled { world, shared, layout }
    }

    fn paths(&self) -> Vec<PathBuf> {
        self.layout.disk_names().into_iter().map(PathBuf::from).collect()
    }

    fn check(&mut self, paths: Vec<PathBuf>, repair: bool) -> Report {
        self.try_check(paths, repair).expect("the disks open")
    }

    fn try_check(&mut self, paths: Vec<PathBuf>, repair: bool) -> Result<Report, OfflineError> {
        let core = self.world.boot(1).remove(0);
        let checked = self.world.run(async move {
            let mut heard = Heard::default();
            let report = check(&core, &paths, repair, &mut heard).await?;
            assert_eq!(heard.faults, report.fault_count);
            Ok(report)
        });
        // Locks go with the process.
        self.world.crash(Crash::Kill);
        checked
    }

    fn inspect(&mut self, paths: Vec<PathBuf>, query: Query) -> Vec<Item> {
        let core = self.world.boot(1).remove(0);
        self.world.run(async move {
            let mut items = Vec::new();
            inspect(&core, &paths, &query, &mut |item| items.push(item)).await.expect("the disks open");
            items
        })
    }
}

impl Filled {
    /// Opens the deployment again and compares every key with the model.
    fn serves_what_it_should(&mut self, seed: u64) {
        reopen(&mut self.world, self.layout, &self.shared, Random::new(seed), false);
    }
}

#[derive(Default)]
struct Heard {
    faults: u64,
}

impl Listener for Heard {
    fn fault(&mut self, _: &Fault) {
        self.faults += 1;
    }

    fn progress(&mut self, progress: Progress) {
        assert!(progress.done <= progress.total.max(progress.done));
    }
}

fn everything() -> Query {
    let what = [
        What::Superblock,
        What::Root,
        What::Manifest,
        What::Extents,
        What::Log,
        What::Table,
        What::Directory,
        What::Pack,
    ];
    Query { what: what.into(), entries: true, ..Query::default() }
}

fn only(what: What, extent: Option<ExtentId>) -> Query {
    Query { what: [what].into(), extent, ..Query::default() }
}

fn object(bucket: &str, key: &str) -> Query {
    let object = ObjectName { bucket: bucket.into(), key: key.into() };
    Query { object: Some(object), ..Query::default() }
}
