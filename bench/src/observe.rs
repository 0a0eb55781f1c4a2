//! What processes, disks, network and machine spent while the load ran: samples of /proc and /sys before and
//! after the measured window, and their difference.

pub(crate) mod cpus;
mod disk;
mod machine;
mod network;
mod process;

use std::time::Instant;

pub(crate) use self::disk::{DiskSample, DiskUsage};
pub(crate) use self::machine::{CpuTimes, Machine, MachineUsage};
pub(crate) use self::network::{LinkSample, LinkUsage};
pub(crate) use self::process::{ProcessSample, ProcessUsage, rss_bytes};
use crate::error::Error;

/// What is to be observed.
#[derive(Clone, Debug)]
pub(crate) struct Watch {
    pub server_pid: Option<u32>,
    pub disk_devices: Vec<String>,
}

/// Everything at one moment.
#[derive(Clone, Debug)]
pub struct Sample {
    at: Instant,
    server: Option<ProcessSample>,
    client: ProcessSample,
    disks: Vec<DiskSample>,
    links: Vec<LinkSample>,
    cpus: CpuTimes,
}

/// Everything between two moments.
#[derive(Clone, Debug)]
pub struct Usage {
    pub seconds: f64,
    pub server: Option<ProcessUsage>,
    pub client: ProcessUsage,
    pub disks: Vec<DiskUsage>,
    pub links: Vec<LinkUsage>,
    pub machine: MachineUsage,
}

impl Watch {
    pub(crate) fn sample(&self) -> Result<Sample, Error> {
        let read = |pid: u32| {
            ProcessSample::read(pid).map_err(|source| Error::System { what: format!("/proc/{pid}"), source })
        };
        let disks = self.disk_devices.iter().map(|device| {
            DiskSample::read(device)
                .map_err(|source| Error::System { what: format!("/sys/block/{device}/stat"), source })
        });
        Ok(Sample {
            disks: disks.collect::<Result<_, _>>()?,
            links: LinkSample::read_all(),
            server: self.server_pid.map(read).transpose()?,
            client: read(std::process::id())?,
            cpus: CpuTimes::read()
                .map_err(|source| Error::System { what: "/proc/stat".to_owned(), source })?,
            at: Instant::now(),
        })
    }
}

impl Usage {
    pub fn between(before: &Sample, after: &Sample) -> Self {
        let seconds = after.at.duration_since(before.at).as_secs_f64().max(f64::MIN_POSITIVE);
        let server = before.server.as_ref().zip(after.server.as_ref());
        Self {
            seconds,
            server: server.map(|(before, after)| ProcessUsage::between(before, after)),
            client: ProcessUsage::between(&before.client, &after.client),
            disks: before.disks.iter().zip(&after.disks).map(|(b, a)| DiskUsage::between(b, a)).collect(),
            links: LinkUsage::between(&before.links, &after.links),
            machine: MachineUsage::between(&before.cpus, &after.cpus),
        }
    }
}
