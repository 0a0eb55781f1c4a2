//! `basalt disk list`: a line per disk, from the running server, or from superblocks when none runs.

use std::io::Write as _;
use std::path::PathBuf;

use basalt_engine::deployment::{DiskState, inspect};
use basalt_engine::extent::members::MemberState;
use basalt_engine::format::superblock::Superblock;
use basalt_reactor::{Core, Disk};
use serde_json::{Value, json};

use super::super::offline::{self, Outcome};
use super::call::Server;

/// Show every disk: state, progress, space, speed, errors, and how many more may fail
///
/// Exit codes: 0 every disk is in sync; 1 some are not; 2 it could not look.
#[derive(clap::Args)]
pub(super) struct List {
    /// Where no server runs: disk directories, whose superblocks are read; {1...6} is a range
    #[arg(value_name = "DIR")]
    disks: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: Server,
}

impl List {
    pub(super) fn run(self) -> Result<Outcome, String> {
        let report = if self.disks.is_empty() {
            self.server.list().map_err(|error| format!("{error}; where no server runs, name the disks"))?
        } else {
            offline::run(&self.disks, |core, paths| async move { look(&core, paths).await })??
        };
        let text = if self.json { format!("{report:#}\n") } else { table(&report) };
        // Who reads may have seen enough.
        let _closed = std::io::stdout().write_all(text.as_bytes()).is_err();
        let whole = report["disks"].as_array().into_iter().flatten().all(|disk| disk["state"] == "in sync");
        Ok(if whole { Outcome::Clean } else { Outcome::Faults })
    }
}

/// What the disks say of themselves and of each other.
async fn look(core: &Core, paths: Vec<PathBuf>) -> Result<Value, String> {
    let (mut members, mut others, mut spares) = (Vec::new(), Vec::new(), Vec::new());
    for path in paths {
        let found = match Disk::open(core, &path) {
            Ok(disk) => inspect(core, &disk).await.map(|state| (state, disk.space().ok())),
            Err(error) => Err(error),
        };
        let why = match found {
            Ok((DiskState::Ours(superblock), space)) => {
                members.push((path, superblock, space));
                continue;
            }
            Ok((DiskState::Empty, _)) => {
                spares.push(path.display().to_string());
                continue;
            }
            Ok((DiskState::Foreign { example }, _)) => format!("not Basalt's: it holds {example}"),
            Ok((DiskState::Unreadable { reasons }, _)) => reasons.join("; "),
            Err(error) => error.to_string(),
        };
        others.push(json!({ "path": path.display().to_string(), "reason": why }));
    }
    let newest: Option<Superblock> = members
        .iter()
        .map(|(_, superblock, _)| (**superblock).clone())
        .max_by_key(|superblock| superblock.epoch);
    let Some(newest) = newest else { return Err("no disk has a superblock".to_owned()) };
    let groups = newest.groups();
    let mut disks = Vec::new();
    for (place, member) in newest.members.iter().enumerate() {
        let found = members.iter().position(|(_, superblock, _)| superblock.disk == member.disk);
        let found = found.map(|index| members.swap_remove(index));
        let (path, space) = match &found {
            Some((path, _, space)) => (Some(path.display().to_string()), *space),
            None => (None, None),
        };
        let state = match (member.state, &found) {
            (MemberState::Out, _) => "out",
            (_, None) => "missing",
            (MemberState::Behind, _) => "behind",
            (MemberState::InSync, Some((_, superblock, _))) if superblock.epoch + 1 < newest.epoch => "stale",
            (MemberState::InSync, Some(_)) => "in sync",
        };
        disks.push(json!({
            "disk": place,
            "path": path,
            "uuid": hex::encode(member.disk),
            "group": groups.name(member.group),
            "state": state,
            "removed": member.removed,
            "capacity_bytes": space.as_ref().map(|space| space.total),
            "available_bytes": space.as_ref().map(|space| space.available),
        }));
    }
    others.extend(members.iter().map(|(path, _, _)| {
        json!({ "path": path.display().to_string(), "reason": "no member of this deployment, or not any more" })
    }));
    Ok(json!({ "epoch": newest.epoch, "disks": disks, "spares": spares, "others": others }))
}

/// For people.
fn table(report: &Value) -> String {
    const HEAD: [&str; 8] = ["disk", "group", "state", "free", "size", "read", "errors", "path"];
    let mut rows = vec![HEAD.map(str::to_owned)];
    let mut notes = String::new();
    for disk in report["disks"].as_array().into_iter().flatten() {
        let size = |name: &str| disk[name].as_u64().map_or_else(|| "-".to_owned(), human);
        let errors = disk["read_errors"].as_u64().zip(disk["damaged_blocks"].as_u64());
        rows.push([
            disk["disk"].to_string(),
            disk["group"].as_str().unwrap_or("-").to_owned(),
            disk["state"].as_str().unwrap_or("-").to_owned(),
            size("available_bytes"),
            size("capacity_bytes"),
            disk["read_microseconds"]
                .as_u64()
                .map_or_else(|| "-".to_owned(), |micros| format!("{micros} µs")),
            errors.map_or_else(|| "-".to_owned(), |(errors, damaged)| (errors + damaged).to_string()),
            disk["path"].as_str().unwrap_or("(unknown)").to_owned(),
        ]);
        notes.push_str(&note(disk));
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..HEAD.len()).map(width).collect();
    let mut out = String::new();
    for row in &rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    out.push_str(&notes);
    for spare in report["spares"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        out.push_str(&format!("spare: {spare}\n"));
    }
    for other in report["others"].as_array().into_iter().flatten() {
        let text = |name: &str| other[name].as_str().unwrap_or_default().to_owned();
        out.push_str(&format!("{}: {}\n", text("path"), text("reason")));
    }
    match report.get("failures_tolerated") {
        Some(Value::Null) if report["read_only"] == true => {
            out.push_str("the server was started read-only: nothing is written\n");
        }
        Some(Value::Null) => out.push_str("writes are refused: too few disks hold all they should\n"),
        Some(count) => out.push_str(&format!("{count} more disks may fail\n")),
        None => out.push_str(&format!("no server was asked; as of epoch {}\n", report["epoch"])),
    }
    out
}

/// What there is to say of a disk that is not in sync.
fn note(disk: &Value) -> String {
    let place = &disk["disk"];
    let mut out = String::new();
    if let Some(rebuild) = disk.get("rebuild").filter(|rebuild| rebuild.is_object()) {
        let number = |name: &str| rebuild[name].as_u64().unwrap_or(0);
        let left = rebuild["seconds_left"].as_u64().map_or_else(|| "an unknown time".to_owned(), time);
        out.push_str(&format!(
            "disk {place}: {} % rebuilt, {} of {} left, {}/s, {left} to go\n",
            rebuild["percent"],
            human(number("left_bytes")),
            human(number("left_bytes") + number("done_bytes")),
            human(number("bytes_per_second")),
        ));
    }
    if let Some(reason) = disk["reason"].as_str() {
        let since = disk["since_unix"]
            .as_i64()
            .and_then(|since| time::OffsetDateTime::from_unix_timestamp(since).ok());
        let since = since.map_or_else(String::new, |since| format!(" since {} UTC", stamp(since)));
        let state = if disk["state"] == "failing" { "failing" } else { "out" };
        out.push_str(&format!("disk {place}: {state}{since}: {reason}\n"));
    }
    if disk["removed"] == true {
        out.push_str(&format!("disk {place}: stays out until it is returned or replaced\n"));
    }
    out
}

fn stamp(at: time::OffsetDateTime) -> String {
    let (date, clock) = (at.date(), at.time());
    format!("{date} {:02}:{:02}:{:02}", clock.hour(), clock.minute(), clock.second())
}

fn time(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

fn human(len: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let unit = (len.max(1).ilog2() as usize / 10).min(UNITS.len() - 1);
    if unit == 0 {
        format!("{len} B")
    } else {
        format!("{:.1} {}", len as f64 / (1u64 << (10 * unit)) as f64, UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_what_is_wrong_and_what_may_still_fail() {
        let report = json!({
            "epoch": 9, "failures_tolerated": 1, "spares": ["/mnt/e"],
            "disks": [
                { "disk": 0, "group": "set 0", "state": "in sync", "path": "/mnt/a", "available_bytes": 1536, "capacity_bytes": 4096,
                  "read_microseconds": 85, "read_errors": 1, "damaged_blocks": 2, "removed": false },
                { "disk": 1, "state": "out", "path": null, "reason": "no answer for 10 s", "since_unix": 86_400, "removed": true },
                { "disk": 2, "state": "behind", "path": "/mnt/c", "removed": false, "rebuild": {
                    "percent": 25.5, "done_bytes": 100, "left_bytes": 300, "bytes_per_second": 2, "seconds_left": 150 } },
            ],
        });
        let text = table(&report);
        for wanted in [
            "0     set 0  in sync  1.5 KiB  4.0 KiB  85 µs  3       /mnt/a\n",
            "disk 1: out since 1970-01-02 00:00:00 UTC: no answer for 10 s\n",
            "disk 1: stays out until",
            "disk 2: 25.5 % rebuilt, 300 B of 400 B left, 2 B/s, 2 min to go\n",
            "spare: /mnt/e\n",
            "1 more disks may fail\n",
        ] {
            assert!(text.contains(wanted), "{wanted:?} is not in\n{text}");
        }
    }
}
