//! The ratios between two results, and in which inputs they differ: ratios mean something only when what was
//! measured is the same.

use std::path::Path;

use crate::args::CompareArgs;
use crate::error::Error;
use crate::report::Report;
use crate::report::table::{align, format_micros};

/// A result file is a few KiB.
const RESULT_BYTES_MAX: u64 = 16 << 20;

/// Reads both results and renders their ratios.
pub(crate) fn run(args: &CompareArgs) -> Result<String, Error> {
    Ok(render(&read(&args.before)?, &read(&args.after)?))
}

fn read(path: &Path) -> Result<Report, Error> {
    let file_error = |source| Error::File { path: path.to_owned(), source };
    let len = std::fs::metadata(path).map_err(file_error)?.len();
    if len > RESULT_BYTES_MAX {
        return Err(file_error(std::io::Error::other(format!("{len} bytes are too many for a result"))));
    }
    let text = std::fs::read(path).map_err(file_error)?;
    serde_json::from_slice(&text).map_err(|source| Error::Result { path: path.to_owned(), source })
}

fn render(before: &Report, after: &Report) -> String {
    let mut text = differences(before, after);
    let mut rows = vec![["", "before", "after", "after/before", ""].map(str::to_owned).to_vec()];
    let mut row = |name: String, values: (f64, f64), format: &dyn Fn(f64) -> String, more_is_better: bool| {
        let (before, after) = values;
        let ratio = after / before;
        let (text, verdict) = if before > 0.0 && after > 0.0 {
            let better = (ratio > 1.0) == more_is_better;
            // Within 2 % two runs of the same are equal.
            let verdict = if (ratio - 1.0).abs() < 0.02 {
                "same"
            } else if better {
                "better"
            } else {
                "worse"
            };
            (format!("{ratio:.2}"), verdict)
        } else {
            ("–".to_owned(), "")
        };
        rows.push(vec![name, format(before), format(after), text, verdict.to_owned()]);
    };
    let plain = |value: f64| format!("{value:.1}");
    let bytes = |value: f64| crate::size::format_bytes(value);
    let both = |a: Option<f64>, b: Option<f64>| a.zip(b);
    for old in &before.operations {
        let Some(new) = after.operations.iter().find(|new| new.name == old.name) else { continue };
        let name = &old.name;
        let rate = |report: &crate::report::OperationReport| report.throughput.ops_per_second;
        row(format!("{name} ops/s"), (rate(old), rate(new)), &plain, true);
        if old.throughput.bytes > 0 {
            let values = (old.throughput.mib_per_second, new.throughput.mib_per_second);
            row(format!("{name} MiB/s"), values, &plain, true);
        }
        let (old, new) = (&old.latency_us, &new.latency_us);
        for (quantile, values) in
            [("p50", (old.p50, new.p50)), ("p99", (old.p99, new.p99)), ("p99.9", (old.p999, new.p999))]
        {
            row(format!("{name} {quantile}"), values, &format_micros, false);
        }
    }
    if let Some((old, new)) = before.server.as_ref().zip(after.server.as_ref()) {
        if let Some(values) = both(old.cpu_us_per_op, new.cpu_us_per_op) {
            row("server CPU per operation".to_owned(), values, &format_micros, false);
        }
        if let Some((old, new)) = both(old.cpu_ms_per_gib, new.cpu_ms_per_gib) {
            row("server CPU per GiB".to_owned(), (old * 1e3, new * 1e3), &format_micros, false);
        }
        if let Some((old, new)) = old.rss_bytes_max.zip(new.rss_bytes_max) {
            row("server RSS".to_owned(), (old as f64, new as f64), &bytes, false);
        }
    }
    for old in &before.disks {
        let Some(new) = after.disks.iter().find(|new| new.device == old.device) else { continue };
        let precise = |value: f64| format!("{value:.3}");
        if let Some(values) = both(old.flushes_per_op, new.flushes_per_op) {
            row(format!("{} flushes per operation", old.device), values, &precise, false);
        }
        if let Some(values) = both(old.written_bytes_per_op, new.written_bytes_per_op) {
            row(format!("{} bytes written per operation", old.device), values, &plain, false);
        }
    }
    text.push_str(&align(&rows));
    for (name, report) in [("before", before), ("after", after)] {
        text.push_str(&format!("{name}: limited by {}", report.limited_by.join(", ")));
        let failed: u64 = report.failures.iter().map(|failure| failure.count).sum();
        if failed > 0 || report.verification.faults > 0 {
            text.push_str(&format!("; {failed} errors, {} wrong answers", report.verification.faults));
        }
        text.push('\n');
    }
    text
}

/// One line for each input, and for the machine, that is not the same.
fn differences(before: &Report, after: &Report) -> String {
    let mut text = String::new();
    let empty = serde_json::Map::new();
    let inputs = |report: &'_ Report| report.inputs.as_object().cloned().unwrap_or_else(|| empty.clone());
    let (old, new) = (inputs(before), inputs(after));
    let names: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    for name in names {
        // Where a server listens does not change what is measured.
        if name != "endpoint" && old.get(name) != new.get(name) {
            let show = |value: Option<&serde_json::Value>| value.map(ToString::to_string).unwrap_or_default();
            text.push_str(&format!("differs: {name} {} → {}\n", show(old.get(name)), show(new.get(name))));
        }
    }
    if before.machine != after.machine {
        text.push_str("differs: the machine\n");
    }
    if !text.is_empty() {
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(ops_per_second: f64, p99: f64, objects: u64) -> Report {
        let json = serde_json::json!({
            "format": 1, "bench_version": "0", "unix_seconds": 0,
            "inputs": { "workload": "get", "objects": objects, "endpoint": format!("http://h:{objects}") },
            "machine": { "kernel": "Linux", "architecture": "x86_64", "cpu_model": "m", "cpu_count": 2, "memory_bytes": 1 },
            "server_software": null, "window_seconds": 1.0, "exhausted": false,
            "operations": [{
                "name": "get", "count": 1, "failures": 0, "bytes": 0,
                "ops_per_second": ops_per_second, "mib_per_second": 0.0,
                "latency_us": { "mean": 1.0, "min": 1.0, "p50": 100.0, "p90": 1.0, "p99": p99, "p999": 1.0, "max": 1.0 }
            }],
            "total": { "count": 1, "failures": 0, "bytes": 0, "ops_per_second": 1.0, "mib_per_second": 0.0 },
            "failures": [],
            "verification": {
                "enabled": true, "bytes_verified": 0, "etags_verified": 0, "etags_unverified": 0,
                "listed_verified": 0, "faults": 0, "examples": []
            },
            "server": null,
            "client": { "cpu_seconds": 1.0, "cpu_us_per_op": null, "cpus_used": 1.0, "cpus_allowed": 1 },
            "disks": [], "machine_idle": 0.5, "machine_steal": 0.0,
            "limited_by": ["latency"], "limits_mean": ["…"]
        });
        serde_json::from_value(json).expect("a result")
    }

    fn line<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
        let line = text.lines().find(|line| line.starts_with(name)).expect("a line");
        line[name.len()..].split_whitespace().collect()
    }

    #[test]
    fn ratios_and_their_direction() {
        let text = render(&report(1_000.0, 500.0, 7), &report(2_000.0, 1_000.0, 7));
        assert_eq!(line(&text, "get ops/s"), ["1000.0", "2000.0", "2.00", "better"]);
        assert_eq!(line(&text, "get p99 "), ["500", "µs", "1.00", "ms", "2.00", "worse"]);
        assert_eq!(line(&text, "get p50"), ["100", "µs", "100", "µs", "1.00", "same"]);
        assert!(!text.contains("differs"), "{text}");
    }

    #[test]
    fn differing_inputs_are_named() {
        let text = render(&report(1.0, 1.0, 7), &report(1.0, 1.0, 8));
        assert!(text.starts_with("differs: objects 7 → 8\n"), "{text}");
        assert!(!text.contains("endpoint"), "{text}");
    }

    #[test]
    fn what_is_no_result_is_refused() {
        let missing = CompareArgs { before: "/nonexistent/a".into(), after: "/nonexistent/b".into() };
        assert!(matches!(run(&missing), Err(Error::File { .. })));
    }
}
