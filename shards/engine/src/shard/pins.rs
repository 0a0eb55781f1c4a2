//! Pins: extents that a reader may still read, whatever happens to the keys that named them.
//!
//! A lookup pins the extents of the value it found. If one of them is on its way out by then, the value is superseded,
//! and the lookup starts over; so no answer names an extent that may be freed under its reader.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use super::Shard;
use crate::extent::ExtentId;

#[derive(Default)]
pub(super) struct Pins {
    held: RefCell<BTreeMap<u64, Vec<ExtentId>>>,
    next: Cell<u64>,
}

impl Pins {
    /// Pins that are held.
    pub(super) fn count(&self) -> usize {
        self.held.borrow().len()
    }
}

/// Keeps extents until dropped.
pub(super) struct PinnedExtents {
    shard: Rc<Shard>,
    pin: u64,
}

impl Drop for PinnedExtents {
    fn drop(&mut self) {
        self.shard.unpin(self.pin);
    }
}

impl Shard {
    /// As [`Shard::pin`], until the guard is dropped.
    pub(super) fn pin_extents(self: &Rc<Self>, extents: Vec<ExtentId>) -> Option<PinnedExtents> {
        let pin = self.pin(extents)?;
        Some(PinnedExtents { shard: Rc::clone(self), pin })
    }

    /// Keeps `extents` from being freed until [`Shard::unpin`]; `None` when one of them is gone or going.
    pub(crate) fn pin(&self, extents: Vec<ExtentId>) -> Option<u64> {
        {
            let mut table = self.space.extents.borrow_mut();
            if extents.iter().any(|&id| table.get(id).is_none_or(|extent| extent.condemned)) {
                return None;
            }
            for &id in &extents {
                if let Some(extent) = table.get_mut(id) {
                    extent.pin_count += 1;
                }
            }
        }
        let pin = self.pins.next.get();
        self.pins.next.set(pin + 1);
        self.pins.held.borrow_mut().insert(pin, extents);
        Some(pin)
    }

    pub(crate) fn unpin(&self, pin: u64) {
        let Some(extents) = self.pins.held.borrow_mut().remove(&pin) else { return };
        let mut table = self.space.extents.borrow_mut();
        for id in extents {
            if let Some(extent) = table.get_mut(id) {
                extent.pin_count -= 1;
            }
        }
    }
}
