//! The tools for stopped deployments, on disks that clients have filled and that are harmed on purpose.

mod inspect;

use std::path::PathBuf;
use std::rc::Rc;

use basalt_engine::extent::ExtentId;
use basalt_engine::offline::inspect::{Item, ObjectName, Query, What, inspect};
use basalt_reactor::sim::{Random, World};

use crate::client::Shared;
use crate::cluster::Layout;
use crate::damage::{CAPACITY, work};

const LAYOUT: Layout = Layout { k: 2, m: 2, shards: 2, strip_len: 8192 };

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

    fn inspect(&mut self, paths: Vec<PathBuf>, query: Query) -> Vec<Item> {
        let core = self.world.boot(1).remove(0);
        self.world.run(async move {
            let mut items = Vec::new();
            inspect(&core, &paths, &query, &mut |item| items.push(item)).await.expect("the disks open");
            items
        })
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
