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
use crate::error::EngineError;
use crate::extent::table::Extent;
use crate::extent::{ExtentClass, ExtentId, Placement};
use crate::format::record::Record;
use crate::wait::KeyLocks;

/// Leases a shard has out at most; beyond that writers wait their turn at the service.
const LEASE_COUNT_MAX: usize = 1 << 16;

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

#[derive(Default)]
pub(super) struct Leases {
    lent: RefCell<BTreeMap<u64, Lent>>,
    next: Cell<u64>,
    /// The data extent that blocks are lent from.
    open: Cell<Option<ExtentId>>,
    opening: Rc<KeyLocks>,
}

impl Leases {
    pub(super) fn set_open(&self, extent: ExtentId) {
        self.open.set(Some(extent));
    }

    pub(super) fn is_open(&self, extent: ExtentId) -> bool {
        self.open.get() == Some(extent)
    }

    /// Nothing more is lent from the open extent.
    pub(super) fn close(&self) {
        self.open.set(None);
    }
}

impl Shard {
    fn column_blocks(&self) -> u32 {
        u32::try_from(self.files.geometry().data_slot_len / BLOCK_LEN as u64)
            .expect("a slot is at most 1 TiB")
    }

    /// Lends between `blocks_min` and `blocks_max` blocks per column.
    ///
    /// # Errors
    /// [`EngineError::NoSpace`], [`EngineError::ShardFailed`].
    pub(crate) async fn lease(
        self: &Rc<Self>,
        blocks_min: u32,
        blocks_max: u32,
    ) -> Result<LeaseGrant, EngineError> {
        self.check_healthy()?;
        let column_blocks = self.column_blocks();
        let blocks_min = blocks_min.clamp(1, column_blocks);
        if self.leases.lent.borrow().len() >= LEASE_COUNT_MAX {
            return Err(EngineError::NoSpace);
        }
        let mut waited = false;
        loop {
            if !self.space.is_full()
                && let Some(grant) = self.lend(blocks_min, blocks_max.max(blocks_min), column_blocks)
            {
                return Ok(grant);
            }
            let turn = self.leases.opening.lock(b"open").await;
            if !self.space.is_full() && self.open_has(blocks_min, column_blocks) {
                continue;
            }
            let placement = match self.allocate_data().await {
                Ok(placement) => placement,
                // What died since the last checkpoint may be room enough; whether it is, the next one shows.
                Err(EngineError::NoSpace) if !waited => {
                    waited = true;
                    drop(turn);
                    self.checkpoint_now().await?;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let id = placement.id;
            let record = Record::ExtentOpened { placement: placement.clone(), nonce: [0; 16] };
            if let Err(error) = self.commit(Change { records: vec![record], payload: Vec::new() }).await {
                self.space.extents.borrow_mut().release(&placement);
                return Err(error);
            }
            let old = self.leases.open.replace(Some(id));
            if let Some(old) = old {
                self.seal_if_done(old);
            }
        }
    }

    async fn allocate_data(&self) -> Result<Placement, EngineError> {
        if self.space.is_full() {
            return Err(EngineError::NoSpace);
        }
        let placed = self.space.allocate(ExtentClass::Data).await;
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
    fn has_dead_data(&self) -> bool {
        let extents = self.space.extents.borrow();
        let is_dead = |extent: &Extent| {
            extent.sealed && extent.live_len == 0 && extent.lease_count == 0 && !extent.condemned
        };
        extents.iter().any(|extent| extent.placement.class == ExtentClass::Data && is_dead(extent))
    }

    fn open_has(&self, blocks: u32, column_blocks: u32) -> bool {
        let extents = self.space.extents.borrow();
        let open = self.leases.open.get().and_then(|id| extents.get(id));
        open.is_some_and(|extent| column_blocks - extent.next_block >= blocks)
    }

    fn lend(&self, blocks_min: u32, blocks_max: u32, column_blocks: u32) -> Option<LeaseGrant> {
        let open = self.leases.open.get()?;
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
            let open = self.leases.open.get() == Some(lent.extent);
            if open && extent.next_block == lent.block + lent.blocks {
                extent.next_block = lent.block + used.min(lent.blocks);
            }
        }
        self.seal_if_done(lent.extent);
    }

    /// Seals the data extents that nobody can write to any more. Without a record: where the log says nothing, recovery
    /// seals them as well.
    pub(super) fn seal_idle(&self) {
        let open = self.leases.open.get();
        let mut extents = self.space.extents.borrow_mut();
        for extent in extents.iter_mut() {
            // An extent that nothing was lent from yet is about to become the open one.
            let idle = extent.lease_count == 0 && extent.next_block > 0 && Some(extent.placement.id) != open;
            if extent.placement.class == ExtentClass::Data && idle {
                extent.sealed = true;
            }
        }
    }

    /// Logs that nothing more will be written to `id`, once that is true.
    pub(super) fn seal_if_done(self: &Rc<Self>, id: ExtentId) {
        if self.leases.open.get() == Some(id) {
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
