//! Disk operations in flight: when they are due, what they do to the media, and what becomes of them in a crash.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::arena::{Buf, Slice};
use crate::disk::{BLOCK_LEN, WriteMode};
use crate::sim::media::{Media, Unreadable};
use crate::sim::random::Random;
use crate::sim::state::{Event, EventKey, Shared, State};
use crate::sim::volume::{Access, Volume};

pub(super) struct Operation {
    process: u64,
    volume: usize,
    generation: u64,
    /// `None` for the directory itself.
    inode: Option<u64>,
    kind: Kind,
    /// `None` while parked on a stuck disk, and once done.
    due: Option<EventKey>,
    done: Option<Result<usize, Errno>>,
    waker: Option<Waker>,
    /// Nobody waits for it any more.
    detached: bool,
    /// Its process was killed: it lands late, in part, or not at all.
    orphaned: bool,
}

pub(super) enum Kind {
    /// `early` is what a read found that reached the medium when it was submitted, before other operations.
    Read {
        buf: Buf,
        offset: u64,
        early: Option<Result<usize, Errno>>,
    },
    Write {
        data: Vec<Slice>,
        offset: u64,
        mode: WriteMode,
    },
    Grow {
        len: u64,
    },
    Sync {
        started: u64,
    },
}

/// An error number of the operating system.
#[derive(Clone, Copy)]
pub(super) struct Errno(i32);

impl Errno {
    pub(super) const IO: Errno = Errno(libc::EIO);
    pub(super) const NO_SPACE: Errno = Errno(libc::ENOSPC);
}

impl From<Errno> for io::Error {
    fn from(errno: Errno) -> io::Error {
        io::Error::from_raw_os_error(errno.0)
    }
}

impl From<Unreadable> for Errno {
    fn from(Unreadable: Unreadable) -> Errno {
        Errno::IO
    }
}

/// Where an operation goes.
#[derive(Clone, Copy)]
pub(super) struct Target {
    pub(super) process: u64,
    pub(super) volume: usize,
    pub(super) generation: u64,
    pub(super) inode: Option<u64>,
}

/// Waits for an operation; dropped early, it leaves the operation in flight.
pub(super) struct Completion {
    shared: Rc<Shared>,
    number: Option<u64>,
}

impl Completion {
    pub(super) fn submit(shared: &Rc<Shared>, target: Target, kind: Kind) -> Completion {
        let number = shared.state.borrow_mut().submit(target, kind);
        Completion { shared: Rc::clone(shared), number }
    }
}

impl Future for Completion {
    type Output = (io::Result<usize>, Kind);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(number) = self.number else { return Poll::Pending };
        let mut state = self.shared.state.borrow_mut();
        let Some(operation) = state.operations.get_mut(&number) else { return Poll::Pending };
        let Some(done) = operation.done else {
            let old = operation.waker.replace(cx.waker().clone());
            drop(state);
            drop(old);
            return Poll::Pending;
        };
        let operation = state.operations.remove(&number);
        drop(state);
        self.number = None;
        match operation {
            Some(operation) => Poll::Ready((done.map_err(io::Error::from), operation.kind)),
            None => Poll::Pending,
        }
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        let Some(number) = self.number else { return };
        let mut state = self.shared.state.borrow_mut();
        let Some(operation) = state.operations.get_mut(&number) else { return };
        operation.detached = true;
        let waker = operation.waker.take();
        let finished = if operation.done.is_some() { state.operations.remove(&number) } else { None };
        drop(state);
        drop((waker, finished));
    }
}

impl State {
    /// `None` when the process is dead: its operations go nowhere.
    fn submit(&mut self, target: Target, mut kind: Kind) -> Option<u64> {
        if !self.alive.contains(&target.process) {
            return None;
        }
        let number = self.number();
        let volume = &mut self.volumes[target.volume];
        let random = &mut self.disk_random;
        let latency = match &kind {
            Kind::Read { .. } => draw(&self.latency.read, random),
            Kind::Write { mode: WriteMode::Volatile, .. } => draw(&self.latency.write, random),
            Kind::Write { mode: WriteMode::Stable, .. } => draw(&self.latency.stable_write, random),
            Kind::Grow { .. } | Kind::Sync { .. } => draw(&self.latency.sync, random),
        };
        let stall = if random.chance(volume.faults.stall) { volume.faults.stall_for } else { Duration::ZERO };
        let fact = fact_of(&kind);
        if volume.generation == target.generation && volume.plugged {
            target.inode.into_iter().for_each(|inode| volume.files.acquire(inode));
            let faults = volume.faults;
            if let Some(media) = target.inode.and_then(|inode| volume.files.media_mut(inode)) {
                begin(number, media, &mut kind, faults.bit_rot, faults.misdirected_write, random);
            }
        }
        let delay = nanos(latency).saturating_mul(u64::from(volume.slowness)).saturating_add(nanos(stall));
        let at = self.now.saturating_add(delay);
        let due = Some(self.schedule(at, Event::Operation(number)));
        let Target { process, volume, generation, inode } = target;
        self.trace.note(&[1, self.now, number, volume as u64, inode.unwrap_or(0), fact.0, fact.1]);
        tracing::trace!(at = self.now, number, disk = volume, inode, ?fact, "submitted");
        let operation = Operation {
            process,
            volume,
            generation,
            inode,
            kind,
            due,
            done: None,
            waker: None,
            detached: false,
            orphaned: false,
        };
        self.operations.insert(number, operation);
        Some(number)
    }

    /// The event of operation `number` is due. Hands back whom to wake and what to drop without a borrow.
    pub(super) fn land(&mut self, number: u64) -> (Option<Waker>, Option<Operation>) {
        let Some(operation) = self.operations.get_mut(&number) else { return (None, None) };
        operation.due = None;
        let volume = &mut self.volumes[operation.volume];
        let current = volume.generation == operation.generation && volume.plugged;
        if current && volume.stuck {
            volume.parked.push(number);
            return (None, None);
        }
        let done =
            if current { operation.carry_out(number, volume, &mut self.disk_random) } else { Err(Errno::IO) };
        if current && let Some(inode) = operation.inode {
            volume.files.release(inode);
        }
        operation.done = Some(done);
        let code = done.map_or_else(|errno| u64::from(errno.0.unsigned_abs()) << 32, |count| count as u64);
        self.trace.note(&[2, self.now, number, code]);
        tracing::trace!(at = self.now, number, code, "completed");
        if operation.detached || operation.orphaned {
            let operation = self.operations.remove(&number);
            return (None, operation);
        }
        (operation.waker.take(), None)
    }

    /// Lets the operations that a stuck disk held complete, each after a latency of its own.
    pub(super) fn release_parked(&mut self, volume: usize) {
        for number in std::mem::take(&mut self.volumes[volume].parked) {
            let at = self.now + nanos(draw(&self.latency.write, &mut self.disk_random));
            self.reschedule(number, at);
        }
    }

    /// A process died while the machine runs on: its reads and syncs are forgotten, its writes land late.
    pub(super) fn orphan(&mut self, process: u64) -> Vec<Operation> {
        let numbers: Vec<u64> = self
            .operations
            .iter()
            .filter(|(_, found)| found.process == process)
            .map(|(&number, _)| number)
            .collect();
        let mut forgotten = Vec::new();
        for number in numbers {
            let Some(operation) = self.operations.get_mut(&number) else { continue };
            if operation.is_changing() {
                operation.orphaned = true;
                if operation.due.is_some() {
                    let late = self.disk_random.below(nanos(self.latency.late_max).max(1));
                    self.reschedule(number, self.now + late);
                }
            } else if let Some(operation) = self.operations.remove(&number) {
                operation.due.into_iter().for_each(|key| drop(self.events.remove(&key)));
                let volume = &mut self.volumes[operation.volume];
                if operation.done.is_none() && operation.generation == volume.generation {
                    operation.inode.into_iter().for_each(|inode| volume.files.release(inode));
                }
                forgotten.push(operation);
            }
        }
        forgotten
    }

    /// Whether writes of `process` may still reach a disk.
    pub(super) fn has_writes_in_flight(&self, process: u64) -> bool {
        self.operations.values().any(|operation| operation.process == process && operation.is_changing())
    }

    fn reschedule(&mut self, number: u64, at: u64) {
        let Some(operation) = self.operations.get(&number) else { return };
        operation.due.into_iter().for_each(|key| drop(self.events.remove(&key)));
        let due = self.schedule(at, Event::Operation(number));
        if let Some(operation) = self.operations.get_mut(&number) {
            operation.due = Some(due);
        }
    }
}

impl Operation {
    /// Whether it is in flight and changes the disk.
    fn is_changing(&self) -> bool {
        self.done.is_none() && matches!(self.kind, Kind::Write { .. } | Kind::Grow { .. })
    }

    fn carry_out(&mut self, number: u64, volume: &mut Volume, random: &mut Random) -> Result<usize, Errno> {
        let Some(inode) = self.inode else { return sync_directory(&self.kind, volume, random) };
        let fails = match &self.kind {
            Kind::Read { .. } => volume.fails(Access::Read, random),
            Kind::Write { mode: WriteMode::Volatile, .. } => volume.fails(Access::Write, random),
            Kind::Write { mode: WriteMode::Stable, .. } => {
                volume.fails(Access::Write, random) | volume.fails(Access::Sync, random)
            }
            Kind::Grow { .. } => volume.fails(Access::Write, random),
            Kind::Sync { .. } => volume.fails(Access::Sync, random),
        };
        let len_needed = match &self.kind {
            Kind::Write { data, offset, .. } => offset + len_of(data) as u64,
            Kind::Grow { len } => *len,
            Kind::Read { .. } | Kind::Sync { .. } => 0,
        };
        let fits = volume.has_room(inode, len_needed);
        let Some(media) = volume.files.media_mut(inode) else { return Err(Errno::IO) };
        match &mut self.kind {
            Kind::Read { .. } if fails => Err(Errno::IO),
            Kind::Read { early: Some(early), .. } => *early,
            Kind::Read { buf, offset, early: None } => Ok(media.read(*offset, buf, random)?),
            Kind::Write { .. } if !fits => {
                media.refuse_write(number);
                Err(Errno::NO_SPACE)
            }
            Kind::Write { .. } if fails => {
                media.fail_write(number, random);
                Err(Errno::IO)
            }
            Kind::Write { mode, data, .. } => {
                if self.orphaned {
                    media.land_late(number, *mode, random);
                } else {
                    media.finish_write(number, *mode, random);
                }
                Ok(len_of(data))
            }
            Kind::Grow { .. } if !fits => Err(Errno::NO_SPACE),
            Kind::Grow { .. } if fails => Err(Errno::IO),
            Kind::Grow { len } => {
                if !self.orphaned || random.coin() {
                    media.grow(*len);
                }
                Ok(0)
            }
            Kind::Sync { started } if fails => {
                media.fail_sync(*started, random);
                Err(Errno::IO)
            }
            Kind::Sync { started } => {
                media.finish_sync(*started);
                Ok(0)
            }
        }
    }
}

/// What an operation does to its file when it is submitted.
fn begin(number: u64, media: &mut Media, kind: &mut Kind, rot: f64, misdirected: f64, random: &mut Random) {
    match kind {
        Kind::Read { buf, offset, early } => {
            if random.chance(rot) {
                media.rot(*offset, buf.len() as u64, random);
            }
            if random.coin() {
                *early = Some(media.read(*offset, buf, random).map_err(Errno::from));
            }
        }
        Kind::Write { data, offset, .. } => {
            let len = len_of(data) as u64;
            let mut place = *offset;
            if random.chance(misdirected) && media.len() > len && offset.saturating_add(len) <= media.len() {
                place = random.below((media.len() - len) / BLOCK_LEN as u64 + 1) * BLOCK_LEN as u64;
            }
            media.begin_write(number, place, data.iter().map(|slice| &**slice));
        }
        Kind::Grow { .. } => {}
        Kind::Sync { started } => *started = media.stamp(),
    }
}

fn sync_directory(kind: &Kind, volume: &mut Volume, random: &mut Random) -> Result<usize, Errno> {
    if volume.fails(Access::Sync, random) {
        return Err(Errno::IO);
    }
    if let Kind::Sync { started } = kind {
        volume.files.finish_sync(*started);
    }
    Ok(0)
}

fn len_of(data: &[Slice]) -> usize {
    data.iter().map(|slice| slice.len()).sum()
}

/// What the trace remembers of an operation; of a write also its content, so that it tells two histories apart.
fn fact_of(kind: &Kind) -> (u64, u64) {
    match kind {
        Kind::Read { buf, offset, .. } => (buf.len() as u64, *offset),
        Kind::Write { data, offset, mode } => {
            let words =
                data.iter().flat_map(|slice| slice.as_chunks::<8>().0).map(|word| u64::from_le_bytes(*word));
            let sum = words.fold(u64::from(*mode == WriteMode::Stable), |sum, word| {
                (sum ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(23)
            });
            (sum, *offset)
        }
        Kind::Grow { len } => (3, *len),
        Kind::Sync { .. } => (4, 0),
    }
}

/// Mostly near the lower bound, with a long tail, as devices do.
fn draw(range: &std::ops::Range<Duration>, random: &mut Random) -> Duration {
    let unit = random.unit();
    range.start + range.end.saturating_sub(range.start).mul_f64(unit * unit * unit)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
