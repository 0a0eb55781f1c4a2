//! Request bodies: chunks as they arrive, or a typed reason why they stopped.
//!
//! The connection keeps a share of every body, so that after an answer it can tell whether the body was read to its
//! end, and discard a small rest. hyper sends `100 Continue` when a body is first polled: a handler that refuses an
//! upload before touching its body refuses it before it is sent.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::Body;
use hyper::body::Incoming;

use super::limits::DISCARD_LEN_MAX;
use super::watch::Peer;

/// Turns of the connection in which a small unread body may show that it has already arrived.
const DISCARD_TURNS: usize = 4;

/// Why a body stopped before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyError {
    /// The client closed or broke the connection, or the chunked framing is malformed: S3's `IncompleteBody`.
    Incomplete,
    /// Too few bytes per interval: S3's `RequestTimeout`.
    TooSlow,
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Incomplete => write!(f, "the request body ended early"),
            Self::TooSlow => write!(f, "the request body arrived too slowly"),
        }
    }
}

impl std::error::Error for BodyError {}

/// The body of a request, readable until the handler has answered. Dropping it unread is fine.
pub struct BodyStream {
    /// `None` when the request has no body.
    shared: Option<Rc<SharedBody>>,
}

/// What the handler's stream and the connection both hold.
pub(super) struct SharedBody {
    /// `None` once the answer has begun: hyper must see that nobody is going to read on.
    incoming: RefCell<Option<Incoming>>,
    peer: Rc<Peer>,
    length: Option<u64>,
    polled: Cell<bool>,
    ended: Cell<bool>,
    received: Cell<u64>,
}

impl BodyStream {
    /// A request without a body.
    pub fn empty() -> BodyStream {
        BodyStream { shared: None }
    }

    /// The body and, unless there is none, the connection's share of it.
    pub(super) fn new(incoming: Incoming, peer: Rc<Peer>) -> (BodyStream, Option<Rc<SharedBody>>) {
        if incoming.is_end_stream() {
            return (BodyStream::empty(), None);
        }
        let length = incoming.size_hint().exact();
        let shared = Rc::new(SharedBody {
            incoming: RefCell::new(Some(incoming)),
            peer,
            length,
            polled: Cell::new(false),
            ended: Cell::new(false),
            received: Cell::new(0),
        });
        (BodyStream { shared: Some(Rc::clone(&shared)) }, Some(shared))
    }

    /// Bytes the client announced; `None` when it sends in chunks without saying how many.
    pub fn content_length(&self) -> Option<u64> {
        match &self.shared {
            None => Some(0),
            Some(shared) => shared.length,
        }
    }

    /// The next bytes, never empty; `None` at the end. After an error there is nothing more.
    pub async fn next(&mut self) -> Option<Result<Bytes, BodyError>> {
        let shared = self.shared.as_ref()?;
        poll_fn(|cx| shared.poll_next(cx)).await
    }
}

impl SharedBody {
    /// Whether the body was read to its end, so that the next request can follow on the connection.
    pub(super) fn is_complete(&self) -> bool {
        self.ended.get()
    }

    pub(super) fn received(&self) -> u64 {
        self.received.get()
    }

    /// Reads to the end of a small body that is already here, without waiting for the network. A body whose client
    /// waits for `100 Continue` is left alone, since polling it would invite it.
    pub(super) async fn discard_arrived(&self, expects_continue: bool) {
        let small = self.length.is_some_and(|length| length <= DISCARD_LEN_MAX);
        if self.ended.get() || !small || (expects_continue && !self.polled.get()) {
            return;
        }
        for _ in 0..DISCARD_TURNS {
            let more = poll_fn(|cx| match self.poll_next(cx) {
                Poll::Ready(Some(Ok(_))) => Poll::Ready(true),
                Poll::Ready(_) => Poll::Ready(false),
                Poll::Pending => Poll::Ready(true),
            })
            .await;
            if !more {
                break;
            }
            // hyper hands over what it has read between two polls of the handler.
            yield_once().await;
        }
    }

    /// Ends the handler's part: hyper then reads no more for it.
    pub(super) fn abandon(&self) {
        self.peer.body_wanted.set(false);
        self.incoming.take();
    }

    fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        self.polled.set(true);
        if self.ended.get() {
            return Poll::Ready(None);
        }
        loop {
            let mut incoming = self.incoming.borrow_mut();
            let Some(body) = &mut *incoming else { return Poll::Ready(Some(Err(BodyError::Incomplete))) };
            let frame = match Pin::new(&mut *body).poll_frame(cx) {
                Poll::Ready(frame) => frame,
                Poll::Pending if self.peer.body_expired.get() => {
                    self.peer.body_wanted.set(false);
                    return Poll::Ready(Some(Err(BodyError::TooSlow)));
                }
                Poll::Pending => {
                    self.peer.want_body(cx.waker());
                    return Poll::Pending;
                }
            };
            self.peer.body_wanted.set(false);
            return match frame {
                None => {
                    self.ended.set(true);
                    Poll::Ready(None)
                }
                Some(Err(_)) => Poll::Ready(Some(Err(BodyError::Incomplete))),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) if !bytes.is_empty() => {
                        self.received.set(self.received.get() + bytes.len() as u64);
                        self.peer.received.set(self.peer.received.get() + bytes.len() as u64);
                        if body.is_end_stream() {
                            self.ended.set(true);
                        }
                        Poll::Ready(Some(Ok(bytes)))
                    }
                    // HTTP trailers carry nothing S3 knows (its own trailers are inside aws-chunked).
                    _ => continue,
                },
            };
        }
    }
}

async fn yield_once() {
    let mut yielded = false;
    poll_fn(|cx| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
