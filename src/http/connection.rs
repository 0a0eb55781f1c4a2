//! One connection from its first byte to its close.
//!
//! hyper does the HTTP; this file decides what is around it: ids and headers of every answer, early refusals that
//! arrive (close announced, rest of the upload discarded within bounds, no reset), the verdicts of the watch, and
//! the record of each request for metrics and access log.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

use basalt_reactor::Monotonic;
use bytes::Bytes;
use http::header::{CONNECTION, EXPECT, HOST, SERVER as SERVER_NAME};
use http::{HeaderName, HeaderValue, StatusCode};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::rt::{Read, ReadBuf, Write};
use hyper::service::service_fn;

use super::accept::Front;
use super::body::{BodyStream, SharedBody};
use super::limits::{BUFFER_LEN_MAX, HEAD_LEN_MAX, LINGER_LEN_MAX, LINGER_TIME_MAX, URI_LEN_MAX};
use super::refusal::{SERVER, refusal_bytes, refuse};
use super::response::{BodyAborted, Chunk, Memory, Note, ResponseBody};
use super::watch::{Peer, Phase, Verdict};
use super::wire::{Transport, Wire};
use super::{Request, RequestId};
use crate::logging::access::AccessLine;
use crate::metrics::Scalar;
use crate::s3::error::{ErrorCode, S3Error};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-amz-request-id");
const HOST_ID: HeaderName = HeaderName::from_static("x-amz-id-2");
const CLOSE: HeaderValue = HeaderValue::from_static("close");
/// Bytes of hyper's own answer that are looked at: its status line.
const STATUS_LINE_LEN: usize = "HTTP/1.1 400".len();

/// The state of a connection, shared by hyper's two sides and the loop around it.
pub(super) struct Connection {
    front: Rc<Front>,
    pub(super) peer: Rc<Peer>,
    remote: SocketAddr,
    local: SocketAddr,
    tls: bool,
    /// The request being served.
    current: RefCell<Option<Record>>,
    /// The current answer's body has been produced (or dropped) in full.
    produced: Cell<bool>,
    /// Bytes of the answer's body that were produced and that the socket may not have taken, those among them that it is
    /// taking now, and who waits for it.
    unsent: Cell<u64>,
    in_flight: Cell<u64>,
    unsent_waker: RefCell<Option<Waker>>,
    /// Status of the answer hyper wanted to give by itself.
    automatic: Cell<Option<u16>>,
    /// The peer may still be sending what nobody is going to read.
    linger: Cell<bool>,
}

/// What will be logged and counted of a request.
struct Record {
    id: RequestId,
    method: http::Method,
    uri: http::Uri,
    wall: Duration,
    started: Monotonic,
    first_byte: Option<Monotonic>,
    body: Option<Rc<SharedBody>>,
    answer: Option<Answer>,
    sent: u64,
}

struct Answer {
    status: StatusCode,
    note: Note,
    /// Dropped when the answer has left.
    _memory: Option<Memory>,
}

/// Serves `transport` until it is over.
pub(super) async fn serve(front: Rc<Front>, transport: Transport, remote: SocketAddr, local: SocketAddr) {
    let peer = Rc::new(Peer::new(front.core.now()));
    let tls = matches!(transport, Transport::Tls(_));
    let watched = Watched::new(&front, &peer);
    let connection = Rc::new(Connection {
        front: Rc::clone(&front),
        peer,
        remote,
        local,
        tls,
        current: RefCell::new(None),
        produced: Cell::new(false),
        unsent: Cell::new(0),
        in_flight: Cell::new(0),
        unsent_waker: RefCell::new(None),
        automatic: Cell::new(None),
        linger: Cell::new(false),
    });
    let transport = Rc::new(RefCell::new(transport));
    let end = run_hyper(&connection, &transport).await;
    connection.finish(false);
    connection.close(&transport, end).await;
    drop(watched);
}

/// How the HTTP part of a connection ended.
enum End {
    /// By its own flow, with or without an error.
    Done,
    Cut(Verdict),
}

async fn run_hyper(connection: &Rc<Connection>, transport: &Rc<RefCell<Transport>>) -> End {
    let wire = Wire { transport: Rc::clone(transport), connection: Rc::clone(connection) };
    let service = service_fn(|request| Rc::clone(connection).answer(request));
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder
        .max_buf_size(BUFFER_LEN_MAX)
        .max_header_size(HEAD_LEN_MAX)
        // A client that has sent all it will send may still read its answer.
        .half_close(true)
        // The watch does the timing.
        .header_read_timeout(None);
    let mut http = pin!(builder.serve_connection(wire, service));
    poll_fn(|cx| {
        match connection.peer.poll_verdict(cx.waker()) {
            None => {}
            Some(Verdict::Drain) => http.as_mut().graceful_shutdown(),
            Some(verdict) => return Poll::Ready(End::Cut(verdict)),
        }
        http.as_mut().poll(cx).map(|result| {
            if let Err(error) = result {
                tracing::debug!(%error, "connection ended");
            }
            End::Done
        })
    })
    .await
}

impl Connection {
    pub(super) fn enter(&self, phase: Phase) {
        self.peer.enter(phase, self.front.core.now());
    }

    /// No request is being served: whatever is written now hyper says by itself.
    pub(super) fn is_between_requests(&self) -> bool {
        self.peer.phase.get() != Phase::Active
    }

    /// Keeps the status of hyper's own answer; ours is sent when hyper is done.
    pub(super) fn catch_automatic_answer(&self, bytes: &[u8]) {
        if self.automatic.get().is_none() {
            let status = bytes
                .get(..STATUS_LINE_LEN)
                .and_then(|line| std::str::from_utf8(&line[STATUS_LINE_LEN - 3..]).ok())
                .and_then(|digits| digits.parse().ok());
            self.automatic.set(Some(status.unwrap_or(400)));
            self.linger.set(true);
        }
    }

    /// A write of `count` bytes of an answer has begun; the one before it is over, as there is one at a time.
    pub(super) fn wrote(&self, count: usize) {
        self.sent(self.unsent.get().saturating_sub(self.in_flight.get()));
        self.in_flight.set(count as u64);
        if let Some(record) = &mut *self.current.borrow_mut()
            && record.first_byte.is_none()
            && record.answer.is_some()
        {
            record.first_byte = Some(self.front.core.now());
        }
    }

    /// The socket has taken everything hyper had.
    pub(super) fn flushed(&self) {
        self.in_flight.set(0);
        self.sent(0);
        if self.produced.get() && self.peer.phase.get() == Phase::Active {
            self.finish(true);
            self.enter(Phase::Idle);
        }
    }

    /// `unsent` bytes are left.
    fn sent(&self, unsent: u64) {
        self.unsent.set(unsent);
        let waker = self.unsent_waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// hyper's service: one request to one response.
    async fn answer(
        self: Rc<Self>,
        request: hyper::Request<Incoming>,
    ) -> Result<hyper::Response<OutgoingBody>, Infallible> {
        let front = Rc::clone(&self.front);
        let started = front.core.now();
        let id = front.next_id();
        let (head, incoming) = request.into_parts();
        let (body, shared) = BodyStream::new(incoming, Rc::clone(&self.peer));
        let expects_continue = head.headers.contains_key(EXPECT);
        self.begin(&head, id, started, shared.clone());

        let mut response = match self.refusal(&head) {
            Some(error) => {
                drop(body);
                refuse(&error, &head.method, head.uri.path(), id, &front.host_id)
            }
            None => match front.probes.answer(&head, self.remote) {
                Some(response) => response,
                None => {
                    let request = Request {
                        head,
                        body,
                        peer: self.remote,
                        local: self.local,
                        tls: self.tls,
                        id,
                        host_id: Rc::clone(&front.host_id),
                        started,
                    };
                    let handler = front.probes.handler_of(&request).unwrap_or(&front.handler);
                    handler(request).await
                }
            },
        };
        if shared.is_none() && expects_continue {
            // hyper says no `100 Continue` when there is nothing to wait for. botocore then carries this answer's
            // status over to the connection's next request, as if it had been read already; so there is no next one.
            response.headers.insert(CONNECTION, CLOSE);
        }
        if let Some(shared) = shared {
            shared.discard_arrived(expects_continue).await;
            shared.abandon();
            if !shared.is_complete() {
                // hyper closes such a connection; the client is told, and its bytes are taken off the wire.
                response.headers.insert(CONNECTION, CLOSE);
                self.linger.set(true);
            }
        }
        response.headers.insert(SERVER_NAME, SERVER);
        response.headers.insert(REQUEST_ID, id.header());
        response.headers.insert(HOST_ID, front.host_id_header.clone());
        let unsent_max = response.memory.as_ref().map_or(u64::MAX, |memory| memory.unsent_max);
        let answer = Answer { status: response.status, note: response.note, _memory: response.memory };
        if let Some(record) = &mut *self.current.borrow_mut() {
            record.answer = Some(answer);
        }
        let body = OutgoingBody { body: response.body, unsent_max, connection: self };
        let mut out = hyper::Response::new(body);
        *out.status_mut() = response.status;
        *out.headers_mut() = response.headers;
        Ok(out)
    }

    /// What hyper lets through and we do not.
    fn refusal(&self, head: &http::request::Parts) -> Option<S3Error> {
        let target_len = head.uri.path_and_query().map_or(0, |target| target.as_str().len());
        if target_len > URI_LEN_MAX {
            let message = "The request URI is longer than this server accepts.";
            return Some(S3Error::new(ErrorCode::InvalidURI).message(message));
        }
        // A proxy in front may have taken another of them for the host (RFC 9112, section 3.2).
        let mut hosts = head.headers.get_all(HOST).iter();
        hosts.nth(1).map(|_| S3Error::new(ErrorCode::BadRequest).message("A request has one Host header."))
    }

    fn begin(
        &self,
        head: &http::request::Parts,
        id: RequestId,
        started: Monotonic,
        body: Option<Rc<SharedBody>>,
    ) {
        // A pipelined request can begin before the answer to the previous one has been flushed.
        self.finish(self.produced.get());
        self.peer.enter(Phase::Active, started);
        self.peer.body_expired.set(false);
        self.produced.set(false);
        self.unsent.set(0);
        self.in_flight.set(0);
        self.front.metrics().add(Scalar::RequestsInFlight, 1);
        *self.current.borrow_mut() = Some(Record {
            id,
            method: head.method.clone(),
            uri: head.uri.clone(),
            wall: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default(),
            started,
            first_byte: None,
            body,
            answer: None,
            sent: 0,
        });
    }

    /// Records the end of the current request, if there is one.
    fn finish(&self, complete: bool) {
        let Some(record) = self.current.take() else { return };
        let now = self.front.core.now();
        let metrics = self.front.metrics();
        let total = now.since(record.started);
        let first_byte = record.first_byte.map(|at| at.since(record.started));
        let received = record.body.as_ref().map_or(0, |body| body.received());
        let unanswered = Note::default();
        let (status, note) =
            record.answer.as_ref().map_or((0, &unanswered), |answer| (answer.status.as_u16(), &answer.note));
        metrics.subtract(Scalar::RequestsInFlight, 1);
        metrics.add(Scalar::RequestBytes, received);
        metrics.add(Scalar::ResponseBytes, record.sent);
        metrics.request(note.operation, note.code, first_byte, total);
        let failed = if status == 0 { 500 } else { status };
        if self.front.access.wants(failed) {
            self.front.access.write(&AccessLine {
                time: record.wall,
                id: record.id,
                client: self.remote,
                access_key: note.access_key.as_deref(),
                method: record.method.as_str(),
                operation: note.operation,
                bucket: note.bucket.as_deref(),
                // Where the service named nothing, the path shows what was asked for.
                key: note.key.as_deref().or_else(|| note.bucket.is_none().then(|| record.uri.path())),
                status,
                code: note.code,
                bytes_in: received,
                bytes_out: record.sent,
                first_byte,
                total,
                complete,
            });
        }
    }

    /// Says a last word where one is due, and closes without a reset.
    async fn close(&self, transport: &Rc<RefCell<Transport>>, end: End) {
        self.enter(Phase::Closing);
        let error = match end {
            End::Cut(Verdict::HeaderTimeout) => Some(S3Error::new(ErrorCode::RequestTimeout)),
            End::Cut(Verdict::ResponseTimeout) => return,
            End::Cut(Verdict::IdleTimeout | Verdict::Drain) | End::Done => {
                self.automatic.take().map(automatic_error)
            }
        };
        if handshake_unfinished(&transport.borrow()) {
            self.front.metrics().add(Scalar::TlsFailures, 1);
            return;
        }
        let last_word = error.map(|error| {
            self.front.metrics().add(Scalar::RequestsMalformed, 1);
            self.linger.set(true);
            refusal_bytes(&error, self.front.next_id(), &self.front.host_id, &self.front.date())
        });
        say_and_close(&self.front, transport, last_word, self.linger.get()).await;
    }
}

/// The S3 error for the status hyper chose.
fn automatic_error(status: u16) -> S3Error {
    match status {
        431 => S3Error::new(ErrorCode::RequestHeaderSectionTooLarge),
        414 => {
            S3Error::new(ErrorCode::InvalidURI).message("The request URI is longer than this server accepts.")
        }
        _ => S3Error::new(ErrorCode::BadRequest),
    }
}

fn handshake_unfinished(transport: &Transport) -> bool {
    match transport {
        Transport::Plain(_) => false,
        Transport::Tls(stream) => stream.is_handshaking(),
    }
}

/// Finishes the TLS handshake, if there is one, so that something can be said; false when the client does not in time.
pub(super) async fn shake_hands(front: &Front, transport: &Rc<RefCell<Transport>>) -> bool {
    if !handshake_unfinished(&transport.borrow()) {
        return true;
    }
    // The handshake happens while the first bytes of a request are waited for.
    let mut scratch = [0; 1024];
    let mut buf = ReadBuf::new(&mut scratch);
    let mut deadline = pin!(front.core.sleep(LINGER_TIME_MAX));
    poll_fn(|cx| match Pin::new(&mut *transport.borrow_mut()).poll_read(cx, buf.unfilled()) {
        Poll::Ready(_) => Poll::Ready(()),
        Poll::Pending => deadline.as_mut().poll(cx),
    })
    .await;
    !handshake_unfinished(&transport.borrow())
}

/// Writes `last_word`, shuts the sending side down and, with `linger`, takes the peer's remaining bytes off the wire
/// until it closes too. Closing with unread bytes would reset the connection, and the reset could overtake the answer.
pub(super) async fn say_and_close(
    front: &Front,
    transport: &Rc<RefCell<Transport>>,
    last_word: Option<Bytes>,
    linger: bool,
) {
    let closing = async {
        if let Some(bytes) = last_word {
            write_all(transport, &bytes).await?;
        }
        poll_fn(|cx| Pin::new(&mut *transport.borrow_mut()).poll_shutdown(cx)).await?;
        if linger {
            discard(transport).await?;
        }
        io::Result::Ok(())
    };
    let mut closing = pin!(closing);
    let mut deadline = pin!(front.core.sleep(LINGER_TIME_MAX));
    poll_fn(|cx| match closing.as_mut().poll(cx) {
        Poll::Ready(_) => Poll::Ready(()),
        Poll::Pending => deadline.as_mut().poll(cx),
    })
    .await;
}

async fn write_all(transport: &Rc<RefCell<Transport>>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let count = poll_fn(|cx| Pin::new(&mut *transport.borrow_mut()).poll_write(cx, bytes)).await?;
        if count == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        bytes = &bytes[count..];
    }
    poll_fn(|cx| Pin::new(&mut *transport.borrow_mut()).poll_flush(cx)).await
}

async fn discard(transport: &Rc<RefCell<Transport>>) -> io::Result<()> {
    let mut scratch = vec![0; 16 << 10];
    let mut discarded = 0u64;
    while discarded < LINGER_LEN_MAX {
        let mut buf = ReadBuf::new(&mut scratch);
        poll_fn(|cx| Pin::new(&mut *transport.borrow_mut()).poll_read(cx, buf.unfilled())).await?;
        if buf.filled().is_empty() {
            break;
        }
        discarded += buf.filled().len() as u64;
    }
    Ok(())
}

/// Registers a connection with the watch and the metrics for as long as it lives.
struct Watched {
    front: Rc<Front>,
    index: usize,
}

impl Watched {
    fn new(front: &Rc<Front>, peer: &Rc<Peer>) -> Watched {
        let index = front.watch.add(Rc::clone(peer));
        front.metrics().set(Scalar::ConnectionsOpen, front.watch.len() as u64);
        Watched { front: Rc::clone(front), index }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.front.watch.remove(self.index);
        self.front.metrics().set(Scalar::ConnectionsOpen, self.front.watch.len() as u64);
    }
}

/// A response's body on its way through hyper.
struct OutgoingBody {
    body: ResponseBody,
    /// Bytes that may wait for the socket before more is produced: the memory of a slow reader is bounded by it.
    unsent_max: u64,
    connection: Rc<Connection>,
}

impl Body for OutgoingBody {
    type Data = Chunk;
    type Error = BodyAborted;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, BodyAborted>>> {
        let this = self.get_mut();
        let unsent = &this.connection.unsent;
        if unsent.get() >= this.unsent_max {
            *this.connection.unsent_waker.borrow_mut() = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let frame = Pin::new(&mut this.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &frame
            && let Some(chunk) = frame.data_ref()
        {
            let len = bytes::Buf::remaining(chunk) as u64;
            unsent.set(unsent.get() + len);
            if let Some(record) = &mut *this.connection.current.borrow_mut() {
                record.sent += len;
            }
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for OutgoingBody {
    fn drop(&mut self) {
        self.connection.produced.set(true);
    }
}
