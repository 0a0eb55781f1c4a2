//! A listening socket with one multishot accept, which the kernel keeps serving until it says otherwise.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use io_uring::{opcode, types};
use socket2::{Domain, Protocol, Socket, Type};

use super::RingCore;
use super::op::{Completion, OpKey, Sink};

/// Connections the kernel completes before they are accepted; net.core.somaxconn caps it.
const BACKLOG_LEN: i32 = 4096;

/// Accepted connections that may wait here; with more, accepting pauses and the kernel's backlog fills instead.
const ACCEPTED_COUNT_MAX: usize = 256;

pub(crate) struct ListenerState {
    core: Rc<RingCore>,
    socket: Socket,
    queue: RefCell<Queue>,
}

#[derive(Default)]
struct Queue {
    accepted: VecDeque<io::Result<OwnedFd>>,
    in_flight: Option<OpKey>,
    pausing: bool,
    wakers: Vec<Waker>,
}

impl ListenerState {
    pub(crate) fn bind(core: &Rc<RingCore>, addr: SocketAddr) -> io::Result<Rc<ListenerState>> {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM.cloexec(), Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        // Connections inherit it.
        socket.set_tcp_nodelay(true)?;
        socket.bind(&addr.into())?;
        socket.listen(BACKLOG_LEN)?;
        Ok(Rc::new(ListenerState { core: Rc::clone(core), socket, queue: RefCell::new(Queue::default()) }))
    }

    pub(crate) fn core(&self) -> &Rc<RingCore> {
        &self.core
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()?.as_socket().ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
    }

    pub(crate) fn poll_accept(self: &Rc<Self>, cx: &mut Context<'_>) -> Poll<io::Result<Socket>> {
        let mut queue = self.queue.borrow_mut();
        if let Some(accepted) = queue.accepted.pop_front() {
            return Poll::Ready(accepted.map(Socket::from));
        }
        if queue.in_flight.is_none() {
            let entry = opcode::AcceptMulti::new(types::Fd(self.socket.as_raw_fd()))
                .flags(libc::SOCK_CLOEXEC)
                .build();
            // SAFETY: the entry points to nothing; the socket is kept by this sink.
            let key = unsafe { self.core.driver().submit_to(entry, Rc::clone(self) as Rc<dyn Sink>, 0) };
            if key.is_none() {
                return Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::NotConnected,
                    "the core has shut down",
                )));
            }
            queue.in_flight = key;
            queue.pausing = false;
        }
        if !queue.wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
            queue.wakers.push(cx.waker().clone());
        }
        Poll::Pending
    }

    pub(crate) fn close(&self) {
        let (in_flight, accepted) = {
            let mut queue = self.queue.borrow_mut();
            (queue.in_flight, std::mem::take(&mut queue.accepted))
        };
        // At once: the socket itself stays open until the accept's last completion, and must attract nobody meanwhile.
        if let Err(error) = self.socket.shutdown(Shutdown::Both) {
            tracing::debug!(%error, "listener not shut down");
        }
        if let Some(key) = in_flight {
            self.core.driver().cancel(key);
        }
        drop(accepted);
    }
}

impl Sink for ListenerState {
    fn complete(self: Rc<Self>, _tag: u32, completion: Completion) {
        let mut queue = self.queue.borrow_mut();
        if !completion.more() {
            queue.in_flight = None;
        }
        match completion.into_result() {
            Ok(fd) => {
                // SAFETY: the kernel just made this descriptor for us alone.
                queue.accepted.push_back(Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) }));
            }
            Err(error) if completion.is_transient() || is_about_one_peer(&error) => {}
            Err(error) => queue.accepted.push_back(Err(error)),
        }
        let pause = match queue.in_flight {
            Some(key) if queue.accepted.len() >= ACCEPTED_COUNT_MAX && !queue.pausing => {
                queue.pausing = true;
                Some(key)
            }
            _ => None,
        };
        let wakers = std::mem::take(&mut queue.wakers);
        drop(queue);
        if let Some(key) = pause {
            self.core.driver().cancel(key);
        }
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// Errors of accept(2) that concern a connection that is gone, or our own cancelling; the listener just goes on.
fn is_about_one_peer(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNABORTED
                | libc::ECANCELED
                | libc::ENETDOWN
                | libc::EPROTO
                | libc::ENOPROTOOPT
                | libc::EHOSTDOWN
                | libc::ENONET
                | libc::EHOSTUNREACH
                | libc::ENETUNREACH
        )
    )
}
