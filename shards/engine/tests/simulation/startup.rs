//! Starts with disks that are not as they were left: each case has one outcome. What is served is right, what is refused
//! says which disk and why, and writes nothing.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use basalt_engine::deployment::MissingDisks;
use basalt_engine::extent::members::MemberState::{self, Behind, InSync, Out};
use basalt_engine::format::codec::Encoder;
use basalt_engine::format::frame;
use basalt_engine::format::root::{ROOT_COPY_LEN, Root};
use basalt_engine::format::superblock::{SUPERBLOCK_COPY_LEN, Superblock};
use basalt_engine::offline::OfflineError;
use basalt_engine::offline::check::{Fault, Listener, Progress, check as check_offline};
use basalt_reactor::Disk;
use basalt_reactor::sim::{Crash, DiskHandle, DiskImage, Random, World};

use crate::client::{Outcome, Shared, check};
use crate::cluster::{Cluster, Layout};
use crate::damage::{CAPACITY, work};
use crate::lost::read_all;

const WIDE: Layout = Layout { k: 3, m: 2, sets: 1, metadata: 0, spare: 0, shards: 2, strip_len: 4096 };
/// With one more path than disks.
const SPARED: Layout = Layout { spare: 1, ..WIDE };
const NARROW: Layout = Layout { k: 3, m: 1, ..WIDE };
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
    /// It serves read-only, with these members.
    Reads(&'static [MemberState]),
    /// A start for reading alone is refused, in these words.
    NotRead(&'static [&'static str]),
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
static CASES: [Case; 20] = [
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
        what: "nothing is missing, and nothing is to be written",
        layout: WIDE,
        happens: |_| {},
        start: Start::Reads(&[InSync; 5]),
    },
    Case {
        what: "more than m disks are missing, and what is left is to be read",
        layout: NARROW,
        happens: |scene| [1, 3].into_iter().for_each(|disk: usize| scene.disks[disk].unplug()),
        start: Start::Reads(&[InSync, Out, InSync, Out]),
    },
    Case {
        what: "a disk was away while the others went on, and all are to be read",
        layout: WIDE,
        happens: |scene| {
            scene.disks[1].unplug();
            scene.serve();
            scene.disks[1].plug();
        },
        start: Start::Reads(&[InSync, Out, InSync, InSync, InSync]),
    },
    Case {
        what: "the missing disks may have gone on alone, and what is left is to be read",
        layout: WIDE,
        happens: |scene| [0, 1, 2].into_iter().for_each(|disk: usize| scene.disks[disk].unplug()),
        start: Start::NotRead(&["disk 0 is missing", "disk 2 is missing", "--start-degraded"]),
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

    fn contents(&self) -> Vec<Contents> {
        self.disks.iter().map(contents_of).collect()
    }

    /// What the members are when it has been opened for reading alone.
    fn start_reading(&mut self) -> Result<Vec<MemberState>, String> {
        let cores = self.world.boot(1 + self.random.below(2) as u16);
        let (names, state, mut own) = (self.layout.disk_names(), Rc::clone(&self.shared), self.random.fork());
        self.shared.faulty.set(true);
        let members = self.world.run(async move {
            let cluster = Cluster::start_reading(cores, &names, MissingDisks::MayHaveGoneOn).await?;
            read_all(&cluster, &state, &mut own).await;
            Ok(cluster.engines[0].members())
        });
        self.world.crash(Crash::PowerCut);
        self.world.run_until_idle();
        members
    }
}

/// The files of a disk by name, but for its lock.
pub(crate) type Contents = Vec<(String, Vec<u8>)>;

/// Every byte of every file of a disk.
pub(crate) fn contents_of(disk: &DiskHandle) -> Contents {
    let files = disk.files().into_iter().filter(|file| file != "lock");
    let bytes = |file: &str| disk.read(file, 0, disk.file_len(file).unwrap_or(0) as usize);
    files.map(|file| (file.clone(), bytes(&file))).collect()
}

pub(crate) fn every_case(seed: u64) -> Outcome {
    let mut total = Outcome::default();
    for case in &CASES {
        let mut scene = Scene::new(seed, case.layout);
        (case.happens)(&mut scene);
        let before = scene.contents();
        let started = match &case.start {
            Start::Reads(_) | Start::NotRead(_) => scene.start_reading(),
            Start::Serves(_) | Start::Refused(_) => scene.start(),
        };
        match (started, &case.start) {
            (Ok(members), Start::Reads(expected)) => {
                assert_eq!(members, *expected, "{}", case.what);
                assert!(scene.contents() == before, "{}: it was written to", case.what);
            }
            (Ok(members), Start::Serves(expected)) => {
                assert_eq!(members, *expected, "{}", case.what);
                for (disk, state) in members.iter().enumerate() {
                    let is_same = || scene.contents()[disk] == before[disk];
                    assert!(*state != Out || is_same(), "{}: disk {disk} was written to", case.what);
                }
            }
            (Err(reason), Start::Refused(words) | Start::NotRead(words)) => {
                assert!(words.iter().all(|word| reason.contains(word)), "{}: {reason}", case.what);
                assert!(scene.contents() == before, "{}: a refused start has written", case.what);
                total.refused += 1;
            }
            (Ok(members), Start::Refused(_) | Start::NotRead(_)) => {
                panic!("{}: it serves, with {members:?}", case.what)
            }
            (Err(reason), Start::Serves(_) | Start::Reads(_)) => panic!("{}: {reason}", case.what),
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

/// The superblock as Basalt wrote it in version 1 or 2 of that structure, when there was one set.
fn superblock_of_version(version: u16, superblock: &Superblock) -> Vec<u8> {
    let (of, geometry) = (superblock, &superblock.geometry);
    let mut out = Encoder::new();
    out.u64(of.sequence);
    out.raw(&[of.state as u8, of.disk_index, of.code, of.hash]);
    for id in [&of.deployment, &of.set, &of.disk, &of.hash_seed] {
        out.raw(id);
    }
    out.raw(&[geometry.k, geometry.m]);
    out.u16(of.shard_count);
    out.u32(geometry.strip_len);
    for len in [geometry.log_slot_len, geometry.data_slot_len, geometry.table_slot_len, of.epoch] {
        out.u64(len);
    }
    out.count(of.members.len());
    for member in &of.members {
        out.raw(&member.disk);
        out.u8(member.class as u8);
        match version {
            1 => out.raw(&[0; 7]),
            _ => out.raw(&[member.state as u8, u8::from(member.own_filesystem), 0, 0, 0, 0, 0]),
        }
        out.u64(member.epoch_last);
        if version > 1 {
            out.u64(member.joined);
        }
    }
    of.slot_map.iter().for_each(|&shard| out.u16(shard));
    frame::seal(*b"BSLTSUPR", version, &out.finish())
}

/// Turns the superblocks of a stopped deployment, and the roots, into those of an earlier version.
fn turn_back(scene: &Scene, version: u16) {
    for disk in &scene.disks {
        for copy in 0..2 {
            let offset = copy * SUPERBLOCK_COPY_LEN as u64;
            // Formatting may have written one alone.
            let bytes = disk.read("superblock", offset, SUPERBLOCK_COPY_LEN);
            let Ok(superblock) = Superblock::decode(&bytes) else { continue };
            disk.overwrite("superblock", offset, &superblock_of_version(version, &superblock));
        }
        for file in disk.files().iter().filter(|file| file.ends_with(".root") && version == 1) {
            for copy in 0..2 {
                let offset = copy * ROOT_COPY_LEN as u64;
                let bytes = disk.read(file, offset, ROOT_COPY_LEN);
                let Ok(root) = Root::decode(&bytes) else { continue };
                assert!(root.rebuilds.is_empty(), "nobody is behind");
                let payload_len = u32::from_le_bytes(bytes[12..16].try_into().expect("four bytes")) as usize;
                // Without the number of rebuilds, which is the last field.
                let payload = &bytes[24..24 + payload_len - 4];
                disk.overwrite(file, offset, &frame::seal(*b"BSLTROOT", 1, payload));
            }
        }
    }
}

/// The versions of a disk's superblock copies; zero where there is none.
fn versions(disk: &DiskHandle) -> Vec<u16> {
    let offsets = [8, SUPERBLOCK_COPY_LEN as u64 + 8];
    offsets
        .map(|at| disk.read("superblock", at, 2))
        .map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]]))
        .to_vec()
}

/// Deployments as earlier versions left them are served, and written anew by the start.
pub(crate) fn earlier_formats(seed: u64) -> Outcome {
    let mut total = Outcome::default();
    for (version, layout) in [(1, WIDE), (2, WIDE), (1, MIRROR), (2, MIRROR)] {
        let mut scene = Scene::new(seed, layout);
        turn_back(&scene, version);
        let found: Vec<_> = scene.disks.iter().flat_map(versions).collect();
        assert!(found.contains(&version) && !found.contains(&3), "{found:?}");
        let members = scene.start().unwrap_or_else(|reason| panic!("version {version}: {reason}"));
        assert!(members.iter().all(|state| *state == InSync), "version {version}: {members:?}");
        for disk in &scene.disks {
            assert!(versions(disk).contains(&3), "version {version}: the new epoch is written as it is now");
        }
        // Also where the older copy is still the one of before.
        scene.serve();
        total.add(&scene.shared.outcome.borrow());
    }
    total
}

/// The newest copy is of a version that is not known yet: what the other one says is out of date.
pub(crate) fn newer_format(seed: u64) -> Outcome {
    let mut total = Outcome::default();
    for both in [false, true] {
        let scene = &mut Scene::new(seed, WIDE);
        for disk in &scene.disks {
            let copies = [0, SUPERBLOCK_COPY_LEN as u64];
            let sequence = |at: &u64| {
                let bytes = disk.read("superblock", *at, SUPERBLOCK_COPY_LEN);
                Superblock::decode(&bytes).map_or(0, |superblock| superblock.sequence)
            };
            let newest = copies.iter().copied().max_by_key(sequence).expect("there are two");
            for at in copies.into_iter().filter(|&at| both || at == newest) {
                disk.overwrite("superblock", at, &frame::seal(*b"BSLTSUPR", 4, b"of another time"));
            }
        }
        let before = scene.contents();
        let reason = scene.start().expect_err("nobody knows what it says");
        assert!(reason.contains("format version 4 is newer than the 3"), "{reason}");
        assert!(scene.contents() == before, "a refused start has written");
        let paths: Vec<PathBuf> = scene.layout.disk_names().into_iter().map(PathBuf::from).collect();
        for repair in [false, true] {
            let core = scene.world.boot(1).remove(0);
            let paths = paths.clone();
            let checked =
                scene.world.run(async move { check_offline(&core, &paths, repair, &mut Deaf).await });
            scene.world.crash(Crash::Kill);
            assert!(matches!(checked, Err(OfflineError::Newer { .. })), "{:?}", checked.err());
            assert!(scene.contents() == before, "a check that was refused has written");
        }
        total.refused += 1;
    }
    total
}

/// For whom a check says nothing.
struct Deaf;

impl Listener for Deaf {
    fn fault(&mut self, _: &Fault) {}
    fn progress(&mut self, _: Progress) {}
}
