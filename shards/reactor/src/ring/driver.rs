//! The ring itself: submits, reaps, and keeps the table of operations in flight.
//!
//! Submissions collect in the queue until the core's turn ends, so one system call hands over a turn's worth and
//! fetches what has completed. A full queue is submitted early; entries that even then find no room wait here in order.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::task::Waker;
use std::time::Duration;

use io_uring::types::{CancelBuilder, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};
use slab::Slab;

use super::Stats;
use super::buffers::Buffers;
use super::file::FileTable;
use super::lock::Share;
use super::op::{Completion, Keep, Op, OpKey, OpKind, Sink, State, Submitted};
use crate::arena::Arena;

/// Completion of an operation nobody waits for (a cancellation).
const NOBODY: u64 = u64::MAX;

/// Completions handled in one turn at most; the rest stay in the queue for the next.
const COMPLETIONS_PER_TURN_MAX: usize = 4096;

/// How long a core that shuts down waits for operations that cannot be cancelled before it leaves them their memory.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(30);

const ENTER_GETEVENTS: u32 = 1;
const ENTER_EXT_ARG: u32 = 8;

pub(super) struct Driver {
    ring: RefCell<IoUring>,
    ops: RefCell<Slab<Op>>,
    generation: Cell<u32>,
    /// Entries the submission queue had no room for.
    backlog: RefCell<VecDeque<squeue::Entry>>,
    /// Reused between turns.
    reaped: RefCell<Vec<(u64, Completion)>>,
    pub(super) files: FileTable,
    pub(super) buffers: Buffers,
    /// Shares in locks that were dropped while writes were in flight.
    retired_locks: RefCell<Vec<(Share, Vec<OpKey>)>>,
    pub(super) stats: Counters,
    closed: Cell<bool>,
}

/// The counters of [`Stats`], bumped through shared references.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) stats: Cell<Stats>,
}

impl Counters {
    pub(super) fn update(&self, change: impl FnOnce(&mut Stats)) {
        let mut stats = self.stats.get();
        change(&mut stats);
        self.stats.set(stats);
    }
}

fn op_key((slot, op): (usize, &Op)) -> OpKey {
    OpKey {
        slot: u32::try_from(slot).expect("fewer than 2^32 operations in flight"),
        generation: op.generation,
    }
}

impl Driver {
    pub(super) fn new(ring: IoUring, arena: Arena, warnings: &mut Vec<String>) -> Driver {
        let files = FileTable::new(&ring, warnings);
        let buffers = Buffers::new(&ring, arena, warnings);
        Driver {
            ring: RefCell::new(ring),
            ops: RefCell::new(Slab::with_capacity(256)),
            generation: Cell::new(0),
            backlog: RefCell::new(VecDeque::new()),
            reaped: RefCell::new(Vec::new()),
            files,
            buffers,
            retired_locks: RefCell::new(Vec::new()),
            stats: Counters::default(),
            closed: Cell::new(false),
        }
    }

    pub(super) fn ops(&self) -> &RefCell<Slab<Op>> {
        &self.ops
    }

    /// For registrations, which bypass the queues.
    pub(super) fn with_ring<R>(&self, reach: impl FnOnce(&IoUring) -> R) -> R {
        reach(&self.ring.borrow())
    }

    /// Queues `entry` for a future to await. On a core that has shut down it completes with `ECANCELED` at once.
    ///
    /// # Safety
    /// Everything `entry` points to must be owned by `keep` (or be static) and not move with it.
    pub(super) unsafe fn submit(self: &Rc<Self>, entry: squeue::Entry, keep: Keep) -> Submitted {
        let state = match self.closed.get() {
            true => State::Done(Completion { result: -libc::ECANCELED, flags: 0 }),
            false => State::Waiting(None),
        };
        let key = self.insert(OpKind::Awaited { state, keep });
        if !self.closed.get() {
            self.push(entry.user_data(key.user_data()));
        }
        Submitted { driver: Rc::clone(self), key, cancel_on_drop: false }
    }

    /// Queues `entry`, whose completions go to `sink`; `None` on a core that has shut down.
    ///
    /// # Safety
    /// Everything `entry` points to must be owned by `sink`, which is kept, and stay in place until the last completion.
    pub(super) unsafe fn submit_to(
        &self,
        entry: squeue::Entry,
        sink: Rc<dyn Sink>,
        tag: u32,
    ) -> Option<OpKey> {
        if self.closed.get() {
            return None;
        }
        let key = self.insert(OpKind::Sink { sink, tag });
        self.push(entry.user_data(key.user_data()));
        Some(key)
    }

    /// Asks the kernel to give up on `key`, whose completion still arrives.
    pub(super) fn cancel(&self, key: OpKey) {
        if !self.closed.get() {
            self.push(opcode::AsyncCancel::new(key.user_data()).build().user_data(NOBODY));
        }
    }

    /// Gives up a share in a disk's lock as soon as the writes that are in flight now are over. Which of them go to that disk is
    /// not known here; those that begin later do not.
    pub(super) fn retire_lock(&self, share: Share) {
        let writes = self.ops.borrow().iter().filter(|(_, op)| op.kind.is_write()).map(op_key).collect();
        self.retired_locks.borrow_mut().push((share, writes));
        self.release_locks();
    }

    fn release_locks(&self) {
        let released: Vec<_> = {
            let (ops, mut retired) = (self.ops.borrow(), self.retired_locks.borrow_mut());
            let in_flight =
                |key: &OpKey| ops.get(key.slot as usize).is_some_and(|op| op.generation == key.generation);
            retired.extract_if(.., |(_, writes)| !writes.iter().any(in_flight)).collect()
        };
        drop(released);
    }

    fn insert(&self, kind: OpKind) -> OpKey {
        let generation = self.generation.get().wrapping_add(1) & (u32::MAX >> 1);
        self.generation.set(generation);
        let slot = self.ops.borrow_mut().insert(Op { generation, kind });
        OpKey { slot: u32::try_from(slot).expect("fewer than 2^32 operations in flight"), generation }
    }

    fn push(&self, entry: squeue::Entry) {
        self.stats.update(|stats| stats.submissions += 1);
        let mut backlog = self.backlog.borrow_mut();
        if backlog.is_empty() && self.try_push(&entry) {
            return;
        }
        backlog.push_back(entry);
        self.push_backlog(&mut backlog);
    }

    fn push_backlog(&self, backlog: &mut VecDeque<squeue::Entry>) {
        while let Some(entry) = backlog.front() {
            if !self.try_push(entry) {
                // Errors leave the entries where they are; the turn's own enter meets them again.
                if self.enter(0, None).is_err() || !self.try_push(entry) {
                    return;
                }
            }
            backlog.pop_front();
        }
    }

    fn try_push(&self, entry: &squeue::Entry) -> bool {
        let mut ring = self.ring.borrow_mut();
        // SAFETY: `submit` and `submit_to` made sure that what the entry points to outlives the operation.
        unsafe { ring.submission().push(entry) }.is_ok()
    }

    /// Something has completed or waits to be fetched.
    pub(super) fn has_completions(&self) -> bool {
        let mut ring = self.ring.borrow_mut();
        !ring.completion().is_empty() || {
            let submission = ring.submission();
            submission.taskrun() || submission.cq_overflow()
        }
    }

    /// Hands over what is queued, without waiting.
    pub(super) fn submit_queued(&self) -> io::Result<()> {
        let queued = !self.ring.borrow_mut().submission().is_empty() || !self.backlog.borrow().is_empty();
        if queued { self.turn(None) } else { Ok(()) }
    }

    /// Hands over what is queued and fetches what has completed; sleeps for at most `wait` if nothing has.
    pub(super) fn turn(&self, wait: Option<Duration>) -> io::Result<()> {
        {
            let mut backlog = self.backlog.borrow_mut();
            self.push_backlog(&mut backlog);
        }
        let (fetch, needed) = {
            let mut ring = self.ring.borrow_mut();
            let ready = !ring.completion().is_empty();
            let fetch = if ready { None } else { wait };
            let submission = ring.submission();
            let needed = !submission.is_empty() || submission.taskrun() || submission.cq_overflow();
            (fetch, needed || fetch.is_some())
        };
        if needed {
            self.enter(u32::from(fetch.is_some()), fetch)?;
        }
        self.reap();
        self.release_locks();
        Ok(())
    }

    /// One io_uring_enter. With deferred task work only GETEVENTS makes completions appear, so it is always set.
    fn enter(&self, want: u32, wait: Option<Duration>) -> io::Result<()> {
        self.stats.update(|stats| stats.enters += 1);
        let mut ring = self.ring.borrow_mut();
        let queued = ring.submission().len() as u32;
        let submitter = ring.submitter();
        let result = match wait {
            Some(wait) => {
                let timeout = Timespec::from(wait);
                let args = SubmitArgs::new().timespec(&timeout);
                // SAFETY: the arguments live through the call and are what EXT_ARG announces.
                unsafe { submitter.enter(queued, want, ENTER_GETEVENTS | ENTER_EXT_ARG, Some(&args)) }
            }
            // SAFETY: no arguments.
            None => unsafe { submitter.enter::<libc::sigset_t>(queued, want, ENTER_GETEVENTS, None) },
        };
        match result.map_err(|error| (error.raw_os_error(), error)) {
            // A timeout, a signal, or a kernel that wants completions fetched or memory freed first: the entries not
            // taken are still queued, and the next turn offers them again.
            Ok(_) | Err((Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN), _)) => Ok(()),
            Err((_, error)) => Err(error),
        }
    }

    fn reap(&self) {
        let mut reaped = std::mem::take(&mut *self.reaped.borrow_mut());
        {
            let mut ring = self.ring.borrow_mut();
            let completions = ring.completion().take(COMPLETIONS_PER_TURN_MAX);
            reaped.extend(completions.map(|entry| {
                (entry.user_data(), Completion { result: entry.result(), flags: entry.flags() })
            }));
        }
        self.stats.update(|stats| stats.completions += reaped.len() as u64);
        for (user_data, completion) in reaped.drain(..) {
            if user_data != NOBODY {
                self.dispatch(OpKey::from_user_data(user_data), completion);
            }
        }
        *self.reaped.borrow_mut() = reaped;
    }

    /// Delivers one completion. Foreign code (wakers, sinks, drops of what was kept) runs outside the table's borrow.
    fn dispatch(&self, key: OpKey, completion: Completion) {
        let mut ops = self.ops.borrow_mut();
        let op = ops.get_mut(key.slot as usize).filter(|op| op.generation == key.generation);
        let Some(op) = op else {
            debug_assert!(false, "a completion without an operation");
            return;
        };
        match &mut op.kind {
            OpKind::Awaited { state: State::Abandoned, .. } => {
                let abandoned = ops.remove(key.slot as usize);
                drop(ops);
                drop(abandoned);
            }
            OpKind::Awaited { state, .. } => {
                let before = std::mem::replace(state, State::Done(completion));
                drop(ops);
                if let State::Waiting(Some(waker)) = before {
                    Waker::wake(waker);
                }
            }
            OpKind::Sink { sink, tag } => {
                let (sink, tag) = (Rc::clone(sink), *tag);
                let finished = (!completion.more()).then(|| ops.remove(key.slot as usize));
                drop(ops);
                drop(finished);
                sink.complete(tag, completion);
            }
        }
    }

    /// Cancels what can be cancelled and waits for the rest; nothing is submitted any more. True when the kernel is
    /// done with all our memory.
    pub(super) fn shutdown(&self) -> bool {
        self.closed.set(true);
        let started = std::time::Instant::now();
        while !self.ops.borrow().is_empty() {
            if self.ops.borrow().iter().all(|(_, op)| is_done(op)) {
                // Futures that somebody still holds outside the core; the kernel has no part in them.
                break;
            }
            let cancel = opcode::AsyncCancel2::new(CancelBuilder::any().all()).build().user_data(NOBODY);
            let mut backlog = self.backlog.borrow_mut();
            backlog.push_back(cancel);
            self.push_backlog(&mut backlog);
            drop(backlog);
            if self.turn(Some(Duration::from_millis(50))).is_err() || started.elapsed() > SHUTDOWN_WAIT {
                return false;
            }
        }
        true
    }
}

fn is_done(op: &Op) -> bool {
    matches!(op.kind, OpKind::Awaited { state: State::Done(_), .. })
}
