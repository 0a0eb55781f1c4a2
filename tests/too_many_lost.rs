//! More disks gone than parity covers, beside the real server: what it still does, what it says, and that nothing is worse
//! when they are back.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "server/child.rs"]
mod child;
#[expect(dead_code, reason = "the tests of objects use all of it")]
#[path = "s3_objects/client.rs"]
mod client;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::child::{Child, directory, run_to_end};
use crate::client::{ACCESS_KEY, Answer, Client, SECRET_KEY};

/// Longer than it takes to notice that disks are gone or back, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn start(dir: &Path, more: &[&str]) -> (Child, Client) {
    let keys = ["--root-access-key", ACCESS_KEY, "--root-secret-key", SECRET_KEY];
    let server = Child::start(dir, &[&["--cores", "2", "d{1...6}"][..], more, &keys].concat());
    let client = Client::new(server.address);
    (server, client)
}

fn body_of(index: usize) -> Vec<u8> {
    (0..1usize << (8 + index)).map(|at| (at * 31 + index) as u8).collect()
}

fn put_all(client: &Client, prefix: &str) {
    for index in 0..14 {
        assert_eq!(client.call("PUT", &format!("/bucket/{prefix}{index}"), &[], &body_of(index)).status, 200);
    }
}

fn check_all(client: &Client, prefix: &str) {
    for index in 0..14 {
        let got = client.call("GET", &format!("/bucket/{prefix}{index}"), &[], b"");
        assert!(got.status == 200 && got.body == body_of(index), "{prefix}{index}: {}", got.status);
    }
}

/// Calls until the answer is as it should be.
fn until(
    what: &str,
    server: &Child,
    call: impl Fn() -> Answer,
    is_right: impl Fn(&Answer) -> bool,
) -> Answer {
    let start = Instant::now();
    loop {
        let answer = call();
        if is_right(&answer) {
            return answer;
        }
        assert!(start.elapsed() < PATIENCE, "not {what}: {answer:?}\n{}", server.stderr());
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn away(dir: &Path, disk: &str) {
    std::fs::rename(dir.join(disk), dir.join(format!("{disk}-away"))).unwrap();
}

fn back(dir: &Path, disk: &str) {
    // A start makes directories that are missing.
    if dir.join(disk).exists() {
        std::fs::remove_dir_all(dir.join(disk)).unwrap();
    }
    std::fs::rename(dir.join(format!("{disk}-away")), dir.join(disk)).unwrap();
}

fn stop(mut server: Child) {
    server.signal(Signal::TERM);
    assert_eq!(server.wait(), Some(0));
}

#[test]
fn three_of_six_disks_go_and_nothing_is_worse_when_they_are_back() {
    let dir = directory("too-many-lost");
    let (server, client) = start(&dir, &[]);
    assert_eq!(client.call("PUT", "/bucket", &[], b"").status, 200);
    put_all(&client, "a");
    for disk in ["d2", "d3", "d5"] {
        away(&dir, disk);
    }
    let put = || client.call("PUT", "/bucket/refused", &[], b"x");
    let refused = until("refused", &server, put, |answer| answer.status == 503);
    assert_eq!(refused.code(), "ServiceUnavailable");
    assert!(refused.element("Message").contains("Writes are refused"), "{refused:?}");
    let began = Instant::now();
    assert_eq!(client.call("DELETE", "/bucket/a3", &[], b"").status, 503);
    assert_eq!(client.call("PUT", "/other", &[], b"").status, 503);
    assert!(began.elapsed() < Duration::from_secs(5), "it is known by now");
    let ready = || client.call("GET", "/-/ready", &[], b"");
    until("unready", &server, ready, |answer| answer.status == 503);
    let disks = client.call("GET", "/-/disks", &[], b"");
    let report: Value = serde_json::from_slice(&disks.body).unwrap();
    assert_eq!(report["failures_tolerated"], Value::Null);
    let is_failing = |disk: &&Value| disk["state"] == "failing" && disk["reason"].is_string();
    assert_eq!(report["disks"].as_array().unwrap().iter().filter(is_failing).count(), 3, "{report:#}");
    // Their files are open, so all of it is there.
    check_all(&client, "a");
    let lines = server.stderr().matches("a disk fails that the set cannot do without").count();
    assert!((1..=6).contains(&lines), "{lines} lines: {}", server.stderr());
    for disk in ["d2", "d3", "d5"] {
        back(&dir, disk);
    }
    until("taken again", &server, put, |answer| answer.status == 200);
    until("ready", &server, ready, |answer| answer.status == 200);
    put_all(&client, "b");

    // The same, and a crash in the middle of it.
    for disk in ["d1", "d3", "d6"] {
        away(&dir, disk);
    }
    until("refused", &server, put, |answer| answer.status == 503);
    drop(server);
    let keys = ["--root-access-key", ACCESS_KEY, "--root-secret-key", SECRET_KEY];
    let (code, stderr) = run_to_end(&dir, &[&["--cores", "1", "d{1...6}"][..], &keys].concat());
    assert!(code != Some(0) && stderr.contains("4 are needed"), "{code:?} {stderr}");
    for disk in ["d1", "d3", "d6"] {
        back(&dir, disk);
    }
    let (server, client) = start(&dir, &[]);
    // An epoch without one of them may have been under way; it is rebuilt then.
    assert!(!server.banner.contains("DEGRADED: 2"), "{}", server.banner);
    check_all(&client, "a");
    check_all(&client, "b");
    put_all(&client, "c");
}

/// Every file below `dir`, with its bytes.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
    found
}

#[test]
fn what_is_left_is_read_and_no_file_changes() {
    let dir = directory("read-only");
    let (server, client) = start(&dir, &[]);
    assert_eq!(client.call("PUT", "/bucket", &[], b"").status, 200);
    put_all(&client, "a");
    drop(server);
    let disks = || (1..=6).filter_map(|disk| Some(dir.join(format!("d{disk}"))).filter(|path| path.is_dir()));
    let contents = || disks().map(|disk| files(&disk)).collect::<Vec<_>>();

    // All are there: everything is read, nothing is written, and nobody else may come in.
    let before = contents();
    let (server, client) = start(&dir, &["--start-read-only"]);
    assert!(server.banner.contains("READ-ONLY"), "{}", server.banner);
    check_all(&client, "a");
    assert!(client.call("GET", "/bucket?list-type=2", &[], b"").status == 200);
    for (method, target) in
        [("PUT", "/bucket/new"), ("DELETE", "/bucket/a1"), ("PUT", "/new"), ("DELETE", "/bucket")]
    {
        let refused = client.call(method, target, &[], b"");
        assert_eq!(
            (refused.status, refused.code()),
            (503, "ServiceUnavailable".to_owned()),
            "{method} {target}"
        );
        assert!(refused.element("Message").contains("read-only"), "{refused:?}");
    }
    let upload = client.call("POST", "/bucket/new?uploads=", &[], b"");
    assert_eq!(upload.status, 503);
    let (code, stderr) = run_to_end(&dir, &["--cores", "1", "d{1...6}"]);
    assert!(code != Some(0) && stderr.contains("in use by another process"), "{code:?} {stderr}");
    stop(server);
    assert!(contents() == before, "a start for reading alone has written");

    // Three are gone: every object is right or refused, and the log says what was lost.
    for disk in ["d1", "d4", "d6"] {
        away(&dir, disk);
    }
    let before = contents();
    let (server, client) = start(&dir, &["--start-read-only"]);
    assert!(server.banner.matches("is missing").count() == 3, "{}", server.banner);
    assert!(disks().count() == 3, "a directory was made");
    let mut refused = 0;
    for index in 0..14 {
        // The beginning of an object may be there, and what is lost further on cuts the answer.
        let call = || client.call("GET", &format!("/bucket/a{index}"), &[], b"");
        match std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)) {
            Ok(got) if got.status == 200 => assert_eq!(got.body, body_of(index)),
            Ok(got) => {
                assert_eq!(got.status, 503, "a{index}: {got:?}");
                refused += 1;
            }
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 0, "large objects lie on four disks and three are gone");
    let log = server.stderr();
    let is_loss =
        |line: &&str| line.contains("the engine failed") || line.contains("the body of an answer was cut");
    let line = log.lines().find(is_loss).unwrap_or_else(|| panic!("{log}"));
    assert!(line.contains("bucket") && line.contains("disks"), "{line}");
    assert!(log.contains("started read-only"), "{log}");
    assert_eq!(client.call("PUT", "/bucket/new", &[], b"x").status, 503);
    stop(server);
    assert!(contents() == before, "a start for reading alone has written");

    for disk in ["d1", "d4", "d6"] {
        back(&dir, disk);
    }
    let (_server, client) = start(&dir, &[]);
    check_all(&client, "a");
    put_all(&client, "b");
}
