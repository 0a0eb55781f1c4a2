//! `basalt disk` beside the real server: listed, removed, returned, replaced; spares; and what superblocks say offline.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "server/child.rs"]
mod child;
#[expect(dead_code, reason = "the tests of objects use all of it")]
#[path = "s3_objects/client.rs"]
mod client;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::child::{Child, directory, run_to_end};
use crate::client::{ACCESS_KEY, Client, SECRET_KEY};

/// Longer than rebuilding a few MiB takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn start(dir: &Path, more: &[&str]) -> Child {
    let keys = ["--root-access-key", ACCESS_KEY, "--root-secret-key", SECRET_KEY];
    Child::start(dir, &[&["--cores", "1"][..], more, &keys].concat())
}

/// Exit code, standard output and error of `basalt disk …`.
fn disk(dir: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_basalt"));
    command.current_dir(dir).arg("disk").args(arguments);
    let ran = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (ran.status.code(), text(ran.stdout), text(ran.stderr))
}

/// As [`disk`], of a server, with its root credentials.
fn tell(dir: &Path, server: &Child, arguments: &[&str]) -> (Option<i32>, String, String) {
    let endpoint = format!("http://{}", server.address);
    let keys = ["--root-access-key", ACCESS_KEY, "--root-secret-key", SECRET_KEY];
    disk(dir, &[arguments, &["--endpoint", &endpoint], &keys].concat())
}

fn list(dir: &Path, server: &Child) -> Value {
    let (code, stdout, stderr) = tell(dir, server, &["list", "--json"]);
    assert!(matches!(code, Some(0 | 1)), "{stderr}");
    serde_json::from_str(&stdout).unwrap()
}

fn states(report: &Value) -> Vec<&str> {
    report["disks"].as_array().unwrap().iter().map(|disk| disk["state"].as_str().unwrap()).collect()
}

fn wait(dir: &Path, server: &Child, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    let start = Instant::now();
    loop {
        let report = list(dir, server);
        if is_so(&report) {
            return report;
        }
        assert!(start.elapsed() < PATIENCE, "not {what}: {report:#}\n{}", server.stderr());
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn is_whole(report: &Value) -> bool {
    states(report).iter().all(|&state| state == "in sync")
}

fn put_all(client: &Client, seed: u8) {
    for index in 0..20u8 {
        let body = vec![seed ^ index; 1 << (10 + index % 10)];
        assert_eq!(client.call("PUT", &format!("/bucket/{seed}-{index}"), &[], &body).status, 200);
    }
}

fn check_all(client: &Client, seed: u8) {
    for index in 0..20u8 {
        let got = client.call("GET", &format!("/bucket/{seed}-{index}"), &[], b"");
        assert!(
            got.status == 200 && got.body == vec![seed ^ index; 1 << (10 + index % 10)],
            "{seed}-{index}"
        );
    }
}

fn stop(mut server: Child) {
    server.signal(Signal::TERM);
    assert_eq!(server.wait(), Some(0));
}

#[test]
fn a_disk_is_listed_removed_returned_and_replaced() {
    let dir = directory("disk-orders");
    let server = start(&dir, &["d{1...4}"]);
    let client = Client::new(server.address);
    assert_eq!(client.call("PUT", "/bucket", &[], b"").status, 200);
    put_all(&client, 1);
    let report = list(&dir, &server);
    assert!(is_whole(&report) && report["failures_tolerated"] == 2, "{report:#}");
    let second = report["disks"]
        .as_array()
        .unwrap()
        .iter()
        .find(|disk| disk["path"].as_str().unwrap().ends_with("/d2"));
    let place = second.unwrap()["disk"].to_string();
    let (code, stdout, _) = tell(&dir, &server, &["list"]);
    assert!(code == Some(0) && stdout.contains("2 more disks may fail"), "{stdout}");
    assert!(report["disks"].as_array().unwrap().iter().all(|disk| disk["group"] == "set 0"), "{report:#}");

    // Nobody without the root credentials changes anything; anybody on this machine may look.
    let endpoint = format!("http://{}", server.address);
    let (code, stdout, _) = disk(&dir, &["list", "--json", "--endpoint", &endpoint]);
    assert!(code == Some(0) && stdout.contains("\"in sync\""), "{stdout}");
    let wrong = ["--root-access-key", ACCESS_KEY, "--root-secret-key", "wrong-wrong"];
    let (code, _, stderr) = disk(&dir, &[&["remove", &place, "--endpoint", &endpoint][..], &wrong].concat());
    assert!(code == Some(2) && stderr.contains("SignatureDoesNotMatch"), "{stderr}");
    assert_eq!(client.call("GET", "/-/disks/remove?disk=0", &[], b"").status, 405);
    assert!(is_whole(&list(&dir, &server)));

    // By its path, and it stays out over a restart.
    let (code, stdout, stderr) = tell(&dir, &server, &["remove", "d2"]);
    assert_eq!(code, Some(0), "{stdout}{stderr}");
    put_all(&client, 2);
    let (code, stdout, _) = tell(&dir, &server, &["list"]);
    assert!(code == Some(1) && stdout.contains("removed by an operator"), "{stdout}");
    assert!(stdout.contains("1 more disks may fail"), "{stdout}");
    stop(server);
    let (code, stdout, stderr) = disk(&dir, &["list", "d{1...4}"]);
    assert!(code == Some(1) && stdout.contains("stays out until"), "{stdout}{stderr}");
    assert!(stdout.contains("  set 0  out"), "{stdout}");
    let server = start(&dir, &["d{1...4}"]);
    assert!(server.banner.contains("DEGRADED"), "{}", server.banner);
    let client = Client::new(server.address);
    assert_eq!(list(&dir, &server)["failures_tolerated"], 1);
    let (code, _, stderr) = tell(&dir, &server, &["return", &place]);
    assert_eq!(code, Some(0), "{stderr}");
    wait(&dir, &server, "whole", is_whole);
    check_all(&client, 1);
    check_all(&client, 2);

    // Replaced while it serves.
    let refused = tell(&dir, &server, &["replace", &place, "d1"]);
    assert!(refused.0 == Some(2) && refused.2.contains("not an empty disk"), "{}", refused.2);
    std::fs::create_dir(dir.join("new")).unwrap();
    let (code, _, stderr) = tell(&dir, &server, &["replace", &place, "new"]);
    assert_eq!(code, Some(0), "{stderr}");
    put_all(&client, 3);
    let report = wait(&dir, &server, "whole", is_whole);
    let index: usize = place.parse().unwrap();
    assert!(report["disks"][index]["path"].as_str().unwrap().ends_with("/new"), "{report:#}");
    let in_sync = format!("basalt_disk_state{{disk=\"{place}\"}} 0\n");
    let began = Instant::now();
    while !String::from_utf8(client.call("GET", "/-/metrics", &[], b"").body).unwrap().contains(&in_sync) {
        assert!(began.elapsed() < PATIENCE, "the metrics do not follow");
        std::thread::sleep(Duration::from_millis(100));
    }
    stop(server);

    // The next start needs the new path; the old disk is refused by name.
    let (code, stderr) = run_to_end(&dir, &["d{1...4}", "new", "--cores", "1"]);
    assert!(code != Some(0) && stderr.contains("d2 was replaced"), "{code:?} {stderr}");
    for lost in ["d1", "d3"] {
        std::fs::rename(dir.join(lost), dir.join(format!("{lost}-away"))).unwrap();
    }
    let server = start(&dir, &["d4", "new", "--start-degraded"]);
    let client = Client::new(server.address);
    (1..=3).for_each(|seed| check_all(&client, seed));
}

#[test]
fn a_set_is_added_while_the_server_runs() {
    let dir = directory("disk-add");
    let server = start(&dir, &["--erasure", "2+1", "d{1...3}"]);
    let client = Client::new(server.address);
    assert_eq!(client.call("PUT", "/bucket", &[], b"").status, 200);
    put_all(&client, 1);
    for new in ["n1", "n2", "n3"] {
        std::fs::create_dir(dir.join(new)).unwrap();
    }
    let (code, _, stderr) = tell(&dir, &server, &["add", "n1", "n2"]);
    assert!(code == Some(2) && stderr.contains("a set has 3 disks here"), "{code:?} {stderr}");
    let (code, _, stderr) = tell(&dir, &server, &["add", "n1", "n2", "d1"]);
    assert!(code == Some(2) && stderr.contains("is not empty"), "{code:?} {stderr}");
    assert_eq!(list(&dir, &server)["disks"].as_array().unwrap().len(), 3);
    let (code, _, stderr) = tell(&dir, &server, &["add", "n{1...3}"]);
    assert_eq!(code, Some(0), "{stderr}");
    let report = list(&dir, &server);
    assert!(states(&report).len() == 6 && is_whole(&report), "{report:#}");
    assert_eq!(report["failures_tolerated"], 1);
    put_all(&client, 2);
    check_all(&client, 1);
    stop(server);

    // One disk of each set may be missing; a set may not.
    let (code, stderr) = run_to_end(&dir, &["d{1...3}", "--cores", "1"]);
    assert!(code != Some(0) && stderr.contains("disk 3 is missing"), "{code:?} {stderr}");
    let server = start(&dir, &["n2", "n3", "d1", "d3"]);
    assert!(server.banner.contains("2 sets of 2+1"), "{}", server.banner);
    let client = Client::new(server.address);
    (1..=2).for_each(|seed| check_all(&client, seed));
}

#[test]
fn a_spare_disk_waits_and_then_takes_over() {
    let dir = directory("disk-spare");
    stop(start(&dir, &["d{1...3}"]));
    let server = start(&dir, &["d{1...3}", "spare", "--spare-after", "0s"]);
    assert!(server.banner.contains("1 spare disk"), "{}", server.banner);
    let report = list(&dir, &server);
    assert!(is_whole(&report) && report["spares"][0].as_str().unwrap().ends_with("/spare"), "{report:#}");
    let client = Client::new(server.address);
    assert_eq!(client.call("PUT", "/bucket", &[], b"").status, 200);
    put_all(&client, 1);
    std::fs::rename(dir.join("d2"), dir.join("d2-away")).unwrap();
    let has_spare = |report: &Value| {
        let paths = report["disks"].as_array().unwrap().iter();
        paths.filter_map(|disk| disk["path"].as_str()).any(|path| path.ends_with("/spare"))
    };
    wait(&dir, &server, "replaced", |report| has_spare(report) && is_whole(report));
    check_all(&client, 1);
    put_all(&client, 2);
    stop(server);
    std::fs::rename(dir.join("d2-away"), dir.join("d2")).unwrap();
    let (code, stderr) = run_to_end(&dir, &["d{1...3}", "spare", "--cores", "1"]);
    assert!(code != Some(0) && stderr.contains("d2 was replaced"), "{code:?} {stderr}");
    let server = start(&dir, &["d1", "d3", "spare"]);
    let client = Client::new(server.address);
    check_all(&client, 1);
    check_all(&client, 2);
}

#[test]
fn below_the_write_quorum_clients_are_told_to_come_back() {
    let dir = directory("disk-quorum");
    let (code, stderr) = run_to_end(&dir, &["d{1...3}", "--cores", "1", "--write-quorum", "4"]);
    assert!(code != Some(0) && stderr.contains("only 3 disks"), "{stderr}");
    let server = start(&dir, &["d{1...3}", "--write-quorum", "3"]);
    let client = Client::new(server.address);
    assert_eq!(client.call("PUT", "/bucket", &[], b"").status, 200);
    put_all(&client, 1);
    let (code, _, stderr) = tell(&dir, &server, &["remove", "0"]);
    assert!(code == Some(2) && stderr.contains("3 are needed"), "{stderr}");
    std::fs::rename(dir.join("d2"), dir.join("away")).unwrap();
    wait(&dir, &server, "out", |report| states(report).contains(&"out"));
    let refused = client.call("PUT", "/bucket/x", &[], b"x");
    assert_eq!(refused.status, 503);
    assert!(String::from_utf8_lossy(&refused.body).contains("<Code>ServiceUnavailable</Code>"));
    assert_eq!(client.call("DELETE", "/bucket/1-1", &[], b"").status, 503);
    check_all(&client, 1);
    std::fs::rename(dir.join("away"), dir.join("d2")).unwrap();
    wait(&dir, &server, "whole", is_whole);
    put_all(&client, 2);
}

#[test]
fn what_cannot_be_told_is_said() {
    let dir = directory("disk-nobody");
    let (code, _, stderr) = disk(&dir, &["list", "--endpoint", "http://127.0.0.1:1"]);
    assert!(code == Some(2) && stderr.contains("127.0.0.1:1"), "{stderr}");
    std::fs::create_dir(dir.join("empty")).unwrap();
    let (code, _, stderr) = disk(&dir, &["list", "empty"]);
    assert!(code == Some(2) && stderr.contains("no disk has a superblock"), "{stderr}");
}
