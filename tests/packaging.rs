//! The files in tuning/packaging agree with the binary they package.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::process::Command;

fn packaged(name: &str) -> String {
    std::fs::read_to_string(format!("{}/tuning/packaging/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

#[test]
fn every_variable_that_packaging_sets_is_one_the_server_reads() {
    let help = Command::new(env!("CARGO_BIN_EXE_basalt")).args(["server", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let mut seen = 0;
    for name in ["basalt.service", "Containerfile", "compose.yaml"] {
        for word in packaged(name).split(|c: char| !c.is_ascii_uppercase() && c != '_') {
            if word.starts_with("BASALT_") {
                seen += 1;
                assert!(help.contains(&format!("[env: {word}")), "{name} sets {word}");
            }
        }
    }
    assert!(seen >= 6, "the files were read");
}

#[test]
fn the_seccomp_profile_refuses_by_default_and_allows_the_ring() {
    let profile: serde_json::Value = serde_json::from_str(&packaged("seccomp.json")).unwrap();
    assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
    let allowed: Vec<&str> = profile["syscalls"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|rule| rule["action"] == "SCMP_ACT_ALLOW" && rule["args"].is_null())
        .flat_map(|rule| rule["names"].as_array().unwrap())
        .map(|name| name.as_str().unwrap())
        .collect();
    for needed in ["io_uring_setup", "io_uring_enter", "io_uring_register", "sched_setaffinity", "fallocate"]
    {
        assert!(allowed.contains(&needed), "{needed}");
    }
    for dangerous in ["mount", "bpf", "ptrace", "init_module", "kexec_load", "unshare", "setns", "keyctl"] {
        assert!(!allowed.contains(&dangerous), "{dangerous}");
    }
}

#[test]
fn the_unit_does_not_restart_what_cannot_start() {
    let unit = packaged("basalt.service");
    for line in
        ["Type=notify", "LimitMEMLOCK=infinity", "RestartPreventExitStatus=2 3 4 5 6", "SuccessExitStatus=7"]
    {
        assert!(unit.lines().any(|found| found == line), "{line}");
    }
    use basalt::server::Exit;
    let refused =
        [Exit::Usage, Exit::Host, Exit::Listen, Exit::Storage, Exit::Certificate].map(|exit| exit as u8);
    assert_eq!((refused, Exit::Interrupted as u8), ([2, 3, 4, 5, 6], 7));
}
