//! The result of a run: inputs, machine, figures, what was verified and what limited it; as JSON and as a
//! table.

pub(crate) mod table;

use serde::{Deserialize, Serialize};

use crate::limit::{Offered, limits};
use crate::load::Measured;
use crate::observe::{Machine, ProcessUsage};
use crate::plan::{Operation, Plan};
use crate::tally::{Counts, Row, Verification};

/// Raised when a reader of older results must know.
const FORMAT: u32 = 1;
const MIB: f64 = 1_048_576.0;
const GIB: f64 = 1_073_741_824.0;

/// The process ends with this when requests failed.
pub const EXIT_FAILED_REQUESTS: u8 = 1;
/// The process ends with this when the server answered something wrong.
pub const EXIT_FAILED_VERIFICATION: u8 = 3;

/// A result.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    pub format: u32,
    pub bench_version: String,
    /// Seconds since 1970 at the end of the run.
    pub unix_seconds: i64,
    pub inputs: serde_json::Value,
    pub machine: Machine,
    /// The `Server` header.
    pub server_software: Option<String>,
    pub window_seconds: f64,
    /// The load ended early, for lack of objects.
    pub exhausted: bool,
    pub operations: Vec<OperationReport>,
    /// All whole operations.
    pub total: Throughput,
    pub failures: Vec<FailureReport>,
    pub verification: VerificationReport,
    pub server: Option<ServerReport>,
    pub client: ClientReport,
    pub disks: Vec<DiskReport>,
    /// Shares of all CPU time of the machine.
    pub machine_idle: f64,
    pub machine_steal: f64,
    pub limited_by: Vec<String>,
    pub limits_mean: Vec<String>,
}

/// What was done and how fast.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Throughput {
    pub count: u64,
    pub failures: u64,
    pub bytes: u64,
    pub ops_per_second: f64,
    pub mib_per_second: f64,
}

/// One row: an operation, or a step of an upload.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OperationReport {
    pub name: String,
    #[serde(flatten)]
    pub throughput: Throughput,
    pub latency_us: Latency,
}

/// Microseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    pub mean: f64,
    pub min: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FailureReport {
    pub code: String,
    pub count: u64,
    pub example: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VerificationReport {
    pub enabled: bool,
    pub bytes_verified: u64,
    pub etags_verified: u64,
    /// Too many to compute after the run.
    pub etags_unverified: u64,
    /// Listed keys and common prefixes.
    pub listed_verified: u64,
    pub faults: u64,
    pub examples: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServerReport {
    pub user_seconds: f64,
    pub system_seconds: f64,
    /// User and system time.
    pub cpu_us_per_op: Option<f64>,
    pub cpu_ms_per_gib: Option<f64>,
    /// CPUs busy on average.
    pub cpus_used: f64,
    pub cpus_allowed: usize,
    pub busiest_thread: f64,
    pub thread_count: usize,
    /// The highest resident memory seen in the window.
    pub rss_bytes_max: Option<u64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ClientReport {
    pub cpu_seconds: f64,
    pub cpu_us_per_op: Option<f64>,
    pub cpus_used: f64,
    pub cpus_allowed: usize,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DiskReport {
    pub device: String,
    pub reads_per_op: Option<f64>,
    pub writes_per_op: Option<f64>,
    pub flushes_per_op: Option<f64>,
    pub read_bytes_per_op: Option<f64>,
    pub written_bytes_per_op: Option<f64>,
    /// Of each byte that was put.
    pub written_bytes_per_put_byte: Option<f64>,
    pub read_mib_per_second: f64,
    pub written_mib_per_second: f64,
    /// Share of the window with at least one request in flight.
    pub busy: f64,
}

impl Report {
    pub fn new(
        plan: &Plan,
        measured: &Measured,
        verification: &Verification,
        server_software: Option<String>,
    ) -> Self {
        let usage = &measured.usage;
        let seconds = usage.seconds;
        let rows = &measured.tally.rows;
        let operations =
            rows.iter().map(|(row, counts)| OperationReport::new(*row, counts, seconds)).collect();
        let mut total = Throughput::default();
        let mut put_bytes = 0;
        for (row, counts) in rows {
            if let Row::Whole(operation) = row {
                total.add(&Throughput::new(counts, seconds));
                let writes = matches!(operation, Operation::Put | Operation::Multipart);
                put_bytes += if writes { counts.bytes } else { 0 };
            }
        }
        let per_op = |amount: f64| ratio(amount, total.count as f64);
        let cpus_used = |process: &ProcessUsage| process.cpu_seconds() / seconds;
        let server = usage.server.as_ref().map(|server| ServerReport {
            user_seconds: server.user_seconds,
            system_seconds: server.system_seconds,
            cpu_us_per_op: per_op(server.cpu_seconds() * 1e6),
            cpu_ms_per_gib: ratio(server.cpu_seconds() * 1e3, total.bytes as f64 / GIB),
            cpus_used: cpus_used(server),
            cpus_allowed: server.cpus_allowed.len(),
            busiest_thread: server.busiest_thread_seconds / seconds,
            thread_count: server.thread_count,
            rss_bytes_max: measured.server_rss_bytes_max,
        });
        let disks = usage.disks.iter().map(|disk| DiskReport {
            device: disk.device.clone(),
            reads_per_op: per_op(disk.read_count as f64),
            writes_per_op: per_op(disk.write_count as f64),
            flushes_per_op: per_op(disk.flush_count as f64),
            read_bytes_per_op: per_op(disk.read_bytes as f64),
            written_bytes_per_op: per_op(disk.written_bytes as f64),
            written_bytes_per_put_byte: ratio(disk.written_bytes as f64, put_bytes as f64),
            read_mib_per_second: disk.read_bytes as f64 / MIB / seconds,
            written_mib_per_second: disk.written_bytes as f64 / MIB / seconds,
            busy: disk.busy_seconds / seconds,
        });
        let offered = Offered {
            thread_count: plan.thread_count,
            rate: plan.rate,
            ops_per_second: total.ops_per_second,
        };
        let limits = limits(usage, offered);
        let failures = measured.tally.failures.iter().map(|(code, (count, example))| FailureReport {
            code: code.clone(),
            count: *count,
            example: example.clone(),
        });
        Self {
            format: FORMAT,
            bench_version: env!("CARGO_PKG_VERSION").to_owned(),
            unix_seconds: time::UtcDateTime::now().unix_timestamp(),
            inputs: serde_json::to_value(plan.inputs()).unwrap_or_default(),
            machine: Machine::read(),
            server_software,
            window_seconds: seconds,
            exhausted: measured.exhausted,
            operations,
            failures: failures.collect(),
            verification: VerificationReport {
                enabled: plan.verify,
                bytes_verified: verification.bytes_verified,
                etags_verified: verification.etags_verified,
                etags_unverified: verification.etags_unverified,
                listed_verified: verification.listed_verified,
                faults: verification.fault_count,
                examples: verification.examples.clone(),
            },
            server,
            client: ClientReport {
                cpu_seconds: usage.client.cpu_seconds(),
                cpu_us_per_op: per_op(usage.client.cpu_seconds() * 1e6),
                cpus_used: cpus_used(&usage.client),
                cpus_allowed: usage.client.cpus_allowed.len(),
            },
            disks: disks.collect(),
            machine_idle: usage.machine.idle,
            machine_steal: usage.machine.steal,
            limited_by: limits.iter().map(|limit| limit.name().to_owned()).collect(),
            limits_mean: limits.iter().map(|limit| limit.meaning().to_owned()).collect(),
            total,
        }
    }

    /// 0, or what went wrong: a wrong answer weighs more than a missing one.
    pub fn exit_code(&self, allow_errors: bool) -> u8 {
        let failed: u64 = self.failures.iter().map(|failure| failure.count).sum();
        match (self.verification.faults, failed) {
            (1.., _) => EXIT_FAILED_VERIFICATION,
            (0, 1..) if !allow_errors => EXIT_FAILED_REQUESTS,
            _ => 0,
        }
    }

    /// The result for people.
    pub fn table(&self) -> String {
        table::render(self)
    }
}

impl Throughput {
    fn new(counts: &Counts, seconds: f64) -> Self {
        let count = counts.latency.len();
        Self {
            count,
            failures: counts.failures,
            bytes: counts.bytes,
            ops_per_second: count as f64 / seconds,
            mib_per_second: counts.bytes as f64 / MIB / seconds,
        }
    }

    fn add(&mut self, other: &Self) {
        self.count += other.count;
        self.failures += other.failures;
        self.bytes += other.bytes;
        self.ops_per_second += other.ops_per_second;
        self.mib_per_second += other.mib_per_second;
    }
}

impl OperationReport {
    fn new(row: Row, counts: &Counts, seconds: f64) -> Self {
        let micros = |nanos: u64| nanos as f64 / 1e3;
        let at = |quantile: f64| micros(counts.latency.value_at_quantile(quantile));
        let latency_us = Latency {
            mean: counts.latency.mean() / 1e3,
            min: if counts.latency.is_empty() { 0.0 } else { micros(counts.latency.min()) },
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: micros(counts.latency.max()),
        };
        Self { name: row.name().to_owned(), throughput: Throughput::new(counts, seconds), latency_us }
    }
}

fn ratio(amount: f64, base: f64) -> Option<f64> {
    (base > 0.0).then(|| amount / base)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::client::Failure;
    use crate::observe::{DiskUsage, MachineUsage, Usage};
    use crate::plan::tests::plan;
    use crate::tally::{Fault, Tally};

    fn process(cpu_seconds: f64) -> ProcessUsage {
        ProcessUsage {
            user_seconds: cpu_seconds * 0.25,
            system_seconds: cpu_seconds * 0.75,
            busiest_thread_seconds: cpu_seconds,
            thread_count: 1,
            cpus_allowed: vec![0],
        }
    }

    fn measured() -> Measured {
        let mut tally = Tally::default();
        let (put, get) = (Row::Whole(Operation::Put), Row::Whole(Operation::Get));
        for n in 1..=100 {
            tally.success(put, Duration::from_micros(n * 10), 4 << 20);
            tally.success(get, Duration::from_micros(n), 1 << 20);
            tally.success(Row::UploadPart, Duration::from_micros(n), 1 << 20);
        }
        let disk = DiskUsage {
            device: "vda".to_owned(),
            read_count: 100,
            read_bytes: 100 << 20,
            write_count: 400,
            written_bytes: 800 << 20,
            flush_count: 50,
            busy_seconds: 1.0,
        };
        Measured {
            tally,
            usage: Usage {
                seconds: 2.0,
                server: Some(process(1.0)),
                client: process(0.5),
                disks: vec![disk],
                links: vec![],
                machine: MachineUsage { idle: 0.5, steal: 0.01 },
            },
            server_rss_bytes_max: Some(64 << 20),
            exhausted: false,
        }
    }

    fn report(measured: &Measured, verification: &Verification) -> Report {
        let plan = plan("mixed --disk-dev vda").expect("a valid line");
        Report::new(&plan, measured, verification, Some("Fake".to_owned()))
    }

    #[test]
    fn the_figures_follow_from_the_counts() {
        let report = report(&measured(), &Verification::default());
        // Steps of an upload are no operations of their own.
        assert_eq!(report.total.count, 200);
        assert_eq!(report.total.ops_per_second, 100.0);
        assert_eq!(report.total.mib_per_second, 250.0);
        let server = report.server.as_ref().expect("observed");
        assert_eq!(server.cpu_us_per_op, Some(5_000.0));
        assert_eq!(server.cpu_ms_per_gib, Some(1_000.0 / (500.0 / 1_024.0)));
        assert_eq!(server.cpus_used, 0.5);
        let disk = &report.disks[0];
        assert_eq!(disk.flushes_per_op, Some(0.25));
        assert_eq!(disk.written_bytes_per_put_byte, Some(2.0));
        assert_eq!(disk.busy, 0.5);
        let put = report.operations.iter().find(|row| row.name == "put").expect("a row");
        // Within the 0.1 % of the histogram.
        assert!((put.latency_us.p50 - 500.0).abs() < 1.0, "{:?}", put.latency_us);
        assert!((put.latency_us.p99 - 990.0).abs() < 1.0, "{:?}", put.latency_us);
        assert!((put.latency_us.max - 1_000.0).abs() < 1.0, "{:?}", put.latency_us);
    }

    #[test]
    fn nothing_done_divides_by_nothing() {
        let mut measured = measured();
        measured.tally = Tally::default();
        let report = report(&measured, &Verification::default());
        assert_eq!(report.server.as_ref().and_then(|server| server.cpu_us_per_op), None);
        assert_eq!(report.disks[0].flushes_per_op, None);
        assert!(report.table().contains("no operation"));
    }

    #[test]
    fn exit_codes() {
        let mut measured = measured();
        let mut verification = Verification::default();
        assert_eq!(report(&measured, &verification).exit_code(false), 0);
        measured.tally.failure(Row::Whole(Operation::Put), &Failure::Timeout);
        assert_eq!(report(&measured, &verification).exit_code(false), EXIT_FAILED_REQUESTS);
        assert_eq!(report(&measured, &verification).exit_code(true), 0);
        verification.fault(&Fault::Listing { what: "wrong".to_owned() });
        assert_eq!(report(&measured, &verification).exit_code(true), EXIT_FAILED_VERIFICATION);
    }

    #[test]
    fn json_and_back() {
        let report = report(&measured(), &Verification::default());
        let json = serde_json::to_string(&report).expect("serializable");
        let back: Report = serde_json::from_str(&json).expect("what was written can be read");
        assert_eq!(back.total, report.total);
        assert_eq!(back.operations[0].latency_us, report.operations[0].latency_us);
        assert_eq!(back.inputs["workload"], "mixed");
    }

    #[test]
    fn the_table_says_what_limited_the_run() {
        let table = report(&measured(), &Verification::default()).table();
        for part in ["put", "get", "· part", "5000", "limited by", "0.25", "Fake"] {
            assert!(table.contains(part), "{part} is missing in\n{table}");
        }
    }
}
