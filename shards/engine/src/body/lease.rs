//! Leases: room in data extents that the owning shard lends to a writer until the body is committed or given up.
//!
//! The shard alone allocates; a writer on any core asks it for runs of blocks. A leased run belongs to one writer, no
//! other bytes are put there, and it returns to the shard by a commit (which says how much was used) or by a release.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use super::error::BodyError;
use crate::extent::Placement;

/// Blocks `block..block + blocks` of every column of an extent, lent to one writer.
#[derive(Clone, Debug)]
pub struct Lease {
    pub id: u64,
    pub placement: Rc<Placement>,
    /// In units of [`basalt_reactor::disk::BLOCK_LEN`], from the start of the columns.
    pub block: u32,
    pub blocks: u32,
}

/// A lease that comes as asked for, later.
pub type LeaseFuture = Pin<Box<dyn Future<Output = Result<Lease, BodyError>>>>;

/// The owning shard, as a writer sees it.
pub trait Lessor {
    /// A run of `blocks_min..=blocks_max` blocks of a data extent whose columns are all present. A lease that arrives
    /// after the future was dropped goes back to the shard.
    ///
    /// # Errors
    /// In the future: [`BodyError::NoSpace`], [`BodyError::Closed`].
    fn lease(&self, blocks_min: u32, blocks_max: u32) -> LeaseFuture;

    /// Gives a lease back; nothing in its blocks is needed, and no write to them is in flight.
    fn release(&self, lease: u64);
}

/// A lease and how many of its blocks, from the first on, hold bytes of the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseUse {
    pub id: u64,
    pub used_blocks: u32,
}

/// Leases held for a body. Dropping them releases them; [`Leases::keep`] does not.
pub struct Leases {
    lessor: Rc<dyn Lessor>,
    held: Vec<LeaseUse>,
}

impl Leases {
    #[must_use]
    pub fn new(lessor: Rc<dyn Lessor>) -> Leases {
        Leases { lessor, held: Vec::new() }
    }

    pub(super) fn push(&mut self, id: u64) {
        self.held.push(LeaseUse { id, used_blocks: 0 });
    }

    /// Adds `blocks` to what the newest lease holds.
    pub(super) fn count(&mut self, blocks: u32) {
        self.held.last_mut().expect("blocks are written under a lease").used_blocks += blocks;
    }

    #[must_use]
    pub fn held(&self) -> &[LeaseUse] {
        &self.held
    }

    /// Takes `other`'s leases over.
    pub fn append(&mut self, mut other: Leases) {
        self.held.append(&mut other.held);
    }

    /// Hands the leases over to the record that commits them: from here on the shard ends them.
    #[must_use]
    pub fn keep(mut self) -> Vec<LeaseUse> {
        std::mem::take(&mut self.held)
    }

    pub(super) fn take(&mut self) -> Leases {
        Leases { lessor: Rc::clone(&self.lessor), held: std::mem::take(&mut self.held) }
    }
}

impl Drop for Leases {
    fn drop(&mut self) {
        for lease in &self.held {
            self.lessor.release(lease.id);
        }
    }
}
