//! Responses: status, headers, and a body that reaches the socket without being copied.
//!
//! A body chunk is either ordinary bytes or a slice of the core's arena; hyper queues both as they are and the ring
//! sends arena memory in place. A streamed body is a future that writes into a one-chunk slot: it is polled only while
//! hyper has room, so a slow reader holds two chunks and no more, and it is dropped with its connection.

use std::any::Any;
use std::cell::RefCell;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use basalt_reactor::Slice;
use bytes::{Buf, Bytes};
use http::{HeaderMap, StatusCode};
use http_body::{Body, Frame, SizeHint};

use super::LocalBoxFuture;

/// An answer.
pub struct Response {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: ResponseBody,
    /// What the access log and the metrics should say about the request.
    pub note: Note,
    /// What the request was admitted with.
    pub memory: Option<Memory>,
}

/// Memory reserved for an answer, given back once its last byte has left.
pub struct Memory {
    /// Bytes of the body that may wait to be sent before more of it is produced; `u64::MAX` for no bound beyond hyper's.
    pub unsent_max: u64,
    /// Whatever stands for the reservation.
    pub hold: Box<dyn Any>,
}

/// What only the service knows about a request.
#[derive(Clone, Debug)]
pub struct Note {
    /// The S3 operation's name, for example `GetObject`.
    pub operation: &'static str,
    /// The S3 error code of a refusal.
    pub code: Option<&'static str>,
    pub access_key: Option<Box<str>>,
    pub bucket: Option<Box<str>>,
    pub key: Option<Box<str>>,
}

impl Default for Note {
    fn default() -> Note {
        Note { operation: "Unknown", code: None, access_key: None, bucket: None, key: None }
    }
}

/// The bytes of an answer.
#[derive(Default)]
pub enum ResponseBody {
    #[default]
    Empty,
    /// All of it in one piece.
    Whole(Chunk),
    Stream(BodyProducer),
}

/// One piece of a body.
#[derive(Clone)]
pub enum Chunk {
    Bytes(Bytes),
    Slice(Slice),
}

/// A body cannot be completed. The connection is cut, so that the client sees that bytes are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyAborted;

impl fmt::Display for BodyAborted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the response body could not be completed")
    }
}

impl std::error::Error for BodyAborted {}

/// A body in the making; see [`ResponseBody::produce`].
pub struct BodyProducer {
    future: Option<LocalBoxFuture<Result<(), BodyAborted>>>,
    slot: Rc<RefCell<Option<Chunk>>>,
    /// Bytes still owed when the length was announced.
    remaining: Option<u64>,
}

/// The producing end of a streamed body.
pub struct BodyWriter {
    slot: Rc<RefCell<Option<Chunk>>>,
}

impl Response {
    pub fn new(status: StatusCode) -> Response {
        Response {
            status,
            headers: HeaderMap::new(),
            body: ResponseBody::Empty,
            note: Note::default(),
            memory: None,
        }
    }

    #[must_use]
    pub fn with_body(mut self, body: ResponseBody) -> Response {
        self.body = body;
        self
    }
}

impl ResponseBody {
    /// A body that `produce` writes piece by piece, each piece as soon as the connection has room for it.
    ///
    /// With `length`, exactly that many bytes must be written before the future ends with `Ok`; otherwise the
    /// connection is cut. Without, the body is sent chunked, each piece at once (keep-alive whitespace while an
    /// operation works, then its result).
    ///
    /// The future is dropped, finished or not, when the last announced byte is taken or the connection dies: pins and
    /// leases it holds must be released by `Drop`.
    pub fn produce<F>(length: Option<u64>, produce: impl FnOnce(BodyWriter) -> F) -> ResponseBody
    where
        F: Future<Output = Result<(), BodyAborted>> + 'static,
    {
        let slot = Rc::new(RefCell::new(None));
        let writer = BodyWriter { slot: Rc::clone(&slot) };
        let future = Some(Box::pin(produce(writer)) as LocalBoxFuture<_>);
        ResponseBody::Stream(BodyProducer { future, slot, remaining: length })
    }

    /// Bytes of the whole body where they are known.
    pub fn len(&self) -> Option<u64> {
        match self {
            ResponseBody::Empty => Some(0),
            ResponseBody::Whole(chunk) => Some(chunk.remaining() as u64),
            ResponseBody::Stream(producer) => producer.remaining,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == Some(0)
    }
}

impl BodyWriter {
    /// Hands one piece to the connection; waits while the previous one has not been taken. Work started before this
    /// call, such as the read of the next piece, goes on meanwhile.
    pub async fn send(&mut self, chunk: impl Into<Chunk>) {
        // The body polls this future again whenever it has taken the chunk, so no waker needs to be kept.
        poll_fn(|_| if self.slot.borrow().is_none() { Poll::Ready(()) } else { Poll::Pending }).await;
        let chunk = chunk.into();
        if chunk.has_remaining() {
            *self.slot.borrow_mut() = Some(chunk);
        }
    }
}

impl BodyProducer {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Chunk, BodyAborted>>> {
        if let Some(chunk) = self.slot.borrow_mut().take() {
            return Poll::Ready(Some(Ok(chunk)));
        }
        if let Some(future) = &mut self.future {
            let finished = future.as_mut().poll(cx);
            if finished.is_ready() {
                self.future = None;
            }
            if finished == Poll::Ready(Err(BodyAborted)) {
                return Poll::Ready(Some(Err(BodyAborted)));
            }
        }
        match self.slot.borrow_mut().take() {
            Some(chunk) => Poll::Ready(Some(Ok(chunk))),
            None if self.future.is_some() => Poll::Pending,
            None => Poll::Ready(None),
        }
    }
}

impl Body for ResponseBody {
    type Data = Chunk;
    type Error = BodyAborted;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, BodyAborted>>> {
        let this = self.get_mut();
        match this {
            ResponseBody::Empty => Poll::Ready(None),
            ResponseBody::Whole(_) => {
                let ResponseBody::Whole(chunk) = std::mem::take(this) else {
                    unreachable!("matched just now")
                };
                Poll::Ready(chunk.has_remaining().then_some(Ok(Frame::data(chunk))))
            }
            ResponseBody::Stream(producer) => {
                let next = std::task::ready!(producer.poll_next(cx));
                let next = match (next, &mut producer.remaining) {
                    (Some(Ok(chunk)), Some(remaining)) => {
                        match remaining.checked_sub(chunk.remaining() as u64) {
                            Some(rest) => {
                                *remaining = rest;
                                Some(Ok(chunk))
                            }
                            // More than announced would be read as the next answer.
                            None => Some(Err(BodyAborted)),
                        }
                    }
                    (None, Some(1..)) => Some(Err(BodyAborted)),
                    (next, _) => next,
                };
                Poll::Ready(next.map(|chunk| chunk.map(Frame::data)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        self.len().map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Buf for Chunk {
    fn remaining(&self) -> usize {
        match self {
            Chunk::Bytes(bytes) => bytes.remaining(),
            Chunk::Slice(slice) => slice.remaining(),
        }
    }

    fn chunk(&self) -> &[u8] {
        match self {
            Chunk::Bytes(bytes) => bytes.chunk(),
            Chunk::Slice(slice) => slice.chunk(),
        }
    }

    fn advance(&mut self, count: usize) {
        match self {
            Chunk::Bytes(bytes) => bytes.advance(count),
            Chunk::Slice(slice) => slice.advance(count),
        }
    }
}

impl From<Bytes> for Chunk {
    fn from(bytes: Bytes) -> Chunk {
        Chunk::Bytes(bytes)
    }
}

impl From<Slice> for Chunk {
    fn from(slice: Slice) -> Chunk {
        Chunk::Slice(slice)
    }
}

impl From<String> for ResponseBody {
    fn from(text: String) -> ResponseBody {
        ResponseBody::Whole(Chunk::Bytes(Bytes::from(text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;

    /// Polls `body` to its end, as hyper does.
    fn collect(mut body: ResponseBody) -> Result<Vec<u8>, BodyAborted> {
        let mut cx = Context::from_waker(Waker::noop());
        let mut out = Vec::new();
        while !body.is_end_stream() {
            match Pin::new(&mut body).poll_frame(&mut cx) {
                Poll::Ready(Some(frame)) => {
                    out.extend_from_slice(frame?.data_ref().expect("only data").chunk());
                }
                Poll::Ready(None) => break,
                Poll::Pending => panic!("nothing here waits for anything but the slot"),
            }
        }
        Ok(out)
    }

    fn produced(length: Option<u64>, end: Result<(), BodyAborted>) -> ResponseBody {
        ResponseBody::produce(length, async move |mut writer| {
            for piece in ["one ", "", "two ", "three"] {
                writer.send(Bytes::from_static(piece.as_bytes())).await;
            }
            end
        })
    }

    #[test]
    fn pieces_arrive_in_order_with_and_without_a_length() {
        assert_eq!(collect(produced(None, Ok(()))).expect("complete"), b"one two three");
        assert_eq!(collect(produced(Some(13), Ok(()))).expect("complete"), b"one two three");
    }

    #[test]
    fn a_wrong_length_or_a_failure_cuts_the_connection() {
        assert_eq!(collect(produced(Some(14), Ok(()))), Err(BodyAborted), "too short");
        assert_eq!(collect(produced(Some(12), Ok(()))), Err(BodyAborted), "too long");
        assert_eq!(collect(produced(None, Err(BodyAborted))), Err(BodyAborted));
        assert_eq!(collect(produced(Some(20), Err(BodyAborted))), Err(BodyAborted));
    }
}
