//! `basalt rebuild-index`: a new index for a stopped deployment that has lost every copy of its own.

use std::fs::File;
use std::io::{BufWriter, Write, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use basalt_engine::offline::rebuild::{Line, RebuildOptions, Summary, rebuild};

use super::offline::{self, Outcome};

/// Recreate the index from log and data extents when all copies of it are lost
///
/// The server must be stopped. Shards whose index opens are left alone. Writes a line for every object: how it was recovered, or why
/// it was not. What was not is overwritten once a server runs. Exits with 1 when something was lost.
#[derive(clap::Args)]
pub(super) struct RebuildIndex {
    /// Disk directories of the deployment, without those that are lost; {1...6} is a range
    #[arg(value_name = "DISK", required = true)]
    disks: Vec<String>,
    /// Rebuild also what can be opened: the result knows less than the index that is there
    #[arg(long)]
    force: bool,
    /// Do not read objects for their ETag; those without a record get one made up
    #[arg(long)]
    skip_etags: bool,
    /// Write the report to this new file instead of standard output
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// Where the lines go, and what went wrong with that first.
struct Report {
    out: Box<dyn Write>,
    failed: Option<std::io::Error>,
}

impl Report {
    fn open(path: Option<&Path>) -> std::io::Result<Report> {
        let out: Box<dyn Write> = match path {
            None => Box::new(stdout()),
            Some(path) => Box::new(File::create_new(path)?),
        };
        Ok(Report { out: Box::new(BufWriter::new(out)), failed: None })
    }

    /// A report that cannot be written does not keep the index from being rebuilt.
    fn line(&mut self, line: &Line) {
        if let Err(error) = writeln!(self.out, "{line}") {
            self.failed.get_or_insert(error);
        }
    }

    fn end(mut self) -> std::io::Result<()> {
        self.out.flush()?;
        self.failed.map_or(Ok(()), Err)
    }
}

impl RebuildIndex {
    pub(super) fn run(self) -> ExitCode {
        let report = match Report::open(self.report.as_deref()) {
            Ok(report) => report,
            Err(error) => return fail(&format!("the report cannot be written: {error}")),
        };
        let options = RebuildOptions { force: self.force, etags: !self.skip_etags };
        let done = offline::run(&self.disks, move |core, paths| async move {
            let mut report = report;
            let rebuilt = rebuild(&core, &paths, &options, &mut |line| report.line(line)).await;
            (rebuilt, report.end())
        });
        let (rebuilt, reported) = match done {
            Ok(done) => done,
            Err(reason) => return fail(&reason),
        };
        let summary = match rebuilt {
            Ok(summary) => summary,
            Err(error) => return fail(&error.to_string()),
        };
        eprint!("{}", in_words(&summary));
        if let Err(error) = reported {
            eprintln!("basalt rebuild-index: the report is not complete: {error}");
        }
        let whole = summary.lost == 0 && summary.damaged == 0;
        if whole { Outcome::Clean } else { Outcome::Faults }.into()
    }
}

fn in_words(summary: &Summary) -> String {
    let lines = [
        (summary.shards, "shards have a new index"),
        (summary.untouched, "shards were fine and are left alone"),
        (summary.current, "objects are as they were"),
        (summary.last_known, "objects are as last known"),
        (summary.from_directories, "objects come from directories, without metadata"),
        (summary.uploads, "uploads are open"),
        (summary.damaged, "objects come back with some of their blocks lost"),
        (summary.left_behind, "bodies were superseded or never committed"),
        (summary.lost, "objects or bodies are not recovered"),
        (summary.buckets_invented, "buckets are called recovered-…, because nothing has their name"),
    ];
    lines.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}\n")).collect()
}

fn fail(reason: &str) -> ExitCode {
    eprintln!("basalt rebuild-index: {reason}");
    Outcome::Unable.into()
}
