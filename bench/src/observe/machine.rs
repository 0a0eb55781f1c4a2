//! The machine on which the load generator ran: what it is, and how busy its CPUs were.

use std::fs;
use std::io;

use serde::{Deserialize, Serialize};

/// Figures of different machines do not compare; this says which machine it was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    pub kernel: String,
    pub architecture: String,
    pub cpu_model: String,
    pub cpu_count: usize,
    pub memory_bytes: u64,
}

impl Machine {
    pub fn read() -> Self {
        let uname = rustix::system::uname();
        let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
        let field = |file: &str, name: &str| -> Option<String> {
            let text = fs::read_to_string(file).ok()?;
            let line = text.lines().find(|line| line.starts_with(name))?;
            line.split_once(':').map(|(_, value)| value.trim().to_owned())
        };
        let memory_kib = field("/proc/meminfo", "MemTotal")
            .and_then(|value| value.strip_suffix("kB")?.trim().parse::<u64>().ok());
        Self {
            kernel: format!("{} {}", text(uname.sysname()), text(uname.release())),
            architecture: text(uname.machine()),
            cpu_model: field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".to_owned()),
            cpu_count: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: memory_kib.unwrap_or(0) * 1024,
        }
    }
}

/// Shares of fewer ticks than this are noise, and count as idle.
const TICKS_MIN: u64 = 20;

/// Ticks of all CPUs, from the first line of /proc/stat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuTimes {
    idle: u64,
    steal: u64,
    sum: u64,
}

/// Shares of all CPU time of the machine in the window, between 0 and 1.
#[derive(Clone, Debug, PartialEq)]
pub struct MachineUsage {
    pub idle: f64,
    /// What the hypervisor gave to others: with it, absolute times mean little.
    pub steal: f64,
}

impl CpuTimes {
    pub fn read() -> io::Result<Self> {
        let text = fs::read_to_string("/proc/stat")?;
        Self::parse(&text).ok_or_else(|| io::Error::other("not as documented"))
    }

    fn parse(text: &str) -> Option<Self> {
        let line = text.lines().next()?.strip_prefix("cpu ")?;
        // user nice system idle iowait irq softirq steal; guest time is part of user time.
        let times: Vec<u64> =
            line.split_ascii_whitespace().take(8).map(str::parse).collect::<Result<_, _>>().ok()?;
        let [.., idle, iowait, _, _, steal] = times[..] else { return None };
        Some(Self { idle: idle + iowait, steal, sum: times.iter().sum() })
    }
}

impl MachineUsage {
    pub fn between(before: &CpuTimes, after: &CpuTimes) -> Self {
        let ticks = after.sum.saturating_sub(before.sum);
        if ticks < TICKS_MIN {
            return Self { idle: 1.0, steal: 0.0 };
        }
        let sum = ticks as f64;
        Self {
            idle: after.idle.saturating_sub(before.idle) as f64 / sum,
            steal: after.steal.saturating_sub(before.steal) as f64 / sum,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares() {
        let times = |text| CpuTimes::parse(text).expect("as documented");
        let before = times("cpu  10 0 10 50 10 0 0 20 0 0\ncpu0 1");
        let after = times("cpu  30 0 20 90 20 0 0 40 9 9\ncpu0 1");
        assert_eq!(MachineUsage::between(&before, &after), MachineUsage { idle: 0.5, steal: 0.2 });
        let idle = MachineUsage { idle: 1.0, steal: 0.0 };
        assert_eq!(MachineUsage::between(&before, &before), idle, "a window too short to tell");
        assert_eq!(CpuTimes::parse("intr 1"), None);
    }

    #[test]
    fn this_machine() {
        let machine = Machine::read();
        assert!(machine.kernel.starts_with("Linux ") && machine.cpu_count > 0 && machine.memory_bytes > 0);
    }
}
