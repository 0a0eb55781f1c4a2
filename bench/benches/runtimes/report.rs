//! The comparison: medians over the rounds, and their ratio to Basalt's reactor.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::server::Runtime;

/// One measured window of one server.
#[derive(Clone, Copy, Serialize)]
pub(crate) struct Figures {
    pub(crate) requests: u64,
    pub(crate) requests_per_second: f64,
    pub(crate) server_cpu_us_per_request: f64,
    /// Of one CPU. Below about 0.9 the disk or the client limited the rate, and only the CPU time says something.
    pub(crate) server_cpu_used: f64,
}

impl Figures {
    pub(crate) fn new(elapsed: Duration, server_cpu: Duration, requests: u64) -> Figures {
        Figures {
            requests,
            requests_per_second: requests as f64 / elapsed.as_secs_f64(),
            server_cpu_us_per_request: server_cpu.as_secs_f64() * 1e6 / requests.max(1) as f64,
            server_cpu_used: server_cpu.as_secs_f64() / elapsed.as_secs_f64(),
        }
    }
}

/// What one runtime did with runs of one length.
#[derive(Default, Serialize)]
struct Row {
    samples: Vec<Figures>,
    failures: Vec<String>,
}

#[derive(Serialize)]
pub(crate) struct Report {
    connections: usize,
    seconds: f64,
    file_len: u64,
    kernel: String,
    /// By run length in bytes, then by runtime.
    results: BTreeMap<usize, BTreeMap<Runtime, Row>>,
    /// What a runtime had to do without on this machine.
    notes: BTreeMap<Runtime, Vec<String>>,
}

impl Report {
    pub(crate) fn new(connections: usize, seconds: f64, file_len: u64) -> Report {
        let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
        Report { connections, seconds, file_len, kernel, results: BTreeMap::new(), notes: BTreeMap::new() }
    }

    pub(crate) fn add(&mut self, runtime: Runtime, run_len: usize, figures: Figures, notes: Vec<String>) {
        self.row(runtime, run_len).samples.push(figures);
        if !notes.is_empty() {
            self.notes.insert(runtime, notes);
        }
    }

    pub(crate) fn fail(&mut self, runtime: Runtime, run_len: usize, reason: &str) {
        self.row(runtime, run_len).failures.push(reason.to_owned());
    }

    fn row(&mut self, runtime: Runtime, run_len: usize) -> &mut Row {
        self.results.entry(run_len).or_default().entry(runtime).or_default()
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.results.values().flat_map(BTreeMap::values).all(|row| row.failures.is_empty())
    }
}

impl Row {
    fn median(&self, of: impl Fn(&Figures) -> f64) -> Option<f64> {
        let mut values: Vec<f64> = self.samples.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    }

    fn cpu_us(&self) -> Option<f64> {
        self.median(|figures| figures.server_cpu_us_per_request)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "kernel {}, {} connections, {} s per sample",
            self.kernel, self.connections, self.seconds
        )?;
        for (run_len, rows) in &self.results {
            let baseline = rows.get(&Runtime::Basalt).and_then(Row::cpu_us);
            writeln!(
                f,
                "\n{:<22}{:>16}{:>10}{:>12}{:>14}",
                format!("GET of {} KiB", run_len >> 10),
                "CPU µs/request",
                "ratio",
                "requests/s",
                "CPU used"
            )?;
            for (runtime, row) in rows {
                if let (Some(cpu_us), Some(rate), Some(used)) = (
                    row.cpu_us(),
                    row.median(|figures| figures.requests_per_second),
                    row.median(|figures| figures.server_cpu_used),
                ) {
                    let ratio = baseline.map_or("-".to_owned(), |ours| format!("{:.2}", cpu_us / ours));
                    writeln!(
                        f,
                        "{runtime:<22}{cpu_us:>16.1}{ratio:>10}{rate:>12.0}{:>12.0} %",
                        used * 100.0
                    )?;
                }
                for reason in &row.failures {
                    writeln!(f, "{runtime:<22}not measured: {reason}")?;
                }
            }
        }
        for (runtime, notes) in &self.notes {
            for note in notes {
                writeln!(f, "\n{runtime}: {note}")?;
            }
        }
        Ok(())
    }
}
