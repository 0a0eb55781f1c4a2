//! HTTP in front of the service: connections on hyper over the ring's streams, limits, TLS, bodies, health endpoints.
//!
//! One [`Front`] per core accepts connections and hands each request to the core's [`Handler`]. Everything a hostile or
//! slow peer can do is dealt with here, so that the service sees only requests that are well-formed HTTP within
//! [`limits`], with a body that either arrives or ends in a typed error. The handler may be dropped at any await
//! when its connection dies.

mod accept;
mod body;
mod connection;
mod endpoints;
mod id;
pub mod limits;
mod refusal;
mod response;
pub mod tls;
mod watch;
mod wire;

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;

use basalt_reactor::Monotonic;

pub use self::accept::{Front, FrontParts};
pub use self::body::{BodyError, BodyStream};
pub(crate) use self::endpoints::is_loopback;
pub use self::endpoints::{Probes, Readiness};
pub use self::id::RequestId;
pub use self::refusal::refuse;
pub use self::response::{BodyAborted, BodyWriter, Chunk, Memory, Note, Response, ResponseBody};

/// A request whose head has arrived and passed the limits.
pub struct Request {
    pub head: http::request::Parts,
    pub body: BodyStream,
    pub peer: SocketAddr,
    pub local: SocketAddr,
    /// Whether it came over TLS.
    pub tls: bool,
    pub id: RequestId,
    /// The value of `x-amz-id-2`, the same for every request of this process.
    pub host_id: Rc<str>,
    /// When the head was complete.
    pub started: Monotonic,
}

pub type LocalBoxFuture<T> = Pin<Box<dyn Future<Output = T>>>;

/// What answers requests: the service, or a test's stand-in.
pub type Handler = Rc<dyn Fn(Request) -> LocalBoxFuture<Response>>;
