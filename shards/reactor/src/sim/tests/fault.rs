//! Faults: errors, rot, stuck and full disks, pulled cables.

use super::*;
use crate::sim::Access;

/// Runs `script` on a fresh, durable four-block file "a" and a handle on its disk.
fn with_file<T: 'static, F: Future<Output = T> + 'static>(
    seed: u64,
    script: impl FnOnce(Core, File, DiskHandle) -> F + 'static,
) -> T {
    let mut world = world(seed);
    let core = world.boot(1).remove(0);
    let disk = world.disk("disk0");
    world.run(async move {
        let file = durable_file(&core, "a", 4).await;
        script(core, file, disk).await
    })
}

fn is_eio<T>(result: &io::Result<T>) -> bool {
    result.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EIO))
}

#[test]
fn rot_shows_and_a_write_heals_it() {
    with_file(1, |core, file, disk| async move {
        disk.corrupt("a", BLOCK + 512, 0x80);
        assert_eq!(first_bytes(&core, &file, 1).await.unwrap(), [0, 0x80, 0, 0, 0, 0, 0, 0]);
        write(&core, &file, 1, 1, WriteMode::Stable).await.unwrap();
        assert_eq!(first_bytes(&core, &file, 1).await.unwrap(), [1; 8]);
    });
}

#[test]
fn unreadable_sectors_fail_until_they_are_written() {
    with_file(1, |core, file, disk| async move {
        disk.make_unreadable("a", 2 * BLOCK + 100, 1);
        assert!(is_eio(&first_bytes(&core, &file, 2).await));
        assert!(first_bytes(&core, &file, 1).await.is_ok());
        write(&core, &file, 2, 1, WriteMode::Volatile).await.unwrap();
        assert!(first_bytes(&core, &file, 2).await.is_ok());
    });
}

#[test]
fn injected_errors_hit_their_kind_alone() {
    with_file(1, |core, file, disk| async move {
        for access in [Access::Read, Access::Write, Access::Sync] {
            disk.set_failing(access, true);
            assert_eq!(is_eio(&first_bytes(&core, &file, 0).await), access == Access::Read);
            assert_eq!(
                is_eio(&write(&core, &file, 0, 1, WriteMode::Volatile).await),
                access == Access::Write
            );
            assert_eq!(is_eio(&write(&core, &file, 0, 1, WriteMode::Stable).await), access != Access::Read);
            assert_eq!(is_eio(&file.sync().await), access == Access::Sync);
            disk.set_failing(access, false);
        }
    });
}

#[test]
fn a_failed_write_leaves_old_and_new_sectors() {
    let found: BTreeSet<u8> = (0..SEEDS)
        .flat_map(|seed| {
            with_file(seed, |core, file, disk| async move {
                disk.set_failing(Access::Write, true);
                assert!(is_eio(&write(&core, &file, 0, 1, WriteMode::Stable).await));
                first_bytes(&core, &file, 0).await.unwrap()
            })
        })
        .collect();
    assert_eq!(found, BTreeSet::from([0, 1]));
}

#[test]
fn after_a_failed_sync_a_later_one_proves_nothing() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..SEEDS {
        let mut world = world(seed);
        let core = world.boot(1).remove(0);
        let disk = world.disk("disk0");
        let seen = world.run(async move {
            let file = durable_file(&core, "a", 1).await;
            write(&core, &file, 0, 1, WriteMode::Volatile).await.unwrap();
            disk.set_failing(Access::Sync, true);
            assert!(is_eio(&file.sync().await));
            disk.set_failing(Access::Sync, false);
            file.sync().await.unwrap();
            first_bytes(&core, &file, 0).await.unwrap()[0]
        });
        world.crash(Crash::PowerCut);
        outcomes.insert((seen, world.disk("disk0").read("a", 0, 1)[0]));
    }
    assert_eq!(
        outcomes,
        BTreeSet::from([(0, 0), (1, 0), (1, 1)]),
        "what is seen after it, and after a power cut"
    );
}

#[test]
fn a_stuck_disk_completes_nothing_until_it_is_released() {
    with_file(1, |core, file, disk| async move {
        let started = core.now();
        disk.set_stuck(true);
        core.spawn({
            let core = core.clone();
            async move {
                core.sleep(Duration::from_secs(5)).await;
                disk.set_stuck(false);
            }
        });
        write(&core, &file, 0, 1, WriteMode::Volatile).await.unwrap();
        assert!(core.now().since(started) >= Duration::from_secs(5));
    });
}

#[test]
#[should_panic(expected = "1 of them on stuck disks")]
fn waiting_for_a_stuck_disk_is_a_deadlock() {
    with_file(1, |core, file, disk| async move {
        disk.set_stuck(true);
        let _ = first_bytes(&core, &file, 0).await;
    });
}

#[test]
fn a_slow_disk_takes_its_time() {
    with_file(1, |core, file, disk| async move {
        disk.set_slowness(10_000);
        let started = core.now();
        first_bytes(&core, &file, 0).await.unwrap();
        assert!(core.now().since(started) >= Duration::from_millis(500));
    });
}

#[test]
fn a_full_disk_refuses_growth_and_changes_nothing() {
    with_file(1, |core, file, disk| async move {
        let own = open(&core).await;
        disk.occupy((1 << 30) - 6 * BLOCK);
        assert_eq!(own.space().unwrap().available, 2 * BLOCK);
        assert_eq!(file.grow(7 * BLOCK).await.unwrap_err().kind(), io::ErrorKind::StorageFull);
        let beyond = write(&core, &file, 6, 1, WriteMode::Stable).await;
        assert_eq!(beyond.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(file.len().unwrap(), 4 * BLOCK);
        file.grow(6 * BLOCK).await.unwrap();
        assert_eq!(own.space().unwrap().available, 0);
        write(&core, &file, 5, 1, WriteMode::Stable).await.unwrap();
        own.remove_file("a").unwrap();
        assert_eq!(own.space().unwrap().available, 0, "an open file keeps its space");
        drop(file);
        assert_eq!(own.space().unwrap().available, 6 * BLOCK);
    });
}

#[test]
fn an_unplugged_disk_fails_its_handles_for_good() {
    with_file(1, |core, file, disk| async move {
        write(&core, &file, 0, 1, WriteMode::Stable).await.unwrap();
        let in_flight = core.spawn({
            let (core, file) = (core.clone(), file.clone());
            async move { first_bytes(&core, &file, 0).await }
        });
        core.sleep(Duration::from_micros(3)).await;
        disk.unplug();
        assert!(is_eio(&in_flight.await.unwrap()));
        let absent = Disk::open(&core, Path::new("disk0")).err().map(|error| error.kind());
        assert_eq!(absent, Some(io::ErrorKind::NotFound));
        disk.plug();
        assert!(is_eio(&first_bytes(&core, &file, 0).await));
        assert!(is_eio(&file.len()));
        let again = open(&core).await.open_file("a").unwrap();
        assert_eq!(first_bytes(&core, &again, 0).await.unwrap(), [1; 8]);
        drop(file);
        assert_eq!(first_bytes(&core, &again, 0).await.unwrap(), [1; 8]);
    });
}

#[test]
fn images_and_swaps_move_contents() {
    let mut world = world(1);
    let core = world.boot(1).remove(0);
    let (disk, other) = (world.disk("disk0"), world.disk("disk1"));
    world.run(async move {
        let file = durable_file(&core, "a", 1).await;
        write(&core, &file, 0, 1, WriteMode::Stable).await.unwrap();
        let old = disk.image();
        write(&core, &file, 0, 2, WriteMode::Stable).await.unwrap();
        disk.swap(&other);
        assert!(is_eio(&file.len()));
        assert_eq!((disk.files().len(), other.read("a", 0, 1)), (0, vec![2]));
        disk.put_image(old);
        assert_eq!(disk.read("a", 0, 1), [1]);
    });
}

#[test]
fn tampering_stays_and_looks_at_nothing_else() {
    with_file(1, |core, file, disk| async move {
        write(&core, &file, 1, 1, WriteMode::Volatile).await.unwrap();
        disk.overwrite("a", BLOCK + 4094, &[9, 8, 7]);
        assert_eq!(disk.read("a", BLOCK + 4093, 5), [1, 9, 8, 7, 0]);
        assert_eq!(disk.read_durable("a", BLOCK + 4093, 5), [1, 9, 8, 7, 0]);
    });
}

#[test]
fn faults_happen_by_themselves_at_their_rates() {
    let faults = Faults { read_error: 0.1, write_error: 0.1, sync_error: 0.1, ..Faults::default() };
    let counts = with_file(7, move |core, file, disk| async move {
        disk.set_faults(faults);
        let mut counts = [0; 3];
        for _ in 0..500 {
            counts[0] += u32::from(is_eio(&first_bytes(&core, &file, 0).await));
            counts[1] += u32::from(is_eio(&write(&core, &file, 0, 1, WriteMode::Volatile).await));
            counts[2] += u32::from(is_eio(&file.sync().await));
        }
        counts
    });
    assert!(counts.iter().all(|count| (20..100).contains(count)), "{counts:?}");
}

#[test]
fn rot_misdirection_and_stalls_happen() {
    with_file(7, |core, file, disk| async move {
        disk.set_faults(Faults { bit_rot: 1.0, ..Faults::default() });
        let (_, buf) = file.read_at(empty(&core, 4).await, 0).await;
        assert_eq!(buf.iter().map(|byte| byte.count_ones()).sum::<u32>(), 1);
        disk.set_faults(Faults { misdirected_write: 1.0, ..Faults::default() });
        for _ in 0..20 {
            write(&core, &file, 0, 3, WriteMode::Stable).await.unwrap();
        }
        assert_eq!(disk.read("a", 3 * BLOCK, 512), [3; 512]);
        let stall_for = Duration::from_secs(30);
        disk.set_faults(Faults { stall: 1.0, stall_for, ..Faults::default() });
        let started = core.now();
        file.sync().await.unwrap();
        assert!(core.now().since(started) >= stall_for);
    });
}
