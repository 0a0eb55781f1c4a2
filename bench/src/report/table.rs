//! A result as a table of text.

use std::fmt::Write as _;

use super::{OperationReport, Report};
use crate::size::format_bytes;

/// More failures than this are summed up; JSON has them all.
const FAILURE_LINES_MAX: usize = 8;

/// Aligns rows: the first column to the left, the others to the right.
pub(crate) fn align(rows: &[Vec<String>]) -> String {
    let column_count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..column_count).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            if column == 0 {
                line.push_str(&format!("{cell:<width$}"));
            } else {
                line.push_str(&format!("  {cell:>width$}"));
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Microseconds in the unit in which they are a short number.
pub(crate) fn format_micros(micros: f64) -> String {
    match micros {
        _ if micros < 1_000.0 => format!("{micros:.0} µs"),
        _ if micros < 1_000_000.0 => format!("{:.2} ms", micros / 1e3),
        _ => format!("{:.2} s", micros / 1e6),
    }
}

pub(crate) fn render(report: &Report) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = heading(&mut text, report);
    if report.operations.is_empty() {
        text.push_str("no operation ended within the window\n");
    } else {
        text.push_str(&operations(report));
    }
    let _ = resources(&mut text, report);
    let _ = findings(&mut text, report);
    text
}

fn heading(text: &mut String, report: &Report) -> std::fmt::Result {
    let input = |name: &str| match &report.inputs[name] {
        serde_json::Value::String(value) => value.clone(),
        other => other.to_string(),
    };
    writeln!(
        text,
        "{} at {}{}: {} objects of {}, {} in flight, {:.2} s",
        input("workload"),
        input("endpoint"),
        report.server_software.as_ref().map(|name| format!(" ({name})")).unwrap_or_default(),
        input("objects"),
        input("size"),
        input("concurrency"),
        report.window_seconds
    )?;
    let machine = &report.machine;
    writeln!(
        text,
        "load generator {} on {}, {} CPUs, {}\n",
        report.bench_version, machine.cpu_model, machine.cpu_count, machine.kernel
    )
}

fn operations(report: &Report) -> String {
    let head = ["", "ops", "errors", "ops/s", "MiB/s", "mean", "p50", "p90", "p99", "p99.9", "max"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(report.operations.iter().map(|OperationReport { name, throughput, latency_us }| {
        let mut row = vec![
            name.clone(),
            throughput.count.to_string(),
            throughput.failures.to_string(),
            format!("{:.1}", throughput.ops_per_second),
            format!("{:.1}", throughput.mib_per_second),
        ];
        let latency = latency_us;
        row.extend(
            [latency.mean, latency.p50, latency.p90, latency.p99, latency.p999, latency.max]
                .map(format_micros),
        );
        row
    }));
    let total = &report.total;
    rows.push(vec![
        "total".to_owned(),
        total.count.to_string(),
        total.failures.to_string(),
        format!("{:.1}", total.ops_per_second),
        format!("{:.1}", total.mib_per_second),
    ]);
    align(&rows)
}

fn resources(text: &mut String, report: &Report) -> std::fmt::Result {
    let figure = |value: Option<f64>, digits: usize| {
        value.map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
    };
    text.push('\n');
    if let Some(server) = &report.server {
        writeln!(
            text,
            "server  {} µs CPU per operation, {} ms per GiB; {:.2} of {} CPUs (user {:.2} s, system {:.2} s), \
             {} threads, RSS {}",
            figure(server.cpu_us_per_op, 1),
            figure(server.cpu_ms_per_gib, 1),
            server.cpus_used,
            server.cpus_allowed,
            server.user_seconds,
            server.system_seconds,
            server.thread_count,
            server.rss_bytes_max.map_or_else(|| "–".to_owned(), |bytes| format_bytes(bytes as f64)),
        )?;
    }
    writeln!(
        text,
        "client  {} µs CPU per operation; {:.2} of {} CPUs",
        figure(report.client.cpu_us_per_op, 1),
        report.client.cpus_used,
        report.client.cpus_allowed
    )?;
    for disk in &report.disks {
        writeln!(
            text,
            "disk    {}: per operation {} flushes, {} writes ({} bytes), {} reads ({} bytes); \
             {} bytes written per byte put; busy {:.0} %",
            disk.device,
            figure(disk.flushes_per_op, 3),
            figure(disk.writes_per_op, 2),
            figure(disk.written_bytes_per_op, 0),
            figure(disk.reads_per_op, 2),
            figure(disk.read_bytes_per_op, 0),
            figure(disk.written_bytes_per_put_byte, 2),
            disk.busy * 100.0
        )?;
    }
    if report.machine_steal >= 0.01 {
        writeln!(
            text,
            "machine {:.0} % of its CPU time went to others (steal): absolute times mean little",
            report.machine_steal * 100.0
        )?;
    }
    for (name, meaning) in report.limited_by.iter().zip(&report.limits_mean) {
        writeln!(text, "limited by {name}: {meaning}")?;
    }
    Ok(())
}

fn findings(text: &mut String, report: &Report) -> std::fmt::Result {
    if report.exhausted {
        writeln!(text, "ended early: no objects were left")?;
    }
    for failure in report.failures.iter().take(FAILURE_LINES_MAX) {
        writeln!(text, "error   {} × {}: {}", failure.count, failure.code, failure.example)?;
    }
    let verification = &report.verification;
    if !verification.enabled {
        return writeln!(text, "nothing was verified (--no-verify)");
    }
    write!(
        text,
        "verified {} of content, {} ETags, {} listed entries",
        format_bytes(verification.bytes_verified as f64),
        verification.etags_verified,
        verification.listed_verified
    )?;
    if verification.etags_unverified > 0 {
        write!(text, " ({} ETags were too many to check)", verification.etags_unverified)?;
    }
    if verification.faults == 0 {
        return writeln!(text, ": all right");
    }
    writeln!(text, ": {} WRONG ANSWERS", verification.faults)?;
    for example in &verification.examples {
        writeln!(text, "  {example}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [vec!["a".to_owned(), "10".to_owned()], vec!["bcd".to_owned(), "5 µs".to_owned()]];
        assert_eq!(align(&rows), "a      10\nbcd  5 µs\n");
    }

    #[test]
    fn short_times() {
        assert_eq!(format_micros(17.4), "17 µs");
        assert_eq!(format_micros(1_234.0), "1.23 ms");
        assert_eq!(format_micros(1_500_000.0), "1.50 s");
    }
}
