//! Files on a real ring and a real file system.

use std::path::PathBuf;
use std::time::Duration;

use basalt_reactor::ring::{self, Config};
use basalt_reactor::{Core, CoreId, Disk, Slice, WriteMode};

fn config() -> Config {
    Config { id: CoreId(0), cpu: None, arena_len: 16 << 20, entries: 64 }
}

fn directory(name: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).expect("create");
    path
}

fn run<T: 'static, F: Future<Output = T> + 'static>(main: impl FnOnce(Core) -> F) -> T {
    ring::run(&config(), main).expect("a ring")
}

fn filled(core: &Core, len: usize, fill: u8) -> Slice {
    let mut buf = core.arena().try_alloc(len).expect("room");
    buf.fill(fill);
    buf.freeze()
}

#[test]
fn what_is_written_is_read() {
    let path = directory("what_is_written_is_read");
    run(|core| async move {
        let disk = Disk::open(&core, &path).expect("open");
        let file = disk.create_file("data").expect("create");
        disk.sync().await.expect("sync directory");
        file.grow(1 << 20).await.expect("grow");
        assert_eq!(file.len().expect("len"), 1 << 20);
        file.grow(4096).await.expect("growing to less changes nothing");
        assert_eq!(file.len().expect("len"), 1 << 20);

        let zeros = core.arena().alloc(1 << 20).await;
        let (count, zeros) = file.read_at(zeros, 0).await;
        assert_eq!(count.expect("read"), 1 << 20);
        assert!(zeros.iter().all(|&byte| byte == 0));

        file.write_at(filled(&core, 8192, 1), 4096, WriteMode::Volatile).await.expect("write");
        file.write_at(filled(&core, 4096, 2), 8192, WriteMode::Stable).await.expect("write");
        let parts = vec![filled(&core, 4096, 3), filled(&core, 12288, 4), filled(&core, 4096, 5)];
        file.write_vectored_at(parts, 16384, WriteMode::Stable).await.expect("write");
        file.sync().await.expect("sync");

        let (count, buf) = file.read_at(core.arena().alloc(40960).await, 0).await;
        assert_eq!(count.expect("read"), 40960);
        let blocks: Vec<u8> = buf.chunks(4096).map(|block| block[0]).collect();
        assert_eq!(blocks, [0, 1, 2, 0, 3, 4, 4, 4, 5, 0]);
        let stats = ring::stats(&core);
        assert_eq!((stats.flushes, stats.disk_bytes_written), (4, 8192 + 4096 + 20480));
        assert_eq!(stats.disk_bytes_read, (1 << 20) + 40960);

        assert_eq!(disk.list().expect("list"), ["data"]);
        drop(file);
        let file = disk.open_file("data").expect("open again");
        assert_eq!(file.len().expect("len"), 1 << 20);
        disk.remove_file("data").expect("remove");
        assert_eq!(
            disk.open_file("data").map(drop).expect_err("removed").kind(),
            std::io::ErrorKind::NotFound
        );
        assert!(disk.space().expect("space").available > 0);
    });
}

#[test]
fn reads_end_where_the_file_ends() {
    let path = directory("reads_end_where_the_file_ends");
    std::fs::write(path.join("odd"), vec![7; 10_000]).expect("write");
    run(|core| async move {
        let file = Disk::open(&core, &path).expect("open").open_file("odd").expect("open");
        let (count, buf) = file.read_at(core.arena().alloc(16384).await, 0).await;
        assert_eq!((count.expect("read"), buf[9_999]), (10_000, 7));
        let (count, _) = file.read_at(core.arena().alloc(4096).await, 16384).await;
        assert_eq!(count.expect("read beyond the end"), 0);
    });
}

#[test]
fn bad_names_and_missing_things_are_refused() {
    let path = directory("bad_names_and_missing_things_are_refused");
    run(|core| async move {
        assert!(Disk::open(&core, &path.join("absent")).is_err());
        let disk = Disk::open(&core, &path).expect("open");
        for name in ["", ".", "..", "a/b", "../x", "a\0b"] {
            let error = disk.create_file(name).map(drop).expect_err("a bad name");
            assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
        }
        disk.create_file("twice").expect("create");
        let error = disk.create_file("twice").map(drop).expect_err("it exists");
        assert_eq!(error.kind(), std::io::ErrorKind::AlreadyExists);
        assert!(disk.open_file("absent").is_err());
        let far = 1 << 62;
        let file = disk.open_file("twice").expect("open");
        file.grow(far).await.expect_err("no file system is that large");
        assert_eq!(file.len().expect("len"), 0, "a failed grow changes nothing");
    });
}

/// Whether another process cannot have the lock.
fn taken(path: &std::path::Path) -> bool {
    let status = std::process::Command::new("flock")
        .args(["--nonblock", "--exclusive"])
        .arg(path.join("lock"))
        .arg("true")
        .status()
        .expect("flock(1)");
    !status.success()
}

#[test]
fn cores_of_one_process_share_a_lock() {
    let path = directory("cores_of_one_process_share_a_lock");
    let other = path.clone();
    run(|core| async move {
        let disk = Disk::open(&core, &path).expect("open");
        let first = disk.lock("lock").expect("lock");
        assert!(taken(&path));
        std::thread::spawn(move || {
            run(|core| async move {
                let disk = Disk::open(&core, &other).expect("open");
                drop(disk.lock("lock").expect("shared within the process"));
            });
        })
        .join()
        .expect("second core");
        assert!(taken(&path), "the first core still holds it");
        drop(first);
        assert!(!taken(&path));
        let holder = std::process::Command::new("flock")
            .args(["--exclusive"])
            .arg(path.join("lock"))
            .args(["sleep", "5"])
            .spawn();
        let mut holder = holder.expect("flock(1)");
        while !taken(&path) {
            core.sleep(Duration::from_millis(5)).await;
        }
        let error = disk.lock("lock").map(drop).expect_err("another process holds it");
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
        holder.kill().expect("kill");
        holder.wait().expect("wait");
    });
}

#[test]
fn a_lock_is_given_up_though_other_files_are_written_all_the_time() {
    let path = directory("a_lock_is_given_up_though_other_files_are_written");
    run(|core| async move {
        let disk = Disk::open(&core, &path).expect("open");
        let lock = disk.lock("lock").expect("lock");
        let file = disk.create_file("data").expect("create");
        file.grow(8 << 20).await.expect("grow");
        // At every moment some of them have a write in flight.
        let writers: Vec<_> = (0..8)
            .map(|index| {
                let (core, file) = (core.clone(), file.clone());
                core.clone().spawn(async move {
                    loop {
                        let data = filled(&core, 1 << 20, 1);
                        file.write_at(data, index << 20, WriteMode::Stable).await.expect("write");
                    }
                })
            })
            .collect();
        core.sleep(Duration::from_millis(50)).await;
        drop(lock);
        let deadline = core.now() + Duration::from_secs(20);
        while taken(&path) {
            assert!(core.now() < deadline, "the lock is never given up");
            core.sleep(Duration::from_millis(5)).await;
        }
        for writer in writers {
            writer.cancel();
        }
    });
}

/// The other half of the next test: takes the lock and writes until it is killed.
#[test]
#[ignore = "started by the test below, as a process to be killed"]
fn holds_the_lock_and_writes_for_ever() {
    let Some(path) = std::env::var_os("BASALT_TEST_DISK") else { return };
    run(|core| async move {
        let disk = Disk::open(&core, &PathBuf::from(path)).expect("open");
        let _lock = disk.lock("lock").expect("lock");
        let file = disk.create_file("data").expect("create");
        file.grow(8 << 20).await.expect("grow");
        loop {
            let writes: Vec<_> = (0..8)
                .map(|index| {
                    let (file, data) = (file.clone(), filled(&core, 1 << 20, 1));
                    core.spawn(async move { file.write_at(data, index << 20, WriteMode::Stable).await })
                })
                .collect();
            for write in writes {
                write.await.expect("not cancelled").expect("write");
            }
        }
    });
}

#[test]
fn a_killed_process_lets_go_of_its_lock_when_its_writes_are_over() {
    let path = directory("a_killed_process_lets_go_of_its_lock");
    let mut child = std::process::Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "holds_the_lock_and_writes_for_ever", "--ignored"])
        .env("BASALT_TEST_DISK", &path)
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("spawn");
    run(|core| async move {
        let disk = Disk::open(&core, &path).expect("open");
        while !path.join("data").exists() {
            core.sleep(Duration::from_millis(5)).await;
        }
        core.sleep(Duration::from_millis(50)).await;
        assert!(disk.lock("lock").is_err(), "the child holds it");
        child.kill().expect("kill");
        child.wait().expect("wait");
        let deadline = core.now() + Duration::from_secs(20);
        let lock = loop {
            match disk.lock("lock") {
                Ok(lock) => break lock,
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
            }
            assert!(core.now() < deadline, "the lock of a dead process is never released");
            core.sleep(Duration::from_millis(1)).await;
        };
        drop(lock);
    });
}

/// Operations dropped at every stage: nothing may be written to or read from memory that has found a new owner.
#[test]
fn operations_may_be_dropped_in_flight() {
    let path = directory("operations_may_be_dropped_in_flight");
    run(|core| async move {
        let disk = Disk::open(&core, &path).expect("open");
        let file = disk.create_file("data").expect("create");
        file.grow(1 << 20).await.expect("grow");
        for offset in (0..1 << 20).step_by(1 << 16) {
            file.write_at(filled(&core, 1 << 16, 0xAA), offset, WriteMode::Volatile).await.expect("write");
        }
        for round in 0..600_u64 {
            let offset = core.random_u64() % 16 * (1 << 16);
            let file = file.clone();
            let task = match round % 3 {
                0 => {
                    let buf = core.arena().alloc(1 << 16).await;
                    core.spawn(async move { drop(file.read_at(buf, offset).await) })
                }
                1 => {
                    let data = filled(&core, 1 << 16, 0xAA);
                    core.spawn(async move { drop(file.write_at(data, offset, WriteMode::Volatile).await) })
                }
                _ => {
                    let data = vec![filled(&core, 1 << 15, 0xAA), filled(&core, 1 << 15, 0xAA)];
                    core.spawn(
                        async move { drop(file.write_vectored_at(data, offset, WriteMode::Stable).await) },
                    )
                }
            };
            for _ in 0..core.random_u64() % 3 {
                core.yield_now().await;
            }
            task.cancel();
            drop(task);
            // Memory that was let go too early would now be written by a read, or read by a write.
            let mut other = core.arena().alloc(1 << 16).await;
            other.fill(0x55);
            core.yield_now().await;
            assert!(other.iter().all(|&byte| byte == 0x55), "round {round}");
        }
        let (count, buf) = file.read_at(core.arena().alloc(1 << 20).await, 0).await;
        assert_eq!(count.expect("read"), 1 << 20);
        assert!(buf.iter().all(|&byte| byte == 0xAA));
        drop(buf);
        while core.arena().usage().used > 0 {
            core.sleep(Duration::from_millis(1)).await;
        }
        // The last ones are in flight when the core goes down.
        for offset in 0..16 {
            let (file, buf) = (file.clone(), core.arena().alloc(1 << 16).await);
            core.spawn(async move { drop(file.read_at(buf, offset << 16).await) });
        }
        core.yield_now().await;
    });
}

/// More operations than the submission queue has entries, all at once.
#[test]
fn a_full_queue_submits_and_goes_on() {
    let path = directory("a_full_queue_submits_and_goes_on");
    run(|core| async move {
        let disk = Disk::open(&core, &path).expect("open");
        let file = disk.create_file("data").expect("create");
        file.grow(4 << 20).await.expect("grow");
        let writes: Vec<_> = (0..1000_u64)
            .map(|index| {
                let (file, data) = (file.clone(), filled(&core, 4096, index as u8));
                core.spawn(async move { file.write_at(data, index * 4096, WriteMode::Volatile).await })
            })
            .collect();
        // Completions, which may arrive one by one, are not waited for here.
        core.yield_now().await;
        let stats = ring::stats(&core);
        assert!(stats.submissions >= 1000 && stats.enters < stats.submissions / 4, "{stats:?}");
        for write in writes {
            write.await.expect("not cancelled").expect("write");
        }
        let (count, buf) = file.read_at(core.arena().alloc(1 << 20).await, 0).await;
        count.expect("read");
        assert!(buf.chunks(4096).enumerate().all(|(index, block)| block[4095] == index as u8));
    });
}
