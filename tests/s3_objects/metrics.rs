//! What the server says of its storage: each figure moves with what it measures.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::child::directory;
use crate::{KIB, MIB, Server, content, cores, start_on};

/// Far longer than any figure takes to show, which is a quarter of a second.
const PATIENCE: Duration = Duration::from_secs(30);

/// Longer than a block that was read around waits for its repair.
const MENDED_WITHIN: Duration = Duration::from_secs(5);

/// The figure, summed over the cores.
fn figure(server: &Server, name: &str) -> u64 {
    let answer = server.client.call("GET", "/-/metrics", &[], b"");
    let text = String::from_utf8(answer.body).unwrap();
    let start = format!("{name}{{core=");
    let lines = text.lines().filter(|line| line.starts_with(&start));
    let values = lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap());
    values.reduce(|a, b| a + b).unwrap_or_else(|| panic!("no {name} in\n{text}"))
}

/// Waits until the figure is as `wanted`.
fn await_figure(server: &Server, name: &str, wanted: impl Fn(u64) -> bool) -> u64 {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let value = figure(server, name);
        if wanted(value) {
            return value;
        }
        assert!(Instant::now() < deadline, "{name} stays at {value}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The data arena on `disk` that holds `pattern`, and where.
fn find(disk: &Path, pattern: &[u8]) -> (PathBuf, u64) {
    for entry in std::fs::read_dir(disk).unwrap().flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "data") {
            let bytes = std::fs::read(&path).unwrap();
            // Bodies begin on a block.
            if let Some(block) = bytes.chunks(4096).position(|block| block.starts_with(pattern)) {
                return (path, block as u64 * 4096);
            }
        }
    }
    panic!("no arena below {} holds the object", disk.display());
}

fn byte_at(path: &Path, offset: u64) -> u8 {
    let mut byte = [0];
    std::fs::File::open(path).unwrap().read_exact_at(&mut byte, offset).unwrap();
    byte[0]
}

fn flip(path: &Path, offset: u64) {
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(&[byte_at(path, offset) ^ 1], offset).unwrap();
}

#[test]
fn every_figure_of_the_store_moves_with_what_it_measures() {
    let dir = directory("objects-metrics");
    let mut server = start_on(&dir, &["left", "right"], &[]);
    assert_eq!(server.client.call("PUT", "/bucket", &[], b"").status, 200);
    let live = await_figure(&server, "basalt_live_bytes", |bytes| bytes == 0);
    let entries = await_figure(&server, "basalt_index_entries", |count| count > 0);
    let small = content(4 * KIB);
    for index in 0..100 {
        assert_eq!(server.client.call("PUT", &format!("/bucket/{index}"), &[], &small).status, 200);
    }
    let large = content(MIB);
    assert_eq!(server.client.call("PUT", "/bucket/large", &[], &large).status, 200);
    let stored = (100 * small.len() + large.len()) as u64;
    let now = await_figure(&server, "basalt_live_bytes", |bytes| bytes >= live + stored);
    assert!(now < stored + stored / 4, "{now} bytes for {stored}");
    await_figure(&server, "basalt_index_entries", |count| count >= entries + 101);
    await_figure(&server, "basalt_memtable_bytes", |bytes| bytes > 101 * 100);
    await_figure(&server, "basalt_log_bytes", |bytes| bytes > 100 * 4096);
    // Each core says it of itself.
    await_figure(&server, "basalt_failures_tolerated", |count| count.to_string() == cores());

    assert_eq!(figure(&server, "basalt_blocks_corrupt_total"), 0);
    assert_eq!(figure(&server, "basalt_blocks_restored_total"), 0);
    for disk in ["left", "right"] {
        // One of the two columns is parity, which nobody reads as long as the other is good.
        let (arena, offset) = find(&dir.join(disk), &large[..512]);
        flip(&arena, offset + 100);
        let got = server.client.call("GET", "/bucket/large", &[], b"");
        assert!(got.status == 200 && got.body == large, "a wrong byte left");
        // What a reader met is mended on the disk. What none has met, the parity, is put right here.
        let deadline = Instant::now() + MENDED_WITHIN;
        while byte_at(&arena, offset + 100) != large[100] && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        if byte_at(&arena, offset + 100) != large[100] {
            flip(&arena, offset + 100);
        }
    }
    await_figure(&server, "basalt_blocks_corrupt_total", |count| count > 0);
    await_figure(&server, "basalt_blocks_restored_total", |count| count > 0);
    assert_eq!(server.client.call("DELETE", "/bucket/large", &[], b"").status, 204);
    await_figure(&server, "basalt_live_bytes", |bytes| bytes < MIB as u64);
    await_log_queue(&server);

    server.child.signal(Signal::TERM);
    assert_eq!(server.child.wait(), Some(0));
    let server = start_on(&dir, &["left", "right"], &[]);
    await_figure(&server, "basalt_index_bytes", |bytes| bytes > 101 * 100);
    await_figure(&server, "basalt_index_entries", |count| count > 101);
}

/// Writes from many clients at once until some are seen waiting for their batch.
fn await_log_queue(server: &Server) {
    let (over, deadline) = (AtomicBool::new(false), Instant::now() + PATIENCE);
    std::thread::scope(|scope| {
        for index in 0..16 {
            let over = &over;
            scope.spawn(move || {
                let mut status = 200;
                while status == 200 && !over.load(Ordering::Relaxed) && Instant::now() < deadline {
                    status = server.client.call("PUT", &format!("/bucket/of-{index}"), &[], b"x").status;
                }
                assert_eq!(status, 200);
            });
        }
        await_figure(server, "basalt_log_queue", |count| count > 0);
        over.store(true, Ordering::Relaxed);
    });
    await_figure(server, "basalt_log_queue", |count| count == 0);
}
