//! TCP on the ring: listeners with multishot accept, and streams whose sends take arena slices without copying.
//!
//! Sockets exist only on a ring; the simulated world has none, because the engine knows none.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use crate::clock::Monotonic;
use crate::core::Core;
use crate::ring;
use crate::ring::listener::ListenerState;
use crate::ring::stream::StreamState;

/// Accepts connections for one core; several cores may bind the same address (SO_REUSEPORT).
pub struct Listener {
    state: Rc<ListenerState>,
    local: SocketAddr,
}

/// A connected TCP stream with TCP_NODELAY, bound to the core that accepted it. Implements hyper's `Read` and
/// `Write` (see [`crate::rt`]).
///
/// Dropping it gives up what is in flight; bytes that the socket had room for are still sent. The socket closes once
/// the kernel is done with every buffer.
pub struct Stream {
    state: Rc<StreamState>,
    peer: SocketAddr,
}

impl Listener {
    /// Listens on `addr` (port 0 picks one) with SO_REUSEPORT.
    ///
    /// # Errors
    /// `AddrInUse` and what else the kernel says.
    ///
    /// # Panics
    /// On a simulated core.
    pub fn bind(core: &Core, addr: SocketAddr) -> io::Result<Listener> {
        let state = ListenerState::bind(ring::ring_of(core), addr)?;
        let local = state.local_addr()?;
        Ok(Listener { state, local })
    }

    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// The next connection. Dropping the future loses none.
    ///
    /// # Errors
    /// `EMFILE` and the like; the listener stays usable. Such an error tends to last, so wait before the next call.
    pub async fn accept(&self) -> io::Result<(Stream, SocketAddr)> {
        loop {
            let socket = poll_fn(|cx| self.state.poll_accept(cx)).await?;
            // A peer that has already gone has no address any more.
            let Some(peer) = socket.peer_addr().ok().and_then(|addr| addr.as_socket()) else { continue };
            let state = StreamState::new(self.state.core(), socket)?;
            return Ok((Stream { state, peer }, peer));
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.state.close();
    }
}

impl Stream {
    /// Connects to `addr`.
    ///
    /// # Errors
    /// What the kernel says.
    ///
    /// # Panics
    /// On a simulated core.
    pub async fn connect(core: &Core, addr: SocketAddr) -> io::Result<Stream> {
        let core = ring::ring_of(core);
        let socket = ring::connect(core, addr).await?;
        socket.set_tcp_nodelay(true)?;
        Ok(Stream { state: StreamState::new(core, socket)?, peer: addr })
    }

    #[must_use]
    pub fn peer_addr(&self) -> SocketAddr {
        self.peer
    }

    /// Our end's address.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        let local = self.state.socket().local_addr()?;
        local.as_socket().ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
    }

    /// Closes so that an answer given before the request was read arrives: sends everything and the end of the stream,
    /// then reads and discards until the peer closes too, `len_max` bytes came, or `deadline` passed. A socket closed
    /// with unread bytes would answer with a reset, which may destroy the answer on its way.
    pub async fn linger(self, len_max: u64, deadline: Monotonic) {
        let core = Rc::clone(self.state.core());
        let mut timeout = pin!(core.sleep_until(deadline));
        let mut discarded = 0_u64;
        let mut shut = false;
        poll_fn(|cx| {
            if timeout.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            if !shut {
                match self.state.poll_shutdown(cx) {
                    Poll::Ready(Ok(())) => shut = true,
                    Poll::Ready(Err(_)) => return Poll::Ready(()),
                    Poll::Pending => {}
                }
            }
            while discarded < len_max {
                match self.state.poll_receive(cx, <[u8]>::len) {
                    Poll::Ready(Ok(count @ 1..)) => discarded += count as u64,
                    Poll::Ready(_) => return Poll::Ready(()),
                    Poll::Pending => return Poll::Pending,
                }
            }
            Poll::Ready(())
        })
        .await;
    }

    pub(crate) fn state(&self) -> &Rc<StreamState> {
        &self.state
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.state.close();
    }
}
