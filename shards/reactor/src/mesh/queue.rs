//! A bounded queue from one thread to one other, and the bell that tells the other to look.
//!
//! Lock-free and wait-free: each side owns one index and reads the other's only when its remembered copy says that
//! the queue is full or empty, so that a busy pair of cores shares a cache line once per batch and not once per
//! message. The bell is a flag swapped by both sides: whichever swap comes second sees what the other side did
//! before its own, so no message is overlooked and one wake-up serves any number of them. `cfg(loom)` checks both.

use std::mem::MaybeUninit;

use self::sync::{Arc, AtomicBool, AtomicUsize, Ordering, UnsafeCell};

#[cfg(not(loom))]
mod sync {
    pub(super) use std::sync::Arc;
    pub(super) use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    /// `std::cell::UnsafeCell` with loom's way of reaching in.
    pub(super) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

    impl<T> UnsafeCell<T> {
        pub(super) fn new(value: T) -> UnsafeCell<T> {
            UnsafeCell(std::cell::UnsafeCell::new(value))
        }

        pub(super) fn with_mut<R>(&self, reach: impl FnOnce(*mut T) -> R) -> R {
            reach(self.0.get())
        }
    }
}

#[cfg(loom)]
mod sync {
    pub(super) use loom::cell::UnsafeCell;
    pub(super) use loom::sync::Arc;
    pub(super) use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
}

/// Two cache lines, because the adjacent-line prefetcher pulls them in pairs.
#[repr(align(128))]
struct Padded<T>(T);

struct Shared<T> {
    /// Messages ever taken; written by the consumer alone.
    head: Padded<AtomicUsize>,
    /// Messages ever put in; written by the producer alone.
    tail: Padded<AtomicUsize>,
    /// The producer found the queue full and wants to hear of room.
    starved: Padded<AtomicBool>,
    slots: Box<[UnsafeCell<MaybeUninit<T>>]>,
}

// SAFETY: the indices hand each slot to one side at a time: the producer writes slots outside `head..tail`, the
// consumer reads slots inside, and each publishes with Release what the other reads with Acquire. Values cross
// threads, hence `T: Send`.
unsafe impl<T: Send> Sync for Shared<T> {}
// SAFETY: as above; nothing in it is tied to a thread.
unsafe impl<T: Send> Send for Shared<T> {}

/// The end that puts in.
pub(super) struct Producer<T> {
    shared: Arc<Shared<T>>,
    tail: usize,
    head_seen: usize,
}

/// The end that takes out.
pub(super) struct Consumer<T> {
    shared: Arc<Shared<T>>,
    head: usize,
    tail_seen: usize,
}

/// A queue of `capacity` messages, a power of two.
pub(super) fn queue<T>(capacity: usize) -> (Producer<T>, Consumer<T>) {
    assert!(capacity.is_power_of_two(), "the slot of an index is found by masking");
    let shared = Arc::new(Shared {
        head: Padded(AtomicUsize::new(0)),
        tail: Padded(AtomicUsize::new(0)),
        starved: Padded(AtomicBool::new(false)),
        slots: (0..capacity).map(|_| UnsafeCell::new(MaybeUninit::uninit())).collect(),
    });
    let producer = Producer { shared: Arc::clone(&shared), tail: 0, head_seen: 0 };
    (producer, Consumer { shared, head: 0, tail_seen: 0 })
}

impl<T> Shared<T> {
    fn slot(&self, index: usize) -> &UnsafeCell<MaybeUninit<T>> {
        &self.slots[index & (self.slots.len() - 1)]
    }
}

impl<T> Producer<T> {
    /// Puts `value` in, or hands it back when the queue is full; the consumer then says when there is room
    /// ([`Consumer::take_starved`]).
    pub(super) fn push(&mut self, value: T) -> Result<(), T> {
        if self.is_full() {
            // The flag first, then a second look: either we see the room or the consumer sees the flag.
            self.shared.starved.0.swap(true, Ordering::AcqRel);
            if self.is_full() {
                return Err(value);
            }
        }
        self.shared.slot(self.tail).with_mut(|slot| {
            // SAFETY: the slot lies outside `head..tail`, so the consumer does not touch it before the store below.
            unsafe { (*slot).write(value) };
        });
        self.tail = self.tail.wrapping_add(1);
        self.shared.tail.0.store(self.tail, Ordering::Release);
        Ok(())
    }

    fn is_full(&mut self) -> bool {
        if self.tail.wrapping_sub(self.head_seen) < self.shared.slots.len() {
            return false;
        }
        self.head_seen = self.shared.head.0.load(Ordering::Acquire);
        self.tail.wrapping_sub(self.head_seen) == self.shared.slots.len()
    }
}

impl<T> Consumer<T> {
    /// The oldest message.
    pub(super) fn pop(&mut self) -> Option<T> {
        if self.head == self.tail_seen {
            self.tail_seen = self.shared.tail.0.load(Ordering::Acquire);
            if self.head == self.tail_seen {
                return None;
            }
        }
        let value = self.shared.slot(self.head).with_mut(|slot| {
            // SAFETY: the slot lies inside `head..tail`, so it was written, and the producer does not touch it
            // before the store below.
            unsafe { (*slot).assume_init_read() }
        });
        self.head = self.head.wrapping_add(1);
        self.shared.head.0.store(self.head, Ordering::Release);
        Some(value)
    }

    /// Messages waiting.
    pub(super) fn len(&self) -> usize {
        self.shared.tail.0.load(Ordering::Acquire).wrapping_sub(self.head)
    }

    /// Whether the producer has been waiting for room since this was last asked. To be asked after taking out.
    pub(super) fn take_starved(&self) -> bool {
        self.shared.starved.0.swap(false, Ordering::AcqRel)
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        let (head, tail) = (self.head.0.load(Ordering::Acquire), self.tail.0.load(Ordering::Acquire));
        for index in 0..tail.wrapping_sub(head) {
            self.slot(head.wrapping_add(index)).with_mut(|slot| {
                // SAFETY: both ends are gone, and what lies inside `head..tail` was written and never taken.
                unsafe { (*slot).assume_init_drop() };
            });
        }
    }
}

/// Says whether somebody should be woken; the waking itself is the caller's.
pub(super) struct Bell {
    rung: Padded<AtomicBool>,
}

impl Bell {
    pub(super) fn new() -> Bell {
        Bell { rung: Padded(AtomicBool::new(false)) }
    }

    /// To be called after putting messages in. True if the sleeper must be woken, false if it has yet to answer an
    /// earlier ring and will then see these messages too.
    pub(super) fn ring(&self) -> bool {
        !self.rung.0.swap(true, Ordering::AcqRel)
    }

    /// To be called before looking for messages.
    pub(super) fn answer(&self) {
        self.rung.0.swap(false, Ordering::AcqRel);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_as_a_bounded_deque(steps in proptest::collection::vec(any::<bool>(), 0..200)) {
            let (mut producer, mut consumer) = queue(4);
            let mut model = VecDeque::new();
            for (index, put) in steps.into_iter().enumerate() {
                if put {
                    let fits = model.len() < 4;
                    prop_assert_eq!(producer.push(Box::new(index)).is_ok(), fits);
                    if fits {
                        model.push_back(Box::new(index));
                    }
                } else {
                    prop_assert_eq!(consumer.pop(), model.pop_front());
                }
                prop_assert_eq!(consumer.len(), model.len());
            }
        }
    }

    #[test]
    fn what_was_never_taken_is_dropped() {
        let value = std::rc::Rc::new(());
        let (mut producer, consumer) = queue(4);
        for _ in 0..3 {
            assert!(producer.push(std::rc::Rc::clone(&value)).is_ok());
        }
        drop((producer, consumer));
        assert_eq!(std::rc::Rc::strong_count(&value), 1);
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::thread;

    use super::*;

    #[test]
    fn loom_every_message_arrives_once_and_in_order() {
        loom::model(|| {
            let (mut producer, mut consumer) = queue(2);
            let sender = thread::spawn(move || {
                for value in 0..3_u32 {
                    let mut value = Box::new(value);
                    while let Err(back) = producer.push(value) {
                        value = back;
                        thread::yield_now();
                    }
                }
            });
            for expected in 0..3 {
                let value = loop {
                    match consumer.pop() {
                        Some(value) => break value,
                        None => thread::yield_now(),
                    }
                };
                assert_eq!(*value, expected);
            }
            sender.join().expect("sender");
        });
    }

    /// A receiver that sleeps unless the bell woke it never leaves a message behind.
    #[test]
    fn loom_a_message_is_never_overlooked() {
        loom::model(|| {
            let (mut producer, mut consumer) = queue::<u32>(2);
            let bell = Arc::new(Bell::new());
            let woken = Arc::new(AtomicUsize::new(0));
            let sender = {
                let (bell, woken) = (Arc::clone(&bell), Arc::clone(&woken));
                thread::spawn(move || {
                    for value in 0..2 {
                        assert!(producer.push(value).is_ok());
                        if bell.ring() {
                            woken.fetch_add(1, Ordering::AcqRel);
                        }
                    }
                })
            };
            let mut taken = 0;
            let mut turns = 0;
            while taken < 2 {
                // Sleeps until woken once more than it has had turns.
                while woken.load(Ordering::Acquire) == turns {
                    thread::yield_now();
                }
                turns += 1;
                bell.answer();
                while consumer.pop().is_some() {
                    taken += 1;
                }
            }
            sender.join().expect("sender");
        });
    }

    /// A producer that found the queue full and sleeps is told of room.
    #[test]
    fn loom_a_starved_producer_hears_of_room() {
        loom::model(|| {
            let (mut producer, mut consumer) = queue::<u32>(1);
            assert!(producer.push(0).is_ok());
            let told = Arc::new(AtomicBool::new(false));
            let receiver = {
                let told = Arc::clone(&told);
                thread::spawn(move || {
                    assert_eq!(consumer.pop(), Some(0));
                    if consumer.take_starved() {
                        told.store(true, Ordering::Release);
                    }
                    consumer
                })
            };
            if producer.push(1).is_err() {
                while !told.load(Ordering::Acquire) {
                    thread::yield_now();
                }
                assert!(producer.push(1).is_ok());
            }
            drop(receiver.join().expect("receiver"));
        });
    }
}
