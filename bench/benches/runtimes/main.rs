//! What a runtime costs: the same disk GET over HTTP/1.1 from Basalt's reactor, glommio, monoio and tokio.
//!
//! Each answers `GET /LEN/INDEX` with that run of one file, read with O_DIRECT, through hyper. The servers run one at a
//! time, each in a process of its own pinned to one CPU, loaded from another; what is compared is the CPU time of the server
//! per request. So the decision for a reactor of our own stays open to proof.
//!
//! `cargo bench -p basalt-bench --bench runtimes` measures; without `--bench` (as `cargo test` runs it) every
//! answer of every server is compared with the file.

mod child;
mod content;
mod load;
mod report;
mod server;

use std::error::Error;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;

use crate::child::Child;
use crate::load::Load;
use crate::report::{Figures, Report};
use crate::server::Runtime;

/// What is asked for: a block at a random place, and a run of 1 MiB.
const RUN_LENS: [usize; 2] = [4 << 10, 1 << 20];

/// Connections that an answer is checked over.
const CHECK_CONNECTIONS: usize = 3;

#[derive(clap::Parser)]
#[command(about = "Server CPU per disk GET over HTTP, by runtime")]
struct Line {
    /// Only these runtimes.
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = Runtime::ALL)]
    runtime: Vec<Runtime>,
    /// Interleaved rounds; the medians are reported.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Measured seconds per server and run length, after half a second that is not.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Keep-alive connections, each with one request at a time.
    #[arg(short, long, default_value_t = 16)]
    connections: usize,
    #[arg(long, default_value_t = 0)]
    server_cpu: usize,
    #[arg(long, default_value_t = 1)]
    client_cpu: usize,
    /// Where the file is made; its file system must have O_DIRECT.
    #[arg(long, default_value = env!("CARGO_TARGET_TMPDIR"))]
    directory: PathBuf,
    #[arg(long, default_value_t = 512)]
    file_mib: u64,
    /// Writes every sample as JSON too; `-` is standard output, instead of the table.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
    /// Internal: be the server of this runtime for `--file`.
    #[arg(long, hide = true, requires = "file")]
    serve: Option<Runtime>,
    #[arg(long, hide = true)]
    file: Option<PathBuf>,
    /// As other benchmarks take it: runs only if this is a part of `runtimes`.
    #[arg(hide = true)]
    filter: Option<String>,
}

fn main() -> ExitCode {
    let measured = std::env::args().any(|argument| argument == "--bench" || argument == "--serve");
    let outcome = if measured { run(&Line::parse()) } else { check() };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("runtimes: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(line: &Line) -> Result<(), Box<dyn Error>> {
    if let (Some(runtime), Some(file)) = (line.serve, &line.file) {
        return child::serve(runtime, file);
    }
    if line.filter.as_ref().is_some_and(|filter| !"runtimes".contains(filter)) {
        return Ok(());
    }
    let file = DataFile::new(&line.directory, line.file_mib << 20)?;
    child::pin(line.client_cpu)?;
    let mut report = Report::new(line.connections, line.seconds, file.len);
    for round in 1..=line.rounds {
        for run_len in RUN_LENS {
            for &runtime in &line.runtime {
                eprintln!("round {round} of {}: {runtime}, {run_len} bytes", line.rounds);
                match measure(line, runtime, &file, run_len) {
                    Ok((figures, notes)) => report.add(runtime, run_len, figures, notes),
                    Err(error) => report.fail(runtime, run_len, &error.to_string()),
                }
            }
        }
    }
    let json = serde_json::to_string_pretty(&report)? + "\n";
    match line.json.as_deref() {
        Some(path) if path == Path::new("-") => std::io::stdout().write_all(json.as_bytes())?,
        Some(path) => std::fs::write(path, json)?,
        None => {}
    }
    if line.json.as_deref() != Some(Path::new("-")) {
        print!("{report}");
    }
    if report.is_complete() { Ok(()) } else { Err("not every runtime was measured".into()) }
}

fn measure(
    line: &Line,
    runtime: Runtime,
    file: &DataFile,
    run_len: usize,
) -> Result<(Figures, Vec<String>), Box<dyn Error>> {
    let server = Child::start(runtime, &file.path, Some(line.server_cpu))?;
    let load = Load { addr: server.addr, run_len, file_len: file.len, connections: line.connections };
    let figures = load.measure(Duration::from_secs_f64(line.seconds), || server.cpu())?;
    Ok((figures, server.notes.clone()))
}

/// Every byte of a small file from every server, over several connections at once, and what is not in it refused.
fn check() -> Result<(), Box<dyn Error>> {
    let file = DataFile::new(Path::new(env!("CARGO_TARGET_TMPDIR")), 4 << 20)?;
    // As the standard harness does: an argument without a dash picks tests by a part of their names.
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    let (mut passed, mut failed) = (0, 0);
    for runtime in Runtime::ALL {
        let name = format!("{runtime} answers right bytes");
        if !name.contains(&filter) {
            continue;
        }
        match check_server(runtime, &file) {
            Ok(()) => {
                passed += 1;
                println!("test {name} ... ok");
            }
            Err(error) => {
                failed += 1;
                println!("test {name} ... FAILED\n  {error}");
            }
        }
    }
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!("test result: {verdict}. {passed} passed; {failed} failed; 0 ignored");
    if failed == 0 { Ok(()) } else { Err(format!("{failed} runtimes").into()) }
}

fn check_server(runtime: Runtime, file: &DataFile) -> Result<(), Box<dyn Error>> {
    let server = Child::start(runtime, &file.path, None)?;
    for run_len in RUN_LENS {
        Load { addr: server.addr, run_len, file_len: file.len, connections: CHECK_CONNECTIONS }.check()?;
    }
    Ok(())
}

/// The file that all servers answer from, removed in the end.
struct DataFile {
    path: PathBuf,
    len: u64,
}

impl DataFile {
    fn new(directory: &Path, len: u64) -> std::io::Result<DataFile> {
        let path = directory.join(format!("runtimes-{}.data", std::process::id()));
        let file = DataFile { path, len };
        let mut out = File::create(&file.path)?;
        let mut run = vec![0; 1 << 20];
        for offset in (0..len).step_by(run.len()) {
            content::fill(offset, &mut run);
            out.write_all(&run)?;
        }
        out.sync_all()?;
        Ok(file)
    }
}

impl Drop for DataFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
