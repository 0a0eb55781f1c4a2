//! Waiting between tasks of one core: a result handed over once, an event that many wait for, locks per key.
//!
//! All are local to a core and first come, first served; dropping a waiter at any moment loses nothing for the others.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

struct OnceState<T> {
    value: Option<T>,
    closed: bool,
    waker: Option<Waker>,
}

/// The giving end of a value that is handed over once. Dropped unused, the other end receives `None`.
pub(crate) struct Giver<T>(Rc<RefCell<OnceState<T>>>);

/// The receiving end; a future.
pub(crate) struct Taker<T>(Rc<RefCell<OnceState<T>>>);

/// A value handed over once.
pub(crate) fn once<T>() -> (Giver<T>, Taker<T>) {
    let state = Rc::new(RefCell::new(OnceState { value: None, closed: false, waker: None }));
    (Giver(Rc::clone(&state)), Taker(state))
}

impl<T> Giver<T> {
    pub(crate) fn give(self, value: T) {
        self.0.borrow_mut().value = Some(value);
        // Drop wakes the taker.
    }
}

impl<T> Drop for Giver<T> {
    fn drop(&mut self) {
        let waker = {
            let mut state = self.0.borrow_mut();
            state.closed = true;
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> Future for Taker<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let mut state = self.0.borrow_mut();
        if let Some(value) = state.value.take() {
            return Poll::Ready(Some(value));
        }
        if state.closed {
            return Poll::Ready(None);
        }
        state.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// Wakes everybody who waits for a change of some state; the state itself lives elsewhere.
#[derive(Default)]
pub(crate) struct Event {
    wakers: RefCell<Vec<Waker>>,
}

impl Event {
    pub(crate) fn notify(&self) {
        let wakers = std::mem::take(&mut *self.wakers.borrow_mut());
        for waker in wakers {
            waker.wake();
        }
    }

    /// Completes once `ready` says so; asks it again after every [`Event::notify`].
    pub(crate) async fn wait_until(&self, mut ready: impl FnMut() -> bool) {
        poll_fn(|cx| {
            if ready() {
                return Poll::Ready(());
            }
            let mut wakers = self.wakers.borrow_mut();
            if !wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
                wakers.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}

/// As [`Event`], for what hardly ever happens while many wait for it and for something else: whoever no longer waits is
/// forgotten.
#[derive(Default)]
pub(crate) struct RareEvent {
    wakers: RefCell<BTreeMap<u64, Waker>>,
    next_turn: Cell<u64>,
}

impl RareEvent {
    pub(crate) fn notify(&self) {
        let wakers = std::mem::take(&mut *self.wakers.borrow_mut());
        for waker in wakers.into_values() {
            waker.wake();
        }
    }

    /// Completes once `ready` says so; asks it again after every [`RareEvent::notify`].
    pub(crate) async fn wait_until(&self, mut ready: impl FnMut() -> bool) {
        let mut waiting = Waiting { event: self, turn: None };
        poll_fn(|cx| {
            if ready() {
                return Poll::Ready(());
            }
            waiting.begin(cx);
            Poll::Pending
        })
        .await;
    }

    #[cfg(test)]
    fn waiting_count(&self) -> usize {
        self.wakers.borrow().len()
    }
}

/// Somebody who waits for an event, until dropped.
struct Waiting<'a> {
    event: &'a RareEvent,
    turn: Option<u64>,
}

impl Waiting<'_> {
    fn begin(&mut self, cx: &Context<'_>) {
        let next = &self.event.next_turn;
        let turn = *self.turn.get_or_insert_with(|| next.replace(next.get() + 1));
        let mut wakers = self.event.wakers.borrow_mut();
        if !wakers.get(&turn).is_some_and(|waker| waker.will_wake(cx.waker())) {
            wakers.insert(turn, cx.waker().clone());
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(turn) = self.turn {
            self.event.wakers.borrow_mut().remove(&turn);
        }
    }
}

#[derive(Default)]
struct KeyQueue {
    /// Turns handed out; the one at the front holds the lock.
    turns: VecDeque<u64>,
    wakers: BTreeMap<u64, Waker>,
}

/// One lock per key, granted in the order it was asked for.
#[derive(Default)]
pub(crate) struct KeyLocks {
    queues: RefCell<BTreeMap<Vec<u8>, KeyQueue>>,
    next_turn: Cell<u64>,
}

/// Holds the lock of one key until dropped.
pub(crate) struct KeyGuard {
    locks: Rc<KeyLocks>,
    key: Vec<u8>,
    turn: u64,
}

impl KeyLocks {
    pub(crate) async fn lock(self: &Rc<Self>, key: &[u8]) -> KeyGuard {
        let turn = self.next_turn.get();
        self.next_turn.set(turn + 1);
        self.queues.borrow_mut().entry(key.to_vec()).or_default().turns.push_back(turn);
        // From here on the guard gives the turn back, also when this future is dropped while it waits.
        let guard = KeyGuard { locks: Rc::clone(self), key: key.to_vec(), turn };
        poll_fn(|cx| {
            let mut queues = guard.locks.queues.borrow_mut();
            let queue = queues.get_mut(&guard.key).expect("a queue lives as long as a turn in it");
            if queue.turns.front() == Some(&turn) {
                return Poll::Ready(());
            }
            queue.wakers.insert(turn, cx.waker().clone());
            Poll::Pending
        })
        .await;
        guard
    }
}

impl Drop for KeyGuard {
    fn drop(&mut self) {
        let waker = {
            let mut queues = self.locks.queues.borrow_mut();
            let queue = queues.get_mut(&self.key).expect("a queue lives as long as a turn in it");
            queue.turns.retain(|&turn| turn != self.turn);
            queue.wakers.remove(&self.turn);
            match queue.turns.front().copied() {
                Some(next) => queue.wakers.remove(&next),
                None => {
                    queues.remove(&self.key);
                    None
                }
            }
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    #[test]
    fn an_event_forgets_whoever_no_longer_waits() {
        let (event, happened) = (RareEvent::default(), Cell::new(false));
        let mut cx = Context::from_waker(Waker::noop());
        {
            let mut stays = pin!(event.wait_until(|| happened.get()));
            for _ in 0..3 {
                let mut goes = pin!(event.wait_until(|| happened.get()));
                assert!(
                    goes.as_mut().poll(&mut cx).is_pending() && stays.as_mut().poll(&mut cx).is_pending()
                );
                assert_eq!(event.waiting_count(), 2);
            }
            event.notify();
            assert!(stays.as_mut().poll(&mut cx).is_pending());
            assert_eq!(event.waiting_count(), 1);
            happened.set(true);
            event.notify();
            assert!(stays.as_mut().poll(&mut cx).is_ready());
        }
        assert_eq!(event.waiting_count(), 0);
    }
}
