//! Makes a ring, or says in words why this machine will not give one.

use std::fmt;
use std::fs;
use std::io;

use io_uring::{IoUring, Probe, opcode};

use super::SetupError;

/// First kernel release with everything the ring uses (DEFER_TASKRUN came last).
const KERNEL_MIN: &str = "6.1";

/// Completion queue entries per submission queue entry: multishot receives and accepts complete without submitting.
const COMPLETIONS_PER_ENTRY: u32 = 4;

/// Kernel threads of one core that wait for disks, at most. A write or flush of a disk that does not answer holds one until it
/// does, and by default there are four per CPU: one stuck disk would stop the writes of all others. There must be more of them
/// than operations begin before such a disk is given up; the kernel starts one only when all there are wait.
const WORKER_COUNT_MAX: u32 = 1024;

pub(super) fn ring(entries: u32) -> Result<IoUring, SetupError> {
    let mut builder = IoUring::builder();
    builder
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_coop_taskrun()
        .setup_taskrun_flag()
        .setup_submit_all()
        .setup_clamp()
        .setup_cqsize(entries.saturating_mul(COMPLETIONS_PER_ENTRY));
    let ring = builder.build(entries).map_err(|error| explain(error, kernel_release().as_deref()))?;
    let params = ring.params();
    for (present, name) in [
        (params.is_feature_ext_arg(), "timed waits (IORING_FEAT_EXT_ARG)"),
        (params.is_feature_nodrop(), "lossless completions (IORING_FEAT_NODROP)"),
    ] {
        if !present {
            return Err(SetupError::KernelTooOld(format!(
                "the kernel lacks {name}; Basalt needs {KERNEL_MIN}"
            )));
        }
    }
    check_operations(&ring)?;
    // Zero leaves the other kind, of sockets and the like, as it is.
    ring.submitter().register_iowq_max_workers(&mut [WORKER_COUNT_MAX, 0]).map_err(SetupError::Other)?;
    Ok(ring)
}

fn check_operations(ring: &IoUring) -> Result<(), SetupError> {
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).map_err(SetupError::Other)?;
    for (code, name) in [
        (opcode::ReadFixed::CODE, "READ_FIXED"),
        (opcode::WriteFixed::CODE, "WRITE_FIXED"),
        (opcode::Writev::CODE, "WRITEV"),
        (opcode::Fsync::CODE, "FSYNC"),
        (opcode::Fallocate::CODE, "FALLOCATE"),
        (opcode::Recv::CODE, "RECV"),
        (opcode::SendMsg::CODE, "SENDMSG"),
        (opcode::Accept::CODE, "ACCEPT"),
        (opcode::AsyncCancel::CODE, "ASYNC_CANCEL"),
    ] {
        if !probe.is_supported(code) {
            let message = format!("io_uring lacks the operation {name}; Basalt needs Linux {KERNEL_MIN}");
            return Err(SetupError::KernelTooOld(message));
        }
    }
    Ok(())
}

fn explain(error: io::Error, release: Option<&str>) -> SetupError {
    let running = release.map_or_else(String::new, |release| format!(" (this is {release})"));
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            let setting = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok();
            SetupError::Refused(explain_refusal(setting.as_deref().map(str::trim)))
        }
        Some(libc::ENOSYS) => SetupError::Missing,
        Some(libc::EINVAL) => SetupError::KernelTooOld(format!(
            "io_uring refused IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN, which came with Linux \
             {KERNEL_MIN}{running}"
        )),
        Some(libc::ENOMEM) => SetupError::Other(io::Error::new(
            error.kind(),
            "no memory for the ring: raise RLIMIT_MEMLOCK (ulimit -l) or the container's memory limit",
        )),
        _ => SetupError::Other(error),
    }
}

/// Says which of the two switches it was, from the content of /proc/sys/kernel/io_uring_disabled.
fn explain_refusal(setting: Option<&str>) -> String {
    match setting {
        Some("2") => {
            "io_uring is switched off for everybody on this machine: sysctl kernel.io_uring_disabled is 2; \
                      set it to 0"
                .to_owned()
        }
        Some("1") => "io_uring is open to members of kernel.io_uring_group and CAP_SYS_ADMIN only: \
                      sysctl kernel.io_uring_disabled is 1; set it to 0, or add this user to that group"
            .to_owned(),
        _ => {
            "io_uring_setup was refused although kernel.io_uring_disabled does not say so: most likely this \
              container's seccomp profile; allow io_uring_setup, io_uring_enter and io_uring_register in it"
                .to_owned()
        }
    }
}

fn kernel_release() -> Option<String> {
    fs::read_to_string("/proc/sys/kernel/osrelease").ok().map(|release| release.trim().to_owned())
}

impl fmt::Display for SetupError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SetupError::Refused(why) | SetupError::KernelTooOld(why) => out.write_str(why),
            SetupError::Missing => {
                write!(out, "this kernel has no io_uring; Basalt needs Linux {KERNEL_MIN} or newer")
            }
            SetupError::Other(error) => write!(out, "io_uring could not be set up: {error}"),
        }
    }
}

impl std::error::Error for SetupError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            SetupError::Other(error) => Some(error),
            SetupError::Refused(_) | SetupError::Missing | SetupError::KernelTooOld(_) => None,
        }
    }
}

/// Pins this thread to `cpu`.
pub(super) fn pin(cpu: usize) -> io::Result<()> {
    if cpu >= libc::CPU_SETSIZE as usize {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: an all-zero cpu_set_t is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `cpu` is below the size of the set.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: thread 0 is the calling one, and the set lives through the call.
    match unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Raises the soft limit of `resource` to its hard limit; to nothing more, and a refusal is no error.
pub(super) fn raise_limit(resource: libc::__rlimit_resource_t) -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` lives through the call.
    if unsafe { libc::getrlimit(resource, &raw mut limit) } != 0 {
        return 0;
    }
    if limit.rlim_cur < limit.rlim_max {
        let raised = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
        // SAFETY: `raised` lives through the call.
        if unsafe { libc::setrlimit(resource, &raw const raised) } == 0 {
            return raised.rlim_cur;
        }
    }
    limit.rlim_cur
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_switch() {
        assert!(explain_refusal(Some("2")).contains("kernel.io_uring_disabled is 2"));
        assert!(explain_refusal(Some("1")).contains("io_uring_group"));
        assert!(explain_refusal(Some("0")).contains("seccomp"));
        assert!(explain_refusal(None).contains("seccomp"));
    }

    #[test]
    fn errors_of_setup_are_told_apart() {
        let of = |code| explain(io::Error::from_raw_os_error(code), Some("5.10.0"));
        assert!(matches!(of(libc::EPERM), SetupError::Refused(_)));
        assert!(matches!(of(libc::ENOSYS), SetupError::Missing));
        let old = of(libc::EINVAL);
        assert!(
            matches!(&old, SetupError::KernelTooOld(why) if why.contains("6.1") && why.contains("5.10.0"))
        );
        assert!(matches!(of(libc::EMFILE), SetupError::Other(_)));
    }
}
