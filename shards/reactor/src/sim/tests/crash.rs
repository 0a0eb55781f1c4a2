//! Power cuts and kills, in small scripted cases over many seeds.

use super::*;

/// Outcomes over many seeds of a power cut after `script` ran on a fresh, durable four-block file "a".
fn after_power_cut<F: Future<Output = ()> + 'static>(
    script: impl Fn(Core, File) -> F,
) -> Vec<(u64, Option<Vec<u8>>)> {
    (0..SEEDS)
        .map(|seed| {
            let mut world = world(seed);
            let core = world.boot(1).remove(0);
            let file = world.run({
                let core = core.clone();
                async move { durable_file(&core, "a", 4).await }
            });
            world.run(script(core, file));
            world.crash(Crash::PowerCut);
            let disk = world.disk("disk0");
            let read = disk.file_len("a").map(|len| disk.read("a", 0, len as usize));
            (seed, read)
        })
        .collect()
}

fn sectors(bytes: &[u8], block: usize) -> Vec<u8> {
    bytes[block * BLOCK_LEN..(block + 1) * BLOCK_LEN].chunks(512).map(|sector| sector[0]).collect()
}

#[test]
fn an_unsynced_write_is_kept_lost_or_torn() {
    let outcomes = after_power_cut(|core, file| async move {
        write(&core, &file, 1, 1, WriteMode::Stable).await.unwrap();
        write(&core, &file, 1, 2, WriteMode::Volatile).await.unwrap();
        write(&core, &file, 1, 3, WriteMode::Volatile).await.unwrap();
    });
    let found: Vec<Vec<u8>> = outcomes.iter().map(|(_, bytes)| sectors(bytes.as_ref().unwrap(), 1)).collect();
    assert!(found.iter().flatten().all(|byte| (1..=3).contains(byte)));
    for whole in 1..=3 {
        assert!(found.contains(&vec![whole; 8]), "no seed leaves the block whole as {whole}");
    }
    let mixed = |low, high| found.iter().any(|sectors| sectors.contains(&low) && sectors.contains(&high));
    assert!(mixed(1, 2) && mixed(2, 3) && mixed(1, 3));
}

#[test]
fn a_stable_write_is_never_lost_and_saves_no_other_range() {
    let outcomes = after_power_cut(|core, file| async move {
        write(&core, &file, 0, 5, WriteMode::Volatile).await.unwrap();
        write(&core, &file, 1, 6, WriteMode::Volatile).await.unwrap();
        write(&core, &file, 1, 7, WriteMode::Stable).await.unwrap();
    });
    let outcomes: Vec<Vec<u8>> = outcomes.into_iter().map(|(_, bytes)| bytes.unwrap()).collect();
    assert!(outcomes.iter().all(|bytes| sectors(bytes, 1) == [7; 8]));
    assert!(outcomes.iter().any(|bytes| sectors(bytes, 0) == [0; 8]));
    assert!(outcomes.iter().any(|bytes| sectors(bytes, 0) == [5; 8]));
}

#[test]
fn a_sync_covers_what_completed_before_it_started_and_nothing_later() {
    let mut found = BTreeSet::new();
    for seed in 0..SEEDS {
        let mut world = world(seed);
        let core = world.boot(1).remove(0);
        let disk = world.disk("disk0");
        world.run(async move {
            let file = durable_file(&core, "a", 2).await;
            write(&core, &file, 0, 1, WriteMode::Volatile).await.unwrap();
            disk.set_slowness(1000);
            let syncing = core.spawn({
                let file = file.clone();
                async move { file.sync().await }
            });
            core.sleep(Duration::from_micros(5)).await;
            disk.set_slowness(1);
            write(&core, &file, 0, 2, WriteMode::Volatile).await.unwrap();
            write(&core, &file, 1, 2, WriteMode::Volatile).await.unwrap();
            assert!(!syncing.is_finished());
            syncing.await.unwrap().unwrap();
        });
        world.crash(Crash::PowerCut);
        let bytes = world.disk("disk0").read("a", 0, 2 * BLOCK_LEN);
        found.extend(sectors(&bytes, 0).into_iter().zip(sectors(&bytes, 1)));
    }
    assert_eq!(found, BTreeSet::from([(1, 0), (1, 2), (2, 0), (2, 2)]));
}

#[test]
fn a_sync_covers_no_growth_and_no_name_that_came_after_its_start() {
    let mut found = BTreeSet::new();
    for seed in 0..SEEDS {
        let mut world = world(seed);
        let core = world.boot(1).remove(0);
        let disk = world.disk("disk0");
        world.run(async move {
            let own = open(&core).await;
            let file = durable_file(&core, "a", 1).await;
            disk.set_slowness(1000);
            let syncing = core.spawn({
                let file = file.clone();
                async move { file.sync().await }
            });
            let naming = core.spawn({
                let own = own.clone();
                async move { own.sync().await }
            });
            core.sleep(Duration::from_micros(5)).await;
            disk.set_slowness(1);
            own.create_file("b").unwrap();
            file.grow(2 * BLOCK).await.unwrap();
            assert!(!syncing.is_finished() && !naming.is_finished());
            syncing.await.unwrap().unwrap();
            naming.await.unwrap().unwrap();
        });
        world.crash(Crash::PowerCut);
        let disk = world.disk("disk0");
        found.insert((disk.file_len("a").unwrap() / BLOCK, disk.file_len("b")));
    }
    assert_eq!(found, BTreeSet::from([(1, None), (1, Some(0)), (2, None), (2, Some(0))]));
}

#[test]
fn a_write_in_flight_tears() {
    let outcomes = after_power_cut(|core, file| async move {
        write(&core, &file, 0, 1, WriteMode::Stable).await.unwrap();
        core.spawn({
            let core = core.clone();
            async move { write(&core, &file, 0, 2, WriteMode::Stable).await }
        });
        core.sleep(Duration::from_micros(5)).await;
    });
    let found: Vec<Vec<u8>> = outcomes.into_iter().map(|(_, bytes)| sectors(&bytes.unwrap(), 0)).collect();
    assert!(found.contains(&vec![1; 8]) && found.contains(&vec![2; 8]));
    assert!(found.iter().any(|sectors| sectors.contains(&1) && sectors.contains(&2)));
    assert!(found.iter().flatten().all(|byte| (1..=2).contains(byte)));
}

#[test]
fn unsynced_growth_may_be_lost_and_a_stable_write_saves_it() {
    let lengths = |outcomes: Vec<(u64, Option<Vec<u8>>)>| -> BTreeSet<usize> {
        outcomes.into_iter().map(|(_, bytes)| bytes.unwrap().len() / BLOCK_LEN).collect()
    };
    let grown = lengths(after_power_cut(|_, file| async move {
        file.grow(6 * BLOCK).await.unwrap();
        file.grow(9 * BLOCK).await.unwrap();
    }));
    assert_eq!(grown, BTreeSet::from([4, 6, 9]));
    let saved = lengths(after_power_cut(|core, file| async move {
        file.grow(9 * BLOCK).await.unwrap();
        write(&core, &file, 0, 1, WriteMode::Stable).await.unwrap();
    }));
    assert_eq!(saved, BTreeSet::from([9]));
    let extended = lengths(after_power_cut(|core, file| async move {
        write(&core, &file, 5, 1, WriteMode::Stable).await.unwrap();
        write(&core, &file, 7, 1, WriteMode::Volatile).await.unwrap();
    }));
    assert_eq!(extended, BTreeSet::from([6, 8]));
}

#[test]
fn lost_growth_reads_as_zeros_when_it_comes_back() {
    for seed in 0..SEEDS {
        let mut world = world(seed);
        let core = world.boot(1).remove(0);
        world.run(async move {
            let file = durable_file(&core, "a", 1).await;
            file.grow(2 * BLOCK).await.unwrap();
            write(&core, &file, 1, 9, WriteMode::Volatile).await.unwrap();
        });
        world.crash(Crash::PowerCut);
        let shortened = world.disk("disk0").file_len("a") == Some(BLOCK);
        let core = world.boot(1).remove(0);
        let found = world.run(async move {
            let file = open(&core).await.open_file("a").unwrap();
            file.grow(2 * BLOCK).await.unwrap();
            first_bytes(&core, &file, 1).await.unwrap()
        });
        assert!(!shortened || found == [0; 8]);
    }
}

#[test]
fn names_last_after_a_directory_sync_alone() {
    let mut seen = BTreeSet::new();
    for seed in 0..SEEDS {
        let mut world = world(seed);
        let core = world.boot(1).remove(0);
        world.run(async move {
            drop(durable_file(&core, "kept", 1).await);
            drop(durable_file(&core, "removed", 1).await);
            let disk = open(&core).await;
            let created = disk.create_file("created").unwrap();
            write(&core, &created, 0, 1, WriteMode::Stable).await.unwrap();
            created.sync().await.unwrap();
            disk.remove_file("removed").unwrap();
        });
        world.crash(Crash::PowerCut);
        let disk = world.disk("disk0");
        let files = disk.files();
        assert!(files.contains(&"kept".to_owned()));
        if files.contains(&"created".to_owned()) {
            assert_eq!(sectors(&disk.read("created", 0, BLOCK_LEN), 0), [1; 8]);
        }
        seen.insert(files);
    }
    assert_eq!(seen.len(), 4, "{seen:?}");
}

#[test]
fn a_kill_loses_no_completed_write_but_a_later_power_cut_may() {
    let mut bytes = BTreeSet::new();
    for seed in 0..SEEDS {
        let mut world = world(seed);
        let core = world.boot(1).remove(0);
        world.run(async move {
            let file = durable_file(&core, "a", 1).await;
            write(&core, &file, 0, 3, WriteMode::Volatile).await.unwrap();
        });
        world.crash(Crash::Kill);
        assert_eq!(sectors(&world.disk("disk0").read("a", 0, BLOCK_LEN), 0), [3; 8]);
        assert_eq!(sectors(&world.disk("disk0").read_durable("a", 0, BLOCK_LEN), 0), [0; 8]);
        world.crash(Crash::PowerCut);
        bytes.extend(world.disk("disk0").read("a", 0, BLOCK_LEN));
    }
    assert_eq!(bytes, BTreeSet::from([0, 3]));
}

/// The next process finds the lock taken while writes of the killed one may land, sees at least one land in that
/// time, and never one after the lock is its own.
#[test]
fn a_killed_process_holds_its_lock_until_its_writes_are_over() {
    let (mut refused, mut landed_whole, mut landed_in_part, mut never_landed) = (0, 0, 0, 0);
    for seed in 0..SEEDS {
        let mut world = world(seed);
        let core = world.boot(1).remove(0);
        world.run(async move {
            let file = durable_file(&core, "a", 8).await;
            std::mem::forget(open(&core).await.lock("lock").unwrap());
            core.spawn({
                let core = core.clone();
                async move { file.write_at(filled(&core, 8, 1).await, 0, WriteMode::Stable).await }
            });
            core.sleep(Duration::from_micros(10)).await;
        });
        world.crash(Crash::Kill);
        let handle = world.disk("disk0");
        let before = handle.read("a", 0, 8 * BLOCK_LEN);
        let core = world.boot(1).remove(0);
        let probe = handle.clone();
        let (waited, locked) = world.run(async move {
            let disk = open(&core).await;
            let mut waited = false;
            loop {
                match disk.lock("lock") {
                    Ok(_lock) => return (waited, probe.read("a", 0, 8 * BLOCK_LEN)),
                    Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
                }
                waited = true;
                core.sleep(Duration::from_micros(100)).await;
            }
        });
        world.run_for(Duration::from_secs(1));
        assert_eq!(handle.read("a", 0, 8 * BLOCK_LEN), locked, "a write landed after the lock was taken");
        assert_eq!(before, vec![0; 8 * BLOCK_LEN]);
        refused += u32::from(waited);
        match locked.iter().map(|&byte| usize::from(byte)).sum::<usize>() {
            0 => never_landed += 1,
            sum if sum == locked.len() => landed_whole += 1,
            _ => landed_in_part += 1,
        }
    }
    assert!(refused > 0 && landed_whole > 0 && landed_in_part > 0 && never_landed > 0);
}

#[test]
fn a_lock_is_shared_within_a_process_and_passes_on_when_released() {
    let mut world = world(1);
    let cores = world.boot(2);
    let other = world.boot(1).remove(0);
    let core = other.clone();
    world.run(async move {
        let held: Vec<_> = [&cores[0], &cores[1]]
            .map(|core| Disk::open(core, Path::new("disk0")).unwrap().lock("lock").unwrap())
            .into();
        let disk = open(&core).await;
        assert_eq!(disk.lock("lock").err().map(|error| error.kind()), Some(io::ErrorKind::WouldBlock));
        drop(held);
        drop(disk.lock("lock").unwrap());
        assert_eq!(disk.list().unwrap(), ["lock"]);
    });
}

#[test]
fn a_killed_process_leaves_the_other_alone() {
    let mut world = world(1);
    let first = world.boot(1).remove(0);
    let second = world.boot(1).remove(0);
    let (sleeper, ticks) = (second.clone(), Rc::new(RefCell::new(0)));
    second.spawn({
        let ticks = Rc::clone(&ticks);
        async move {
            loop {
                sleeper.sleep(Duration::from_millis(1)).await;
                *ticks.borrow_mut() += 1;
            }
        }
    });
    let task = first.spawn(std::future::pending::<()>());
    world.kill(&first);
    world.run_for(Duration::from_secs(1));
    assert!(!task.is_finished());
    assert!(*ticks.borrow() > 900);
    assert!(Disk::open(&first, Path::new("disk0")).unwrap().list().is_err());
}

#[test]
fn what_destructors_do_in_a_crash_reaches_no_disk() {
    struct Remover(Disk, Core);
    impl Drop for Remover {
        fn drop(&mut self) {
            assert!(self.0.remove_file("a").is_err());
            self.1.spawn(async { unreachable!("a dead process starts no task") });
        }
    }
    for crash in [Crash::Kill, Crash::PowerCut] {
        let mut world = world(1);
        let core = world.boot(1).remove(0);
        world.run(async move {
            drop(durable_file(&core, "a", 1).await);
            let remover = Remover(open(&core).await, core.clone());
            core.spawn(async move {
                std::future::pending::<()>().await;
                drop(remover);
            });
            core.yield_now().await;
        });
        world.crash(crash);
        world.run_until_idle();
        assert_eq!(world.disk("disk0").files(), ["a"]);
    }
}

#[test]
fn a_run_can_be_cut_after_any_number_of_events() {
    let total = {
        let mut world = world(3);
        let core = world.boot(1).remove(0);
        world.run(async move { drop(durable_file(&core, "a", 1).await) });
        world.event_count()
    };
    for events in 0..=total {
        let mut world = world(3);
        let core = world.boot(1).remove(0);
        let done = world.run_events(events, async move { drop(durable_file(&core, "a", 1).await) });
        assert_eq!(done.is_some(), events == total);
        world.crash(Crash::PowerCut);
        assert!(done.is_none() || world.disk("disk0").file_len("a") == Some(BLOCK));
    }
}

#[test]
fn a_larger_sector_is_never_torn() {
    for seed in 0..SEEDS {
        let mut config = Config::with_disks(1, 1 << 20);
        config.disks[0].sector_len = BLOCK_LEN;
        let mut world = World::new(seed, config);
        let core = world.boot(1).remove(0);
        world.run(async move {
            let file = durable_file(&core, "a", 4).await;
            file.write_at(filled(&core, 4, 1).await, 0, WriteMode::Volatile).await.unwrap();
        });
        world.crash(Crash::PowerCut);
        let bytes = world.disk("disk0").read("a", 0, 4 * BLOCK_LEN);
        assert!(bytes.chunks(BLOCK_LEN).all(|block| block.iter().all(|byte| *byte == block[0])));
    }
}

/// The orphaned write of a process waits on a stuck disk, and so does whoever wants the lock.
#[test]
fn a_stuck_disk_keeps_the_lock_of_a_killed_process() {
    let mut world = world(1);
    let core = world.boot(1).remove(0);
    let handle = world.disk("disk0");
    handle.set_stuck(true);
    let lock = world.run(async move {
        let disk = open(&core).await;
        let lock = disk.lock("lock").unwrap();
        let file = disk.create_file("a").unwrap();
        core.spawn({
            let core = core.clone();
            async move { write(&core, &file, 0, 1, WriteMode::Volatile).await }
        });
        core.yield_now().await;
        core.sleep(Duration::from_micros(10)).await;
        lock
    });
    world.crash(Crash::Kill);
    drop(lock);
    let core = world.boot(1).remove(0);
    world.run(async move {
        let disk = open(&core).await;
        core.sleep(Duration::from_secs(60)).await;
        assert_eq!(disk.lock("lock").err().map(|error| error.kind()), Some(io::ErrorKind::WouldBlock));
        handle.set_stuck(false);
        core.sleep(Duration::from_secs(1)).await;
        assert!(disk.lock("lock").is_ok());
    });
}

/// More versions of a block than the model keeps: the oldest may have reached the medium, nothing else changes.
#[test]
fn many_unsynced_writes_of_one_block_leave_any_of_them() {
    let outcomes = after_power_cut(|core, file| async move {
        for number in 1..=40 {
            write(&core, &file, 0, number, WriteMode::Volatile).await.unwrap();
        }
        assert_eq!(first_bytes(&core, &file, 0).await.unwrap(), [40; 8]);
    });
    let found: BTreeSet<u8> =
        outcomes.into_iter().flat_map(|(_, bytes)| sectors(&bytes.unwrap(), 0)).collect();
    let written_back = 40 - super::super::media::VERSIONS_MAX as u8;
    assert!(found.len() > 5 && found.contains(&40), "{found:?}");
    assert!(found.first() >= Some(&written_back), "{found:?}");
}
