//! A core's front door: accepting, the connection cap, the watch's rounds, and shutting down.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use basalt_reactor::Core;
use basalt_reactor::net::{Listener, Stream};
use basalt_reactor::ring;
use http::HeaderValue;

use super::connection::{say_and_close, serve, shake_hands};
use super::endpoints::Probes;
use super::limits::{Limits, REFUSALS_MAX, WATCH_INTERVAL};
use super::refusal::refusal_bytes;
use super::tls::{Acceptor, Certificate};
use super::watch::Watch;
use super::wire::Transport;
use super::{Handler, RequestId};
use crate::logging::access::AccessLog;
use crate::metrics::{CoreMetrics, Metrics, Scalar};
use crate::s3::error::{ErrorCode, S3Error};

/// How long accepting rests after an error such as EMFILE: the connection stays in the kernel's queue meanwhile.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The HTTP side of one core.
pub struct Front {
    pub(super) core: Core,
    pub(super) handler: Handler,
    pub(super) probes: Probes,
    pub(super) access: AccessLog,
    pub(super) host_id: Rc<str>,
    pub(super) host_id_header: HeaderValue,
    pub(super) watch: Watch,
    limits: Limits,
    metrics: Metrics,
    acceptor: Option<Acceptor>,
    /// State of the generator of request ids.
    ids: Cell<u64>,
    refusals: Cell<usize>,
    draining: Cell<bool>,
    date: RefCell<(u64, Rc<str>)>,
}

/// What a [`Front`] is made of.
pub struct FrontParts {
    pub core: Core,
    pub handler: Handler,
    pub probes: Probes,
    pub access: AccessLog,
    pub limits: Limits,
    pub metrics: Metrics,
    pub certificate: Option<Arc<Certificate>>,
    /// The process's `x-amz-id-2`: visible ASCII.
    pub host_id: String,
}

impl Front {
    /// # Panics
    /// If the host id is not a header value.
    pub fn new(parts: FrontParts) -> Rc<Front> {
        let host_id_header = HeaderValue::from_str(&parts.host_id).expect("a host id is visible ASCII");
        let ids = Cell::new(parts.core.random_u64());
        Rc::new(Front {
            core: parts.core,
            handler: parts.handler,
            probes: parts.probes,
            access: parts.access,
            host_id: Rc::from(parts.host_id),
            host_id_header,
            watch: Watch::default(),
            limits: parts.limits,
            metrics: parts.metrics,
            acceptor: parts.certificate.map(Acceptor::new),
            ids,
            refusals: Cell::new(0),
            draining: Cell::new(false),
            date: RefCell::new((0, Rc::from(""))),
        })
    }

    /// Accepts until the future is dropped, which also closes the listening socket.
    pub async fn accept_all(self: Rc<Self>, listener: Listener) {
        let local = listener.local_addr();
        loop {
            match listener.accept().await {
                Ok((stream, remote)) => self.admit(stream, remote, local),
                Err(error) => {
                    self.metrics().add(Scalar::AcceptErrors, 1);
                    tracing::warn!(%error, "cannot accept a connection");
                    self.core.sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// The watch's rounds, metrics samples and log flushes, until the future is dropped.
    pub async fn watch_all(self: Rc<Self>) {
        loop {
            self.core.sleep(WATCH_INTERVAL).await;
            self.round();
        }
    }

    /// One round of the watch; also called before a scrape, so that it shows this moment.
    pub fn round(&self) {
        let metrics = self.metrics();
        let verdicts = self.watch.look(self.core.now(), &self.limits);
        metrics.add(Scalar::HeaderTimeouts, verdicts.header);
        metrics.add(Scalar::IdleTimeouts, verdicts.idle);
        metrics.add(Scalar::BodyTimeouts, verdicts.body);
        metrics.add(Scalar::ResponseTimeouts, verdicts.response);
        metrics.sample(&ring::stats(&self.core), &self.core.arena().usage());
        self.access.flush();
    }

    /// Lets requests in flight finish, closes every other connection, and returns when none is left.
    pub async fn drain(&self) {
        self.draining.set(true);
        while self.watch.len() > 0 {
            self.watch.drain();
            self.core.sleep(Duration::from_millis(20)).await;
        }
        self.access.flush();
    }

    /// Connections open now.
    pub fn connections(&self) -> usize {
        self.watch.len()
    }

    pub(super) fn metrics(&self) -> &CoreMetrics {
        self.metrics.core(usize::from(self.core.id().0))
    }

    /// Random-looking and never repeating within 2^64 (splitmix64, from a random start).
    pub(super) fn next_id(&self) -> RequestId {
        let state = self.ids.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.ids.set(state);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        RequestId::from_u64(mixed ^ (mixed >> 31))
    }

    /// The `Date` of answers that do not go through hyper.
    pub(super) fn date(&self) -> Rc<str> {
        let secs = self.core.wall().unix_secs();
        let mut date = self.date.borrow_mut();
        if date.0 != secs || date.1.is_empty() {
            *date = (secs, crate::s3::time::Timestamp::from_secs(secs).imf_fixdate().into());
        }
        Rc::clone(&date.1)
    }

    fn admit(self: &Rc<Self>, stream: Stream, remote: SocketAddr, local: SocketAddr) {
        if self.draining.get() {
            return;
        }
        if self.watch.len() >= self.limits.connections_max {
            self.metrics().add(Scalar::ConnectionsRefused, 1);
            self.turn_away(stream);
            return;
        }
        self.metrics().add(Scalar::ConnectionsAccepted, 1);
        let transport = match &self.acceptor {
            None => Transport::Plain(stream),
            Some(acceptor) => match acceptor.accept(stream) {
                Ok(stream) => Transport::Tls(Box::new(stream)),
                Err(error) => {
                    self.metrics().add(Scalar::TlsFailures, 1);
                    tracing::warn!(%error, "cannot start TLS");
                    return;
                }
            },
        };
        drop(self.core.spawn(serve(Rc::clone(self), transport, remote, local)));
    }

    /// Tells a client beyond the cap to slow down, over TLS if that is what it speaks; few at a time, as it costs what the
    /// cap protects. The others are just closed.
    fn turn_away(self: &Rc<Self>, stream: Stream) {
        if self.refusals.get() >= REFUSALS_MAX {
            return;
        }
        let transport = match &self.acceptor {
            None => Transport::Plain(stream),
            Some(acceptor) => match acceptor.accept(stream) {
                Ok(stream) => Transport::Tls(Box::new(stream)),
                Err(_) => return,
            },
        };
        self.refusals.set(self.refusals.get() + 1);
        let front = Rc::clone(self);
        drop(self.core.spawn(async move {
            let error = S3Error::new(ErrorCode::SlowDown);
            let bytes = refusal_bytes(&error, front.next_id(), &front.host_id, &front.date());
            let transport = Rc::new(RefCell::new(transport));
            if shake_hands(&front, &transport).await {
                say_and_close(&front, &transport, Some(bytes), true).await;
            }
            front.refusals.set(front.refusals.get() - 1);
        }));
    }
}
