//! Memory for O_DIRECT reads where the runtime brings none: aligned, sent as it is, and used again once it was sent.

use std::cell::RefCell;
use std::ops::{Deref, Range};
use std::rc::Rc;

use bytes::Buf;

use super::{MEMORY_LEN, RUN_LEN_MAX};
use crate::content::BLOCK_LEN;

/// Buffers at rest. Every one has room for the longest run at [`Pool::start`].
#[derive(Clone, Default)]
pub(super) struct Pool(Rc<RefCell<Vec<Vec<u8>>>>);

impl Pool {
    pub(super) fn take(&self) -> Vec<u8> {
        self.0.borrow_mut().pop().unwrap_or_else(|| vec![0; RUN_LEN_MAX + BLOCK_LEN])
    }

    /// The first place in `bytes` that the kernel reads to directly.
    pub(super) fn start(bytes: &[u8]) -> usize {
        bytes.as_ptr().align_offset(BLOCK_LEN)
    }

    /// What was read, on its way to the socket.
    pub(super) fn lend(&self, bytes: Vec<u8>, range: Range<usize>) -> Sending<Lent> {
        Sending { memory: Lent { bytes, range, pool: self.clone() }, sent: 0 }
    }
}

/// A buffer that goes back to its pool.
pub(super) struct Lent {
    bytes: Vec<u8>,
    range: Range<usize>,
    pool: Pool,
}

impl Deref for Lent {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.range.clone()]
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut free = self.pool.0.borrow_mut();
        if free.len() < MEMORY_LEN / RUN_LEN_MAX {
            free.push(std::mem::take(&mut self.bytes));
        }
    }
}

/// Memory as hyper takes it, without a copy.
pub(super) struct Sending<M> {
    memory: M,
    sent: usize,
}

impl<M: Deref<Target = [u8]>> Sending<M> {
    pub(super) fn new(memory: M) -> Sending<M> {
        Sending { memory, sent: 0 }
    }
}

impl<M: Deref<Target = [u8]>> Buf for Sending<M> {
    fn remaining(&self) -> usize {
        self.memory.len() - self.sent
    }

    fn chunk(&self) -> &[u8] {
        &self.memory[self.sent..]
    }

    fn advance(&mut self, count: usize) {
        assert!(count <= self.remaining(), "{count} bytes of {}", self.remaining());
        self.sent += count;
    }
}
