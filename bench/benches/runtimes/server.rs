//! The servers: one per runtime, each as its own documentation would have it, with hyper and O_DIRECT in common.
//!
//! What differs is what is compared: rings or readiness, buffers, the adapter between hyper and the socket. What does not
//! belong to the runtime is here: the meaning of a path, the answer, a body of one piece.

mod basalt;
mod buffers;
mod glommio;
mod monoio;
mod tokio;

use std::convert::Infallible;
use std::error::Error;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Buf;
use clap::ValueEnum;
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use serde::Serialize;

use crate::content::BLOCK_LEN;

/// Longest run that is served, bytes.
const RUN_LEN_MAX: usize = 1 << 20;

/// Memory each runtime may use for reads, bytes: what it registers with the kernel, where it does.
const MEMORY_LEN: usize = 64 << 20;

/// Entries of a ring, where the runtime has one.
const RING_ENTRIES: u32 = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Runtime {
    Basalt,
    Glommio,
    Monoio,
    Tokio,
}

impl Runtime {
    pub(crate) const ALL: [Runtime; 4] = [Runtime::Basalt, Runtime::Glommio, Runtime::Monoio, Runtime::Tokio];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Runtime::Basalt => "basalt",
            Runtime::Glommio => "glommio",
            Runtime::Monoio => "monoio",
            Runtime::Tokio => "tokio",
        }
    }

    /// Serves `file` on this thread until the process ends.
    pub(crate) fn serve(self, file: &Path) -> Result<(), Box<dyn Error>> {
        match self {
            Runtime::Basalt => basalt::serve(file),
            Runtime::Glommio => glommio::serve(file),
            Runtime::Monoio => monoio::serve(file),
            Runtime::Tokio => tokio::serve(file),
        }
    }
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Any port of the loopback interface.
const ANY_PORT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Tells the parent that requests are welcome.
fn announce(addr: SocketAddr) {
    println!("listening {addr}");
}

/// Bytes of the file that a request asks for, both multiples of a block.
#[derive(Clone, Copy)]
struct Run {
    offset: u64,
    len: usize,
}

impl Run {
    /// `/LEN/INDEX` is the INDEX-th run of LEN bytes; `None` where the file has none.
    fn parse(path: &str, file_len: u64) -> Option<Run> {
        let (len, index) = path.strip_prefix('/')?.split_once('/')?;
        let (len, index): (usize, u64) = (len.parse().ok()?, index.parse().ok()?);
        if !(BLOCK_LEN..=RUN_LEN_MAX).contains(&len) || !len.is_multiple_of(BLOCK_LEN) {
            return None;
        }
        let offset = index.checked_mul(len as u64)?;
        (offset.checked_add(len as u64)? <= file_len).then_some(Run { offset, len })
    }
}

/// The answer to one request: 200 with the run, 404 where there is none, 500 where it cannot be read.
async fn answer<I, B: Buf>(
    request: Request<I>,
    file_len: u64,
    read: impl AsyncFnOnce(Run) -> io::Result<B>,
) -> Result<Response<Whole<B>>, Infallible> {
    let (status, body) = match Run::parse(request.uri().path(), file_len) {
        None => (StatusCode::NOT_FOUND, None),
        Some(run) => match read(run).await {
            Ok(bytes) if bytes.remaining() == run.len => (StatusCode::OK, Some(bytes)),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, None),
        },
    };
    let mut response = Response::new(Whole(body));
    *response.status_mut() = status;
    Ok(response)
}

/// A body of one piece, or of nothing.
struct Whole<B>(Option<B>);

impl<B: Buf + Unpin> Body for Whole<B> {
    type Data = B;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B>, Infallible>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.as_ref().map_or(0, |bytes| bytes.remaining() as u64))
    }
}
