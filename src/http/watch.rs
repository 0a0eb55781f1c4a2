//! Timeouts: one look at every connection of the core, four times a second.
//!
//! A timer per request would cost more than most requests. Instead each connection keeps a few cells up to date (what it
//! is doing, since when, how many bytes moved), and the core's watch compares them with the limits. What should
//! happen to an offender is a pure function, [`judge`]; carrying it out is a flag and a wake-up.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::Waker;

use basalt_reactor::Monotonic;
use slab::Slab;

use super::limits::{Limits, PROGRESS_LEN_MIN};

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Waiting for the rest of a request head, or for the first one after the accept.
    Head,
    /// A request is being served.
    Active,
    /// Kept alive, nothing received since the last answer.
    Idle,
    /// Being told why it is over; bounded on its own.
    Closing,
}

/// Why a connection is ended from outside its own flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    HeaderTimeout,
    IdleTimeout,
    ResponseTimeout,
    /// The server is shutting down: finish what is in flight, then close.
    Drain,
}

/// The watched state of one connection.
pub(super) struct Peer {
    pub phase: Cell<Phase>,
    /// When the phase began.
    pub since: Cell<Monotonic>,
    /// Request body bytes received.
    pub received: Cell<u64>,
    /// Bytes taken by the socket.
    pub sent: Cell<u64>,
    /// The handler waits for body bytes.
    pub body_wanted: Cell<bool>,
    /// The socket takes no bytes at the moment.
    pub write_blocked: Cell<bool>,
    pub body_expired: Cell<bool>,
    window: Cell<Option<Window>>,
    body_waker: RefCell<Option<Waker>>,
    task_waker: RefCell<Option<Waker>>,
    verdict: Cell<Option<Verdict>>,
}

/// A stretch of time in which one direction has to make progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Window {
    direction: Direction,
    start: Monotonic,
    /// The direction's byte count at the start.
    bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Body,
    Response,
}

/// What a look at a connection found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judgement {
    Fine,
    /// Look again when the window has passed.
    Watch(Window),
    BodyTooSlow,
    End(Verdict),
}

/// The connections of one core.
#[derive(Default)]
pub(super) struct Watch {
    peers: RefCell<Slab<Rc<Peer>>>,
}

/// Verdicts handed down by one look, for the metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Verdicts {
    pub header: u64,
    pub idle: u64,
    pub body: u64,
    pub response: u64,
}

impl Peer {
    pub(super) fn new(now: Monotonic) -> Peer {
        Peer {
            phase: Cell::new(Phase::Head),
            since: Cell::new(now),
            received: Cell::new(0),
            sent: Cell::new(0),
            body_wanted: Cell::new(false),
            write_blocked: Cell::new(false),
            body_expired: Cell::new(false),
            window: Cell::new(None),
            body_waker: RefCell::new(None),
            task_waker: RefCell::new(None),
            verdict: Cell::new(None),
        }
    }

    pub(super) fn enter(&self, phase: Phase, now: Monotonic) {
        self.phase.set(phase);
        self.since.set(now);
    }

    /// The handler waits for body bytes; `waker` is woken when it has waited too long.
    pub(super) fn want_body(&self, waker: &Waker) {
        self.body_wanted.set(true);
        remember(&self.body_waker, waker);
    }

    /// The verdict handed down since the last call; `waker` is woken by the next.
    pub(super) fn poll_verdict(&self, waker: &Waker) -> Option<Verdict> {
        let verdict = self.verdict.take();
        if verdict.is_none() {
            remember(&self.task_waker, waker);
        }
        verdict
    }

    fn hand_down(&self, verdict: Verdict) {
        self.verdict.set(Some(verdict));
        if let Some(waker) = self.task_waker.take() {
            waker.wake();
        }
    }

    fn expire_body(&self) {
        self.body_expired.set(true);
        if let Some(waker) = self.body_waker.take() {
            waker.wake();
        }
    }
}

fn remember(slot: &RefCell<Option<Waker>>, waker: &Waker) {
    let mut slot = slot.borrow_mut();
    if !slot.as_ref().is_some_and(|held| held.will_wake(waker)) {
        *slot = Some(waker.clone());
    }
}

impl Watch {
    /// Adds a connection; the number takes it out again.
    pub(super) fn add(&self, peer: Rc<Peer>) -> usize {
        self.peers.borrow_mut().insert(peer)
    }

    pub(super) fn remove(&self, index: usize) {
        self.peers.borrow_mut().remove(index);
    }

    pub(super) fn len(&self) -> usize {
        self.peers.borrow().len()
    }

    /// Looks at every connection once.
    pub(super) fn look(&self, now: Monotonic, limits: &Limits) -> Verdicts {
        let mut verdicts = Verdicts::default();
        for (_, peer) in self.peers.borrow().iter() {
            let judgement = judge(peer, now, limits);
            peer.window.set(if let Judgement::Watch(window) = judgement { Some(window) } else { None });
            match judgement {
                Judgement::Fine | Judgement::Watch(_) => {}
                Judgement::BodyTooSlow => {
                    verdicts.body += 1;
                    peer.expire_body();
                }
                Judgement::End(verdict) => {
                    match verdict {
                        Verdict::HeaderTimeout => verdicts.header += 1,
                        Verdict::IdleTimeout => verdicts.idle += 1,
                        Verdict::ResponseTimeout => verdicts.response += 1,
                        Verdict::Drain => {}
                    }
                    peer.hand_down(verdict);
                }
            }
        }
        verdicts
    }

    /// Asks every connection to end after the request it is serving.
    pub(super) fn drain(&self) {
        for (_, peer) in self.peers.borrow().iter() {
            peer.hand_down(Verdict::Drain);
        }
    }
}

fn judge(peer: &Peer, now: Monotonic, limits: &Limits) -> Judgement {
    let lasted = now.since(peer.since.get());
    match peer.phase.get() {
        Phase::Closing => Judgement::Fine,
        Phase::Head if lasted >= limits.header_timeout => Judgement::End(Verdict::HeaderTimeout),
        Phase::Idle if lasted >= limits.idle_timeout => Judgement::End(Verdict::IdleTimeout),
        // An answer may still be on its way when the phase is Idle or Head already.
        _ if peer.write_blocked.get() => {
            match progress(peer, Direction::Response, peer.sent.get(), now, limits.response_timeout) {
                Some(window) => Judgement::Watch(window),
                None => Judgement::End(Verdict::ResponseTimeout),
            }
        }
        Phase::Active if peer.body_wanted.get() && !peer.body_expired.get() => {
            match progress(peer, Direction::Body, peer.received.get(), now, limits.body_timeout) {
                Some(window) => Judgement::Watch(window),
                None => Judgement::BodyTooSlow,
            }
        }
        _ => Judgement::Fine,
    }
}

/// The window to go on with, or `None` when one has passed without enough bytes.
fn progress(
    peer: &Peer,
    direction: Direction,
    bytes: u64,
    now: Monotonic,
    interval: std::time::Duration,
) -> Option<Window> {
    let fresh = Window { direction, start: now, bytes };
    let Some(window) = peer.window.get().filter(|window| window.direction == direction) else {
        return Some(fresh);
    };
    if now.since(window.start) < interval {
        return Some(window);
    }
    (bytes - window.bytes >= PROGRESS_LEN_MIN).then_some(fresh)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const TICK: Duration = Duration::from_millis(250);

    fn limits() -> Limits {
        Limits {
            connections_max: 10,
            header_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(2),
            response_timeout: Duration::from_secs(4),
        }
    }

    /// Looks every tick until a judgement ends the connection or `time` is over; `each` moves the world on.
    fn run(peer: &Peer, time: Duration, mut each: impl FnMut(&Peer)) -> (Duration, Judgement) {
        let mut now = peer.since.get();
        let end = now + time;
        loop {
            each(peer);
            let judgement = judge(peer, now, &limits());
            peer.window.set(if let Judgement::Watch(window) = judgement { Some(window) } else { None });
            if matches!(judgement, Judgement::End(_) | Judgement::BodyTooSlow) || now >= end {
                return (now.since(peer.since.get()), judgement);
            }
            now = now + TICK;
        }
    }

    #[test]
    fn silence_ends_a_head_and_an_idle_connection() {
        let peer = Peer::new(Monotonic(7));
        let (after, judgement) = run(&peer, Duration::from_secs(60), |_| {});
        assert_eq!((after, judgement), (Duration::from_secs(5), Judgement::End(Verdict::HeaderTimeout)));
        peer.phase.set(Phase::Idle);
        let (after, judgement) = run(&peer, Duration::from_secs(60), |_| {});
        assert_eq!((after, judgement), (Duration::from_secs(10), Judgement::End(Verdict::IdleTimeout)));
    }

    #[test]
    fn a_slow_handler_is_never_the_clients_fault() {
        let peer = Peer::new(Monotonic(0));
        peer.phase.set(Phase::Active);
        let (_, judgement) = run(&peer, Duration::from_secs(600), |_| {});
        assert_eq!(judgement, Judgement::Fine);
    }

    #[test]
    fn a_trickling_upload_is_given_up_and_a_moving_one_is_not() {
        let peer = Peer::new(Monotonic(0));
        peer.phase.set(Phase::Active);
        peer.body_wanted.set(true);
        let (after, judgement) =
            run(&peer, Duration::from_secs(60), |peer| peer.received.set(peer.received.get() + 1));
        assert_eq!((after, judgement), (Duration::from_secs(2), Judgement::BodyTooSlow));
        peer.window.set(None);
        let (_, judgement) = run(&peer, Duration::from_secs(60), |peer| {
            peer.received.set(peer.received.get() + PROGRESS_LEN_MIN / 8);
        });
        assert!(matches!(judgement, Judgement::Watch(_)));
    }

    #[test]
    fn a_reader_that_takes_nothing_is_cut() {
        let peer = Peer::new(Monotonic(0));
        peer.phase.set(Phase::Active);
        peer.write_blocked.set(true);
        let (after, judgement) = run(&peer, Duration::from_secs(60), |_| {});
        assert_eq!((after, judgement), (Duration::from_secs(4), Judgement::End(Verdict::ResponseTimeout)));
    }

    #[test]
    fn waiting_for_the_server_starts_the_window_anew() {
        let peer = Peer::new(Monotonic(0));
        peer.phase.set(Phase::Active);
        let mut tick = 0;
        let (_, judgement) = run(&peer, Duration::from_secs(60), |peer| {
            tick += 1;
            // Every second the handler is busy at the moment of the look.
            peer.body_wanted.set(tick % 4 != 0);
        });
        assert!(!matches!(judgement, Judgement::BodyTooSlow));
    }
}
