//! The simulated world: virtual clock, seeded scheduling, and disks that tear, lose, rot and stall.
//!
//! One thread runs any number of virtual cores deterministically: the seed decides which ready task runs next, how long
//! each disk operation takes, in which order completions arrive, and what a crash leaves behind. A failing test is
//! reproduced by its seed, which is printed whenever a test panics while its [`World`] lives.
//!
//! What the model promises is what O_DIRECT on XFS or ext4 promises, and not a bit more:
//! - A completed [`WriteMode::Volatile`](crate::WriteMode::Volatile) write shows to every later read of any process.
//!   It is durable after a successful sync of its file that *started* after it completed. Until then a power cut may
//!   leave any sector of it as it was before, or as any other un-synced write made it.
//! - A completed `Stable` write is durable, with the file length that reading it takes; no other range is.
//! - A sector ([`DiskConfig::sector_len`]) is atomic, nothing larger is. Overlapping writes in flight mix by sector; a
//!   read beside a write in flight sees either, and a sector seen new stays new.
//! - A failed write leaves any sectors old or new. A failed sync leaves what it covered undefined: a later sync may
//!   succeed without it being durable, and it may even be gone from sight at once.
//! - Creating and removing files is durable after [`Disk::sync`](crate::Disk::sync); a power cut undoes the rest name
//!   by name, even for a file whose own data was synced. Growth is durable after a sync of the file or a later
//!   `Stable` write to it; grown bytes read as zeros.
//! - [`Crash::Kill`] loses no completed write. Those in flight land whole, in part or not at all, up to
//!   [`Latency::late_max`] later; the dead process holds its disk locks until then.
//! - A dropped future leaves its operation in flight, and its buffer taken.
//! - A misdirected write ([`Faults::misdirected_write`]) lands elsewhere in the same file.
//!
//! [`Monotonic`] starts anew with each process. Each turn of a task takes [`Config::turn`], so polling in a loop lets time pass.

mod handle;
mod inject;
mod media;
mod operation;
mod random;
mod state;
mod volume;

#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::arena::Arena;
use crate::clock::{Monotonic, WallTime};
use crate::core::{self, Core, CoreId};
use crate::sim::state::{Event, ReadyQueue, Shared, Sleep, State};
use crate::task::{self, Task};

pub(crate) use self::handle::{SimDisk, SimFile, SimLock};
pub use self::inject::DiskHandle;
pub use self::random::Random;
pub use self::volume::{Access, DiskImage};

/// What a world consists of.
#[derive(Clone, Debug)]
pub struct Config {
    pub disks: Vec<DiskConfig>,
    /// Bytes of each core's buffer arena.
    pub arena_len: usize,
    pub latency: Latency,
    pub schedule: Schedule,
    /// Time that passes with each turn of a task.
    pub turn: Duration,
    pub wall_start: WallTime,
    /// Events that one run may take before it counts as a livelock.
    pub events_max: u64,
}

#[derive(Clone, Debug)]
pub struct DiskConfig {
    /// The path under which [`Disk::open`](crate::Disk::open) finds it.
    pub name: String,
    /// Bytes.
    pub capacity: u64,
    /// Unit that a crash never tears, in bytes: 512, 1024, 2048 or 4096.
    pub sector_len: usize,
    pub faults: Faults,
}

/// Faults that happen by themselves: each a probability per operation, 0.0 for never.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Faults {
    /// A read fails with EIO; the next may not.
    pub read_error: f64,
    /// A write or growth fails with EIO.
    pub write_error: f64,
    /// A sync, or the flush within a stable write, fails with EIO.
    pub sync_error: f64,
    /// A bit in the range of a read flips on the medium before it is read.
    pub bit_rot: f64,
    /// A write lands at another place of the same file, and reports success.
    pub misdirected_write: f64,
    /// An operation takes `stall_for` longer.
    pub stall: f64,
    pub stall_for: Duration,
}

/// How long operations take: drawn from a range, mostly near its start.
#[derive(Clone, Debug)]
pub struct Latency {
    pub read: Range<Duration>,
    pub write: Range<Duration>,
    pub stable_write: Range<Duration>,
    /// Syncs and growth.
    pub sync: Range<Duration>,
    /// Writes of a killed process land within this time.
    pub late_max: Duration,
}

/// Which ready task runs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// Any, by the seed.
    Seeded,
    /// The one that has been ready longest.
    Fifo,
}

/// How processes end without being asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// The machine loses power: every process, and whatever was not durable.
    PowerCut,
    /// Every process is killed; the machine and its disks run on.
    Kill,
}

/// Disks, a clock and the processes that use them.
pub struct World {
    shared: Rc<Shared>,
    arena_len: usize,
    events_max: u64,
    /// First core of the process that booted last.
    core_first: Option<SimCore>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            disks: Vec::new(),
            arena_len: 16 << 20,
            latency: Latency::default(),
            schedule: Schedule::Seeded,
            turn: Duration::from_micros(1),
            wall_start: WallTime(1_700_000_000_000_000_000),
            events_max: 20_000_000,
        }
    }
}

impl Config {
    /// `count` disks named `disk0`, `disk1`, … of `capacity` bytes each.
    #[must_use]
    pub fn with_disks(count: usize, capacity: u64) -> Config {
        let disks = (0..count).map(|index| DiskConfig::new(&format!("disk{index}"), capacity)).collect();
        Config { disks, ..Config::default() }
    }
}

impl DiskConfig {
    #[must_use]
    pub fn new(name: &str, capacity: u64) -> DiskConfig {
        DiskConfig { name: name.to_owned(), capacity, sector_len: 512, faults: Faults::default() }
    }
}

impl Default for Latency {
    /// A flash disk without power-loss protection.
    fn default() -> Latency {
        let micros = |range: Range<u64>| Duration::from_micros(range.start)..Duration::from_micros(range.end);
        Latency {
            read: micros(50..500),
            write: micros(20..500),
            stable_write: micros(100..3000),
            sync: micros(100..5000),
            late_max: Duration::from_millis(50),
        }
    }
}

impl World {
    /// Equal seeds and configurations make equal histories.
    ///
    /// # Panics
    /// If two disks have one name, or a sector length is not allowed.
    #[must_use]
    pub fn new(seed: u64, config: Config) -> World {
        let names: BTreeSet<&str> = config.disks.iter().map(|disk| disk.name.as_str()).collect();
        assert_eq!(names.len(), config.disks.len(), "two disks of one name");
        for disk in &config.disks {
            assert!(matches!(disk.sector_len, 512 | 1024 | 2048 | 4096), "sector length {}", disk.sector_len);
        }
        let (arena_len, events_max) = (config.arena_len, config.events_max);
        let state = RefCell::new(State::new(seed, config));
        let shared = Rc::new(Shared { seed, state, ready: Arc::new(ReadyQueue::default()) });
        World { shared, arena_len, events_max, core_first: None }
    }

    #[must_use]
    pub fn seed(&self) -> u64 {
        self.shared.seed
    }

    /// Starts a process of `cores` cores with fresh arenas, beside those that run already.
    ///
    /// # Panics
    /// If `cores` is 0, or memory for the arenas cannot be mapped.
    pub fn boot(&mut self, cores: u16) -> Vec<Core> {
        assert!(cores > 0, "a process has at least one core");
        let (process, start) = {
            let mut state = self.shared.state.borrow_mut();
            let process = state.number();
            state.alive.insert(process);
            let now = state.now;
            state.trace.note(&[5, now, process]);
            (process, now)
        };
        let sims: Vec<SimCore> = (0..cores)
            .map(|id| {
                let arena = Arena::new(self.arena_len).expect("the host has address space for an arena");
                SimCore { shared: Rc::clone(&self.shared), process, start, id: CoreId(id), arena }
            })
            .collect();
        self.core_first = sims.first().cloned();
        sims.into_iter().map(|sim| Core { world: core::World::Sim(sim) }).collect()
    }

    /// Runs `future` as a task on core 0 of the process that booted last, and everything else with it, until it is done.
    ///
    /// # Panics
    /// With the seed, when nothing can go on (deadlock), when it takes more than [`Config::events_max`] events, or
    /// when no process is alive.
    pub fn run<T: 'static>(&mut self, future: impl Future<Output = T> + 'static) -> T {
        let events_max = self.events_max;
        match self.run_events(events_max, future) {
            Some(result) => result,
            None => panic!("{} events and no end: {}", events_max, self.describe()),
        }
    }

    /// As [`World::run`] for at most `events` events. `None` when they did not suffice: the task is still there, and
    /// goes on with whatever runs next, or ends with a crash.
    ///
    /// # Panics
    /// As [`World::run`], except for the number of events.
    pub fn run_events<T: 'static>(
        &mut self,
        events: u64,
        future: impl Future<Output = T> + 'static,
    ) -> Option<T> {
        let core = self.core_first.as_ref().filter(|core| self.shared.is_alive(core.process));
        let core = core.expect("a process was booted and lives").clone();
        let (task, mut handle) = task::joinable(future);
        core.spawn(task);
        for _ in 0..events {
            if handle.is_finished() {
                break;
            }
            assert!(self.step(), "deadlock: {}", self.describe());
        }
        match Pin::new(&mut handle).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => result,
            Poll::Pending => None,
        }
    }

    /// Runs everything until `duration` has passed.
    ///
    /// # Panics
    /// With the seed, when that takes more than [`Config::events_max`] events.
    pub fn run_for(&mut self, duration: Duration) {
        let end = Monotonic(self.shared.state.borrow().now) + duration;
        let mut events = 0;
        while self.next_at().is_some_and(|at| at <= end.0) {
            assert!(events < self.events_max, "{events} events and no end: {}", self.describe());
            events += 1;
            self.step();
        }
        let mut state = self.shared.state.borrow_mut();
        state.now = state.now.max(end.0);
    }

    /// Runs until no task is ready and no timer or operation is pending.
    ///
    /// # Panics
    /// With the seed, when that takes more than [`Config::events_max`] events.
    pub fn run_until_idle(&mut self) {
        let mut events = 0;
        while self.step() {
            assert!(events < self.events_max, "{events} events and no end: {}", self.describe());
            events += 1;
        }
    }

    /// Lets one thing happen: a turn of a task, a completion or a timer. `false` when there is none.
    pub fn step(&mut self) -> bool {
        let mut state = self.shared.state.borrow_mut();
        let overdue = state.events.first_key_value().is_some_and(|(&(at, _), _)| at <= state.now);
        let ready = if overdue { None } else { state.take_ready(&self.shared.ready) };
        if let Some((number, task, waker)) = ready {
            drop(state);
            self.turn(number, task, &waker);
            return true;
        }
        let Some(((at, number), event)) = state.events.pop_first() else { return false };
        state.now = state.now.max(at);
        state.trace.events += 1;
        let (waker, gone) = match event {
            Event::Timer(waker) => {
                state.trace.note(&[3, at, number]);
                (Some(waker), None)
            }
            Event::Operation(operation) => state.land(operation),
        };
        drop(state);
        drop(gone);
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }

    /// Ends all processes: their tasks are dropped, and nothing that dropping them does reaches a disk.
    pub fn crash(&mut self, crash: Crash) {
        let processes = std::mem::take(&mut self.shared.state.borrow_mut().alive);
        for &process in &processes {
            self.bury(process);
        }
        if crash == Crash::PowerCut {
            let mut state = self.shared.state.borrow_mut();
            let now = state.now;
            state.trace.note(&[6, now]);
            let gone = std::mem::take(&mut state.operations);
            state.events.retain(|_, event| !matches!(event, Event::Operation(_)));
            let State { volumes, disk_random, .. } = &mut *state;
            volumes.iter_mut().for_each(|volume| volume.power_cut(disk_random));
            drop(state);
            drop(gone);
        }
    }

    /// Kills the process of `core` alone, as [`Crash::Kill`] does.
    pub fn kill(&mut self, core: &Core) {
        if let core::World::Sim(sim) = &core.world
            && self.shared.state.borrow_mut().alive.remove(&sim.process)
        {
            self.bury(sim.process);
        }
    }

    /// The simulated disk `name`, to look into and to do harm to.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn disk(&self, name: &str) -> DiskHandle {
        DiskHandle::find(&self.shared, name)
    }

    /// Moves the wall clock of all processes.
    pub fn jump_wall(&mut self, by_secs: i64) {
        self.shared.state.borrow_mut().wall_base += i128::from(by_secs) * 1_000_000_000;
    }

    /// Time since the world began.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        Duration::from_nanos(self.shared.state.borrow().now)
    }

    /// Turns, completions and timers so far.
    #[must_use]
    pub fn event_count(&self) -> u64 {
        self.shared.state.borrow().trace.events
    }

    /// Digest of all that happened: which task ran when, every operation with its content and its outcome.
    #[must_use]
    pub fn trace_hash(&self) -> u64 {
        self.shared.state.borrow().trace.hash
    }

    fn turn(&self, number: u64, mut task: Task, waker: &Waker) {
        {
            let mut state = self.shared.state.borrow_mut();
            let now = state.now;
            state.trace.events += 1;
            state.trace.note(&[4, now, number]);
            state.now = now.saturating_add(u64::try_from(state.turn.as_nanos()).unwrap_or(u64::MAX));
        }
        let done = task.as_mut().poll(&mut Context::from_waker(waker)).is_ready();
        let mut state = self.shared.state.borrow_mut();
        if done {
            state.tasks.remove(&number);
        } else if let Some(slot) = state.tasks.get_mut(&number) {
            slot.task = Some(task);
            return;
        }
        drop(state);
        drop(task);
    }

    /// Takes everything of a process that is no longer alive.
    fn bury(&self, process: u64) {
        let mut state = self.shared.state.borrow_mut();
        let now = state.now;
        state.trace.note(&[7, now, process]);
        let tasks: Vec<_> = state.tasks.extract_if(.., |_, slot| slot.process == process).collect();
        let forgotten = state.orphan(process);
        drop(state);
        drop((tasks, forgotten));
    }

    fn next_at(&self) -> Option<u64> {
        let state = self.shared.state.borrow();
        if !self.shared.ready.is_empty() {
            return Some(state.now);
        }
        state.events.first_key_value().map(|(&(at, _), _)| at.max(state.now))
    }

    fn describe(&self) -> String {
        let state = self.shared.state.borrow();
        let parked: usize = state.volumes.iter().map(|volume| volume.parked.len()).sum();
        format!(
            "seed {}, event {}, {:?} after the start: {} tasks, {} operations in flight, {parked} of them on stuck disks, \
             {} timers and completions pending",
            self.shared.seed,
            state.trace.events,
            Duration::from_nanos(state.now),
            state.tasks.len(),
            state.operations.len(),
            state.events.len(),
        )
    }
}

impl Drop for World {
    /// Breaks the cycle between tasks and the state they hold, and names the seed of a failing test.
    fn drop(&mut self) {
        let panicking = std::thread::panicking();
        if panicking && self.shared.state.try_borrow().is_ok() {
            eprintln!("the simulation that panicked: {}", self.describe());
        }
        let Ok(mut state) = self.shared.state.try_borrow_mut() else { return };
        state.alive.clear();
        let tasks = std::mem::take(&mut state.tasks);
        let operations = std::mem::take(&mut state.operations);
        let events = std::mem::take(&mut state.events);
        drop(state);
        if panicking {
            // A second panic, out of some destructor, would take the other tests with it.
            std::mem::forget((tasks, operations, events));
        }
    }
}

#[derive(Clone)]
pub(crate) struct SimCore {
    shared: Rc<Shared>,
    process: u64,
    /// World time at which the process started.
    start: u64,
    id: CoreId,
    arena: Arena,
}

impl SimCore {
    pub(crate) fn id(&self) -> CoreId {
        self.id
    }

    pub(crate) fn arena(&self) -> &Arena {
        &self.arena
    }

    pub(crate) fn now(&self) -> Monotonic {
        Monotonic(self.shared.state.borrow().now - self.start)
    }

    pub(crate) fn wall(&self) -> WallTime {
        let state = self.shared.state.borrow();
        let nanos = (state.wall_base + i128::from(state.now)).max(0);
        WallTime(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    pub(crate) fn fill_random(&self, out: &mut [u8]) {
        self.shared.state.borrow_mut().core_random.fill(out);
    }

    pub(crate) fn spawn(&self, task: Task) {
        self.shared.spawn(self.process, task);
    }

    pub(crate) async fn sleep_until(&self, deadline: Monotonic) {
        Sleep::new(Rc::clone(&self.shared), self.start.saturating_add(deadline.0)).await;
    }
}
