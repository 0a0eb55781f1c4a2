//! What limited a run: a pure function of what was observed.
//!
//! A throughput without its limit invites the wrong conclusion. When the load generator is the limit, the
//! server's CPU per operation still holds, and the throughput is only a floor.

use crate::observe::Usage;

/// From which share on a resource counts as exhausted.
const EXHAUSTED: f64 = 0.9;

/// A resource that was used up, or what else held the run back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    ServerCpu,
    /// One thread of the server was busy all the time, and others were not.
    ServerThread,
    ClientCpu,
    /// Server and client have CPUs in common and use them up together.
    SharedCpu,
    /// All CPUs of the machine are busy, with something else as well.
    MachineCpu,
    Network,
    Disk,
    /// Requests were due no faster.
    Rate,
    /// No resource: each request takes its time, and no more are in flight.
    Latency,
}

impl Limit {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ServerCpu => "server-cpu",
            Self::ServerThread => "server-thread",
            Self::ClientCpu => "client-cpu",
            Self::SharedCpu => "shared-cpu",
            Self::MachineCpu => "machine-cpu",
            Self::Network => "network",
            Self::Disk => "disk",
            Self::Rate => "rate",
            Self::Latency => "latency",
        }
    }

    /// What a reader of the result has to know.
    pub(crate) fn meaning(self) -> &'static str {
        match self {
            Self::ServerCpu => "the server used up the CPUs it may run on",
            Self::ServerThread => "one thread of the server was busy all the time while others were not",
            Self::ClientCpu => {
                "the load generator used up its CPU: the throughput is client-limited, a floor of what the \
                 server can do; its CPU per operation holds"
            }
            Self::SharedCpu => {
                "server and load generator use up the CPUs they share: compare CPU per operation, not throughput"
            }
            Self::MachineCpu => "all CPUs of this machine were busy",
            Self::Network => "a network link was full",
            Self::Disk => {
                "a disk was busy all the time (a device that serves requests in parallel may still have had room)"
            }
            Self::Rate => "requests were due at --rate, and the server kept up",
            Self::Latency => {
                "no resource was used up: the time of each request and --concurrency bound the throughput"
            }
        }
    }
}

/// What bounded the load besides resources.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offered {
    pub thread_count: usize,
    pub rate: Option<f64>,
    pub ops_per_second: f64,
}

/// Every limit that the run met, the most telling first; never empty.
pub(crate) fn limits(usage: &Usage, offered: Offered) -> Vec<Limit> {
    let seconds = usage.seconds;
    let mut limits = Vec::new();
    let cpus_of = |cpu_seconds: f64| cpu_seconds / seconds;
    if let Some(server) = &usage.server {
        if cpus_of(server.cpu_seconds()) >= EXHAUSTED * server.cpus_allowed.len().max(1) as f64 {
            limits.push(Limit::ServerCpu);
        } else if cpus_of(server.busiest_thread_seconds) >= EXHAUSTED {
            limits.push(Limit::ServerThread);
        }
    }
    let client = &usage.client;
    let client_cpus = offered.thread_count.min(client.cpus_allowed.len()).max(1) as f64;
    if cpus_of(client.cpu_seconds()) >= EXHAUSTED * client_cpus {
        limits.push(Limit::ClientCpu);
    }
    if let Some(server) = &usage.server {
        let mut union = server.cpus_allowed.clone();
        union.extend(client.cpus_allowed.iter().filter(|cpu| !server.cpus_allowed.contains(cpu)));
        let overlap = union.len() < server.cpus_allowed.len() + client.cpus_allowed.len();
        let both = cpus_of(server.cpu_seconds() + client.cpu_seconds());
        if overlap && both >= EXHAUSTED * union.len() as f64 {
            limits.push(Limit::SharedCpu);
        }
    }
    if limits.is_empty() && usage.machine.idle <= 1.0 - EXHAUSTED {
        limits.push(Limit::MachineCpu);
    }
    if usage.links.iter().any(|link| link.utilisation(seconds) >= EXHAUSTED) {
        limits.push(Limit::Network);
    }
    if usage.disks.iter().any(|disk| disk.busy_seconds >= EXHAUSTED * seconds) {
        limits.push(Limit::Disk);
    }
    if limits.is_empty() {
        let kept_up = offered.rate.is_some_and(|rate| offered.ops_per_second >= EXHAUSTED * rate);
        limits.push(if kept_up { Limit::Rate } else { Limit::Latency });
    }
    limits
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::{DiskUsage, LinkUsage, MachineUsage, ProcessUsage};

    const OFFERED: Offered = Offered { thread_count: 1, rate: None, ops_per_second: 100.0 };

    fn process(cpu: f64, busiest: f64, cpus: &[usize]) -> ProcessUsage {
        ProcessUsage {
            user_seconds: cpu / 2.0,
            system_seconds: cpu / 2.0,
            busiest_thread_seconds: busiest,
            thread_count: 2,
            cpus_allowed: cpus.to_vec(),
        }
    }

    fn usage(server: Option<ProcessUsage>, client: ProcessUsage) -> Usage {
        let machine = MachineUsage { idle: 0.5, steal: 0.0 };
        Usage { seconds: 10.0, server, client, disks: vec![], links: vec![], machine }
    }

    #[test]
    fn processes() {
        let idle_client = process(2.0, 2.0, &[1]);
        let busy_client = process(9.5, 9.5, &[1]);
        for (server, client, expected) in [
            (process(9.5, 5.0, &[0]), &idle_client, vec![Limit::ServerCpu]),
            (process(9.5, 9.4, &[0, 2]), &idle_client, vec![Limit::ServerThread]),
            (process(3.0, 3.0, &[0]), &busy_client, vec![Limit::ClientCpu]),
            (process(9.5, 9.5, &[0]), &busy_client, vec![Limit::ServerCpu, Limit::ClientCpu]),
            (process(3.0, 3.0, &[0]), &idle_client, vec![Limit::Latency]),
            (process(7.5, 7.5, &[1]), &idle_client, vec![Limit::SharedCpu]),
        ] {
            assert_eq!(limits(&usage(Some(server), client.clone()), OFFERED), expected);
        }
    }

    #[test]
    fn a_client_with_threads_to_spare_is_no_limit() {
        let usage = usage(None, process(9.5, 5.0, &[0, 1]));
        assert_eq!(limits(&usage, Offered { thread_count: 2, ..OFFERED }), [Limit::Latency]);
        assert_eq!(limits(&usage, OFFERED), [Limit::ClientCpu]);
    }

    #[test]
    fn the_machine_its_disks_and_its_links() {
        let mut usage = usage(None, process(1.0, 1.0, &[0, 1]));
        let offered = Offered { rate: Some(101.0), ..OFFERED };
        assert_eq!(limits(&usage, offered), [Limit::Rate]);
        assert_eq!(limits(&usage, Offered { rate: Some(200.0), ..OFFERED }), [Limit::Latency]);
        usage.machine.idle = 0.05;
        assert_eq!(limits(&usage, offered), [Limit::MachineCpu]);
        usage.machine.idle = 0.5;
        usage.disks.push(DiskUsage {
            device: "vda".to_owned(),
            read_count: 1,
            read_bytes: 1,
            write_count: 1,
            written_bytes: 1,
            flush_count: 1,
            busy_seconds: 9.0,
        });
        assert_eq!(limits(&usage, offered), [Limit::Disk]);
        usage.links.push(LinkUsage {
            name: "eth0".to_owned(),
            bits_per_second: 1_000_000_000,
            received_bytes: 1_200_000_000,
            sent_bytes: 0,
        });
        assert_eq!(limits(&usage, offered), [Limit::Network, Limit::Disk]);
    }
}
