//! `basalt rebuild-index` on the real binary: all copies of the index are wiped, and the objects come back.

use std::path::Path;
use std::process::{Command, Output};

use rustix::process::Signal;

use crate::child::directory;
use crate::{KIB, MIB, content, start_on};

fn rebuild(dir: &Path, arguments: &[&str]) -> Output {
    let binary = env!("CARGO_BIN_EXE_basalt");
    Command::new(binary).current_dir(dir).arg("rebuild-index").args(arguments).output().unwrap()
}

/// Overwrites everything that the index consists of.
fn wipe(disk: &Path) {
    for entry in std::fs::read_dir(disk).unwrap().flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "root" || extension == "table") {
            let len = path.metadata().unwrap().len() as usize;
            std::fs::write(&path, vec![0; len]).unwrap();
        }
    }
}

#[test]
fn a_deployment_without_any_index_is_served_again() {
    let dir = directory("lost-index");
    let disks = ["left", "right"];
    let sizes = [0, 5, 4 * KIB, 300 * KIB, 3 * MIB];
    {
        let mut server = start_on(&dir, &disks, &[]);
        assert_eq!(server.client.call("PUT", "/bucket", &[], b"").status, 200);
        for len in sizes {
            let target = format!("/bucket/of-{len}");
            assert_eq!(server.client.call("PUT", &target, &[], &content(len)).status, 200);
        }
        let running = rebuild(&dir, &disks);
        assert_eq!(running.status.code(), Some(2), "{running:?}");
        assert!(String::from_utf8_lossy(&running.stderr).contains("in use"), "{running:?}");
        server.child.signal(Signal::TERM);
        assert_eq!(server.child.wait(), Some(0));
    }
    let needless = rebuild(&dir, &disks);
    assert_eq!(needless.status.code(), Some(2), "{needless:?}");
    assert!(String::from_utf8_lossy(&needless.stderr).contains("--force"), "{needless:?}");
    disks.iter().for_each(|disk| wipe(&dir.join(disk)));

    let done = rebuild(&dir, &[&disks[..], &["--report", "report"]].concat());
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    let report = std::fs::read_to_string(dir.join("report")).unwrap();
    for len in sizes {
        let line = report.lines().find(|line| line.contains(&format!("\tof-{len}\t"))).unwrap();
        assert!(line.starts_with("current\t") && line.ends_with(&format!("\t{len} bytes")), "{line}");
    }
    let server = start_on(&dir, &disks, &[]);
    for len in sizes {
        let got = server.client.call("GET", &format!("/bucket/of-{len}"), &[], b"");
        assert!(got.status == 200 && got.body == content(len), "{len}");
    }
    assert_eq!(server.client.call("PUT", "/bucket/after", &[], b"x").status, 200);
}
