//! A server as a process of its own: only so can its CPU time be told from the client's, and its CPU be chosen.
//!
//! The child says on standard output what it had to do without (`note …`), then `listening ADDRESS`, or `failed REASON`.
//! It ends when its standard input does, so none outlives the parent.

use std::error::Error;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::thread::{CpuSet, sched_setaffinity};

use crate::server::Runtime;

/// Pins the calling thread, and the threads and processes it starts from here on.
pub(crate) fn pin(cpu: usize) -> Result<(), Box<dyn Error>> {
    if cpu >= CpuSet::MAX_CPU {
        return Err(format!("there is no CPU {cpu}").into());
    }
    let mut cpus = CpuSet::new();
    cpus.set(cpu);
    sched_setaffinity(None, &cpus).map_err(|error| format!("CPU {cpu}: {error}").into())
}

/// The child's side: serves until the parent closes standard input.
pub(crate) fn serve(runtime: Runtime, file: &Path) -> Result<(), Box<dyn Error>> {
    if let Some(cpu) = std::env::var_os(CPU_VARIABLE) {
        pin(cpu.to_string_lossy().parse()?)?;
    }
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    if let Err(error) = runtime.serve(file) {
        println!("failed {error}");
    }
    Ok(())
}

const CPU_VARIABLE: &str = "BASALT_BENCH_SERVER_CPU";

/// The parent's side of a running server; dropping it ends the process.
pub(crate) struct Child {
    process: std::process::Child,
    pub(crate) addr: SocketAddr,
    /// What the runtime had to do without.
    pub(crate) notes: Vec<String>,
}

impl Child {
    /// Starts the server and waits until it listens.
    ///
    /// # Errors
    /// What it said about why it does not, or that it ended without a word.
    pub(crate) fn start(runtime: Runtime, file: &Path, cpu: Option<usize>) -> Result<Child, Box<dyn Error>> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--serve", runtime.name(), "--file"]).arg(file);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        if let Some(cpu) = cpu {
            command.env(CPU_VARIABLE, cpu.to_string());
        }
        let mut process = command.spawn()?;
        let output = process.stdout.take().expect("it is a pipe");
        // The child is owned from here on, so that every way out ends it.
        let addr = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut child = Child { process, addr, notes: Vec::new() };
        for line in BufReader::new(output).lines() {
            let line = line?;
            match line.split_once(' ') {
                Some(("note", note)) => child.notes.push(note.to_owned()),
                Some(("listening", addr)) => {
                    child.addr = addr.parse()?;
                    return Ok(child);
                }
                _ => return Err(line.into()),
            }
        }
        Err(format!("it ended before it listened: {}", child.process.wait()?).into())
    }

    /// CPU time of the server so far, user and system, all its threads. Its grain is a tick of 10 ms.
    pub(crate) fn cpu(&self) -> std::io::Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id()))?;
        // The command name may hold anything, so fields count from its closing parenthesis: utime and stime.
        let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().skip(11).take(2);
        let ticks: Option<Vec<u64>> = fields.map(|field| field.parse().ok()).collect();
        let ticks = ticks.filter(|ticks| ticks.len() == 2).ok_or(std::io::ErrorKind::InvalidData)?;
        let ticks: u64 = ticks.iter().sum();
        Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
