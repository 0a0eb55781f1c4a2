//! One pool of aligned buffers per core, with a hard cap.
//!
//! O_DIRECT wants aligned memory, the ring wants memory that outlives a dropped future, and the server wants to
//! know in advance how much it can use: so every byte that touches a disk or a socket lives here. Sizes are
//! powers of two from 4 KiB to 1 MiB. A buffer has one owner while it is written ([`Buf`]) and any number once
//! it is frozen ([`Slice`]); the block returns to the pool when the last one, or the kernel, lets go of it.

use std::ops::{Deref, DerefMut, Range};

/// Largest buffer of an arena, in bytes.
pub const BUF_LEN_MAX: usize = 1 << 20;

/// A core's pool. Cloning shares it.
#[derive(Clone)]
pub struct Arena {}

/// What a pool holds and has handed out, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ArenaUse {
    pub capacity: usize,
    pub used: usize,
    pub used_max: usize,
    /// Tasks waiting in [`Arena::alloc`].
    pub waiting: usize,
}

/// A uniquely owned, writable buffer, 4 KiB aligned. Its content is unspecified when handed out.
pub struct Buf {}

/// A shared, read-only range of a frozen buffer. Cloning and slicing copy no byte.
#[derive(Clone)]
pub struct Slice {}

impl Arena {
    /// A buffer of `len` bytes (rounded up inside to the next size), or `None` when the pool is spent.
    ///
    /// # Panics
    /// If `len` is 0 or more than [`BUF_LEN_MAX`].
    #[must_use]
    pub fn try_alloc(&self, len: usize) -> Option<Buf> {
        let _ = len;
        unimplemented!()
    }

    /// As [`Arena::try_alloc`], waiting in line (first come, first served) until the pool has room.
    pub async fn alloc(&self, len: usize) -> Buf {
        let _ = len;
        unimplemented!()
    }

    #[must_use]
    pub fn usage(&self) -> ArenaUse {
        unimplemented!()
    }
}

impl Buf {
    #[must_use]
    pub fn capacity(&self) -> usize {
        unimplemented!()
    }

    /// Sets how many bytes of the capacity count. Bytes beyond the old length hold whatever they held.
    ///
    /// # Panics
    /// If `len` exceeds the capacity.
    pub fn set_len(&mut self, len: usize) {
        let _ = len;
        unimplemented!()
    }

    /// Gives up writing; the bytes `0..len()` can be shared from here on.
    #[must_use]
    pub fn freeze(self) -> Slice {
        unimplemented!()
    }
}

impl Deref for Buf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        unimplemented!()
    }
}

impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [u8] {
        unimplemented!()
    }
}

impl Slice {
    /// The sub-range `range` of this slice, sharing the same block.
    ///
    /// # Panics
    /// If the range is out of bounds.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Slice {
        let _ = range;
        unimplemented!()
    }
}

impl Deref for Slice {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        unimplemented!()
    }
}

impl bytes::Buf for Slice {
    fn remaining(&self) -> usize {
        self.len()
    }

    fn chunk(&self) -> &[u8] {
        self
    }

    fn advance(&mut self, count: usize) {
        *self = self.slice(count..self.len());
    }
}
