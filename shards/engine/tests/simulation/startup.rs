//! Starts with disks that are not as they were left: each case has one outcome. What is served is right, what is refused
//! says which disk and why, and writes nothing.

use std::path::Path;
use std::rc::Rc;

use basalt_engine::extent::members::MemberState::{self, Behind, InSync, Out};
use basalt_engine::format::superblock::SUPERBLOCK_COPY_LEN;
use basalt_reactor::Disk;
use basalt_reactor::sim::{Crash, DiskHandle, DiskImage, Random, World};

use crate::client::{Outcome, Shared, check};
use crate::cluster::{Cluster, Layout};
use crate::damage::{CAPACITY, work};

const WIDE: Layout = Layout { k: 3, m: 2, sets: 1, metadata: 0, spare: 0, shards: 2, strip_len: 4096 };
/// With one more path than disks.
const SPARED: Layout = Layout { spare: 1, ..WIDE };
const MIRROR: Layout = Layout { k: 1, m: 1, ..WIDE };

/// A deployment that nobody runs.
struct Scene {
    world: World,
    layout: Layout,
    shared: Rc<Shared>,
    random: Random,
    disks: Vec<DiskHandle>,
    /// Of the layout with one, pulled out.
    spare: Option<DiskHandle>,
    blank: DiskImage,
}

/// How a start goes.
enum Start {
    /// It serves, and the members are these.
    Serves(&'static [MemberState]),
    /// It is refused, in these words.
    Refused(&'static [&'static str]),
}

struct Case {
    what: &'static str,
    layout: Layout,
    happens: fn(&mut Scene),
    start: Start,
}

const SOUND: Start = Start::Serves(&[InSync; 5]);
const SECOND_BEHIND: Start = Start::Serves(&[InSync, Behind, InSync, InSync, InSync]);
const SECOND_OUT: Start = Start::Serves(&[InSync, Out, InSync, InSync, InSync]);

/// The table of docs/OPERATIONS.md.
static CASES: [Case; 16] = [
    Case { what: "nothing happened", layout: WIDE, happens: |_| {}, start: SOUND },
    Case {
        what: "two disks changed places",
        layout: WIDE,
        happens: |scene| scene.disks[0].swap(&scene.disks[3]),
        start: SOUND,
    },
    Case {
        what: "every path leads to another disk than before",
        layout: WIDE,
        happens: |scene| (1..5).for_each(|disk| scene.disks[disk - 1].swap(&scene.disks[disk])),
        start: SOUND,
    },
    Case {
        what: "m disks are missing",
        layout: WIDE,
        happens: |scene| [1, 4].into_iter().for_each(|disk: usize| scene.disks[disk].unplug()),
        start: Start::Serves(&[InSync, Out, InSync, InSync, Out]),
    },
    Case {
        what: "more than m disks are missing",
        layout: WIDE,
        happens: |scene| [1, 2, 4].into_iter().for_each(|disk: usize| scene.disks[disk].unplug()),
        start: Start::Refused(&["needed", "disk 1 is missing", "disk 2 is missing", "disk 4 is missing"]),
    },
    Case {
        what: "half of a mirror is missing",
        layout: MIRROR,
        happens: |scene| scene.disks[1].unplug(),
        start: Start::Refused(&["disk 1 is missing", "--start-degraded"]),
    },
    Case {
        what: "a disk was replaced by an empty one",
        layout: WIDE,
        happens: |scene| scene.disks[1].put_image(scene.blank.clone()),
        start: SECOND_BEHIND,
    },
    Case {
        what: "a disk is missing, and an empty one is at one more path: a spare, which waits whether the other comes back",
        layout: SPARED,
        happens: |scene| {
            scene.disks[1].unplug();
            scene.spare.iter().for_each(DiskHandle::plug);
        },
        start: SECOND_OUT,
    },
    Case {
        what: "a disk that had a file system of its own is not mounted",
        layout: WIDE,
        happens: |scene| {
            scene.disks[1].put_image(scene.blank.clone());
            scene.disks[1].set_own_filesystem(false);
        },
        start: SECOND_OUT,
    },
    Case {
        what: "a disk was away while the others went on",
        layout: WIDE,
        happens: |scene| {
            scene.disks[1].unplug();
            scene.serve();
            scene.disks[1].plug();
        },
        start: SECOND_BEHIND,
    },
    Case {
        what: "an old copy of a disk was put back",
        layout: WIDE,
        happens: |scene| {
            let old = scene.disks[1].image();
            (0..3).for_each(|_| scene.serve());
            scene.disks[1].put_image(old);
        },
        start: SECOND_BEHIND,
    },
    Case {
        what: "both copies of a superblock are damaged",
        layout: WIDE,
        happens: |scene| {
            (0..2).for_each(|copy| {
                scene.disks[1].corrupt("superblock", copy * SUPERBLOCK_COPY_LEN as u64 + 100, 1);
            });
        },
        start: SECOND_OUT,
    },
    Case {
        what: "one copy of a superblock is damaged, and the other's medium",
        layout: WIDE,
        happens: |scene| {
            scene.disks[1].corrupt("superblock", 100, 1);
            scene.disks[1].make_unreadable("superblock", SUPERBLOCK_COPY_LEN as u64, 1);
        },
        start: SECOND_OUT,
    },
    Case {
        what: "a path holds somebody's files",
        layout: WIDE,
        happens: |scene| {
            scene.disks[1].put_image(scene.blank.clone());
            let core = scene.world.boot(1).remove(0);
            scene.world.run(async move {
                let disk = Disk::open(&core, Path::new("disk1")).expect("it is plugged in");
                drop(disk.create_file("holidays").expect("there is room"));
                disk.sync().await.expect("no device fails");
            });
            scene.world.crash(Crash::PowerCut);
        },
        start: Start::Refused(&["disk1 holds files that are not Basalt's", "holidays"]),
    },
    Case {
        what: "a disk belongs to another deployment",
        layout: WIDE,
        happens: |scene| {
            let other = Scene::new(99, scene.layout);
            scene.disks[1].put_image(other.disks[1].image());
        },
        start: Start::Refused(&["disk1", "belong to different deployments"]),
    },
    Case {
        what: "one disk is there twice",
        layout: WIDE,
        happens: |scene| scene.disks[1].put_image(scene.disks[0].image()),
        start: Start::Refused(&["disk1 and disk0 are the same disk"]),
    },
];

impl Scene {
    fn new(seed: u64, layout: Layout) -> Scene {
        let mut random = Random::new(seed ^ 0x57a7);
        let mut world = layout.world(seed, CAPACITY);
        let disks: Vec<DiskHandle> = layout.disk_names().iter().map(|name| world.disk(name)).collect();
        let spare = layout.spare_names().first().map(|name| world.disk(name));
        let blank = disks[0].image();
        disks.iter().chain(&spare).for_each(|disk| disk.set_own_filesystem(true));
        spare.iter().for_each(DiskHandle::unplug);
        let shared = Shared::new();
        shared.len_max.set(300 << 10);
        work(&mut world, layout, &shared, random.fork(), random.coin());
        world.run_until_idle();
        Scene { world, layout, shared, random, disks, spare, blank }
    }

    /// The deployment is opened, and everything compared; then power fails.
    fn serve(&mut self) {
        self.start().unwrap_or_else(|reason| panic!("the deployment does not open: {reason}"));
    }

    /// What the members are when it has just been opened, and before it is used.
    fn start(&mut self) -> Result<Vec<MemberState>, String> {
        let cores = self.world.boot(1 + self.random.below(2) as u16);
        let (layout, state, mut own) = (self.layout, Rc::clone(&self.shared), self.random.fork());
        let members = self.world.run(async move {
            let cluster = Cluster::try_start(cores, layout).await?;
            let members = cluster.engines[0].members();
            check(&cluster, &state, &mut own).await;
            Ok(members)
        });
        self.world.crash(Crash::PowerCut);
        self.world.run_until_idle();
        members
    }

    /// Every byte of every file but the locks', by disk.
    fn contents(&self) -> Vec<Vec<(String, Vec<u8>)>> {
        let of = |disk: &DiskHandle| {
            let files = disk.files().into_iter().filter(|file| file != "lock");
            let bytes = |file: &str| disk.read(file, 0, disk.file_len(file).unwrap_or(0) as usize);
            files.map(|file| (file.clone(), bytes(&file))).collect()
        };
        self.disks.iter().map(of).collect()
    }
}

pub(crate) fn every_case(seed: u64) -> Outcome {
    let mut total = Outcome::default();
    for case in &CASES {
        let mut scene = Scene::new(seed, case.layout);
        (case.happens)(&mut scene);
        let before = scene.contents();
        match (scene.start(), &case.start) {
            (Ok(members), Start::Serves(expected)) => {
                assert_eq!(members, *expected, "{}", case.what);
                for (disk, state) in members.iter().enumerate() {
                    let is_same = || scene.contents()[disk] == before[disk];
                    assert!(*state != Out || is_same(), "{}: disk {disk} was written to", case.what);
                }
            }
            (Err(reason), Start::Refused(words)) => {
                assert!(words.iter().all(|word| reason.contains(word)), "{}: {reason}", case.what);
                assert!(scene.contents() == before, "{}: a refused start has written", case.what);
                total.refused += 1;
            }
            (Ok(members), Start::Refused(_)) => panic!("{}: it serves, with {members:?}", case.what),
            (Err(reason), Start::Serves(_)) => panic!("{}: {reason}", case.what),
        }
        total.add(&scene.shared.outcome.borrow());
    }
    total
}

/// A disk whose place another one has taken comes back beside it.
pub(crate) fn replaced(seed: u64) -> Outcome {
    let mut scene = Scene::new(seed, SPARED);
    let spare = scene.spare.clone().expect("the layout has one");
    spare.plug();
    spare.put_image(scene.disks[1].image());
    spare.unplug();
    scene.disks[1].put_image(scene.blank.clone());
    scene.layout = WIDE;
    scene.serve();
    scene.layout = SPARED;
    spare.plug();
    let before = scene.contents();
    let reason = scene.start().expect_err("a disk that was replaced is no member");
    assert!(reason.contains("spare0 was replaced by another disk"), "{reason}");
    assert!(scene.contents() == before, "a refused start has written");
    scene.layout = WIDE;
    scene.serve();
    scene.shared.outcome.borrow().clone()
}
