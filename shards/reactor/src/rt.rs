//! hyper's I/O traits on the ring's streams.
//!
//! hyper hands writes over as borrowed slices, while the ring needs memory that stays until completion. A slice that
//! lies in this core's arena is therefore pinned by its address instead of being copied; only bytes from elsewhere
//! (response heads) are copied. `payload_bytes_copied` in [`crate::ring::Stats`] counts the copies that are too large
//! to be heads.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::rt::{Read, ReadBufCursor, Write};

use crate::net::Stream;

impl Read for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut out: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if out.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let take = |bytes: &[u8]| {
            let count = bytes.len().min(out.remaining());
            out.put_slice(&bytes[..count]);
            count
        };
        self.state().poll_receive(cx, take).map_ok(drop)
    }
}

impl Write for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.state().poll_send(cx, &[IoSlice::new(bytes)])
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.state().poll_send(cx, parts)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.state().poll_sent(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.state().poll_shutdown(cx)
    }
}
