//! Calls between cores: bounded single-producer single-consumer queues and batched wake-ups.
//!
//! The only way cores talk. A call carries a request to another core's [`Port`] and resolves with its reply. Every
//! call in flight owns a reply slot, so a reply never waits for room, and two cores can never wait for each other's
//! queue. A call to one's own core takes the same road, so that a shard has one entry whoever asks. A core that is
//! awake is never woken again; one wake-up serves every message of a turn.
//!
//! Each port has a task of its own on its core, the pump: it empties the incoming queues, wakes who waits for
//! what they held, and sends what the core's tasks have left in its outboxes since. Because the pump is a task like
//! any other, the mesh needs nothing of its world but wakers, and is the same on a ring and in a simulation.

mod calls;
mod queue;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use self::calls::Calls;
use self::queue::{Bell, Consumer, Producer, queue};
use crate::core::{Core, CoreId};

/// Calls one core may have in flight to one other core.
pub const CALLS_MAX: usize = 1024;

/// Messages the queue between two cores holds; more wait in the sender's outbox. A power of two.
const QUEUE_LEN: usize = 128;

/// In place of a slot: nobody waits for the reply.
const NO_SLOT: u32 = u32::MAX;

/// The ends of a mesh before its cores run: one seed per core, sent to that core's thread.
pub struct PortSeed<Q, R> {
    ends: Option<Ends<Q, R>>,
}

/// One core's end of the mesh. Cloning shares it.
pub struct Port<Q, R> {
    inner: Rc<Inner<Q, R>>,
}

/// A request that arrived, with the right to answer it once. Dropping it unanswered resolves the call with [`Lost`].
pub struct Incoming<Q, R> {
    pub from: CoreId,
    pub request: Q,
    pub reply: Reply<R>,
}

/// The reserved slot of one call's reply. `!Send`: the reply is given on the core that received the request.
pub struct Reply<R> {
    to: CoreId,
    slot: u32,
    port: Rc<dyn Answers<R>>,
}

/// The other core dropped the request without an answer (it is shutting down).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost;

enum Message<Q, R> {
    Request { slot: u32, request: Q },
    Reply { slot: u32, reply: Result<R, Lost> },
}

/// What the cores of a mesh share.
struct Commons {
    cores: Vec<Door>,
}

/// How to reach one core.
struct Door {
    bell: Bell,
    /// The pump's. A mutex, because a task's waker may change; it is taken once per batch and never contended for long.
    pump: Mutex<Option<Waker>>,
    /// This core takes and answers no more.
    closed: AtomicBool,
}

struct Ends<Q, R> {
    id: CoreId,
    commons: Arc<Commons>,
    producers: Vec<Producer<Message<Q, R>>>,
    consumers: Vec<Consumer<Message<Q, R>>>,
}

struct Inner<Q, R> {
    id: CoreId,
    commons: Arc<Commons>,
    outboxes: RefCell<Vec<Outbox<Q, R>>>,
    consumers: RefCell<Vec<Consumer<Message<Q, R>>>>,
    /// Per core called.
    calls: Vec<Rc<Calls<R>>>,
    /// Requests taken from the queues and not yet by [`Port::next`]: at most [`CALLS_MAX`] calls per core, and notices.
    inbox: RefCell<VecDeque<(CoreId, u32, Q)>>,
    takers: RefCell<Vec<Waker>>,
    /// The pump has been woken for what lies in the outboxes.
    pump_due: Cell<bool>,
}

struct Outbox<Q, R> {
    producer: Producer<Message<Q, R>>,
    waiting: VecDeque<Message<Q, R>>,
}

/// Makes the mesh of `cores` cores.
#[must_use]
pub fn seeds<Q: Send + 'static, R: Send + 'static>(cores: u16) -> Vec<PortSeed<Q, R>> {
    let count = usize::from(cores);
    let commons = Arc::new(Commons { cores: (0..count).map(|_| Door::new()).collect() });
    let mut producers: Vec<Vec<_>> = (0..count).map(|_| Vec::with_capacity(count)).collect();
    let mut consumers: Vec<Vec<_>> = (0..count).map(|_| Vec::with_capacity(count)).collect();
    for from in &mut producers {
        for to in &mut consumers {
            let (producer, consumer) = queue(QUEUE_LEN);
            from.push(producer);
            to.push(consumer);
        }
    }
    let ends = producers.into_iter().zip(consumers).zip(0..cores);
    ends.map(|((producers, consumers), index)| {
        let ends = Ends { id: CoreId(index), commons: Arc::clone(&commons), producers, consumers };
        PortSeed { ends: Some(ends) }
    })
    .collect()
}

impl<Q: Send + 'static, R: Send + 'static> PortSeed<Q, R> {
    /// Binds this end to `core`, which must have the index the seed was made for.
    ///
    /// # Panics
    /// If `core` has another index.
    #[must_use]
    pub fn attach(mut self, core: &Core) -> Port<Q, R> {
        let ends = self.ends.take().expect("a seed holds its ends until it is attached");
        assert_eq!(ends.id, core.id(), "a seed belongs to one core");
        let outboxes = ends.producers.into_iter();
        let outboxes = outboxes.map(|producer| Outbox { producer, waiting: VecDeque::new() }).collect();
        let inner = Rc::new(Inner {
            id: ends.id,
            calls: ends.commons.cores.iter().map(|_| Rc::new(Calls::new())).collect(),
            commons: ends.commons,
            outboxes: RefCell::new(outboxes),
            consumers: RefCell::new(ends.consumers),
            inbox: RefCell::new(VecDeque::new()),
            takers: RefCell::new(Vec::new()),
            pump_due: Cell::new(true),
        });
        core.spawn(Pump { inner: Rc::downgrade(&inner) });
        Port { inner }
    }
}

impl<Q, R> Drop for PortSeed<Q, R> {
    fn drop(&mut self) {
        if let Some(ends) = &self.ends {
            ends.commons.close(ends.id);
        }
    }
}

impl<Q: Send + 'static, R: Send + 'static> Port<Q, R> {
    /// Sends `request` to `to` and waits for its reply. Waits for room in the queue first when [`CALLS_MAX`] calls
    /// are in flight. If the future is dropped, the request still takes effect and its reply is dropped here.
    ///
    /// # Errors
    /// [`Lost`] when the other core went away without an answer.
    ///
    /// # Panics
    /// If the mesh has no core `to`.
    pub async fn call(&self, to: CoreId, request: Q) -> Result<R, Lost> {
        let calls = &self.inner.calls[usize::from(to.0)];
        let slot = calls.reserve().await?;
        let answer = calls.reply(slot);
        self.inner.post(to, Message::Request { slot, request });
        answer.await
    }

    /// Sends `request` without waiting and without wanting the reply; usable from `Drop`. Queued on this core without
    /// a bound of its own: the caller bounds it (a notice returns a grant that a call handed out before).
    ///
    /// # Panics
    /// If the mesh has no core `to`.
    pub fn notify(&self, to: CoreId, request: Q) {
        self.inner.post(to, Message::Request { slot: NO_SLOT, request });
    }

    /// The next request for this core, in order per sender.
    pub async fn next(&self) -> Incoming<Q, R> {
        poll_fn(|cx| {
            if let Some((from, slot, request)) = self.inner.inbox.borrow_mut().pop_front() {
                let port: Rc<dyn Answers<R>> = Rc::clone(&self.inner) as Rc<dyn Answers<R>>;
                return Poll::Ready(Incoming { from, request, reply: Reply { to: from, slot, port } });
            }
            let mut takers = self.inner.takers.borrow_mut();
            if !takers.iter().any(|taker| taker.will_wake(cx.waker())) {
                takers.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }

    /// Requests queued towards this core and not yet taken (a gauge).
    #[must_use]
    pub fn backlog(&self) -> usize {
        let queued: usize = self.inner.consumers.borrow().iter().map(Consumer::len).sum();
        queued + self.inner.inbox.borrow().len()
    }
}

impl<Q, R> Clone for Port<Q, R> {
    fn clone(&self) -> Self {
        Port { inner: Rc::clone(&self.inner) }
    }
}

impl<R> Reply<R> {
    /// Answers the call. Never waits.
    pub fn send(mut self, reply: R) {
        self.answer(Ok(reply));
    }

    fn answer(&mut self, reply: Result<R, Lost>) {
        let slot = std::mem::replace(&mut self.slot, NO_SLOT);
        if slot != NO_SLOT {
            self.port.answer(self.to, slot, reply);
        }
    }
}

impl<R> Drop for Reply<R> {
    fn drop(&mut self) {
        self.answer(Err(Lost));
    }
}

/// A port as seen by a reply, which does not know the requests' type.
trait Answers<R> {
    fn answer(&self, to: CoreId, slot: u32, reply: Result<R, Lost>);
}

impl<Q, R> Answers<R> for Inner<Q, R> {
    fn answer(&self, to: CoreId, slot: u32, reply: Result<R, Lost>) {
        self.post(to, Message::Reply { slot, reply });
    }
}

impl<Q, R> Inner<Q, R> {
    /// Leaves a message for the pump to send.
    fn post(&self, to: CoreId, message: Message<Q, R>) {
        self.outboxes.borrow_mut()[usize::from(to.0)].waiting.push_back(message);
        if !self.pump_due.replace(true) {
            self.commons.door(self.id).wake();
        }
    }

    /// Takes in what has arrived; true if there may be more.
    fn receive(&self) -> bool {
        let mut more = false;
        for (index, door) in self.commons.cores.iter().enumerate() {
            // Read before the queue: what a core sent before it closed is still taken.
            let closed = door.closed.load(Ordering::Acquire);
            let from = CoreId(index as u16);
            let mut taken = 0;
            while taken < QUEUE_LEN {
                let message = self.consumers.borrow_mut()[index].pop();
                match message {
                    Some(Message::Request { slot, request }) => {
                        self.inbox.borrow_mut().push_back((from, slot, request));
                    }
                    Some(Message::Reply { slot, reply }) => self.calls[index].answer(slot, reply),
                    None => break,
                }
                taken += 1;
            }
            more |= taken == QUEUE_LEN;
            if taken > 0 && self.consumers.borrow()[index].take_starved() && door.bell.ring() {
                door.wake();
            }
            if closed && taken < QUEUE_LEN {
                self.calls[index].lose();
            }
        }
        if !self.inbox.borrow().is_empty() {
            let takers = std::mem::take(&mut *self.takers.borrow_mut());
            takers.into_iter().for_each(Waker::wake);
        }
        more
    }

    /// Sends what the outboxes hold, as far as there is room, and rings once per core.
    fn send(&self) {
        self.pump_due.set(false);
        let mut undeliverable = Vec::new();
        for (index, door) in self.commons.cores.iter().enumerate() {
            let outbox = &mut self.outboxes.borrow_mut()[index];
            if self.calls[index].is_lost() {
                undeliverable.extend(outbox.waiting.drain(..));
                continue;
            }
            let mut sent = false;
            while let Some(message) = outbox.waiting.pop_front() {
                if let Err(message) = outbox.producer.push(message) {
                    outbox.waiting.push_front(message);
                    break;
                }
                sent = true;
            }
            if sent && door.bell.ring() {
                door.wake();
            }
        }
        // Outside the borrow, because dropping a request may post a notice.
        drop(undeliverable);
    }

    fn close(&self) {
        self.commons.close(self.id);
        self.calls.iter().for_each(|calls| calls.lose());
    }
}

impl<Q, R> Drop for Inner<Q, R> {
    fn drop(&mut self) {
        self.close();
    }
}

impl Commons {
    fn door(&self, id: CoreId) -> &Door {
        &self.cores[usize::from(id.0)]
    }

    /// Says to every core that `id` answers no more.
    fn close(&self, id: CoreId) {
        if self.door(id).closed.swap(true, Ordering::AcqRel) {
            return;
        }
        for door in &self.cores {
            if door.bell.ring() {
                door.wake();
            }
        }
    }
}

impl Door {
    fn new() -> Door {
        Door { bell: Bell::new(), pump: Mutex::new(None), closed: AtomicBool::new(false) }
    }

    fn wake(&self) {
        // Cloned out, so that no foreign code runs under the lock.
        let pump = self.pump.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(pump) = pump {
            pump.wake();
        }
    }
}

/// The task that moves a port's messages. Ends with its port.
struct Pump<Q, R> {
    inner: Weak<Inner<Q, R>>,
}

impl<Q, R> Future for Pump<Q, R> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(inner) = self.inner.upgrade() else { return Poll::Ready(()) };
        let door = inner.commons.door(inner.id);
        {
            let mut pump = door.pump.lock().unwrap_or_else(PoisonError::into_inner);
            if !pump.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                *pump = Some(cx.waker().clone());
            }
        }
        // The waker is in place and the bell answered before looking, so nothing sent from here on is overlooked.
        door.bell.answer();
        if inner.receive() {
            cx.waker().wake_by_ref();
        }
        inner.send();
        Poll::Pending
    }
}

impl<Q, R> Drop for Pump<Q, R> {
    fn drop(&mut self) {
        // The core is shutting down, whoever may still hold the port.
        if let Some(inner) = self.inner.upgrade() {
            inner.close();
        }
    }
}
