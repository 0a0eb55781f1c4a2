//! The share of a core's arena that bodies under way may hold, handed out whole amounts at a time.
//!
//! A run of stripes needs a buffer for every column before its first byte can be placed. Two writers that each held
//! half of what they need would wait for each other for ever; so a writer first reserves all of it here, first come,
//! first served, and only then takes buffers from the arena. Whoever holds a reservation can finish without another.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// Bytes that may be reserved together. Shared by everything on one core that fills several buffers at once.
pub struct Budget {
    capacity: usize,
    used: Cell<usize>,
    line: RefCell<VecDeque<Rc<Waiter>>>,
}

/// A reservation; dropping it gives the bytes back.
pub struct Permit {
    budget: Rc<Budget>,
    len: usize,
}

struct Waiter {
    len: usize,
    grant: Cell<Option<Permit>>,
    waker: RefCell<Option<Waker>>,
}

impl Budget {
    #[must_use]
    pub fn new(capacity: usize) -> Rc<Budget> {
        Rc::new(Budget { capacity, used: Cell::new(0), line: RefCell::new(VecDeque::new()) })
    }

    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes reserved now.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.get()
    }

    /// Reserves `len` bytes if they are free and nobody waits. More than the whole budget counts as all of it.
    #[must_use]
    pub fn try_reserve(self: &Rc<Budget>, len: usize) -> Option<Permit> {
        if self.line.borrow().is_empty() { self.take(len) } else { None }
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
        Some(Permit { budget: Rc::clone(self), len })
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

impl Permit {
    /// Gives back what exceeds `len` bytes.
    pub fn shrink(&mut self, len: usize) {
        let surplus = self.len.saturating_sub(len);
        self.len -= surplus;
        self.budget.used.set(self.budget.used.get() - surplus);
        self.budget.serve_line();
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
    use super::*;

    fn poll<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
        Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn first_come_first_served() {
        let budget = Budget::new(10);
        let mut held = budget.try_reserve(8).expect("free");
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
}
