//! Reads of disks, timed: which disks answer in time, when a read is late, and what becomes of one that nobody waits for.
//!
//! One [`DiskReads`] per core knows the disks of a deployment by the reads of all its shards. A [`DiskRead`] may be dropped while it
//! runs: the kernel still writes to its buffer, so the read goes on by itself, its memory stays accounted until it is
//! over, and how long it took is learned nevertheless.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use basalt_reactor::disk::BLOCK_LEN;
use basalt_reactor::{Buf, Core, File, Monotonic};

use super::groups::Groups;
use super::latency::{HedgeBudget, LATE_MAX, Latencies, Standing, late_after};
use super::members::STUCK_AFTER;
use super::throttle::Throttle;
use super::{ArenaFiles, Column, DiskIndex, ExtentClass, Geometry};

/// Reads up to this long are timed apart from longer ones, bytes.
const SHORT_LEN_MAX: usize = 64 << 10;

/// Reads after which the measure of lateness is taken anew.
const READS_PER_MEASURE: u32 = 64;

/// A slow disk is asked again at most this often, to learn whether it still is one.
const PROBE_INTERVAL: Duration = Duration::from_millis(250);

/// Doublings of the time after which a late read is looked at again; what follows is beyond any patience.
const CHECKS_MAX: u32 = 20;

/// Accounts for memory of reads that nobody waits for any more.
pub trait LateMemory {
    /// Counts `len` bytes as taken until the result is dropped.
    fn hold(self: Rc<Self>, len: usize) -> Box<dyn Any>;
}

/// What late disks have cost a core so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadCounts {
    /// Reads that were late, and whose bytes were asked for elsewhere too.
    pub hedged: u64,
    /// Of those, how many the others answered first.
    pub hedges_won: u64,
}

/// Reads of a disk that have ended since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskTally {
    /// Those of up to 64 KiB that succeeded, and how long they took in all.
    pub count: u64,
    pub time: Duration,
    /// Those that the device failed.
    pub error_count: u64,
}

impl DiskTally {
    pub fn add(&mut self, other: &DiskTally) {
        self.count += other.count;
        self.time += other.time;
        self.error_count += other.error_count;
    }

    /// What has come since `before`.
    #[must_use]
    pub fn since(&self, before: &DiskTally) -> DiskTally {
        DiskTally {
            count: self.count.saturating_sub(before.count),
            time: self.time.saturating_sub(before.time),
            error_count: self.error_count.saturating_sub(before.error_count),
        }
    }

    /// How long a read took on average.
    #[must_use]
    pub fn mean(&self) -> Option<Duration> {
        let nanos = self.time.as_nanos().checked_div(u128::from(self.count))?;
        Some(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }
}

/// What one core knows of how its disks answer reads.
pub struct DiskReads {
    /// Disks of a group that can be done without.
    spare_count: usize,
    disks: RefCell<Vec<DiskState>>,
    groups: RefCell<Rc<Groups>>,
    /// By size class.
    late_after: Cell<[Duration; 2]>,
    until_measure: Cell<u32>,
    budget: Cell<HedgeBudget>,
    counts: Cell<ReadCounts>,
    throttle: RefCell<Throttle>,
    memory: RefCell<Option<Rc<dyn LateMemory>>>,
}

#[derive(Clone, Default)]
struct DiskState {
    /// By size class.
    latencies: [Latencies; 2],
    tally: DiskTally,
    standing: Standing,
    probing: bool,
    probed: Option<Monotonic>,
}

impl DiskReads {
    #[must_use]
    pub fn new(geometry: &Geometry, groups: Rc<Groups>) -> Rc<DiskReads> {
        Rc::new(DiskReads {
            spare_count: usize::from(geometry.m),
            disks: RefCell::new(vec![DiskState::default(); groups.disk_count()]),
            groups: RefCell::new(groups),
            late_after: Cell::new([late_after(Vec::new()); 2]),
            until_measure: Cell::new(READS_PER_MEASURE),
            budget: Cell::default(),
            counts: Cell::default(),
            throttle: RefCell::default(),
            memory: RefCell::default(),
        })
    }

    /// The disks are these from now on.
    pub(crate) fn set_groups(&self, groups: Rc<Groups>) {
        self.disks.borrow_mut().resize(groups.disk_count(), DiskState::default());
        *self.groups.borrow_mut() = groups;
    }

    /// Has the memory of abandoned reads counted by `memory`.
    pub fn account_with(&self, memory: Rc<dyn LateMemory>) {
        *self.memory.borrow_mut() = Some(memory);
    }

    #[must_use]
    pub fn counts(&self) -> ReadCounts {
        self.counts.get()
    }

    /// What this core's reads of each disk came to.
    pub(crate) fn tallies(&self) -> Vec<DiskTally> {
        self.disks.borrow().iter().map(|disk| disk.tally).collect()
    }

    /// How rebuilding gets along with this core's users.
    pub(crate) fn throttle(&self) -> std::cell::RefMut<'_, Throttle> {
        self.throttle.borrow_mut()
    }

    fn note_error(&self, disk: DiskIndex) {
        if let Some(state) = self.disks.borrow_mut().get_mut(usize::from(disk.0)) {
            state.tally.error_count += 1;
        }
    }

    pub(crate) fn count(&self, change: impl FnOnce(&mut ReadCounts)) {
        let mut counts = self.counts.get();
        change(&mut counts);
        self.counts.set(counts);
    }

    /// Whether `disk` is better not asked when others can answer. Where more disks are slow than can be done without, it is
    /// the load, and none is.
    #[must_use]
    pub fn is_avoided(&self, disk: DiskIndex) -> bool {
        let disks = self.disks.borrow();
        let is_slow = |disk: DiskIndex| disks[usize::from(disk.0)].standing.is_slow();
        if usize::from(disk.0) >= disks.len() || !is_slow(disk) {
            return false;
        }
        let groups = self.groups.borrow();
        let together = groups.disks(groups.of(disk));
        together.into_iter().filter(|&other| is_slow(other)).count() <= self.spare_count
    }

    /// Without redundancy there is nobody else to ask, and nothing is timed.
    fn is_alone(&self) -> bool {
        self.spare_count == 0
    }

    /// After how long a read of `len` bytes is late.
    #[must_use]
    pub fn late_after(&self, len: usize) -> Duration {
        self.late_after.get()[size_class(len)]
    }

    /// Whether what a late read of `disk` was to bring may be asked for elsewhere, after it was waited for for so long.
    fn may_hedge(&self, disk: DiskIndex, waited: Duration) -> bool {
        if waited >= LATE_MAX || self.is_avoided(disk) {
            return true;
        }
        let mut budget = self.budget.get();
        let granted = budget.spend();
        self.budget.set(budget);
        granted
    }

    /// Whether it is time to look how `disk`, which is avoided, is doing.
    fn begin_probe(&self, disk: DiskIndex, now: Monotonic) -> bool {
        let mut disks = self.disks.borrow_mut();
        let Some(state) = disks.get_mut(usize::from(disk.0)) else { return false };
        let due = !state.probing && state.probed.is_none_or(|probed| now.since(probed) >= PROBE_INTERVAL);
        if due {
            state.probing = true;
            state.probed = Some(now);
        }
        due
    }

    fn note_standing(&self, disk: DiskIndex, late: bool) {
        if let Some(state) = self.disks.borrow_mut().get_mut(usize::from(disk.0)) {
            let before = state.standing.is_slow();
            state.standing.note(late);
            if state.standing.is_slow() != before {
                tracing::info!(disk = disk.0, slow = !before, "standing of a disk among those of its set");
            }
        }
    }

    fn note_latency(&self, disk: DiskIndex, len: usize, latency: Duration) {
        if let Some(state) = self.disks.borrow_mut().get_mut(usize::from(disk.0)) {
            state.latencies[size_class(len)].record(latency);
            if len <= SHORT_LEN_MAX {
                state.tally.count += 1;
                state.tally.time += latency;
            }
        }
        self.until_measure.set(self.until_measure.get() - 1);
        if self.until_measure.get() == 0 {
            self.until_measure.set(READS_PER_MEASURE);
            self.measure();
        }
    }

    fn measure(&self) {
        let disks = self.disks.borrow();
        self.late_after.set([0, 1].map(|class| {
            late_after(disks.iter().filter_map(|disk| disk.latencies[class].quantile(990)).collect())
        }));
    }
}

fn size_class(len: usize) -> usize {
    usize::from(len > SHORT_LEN_MAX)
}

impl ArenaFiles {
    /// Begins to fill `buf` from `offset` of a column. The buffer comes back when the disk is absent. Nothing is submitted
    /// before the first poll.
    ///
    /// # Errors
    /// The buffer.
    pub fn read(
        &self,
        core: &Core,
        class: ExtentClass,
        column: Column,
        buf: Buf,
        offset: u64,
    ) -> Result<DiskRead, Buf> {
        let Some((file, origin)) = self.locate_readable(class, column) else { return Err(buf) };
        Ok(DiskRead::new(core, self.reads(), column.disk, file.clone(), buf, origin + offset))
    }

    /// Looks how a disk is doing that reads of `column` go around, if it is time to.
    pub(crate) fn probe(&self, core: &Core, class: ExtentClass, column: Column, offset: u64) {
        let Some((file, origin)) = self.locate_readable(class, column) else { return };
        let Some(buf) = core.arena().try_alloc(BLOCK_LEN) else { return };
        if !self.reads().begin_probe(column.disk, core.now()) {
            return;
        }
        let mut read = DiskRead::new(core, self.reads(), column.disk, file.clone(), buf, origin + offset);
        read.watch.probe = true;
        read.submit();
    }
}

/// A read under way. Dropped, it goes on by itself.
pub struct DiskRead {
    state: ReadState,
    watch: Watch,
    /// Of the buffer, in bytes.
    capacity: usize,
    submitted: bool,
    /// Whether somebody has been waiting, so that its end will be seen when it comes.
    awaited: bool,
    /// How often it was found late.
    checks: u32,
}

type Running = Pin<Box<dyn Future<Output = (io::Result<usize>, Buf)>>>;

enum ReadState {
    Running(Running),
    Ended(io::Result<usize>, Buf),
    Taken,
}

/// What is to be learned from a read.
#[derive(Clone)]
struct Watch {
    core: Core,
    reads: Rc<DiskReads>,
    disk: DiskIndex,
    len: usize,
    started: Monotonic,
    /// It has been counted as late.
    late: bool,
    probe: bool,
}

impl DiskRead {
    fn new(
        core: &Core,
        reads: &Rc<DiskReads>,
        disk: DiskIndex,
        file: File,
        buf: Buf,
        offset: u64,
    ) -> DiskRead {
        let watch = Watch {
            core: core.clone(),
            reads: Rc::clone(reads),
            disk,
            len: buf.len(),
            started: Monotonic::default(),
            late: false,
            probe: false,
        };
        let capacity = buf.capacity();
        let running = Box::pin(async move { file.read_at(buf, offset).await });
        DiskRead {
            state: ReadState::Running(running),
            watch,
            capacity,
            submitted: false,
            awaited: false,
            checks: 0,
        }
    }

    /// Hands it to the disk; its end is noticed by the next poll.
    pub(crate) fn submit(&mut self) {
        if let Poll::Ready((result, buf)) = self.advance(&mut Context::from_waker(Waker::noop())) {
            self.state = ReadState::Ended(result, buf);
        }
        self.unattended();
    }

    /// From here on nobody waits, so that the next poll may come long after the end.
    pub(crate) fn unattended(&mut self) {
        self.awaited = false;
    }

    /// When to look whether it is late: once it is, and then after twice as long each time.
    pub(crate) fn check_at(&self) -> Monotonic {
        let late_after = self.watch.reads.late_after(self.watch.len);
        self.watch.started + late_after.saturating_mul(1 << self.checks.min(CHECKS_MAX))
    }

    /// Counts it as late, once, and has it looked at again later.
    pub(crate) fn note_late(&mut self) {
        let now = self.watch.core.now();
        while self.check_at() <= now && self.checks < CHECKS_MAX {
            self.checks += 1;
        }
        if !self.watch.late {
            self.watch.late = true;
            self.watch.reads.note_standing(self.watch.disk, true);
        }
    }

    #[must_use]
    pub(crate) fn is_late(&self) -> bool {
        self.watch.late
    }

    /// Whether it was waited for longer than any read should take.
    #[must_use]
    pub(crate) fn is_given_up(&self) -> bool {
        self.age() >= LATE_MAX
    }

    /// Whether it was waited for longer than a disk may take: it is out by now, or the set cannot do without it.
    #[must_use]
    pub(crate) fn is_stuck(&self) -> bool {
        self.age() >= STUCK_AFTER
    }

    /// Whether others may be asked for what it was to bring.
    pub(crate) fn may_hedge(&self) -> bool {
        self.watch.reads.may_hedge(self.watch.disk, self.age())
    }

    /// How long it has been under way.
    fn age(&self) -> Duration {
        self.watch.core.now().since(self.watch.started)
    }

    fn advance(&mut self, cx: &mut Context<'_>) -> Poll<(io::Result<usize>, Buf)> {
        match std::mem::replace(&mut self.state, ReadState::Taken) {
            ReadState::Running(mut running) => {
                if !self.submitted {
                    self.submitted = true;
                    self.watch.begin();
                }
                let polled = running.as_mut().poll(cx);
                match &polled {
                    Poll::Ready((result, _)) => self.watch.end(result.is_ok(), self.awaited),
                    Poll::Pending => {
                        self.awaited = true;
                        self.state = ReadState::Running(running);
                    }
                }
                polled
            }
            ReadState::Ended(result, buf) => Poll::Ready((result, buf)),
            ReadState::Taken => unreachable!("a read ends once"),
        }
    }
}

impl Future for DiskRead {
    type Output = (io::Result<usize>, Buf);

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.get_mut().advance(cx)
    }
}

impl Watch {
    fn begin(&mut self) {
        if self.reads.is_alone() {
            return;
        }
        self.started = self.core.now();
        let mut budget = self.reads.budget.get();
        budget.earn();
        self.reads.budget.set(budget);
    }

    /// `seen` unless the end may have been long ago.
    fn end(&self, succeeded: bool, seen: bool) {
        if self.probe
            && let Some(state) = self.reads.disks.borrow_mut().get_mut(usize::from(self.disk.0))
        {
            state.probing = false;
        }
        if !succeeded {
            self.reads.note_error(self.disk);
        }
        // A failure says nothing of how long a read takes.
        if !succeeded || self.reads.is_alone() {
            return;
        }
        let elapsed = self.core.now().since(self.started);
        let late = elapsed >= self.reads.late_after(self.len);
        if !self.late && (seen || !late) {
            self.reads.note_standing(self.disk, late);
        }
        if seen {
            self.reads.note_latency(self.disk, self.len, elapsed);
            self.reads.throttle().note_user(self.started, self.core.now());
        }
    }
}

impl Drop for DiskRead {
    fn drop(&mut self) {
        let ReadState::Running(running) = std::mem::replace(&mut self.state, ReadState::Taken) else {
            return;
        };
        if !self.submitted {
            return;
        }
        let memory = self.watch.reads.memory.borrow().clone();
        let held = memory.map(|memory| memory.hold(self.capacity));
        let watch = self.watch.clone();
        self.watch.core.spawn(async move {
            let (result, buf) = running.await;
            watch.end(result.is_ok(), true);
            drop((buf, held));
        });
    }
}
