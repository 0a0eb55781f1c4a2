//! Timers of one core, in user space.
//!
//! Most timers are timeouts that never fire, so setting and removing must be cheap and removing must be real: an
//! ordered map, whose first entry is how long the ring may sleep.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::task::Waker;

use crate::clock::Monotonic;

#[derive(Default)]
pub(super) struct Timers {
    table: RefCell<Table>,
}

#[derive(Default)]
struct Table {
    /// The number tells timers of the same instant apart and keeps them in the order they were set.
    waiting: BTreeMap<(Monotonic, u64), Waker>,
    set_count: u64,
}

/// Names a timer that has not fired.
pub(super) type TimerKey = (Monotonic, u64);

impl Timers {
    pub(super) fn set(&self, deadline: Monotonic, waker: Waker) -> TimerKey {
        let mut table = self.table.borrow_mut();
        table.set_count += 1;
        let key = (deadline, table.set_count);
        table.waiting.insert(key, waker);
        key
    }

    /// Has `key` wake `waker` from now on.
    pub(super) fn update(&self, key: TimerKey, waker: &Waker) {
        if let Some(current) = self.table.borrow_mut().waiting.get_mut(&key) {
            current.clone_from(waker);
        }
    }

    pub(super) fn remove(&self, key: TimerKey) {
        let waker = self.table.borrow_mut().waiting.remove(&key);
        drop(waker);
    }

    pub(super) fn next_deadline(&self) -> Option<Monotonic> {
        self.table.borrow().waiting.first_key_value().map(|(&(deadline, _), _)| deadline)
    }

    pub(super) fn clear(&self) {
        let table = self.table.take();
        drop(table);
    }

    /// Wakes everything due at `now`, earliest first.
    pub(super) fn fire(&self, now: Monotonic) {
        loop {
            let waker = {
                let mut table = self.table.borrow_mut();
                match table.waiting.first_entry() {
                    Some(first) if first.key().0 <= now => first.remove(),
                    _ => return,
                }
            };
            waker.wake();
        }
    }
}
