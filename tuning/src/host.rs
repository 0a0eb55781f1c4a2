//! Host checks: what about this machine stops, slows or endangers a server, as typed findings.
//!
//! Each finding carries its evidence and prints as one sentence that says what was found and what to do, because
//! an operator reads it once, at start-up, and acts on it or not.

use std::fmt;
use std::fs::OpenOptions;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::limits::Limits;

/// The oldest kernel with everything the ring uses (IORING_SETUP_DEFER_TASKRUN came with 6.1).
pub const KERNEL_MIN: (u32, u32) = (6, 1);

/// What a finding means for the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing; nothing is wrong.
    Note,
    /// The server runs, but slower or with less room than this machine could give.
    Warning,
    /// The server cannot run.
    Fatal,
}

/// What the server is going to need.
#[derive(Clone, Debug)]
pub struct Needs {
    /// Bytes of buffers that are registered with the kernel.
    pub locked_len: u64,
    /// Descriptors: connections, files and a margin.
    pub files: u64,
}

/// One thing found about the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// io_uring_setup answered EPERM: a seccomp profile or `kernel.io_uring_disabled`.
    IoUringRefused {
        sysctl: Option<u32>,
    },
    /// io_uring_setup answered ENOSYS.
    IoUringMissing,
    IoUringFailed {
        error: String,
    },
    KernelTooOld {
        found: String,
    },
    MemlockLow {
        limit: u64,
        needed: u64,
    },
    NofileLow {
        limit: u64,
        needed: u64,
    },
    /// A file on this path cannot be opened with O_DIRECT.
    NoDirectIo {
        path: PathBuf,
        error: String,
    },
    /// A file system we do not test on, by name where we know its magic number.
    FileSystem {
        path: PathBuf,
        name: String,
    },
    /// A disk with a seek time.
    Rotational {
        path: PathBuf,
    },
}

impl Finding {
    #[must_use]
    pub fn severity(&self) -> Severity {
        match self {
            Finding::IoUringRefused { .. }
            | Finding::IoUringMissing
            | Finding::IoUringFailed { .. }
            | Finding::KernelTooOld { .. }
            | Finding::NoDirectIo { .. } => Severity::Fatal,
            Finding::MemlockLow { .. } | Finding::NofileLow { .. } | Finding::FileSystem { .. } => {
                Severity::Warning
            }
            Finding::Rotational { .. } => Severity::Note,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finding::IoUringRefused { sysctl: Some(value @ 1..) } => write!(
                f,
                "io_uring is switched off on this host (kernel.io_uring_disabled = {value}); \
                 set it to 0 with sysctl"
            ),
            Finding::IoUringRefused { .. } => write!(
                f,
                "io_uring is refused, most likely by a container's seccomp profile; \
                 start the container with a profile that allows io_uring_setup, _enter and _register \
                 (one comes with Basalt: seccomp.json)"
            ),
            Finding::IoUringMissing => write!(f, "this kernel was built without io_uring"),
            Finding::IoUringFailed { error } => write!(f, "io_uring cannot be set up: {error}"),
            Finding::KernelTooOld { found } => {
                write!(f, "kernel {found} is too old; {}.{} or later is needed", KERNEL_MIN.0, KERNEL_MIN.1)
            }
            Finding::MemlockLow { limit, needed } => write!(
                f,
                "locked memory is limited to {limit} bytes and {needed} would be used; buffers beyond it are \
                 not registered with the kernel, which costs CPU (raise LimitMEMLOCK or ulimit -l)"
            ),
            Finding::NofileLow { limit, needed } => write!(
                f,
                "open files are limited to {limit} and up to {needed} may be used; connections beyond it \
                 are refused (raise LimitNOFILE or ulimit -n)"
            ),
            Finding::NoDirectIo { path, error } => {
                write!(f, "{} has no O_DIRECT ({error}); use XFS or ext4 on a real device", path.display())
            }
            Finding::FileSystem { path, name } => {
                write!(f, "{} is on {name}; Basalt is tested on XFS and ext4", path.display())
            }
            Finding::Rotational { path } => write!(f, "{} is on a rotational disk", path.display()),
        }
    }
}

/// Checks the host and each disk path; the worst findings come first. A path need not exist yet: its nearest
/// existing ancestor is looked at, since that is where it will be created.
#[must_use]
pub fn host_checks(needs: &Needs, limits: Limits, disks: &[PathBuf]) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(check_kernel(&read_trimmed("/proc/sys/kernel/osrelease").unwrap_or_default()));
    findings.extend(check_io_uring());
    findings.extend(check_limits(needs, limits));
    for disk in disks {
        let looked_at = nearest_existing(disk);
        findings.extend(check_direct_io(disk, looked_at));
        findings.extend(check_file_system(disk, looked_at));
        findings.extend(check_rotational(disk, looked_at));
    }
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity()));
    findings.dedup();
    findings
}

fn check_io_uring() -> Option<Finding> {
    let error = io_uring::IoUring::new(2).err()?;
    Some(match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => Finding::IoUringRefused {
            sysctl: read_trimmed("/proc/sys/kernel/io_uring_disabled").and_then(|text| text.parse().ok()),
        },
        Some(libc::ENOSYS) => Finding::IoUringMissing,
        _ => Finding::IoUringFailed { error: error.to_string() },
    })
}

/// `release` as uname gives it, for example `6.18.44-generic`. One that cannot be read is not held against the host:
/// setting up the ring decides.
fn check_kernel(release: &str) -> Option<Finding> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else { return None };
    ((major, minor) < KERNEL_MIN).then(|| Finding::KernelTooOld { found: release.to_owned() })
}

fn check_limits(needs: &Needs, limits: Limits) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(limit) = limits.memlock.filter(|limit| *limit < needs.locked_len) {
        findings.push(Finding::MemlockLow { limit, needed: needs.locked_len });
    }
    if let Some(limit) = limits.nofile.filter(|limit| *limit < needs.files) {
        findings.push(Finding::NofileLow { limit, needed: needs.files });
    }
    findings
}

/// An unnamed file is enough to ask, and leaves nothing behind.
fn check_direct_io(disk: &Path, looked_at: &Path) -> Option<Finding> {
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE | libc::O_DIRECT)
        .open(looked_at);
    let error = opened.err()?;
    // Only EINVAL speaks about O_DIRECT. Missing rights or O_TMPFILE say nothing about it.
    (error.raw_os_error() == Some(libc::EINVAL))
        .then(|| Finding::NoDirectIo { path: disk.to_owned(), error: error.to_string() })
}

fn check_file_system(disk: &Path, looked_at: &Path) -> Option<Finding> {
    let magic = rustix::fs::statfs(looked_at).ok()?.f_type;
    let name = match magic {
        0x5846_5342 | 0xef53 => return None,
        0x9123_683e => "btrfs".to_owned(),
        0x0102_1994 => "tmpfs, which loses everything at power-off".to_owned(),
        0x794c_7630 => "overlayfs".to_owned(),
        0x2fc1_2fc1 => "ZFS".to_owned(),
        0x6969 => "NFS".to_owned(),
        0x6573_5546 => "FUSE".to_owned(),
        0xf2f5_2010 => "F2FS".to_owned(),
        other => format!("a file system with magic {other:#x}"),
    };
    Some(Finding::FileSystem { path: disk.to_owned(), name })
}

fn check_rotational(disk: &Path, looked_at: &Path) -> Option<Finding> {
    let device = std::fs::metadata(looked_at).ok()?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    // A partition has no queue directory of its own; its parent is the disk.
    let answer = ["queue", "../queue"]
        .iter()
        .find_map(|queue| read_trimmed(&format!("/sys/dev/block/{major}:{minor}/{queue}/rotational")))?;
    (answer == "1").then(|| Finding::Rotational { path: disk.to_owned() })
}

fn nearest_existing(path: &Path) -> &Path {
    let existing = path.ancestors().find(|ancestor| ancestor.exists());
    // A relative path that does not exist at all ends in the empty ancestor: the working directory.
    existing.filter(|found| !found.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn read_trimmed(path: &str) -> Option<String> {
    Some(std::fs::read_to_string(path).ok()?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_compared_by_number_and_not_by_text() {
        assert_eq!(check_kernel("6.1.0-13-amd64"), None);
        assert_eq!(check_kernel("10.0"), None);
        assert_eq!(check_kernel("unreadable"), None);
        assert_eq!(check_kernel("5.15.0"), Some(Finding::KernelTooOld { found: "5.15.0".to_owned() }));
    }

    #[test]
    fn a_limit_is_reported_only_when_it_is_below_the_need() {
        let needs = Needs { locked_len: 1 << 30, files: 10_000 };
        let low = Limits { nofile: Some(1024), memlock: Some(8 << 20) };
        assert_eq!(
            check_limits(&needs, low),
            [
                Finding::MemlockLow { limit: 8 << 20, needed: 1 << 30 },
                Finding::NofileLow { limit: 1024, needed: 10_000 },
            ]
        );
        assert_eq!(check_limits(&needs, Limits { nofile: Some(10_000), memlock: None }), []);
    }

    #[test]
    fn memory_file_systems_are_named_with_their_danger() {
        let finding = check_file_system(Path::new("disk"), Path::new("/dev/shm"));
        if let Some(Finding::FileSystem { path, name }) = finding {
            assert!(name.contains("loses everything"), "{name}");
            assert_eq!(path, Path::new("disk"), "named as the operator named it");
        }
    }

    #[test]
    fn a_path_that_does_not_exist_is_judged_by_its_nearest_ancestor() {
        assert_eq!(nearest_existing(Path::new("/no-such-root/a/b")), Path::new("/"));
        assert_eq!(nearest_existing(Path::new("no-such-directory-here")), Path::new("."));
    }

    #[test]
    fn the_worst_findings_come_first() {
        let needs = Needs { locked_len: u64::MAX, files: u64::MAX };
        let limits = Limits { nofile: Some(1), memlock: Some(1) };
        let findings = host_checks(&needs, limits, &[PathBuf::from(".")]);
        assert!(findings.is_sorted_by_key(|finding| std::cmp::Reverse(finding.severity())), "{findings:?}");
        assert!(findings.iter().all(|finding| !finding.to_string().is_empty()));
    }
}
