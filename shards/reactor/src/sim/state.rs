//! What a simulated world holds: time, tasks, events and disks, and the ready queue that wakers reach.
//!
//! Tasks are polled and dropped while nothing here is borrowed, because both run code that comes back in.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use crate::sim::operation::Operation;
use crate::sim::random::{Random, mix};
use crate::sim::volume::Volume;
use crate::sim::{Latency, Schedule};
use crate::task::Task;

/// When an event is due (nanoseconds of world time), and its number among all.
pub(super) type EventKey = (u64, u64);

pub(super) enum Event {
    Timer(Waker),
    Operation(u64),
}

/// The part of a world that its cores share with it.
pub(super) struct Shared {
    pub(super) seed: u64,
    pub(super) state: RefCell<State>,
    pub(super) ready: Arc<ReadyQueue>,
}

pub(super) struct State {
    /// Nanoseconds since the world began.
    pub(super) now: u64,
    /// Wall-clock nanoseconds at `now == 0`.
    pub(super) wall_base: i128,
    pub(super) latency: Latency,
    pub(super) schedule: Schedule,
    pub(super) turn: Duration,
    pub(super) schedule_random: Random,
    pub(super) disk_random: Random,
    pub(super) core_random: Random,
    pub(super) events: BTreeMap<EventKey, Event>,
    pub(super) tasks: BTreeMap<u64, TaskSlot>,
    pub(super) operations: BTreeMap<u64, Operation>,
    pub(super) volumes: Vec<Volume>,
    pub(super) alive: BTreeSet<u64>,
    pub(super) trace: Trace,
    number_next: u64,
}

pub(super) struct TaskSlot {
    pub(super) process: u64,
    /// `None` while it is being polled.
    pub(super) task: Option<Task>,
}

/// Digest of everything that happened, in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Trace {
    pub(super) hash: u64,
    pub(super) events: u64,
}

/// Tasks that were woken, in order, each at most once.
#[derive(Default)]
pub(super) struct ReadyQueue {
    tasks: Mutex<VecDeque<Arc<TaskWaker>>>,
}

pub(super) struct TaskWaker {
    pub(super) task: u64,
    queued: AtomicBool,
    ready: Arc<ReadyQueue>,
}

impl Shared {
    pub(super) fn spawn(&self, process: u64, task: Task) {
        let mut state = self.state.borrow_mut();
        if !state.alive.contains(&process) {
            drop(state);
            drop(task);
            return;
        }
        let number = state.number();
        let waker = Arc::new(TaskWaker {
            task: number,
            queued: AtomicBool::new(false),
            ready: Arc::clone(&self.ready),
        });
        waker.wake_by_ref();
        state.tasks.insert(number, TaskSlot { process, task: Some(task) });
    }

    pub(super) fn is_alive(&self, process: u64) -> bool {
        self.state.borrow().alive.contains(&process)
    }
}

impl State {
    pub(super) fn new(seed: u64, config: super::Config) -> State {
        let mut random = Random::new(seed);
        State {
            now: 0,
            wall_base: i128::from(config.wall_start.0),
            latency: config.latency,
            schedule: config.schedule,
            turn: config.turn,
            schedule_random: random.fork(),
            disk_random: random.fork(),
            core_random: random.fork(),
            events: BTreeMap::new(),
            tasks: BTreeMap::new(),
            operations: BTreeMap::new(),
            volumes: config.disks.into_iter().map(Volume::new).collect(),
            alive: BTreeSet::new(),
            trace: Trace::default(),
            number_next: 0,
        }
    }

    /// A number that was never given out before, for a task, an operation, an event or a process.
    pub(super) fn number(&mut self) -> u64 {
        self.number_next += 1;
        self.number_next
    }

    pub(super) fn schedule(&mut self, at: u64, event: Event) -> EventKey {
        let key = (at, self.number());
        self.events.insert(key, event);
        key
    }

    /// A ready task of a living process, taken out of its slot.
    pub(super) fn take_ready(&mut self, ready: &ReadyQueue) -> Option<(u64, Task, Waker)> {
        loop {
            let waker = ready.pop(self.schedule, &mut self.schedule_random)?;
            let Some(slot) = self.tasks.get_mut(&waker.task) else { continue };
            if let Some(task) = slot.task.take() {
                return Some((waker.task, task, Waker::from(waker)));
            }
        }
    }
}

impl Trace {
    /// Takes one fact into the digest.
    pub(super) fn note(&mut self, fact: &[u64]) {
        self.hash = fact.iter().fold(self.hash, |hash, word| mix(hash.wrapping_add(*word).rotate_left(17)));
    }
}

impl ReadyQueue {
    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    fn pop(&self, schedule: Schedule, random: &mut Random) -> Option<Arc<TaskWaker>> {
        let mut tasks = self.lock();
        let index = match (schedule, tasks.len()) {
            (_, 0) => return None,
            (Schedule::Fifo, _) | (_, 1) => 0,
            (Schedule::Seeded, count) => random.below(count as u64) as usize,
        };
        let waker = tasks.swap_remove_front(index)?;
        waker.queued.store(false, Ordering::Relaxed);
        Some(waker)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<TaskWaker>>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::Relaxed) {
            self.ready.lock().push_back(Arc::clone(self));
        }
    }
}

/// Awaits a moment of world time.
pub(super) struct Sleep {
    shared: Rc<Shared>,
    at: u64,
    key: Option<EventKey>,
}

impl Sleep {
    pub(super) fn new(shared: Rc<Shared>, at: u64) -> Sleep {
        Sleep { shared, at, key: None }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let mut state = this.shared.state.borrow_mut();
        let old = this.key.take().and_then(|key| state.events.remove(&key));
        let due = state.now >= this.at;
        if !due {
            this.key = Some(state.schedule(this.at, Event::Timer(cx.waker().clone())));
        }
        drop(state);
        drop(old);
        if due { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        let old = self.key.take().and_then(|key| self.shared.state.borrow_mut().events.remove(&key));
        drop(old);
    }
}
