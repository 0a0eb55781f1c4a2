//! The share of a core's memory that bodies under way may hold, handed out whole amounts at a time.
//!
//! A stripe needs a buffer for every column before its first byte can be placed. Two writers that each held half of what
//! they need would wait for each other for ever; so every body first reserves its working set, first come, first served,
//! and only then takes buffers from the arena. Whoever holds its working set can finish without another byte. What goes
//! beyond it, to read ahead and to write long runs, is never waited for and never takes the second half of the budget:
//! that half is for working sets alone, whatever slow clients sit on.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use basalt_reactor::Core;

use crate::extent::reads::LateMemory;

/// How long a request may wait for its working set before it is told to come back later.
pub const ADMISSION_WAIT_MAX: Duration = Duration::from_secs(1);

/// Requests of one core that may wait for their working set at one time.
pub const ADMISSION_WAITERS_MAX: usize = 512;

/// Bytes that may be reserved together. Shared by everything on one core that fills several buffers at once.
pub struct Budget {
    capacity: usize,
    used: Cell<usize>,
    refused: Cell<u64>,
    line: RefCell<VecDeque<Rc<Waiter>>>,
}

/// What a budget has given away, in bytes, and to whom it gave nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BudgetUse {
    pub capacity: usize,
    pub used: usize,
    /// Tasks in line.
    pub waiting: usize,
    /// Requests that [`Budget::admit`] has turned away so far.
    pub refused: u64,
}

/// A reservation; dropping it gives the bytes back.
pub struct Permit {
    budget: Rc<Budget>,
    len: Cell<usize>,
}

struct Waiter {
    len: usize,
    grant: Cell<Option<Permit>>,
    waker: RefCell<Option<Waker>>,
}

impl Budget {
    #[must_use]
    pub fn new(capacity: usize) -> Rc<Budget> {
        Rc::new(Budget { capacity, used: Cell::new(0), refused: Cell::new(0), line: RefCell::default() })
    }

    /// Bytes reserved now.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.get()
    }

    #[must_use]
    pub fn usage(&self) -> BudgetUse {
        BudgetUse {
            capacity: self.capacity,
            used: self.used.get(),
            waiting: self.line.borrow().len(),
            refused: self.refused.get(),
        }
    }

    /// Reserves a request's working set, or `None` when that would take longer than [`ADMISSION_WAIT_MAX`] or too many
    /// wait already. The caller must hold no other reservation.
    pub async fn admit(self: &Rc<Budget>, core: &Core, len: usize) -> Option<Permit> {
        if let Some(permit) = self.try_reserve(len) {
            return Some(permit);
        }
        let admitted = if self.line.borrow().len() < ADMISSION_WAITERS_MAX {
            let mut reserved = pin!(self.reserve(len));
            let mut late = pin!(core.sleep(ADMISSION_WAIT_MAX));
            poll_fn(|cx| match reserved.as_mut().poll(cx) {
                Poll::Ready(permit) => Poll::Ready(Some(permit)),
                Poll::Pending => late.as_mut().poll(cx).map(|()| None),
            })
            .await
        } else {
            None
        };
        if admitted.is_none() {
            self.refused.set(self.refused.get() + 1);
        }
        admitted
    }

    /// Reserves `len` bytes if they are free and nobody waits. More than the whole budget counts as all of it.
    #[must_use]
    pub fn try_reserve(self: &Rc<Budget>, len: usize) -> Option<Permit> {
        if self.line.borrow().is_empty() { self.take(len) } else { None }
    }

    /// Reserves `len` bytes beyond a working set: only while nobody waits and half of the budget stays free.
    #[must_use]
    pub fn try_extra(self: &Rc<Budget>, len: usize) -> Option<Permit> {
        if self.has_extra(len) { self.take(len) } else { None }
    }

    /// Counts `len` bytes that are taken already and come back by themselves, whatever is free: nobody is let in until
    /// they fit again.
    #[must_use]
    pub fn charge(self: &Rc<Budget>, len: usize) -> Permit {
        self.used.set(self.used.get() + len);
        Permit { budget: Rc::clone(self), len: Cell::new(len) }
    }

    fn has_extra(&self, len: usize) -> bool {
        self.line.borrow().is_empty() && self.used.get() + len <= self.capacity / 2
    }

    /// Reserves `len` bytes, waiting in line for them. Dropping the future leaves the line.
    pub async fn reserve(self: &Rc<Budget>, len: usize) -> Permit {
        if let Some(permit) = self.try_reserve(len) {
            return permit;
        }
        let waiter = Rc::new(Waiter { len, grant: Cell::new(None), waker: RefCell::new(None) });
        self.line.borrow_mut().push_back(Rc::clone(&waiter));
        InLine { budget: Rc::clone(self), waiter }.await
    }

    fn take(self: &Rc<Budget>, len: usize) -> Option<Permit> {
        let len = len.min(self.capacity);
        let used = self.used.get() + len;
        if used > self.capacity {
            return None;
        }
        self.used.set(used);
        Some(Permit { budget: Rc::clone(self), len: Cell::new(len) })
    }

    fn serve_line(self: &Rc<Budget>) {
        loop {
            let Some(waiter) = self.line.borrow().front().map(Rc::clone) else { return };
            let Some(permit) = self.take(waiter.len) else { return };
            self.line.borrow_mut().pop_front();
            waiter.grant.set(Some(permit));
            let waker = waiter.waker.borrow_mut().take();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

impl LateMemory for Budget {
    fn hold(self: Rc<Self>, len: usize) -> Box<dyn Any> {
        Box::new(self.charge(len))
    }
}

impl Permit {
    #[expect(clippy::len_without_is_empty, reason = "an empty reservation is no state of its own")]
    #[must_use]
    pub fn len(&self) -> usize {
        self.len.get()
    }

    /// Whether there is no more to be had: what asked for more than the whole budget got this.
    #[must_use]
    pub fn is_whole_budget(&self) -> bool {
        self.len.get() == self.budget.capacity
    }

    /// Makes a reservation of its own of `len` bytes of this one, or of what there is.
    #[must_use]
    pub fn split(&self, len: usize) -> Permit {
        let len = len.min(self.len.get());
        self.len.set(self.len.get() - len);
        Permit { budget: Rc::clone(&self.budget), len: Cell::new(len) }
    }

    /// Makes the reservation at least `len` bytes, if that takes no more than [`Budget::try_extra`] would.
    #[must_use]
    pub fn try_grow(&self, len: usize) -> bool {
        let more = len.saturating_sub(self.len.get());
        if more > 0 {
            if !self.budget.has_extra(more) {
                return false;
            }
            self.budget.used.set(self.budget.used.get() + more);
            self.len.set(len);
        }
        true
    }

    /// Gives back what exceeds `len` bytes.
    pub fn shrink(&self, len: usize) {
        let surplus = self.len.get().saturating_sub(len);
        if surplus > 0 {
            self.len.set(len);
            self.budget.used.set(self.budget.used.get() - surplus);
            self.budget.serve_line();
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.shrink(0);
    }
}

struct InLine {
    budget: Rc<Budget>,
    waiter: Rc<Waiter>,
}

impl Future for InLine {
    type Output = Permit;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Permit> {
        if let Some(permit) = self.waiter.grant.take() {
            return Poll::Ready(permit);
        }
        *self.waiter.waker.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for InLine {
    fn drop(&mut self) {
        self.budget.line.borrow_mut().retain(|waiter| !Rc::ptr_eq(waiter, &self.waiter));
        // A grant that nobody took goes back, and whoever stood behind a large request may fit now.
        drop(self.waiter.grant.take());
        self.budget.serve_line();
    }
}

#[cfg(test)]
mod tests {
    use basalt_reactor::sim::{Config, World};

    use super::*;

    fn poll<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
        Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn first_come_first_served() {
        let budget = Budget::new(10);
        let held = budget.try_reserve(8).expect("free");
        let mut large = Box::pin(budget.reserve(6));
        let mut small = Box::pin(budget.reserve(1));
        assert!(poll(&mut large).is_pending() && poll(&mut small).is_pending());
        assert!(budget.try_reserve(1).is_none(), "nobody overtakes the line");
        held.shrink(5);
        assert!(poll(&mut large).is_pending());
        held.shrink(3);
        let Poll::Ready(large) = poll(&mut large) else { panic!("7 bytes are free") };
        assert_eq!(budget.used(), 10, "the small one was granted in the same turn");
        assert!(poll(&mut small).is_ready());
        drop((held, large));
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn a_request_beyond_the_budget_gets_all_of_it() {
        let budget = Budget::new(10);
        let held = budget.try_reserve(1).expect("free");
        let mut whole = Box::pin(budget.reserve(1000));
        assert!(poll(&mut whole).is_pending());
        drop(held);
        assert!(poll(&mut whole).is_ready());
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn a_dropped_waiter_leaves_the_line_and_returns_its_grant() {
        let budget = Budget::new(10);
        let held = budget.try_reserve(10).expect("free");
        let mut granted = Box::pin(budget.reserve(10));
        let mut abandoned = Box::pin(budget.reserve(10));
        let mut last = Box::pin(budget.reserve(10));
        assert!(poll(&mut granted).is_pending() && poll(&mut abandoned).is_pending());
        assert!(poll(&mut last).is_pending());
        drop(abandoned);
        drop(held);
        assert!(poll(&mut last).is_pending());
        drop(granted);
        assert!(poll(&mut last).is_ready());
    }

    #[test]
    fn extras_leave_half_of_the_budget_to_working_sets() {
        let budget = Budget::new(100);
        let run = budget.try_extra(40).expect("less than half");
        assert!(budget.try_extra(11).is_none());
        let set = budget.try_reserve(30).expect("working sets may take all");
        assert!(!set.try_grow(31), "more than half is in use");
        drop(run);
        assert!(set.try_grow(50) && !set.try_grow(51) && set.try_grow(7));
        assert_eq!((set.len(), budget.used()), (50, 50));
        set.shrink(30);
        let mut waiting = Box::pin(budget.reserve(80));
        assert!(poll(&mut waiting).is_pending());
        assert!(budget.try_extra(1).is_none() && !set.try_grow(31), "nobody overtakes the line");
        drop((waiting, set));
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn what_is_charged_keeps_others_out_until_it_fits() {
        let budget = Budget::new(10);
        let held = budget.try_reserve(8).expect("free");
        let charged = budget.charge(5);
        assert_eq!(budget.used(), 13);
        assert!(budget.try_reserve(1).is_none() && !held.try_grow(9));
        let mut waiting = Box::pin(budget.reserve(2));
        assert!(poll(&mut waiting).is_pending());
        drop(charged);
        assert!(poll(&mut waiting).is_ready());
        drop((waiting, held));
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn who_waits_too_long_or_in_too_long_a_line_is_turned_away() {
        let mut world = World::new(1, Config::default());
        let core = world.boot(1).remove(0);
        world.run(async move {
            let budget = Budget::new(10);
            let held = budget.admit(&core, 10).await.expect("free");
            let before = core.now();
            assert!(budget.admit(&core, 1).await.is_none());
            assert!(core.now().since(before) >= ADMISSION_WAIT_MAX);
            let line: Vec<_> = (0..ADMISSION_WAITERS_MAX)
                .map(|_| {
                    let (budget, own) = (Rc::clone(&budget), core.clone());
                    core.spawn(async move { budget.admit(&own, 1).await.is_some() })
                })
                .collect();
            core.sleep(ADMISSION_WAIT_MAX / 4).await;
            assert_eq!(budget.usage().waiting, ADMISSION_WAITERS_MAX);
            let before = core.now();
            assert!(budget.admit(&core, 1).await.is_none() && core.now() == before, "at once");
            assert_eq!(budget.usage().refused, 2);
            drop(held);
            for waiter in line {
                assert_eq!(waiter.await, Some(true), "there is room now, for one after the other");
            }
            assert_eq!(budget.usage(), BudgetUse { capacity: 10, used: 0, waiting: 0, refused: 2 });
        });
    }
}
