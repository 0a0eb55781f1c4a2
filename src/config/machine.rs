//! What this process may use of the machine: its CPUs and its memory, containers included.

use std::path::{Path, PathBuf};

use rustix::thread::{CpuSet, sched_getaffinity};

/// The CPUs this process may run on, ascending.
pub fn cpus() -> Vec<usize> {
    match sched_getaffinity(None) {
        Ok(set) => (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect(),
        Err(_) => vec![0],
    }
}

/// Memory in bytes that this process can hope for: the machine's, or less where a control group limits it.
/// `None` when neither can be read.
pub fn memory() -> Option<u64> {
    let total = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| mem_total(&text));
    let limit = std::fs::read_to_string("/proc/self/cgroup")
        .ok()
        .and_then(|text| cgroup_limit(Path::new("/sys/fs/cgroup"), &text));
    match (total, limit) {
        (Some(total), Some(limit)) => Some(total.min(limit)),
        (total, limit) => total.or(limit),
    }
}

fn mem_total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The tightest limit on the way from this process's group to the root, in version 2 (`memory.max`) or version 1
/// (`memory.limit_in_bytes`) hierarchies.
fn cgroup_limit(root: &Path, proc_self_cgroup: &str) -> Option<u64> {
    let mut limits = Vec::new();
    for line in proc_self_cgroup.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(group)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let (hierarchy, file) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            names if names.split(',').any(|name| name == "memory") => {
                (root.join("memory"), "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let group = hierarchy.join(group.trim_start_matches('/'));
        limits.extend(limits_up_to(&hierarchy, &group, file));
    }
    limits.into_iter().min()
}

fn limits_up_to(hierarchy: &Path, group: &Path, file: &str) -> Vec<u64> {
    group
        .ancestors()
        .take_while(|path| path.starts_with(hierarchy))
        .map(|path| path.join(file))
        // Inside a container the group's own path may not be visible; its root then is the hierarchy's root.
        .filter_map(|path: PathBuf| std::fs::read_to_string(path).ok())
        .filter_map(|text| text.trim().parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_in_kib() {
        assert_eq!(mem_total("MemTotal:       16384 kB\nMemFree: 1 kB\n"), Some(16_777_216));
        assert_eq!(mem_total("MemFree: 1 kB\n"), None);
    }

    #[test]
    fn the_tightest_group_on_the_way_up_counts() {
        let root = std::env::temp_dir().join(format!("basalt-cgroup-{}", std::process::id()));
        let group = root.join("system.slice/basalt.service");
        std::fs::create_dir_all(&group).expect("a temporary directory");
        std::fs::write(group.join("memory.max"), "max\n").expect("writable");
        std::fs::write(root.join("system.slice/memory.max"), "1073741824\n").expect("writable");
        assert_eq!(cgroup_limit(&root, "0::/system.slice/basalt.service\n"), Some(1 << 30));
        std::fs::write(group.join("memory.max"), "4096\n").expect("writable");
        assert_eq!(cgroup_limit(&root, "0::/system.slice/basalt.service\n"), Some(4096));
        assert_eq!(cgroup_limit(&root, "0::/elsewhere\n"), None);
        std::fs::remove_dir_all(&root).expect("ours");
    }

    #[test]
    fn this_machine_has_a_cpu_and_memory() {
        assert!(!cpus().is_empty());
        assert!(memory().is_some_and(|bytes| bytes > 1 << 20));
    }
}
