//! An operation in flight: what the kernel may still touch, and who wants to hear of the end.
//!
//! The entry, not the future, owns buffers and files. So a future may be dropped at any moment: the entry stays until
//! the kernel's completion and lets go of everything then.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::driver::Driver;
use super::file::FileHandle;
use crate::arena::{Buf, Slice};

/// What stays alive until the kernel is done.
pub(super) enum Keep {
    Nothing,
    File { _file: Rc<FileHandle> },
    Read { buf: Buf, _file: Rc<FileHandle> },
    Write { data: Slice, _file: Rc<FileHandle> },
    WriteVectored { write: Box<VectoredWrite>, _file: Rc<FileHandle> },
    Connect { socket: socket2::Socket, _address: Box<socket2::SockAddr> },
}

/// Slices on their way to a file, with the table that names them to the kernel.
pub(super) struct VectoredWrite {
    pub(super) data: Vec<Slice>,
    pub(super) table: Vec<libc::iovec>,
}

/// A receiver of completions that is no future: sockets, whose operations outlive any single poll.
pub(super) trait Sink {
    /// `tag` is what the operation was submitted with.
    fn complete(self: Rc<Self>, tag: u32, completion: Completion);
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Completion {
    /// As the system call would return it: negative is `-errno`.
    pub(super) result: i32,
    pub(super) flags: u32,
}

impl Completion {
    pub(super) fn into_result(self) -> io::Result<u32> {
        u32::try_from(self.result).map_err(|_| io::Error::from_raw_os_error(-self.result))
    }

    /// More completions of the same operation will follow.
    pub(super) fn more(self) -> bool {
        io_uring::cqueue::more(self.flags)
    }

    /// Nothing happened; the same call may be made again.
    pub(super) fn is_transient(self) -> bool {
        matches!(-self.result, libc::EINTR | libc::EAGAIN)
    }
}

/// An entry of the driver's table.
pub(super) struct Op {
    /// Tells this user of a table slot from earlier ones.
    pub(super) generation: u32,
    pub(super) kind: OpKind,
}

pub(super) enum OpKind {
    Awaited { state: State, keep: Keep },
    Sink { sink: Rc<dyn Sink>, tag: u32 },
}

impl OpKind {
    pub(super) fn is_write(&self) -> bool {
        matches!(self, OpKind::Awaited { keep: Keep::Write { .. } | Keep::WriteVectored { .. }, .. })
    }
}

pub(super) enum State {
    Waiting(Option<Waker>),
    Done(Completion),
    /// The future went away.
    Abandoned,
}

/// Waits for a submitted operation. Dropping it abandons the operation, which then keeps what it needs by itself.
pub(super) struct Submitted {
    pub(super) driver: Rc<Driver>,
    pub(super) key: OpKey,
    /// Whether abandoning should also ask the kernel to give up.
    pub(super) cancel_on_drop: bool,
}

/// Names an operation in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OpKey {
    pub(super) slot: u32,
    pub(super) generation: u32,
}

impl OpKey {
    pub(super) fn user_data(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.slot)
    }

    pub(super) fn from_user_data(user_data: u64) -> OpKey {
        OpKey { slot: user_data as u32, generation: (user_data >> 32) as u32 }
    }
}

impl Future for Submitted {
    type Output = (Completion, Keep);

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<(Completion, Keep)> {
        let mut ops = self.driver.ops().borrow_mut();
        let Some(op) = ops.get_mut(self.key.slot as usize).filter(|op| op.generation == self.key.generation)
        else {
            unreachable!("a submitted operation stays in the table until its future took the result");
        };
        match &mut op.kind {
            OpKind::Awaited { state: State::Done(completion), keep } => {
                Poll::Ready((*completion, std::mem::replace(keep, Keep::Nothing)))
            }
            OpKind::Awaited { state, .. } => {
                *state = State::Waiting(Some(cx.waker().clone()));
                Poll::Pending
            }
            OpKind::Sink { .. } => unreachable!("sinks have no future"),
        }
    }
}

impl Drop for Submitted {
    fn drop(&mut self) {
        let finished = {
            let mut ops = self.driver.ops().borrow_mut();
            match ops.get_mut(self.key.slot as usize).map(|op| &mut op.kind) {
                Some(OpKind::Awaited { state: state @ State::Waiting(_), .. }) => {
                    *state = State::Abandoned;
                    None
                }
                _ => Some(ops.remove(self.key.slot as usize)),
            }
        };
        if finished.is_none() && self.cancel_on_drop {
            self.driver.cancel(self.key);
        }
        drop(finished);
    }
}
