//! `basalt check`: verify a stopped deployment offline, and mend what redundancy allows.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use basalt_engine::offline::check::{Fault, Listener, Phase, Progress, Remedy, Report, check};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::offline::{self, Outcome};

/// Verify every copy of everything on the disks of a stopped deployment; exit code 0 if nothing is wrong
///
/// Takes the disks' locks, so that no server runs meanwhile. Exit codes: 0 nothing is wrong; 1 faults were found (all of them mended, with
/// --repair), or disks are missing; 2 it could not check; 3 with --repair: something could not be mended.
#[derive(clap::Args)]
pub(super) struct Check {
    /// Disk directories, all that are left of the set; {1...6} is a range
    #[arg(value_name = "DISK", required = true)]
    disks: Vec<String>,
    /// Write what is damaged anew, from the copies and columns that are whole
    #[arg(long)]
    repair: bool,
    /// Print JSON: one fault per line, and a last line that sums up
    #[arg(long)]
    json: bool,
}

impl Check {
    pub(super) fn run(self) -> ExitCode {
        let (repair, json) = (self.repair, self.json);
        let checked = offline::run(&self.disks, move |core, paths| async move {
            let mut terminal = Terminal::new(json);
            let report = check(&core, &paths, repair, &mut terminal).await;
            terminal.bar.finish_and_clear();
            report.map_err(|error| error.to_string())
        });
        match checked.and_then(|report| report) {
            Ok(report) => {
                print(&if json { format!("{}\n", summary_json(&report)) } else { summary(&report, repair) });
                outcome(&report, repair).into()
            }
            Err(reason) => {
                eprintln!("basalt check: {reason}");
                Outcome::Unable.into()
            }
        }
    }
}

fn outcome(report: &Report, repair: bool) -> Outcome {
    match report {
        report if report.is_clean() => Outcome::Clean,
        report if repair && report.unmended_count > 0 => Outcome::Unmended,
        _ => Outcome::Faults,
    }
}

/// Shows faults as they are found, and how far it is.
struct Terminal {
    bar: ProgressBar,
    json: bool,
    phase: Option<(u16, Phase)>,
}

impl Terminal {
    fn new(json: bool) -> Terminal {
        // On a terminal only, and never where the result goes.
        let bar = if std::io::stderr().is_terminal() { ProgressBar::new(0) } else { ProgressBar::hidden() };
        let template = "{prefix:20} [{bar:30}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
        let style = ProgressStyle::with_template(template).expect("a valid template");
        bar.set_style(style.progress_chars("=> "));
        Terminal { bar, json, phase: None }
    }
}

impl Listener for Terminal {
    fn fault(&mut self, fault: &Fault) {
        let line = if self.json { fault_json(fault).to_string() } else { fault.to_string() };
        self.bar.suspend(|| print(&format!("{line}\n")));
    }

    fn progress(&mut self, progress: Progress) {
        if self.phase.replace((progress.shard, progress.phase)) != Some((progress.shard, progress.phase)) {
            let what = match progress.phase {
                Phase::Log => "log",
                Phase::Index => "index",
                Phase::Bodies => "bodies",
            };
            self.bar.reset();
            self.bar.set_prefix(format!("shard {} {what}", progress.shard));
        }
        self.bar.set_length(progress.total.max(progress.done));
        self.bar.set_position(progress.done);
    }
}

/// To standard output; who reads may have seen enough.
fn print(text: &str) {
    let _nobody_reads = std::io::stdout().write_all(text.as_bytes()).is_err();
}

fn summary(report: &Report, repair: bool) -> String {
    let mut out = String::new();
    for note in &report.notes {
        out.push_str(&format!("note: {note}\n"));
    }
    for disk in &report.missing {
        out.push_str(&format!("disk {} of the set is missing; it was checked without it\n", disk.0));
    }
    for (path, why) in &report.strangers {
        out.push_str(&format!("{} was left aside: {why}\n", path.display()));
    }
    out.push_str(&format!(
        "{} disks, {} shards, {} buckets, {} objects, {} uploads with {} parts; {} MiB read\n",
        report.disks.len(),
        report.shard_count,
        report.bucket_count,
        report.object_count,
        report.upload_count,
        report.part_count,
        report.read_len >> 20,
    ));
    out.push_str(&match (report.fault_count, repair) {
        (0, _) if report.is_clean() => "clean\n".to_owned(),
        (0, _) => "no faults on the disks at hand\n".to_owned(),
        (count, true) => format!(
            "{count} faults: {} mended, {} could not be mended\n",
            report.mended_count, report.unmended_count
        ),
        (count, false) => {
            format!(
                "{count} faults, of which {} can be mended with --repair\n",
                count - report.unmended_count
            )
        }
    });
    out
}

fn fault_json(fault: &Fault) -> Value {
    let place = fault.place.as_ref();
    let owner = fault.owner.as_ref().map(|owner| {
        json!({
            "bucket": owner.bucket, "bucket_id": owner.bucket_id, "key": String::from_utf8_lossy(&owner.key),
            "part": owner.part,
        })
    });
    let (remedy, why) = match &fault.remedy {
        Remedy::Mendable => ("mendable", None),
        Remedy::Mended => ("mended", None),
        Remedy::Failed(why) => ("failed", Some(why)),
        Remedy::None(why) => ("none", Some(why)),
    };
    json!({
        "structure": fault.structure.name(),
        "shard": fault.shard,
        "path": place.map(|place| place.path.display().to_string()),
        "disk": place.map(|place| place.disk.0),
        "file": place.map(|place| &place.file),
        "offset": place.map(|place| place.offset),
        "len": fault.len,
        "owner": owner,
        "reason": fault.reason,
        "remedy": remedy,
        "remedy_reason": why,
    })
}

fn summary_json(report: &Report) -> Value {
    let disks =
        report.disks.iter().map(|(disk, path)| json!({ "disk": disk.0, "path": path.display().to_string() }));
    let strangers = report
        .strangers
        .iter()
        .map(|(path, why)| json!({ "path": path.display().to_string(), "reason": why }));
    json!({
        "clean": report.is_clean(),
        "disks": disks.collect::<Vec<_>>(),
        "missing": report.missing.iter().map(|disk| disk.0).collect::<Vec<_>>(),
        "left_aside": strangers.collect::<Vec<_>>(),
        "shards": report.shard_count,
        "buckets": report.bucket_count,
        "objects": report.object_count,
        "uploads": report.upload_count,
        "parts": report.part_count,
        "bytes_read": report.read_len,
        "faults": report.fault_count,
        "mended": report.mended_count,
        "unmended": report.unmended_count,
        "notes": report.notes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_says_what_is_left_to_do() {
        let clean = Report::default();
        assert_eq!(outcome(&clean, true), Outcome::Clean);
        let missing = Report { missing: vec![basalt_engine::extent::DiskIndex(1)], ..Report::default() };
        assert_eq!(outcome(&missing, true), Outcome::Faults);
        let mended = Report { fault_count: 2, mended_count: 2, ..Report::default() };
        assert_eq!(outcome(&mended, true), Outcome::Faults);
        let unmended = Report { fault_count: 2, unmended_count: 1, ..Report::default() };
        assert_eq!(
            (outcome(&unmended, false), outcome(&unmended, true)),
            (Outcome::Faults, Outcome::Unmended)
        );
    }
}
