//! The tasks of one core and the wakers that make them run again.
//!
//! Wakers are `Send + Sync`, as the standard library promises to everybody who holds one. A wake from the core's own
//! thread is a push to its ready list; one from elsewhere goes through a locked list and rings the doorbell (an
//! eventfd that the ring reads), but only when the core says that it sleeps.

use std::cell::{Cell, RefCell, UnsafeCell};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Wake, Waker};

use slab::Slab;

use crate::task::Task;

thread_local! {
    /// Doorbells this thread has rung. Its address also tells threads apart, cheaper than a thread id.
    static WAKES_SENT: Cell<u64> = const { Cell::new(0) };
}

pub(super) struct Executor {
    shared: Arc<Shared>,
    tasks: RefCell<Slab<Slot>>,
    closed: Cell<bool>,
}

struct Slot {
    header: Arc<Header>,
    waker: Waker,
    /// Away while it is being polled.
    task: Option<Task>,
}

/// A task as its wakers see it.
struct Header {
    shared: Arc<Shared>,
    key: usize,
    /// On a list of tasks to run.
    queued: AtomicBool,
}

struct Shared {
    owner: usize,
    ready: UnsafeCell<VecDeque<Arc<Header>>>,
    remote: Mutex<Vec<Arc<Header>>>,
    remote_waiting: AtomicBool,
    sleeping: AtomicBool,
    closed: AtomicBool,
    doorbell: OwnedFd,
}

// SAFETY: `ready` is the only part that is not Sync by itself, and it is reached through `Shared::ready` alone, which
// checks that the thread is the owner.
unsafe impl Sync for Shared {}
// SAFETY: nothing in it is bound to a thread once `ready` is left to the owner; headers are Send and Sync.
unsafe impl Send for Shared {}

impl Executor {
    pub(super) fn new() -> io::Result<Executor> {
        // SAFETY: a plain system call; the descriptor is checked and owned right after.
        let doorbell = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        if doorbell < 0 {
            return Err(io::Error::last_os_error());
        }
        let shared = Shared {
            owner: this_thread(),
            ready: UnsafeCell::new(VecDeque::new()),
            remote: Mutex::new(Vec::new()),
            remote_waiting: AtomicBool::new(false),
            sleeping: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            // SAFETY: the descriptor was just made and belongs to nobody else.
            doorbell: unsafe { OwnedFd::from_raw_fd(doorbell) },
        };
        Ok(Executor { shared: Arc::new(shared), tasks: RefCell::new(Slab::new()), closed: Cell::new(false) })
    }

    pub(super) fn doorbell(&self) -> RawFd {
        self.shared.doorbell.as_raw_fd()
    }

    pub(super) fn spawn(&self, task: Task) {
        if self.closed.get() {
            return;
        }
        let mut tasks = self.tasks.borrow_mut();
        let entry = tasks.vacant_entry();
        let shared = Arc::clone(&self.shared);
        let header = Arc::new(Header { shared, key: entry.key(), queued: AtomicBool::new(true) });
        let waker = Waker::from(Arc::clone(&header));
        entry.insert(Slot { header: Arc::clone(&header), waker, task: Some(task) });
        drop(tasks);
        self.shared.with_ready(|ready| ready.push_back(header));
    }

    /// Polls ready tasks, at most `count_max` of them and none that becomes ready meanwhile more than its turn allows.
    pub(super) fn run(&self, count_max: usize) {
        for _ in 0..count_max {
            let Some(header) = self.shared.with_ready(VecDeque::pop_front) else { return };
            self.poll(&header);
        }
    }

    fn poll(&self, header: &Arc<Header>) {
        // Before the poll, so that a wake during it counts; a swap, so that what the waker's thread wrote is seen.
        header.queued.swap(false, Ordering::AcqRel);
        let (mut task, waker) = {
            let mut tasks = self.tasks.borrow_mut();
            let Some(slot) = tasks.get_mut(header.key) else { return };
            if !Arc::ptr_eq(&slot.header, header) {
                return;
            }
            let Some(task) = slot.task.take() else { return };
            (task, slot.waker.clone())
        };
        if task.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
            let slot = self.tasks.borrow_mut().remove(header.key);
            drop((slot, task));
        } else {
            self.tasks.borrow_mut()[header.key].task = Some(task);
        }
    }

    /// Moves what other threads woke to the ready list; true if there was something.
    pub(super) fn take_remote(&self) -> bool {
        if !self.has_remote() {
            return false;
        }
        self.shared.remote_waiting.store(false, Ordering::Relaxed);
        let woken = std::mem::take(&mut *self.shared.remote.lock().unwrap_or_else(PoisonError::into_inner));
        let any = !woken.is_empty();
        self.shared.with_ready(|ready| ready.extend(woken));
        any
    }

    pub(super) fn has_remote(&self) -> bool {
        self.shared.remote_waiting.load(Ordering::Relaxed)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.shared.with_ready(|ready| ready.is_empty()) && !self.has_remote()
    }

    /// Announces that the core is about to sleep; false if somebody woke it first.
    pub(super) fn fall_asleep(&self) -> bool {
        self.shared.sleeping.store(true, Ordering::Relaxed);
        // Pairs with the fence in `wake_remotely`: either we see the wake or the waker sees us sleeping.
        fence(Ordering::SeqCst);
        if self.has_remote() {
            self.wake_up();
            return false;
        }
        true
    }

    pub(super) fn wake_up(&self) {
        self.shared.sleeping.store(false, Ordering::Relaxed);
    }

    /// Drops every task, and every task that is spawned from now on.
    pub(super) fn close(&self) {
        self.closed.set(true);
        self.shared.closed.store(true, Ordering::Relaxed);
        let tasks = std::mem::take(&mut *self.tasks.borrow_mut());
        drop(tasks);
        let ready = self.shared.with_ready(std::mem::take);
        drop(ready);
        let remote = std::mem::take(&mut *self.shared.remote.lock().unwrap_or_else(PoisonError::into_inner));
        drop(remote);
    }
}

impl Shared {
    /// Reaches the ready list. Only the owner's thread may call it, and `reach` runs no foreign code.
    fn with_ready<R>(&self, reach: impl FnOnce(&mut VecDeque<Arc<Header>>) -> R) -> R {
        assert_eq!(self.owner, this_thread(), "the ready list belongs to its core's thread");
        // SAFETY: only one thread passes the check, and no caller's `reach` comes back here, so the borrow is unique.
        reach(unsafe { &mut *self.ready.get() })
    }

    fn wake_remotely(&self, header: Arc<Header>) {
        self.remote.lock().unwrap_or_else(PoisonError::into_inner).push(header);
        self.remote_waiting.store(true, Ordering::Release);
        fence(Ordering::SeqCst);
        if self.sleeping.load(Ordering::Relaxed) && self.sleeping.swap(false, Ordering::Relaxed) {
            WAKES_SENT.with(|count| count.set(count.get() + 1));
            let one = 1_u64.to_ne_bytes();
            // SAFETY: writes eight bytes from a live array to a descriptor that `self` owns. It fails only if the
            // counter is full, and then the sleeper has been rung already.
            unsafe { libc::write(self.doorbell.as_raw_fd(), one.as_ptr().cast(), one.len()) };
        }
    }
}

impl Wake for Header {
    fn wake(self: Arc<Header>) {
        if self.queued.swap(true, Ordering::AcqRel) || self.shared.closed.load(Ordering::Relaxed) {
            return;
        }
        if self.shared.owner == this_thread() {
            let shared = Arc::clone(&self.shared);
            shared.with_ready(|ready| ready.push_back(self));
        } else {
            let shared = Arc::clone(&self.shared);
            shared.wake_remotely(self);
        }
    }

    fn wake_by_ref(self: &Arc<Header>) {
        if !self.queued.load(Ordering::Relaxed) {
            Arc::clone(self).wake();
        }
    }
}

/// Doorbells that this thread has rung.
pub(super) fn wakes_sent() -> u64 {
    WAKES_SENT.with(Cell::get)
}

fn this_thread() -> usize {
    WAKES_SENT.with(|mark| std::ptr::from_ref(mark) as usize)
}
