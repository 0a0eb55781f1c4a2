//! The server as a child process in a directory of its own.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

const PATIENCE: Duration = Duration::from_secs(20);

/// A fresh directory for one test.
pub(crate) fn directory(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("server-{name}"));
    if dir.exists() {
        std::fs::remove_dir_all(&dir).unwrap();
    }
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

fn command(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_basalt"));
    command.current_dir(dir).arg("server").args(arguments).stdin(Stdio::null());
    // A test machine's own configuration must not reach the child.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("BASALT_") {
            command.env_remove(name);
        }
    }
    command
}

/// Runs a server that is expected not to start; its exit code and stderr.
pub(crate) fn run_to_end(dir: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let mut child = command(dir, arguments);
    if !arguments.contains(&"--listen") {
        child.args(["--listen", "127.0.0.1:0"]);
    }
    let mut child = child.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let code = wait(&mut child);
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    (code, stderr)
}

pub(crate) struct Child {
    pub(crate) process: std::process::Child,
    pub(crate) address: SocketAddr,
    pub(crate) banner: String,
    stderr: PathBuf,
}

impl Child {
    /// Starts a server on a free port and waits for its banner.
    pub(crate) fn start(dir: &Path, arguments: &[&str]) -> Child {
        Child::start_with(dir, arguments, |_| {})
    }

    pub(crate) fn start_with(dir: &Path, arguments: &[&str], change: impl FnOnce(&mut Command)) -> Child {
        let stderr = dir.join("stderr");
        let mut command = command(dir, arguments);
        command.args(["--listen", "127.0.0.1:0"]);
        if !arguments.contains(&"--memory") {
            command.args(["--memory", "256MiB"]);
        }
        command.stdout(Stdio::piped()).stderr(std::fs::File::create(&stderr).unwrap());
        change(&mut command);
        let mut process = command.spawn().unwrap();
        let mut banner = String::new();
        let mut lines = BufReader::new(process.stdout.take().unwrap());
        // The banner ends with the line to try.
        while !banner.contains("--endpoint-url") {
            if lines.read_line(&mut banner).unwrap() == 0 {
                let _ended = process.wait();
                panic!("no banner: {}", std::fs::read_to_string(&stderr).unwrap());
            }
        }
        let (_, endpoint) = banner.split_once("://").unwrap();
        let address = endpoint.lines().next().unwrap().parse().unwrap();
        Child { process, address, banner, stderr }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
    }

    /// The exit code; `None` when a signal ended it.
    pub(crate) fn wait(&mut self) -> Option<i32> {
        wait(&mut self.process)
    }

    pub(crate) fn stderr(&self) -> String {
        std::fs::read_to_string(&self.stderr).unwrap()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _already_gone = self.process.kill().is_err();
        let _reaped = self.process.wait();
    }
}

fn wait(process: &mut std::process::Child) -> Option<i32> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = process.try_wait().unwrap() {
            return status.code();
        }
        if Instant::now() > deadline {
            let _already_gone = process.kill().is_err();
            panic!("the server does not end");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
