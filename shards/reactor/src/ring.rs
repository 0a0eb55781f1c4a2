//! The real world: one io_uring per core.

mod buffers;
mod driver;
mod executor;
mod file;
pub(crate) mod listener;
mod lock;
mod op;
mod receive;
mod setup;
pub(crate) mod stream;
mod timer;
mod turn;

use std::cell::{OnceCell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::task::Poll;

use io_uring::{opcode, types};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use self::driver::Driver;
use self::executor::Executor;
pub(crate) use self::file::{RingDisk, RingFile};
pub(crate) use self::lock::RingLock;
use self::op::Keep;
use self::receive::ReceiveBuffers;
use self::timer::{TimerKey, Timers};
use crate::arena::Arena;
use crate::clock::{Monotonic, WallTime};
use crate::core::{Core, CoreId, World};
use crate::task::Task;

/// How to set up one core.
#[derive(Clone, Debug)]
pub struct Config {
    pub id: CoreId,
    /// CPU to pin the thread to; `None` leaves it to the scheduler.
    pub cpu: Option<usize>,
    /// Bytes of the buffer arena.
    pub arena_len: usize,
    /// Entries of the submission queue, a power of two.
    pub entries: u32,
}

/// Why this machine cannot run a ring, in words for its operator.
#[derive(Debug)]
pub enum SetupError {
    /// io_uring_setup was refused: a container's seccomp profile or `kernel.io_uring_disabled`.
    Refused(String),
    /// The kernel has no io_uring.
    Missing,
    /// The kernel lacks a feature we need; names it and the first release that has it.
    KernelTooOld(String),
    Other(io::Error),
}

/// Monotonic counters of one core since its start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    /// io_uring_enter calls.
    pub enters: u64,
    /// Submission entries handed to the kernel.
    pub submissions: u64,
    pub completions: u64,
    /// Writes with RWF_DSYNC and fdatasyncs: each makes the device flush.
    pub flushes: u64,
    pub disk_bytes_read: u64,
    pub disk_bytes_written: u64,
    pub net_bytes_received: u64,
    pub net_bytes_sent: u64,
    /// Body bytes that were copied in user space on their way out.
    pub payload_bytes_copied: u64,
    /// Wake-ups sent to other cores.
    pub wakes_sent: u64,
}

/// Runs `main` on this thread as the core `config` describes, until it completes. Other tasks of the core are dropped
/// then, and operations in flight cancelled or waited for. A panic of any task ends the core and goes on to the caller.
///
/// # Errors
/// [`SetupError`] when there is no ring to be had.
///
/// # Panics
/// If the kernel breaks the ring while it runs.
pub fn run<T: 'static, F: Future<Output = T> + 'static>(
    config: &Config,
    main: impl FnOnce(Core) -> F,
) -> Result<T, SetupError> {
    let mut warnings = Vec::new();
    if let Some(cpu) = config.cpu
        && let Err(error) = setup::pin(cpu)
    {
        warnings.push(format!("core {} is not pinned to CPU {cpu}: {error}", config.id.0));
    }
    let arena = Arena::new(config.arena_len).map_err(SetupError::Other)?;
    let ring = setup::ring(config.entries)?;
    let core = Rc::new(RingCore {
        id: config.id,
        driver: Rc::new(Driver::new(ring, arena.clone(), &mut warnings)),
        arena,
        executor: Executor::new().map_err(SetupError::Other)?,
        timers: Timers::default(),
        receive_buffers: OnceCell::new(),
        randomness: RefCell::new(Randomness::new()),
        warnings: RefCell::new(Vec::new()),
    });
    for warning in &warnings {
        tracing::warn!(core = config.id.0, "{warning}");
    }
    *core.warnings.borrow_mut() = warnings;
    let result = turn::run(&core, main(Core { world: World::Ring(Rc::clone(&core)) }));
    Ok(result)
}

/// The ring's counters of `core`.
///
/// # Panics
/// On a simulated core.
#[must_use]
pub fn stats(core: &Core) -> Stats {
    let ring = ring_of(core);
    Stats { wakes_sent: executor::wakes_sent(), ..ring.driver.stats.stats.get() }
}

/// What this core had to do without (pinning, registered buffers), in words for its operator.
///
/// # Panics
/// On a simulated core.
#[must_use]
pub fn warnings(core: &Core) -> Vec<String> {
    ring_of(core).warnings.borrow().clone()
}

pub(crate) fn ring_of(core: &Core) -> &Rc<RingCore> {
    match &core.world {
        World::Ring(ring) => ring,
        World::Sim(_) => panic!("a simulated core has no ring"),
    }
}

pub(crate) struct RingCore {
    id: CoreId,
    arena: Arena,
    driver: Rc<Driver>,
    executor: Executor,
    timers: Timers,
    /// Made with the first socket.
    receive_buffers: OnceCell<Rc<ReceiveBuffers>>,
    randomness: RefCell<Randomness>,
    warnings: RefCell<Vec<String>>,
}

impl RingCore {
    pub(crate) fn id(&self) -> CoreId {
        self.id
    }

    pub(crate) fn arena(&self) -> &Arena {
        &self.arena
    }

    pub(crate) fn now(&self) -> Monotonic {
        Monotonic(read_clock(libc::CLOCK_MONOTONIC))
    }

    pub(crate) fn wall(&self) -> WallTime {
        WallTime(read_clock(libc::CLOCK_REALTIME))
    }

    pub(crate) fn fill_random(&self, out: &mut [u8]) {
        self.randomness.borrow_mut().fill(out);
    }

    pub(crate) fn spawn(&self, task: Task) {
        self.executor.spawn(task);
    }

    pub(crate) async fn sleep_until(&self, deadline: Monotonic) {
        let mut timer = SetTimer { timers: &self.timers, key: None };
        poll_fn(|cx| {
            if self.now() >= deadline {
                return Poll::Ready(());
            }
            match timer.key {
                Some(key) => self.timers.update(key, cx.waker()),
                None => timer.key = Some(self.timers.set(deadline, cx.waker().clone())),
            }
            Poll::Pending
        })
        .await;
    }

    fn driver(&self) -> &Rc<Driver> {
        &self.driver
    }

    fn receive_buffers(&self) -> io::Result<Rc<ReceiveBuffers>> {
        if let Some(buffers) = self.receive_buffers.get() {
            return Ok(Rc::clone(buffers));
        }
        let buffers = Rc::new(self.driver.with_ring(ReceiveBuffers::new)?);
        Ok(Rc::clone(self.receive_buffers.get_or_init(|| buffers)))
    }
}

/// A socket connected to `addr`.
pub(crate) async fn connect(core: &Rc<RingCore>, addr: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM.cloexec(), Some(Protocol::TCP))?;
    let address = Box::new(SockAddr::from(addr));
    let target = types::Fd(socket.as_raw_fd());
    let entry = opcode::Connect::new(target, address.as_ptr().cast(), address.len()).build();
    // SAFETY: the address lives in the box that the operation keeps.
    let mut submitted = unsafe { core.driver.submit(entry, Keep::Connect { socket, _address: address }) };
    submitted.cancel_on_drop = true;
    let (completion, keep) = submitted.await;
    completion.into_result()?;
    let Keep::Connect { socket, .. } = keep else { unreachable!("an operation returns what it kept") };
    Ok(socket)
}

/// Removes its timer when the sleep ends early.
struct SetTimer<'core> {
    timers: &'core Timers,
    key: Option<TimerKey>,
}

impl Drop for SetTimer<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.timers.remove(key);
        }
    }
}

/// Nanoseconds on `clock`; the vDSO answers without a system call.
fn read_clock(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` lives through the call, and both clocks in use always exist.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// The kernel's randomness, drawn ahead so that an id costs no system call of its own.
struct Randomness {
    pool: [u8; RANDOM_POOL_LEN],
    used: usize,
}

/// Bytes of randomness drawn at a time.
const RANDOM_POOL_LEN: usize = 256;

impl Randomness {
    fn new() -> Randomness {
        Randomness { pool: [0; RANDOM_POOL_LEN], used: RANDOM_POOL_LEN }
    }

    fn fill(&mut self, out: &mut [u8]) {
        if out.len() > RANDOM_POOL_LEN {
            draw(out);
            return;
        }
        if RANDOM_POOL_LEN - self.used < out.len() {
            draw(&mut self.pool);
            self.used = 0;
        }
        let taken = &mut self.pool[self.used..self.used + out.len()];
        out.copy_from_slice(taken);
        // What was handed out may have become a secret.
        taken.fill(0);
        self.used += out.len();
    }
}

fn draw(mut out: &mut [u8]) {
    while !out.is_empty() {
        // SAFETY: writes at most `out.len()` bytes to `out`.
        let count = unsafe { libc::getrandom(out.as_mut_ptr().cast(), out.len(), 0) };
        match usize::try_from(count) {
            Ok(count) => out = &mut out[count..],
            Err(_) => {
                let error = io::Error::last_os_error();
                assert_eq!(
                    error.kind(),
                    io::ErrorKind::Interrupted,
                    "the kernel gives no randomness: {error}"
                );
            }
        }
    }
}
