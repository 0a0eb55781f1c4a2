//! Scrub of data extents: what their directory chunks describe, column by column.

use std::rc::Rc;

use super::pace::Pace;
use crate::body::directory::DirectoryChunk;
use crate::body::verify::{Flaws, gaps};
use crate::body::{Bodies, Damage, Fault, Mended};
use crate::extent::ExtentId;
use crate::shard::Shard;

impl Shard {
    /// Verifies every stripe and every directory chunk of a data extent, and mends what belongs to somebody.
    pub(super) async fn scrub_data(self: &Rc<Self>, bodies: &Rc<Bodies>, id: ExtentId, pace: &Pace) {
        // Not pinned for so long: it may be freed meanwhile, and its slots be others' by the time they are read. What
        // does not hold then is named by no value, or the extent is gone when it is to be mended.
        let found = self
            .space
            .extents
            .borrow()
            .get(id)
            .map(|extent| (Rc::clone(&extent.placement), extent.next_block));
        let Some((placement, end)) = found else { return };
        let before = async |len: usize| pace.unit(self, len).await;
        let Some(chunks) = bodies.directory(&placement, end, &before).await else { return };
        let mut covering = Vec::with_capacity(chunks.len());
        for chunk in &chunks {
            chunk.entries.iter().for_each(|entry| self.propose_merge_of(entry));
            let Some(flaws) = bodies.verify(&placement, chunk, &before).await else { return };
            // One that belongs to nobody may lie where another is lost.
            if flaws.is_empty() || self.mend_chunk(bodies, id, chunk, flaws).await {
                covering.push(chunk);
            }
        }
        self.scrub.gaps.note(id, gaps(covering, end));
    }

    /// Mends what `chunk` describes, and its own copies, if any of it belongs to somebody; says whether it does.
    async fn mend_chunk(
        self: &Rc<Self>,
        bodies: &Rc<Bodies>,
        id: ExtentId,
        chunk: &DirectoryChunk,
        flaws: Flaws,
    ) -> bool {
        let mut live = Vec::with_capacity(chunk.entries.len());
        for entry in &chunk.entries {
            live.push(self.is_live(bodies, id, entry).await);
        }
        for (entry, row) in flaws.rows {
            if live[entry] {
                self.mend_row(bodies, row).await;
            }
        }
        if !live.contains(&true) || flaws.copies.is_empty() {
            return live.contains(&true);
        }
        let turn = self.repairs.turn().await;
        let Some(pin) = self.pin_guard(id) else { return true };
        let placements = self.placements(&[id]);
        let [placement] = placements.as_slice() else { return true };
        let (bodies, place, chunk) = (Rc::clone(bodies), placement.clone(), chunk.clone());
        // A task of its own: see `mend_row`.
        let task = self.core.spawn(async move {
            let mut mended = Mended::default();
            for index in flaws.copies {
                let column = place.columns[index];
                let damage = Damage {
                    extent: place.id,
                    column: u8::try_from(index).expect("a set has at most 20 disks"),
                    disk: column.disk,
                    offset: u64::from(chunk.block) * basalt_reactor::disk::BLOCK_LEN as u64,
                    len: u32::try_from(chunk.encoded_len()).unwrap_or(u32::MAX),
                    fault: Fault::NoChunk,
                };
                let written = bodies.rewrite_chunk(column, &chunk).await;
                mended.note(damage, column, written);
            }
            drop((pin, turn));
            mended
        });
        let mended = task.await.unwrap_or_default();
        self.note_mended(&mended, placement);
        true
    }
}
