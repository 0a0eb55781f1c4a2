//! TCP on the ring: listeners with multishot accept, and streams whose sends take arena slices without copying.
//!
//! Sockets exist only on a ring; the simulated world has none, because the engine knows none.

use std::io;
use std::net::SocketAddr;

use crate::core::Core;

/// Accepts connections for one core; several cores may bind the same address (SO_REUSEPORT).
pub struct Listener {}

/// A connected TCP stream with TCP_NODELAY, bound to the core that accepted it. Implements hyper's `Read` and
/// `Write` (see [`crate::rt`]).
pub struct Stream {}

impl Listener {
    /// Listens on `addr` (port 0 picks one) with SO_REUSEPORT.
    ///
    /// # Errors
    /// `AddrInUse` and what else the kernel says.
    pub fn bind(core: &Core, addr: SocketAddr) -> io::Result<Listener> {
        let _ = (core, addr);
        unimplemented!()
    }

    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        unimplemented!()
    }

    /// The next connection. Dropping the future loses none.
    ///
    /// # Errors
    /// `EMFILE` and the like; the listener stays usable.
    pub async fn accept(&self) -> io::Result<(Stream, SocketAddr)> {
        unimplemented!()
    }
}

impl Stream {
    /// Connects to `addr`.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn connect(core: &Core, addr: SocketAddr) -> io::Result<Stream> {
        let _ = (core, addr);
        unimplemented!()
    }

    #[must_use]
    pub fn peer_addr(&self) -> SocketAddr {
        unimplemented!()
    }
}
