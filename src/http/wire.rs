//! The byte stream under hyper: plain or TLS, with the connection's bookkeeping at the seam.
//!
//! hyper answers a request it cannot parse by itself, with a bare status. Such an answer is the only thing it writes
//! while no request is being served, so it is caught here and replaced by S3's XML with the usual headers.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use basalt_reactor::net::Stream;
use hyper::rt::{Read, ReadBufCursor, Write};

use super::connection::Connection;
use super::tls::TlsStream;
use super::watch::Phase;

/// An accepted stream.
pub(super) enum Transport {
    Plain(Stream),
    Tls(Box<TlsStream>),
}

/// What hyper reads from and writes to; the connection keeps the other share of the transport for the time after
/// hyper.
pub(super) struct Wire {
    pub transport: Rc<RefCell<Transport>>,
    pub connection: Rc<Connection>,
}

impl Wire {
    /// Runs one write attempt with the bookkeeping around it.
    fn write(
        &self,
        first: &[u8],
        total: usize,
        attempt: impl FnOnce(&mut Transport) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if self.connection.is_between_requests() {
            self.connection.catch_automatic_answer(first);
            return Poll::Ready(Ok(total));
        }
        let result = attempt(&mut self.transport.borrow_mut());
        let peer = &self.connection.peer;
        peer.write_blocked.set(result.is_pending());
        if let Poll::Ready(Ok(count)) = result {
            peer.sent.set(peer.sent.get() + count as u64);
            self.connection.wrote(count);
        }
        result
    }
}

impl Read for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut *self.transport.borrow_mut()).poll_read(cx, buf);
        if result.is_ready() && self.connection.peer.phase.get() == Phase::Idle {
            // Either the next head begins or the peer has closed; if it is the latter, hyper ends the connection.
            self.connection.enter(Phase::Head);
        }
        result
    }
}

impl Write for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.write(bytes, bytes.len(), |transport| Pin::new(transport).poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let first = bufs.iter().find(|buf| !buf.is_empty()).map_or(&[][..], |buf| buf);
        let total = bufs.iter().map(|buf| buf.len()).sum();
        self.write(first, total, |transport| Pin::new(transport).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut *self.transport.borrow_mut()).poll_flush(cx);
        self.connection.peer.write_blocked.set(result.is_pending());
        // hyper flushes only when it holds no byte back, so an answer that has been produced is out now.
        if matches!(result, Poll::Ready(Ok(()))) {
            self.connection.flushed();
        }
        result
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Everything is written; the connection shuts the transport down itself, after a last word if it has one.
        self.poll_flush(cx)
    }
}

impl Read for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Transport::Tls(stream) => Pin::new(&mut **stream).poll_read(cx, buf),
        }
    }
}

impl Write for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Transport::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Transport::Tls(stream) => Pin::new(&mut **stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Transport::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Transport::Tls(stream) => Pin::new(&mut **stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Transport::Tls(stream) => Pin::new(&mut **stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Transport::Tls(stream) => Pin::new(&mut **stream).poll_shutdown(cx),
        }
    }
}
