//! How the process ends: every exit code, and what a start-up error says and answers.

use std::fmt;
use std::process::ExitCode;

use basalt_reactor::ring::SetupError;

use super::StartError;

/// The server's exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Ok = 0,
    /// Flags, environment or configuration file.
    Usage = 2,
    /// This host cannot run io_uring or O_DIRECT.
    Host = 3,
    /// The address cannot be bound.
    Listen = 4,
    /// Disks, what is on them, or the credentials kept there.
    Storage = 5,
    /// The certificate or its key.
    Certificate = 6,
    /// A second signal ended the process before requests in flight were finished.
    Interrupted = 7,
    /// A thread panicked: a bug.
    Panic = 70,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

impl StartError {
    pub(super) fn exit(&self) -> Exit {
        match self {
            StartError::Ring(_) | StartError::Host | StartError::Thread(_) => Exit::Host,
            StartError::Listen { .. } => Exit::Listen,
            StartError::Disk { .. }
            | StartError::Credentials { .. }
            | StartError::Deployment(_)
            | StartError::Engine(_) => Exit::Storage,
            StartError::Certificate(_) => Exit::Certificate,
        }
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Ring(SetupError::Refused(why)) => write!(f, "io_uring is refused: {why}"),
            StartError::Ring(SetupError::Missing) => write!(f, "this kernel was built without io_uring"),
            StartError::Ring(SetupError::KernelTooOld(what)) => write!(f, "this kernel is too old: {what}"),
            StartError::Ring(SetupError::Other(error)) => write!(f, "io_uring cannot be set up: {error}"),
            StartError::Listen { address, error } => write!(f, "cannot listen on {address}: {error}"),
            StartError::Certificate(error) => error.fmt(f),
            StartError::Disk { path, error } => write!(
                f,
                "cannot use {}: {error} (a missing directory is created, its parents are not)",
                path.display()
            ),
            StartError::Deployment(error) => error.fmt(f),
            StartError::Engine(error) => write!(f, "the deployment cannot be opened: {error}"),
            StartError::Credentials { path, reason } => write!(f, "{}: {reason}", path.display()),
            StartError::Thread(error) => {
                write!(f, "the system refuses what the server needs to start: {error}")
            }
            StartError::Host => write!(f, "this host cannot run the server; the reasons are above"),
        }
    }
}

/// From here on a panic on any thread prints its place and ends the process: the other cores must not go on serving
/// without the shards of the one that broke.
pub(super) fn exit_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("unnamed");
        let trace = std::backtrace::Backtrace::force_capture();
        eprintln!("basalt: bug: thread {name}: {panic}\n{trace}");
        std::process::exit(Exit::Panic as i32);
    }));
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use super::*;

    /// Tells this test that it is its own child.
    const CHILD: &str = "BASALT_TEST_OF_PANICS";

    /// The test runs once more as a process of its own, where one thread breaks while the main one would go on.
    #[test]
    fn a_panic_on_any_thread_ends_the_process_with_its_own_code() {
        if std::env::var_os(CHILD).is_some() {
            exit_on_panic();
            let core = std::thread::Builder::new().name("basalt-7".to_owned());
            let _never_joined = core.spawn(|| panic!("a shard contradicts itself")).expect("a thread");
            std::thread::sleep(Duration::from_secs(30));
            return;
        }
        let name = "server::exit::tests::a_panic_on_any_thread_ends_the_process_with_its_own_code";
        let this = std::env::current_exe().expect("a test has a file");
        let child = Command::new(this).args(["--exact", name, "--nocapture"]).env(CHILD, "1").output();
        let child = child.expect("it starts");
        let said = String::from_utf8_lossy(&child.stderr);
        assert_eq!(child.status.code(), Some(Exit::Panic as i32), "{said}");
        let line = said.lines().find(|line| line.starts_with("basalt: bug: thread basalt-7: ")).unwrap_or("");
        assert!(line.contains("exit.rs:"), "{said}");
        assert!(said.contains("a shard contradicts itself"), "{said}");
    }
}
