//! The arena's memory as the ring's registered buffers.
//!
//! Registration pins memory, so it happens piece by piece when a piece first sees a disk: the process grows with what
//! it uses, not with what it may use. Where RLIMIT_MEMLOCK ends, transfers go on unregistered, a little slower.

use std::cell::{Cell, RefCell};
use std::ptr::NonNull;

use io_uring::IoUring;

use super::setup;
use crate::arena::{Arena, BUF_LEN_MAX};

/// The kernel's limit on registered buffers of one ring.
const PIECE_COUNT_MAX: usize = 1 << 14;

/// Smallest piece: a huge page, so that it can be one entry of the device's scatter list.
const PIECE_LEN_MIN: usize = 2 << 20;

const _: () = assert!(PIECE_LEN_MIN.is_multiple_of(BUF_LEN_MAX), "no buffer may straddle two pieces");

pub(super) struct Buffers {
    arena: Arena,
    piece_len: usize,
    pieces: RefCell<Vec<Piece>>,
    /// The kernel refused a piece; no more are tried.
    exhausted: Cell<bool>,
}

#[derive(Clone, Copy, PartialEq)]
enum Piece {
    Untried,
    Registered,
    Refused,
}

impl Buffers {
    pub(super) fn new(ring: &IoUring, arena: Arena, warnings: &mut Vec<String>) -> Buffers {
        let (_, len) = arena.region();
        let memlock = setup::raise_limit(libc::RLIMIT_MEMLOCK);
        let piece_len = len.div_ceil(PIECE_COUNT_MAX).next_power_of_two().max(PIECE_LEN_MIN);
        let piece_count = len.div_ceil(piece_len);
        let table = ring.submitter().register_buffers_sparse(piece_count as u32);
        if let Err(error) = &table {
            warnings.push(format!("buffers are not registered with the ring: {error}"));
        } else if memlock < len as u64 && !has_ipc_lock() {
            warnings.push(format!(
                "RLIMIT_MEMLOCK is {memlock} bytes, less than the {len} bytes of this core's buffers: some transfers \
                 go unregistered; raise it (LimitMEMLOCK=infinity)"
            ));
        }
        Buffers {
            arena,
            piece_len,
            pieces: RefCell::new(vec![Piece::Untried; piece_count]),
            exhausted: Cell::new(table.is_err()),
        }
    }

    /// Index of the registered buffer that holds `start..start + len`, registering it if need be.
    pub(super) fn index_of(&self, ring: &IoUring, start: *const u8) -> Option<u16> {
        let (region, region_len) = self.arena.region();
        let offset = (start as usize).wrapping_sub(region.as_ptr() as usize);
        if offset >= region_len {
            return None;
        }
        let index = offset / self.piece_len;
        let mut pieces = self.pieces.borrow_mut();
        if pieces[index] == Piece::Untried && !self.exhausted.get() {
            pieces[index] = self.register(ring, index, region, region_len);
        }
        (pieces[index] == Piece::Registered).then_some(index as u16)
    }

    fn register(&self, ring: &IoUring, index: usize, region: NonNull<u8>, region_len: usize) -> Piece {
        let at = index * self.piece_len;
        let piece = libc::iovec {
            // SAFETY: the offset lies inside the region.
            iov_base: unsafe { region.add(at) }.as_ptr().cast(),
            iov_len: self.piece_len.min(region_len - at),
        };
        // SAFETY: the memory belongs to the arena, which `self` holds until the ring is closed.
        match unsafe { ring.submitter().register_buffers_update(index as u32, &[piece], None) } {
            Ok(()) => Piece::Registered,
            Err(error) => {
                tracing::debug!(%error, index, "arena piece not registered");
                self.exhausted.set(true);
                Piece::Refused
            }
        }
    }
}

/// Whether this process may lock memory beyond its limit (CAP_IPC_LOCK, bit 14).
fn has_ipc_lock() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & 1 << 14 != 0)
}
