//! One pool of aligned buffers per core, with a hard cap.
//!
//! O_DIRECT wants aligned memory, the ring wants memory that outlives a dropped future, and the server wants to
//! know in advance how much it can use: so every byte that touches a disk or a socket lives here. Sizes are
//! powers of two from 4 KiB to 1 MiB. A buffer has one owner while it is written ([`Buf`]) and any number once
//! it is frozen ([`Slice`]); the block returns to the pool when the last one, or the kernel, lets go of it.
//!
//! Reference counts live beside the memory, one per page, instead of in a box per buffer: so an address inside a
//! frozen buffer is enough to share it ([`Arena::pin`]), which is what lets borrowed bytes be sent uncopied.

mod buddy;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::io;
use std::ops::{Deref, DerefMut, Range};
use std::pin::Pin;
use std::ptr::NonNull;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use self::buddy::Buddy;

/// Smallest buffer of an arena and the alignment of every buffer, in bytes.
pub const BUF_LEN_MIN: usize = 4096;

/// Largest buffer of an arena, in bytes.
pub const BUF_LEN_MAX: usize = 1 << 20;

const _: () = assert!(BUF_LEN_MAX == BUF_LEN_MIN << (buddy::ORDER_COUNT - 1));

/// Alignment of the arena itself: a huge page, so that the kernel may back it with some.
const REGION_ALIGN: usize = 2 << 20;

/// Reference count of a block that a [`Buf`] owns alone and may write to; such a block is never pinned by address.
const WRITABLE: u32 = u32::MAX;

/// A core's pool. Cloning shares it.
#[derive(Clone)]
pub struct Arena {
    pool: Rc<Pool>,
}

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
pub struct Buf {
    pool: Rc<Pool>,
    start: NonNull<u8>,
    page: u32,
    len: u32,
    capacity: u32,
}

/// A shared, read-only range of a frozen buffer. Cloning and slicing copy no byte.
pub struct Slice {
    pool: Rc<Pool>,
    start: NonNull<u8>,
    /// First page of the block, where its reference count is.
    page: u32,
    len: u32,
}

struct Pool {
    region: Region,
    refs: Box<[Cell<u32>]>,
    buddy: RefCell<Buddy>,
    used_pages_max: Cell<u32>,
    waiters: RefCell<VecDeque<Rc<Waiter>>>,
}

/// A task in the line of [`Arena::alloc`].
struct Waiter {
    len: usize,
    grant: Cell<Option<Buf>>,
    waker: RefCell<Option<Waker>>,
}

impl Arena {
    /// A pool of `len` bytes, rounded up to whole pages of 4 KiB. Memory becomes resident as it is first used.
    ///
    /// # Errors
    /// What mmap says when the address space has no room.
    ///
    /// # Panics
    /// If `len` is 0 or exceeds 2^32 pages.
    pub fn new(len: usize) -> io::Result<Arena> {
        let page_count =
            u32::try_from(len.div_ceil(BUF_LEN_MIN)).expect("an arena has fewer than 2^32 pages");
        assert!(page_count > 0, "an arena holds at least a page");
        let region = Region::map(page_count as usize * BUF_LEN_MIN)?;
        let pool = Pool {
            region,
            refs: vec![Cell::new(0); page_count as usize].into_boxed_slice(),
            buddy: RefCell::new(Buddy::new(page_count)),
            used_pages_max: Cell::new(0),
            waiters: RefCell::new(VecDeque::new()),
        };
        Ok(Arena { pool: Rc::new(pool) })
    }

    /// A buffer of `len` bytes (rounded up inside to the next size), or `None` when the pool is spent or others
    /// already wait for it: nobody overtakes the line of [`Arena::alloc`].
    ///
    /// # Panics
    /// If `len` is 0 or more than [`BUF_LEN_MAX`].
    #[must_use]
    pub fn try_alloc(&self, len: usize) -> Option<Buf> {
        if !self.pool.waiters.borrow().is_empty() {
            return None;
        }
        self.pool.take(len)
    }

    /// As [`Arena::try_alloc`], waiting in line (first come, first served) until the pool has room. Dropping the
    /// future hands its place, or the buffer it was already granted, to the next in line.
    ///
    /// # Panics
    /// As [`Arena::try_alloc`], and if `len` exceeds the whole pool.
    pub async fn alloc(&self, len: usize) -> Buf {
        if let Some(buf) = self.try_alloc(len) {
            return buf;
        }
        assert!(block_len(len) <= self.pool.region.len, "a buffer of {len} bytes from a smaller arena");
        let waiter = Rc::new(Waiter { len, grant: Cell::new(None), waker: RefCell::new(None) });
        self.pool.waiters.borrow_mut().push_back(Rc::clone(&waiter));
        InLine { pool: Rc::clone(&self.pool), waiter }.await
    }

    /// Shares the frozen buffer that `bytes` lies in; `None` when they lie elsewhere or in a buffer that is still
    /// writable.
    ///
    /// The borrow is the proof that the block is alive while its count goes up.
    #[must_use]
    pub fn pin(&self, bytes: &[u8]) -> Option<Slice> {
        let offset = (bytes.as_ptr() as usize).checked_sub(self.pool.region.start.as_ptr() as usize)?;
        if offset >= self.pool.region.len || bytes.is_empty() {
            return None;
        }
        let page = u32::try_from(offset / BUF_LEN_MIN).ok()?;
        let (head, order) = self.pool.buddy.borrow().block_of(page)?;
        let end = (head as usize + (1 << order)) * BUF_LEN_MIN;
        let refs = &self.pool.refs[head as usize];
        if refs.get() == WRITABLE || offset + bytes.len() > end {
            return None;
        }
        refs.set(refs.get() + 1);
        Some(Slice {
            pool: Rc::clone(&self.pool),
            start: NonNull::from(bytes).cast(),
            page: head,
            len: bytes.len() as u32,
        })
    }

    #[must_use]
    pub fn usage(&self) -> ArenaUse {
        let page_count = self.pool.refs.len();
        ArenaUse {
            capacity: page_count * BUF_LEN_MIN,
            used: (page_count - self.pool.buddy.borrow().free_pages() as usize) * BUF_LEN_MIN,
            used_max: self.pool.used_pages_max.get() as usize * BUF_LEN_MIN,
            waiting: self.pool.waiters.borrow().len(),
        }
    }

    /// Start and length of the memory, for registering it with a ring.
    pub(crate) fn region(&self) -> (NonNull<u8>, usize) {
        (self.pool.region.start, self.pool.region.len)
    }
}

impl Pool {
    fn take(self: &Rc<Pool>, len: usize) -> Option<Buf> {
        let capacity = block_len(len);
        let order = (capacity / BUF_LEN_MIN).trailing_zeros() as usize;
        let page = {
            let mut buddy = self.buddy.borrow_mut();
            let page = buddy.alloc(order)?;
            let used = self.refs.len() as u32 - buddy.free_pages();
            self.used_pages_max.set(self.used_pages_max.get().max(used));
            page
        };
        self.refs[page as usize].set(WRITABLE);
        // SAFETY: `page` is a page of this arena, so the offset stays inside the mapping.
        let start = unsafe { self.region.start.add(page as usize * BUF_LEN_MIN) };
        Some(Buf { pool: Rc::clone(self), start, page, len: len as u32, capacity: capacity as u32 })
    }

    fn free(self: &Rc<Pool>, page: u32) {
        self.refs[page as usize].set(0);
        self.buddy.borrow_mut().free(page);
        self.serve_line();
    }

    /// Grants buffers to the head of the line for as long as there is room for it.
    fn serve_line(self: &Rc<Pool>) {
        loop {
            let Some(waiter) = self.waiters.borrow().front().map(Rc::clone) else { return };
            let Some(buf) = self.take(waiter.len) else { return };
            self.waiters.borrow_mut().pop_front();
            waiter.grant.set(Some(buf));
            // Taken out first: waking may run foreign code.
            let waker = waiter.waker.borrow_mut().take();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

/// The part of [`Arena::alloc`] that waits.
struct InLine {
    pool: Rc<Pool>,
    waiter: Rc<Waiter>,
}

impl Future for InLine {
    type Output = Buf;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Buf> {
        if let Some(buf) = self.waiter.grant.take() {
            return Poll::Ready(buf);
        }
        *self.waiter.waker.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for InLine {
    fn drop(&mut self) {
        let removed = {
            let mut waiters = self.pool.waiters.borrow_mut();
            let index = waiters.iter().position(|waiter| Rc::ptr_eq(waiter, &self.waiter));
            index.and_then(|index| waiters.remove(index))
        };
        if removed.is_some() {
            // Whoever stood behind a large request may fit now.
            self.pool.serve_line();
        }
        // A grant that nobody took returns to the pool, which serves the line again.
        drop(self.waiter.grant.take());
    }
}

/// Length of the block that holds `len` bytes.
fn block_len(len: usize) -> usize {
    assert!(len > 0 && len <= BUF_LEN_MAX, "buffers have 1 to {BUF_LEN_MAX} bytes, not {len}");
    len.next_power_of_two().max(BUF_LEN_MIN)
}

impl Buf {
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity as usize
    }

    /// Sets how many bytes of the capacity count. Bytes beyond the old length hold whatever they held.
    ///
    /// # Panics
    /// If `len` exceeds the capacity.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity as usize, "length {len} in a buffer of {}", self.capacity);
        self.len = len as u32;
    }

    /// Gives up writing; the bytes `0..len()` can be shared from here on.
    #[must_use]
    pub fn freeze(self) -> Slice {
        let buf = std::mem::ManuallyDrop::new(self);
        buf.pool.refs[buf.page as usize].set(1);
        // SAFETY: `buf` is never dropped or used again, so the reference to the pool moves over.
        let pool = unsafe { std::ptr::read(&raw const buf.pool) };
        Slice { pool, start: buf.start, page: buf.page, len: buf.len }
    }
}

impl Deref for Buf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the block is mapped, at least `len` bytes long, always initialised (anonymous memory), and
        // owned by this handle alone.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len as usize) }
    }
}

impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes the borrow unique.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len as usize) }
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        self.pool.free(self.page);
    }
}

impl fmt::Debug for Buf {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Buf({} of {} bytes)", self.len, self.capacity)
    }
}

impl Slice {
    /// The sub-range `range` of this slice, sharing the same block.
    ///
    /// # Panics
    /// If the range is out of bounds.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Slice {
        let mut part = self.clone();
        part.narrow(range);
        part
    }

    fn narrow(&mut self, range: Range<usize>) {
        assert!(
            range.start <= range.end && range.end <= self.len as usize,
            "range {range:?} of {}",
            self.len
        );
        // SAFETY: the range was just checked to lie inside this slice.
        self.start = unsafe { self.start.add(range.start) };
        self.len = (range.end - range.start) as u32;
    }
}

impl Clone for Slice {
    fn clone(&self) -> Slice {
        let refs = &self.pool.refs[self.page as usize];
        let count = refs.get() + 1;
        assert!(count < WRITABLE, "too many references to one buffer");
        refs.set(count);
        Slice { pool: Rc::clone(&self.pool), ..*self }
    }
}

impl Drop for Slice {
    fn drop(&mut self) {
        let refs = &self.pool.refs[self.page as usize];
        match refs.get() {
            1 => self.pool.free(self.page),
            count => refs.set(count - 1),
        }
    }
}

impl Deref for Slice {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the block is counted by this handle, initialised, and read-only since it was frozen.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len as usize) }
    }
}

impl AsRef<[u8]> for Slice {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Slice {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Slice({} bytes)", self.len)
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
        self.narrow(count..self.len());
    }
}

/// The mapping itself.
struct Region {
    start: NonNull<u8>,
    len: usize,
    mapped: NonNull<u8>,
    mapped_len: usize,
}

impl Region {
    fn map(len: usize) -> io::Result<Region> {
        let mapped_len = len + REGION_ALIGN;
        // SAFETY: a fresh anonymous mapping overlaps nothing.
        let mapped = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                mapped_len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let mapped = NonNull::new(mapped.cast::<u8>()).expect("mmap never maps the null page");
        let skip = mapped.align_offset(REGION_ALIGN);
        // SAFETY: the mapping is longer than `len` by REGION_ALIGN, and `skip` is less than that.
        let start = unsafe { mapped.add(skip) };
        // SAFETY: the range was mapped above. Huge pages are a wish; a refusal changes nothing.
        unsafe { libc::madvise(start.as_ptr().cast(), len, libc::MADV_HUGEPAGE) };
        // SAFETY: as above. A child process has no business with buffers that a ring writes to.
        unsafe { libc::madvise(mapped.as_ptr().cast(), mapped_len, libc::MADV_DONTFORK) };
        Ok(Region { start, len, mapped, mapped_len })
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the pool, and with it every handle into the mapping, is gone.
        unsafe { libc::munmap(self.mapped.as_ptr().cast(), self.mapped_len) };
    }
}

#[cfg(test)]
mod tests {
    use std::task::Context;

    use proptest::prelude::*;

    use super::*;

    fn poll<F: Future>(future: &mut Pin<Box<F>>) -> Poll<F::Output> {
        future.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    }

    fn arena(pages: usize) -> Arena {
        Arena::new(pages * BUF_LEN_MIN).expect("map")
    }

    #[test]
    fn everything_merges_back() {
        let arena = arena(256 + 5);
        let bufs: Vec<Buf> = std::iter::from_fn(|| arena.try_alloc(1)).collect();
        assert_eq!(bufs.len(), 261);
        assert_eq!(arena.usage().used, arena.usage().capacity);
        drop(bufs);
        assert_eq!(arena.usage().used, 0);
        assert!(arena.try_alloc(BUF_LEN_MAX).is_some());
    }

    #[test]
    fn a_line_is_served_in_order_and_nobody_overtakes() {
        let arena = arena(4);
        let held = arena.try_alloc(4 * BUF_LEN_MIN).expect("room");
        let mut large = Box::pin(arena.alloc(4 * BUF_LEN_MIN));
        let mut small = Box::pin(arena.alloc(BUF_LEN_MIN));
        assert!(poll(&mut large).is_pending() && poll(&mut small).is_pending());
        assert_eq!(arena.usage().waiting, 2);
        drop(held);
        assert!(arena.try_alloc(1).is_none(), "a line is not overtaken");
        assert!(poll(&mut small).is_pending());
        assert!(poll(&mut large).is_ready());
        assert!(poll(&mut small).is_ready());
    }

    #[test]
    fn a_dropped_waiter_hands_its_grant_on() {
        let arena = arena(1);
        let held = arena.try_alloc(1).expect("room");
        let mut first = Box::pin(arena.alloc(1));
        let mut second = Box::pin(arena.alloc(1));
        assert!(poll(&mut first).is_pending() && poll(&mut second).is_pending());
        drop(held);
        drop(first);
        assert!(poll(&mut second).is_ready());
        assert_eq!(arena.usage().used, 0);
    }

    #[test]
    fn a_dropped_large_waiter_lets_the_small_one_pass() {
        let arena = arena(2);
        let held = arena.try_alloc(1).expect("room");
        let mut large = Box::pin(arena.alloc(2 * BUF_LEN_MIN));
        let mut small = Box::pin(arena.alloc(1));
        assert!(poll(&mut large).is_pending() && poll(&mut small).is_pending());
        drop(large);
        assert!(poll(&mut small).is_ready());
        drop(held);
    }

    #[test]
    fn only_frozen_bytes_of_this_arena_are_pinned() {
        let arena = arena(8);
        let other = self::arena(8);
        let mut buf = arena.try_alloc(3 * BUF_LEN_MIN).expect("room");
        buf[BUF_LEN_MIN + 7] = 42;
        assert!(arena.pin(&buf).is_none(), "a writable buffer must not be shared");
        let slice = buf.freeze();
        assert!(other.pin(&slice).is_none());
        assert!(arena.pin(&[1, 2, 3]).is_none());
        let pinned = arena.pin(&slice[BUF_LEN_MIN + 7..]).expect("frozen");
        drop(slice);
        assert_eq!(arena.usage().used, 4 * BUF_LEN_MIN);
        assert_eq!((pinned.len(), pinned[0]), (2 * BUF_LEN_MIN - 7, 42));
        drop(pinned);
        assert_eq!(arena.usage().used, 0);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Alloc(usize),
        Free(usize),
        Share(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (1..=BUF_LEN_MAX / 8).prop_map(Step::Alloc),
            (0..64_usize).prop_map(Step::Free),
            (0..64_usize).prop_map(Step::Share),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Blocks never overlap, keep their bytes, never exceed the cap, and all come back.
        #[test]
        fn behaves_as_a_set_of_disjoint_ranges(steps in proptest::collection::vec(step(), 1..200)) {
            let arena = arena(100);
            let mut model: Vec<(Slice, u8)> = Vec::new();
            for (index, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Alloc(len) => {
                        if let Some(mut buf) = arena.try_alloc(len) {
                            prop_assert_eq!(buf.len(), len);
                            prop_assert_eq!(buf.as_ptr() as usize % BUF_LEN_MIN, 0);
                            buf.fill(index as u8);
                            model.push((buf.freeze(), index as u8));
                        }
                    }
                    Step::Free(at) if at < model.len() => drop(model.swap_remove(at)),
                    Step::Share(at) if at < model.len() => {
                        let (slice, fill) = model[at].clone();
                        let len = slice.len();
                        model.push((slice.slice(len / 3..len), fill));
                    }
                    Step::Free(_) | Step::Share(_) => {}
                }
                for (slice, fill) in &model {
                    prop_assert_eq!((slice.first(), slice.last()), (Some(fill), Some(fill)));
                }
                let mut blocks: Vec<(u32, usize)> =
                    model.iter().map(|(slice, _)| slice.pool.buddy.borrow().block_of(slice.page).expect("taken")).collect();
                blocks.sort_unstable();
                blocks.dedup();
                let used: usize = blocks.iter().map(|&(_, order)| BUF_LEN_MIN << order).sum();
                prop_assert_eq!(arena.usage().used, used);
                for pair in blocks.windows(2) {
                    prop_assert!(pair[0].0 + (1 << pair[0].1) <= pair[1].0, "overlap");
                }
            }
            model.clear();
            prop_assert_eq!(arena.usage().used, 0);
        }
    }
}
