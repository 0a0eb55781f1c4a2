//! Calls between cores: bounded single-producer single-consumer queues and batched wake-ups.
//!
//! The only way cores talk. A call carries a request to another core's [`Port`] and resolves with its reply. Every
//! call in flight owns a reply slot, so a reply never waits for room, and two cores can never wait for each other's
//! queue. A call to one's own core takes the same road, so that a shard has one entry whoever asks. A core that is
//! awake is never woken again; one wake-up serves every message of a turn.

use std::marker::PhantomData;

use crate::core::{Core, CoreId};

/// Calls one core may have in flight to one other core.
pub const CALLS_MAX: usize = 1024;

/// The ends of a mesh before its cores run: one seed per core, sent to that core's thread.
pub struct PortSeed<Q, R> {
    _kind: PhantomData<fn(Q) -> R>,
}

/// One core's end of the mesh. Cloning shares it.
pub struct Port<Q, R> {
    _kind: PhantomData<fn(Q) -> R>,
}

/// A request that arrived, with the right to answer it once. Dropping it unanswered resolves the call with [`Lost`].
pub struct Incoming<Q, R> {
    pub from: CoreId,
    pub request: Q,
    pub reply: Reply<R>,
}

/// The reserved slot of one call's reply. `!Send`: the reply is given on the core that received the request.
pub struct Reply<R> {
    _kind: PhantomData<R>,
}

/// The other core dropped the request without an answer (it is shutting down).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost;

/// Makes the mesh of `cores` cores.
#[must_use]
pub fn seeds<Q: Send + 'static, R: Send + 'static>(cores: u16) -> Vec<PortSeed<Q, R>> {
    let _ = cores;
    unimplemented!()
}

impl<Q: Send + 'static, R: Send + 'static> PortSeed<Q, R> {
    /// Binds this end to `core`, which must have the index the seed was made for.
    #[must_use]
    pub fn attach(self, core: &Core) -> Port<Q, R> {
        let _ = core;
        unimplemented!()
    }
}

impl<Q: Send + 'static, R: Send + 'static> Port<Q, R> {
    /// Sends `request` to `to` and waits for its reply. Waits for room in the queue first when [`CALLS_MAX`] calls
    /// are in flight. If the future is dropped, the request still takes effect and its reply is dropped here.
    ///
    /// # Errors
    /// [`Lost`] when the other core went away without an answer.
    pub async fn call(&self, to: CoreId, request: Q) -> Result<R, Lost> {
        let _ = (to, request);
        unimplemented!()
    }

    /// Sends `request` without waiting and without wanting the reply; usable from `Drop`. Queued on this core without
    /// a bound of its own: the caller bounds it (a notice returns a grant that a call handed out before).
    pub fn notify(&self, to: CoreId, request: Q) {
        let _ = (to, request);
        unimplemented!()
    }

    /// The next request for this core, in order per sender.
    pub async fn next(&self) -> Incoming<Q, R> {
        unimplemented!()
    }

    /// Requests queued towards this core and not yet taken (a gauge).
    #[must_use]
    pub fn backlog(&self) -> usize {
        unimplemented!()
    }
}

impl<Q, R> Clone for Port<Q, R> {
    fn clone(&self) -> Self {
        Port { _kind: PhantomData }
    }
}

impl<R> Reply<R> {
    /// Answers the call. Never waits.
    pub fn send(self, reply: R) {
        let _ = reply;
        unimplemented!()
    }
}
