//! Leases: column blocks of the open data extent, lent to a core that writes a body.
//!
//! A lease ends in one of two ways: its mutation commits, or it is returned; blocks that no record names then were never
//! live. An extent is sealed once it is full and its last lease has ended.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use basalt_reactor::disk::BLOCK_LEN;

use super::Shard;
use super::commit::Change;
use super::space::Claim;
use crate::error::EngineError;
use crate::extent::table::Extent;
use crate::extent::{ExtentClass, ExtentId, Placement};
use crate::format::record::Record;
use crate::wait::KeyLocks;

/// Leases a shard has out at most; beyond that writers wait their turn at the service.
const LEASE_COUNT_MAX: usize = 1 << 16;

/// Times that one request waits for collection to make room.
pub(super) const RECLAIM_COUNT_MAX: u32 = 64;

/// Blocks lent out: `blocks` from `block` on in every column of the extent.
#[derive(Clone, Debug)]
pub struct LeaseGrant {
    pub id: u64,
    pub placement: Placement,
    pub block: u32,
    pub blocks: u32,
}

#[derive(Clone, Copy)]
struct Lent {
    extent: ExtentId,
    block: u32,
    blocks: u32,
}

/// For whom blocks are lent. What collection moves has lived for a while and will live on; among what clients just wrote
/// it would be moved again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    Clients,
    /// Of a collector that may take the last extent, or must leave it for later.
    Collection(Claim),
}

impl Stream {
    fn claim(self) -> Claim {
        match self {
            Stream::Clients => Claim::Clients,
            Stream::Collection(claim) => claim,
        }
    }
}

#[derive(Default)]
pub(super) struct Leases {
    lent: RefCell<BTreeMap<u64, Lent>>,
    next: Cell<u64>,
    /// The data extent that blocks are lent to clients from, and the one for collection.
    open_to_clients: Cell<Option<ExtentId>>,
    open_to_collection: Cell<Option<ExtentId>>,
    opening: Rc<KeyLocks>,
}

impl Leases {
    pub(super) fn set_open(&self, extent: ExtentId) {
        self.open_to_clients.set(Some(extent));
    }

    fn open(&self, stream: Stream) -> &Cell<Option<ExtentId>> {
        match stream {
            Stream::Clients => &self.open_to_clients,
            Stream::Collection(_) => &self.open_to_collection,
        }
    }

    pub(super) fn is_open(&self, extent: ExtentId) -> bool {
        [self.open_to_clients.get(), self.open_to_collection.get()].contains(&Some(extent))
    }

    /// Nothing more is lent from an open extent.
    pub(super) fn close(&self, extent: ExtentId) {
        for open in [&self.open_to_clients, &self.open_to_collection] {
            if open.get() == Some(extent) {
                open.set(None);
            }
        }
    }
}

impl Shard {
    fn column_blocks(&self) -> u32 {
        u32::try_from(self.files.geometry().data_slot_len / BLOCK_LEN as u64)
            .expect("a slot is at most 1 TiB")
    }

    /// Lends a client between `blocks_min` and `blocks_max` blocks per column.
    ///
    /// # Errors
    /// [`EngineError::NoSpace`], [`EngineError::ShardFailed`].
    pub(crate) async fn lease(
        self: &Rc<Self>,
        blocks_min: u32,
        blocks_max: u32,
    ) -> Result<LeaseGrant, EngineError> {
        let mut attempts = 0;
        loop {
            match self.lease_from(Stream::Clients, blocks_min, blocks_max).await {
                Err(EngineError::NoSpace) if attempts < RECLAIM_COUNT_MAX => {
                    if !self.reclaim(attempts == 0).await? {
                        return Err(EngineError::NoSpace);
                    }
                    attempts += 1;
                }
                other => return other,
            }
        }
    }

    /// As [`Shard::lease`], of what there is now.
    pub(super) async fn lease_from(
        self: &Rc<Self>,
        stream: Stream,
        blocks_min: u32,
        blocks_max: u32,
    ) -> Result<LeaseGrant, EngineError> {
        self.check_healthy()?;
        let column_blocks = self.column_blocks();
        if blocks_min > column_blocks || self.leases.lent.borrow().len() >= LEASE_COUNT_MAX {
            return Err(EngineError::NoSpace);
        }
        let blocks_min = blocks_min.max(1);
        let is_refused = || stream == Stream::Clients && self.space.is_full();
        let open = self.leases.open(stream);
        loop {
            if !is_refused()
                && let Some(grant) = self.lend(open, blocks_min, blocks_max.max(blocks_min), column_blocks)
            {
                return Ok(grant);
            }
            let _turn = self.leases.opening.lock(b"open").await;
            if !is_refused() && self.has_room(open, blocks_min, column_blocks) {
                continue;
            }
            let placement = self.allocate_data(stream).await?;
            let id = placement.id;
            let record = Record::ExtentOpened { placement: placement.clone(), nonce: [0; 16] };
            if let Err(error) = self.commit(Change { records: vec![record], payload: Vec::new() }).await {
                self.space.extents.borrow_mut().release(&placement);
                return Err(error);
            }
            let old = open.replace(Some(id));
            if let Some(old) = old {
                self.seal_if_done(old);
            }
        }
    }

    async fn allocate_data(&self, stream: Stream) -> Result<Placement, EngineError> {
        if stream == Stream::Clients && self.space.is_full() {
            return Err(EngineError::NoSpace);
        }
        let placed = self.space.allocate_data(stream.claim()).await;
        if let Err(error) = &placed
            && *error != EngineError::NoSpace
        {
            // A failed sync of the arena may have dropped bytes of bodies that were not synced yet, and the next sync,
            // which their writers wait for, need not say so.
            self.fail(error.to_string());
        }
        // Large bodies make little log, so the log alone would call for a checkpoint long after their space is needed
        // again: overwriting would grow the files until the disk is full.
        if self.has_dead_data() {
            self.want_checkpoint();
        }
        placed
    }

    /// Whether a checkpoint would give back a data extent.
    pub(super) fn has_dead_data(&self) -> bool {
        let extents = self.space.extents.borrow();
        let is_dead = |extent: &Extent| {
            extent.sealed && extent.live_len == 0 && extent.lease_count == 0 && !extent.condemned
        };
        extents.iter().any(|extent| extent.placement.class == ExtentClass::Data && is_dead(extent))
    }

    /// Blocks per column left in the extent that collection writes to.
    pub(super) fn collection_room(&self) -> u32 {
        let extents = self.space.extents.borrow();
        let open = self.leases.open_to_collection.get().and_then(|id| extents.get(id));
        open.map_or(0, |extent| self.column_blocks() - extent.next_block)
    }

    fn has_room(&self, open: &Cell<Option<ExtentId>>, blocks: u32, column_blocks: u32) -> bool {
        let extents = self.space.extents.borrow();
        let open = open.get().and_then(|id| extents.get(id));
        open.is_some_and(|extent| column_blocks - extent.next_block >= blocks)
    }

    fn lend(
        &self,
        open: &Cell<Option<ExtentId>>,
        blocks_min: u32,
        blocks_max: u32,
        column_blocks: u32,
    ) -> Option<LeaseGrant> {
        let open = open.get()?;
        let mut extents = self.space.extents.borrow_mut();
        let extent = extents.get_mut(open)?;
        let room = column_blocks - extent.next_block;
        if room < blocks_min {
            return None;
        }
        let lent = Lent { extent: open, block: extent.next_block, blocks: blocks_max.min(room) };
        extent.next_block += lent.blocks;
        extent.lease_count += 1;
        let id = self.leases.next.get();
        self.leases.next.set(id + 1);
        self.leases.lent.borrow_mut().insert(id, lent);
        Some(LeaseGrant {
            id,
            placement: (*extent.placement).clone(),
            block: lent.block,
            blocks: lent.blocks,
        })
    }

    /// Ends a lease of which the first `used` blocks were written; an unused tail goes back when nothing was lent after.
    pub(crate) fn end_lease(self: &Rc<Self>, id: u64, used: u32) {
        let Some(lent) = self.leases.lent.borrow_mut().remove(&id) else { return };
        {
            let mut extents = self.space.extents.borrow_mut();
            let extent = extents.get_mut(lent.extent).expect("a leased extent is never freed");
            extent.lease_count -= 1;
            if self.leases.is_open(lent.extent) && extent.next_block == lent.block + lent.blocks {
                extent.next_block = lent.block + used.min(lent.blocks);
            }
        }
        self.seal_if_done(lent.extent);
    }

    /// Seals the data extents that nobody can write to any more. Without a record: where the log says nothing, recovery
    /// seals them as well.
    pub(super) fn seal_idle(&self) {
        let mut extents = self.space.extents.borrow_mut();
        // What is left empty of collection's need not wait until it is full.
        let collected = self.leases.open_to_collection.get().and_then(|id| extents.get_mut(id));
        if let Some(extent) = collected.filter(|extent| extent.lease_count == 0 && extent.live_len == 0) {
            self.leases.open_to_collection.set(None);
            extent.sealed = true;
        }
        for extent in extents.iter_mut() {
            // An extent that nothing was lent from yet is about to become the open one.
            let is_open = self.leases.is_open(extent.placement.id);
            let idle = extent.lease_count == 0 && extent.next_block > 0 && !is_open;
            if extent.placement.class == ExtentClass::Data && idle {
                extent.sealed = true;
            }
        }
    }

    /// Logs that nothing more will be written to `id`, once that is true.
    pub(super) fn seal_if_done(self: &Rc<Self>, id: ExtentId) {
        if self.leases.is_open(id) {
            return;
        }
        {
            let mut extents = self.space.extents.borrow_mut();
            let Some(extent) = extents.get_mut(id) else { return };
            if extent.sealed || extent.lease_count > 0 || extent.placement.class != ExtentClass::Data {
                return;
            }
        }
        let shard = Rc::clone(self);
        self.core.spawn(async move {
            let records = vec![Record::ExtentSealed { extent: id }];
            // A shard that failed seals nothing; recovery will.
            if shard.commit(Change { records, payload: Vec::new() }).await.is_ok() {
                shard.wake_background();
            }
        });
    }
}
