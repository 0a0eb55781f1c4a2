//! `basalt inspect` and `basalt check` on the disks of the real server: harmed on two of six disks in every kind of file, found,
//! mended, and served again byte for byte.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[expect(dead_code, reason = "the server's own tests use all of it")]
#[path = "server/child.rs"]
mod child;
#[expect(dead_code, reason = "the tests of objects use all of it")]
#[path = "s3_objects/client.rs"]
mod client;

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;

use crate::child::{Child, directory};
use crate::client::{ACCESS_KEY, Client, SECRET_KEY};

const DISKS: &str = "disk{1...6}";

fn start(dir: &Path) -> Child {
    let keys = ["--root-access-key", ACCESS_KEY, "--root-secret-key", SECRET_KEY];
    Child::start(dir, &[&[DISKS, "--cores", "1"][..], &keys].concat())
}

fn stop(mut server: Child) {
    server.signal(Signal::TERM);
    assert_eq!(server.wait(), Some(0));
}

/// Exit code, and what was printed: one JSON value per line.
fn tool(dir: &Path, arguments: &[&str]) -> (Option<i32>, Vec<Value>, String) {
    let ran = Command::new(env!("CARGO_BIN_EXE_basalt")).current_dir(dir).args(arguments).output().unwrap();
    let lines = String::from_utf8(ran.stdout).unwrap();
    let values = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (ran.status.code(), values, String::from_utf8_lossy(&ran.stderr).into_owned())
}

fn check(dir: &Path, more: &[&str]) -> (Option<i32>, Vec<Value>, String) {
    tool(dir, &[&["check", DISKS, "--json"][..], more].concat())
}

/// Bytes that repeat nowhere near a block's length.
fn content(len: usize, seed: u64) -> Vec<u8> {
    (0..len as u64).map(|i| ((i + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

fn objects() -> Vec<(String, Vec<u8>)> {
    let lens = [0, 5, 4096, 60_000, 70_000, 300_000, 1 << 20, (9 << 20) + 12_345];
    (1..).zip(lens).map(|(seed, len)| (format!("/bucket/of-{len}"), content(len, seed))).collect()
}

/// A byte to flip.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Target {
    structure: &'static str,
    file: PathBuf,
    offset: u64,
}

/// Bytes in structures of every kind on disks 2 and 5.
fn targets(dir: &Path) -> Vec<Target> {
    let what = "superblock,root,manifest,log,table,directory";
    let (code, items, stderr) = tool(dir, &["inspect", DISKS, "--json", "--what", what]);
    assert_eq!(code, Some(0), "{stderr}");
    let text = |item: &Value, name: &str| item[name].as_str().unwrap_or_default().to_owned();
    let harmed = |item: &&Value| ["disk2", "disk5"].contains(&text(item, "path").as_str());
    let mut targets = Vec::new();
    for item in items.iter().filter(harmed) {
        let file = dir.join(text(item, "path"));
        let at = |name: &str| item[name].as_u64().unwrap_or_default();
        let mut add = |structure, file, offset| targets.push(Target { structure, file, offset });
        match text(item, "structure").as_str() {
            "superblock" if at("copy") == 1 => add("superblock", file.join("superblock"), 65_536 + 500),
            "root" if at("copy") == 0 => add("root", file.join(text(item, "file")), 60),
            "manifest replica" => add("manifest", file.join(text(item, "file")), at("offset") + 9),
            "log header" => add("log header", file.join(text(item, "file")), at("offset") + 30),
            "batch" => add("log batch", file.join(text(item, "file")), at("offset") + 140),
            "table frame" => add("index table", file.join(text(item, "file")), at("offset") + 33),
            "directory chunk" => {
                let file = file.join(text(item, "file"));
                add("directory chunk", file.clone(), at("offset") + 50);
                for entry in item["entries"].as_array().unwrap() {
                    let blocks = at("block") - entry["block"].as_u64().unwrap();
                    add("stripe", file.clone(), at("offset") - blocks * 4096 + 7);
                }
            }
            _ => {}
        }
    }
    targets
}

fn flip(target: &Target) {
    let file = std::fs::File::options().read(true).write(true).open(&target.file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, target.offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], target.offset).unwrap();
    file.sync_all().unwrap();
}

#[test]
fn damage_of_every_kind_on_two_of_six_disks_is_found_mended_and_served() {
    let dir = directory("offline-tools");
    let server = start(&dir);
    let client = Client::new(server.address);
    assert_eq!(client.call("PUT", "/bucket", &[], b"").status, 200);
    for (target, body) in objects() {
        assert_eq!(client.call("PUT", &target, &[], &body).status, 200);
    }
    let (code, _, stderr) = check(&dir, &[]);
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains("in use by another process"), "{stderr}");
    let (code, items, _) = tool(&dir, &["inspect", DISKS, "--json", "--object", "bucket/of-300000"]);
    assert_eq!((code, items.len()), (Some(0), 1), "{items:?}");
    assert_eq!(items[0]["value"]["len"], 300_000);
    stop(server);
    let (code, lines, stderr) = check(&dir, &[]);
    assert_eq!(code, Some(0), "{lines:?} {stderr}");
    assert_eq!((&lines[0]["objects"], &lines[0]["buckets"]), (&8.into(), &1.into()));

    let targets = targets(&dir);
    let kinds = targets.iter().map(|target| target.structure).collect::<BTreeSet<_>>();
    assert_eq!(kinds.len(), 8, "{kinds:?}");
    targets.iter().for_each(flip);
    let (code, lines, stderr) = check(&dir, &[]);
    assert_eq!(code, Some(1), "{stderr}");
    for target in &targets {
        let found = lines.iter().any(|fault| {
            let file =
                format!("{}/{}", fault["path"].as_str().unwrap_or(""), fault["file"].as_str().unwrap_or(""));
            let (offset, len) = (fault["offset"].as_u64().unwrap_or(0), fault["len"].as_u64().unwrap_or(0));
            target.file.ends_with(file) && (offset..offset + len).contains(&target.offset)
        });
        assert!(found, "{target:?} is not among {lines:#?}");
    }
    let (code, lines, stderr) = check(&dir, &["--repair"]);
    let summary = lines.last().unwrap();
    assert_eq!((code, &summary["unmended"]), (Some(1), &0.into()), "{lines:#?} {stderr}");
    let (code, lines, stderr) = check(&dir, &[]);
    assert_eq!(code, Some(0), "{lines:#?} {stderr}");
    let server = start(&dir);
    let client = Client::new(server.address);
    for (target, body) in objects() {
        let got = client.call("GET", &target, &[], b"");
        assert!(got.status == 200 && got.body == body, "{target}: {}", got.status);
    }
    stop(server);

    // Three of six columns of one stripe: named with the object, and not mended.
    let (_, items, _) = tool(&dir, &["inspect", DISKS, "--json", "--what", "directory"]);
    let chunks = items.iter().filter(|item| item["entries"][0]["name"] == "of-300000").take(3);
    for chunk in chunks {
        let number = |value: &Value| value.as_u64().unwrap();
        let blocks = number(&chunk["block"]) - number(&chunk["entries"][0]["block"]);
        let file = dir.join(chunk["path"].as_str().unwrap()).join(chunk["file"].as_str().unwrap());
        flip(&Target { structure: "stripe", file, offset: number(&chunk["offset"]) - blocks * 4096 });
    }
    let (code, lines, stderr) = check(&dir, &["--repair"]);
    assert_eq!(code, Some(3), "{lines:#?} {stderr}");
    assert_eq!(lines.len(), 4, "{lines:#?}");
    assert!(lines[..3].iter().all(|fault| fault["owner"]["key"] == "of-300000"), "{lines:#?}");
}

#[test]
fn what_cannot_be_checked_is_said() {
    let dir = directory("offline-tools-nothing");
    std::fs::create_dir(dir.join("empty")).unwrap();
    for (arguments, reason) in [
        (&["check", "empty"][..], "no disk has a superblock"),
        (&["check", "nowhere"], "No such file"),
        (&["inspect", "empty"], ""),
        (&["inspect", "empty", "--object", "no-slash"], "BUCKET/KEY"),
    ] {
        let ran =
            Command::new(env!("CARGO_BIN_EXE_basalt")).current_dir(&dir).args(arguments).output().unwrap();
        let stderr = String::from_utf8_lossy(&ran.stderr);
        assert_eq!(ran.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.contains(reason), "{stderr}");
    }
}
