//! What the module promises, case by case, and whole histories against a naive model.

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

mod crash;
mod fault;
mod history;

use std::cell::RefCell;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use super::*;
use crate::disk::{BLOCK_LEN, Disk, File, WriteMode};
use crate::mesh;
use crate::{Buf, Slice};

const BLOCK: u64 = BLOCK_LEN as u64;
const SEEDS: u64 = 64;

fn world(seed: u64) -> World {
    World::new(seed, Config { arena_len: 1 << 20, ..Config::with_disks(2, 1 << 30) })
}

async fn open(core: &Core) -> Disk {
    Disk::open(core, Path::new("disk0")).unwrap()
}

/// A file of `blocks` blocks whose name and length are durable.
async fn durable_file(core: &Core, name: &str, blocks: u64) -> File {
    let disk = open(core).await;
    let file = disk.create_file(name).unwrap();
    file.grow(blocks * BLOCK).await.unwrap();
    file.sync().await.unwrap();
    disk.sync().await.unwrap();
    file
}

async fn filled(core: &Core, blocks: usize, byte: u8) -> Slice {
    let mut buf = core.arena().alloc(blocks * BLOCK_LEN).await;
    buf.set_len(blocks * BLOCK_LEN);
    buf.fill(byte);
    buf.freeze()
}

async fn empty(core: &Core, blocks: usize) -> Buf {
    let mut buf = core.arena().alloc(blocks * BLOCK_LEN).await;
    buf.set_len(blocks * BLOCK_LEN);
    buf
}

async fn write(core: &Core, file: &File, block: u64, byte: u8, mode: WriteMode) -> io::Result<()> {
    file.write_at(filled(core, 1, byte).await, block * BLOCK, mode).await
}

async fn first_bytes(core: &Core, file: &File, block: u64) -> io::Result<Vec<u8>> {
    let (result, buf) = file.read_at(empty(core, 1).await, block * BLOCK).await;
    assert_eq!(result?, BLOCK_LEN);
    Ok(buf.chunks(512).map(|sector| sector[0]).collect())
}

#[test]
fn what_was_written_is_read() {
    let mut world = world(1);
    let core = world.boot(1).remove(0);
    world.run(async move {
        let file = durable_file(&core, "a", 4).await;
        write(&core, &file, 2, 7, WriteMode::Volatile).await.unwrap();
        assert_eq!(first_bytes(&core, &file, 2).await.unwrap(), [7; 8]);
        assert_eq!(first_bytes(&core, &file, 3).await.unwrap(), [0; 8]);
        let (short, _) = file.read_at(empty(&core, 2).await, 3 * BLOCK).await;
        assert_eq!(short.unwrap(), BLOCK_LEN);
        assert_eq!(file.len().unwrap(), 4 * BLOCK);
    });
}

#[test]
fn vectored_writes_lie_one_after_the_other_and_extend_the_file() {
    let mut world = world(1);
    let core = world.boot(1).remove(0);
    world.run(async move {
        let file = durable_file(&core, "a", 1).await;
        let data = vec![filled(&core, 1, 1).await, filled(&core, 2, 2).await];
        file.write_vectored_at(data, BLOCK, WriteMode::Stable).await.unwrap();
        assert_eq!(file.len().unwrap(), 4 * BLOCK);
        for (block, byte) in [(0, 0), (1, 1), (2, 2), (3, 2)] {
            assert_eq!(first_bytes(&core, &file, block).await.unwrap(), [byte; 8]);
        }
    });
}

#[test]
fn overlapping_writes_in_flight_mix_by_sector() {
    let mut found = BTreeSet::new();
    for seed in 0..SEEDS {
        let mut world = world(seed);
        let core = world.boot(1).remove(0);
        found.insert(world.run(async move {
            let file = durable_file(&core, "a", 1).await;
            let writes = [1, 2].map(|byte| {
                let (core, file) = (core.clone(), file.clone());
                core.clone().spawn(async move { write(&core, &file, 0, byte, WriteMode::Volatile).await })
            });
            for write in writes {
                write.await.unwrap().unwrap();
            }
            first_bytes(&core, &file, 0).await.unwrap()
        }));
    }
    assert!(found.iter().flatten().all(|byte| (1..=2).contains(byte)));
    assert!(found.iter().any(|sectors| sectors.contains(&1) && sectors.contains(&2)));
}

#[test]
fn a_read_beside_a_write_sees_either_and_never_goes_back() {
    let mut partial = 0;
    for seed in 0..SEEDS {
        let mut world = world(seed);
        let core = world.boot(1).remove(0);
        partial += world.run(async move {
            let file = durable_file(&core, "a", 1).await;
            let writing = core.spawn({
                let (core, file) = (core.clone(), file.clone());
                async move { write(&core, &file, 0, 1, WriteMode::Stable).await }
            });
            let (mut before, mut partial) = (vec![0; 8], 0);
            while !writing.is_finished() {
                let found = first_bytes(&core, &file, 0).await.unwrap();
                assert!(found.iter().zip(&before).all(|(found, before)| found >= before));
                partial += u32::from(found.contains(&0) && found.contains(&1));
                before = found;
            }
            assert_eq!(first_bytes(&core, &file, 0).await.unwrap(), [1; 8]);
            partial
        });
    }
    assert!(partial > 0);
}

#[test]
fn a_dropped_future_leaves_its_operation_in_flight_and_its_buffer_taken() {
    let mut world = world(1);
    let core = world.boot(1).remove(0);
    let disk = world.disk("disk0");
    world.run(async move {
        let file = durable_file(&core, "a", 1).await;
        let tasks = [
            core.spawn({
                let (core, file) = (core.clone(), file.clone());
                async move { drop(write(&core, &file, 0, 1, WriteMode::Stable).await) }
            }),
            core.spawn({
                let (core, file) = (core.clone(), file.clone());
                async move { drop(first_bytes(&core, &file, 0).await) }
            }),
        ];
        core.sleep(Duration::from_micros(10)).await;
        drop(file);
        tasks.iter().for_each(|task| task.cancel());
        core.sleep(Duration::from_micros(5)).await;
        assert!(tasks.iter().all(|task| task.is_finished()));
        assert_eq!(core.arena().usage().used, 2 * BLOCK_LEN);
        core.sleep(Duration::from_secs(1)).await;
        assert_eq!((core.arena().usage().used, disk.read("a", 0, 1)), (0, vec![1]));
    });
}

#[test]
fn sleeping_takes_virtual_time_alone() {
    let mut world = world(1);
    let core = world.boot(1).remove(0);
    let slept = world.run(async move {
        let start = core.now();
        core.sleep(Duration::from_secs(86_400)).await;
        core.now().since(start)
    });
    assert!(slept >= Duration::from_secs(86_400) && slept < Duration::from_secs(86_401));
}

#[test]
fn a_dropped_sleep_leaves_no_timer() {
    let mut world = world(1);
    let core = world.boot(1).remove(0);
    let sleeper = core.clone();
    let task = core.spawn(async move { sleeper.sleep(Duration::from_secs(3600)).await });
    world.run_for(Duration::from_secs(1));
    task.cancel();
    world.run_until_idle();
    assert!(world.elapsed() < Duration::from_secs(2));
    assert!(task.is_finished());
}

#[test]
fn the_wall_clock_jumps_and_the_monotonic_does_not() {
    let mut world = world(1);
    let core = world.boot(1).remove(0);
    let (wall, now) = (core.wall(), core.now());
    world.jump_wall(-3600);
    assert_eq!(core.wall().unix_secs(), wall.unix_secs() - 3600);
    assert_eq!(core.now(), now);
}

#[test]
fn a_busy_loop_lets_time_pass() {
    let mut world = world(1);
    let core = world.boot(1).remove(0);
    world.run(async move {
        let sleeper = core.clone();
        let task = core.spawn(async move { sleeper.sleep(Duration::from_millis(1)).await });
        while !task.is_finished() {
            core.yield_now().await;
        }
    });
}

#[test]
#[should_panic(expected = "deadlock: seed 4711")]
fn a_deadlock_names_the_seed() {
    let mut world = world(4711);
    let _cores = world.boot(1);
    world.run(std::future::pending::<()>());
}

#[test]
#[should_panic(expected = "seed 4712")]
fn a_livelock_names_the_seed() {
    let mut world = World::new(4712, Config { events_max: 1000, ..Config::default() });
    let core = world.boot(1).remove(0);
    world.run(async move {
        loop {
            core.yield_now().await;
        }
    });
}

#[test]
#[should_panic(expected = "transfer of 512 bytes")]
fn a_transfer_smaller_than_a_block_is_refused() {
    let mut world = world(1);
    let core = world.boot(1).remove(0);
    world.run(async move {
        let file = durable_file(&core, "a", 1).await;
        let part = filled(&core, 1, 1).await.slice(0..512);
        let _ = file.write_vectored_at(vec![part], 0, WriteMode::Volatile).await;
    });
}

#[test]
fn both_schedules_run_every_task_and_only_the_seeded_one_shuffles() {
    let order = |seed, schedule| {
        let mut world = World::new(seed, Config { schedule, ..Config::default() });
        let core = world.boot(1).remove(0);
        let order = Rc::new(RefCell::new(Vec::new()));
        for task in 0..20 {
            let order = Rc::clone(&order);
            core.spawn(async move { order.borrow_mut().push(task) });
        }
        world.run_until_idle();
        order.take()
    };
    let in_order: Vec<i32> = (0..20).collect();
    assert_eq!(order(1, Schedule::Fifo), in_order);
    let mut shuffled = order(1, Schedule::Seeded);
    assert_ne!(shuffled, in_order);
    assert_ne!(shuffled, order(2, Schedule::Seeded));
    shuffled.sort_unstable();
    assert_eq!(shuffled, in_order);
}

#[test]
fn cores_talk_over_the_mesh() {
    for seed in 0..SEEDS {
        let mut world = world(seed);
        let cores = world.boot(3);
        let mut ports: Vec<_> = mesh::seeds::<u64, u64>(3)
            .into_iter()
            .zip(&cores)
            .map(|(seed, core)| seed.attach(core))
            .collect();
        for (index, (core, port)) in cores.iter().zip(&ports).enumerate().skip(1) {
            let (port, factor) = (port.clone(), index as u64);
            core.spawn(async move {
                loop {
                    let incoming = port.next().await;
                    incoming.reply.send(incoming.request * factor);
                }
            });
        }
        let port = ports.swap_remove(0);
        drop(ports);
        world.run(async move {
            for number in 0..50 {
                assert_eq!(port.call(CoreId(1), number).await, Ok(number));
                assert_eq!(port.call(CoreId(2), number).await, Ok(2 * number));
            }
        });
    }
}

/// A run with tasks, timers, disks and faults, as its digest.
fn digest(seed: u64) -> (u64, u64, Vec<Vec<u8>>) {
    let mut world = world(seed);
    world.disk("disk0").set_faults(Faults { write_error: 0.1, stall: 0.1, ..Faults::default() });
    for crash in [Crash::Kill, Crash::PowerCut] {
        for core in world.boot(2) {
            let worker = core.clone();
            core.spawn(async move {
                let disk = open(&worker).await;
                let name = format!("file{}", worker.id().0);
                let Ok(file) = disk.create_file(&name).or_else(|_| disk.open_file(&name)) else { return };
                loop {
                    let number = worker.random_u64();
                    let _ = write(&worker, &file, number % 8, number as u8, WriteMode::Volatile).await;
                    worker.sleep(Duration::from_nanos(number % 100_000)).await;
                    let _ = file.read_at(empty(&worker, 2).await, number % 8 * BLOCK).await;
                }
            });
        }
        world.run_for(Duration::from_millis(20));
        world.crash(crash);
    }
    let disk = world.disk("disk0");
    let left = disk.files().iter().map(|file| disk.read(file, 0, 8 * BLOCK_LEN)).collect();
    (world.trace_hash(), world.event_count(), left)
}

#[test]
fn equal_seeds_make_equal_histories() {
    let digests: Vec<_> = (0..8).map(digest).collect();
    assert_eq!(digests, (0..8).map(digest).collect::<Vec<_>>());
    assert_eq!(digests.iter().collect::<BTreeSet<_>>().len(), 8, "each seed has a history of its own");
}
