//! The reply slots of the calls from one core to one other.
//!
//! A call takes its slot before its request leaves, so its reply always has a place to go; the number of slots is
//! what bounds the calls in flight. A slot outlives a caller that went away, because its reply is still under way.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use slab::Slab;

use super::{CALLS_MAX, Lost};

pub(super) struct Calls<R> {
    table: RefCell<Table<R>>,
}

struct Table<R> {
    slots: Slab<Slot<R>>,
    /// Slots promised to waiters that have yet to take them.
    promised: usize,
    line: VecDeque<Rc<Waiter>>,
    lost: bool,
}

enum Slot<R> {
    Waiting(Option<Waker>),
    Answered(Result<R, Lost>),
    /// The caller went away.
    Abandoned,
}

struct Waiter {
    granted: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl<R> Calls<R> {
    pub(super) fn new() -> Calls<R> {
        let table = Table { slots: Slab::new(), promised: 0, line: VecDeque::new(), lost: false };
        Calls { table: RefCell::new(table) }
    }

    /// Takes a slot, waiting in line for one.
    pub(super) async fn reserve(&self) -> Result<u32, Lost> {
        let waiter = {
            let mut table = self.table.borrow_mut();
            if table.lost {
                return Err(Lost);
            }
            if table.line.is_empty() && table.has_room() {
                return Ok(table.take_slot());
            }
            let waiter = Rc::new(Waiter { granted: Cell::new(false), waker: RefCell::new(None) });
            table.line.push_back(Rc::clone(&waiter));
            waiter
        };
        InLine { calls: self, waiter }.await
    }

    /// The reply to the call in `slot`.
    pub(super) fn reply(self: &Rc<Self>, slot: u32) -> Answer<R> {
        Answer { calls: Rc::clone(self), slot }
    }

    /// Delivers a reply.
    pub(super) fn answer(&self, slot: u32, reply: Result<R, Lost>) {
        let mut table = self.table.borrow_mut();
        match table.slots.get_mut(slot as usize) {
            Some(state @ Slot::Waiting(_)) => {
                let before = std::mem::replace(state, Slot::Answered(reply));
                drop(table);
                if let Slot::Waiting(Some(waker)) = before {
                    waker.wake();
                }
            }
            Some(Slot::Abandoned) => {
                table.slots.remove(slot as usize);
                drop(table);
                self.serve_line();
                // Last, and outside the borrow: a reply's drop may come back to the mesh.
                drop(reply);
            }
            Some(Slot::Answered(_)) | None => debug_assert!(false, "one call, one reply"),
        }
    }

    /// Resolves every call in flight and to come with [`Lost`].
    pub(super) fn lose(&self) {
        let mut table = self.table.borrow_mut();
        if std::mem::replace(&mut table.lost, true) {
            return;
        }
        let mut wakers = Vec::new();
        table.slots.retain(|_, slot| match slot {
            Slot::Waiting(waker) => {
                wakers.extend(waker.take());
                *slot = Slot::Answered(Err(Lost));
                true
            }
            Slot::Answered(_) => true,
            Slot::Abandoned => false,
        });
        wakers.extend(table.line.drain(..).filter_map(|waiter| waiter.waker.take()));
        drop(table);
        wakers.into_iter().for_each(Waker::wake);
    }

    pub(super) fn is_lost(&self) -> bool {
        self.table.borrow().lost
    }

    /// Promises free slots to the head of the line.
    fn serve_line(&self) {
        let mut table = self.table.borrow_mut();
        if !table.has_room() {
            return;
        }
        let Some(waiter) = table.line.pop_front() else { return };
        table.promised += 1;
        waiter.granted.set(true);
        drop(table);
        let waker = waiter.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<R> Table<R> {
    fn has_room(&self) -> bool {
        self.slots.len() + self.promised < CALLS_MAX
    }

    fn take_slot(&mut self) -> u32 {
        self.slots.insert(Slot::Waiting(None)) as u32
    }
}

struct InLine<'calls, R> {
    calls: &'calls Calls<R>,
    waiter: Rc<Waiter>,
}

impl<R> Future for InLine<'_, R> {
    type Output = Result<u32, Lost>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<u32, Lost>> {
        let mut table = self.calls.table.borrow_mut();
        if table.lost {
            return Poll::Ready(Err(Lost));
        }
        if self.waiter.granted.take() {
            table.promised -= 1;
            return Poll::Ready(Ok(table.take_slot()));
        }
        *self.waiter.waker.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl<R> Drop for InLine<'_, R> {
    fn drop(&mut self) {
        {
            let mut table = self.calls.table.borrow_mut();
            if self.waiter.granted.take() {
                table.promised -= 1;
            } else {
                table.line.retain(|waiter| !Rc::ptr_eq(waiter, &self.waiter));
                return;
            }
        }
        self.calls.serve_line();
    }
}

/// A reply under way. Dropping it leaves the call to take effect and its reply to be dropped.
pub(super) struct Answer<R> {
    calls: Rc<Calls<R>>,
    slot: u32,
}

impl<R> Future for Answer<R> {
    type Output = Result<R, Lost>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<R, Lost>> {
        let mut table = self.calls.table.borrow_mut();
        match &mut table.slots[self.slot as usize] {
            Slot::Waiting(waker) => {
                *waker = Some(cx.waker().clone());
                Poll::Pending
            }
            answered @ Slot::Answered(_) => {
                // The slot itself goes back when this future is dropped.
                match std::mem::replace(answered, Slot::Answered(Err(Lost))) {
                    Slot::Answered(reply) => Poll::Ready(reply),
                    Slot::Waiting(_) | Slot::Abandoned => Poll::Ready(Err(Lost)),
                }
            }
            Slot::Abandoned => Poll::Ready(Err(Lost)),
        }
    }
}

impl<R> Drop for Answer<R> {
    fn drop(&mut self) {
        let unwanted = {
            let mut table = self.calls.table.borrow_mut();
            match &mut table.slots[self.slot as usize] {
                waiting @ Slot::Waiting(_) => {
                    *waiting = Slot::Abandoned;
                    return;
                }
                Slot::Answered(_) | Slot::Abandoned => table.slots.remove(self.slot as usize),
            }
        };
        self.calls.serve_line();
        drop(unwanted);
    }
}
