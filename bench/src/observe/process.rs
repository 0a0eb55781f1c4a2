//! CPU time and memory of one process, from /proc (see proc_pid_stat(5)).
//!
//! Totals are utime and stime of the process, which include threads that have ended. The share of single
//! threads comes from their schedstat, in nanoseconds: a server with a thread per core is limited by its
//! busiest thread long before the process as a whole is.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use super::cpus;

/// Threads of a process that are looked at.
const THREADS_MAX: usize = 16_384;

#[derive(Clone, Debug)]
pub struct ProcessSample {
    user_seconds: f64,
    system_seconds: f64,
    /// Seconds on a CPU, by thread id.
    threads: BTreeMap<u32, f64>,
    cpus_allowed: Vec<usize>,
}

/// What a process spent in the window.
#[derive(Clone, Debug, PartialEq)]
pub struct ProcessUsage {
    pub user_seconds: f64,
    pub system_seconds: f64,
    /// Of the thread that ran most.
    pub busiest_thread_seconds: f64,
    pub thread_count: usize,
    /// The CPUs on which any of its threads may run.
    pub cpus_allowed: Vec<usize>,
}

impl ProcessUsage {
    pub fn between(before: &ProcessSample, after: &ProcessSample) -> Self {
        let spent = |(id, seconds): (&u32, &f64)| seconds - before.threads.get(id).copied().unwrap_or(0.0);
        Self {
            user_seconds: after.user_seconds - before.user_seconds,
            system_seconds: after.system_seconds - before.system_seconds,
            busiest_thread_seconds: after.threads.iter().map(spent).fold(0.0, f64::max),
            thread_count: after.threads.len(),
            cpus_allowed: after.cpus_allowed.clone(),
        }
    }

    pub fn cpu_seconds(&self) -> f64 {
        self.user_seconds + self.system_seconds
    }
}

impl ProcessSample {
    pub fn read(pid: u32) -> io::Result<Self> {
        let directory = format!("/proc/{pid}");
        let ticks_per_second = rustix::param::clock_ticks_per_second() as f64;
        let (user, system) = parse_stat(&std::fs::read_to_string(format!("{directory}/stat"))?)
            .ok_or_else(|| io::Error::other(format!("{directory}/stat is not as documented")))?;
        let mut threads = BTreeMap::new();
        let mut cpus_allowed = Vec::new();
        for entry in std::fs::read_dir(format!("{directory}/task"))?.take(THREADS_MAX) {
            let entry = entry?;
            let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            // A thread may end between being listed and being read.
            let seconds = read_schedstat(&entry.path()).unwrap_or(0.0);
            threads.insert(id, seconds);
            cpus_allowed.extend(read_cpus_allowed(&entry.path()).unwrap_or_default());
        }
        cpus_allowed.sort_unstable();
        cpus_allowed.dedup();
        Ok(Self {
            user_seconds: user as f64 / ticks_per_second,
            system_seconds: system as f64 / ticks_per_second,
            threads,
            cpus_allowed,
        })
    }
}

/// Resident memory now, in bytes; None when the process is gone.
pub(crate) fn rss_bytes(pid: u32) -> Option<u64> {
    parse_rss(&std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

fn parse_rss(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// utime and stime in ticks. The command name may hold anything, so fields count from its closing parenthesis.
fn parse_stat(stat: &str) -> Option<(u64, u64)> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

fn read_schedstat(task: &Path) -> Option<f64> {
    let text = std::fs::read_to_string(task.join("schedstat")).ok()?;
    let nanos: u64 = text.split_ascii_whitespace().next()?.parse().ok()?;
    Some(nanos as f64 / 1e9)
}

fn read_cpus_allowed(task: &Path) -> Option<Vec<usize>> {
    let status = std::fs::read_to_string(task.join("status")).ok()?;
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    cpus::parse_list(list).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documented_lines() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 150 25 6 7 20 0 1 0 100 1 2";
        assert_eq!(parse_stat(stat), Some((150, 25)));
        assert_eq!(parse_stat("7 (a) S 1"), None);
        assert_eq!(parse_rss("Name:\tx\nVmRSS:\t    2048 kB\n"), Some(2 << 20));
        assert_eq!(parse_rss("Name:\tx\n"), None);
    }

    #[test]
    fn this_process() {
        let before = ProcessSample::read(std::process::id()).expect("/proc is there");
        let started = std::time::Instant::now();
        while started.elapsed() < std::time::Duration::from_millis(60) {
            std::hint::spin_loop();
        }
        let after = ProcessSample::read(std::process::id()).expect("/proc is there");
        let usage = ProcessUsage::between(&before, &after);
        assert!(usage.cpu_seconds() > 0.0 && usage.busiest_thread_seconds > 0.0, "{usage:?}");
        assert!(!usage.cpus_allowed.is_empty() && usage.thread_count >= 1);
        assert!(rss_bytes(std::process::id()).is_some_and(|bytes| bytes > 0));
        assert!(ProcessSample::read(u32::MAX).is_err());
    }
}
