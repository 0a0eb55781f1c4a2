//! One TCP connection: at most one receive and one send in flight.
//!
//! A receive is only submitted when somebody reads, so a connection whose reader is busy takes nothing from the
//! socket and TCP's window pushes back on the peer. A send takes what it was given as its own: slices of the arena are
//! pinned, everything else is copied, and the caller goes on at once; the next write waits until the send is over.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use io_uring::{cqueue, opcode, squeue, types};
use socket2::Socket;

use super::RingCore;
use super::op::{Completion, OpKey, Sink};
use super::receive::{self, ReceiveBuffers};
use crate::arena::Slice;

/// Bytes outside the arena that one send copies at most.
const COPY_LEN_MAX: usize = 64 << 10;

/// Bytes outside the arena that count as the head of a response or the frame of a chunk; a send that copies more has
/// copied payload.
const HEAD_LEN_MAX: usize = 4 << 10;

/// Bytes that one send takes at most.
const SEND_LEN_MAX: usize = 4 << 20;

/// Slices that one send takes at most (the kernel's UIO_MAXIOV).
const SLICES_PER_SEND_MAX: usize = 1024;

/// IORING_RECVSEND_POLL_FIRST of the kernel's io_uring.h, which the bindings keep to themselves.
const RECEIVE_POLL_FIRST: u16 = 1;

const RECEIVE: u32 = 0;
const SEND: u32 = 1;

pub(crate) struct StreamState {
    core: Rc<RingCore>,
    buffers: Rc<ReceiveBuffers>,
    socket: Socket,
    /// The stream was dropped; only the kernel still has a part in this.
    closed: Cell<bool>,
    receive: RefCell<Receive>,
    send: RefCell<Sending>,
}

#[derive(Default)]
struct Receive {
    in_flight: Option<OpKey>,
    /// In line for a buffer.
    starved: bool,
    data: Data,
    ended: bool,
    error: Option<io::Error>,
    waker: Option<Waker>,
    /// The last receive emptied the socket: the next one need not look before it waits.
    drained: bool,
}

/// Bytes received and not yet read.
#[derive(Default)]
enum Data {
    #[default]
    None,
    Provided {
        id: u16,
        read: usize,
        len: usize,
    },
    Aside {
        bytes: Vec<u8>,
        read: usize,
    },
}

struct Sending {
    in_flight: Option<OpKey>,
    message: libc::msghdr,
    table: Vec<libc::iovec>,
    /// Entries of `table` that are sent.
    table_done: usize,
    pinned: Vec<Slice>,
    copied: Vec<u8>,
    remaining: usize,
    /// A failed send ends the sending side for good.
    error: Option<i32>,
    waker: Option<Waker>,
}

impl StreamState {
    pub(crate) fn new(core: &Rc<RingCore>, socket: Socket) -> io::Result<Rc<StreamState>> {
        let sending = Sending {
            in_flight: None,
            // SAFETY: an all-zero msghdr is an empty message.
            message: unsafe { std::mem::zeroed() },
            table: Vec::new(),
            table_done: 0,
            pinned: Vec::new(),
            copied: Vec::new(),
            remaining: 0,
            error: None,
            waker: None,
        };
        Ok(Rc::new(StreamState {
            buffers: core.receive_buffers()?,
            core: Rc::clone(core),
            socket,
            closed: Cell::new(false),
            receive: RefCell::new(Receive::default()),
            send: RefCell::new(sending),
        }))
    }

    pub(crate) fn core(&self) -> &Rc<RingCore> {
        &self.core
    }

    pub(crate) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// The stream was dropped: gives up what is in flight. The socket closes after the last completion.
    pub(crate) fn close(&self) {
        self.closed.set(true);
        let (receive, data, waker) = {
            let mut receive = self.receive.borrow_mut();
            (receive.in_flight, std::mem::take(&mut receive.data), receive.waker.take())
        };
        let (send, send_waker) = {
            let mut send = self.send.borrow_mut();
            (send.in_flight, send.waker.take())
        };
        drop((waker, send_waker));
        // A send that the socket's buffer has room for is over before the kernel sees that it should give up.
        for key in receive.into_iter().chain(send) {
            self.core.driver().cancel(key);
        }
        if let Data::Provided { id, .. } = data {
            self.buffers.give_back(id);
        }
    }

    /// Passes received bytes to `take`, which says how many it took; 0 bytes are the end of the stream.
    pub(crate) fn poll_receive(
        self: &Rc<Self>,
        cx: &mut Context<'_>,
        take: impl FnOnce(&[u8]) -> usize,
    ) -> Poll<io::Result<usize>> {
        let mut receive = self.receive.borrow_mut();
        let (count, finished) = match &mut receive.data {
            Data::Provided { id, read, len } => {
                let count = take(&self.buffers.bytes(*id)[*read..*len]);
                *read += count;
                (count, (*read == *len).then_some(Some(*id)))
            }
            Data::Aside { bytes, read } => {
                let count = take(&bytes[*read..]);
                *read += count;
                (count, (*read == bytes.len()).then_some(None))
            }
            Data::None => {
                if let Some(error) = receive.error.take() {
                    return Poll::Ready(Err(error));
                }
                if receive.ended {
                    return Poll::Ready(Ok(0));
                }
                if !receive.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                    receive.waker = Some(cx.waker().clone());
                }
                if receive.in_flight.is_none() && !receive.starved {
                    receive.in_flight = self.submit_receive(receive.drained);
                    if receive.in_flight.is_none() {
                        return Poll::Ready(Err(shut_down()));
                    }
                }
                return Poll::Pending;
            }
        };
        if let Some(provided) = finished {
            receive.data = Data::None;
            drop(receive);
            if let Some(id) = provided {
                self.buffers.give_back(id);
            }
        }
        Poll::Ready(Ok(count))
    }

    fn submit_receive(self: &Rc<Self>, wait_first: bool) -> Option<OpKey> {
        let target = types::Fd(self.socket.as_raw_fd());
        let entry = opcode::Recv::new(target, std::ptr::null_mut(), receive::BUFFER_LEN as u32)
            .buf_group(receive::GROUP)
            .ioprio(if wait_first { RECEIVE_POLL_FIRST } else { 0 })
            .build()
            .flags(squeue::Flags::BUFFER_SELECT);
        // SAFETY: the kernel writes to a buffer of the group, which outlives the ring's operations; the socket is
        // kept by this sink.
        unsafe { self.core.driver().submit_to(entry, Rc::clone(self) as Rc<dyn Sink>, RECEIVE) }
    }

    /// A buffer may be had again.
    pub(super) fn receive_again(self: &Rc<Self>) {
        let mut receive = self.receive.borrow_mut();
        receive.starved = false;
        if !self.closed.get() && receive.in_flight.is_none() {
            receive.in_flight = self.submit_receive(receive.drained);
        }
    }

    /// Copies what nobody has read yet out of the provided buffer and gives it back.
    pub(super) fn move_aside(&self) {
        let id = {
            let mut receive = self.receive.borrow_mut();
            let Data::Provided { id, read, len } = receive.data else { return };
            receive.data = Data::Aside { bytes: self.buffers.bytes(id)[read..len].to_vec(), read: 0 };
            id
        };
        self.buffers.give_back(id);
    }

    fn received(self: &Rc<Self>, completion: Completion) {
        let provided = cqueue::buffer_select(completion.flags);
        let mut receive = self.receive.borrow_mut();
        receive.in_flight = None;
        receive.drained = !cqueue::sock_nonempty(completion.flags);
        if let Some(id) = provided {
            self.buffers.taken(id, Rc::clone(self));
        }
        match (completion.into_result(), provided) {
            (Ok(len @ 1..), Some(id)) if !self.closed.get() => {
                self.core.driver().stats.update(|stats| stats.net_bytes_received += u64::from(len));
                receive.data = Data::Provided { id, read: 0, len: len as usize };
            }
            (result, provided) => {
                if let Some(id) = provided {
                    drop(receive);
                    self.buffers.give_back(id);
                    receive = self.receive.borrow_mut();
                }
                match result {
                    _ if self.closed.get() => return,
                    Ok(_) => receive.ended = true,
                    Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                        receive.starved = true;
                        drop(receive);
                        self.buffers.starve(Rc::clone(self));
                        return;
                    }
                    // Whoever waits asks again.
                    Err(_) if completion.is_transient() => {}
                    Err(error) => receive.error = Some(error),
                }
            }
        }
        let waker = receive.waker.take();
        drop(receive);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Starts to send `parts` and says how many bytes of them it took; waits while an earlier send is in flight.
    pub(crate) fn poll_send(
        self: &Rc<Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut send = self.send.borrow_mut();
        if send.poll_idle(cx).is_pending() {
            return Poll::Pending;
        }
        if let Some(error) = send.error {
            return Poll::Ready(Err(io::Error::from_raw_os_error(error)));
        }
        let taken = send.take(self, parts);
        if taken > 0 {
            send.in_flight = self.submit_send(&mut send);
            if send.in_flight.is_none() {
                send.release();
                return Poll::Ready(Err(shut_down()));
            }
        }
        Poll::Ready(Ok(taken))
    }

    /// Waits until everything taken is with the kernel's socket buffer.
    pub(crate) fn poll_sent(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut send = self.send.borrow_mut();
        if send.poll_idle(cx).is_pending() {
            return Poll::Pending;
        }
        Poll::Ready(send.error.map_or(Ok(()), |error| Err(io::Error::from_raw_os_error(error))))
    }

    /// As [`Self::poll_sent`], then tells the peer that nothing more comes.
    pub(crate) fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.poll_sent(cx) {
            Poll::Ready(Ok(())) => {}
            other => return other,
        }
        match self.socket.shutdown(Shutdown::Write) {
            // The peer has closed already, which is as good.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            result => Poll::Ready(result),
        }
    }

    fn submit_send(self: &Rc<Self>, send: &mut Sending) -> Option<OpKey> {
        let rest = &mut send.table[send.table_done..];
        send.message.msg_iov = rest.as_mut_ptr();
        send.message.msg_iovlen = rest.len();
        let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
        let target = types::Fd(self.socket.as_raw_fd());
        let entry = opcode::SendMsg::new(target, &raw const send.message).flags(flags as u32).build();
        // SAFETY: message, table, pins and copies live in `self`, behind an Rc that the operation keeps, and are not
        // touched before its completion.
        unsafe { self.core.driver().submit_to(entry, Rc::clone(self) as Rc<dyn Sink>, SEND) }
    }

    fn sent(self: &Rc<Self>, completion: Completion) {
        let mut send = self.send.borrow_mut();
        send.in_flight = None;
        match completion.into_result() {
            Ok(count) => {
                self.core.driver().stats.update(|stats| stats.net_bytes_sent += u64::from(count));
                send.advance(count as usize);
            }
            Err(_) if completion.is_transient() => {}
            Err(error) => send.error = Some(error.raw_os_error().unwrap_or(libc::EIO)),
        }
        if send.remaining > 0 && send.error.is_none() && !self.closed.get() {
            send.in_flight = self.submit_send(&mut send);
            if send.in_flight.is_some() {
                return;
            }
            send.error = Some(libc::ECANCELED);
        }
        let waker = send.waker.take();
        send.release();
        drop(send);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Sink for StreamState {
    fn complete(self: Rc<Self>, tag: u32, completion: Completion) {
        match tag {
            RECEIVE => self.received(completion),
            _ => self.sent(completion),
        }
    }
}

impl Sending {
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.in_flight.is_none() {
            return Poll::Ready(());
        }
        if !self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            self.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Pins or copies as much of `parts` as one send takes.
    fn take(&mut self, stream: &StreamState, parts: &[IoSlice<'_>]) -> usize {
        let arena = stream.core.arena();
        let mut taken = 0;
        for part in parts.iter().filter(|part| !part.is_empty()).take(SLICES_PER_SEND_MAX) {
            if taken >= SEND_LEN_MAX {
                break;
            }
            let (base, len) = match arena.pin(part) {
                Some(slice) => {
                    let base = slice.as_ptr();
                    self.pinned.push(slice);
                    (base, part.len())
                }
                None => {
                    let len = part.len().min(COPY_LEN_MAX - self.copied.len());
                    self.copied.extend_from_slice(&part[..len]);
                    // The copy may still move as it grows; its address is filled in below.
                    (std::ptr::null(), len)
                }
            };
            if len > 0 {
                self.table.push(libc::iovec { iov_base: base.cast_mut().cast(), iov_len: len });
            }
            taken += len;
            if len < part.len() {
                break;
            }
        }
        let mut copied = self.copied.as_mut_ptr();
        for entry in self.table.iter_mut().filter(|entry| entry.iov_base.is_null()) {
            entry.iov_base = copied.cast();
            // SAFETY: the lengths of the copied parts add up to the length of `copied`.
            copied = unsafe { copied.add(entry.iov_len) };
        }
        if self.copied.len() > HEAD_LEN_MAX {
            let copied = self.copied.len() as u64;
            stream.core.driver().stats.update(|stats| stats.payload_bytes_copied += copied);
        }
        self.remaining = taken;
        taken
    }

    /// Notes that `count` more bytes are sent.
    fn advance(&mut self, mut count: usize) {
        self.remaining -= count;
        while count > 0 {
            let entry = &mut self.table[self.table_done];
            if entry.iov_len > count {
                // SAFETY: the entry's range is longer than `count`.
                entry.iov_base = unsafe { entry.iov_base.cast::<u8>().add(count) }.cast();
                entry.iov_len -= count;
                return;
            }
            count -= entry.iov_len;
            self.table_done += 1;
        }
    }

    /// Lets go of what was sent. Kept small, because a connection may be idle for long.
    fn release(&mut self) {
        self.pinned.clear();
        self.table.clear();
        self.table_done = 0;
        self.remaining = 0;
        self.copied.clear();
        self.copied.shrink_to(HEAD_LEN_MAX);
    }
}

fn shut_down() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the core has shut down")
}
