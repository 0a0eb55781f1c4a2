//! Buffers that the kernel picks from when bytes arrive.
//!
//! A connection that waits for a request holds no memory: it names this group, and the kernel takes a buffer of it
//! only once there is something to put in. Should readers that dawdle hold all buffers, their bytes are moved aside
//! (at most one buffer's worth per connection), so that connections never wait for each other.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::IoUring;
use io_uring::types::BufRingEntry;

use super::stream::StreamState;

/// Buffers of the group, a power of two.
const BUFFER_COUNT: u16 = 128;

/// Bytes of one buffer: what a single receive brings at most. With 16 KiB, large uploads cost a tenth more.
pub(super) const BUFFER_LEN: usize = 64 << 10;

/// The group's id; a ring has only this one.
pub(super) const GROUP: u16 = 0;

/// Whole pages, so that the buffers start on one.
const TABLE_LEN: usize = (BUFFER_COUNT as usize * size_of::<BufRingEntry>()).next_multiple_of(4096);

pub(super) struct ReceiveBuffers {
    /// The table shared with the kernel, followed by the buffers.
    mapped: NonNull<u8>,
    tail: Cell<u16>,
    /// Who has yet to read what a buffer holds.
    holders: RefCell<Vec<Option<Rc<StreamState>>>>,
    /// Who found the group empty, oldest first.
    starved: RefCell<VecDeque<Rc<StreamState>>>,
}

impl ReceiveBuffers {
    pub(super) fn new(ring: &IoUring) -> io::Result<ReceiveBuffers> {
        // SAFETY: a fresh anonymous mapping overlaps nothing.
        let mapped = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                mapped_len(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let mapped = NonNull::new(mapped.cast::<u8>()).expect("mmap never maps the null page");
        let buffers = ReceiveBuffers {
            mapped,
            tail: Cell::new(0),
            holders: RefCell::new((0..BUFFER_COUNT).map(|_| None).collect()),
            starved: RefCell::new(VecDeque::new()),
        };
        // SAFETY: the table is page-aligned, has BUFFER_COUNT entries, and stays mapped until the core has shut down.
        unsafe {
            ring.submitter().register_buf_ring_with_flags(mapped.as_ptr() as u64, BUFFER_COUNT, GROUP, 0)?;
        }
        for id in 0..BUFFER_COUNT {
            buffers.offer(id);
        }
        Ok(buffers)
    }

    /// Notes that `holder` got buffer `id`.
    pub(super) fn taken(&self, id: u16, holder: Rc<StreamState>) {
        if let Some(slot) = self.holders.borrow_mut().get_mut(usize::from(id)) {
            *slot = Some(holder);
        }
    }

    /// What the kernel put into buffer `id`, which must have been taken and not given back.
    pub(super) fn bytes(&self, id: u16) -> &[u8] {
        // SAFETY: the buffer lies inside the mapping, is initialised (anonymous memory), and belongs to its holder
        // until it is given back; the kernel writes only to buffers that it was offered.
        unsafe { std::slice::from_raw_parts(self.start_of(id).as_ptr(), BUFFER_LEN) }
    }

    /// Gives buffer `id` back to the kernel, and another chance to whoever found none.
    pub(super) fn give_back(&self, id: u16) {
        let holder = self.holders.borrow_mut().get_mut(usize::from(id)).and_then(Option::take);
        drop(holder);
        self.offer(id);
        let starved = self.starved.borrow_mut().pop_front();
        if let Some(stream) = starved {
            stream.receive_again();
        }
    }

    /// Puts `stream` in line for a buffer, and moves aside what others have not read.
    pub(super) fn starve(&self, stream: Rc<StreamState>) {
        self.starved.borrow_mut().push_back(stream);
        for id in 0..BUFFER_COUNT {
            let holder = self.holders.borrow().get(usize::from(id)).cloned();
            if let Some(Some(holder)) = holder {
                holder.move_aside();
            }
        }
        // Should every buffer already be back, nothing else would ask again.
        let next = self.starved.borrow_mut().pop_front();
        if let Some(stream) = next {
            stream.receive_again();
        }
    }

    /// Forgets whoever waits or holds; the core goes down.
    pub(super) fn clear(&self) {
        let starved = std::mem::take(&mut *self.starved.borrow_mut());
        let holders = std::mem::take(&mut *self.holders.borrow_mut());
        drop((starved, holders));
    }

    fn offer(&self, id: u16) {
        let tail = self.tail.get();
        let index = usize::from(tail & (BUFFER_COUNT - 1));
        let table = self.mapped.cast::<BufRingEntry>();
        // SAFETY: the index is inside the table; the entry is ours to write until the tail moves past it. Its setters
        // leave the last two bytes alone, which in the first entry are the tail.
        let entry = unsafe { table.add(index).as_mut() };
        entry.set_addr(self.start_of(id).as_ptr() as u64);
        entry.set_len(BUFFER_LEN as u32);
        entry.set_bid(id);
        let tail = tail.wrapping_add(1);
        self.tail.set(tail);
        // SAFETY: the tail lies in the mapped table, is aligned, and the kernel only reads it.
        let shared = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(table.as_ptr()).cast_mut()) };
        shared.store(tail, Ordering::Release);
    }

    fn start_of(&self, id: u16) -> NonNull<u8> {
        assert!(id < BUFFER_COUNT, "the kernel names buffers of the group");
        // SAFETY: the offset lies inside the mapping.
        unsafe { self.mapped.add(TABLE_LEN + usize::from(id) * BUFFER_LEN) }
    }
}

const fn mapped_len() -> usize {
    TABLE_LEN + BUFFER_COUNT as usize * BUFFER_LEN
}

impl Drop for ReceiveBuffers {
    fn drop(&mut self) {
        // SAFETY: the core has shut down, so no receive is in flight; nobody else knows the mapping.
        unsafe { libc::munmap(self.mapped.as_ptr().cast(), mapped_len()) };
    }
}
