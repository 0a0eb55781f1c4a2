//! One connection to the endpoint: requests are signed, sent and answered on it one after the other.
//!
//! hyper's connection and the request that waits on it are polled by the same task, so a request costs no
//! switch between tasks. Nothing is ever retried: a failed request is an answer that the benchmark counts.
//! A connection that the server closed while it was idle is replaced before a request is sent on it.

mod body;
mod stream;

use std::fmt;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use http_body_util::BodyExt as _;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use self::body::Body;
pub(crate) use self::body::{Checksum, Payload};
use self::stream::Stream;
pub(crate) use self::stream::Tls;
use crate::signer::{Canonical, Credentials, Signer, UNSIGNED_PAYLOAD, UNSIGNED_TRAILER};

/// SHA-256 of nothing.
const EMPTY_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
/// Bytes of an error answer that are kept; the rest is dropped with the connection.
const ERROR_BODY_MAX: usize = 64 << 10;
/// Characters of a server's message that are worth showing.
const MESSAGE_CHARS_MAX: usize = 200;

/// RFC 3986's unreserved characters stay, as SigV4 asks.
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const PATH: &AsciiSet = &QUERY.remove(b'/');

/// Where requests go.
#[derive(Clone, Debug)]
pub struct Target {
    pub address: SocketAddr,
    /// The `Host` header.
    pub authority: String,
    pub tls: Option<Tls>,
    /// Of one operation, connecting included.
    pub timeout: Duration,
}

impl Target {
    pub fn url(&self) -> String {
        format!("{}://{}", if self.tls.is_some() { "https" } else { "http" }, self.authority)
    }
}

/// Why a request has no good answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No connection.
    Connect(String),
    /// The connection broke, or what came was no HTTP.
    Transport(String),
    Timeout,
    /// An answer other than 2xx. The code is the S3 error code, or `HTTP <status>` where there is no body.
    Refused {
        status: u16,
        code: String,
        message: String,
    },
    /// A 2xx answer that says something else than S3 documents.
    Malformed(String),
}

impl Failure {
    /// A short name under which failures are counted.
    pub fn label(&self) -> &str {
        match self {
            Self::Connect(_) => "(connect)",
            Self::Transport(_) => "(transport)",
            Self::Timeout => "(timeout)",
            Self::Refused { code, .. } => code,
            Self::Malformed(_) => "(malformed answer)",
        }
    }

    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(reason) => write!(f, "cannot connect: {reason}"),
            Self::Transport(reason) => write!(f, "connection failed: {reason}"),
            Self::Timeout => f.write_str("no answer within --timeout"),
            Self::Refused { status, code, message } => write!(f, "{status} {code} {message}"),
            Self::Malformed(reason) => write!(f, "malformed answer: {reason}"),
        }
    }
}

impl std::error::Error for Failure {}

/// A request before it is signed.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    pub method: Method,
    pub bucket: &'a str,
    pub key: Option<&'a str>,
    /// Unencoded, sorted by name.
    pub query: &'a [(&'a str, &'a str)],
    /// Unsigned headers.
    pub headers: &'a [(HeaderName, &'a str)],
    /// Headers that are signed: `x-amz-*`.
    pub amz_headers: &'a [(&'static str, &'a str)],
    pub payload: Payload,
}

impl<'a> Request<'a> {
    pub(crate) fn new(method: Method, bucket: &'a str, key: Option<&'a str>) -> Self {
        Self { method, bucket, key, query: &[], headers: &[], amz_headers: &[], payload: Payload::Empty }
    }
}

/// The head of a 2xx answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

type Connection = Pin<Box<http1::Connection<TokioIo<Stream>, Body>>>;

struct Link {
    sender: http1::SendRequest<Body>,
    /// None once it has ended: only its being dropped tells the sender.
    connection: Option<Connection>,
}

impl Link {
    /// Polls `future` and the connection that it waits for, in one task.
    async fn drive<F: Future>(connection: &mut Option<Connection>, future: F) -> F::Output {
        let mut future = pin!(future);
        poll_fn(|cx| {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(output);
            }
            Self::advance(connection, cx);
            // What the connection just received spares the task another round through the scheduler.
            future.as_mut().poll(cx)
        })
        .await
    }

    fn advance(connection: &mut Option<Connection>, cx: &mut Context<'_>) {
        if connection.as_mut().is_some_and(|connection| connection.as_mut().poll(cx).is_ready()) {
            *connection = None;
        }
    }
}

/// A slot's connection.
pub(crate) struct Client {
    target: Arc<Target>,
    signer: Signer,
    sign_payload: bool,
    link: Option<Link>,
}

impl Client {
    pub(crate) fn new(
        target: Arc<Target>,
        credentials: Credentials,
        region: &str,
        sign_payload: bool,
    ) -> Self {
        Self { target, signer: Signer::new(credentials, region), sign_payload, link: None }
    }

    /// Connects, so that the first request does not pay for it. When that fails, the first request will say so.
    pub(crate) async fn connect_ahead(&mut self) {
        let _ = tokio::time::timeout(self.target.timeout, self.connect()).await;
    }

    /// Sends one request; the body of a 2xx answer goes to `on_body` as it arrives. When `on_body` breaks,
    /// the rest is not read and the connection is given up.
    pub(crate) async fn exchange(
        &mut self,
        request: Request<'_>,
        on_body: impl FnMut(&Answer, &[u8]) -> ControlFlow<()>,
    ) -> Result<Answer, Failure> {
        let timeout = self.target.timeout;
        let outcome = match tokio::time::timeout(timeout, self.exchange_untimed(request, on_body)).await {
            Ok(outcome) => outcome,
            Err(_elapsed) => Err(Failure::Timeout),
        };
        if matches!(outcome, Err(Failure::Connect(_) | Failure::Transport(_) | Failure::Timeout)) {
            self.link = None;
        }
        outcome
    }

    /// As [`Self::exchange`], for a body of at most `len_max` bytes that is wanted whole.
    pub(crate) async fn exchange_whole(
        &mut self,
        request: Request<'_>,
        len_max: usize,
    ) -> Result<(Answer, Vec<u8>), Failure> {
        let mut whole = Vec::new();
        let mut too_long = false;
        let answer = self
            .exchange(request, |_, bytes| {
                too_long = whole.len() + bytes.len() > len_max;
                if too_long {
                    return ControlFlow::Break(());
                }
                whole.extend_from_slice(bytes);
                ControlFlow::Continue(())
            })
            .await?;
        if too_long {
            return Err(Failure::Malformed(format!("a body of more than {len_max} bytes")));
        }
        Ok((answer, whole))
    }

    async fn exchange_untimed(
        &mut self,
        request: Request<'_>,
        mut on_body: impl FnMut(&Answer, &[u8]) -> ControlFlow<()>,
    ) -> Result<Answer, Failure> {
        let request = self.sign(request);
        self.connect().await?;
        let Some(Link { sender, connection }) = &mut self.link else {
            return Err(Failure::Connect("no connection".to_owned()));
        };
        let transport = |error: hyper::Error| Failure::Transport(with_causes(&error));
        let mut unread = false;
        let exchange = async {
            let response = sender.send_request(request).await.map_err(transport)?;
            let (parts, mut body) = response.into_parts();
            let answer = Answer { status: parts.status, headers: parts.headers };
            let mut refusal = Vec::new();
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(transport)?;
                let Some(bytes) = frame.data_ref() else { continue };
                let flow = if answer.status.is_success() {
                    on_body(&answer, bytes)
                } else if refusal.len() + bytes.len() > ERROR_BODY_MAX {
                    ControlFlow::Break(())
                } else {
                    refusal.extend_from_slice(bytes);
                    ControlFlow::Continue(())
                };
                if flow.is_break() {
                    unread = true;
                    break;
                }
            }
            if answer.status.is_success() { Ok(answer) } else { Err(refused(answer.status, &refusal)) }
        };
        let outcome = Link::drive(connection, exchange).await;
        if unread {
            self.link = None;
        }
        outcome
    }

    /// Makes sure that there is a connection on which a request can be sent.
    async fn connect(&mut self) -> Result<(), Failure> {
        if let Some(Link { sender, connection }) = &mut self.link {
            // Polling the connection notices that the server closed it. No request was sent yet.
            poll_fn(|cx| {
                Link::advance(connection, cx);
                Poll::Ready(())
            })
            .await;
            let ready = Link::drive(connection, sender.ready()).await;
            if ready.is_ok() && connection.is_some() {
                return Ok(());
            }
            self.link = None;
        }
        let stream =
            Stream::connect(&self.target).await.map_err(|error| Failure::Connect(error.to_string()))?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| Failure::Connect(with_causes(&error)))?;
        self.link = Some(Link { sender, connection: Some(Box::pin(connection)) });
        Ok(())
    }

    fn sign(&mut self, request: Request<'_>) -> http::Request<Body> {
        let Request { method, bucket, key, query, headers, amz_headers, payload } = request;
        let mut path = String::with_capacity(128);
        if !bucket.is_empty() || key.is_none() {
            path.push('/');
            path.push_str(bucket);
        }
        if let Some(key) = key {
            path.push('/');
            path.extend(utf8_percent_encode(key, PATH));
        }
        let mut encoded_query = String::new();
        for (n, (name, value)) in query.iter().enumerate() {
            if n > 0 {
                encoded_query.push('&');
            }
            encoded_query.extend(utf8_percent_encode(name, QUERY));
            encoded_query.push('=');
            encoded_query.extend(utf8_percent_encode(value, QUERY));
        }

        let hash = match &payload {
            Payload::Empty => EMPTY_SHA256.to_owned(),
            payload if payload.has_trailer() => UNSIGNED_TRAILER.to_owned(),
            payload if self.sign_payload => payload.sha256(),
            Payload::Text(_) => payload.sha256(),
            Payload::Object { .. } => UNSIGNED_PAYLOAD.to_owned(),
        };
        let payload_headers = payload.amz_headers();
        let date = self.signer.date(time::UtcDateTime::now()).to_owned();
        let token = self.signer.session_token().map(str::to_owned);
        let mut signed: Vec<(&str, &str)> = Vec::with_capacity(8);
        signed.extend([
            ("host", self.target.authority.as_str()),
            ("x-amz-content-sha256", &hash),
            ("x-amz-date", &date),
        ]);
        signed.extend(amz_headers.iter().copied());
        signed.extend(payload_headers.iter().map(|(name, value)| (*name, value.as_str())));
        signed.extend(token.as_deref().map(|token| ("x-amz-security-token", token)));
        signed.sort_unstable_by_key(|(name, _)| *name);
        let canonical = Canonical {
            method: method.as_str(),
            path: &path,
            query: &encoded_query,
            headers: &signed,
            payload_hash: &hash,
        };
        let authorization = self.signer.authorization(&canonical, &date);

        let uri = if encoded_query.is_empty() { path } else { format!("{path}?{encoded_query}") };
        let mut unsigned: Vec<(HeaderName, &str)> = Vec::with_capacity(4);
        unsigned.push((http::header::AUTHORIZATION, &authorization));
        unsigned.push((http::header::USER_AGENT, concat!("basalt-bench/", env!("CARGO_PKG_VERSION"))));
        if payload.has_trailer() {
            unsigned.push((http::header::CONTENT_ENCODING, "aws-chunked"));
        }
        unsigned.extend(headers.iter().map(|(name, value)| (name.clone(), *value)));
        let mut sent = http::Request::new(Body::new(&payload));
        *sent.method_mut() = method;
        *sent.uri_mut() = uri.parse().expect("a percent-encoded path and query");
        let value = |text: &str| HeaderValue::from_str(text).expect("checked when the plan was made");
        for (name, text) in signed {
            sent.headers_mut()
                .insert(HeaderName::from_bytes(name.as_bytes()).expect("a header name"), value(text));
        }
        for (name, text) in unsigned {
            sent.headers_mut().insert(name, value(text));
        }
        sent
    }
}

fn refused(status: StatusCode, body: &[u8]) -> Failure {
    let text = String::from_utf8_lossy(body);
    let element = |name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        let (value, _) = rest.split_once('<')?;
        Some(value.chars().take(MESSAGE_CHARS_MAX).collect::<String>())
    };
    let code = element("Code").unwrap_or_else(|| format!("HTTP {}", status.as_u16()));
    Failure::Refused { status: status.as_u16(), code, message: element("Message").unwrap_or_default() }
}

/// An error and what caused it; hyper keeps the interesting half in the cause.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
