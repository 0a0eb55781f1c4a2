//! Repair of index tables: frames that one replica has whole are copied to those that have not.

use std::ops::Range;
use std::rc::Rc;

use crate::body::{Damage, Fault, Mended};
use crate::extent::{ExtentClass, ExtentId};
use crate::shard::Shard;
use crate::shard::scrub::pace::Pace;

impl Shard {
    /// Verifies every replica of the table in `extent`, or of what lies in `range` of it, and mends them. Says whether damage
    /// stays. Nothing is done when the index has no such table any more.
    pub(in crate::shard) async fn mend_table(
        self: &Rc<Self>,
        extent: ExtentId,
        range: Option<Range<u64>>,
        pace: &Pace,
    ) -> bool {
        let Some(first) = self.index.check_table(extent) else { return false };
        let replicas = first.placement().columns.len();
        let wanted = |run: &Range<usize>| range.as_ref().is_none_or(|range| first.overlaps(run, range));
        let runs: Vec<(Range<usize>, usize)> = first
            .runs()
            .into_iter()
            .filter(wanted)
            .map(|run| (run.clone(), first.run_len(&run) * replicas))
            .collect();
        drop(first);
        let mut stays = false;
        for (run, len) in runs {
            if !pace.unit(self, len).await {
                return stays;
            }
            // Held for one run at a time: it may be dropped from the index meanwhile, and is to be freed then.
            let Some(check) = self.index.check_table(extent).map(Rc::new) else { return stays };
            let frames = check.run(run).await;
            if frames.is_empty() {
                continue;
            }
            let turn = self.repairs.turn().await;
            let (shard, check) = (Rc::clone(self), Rc::clone(&check));
            let placement = check.placement().clone();
            // A task of its own: see `mend_row`. The check keeps the table.
            let task = self.core.spawn(async move {
                let mut mended = Mended::default();
                for frame in frames {
                    for &index in &frame.lacking {
                        let column = check.placement().columns[index];
                        let damage = Damage {
                            extent,
                            column: u8::try_from(index).expect("a set has at most 20 disks"),
                            disk: column.disk,
                            offset: frame.offset,
                            len: u32::try_from(frame.len).unwrap_or(u32::MAX),
                            fault: Fault::NotWhole,
                        };
                        let Some(bytes) = &frame.bytes else {
                            mended.unrepairable.push(damage);
                            continue;
                        };
                        let spare = shard.core.arena().alloc(frame.len).await;
                        let place = (ExtentClass::Table, column, frame.offset);
                        let rewrite = shard.files.rewrite(&shard.core, place, bytes.clone(), spare);
                        let (written, _) = rewrite.await;
                        mended.note(damage, column, written);
                    }
                }
                drop((turn, check));
                mended
            });
            let mended = task.await.unwrap_or_default();
            self.note_mended(&mended, &placement);
            stays |= !mended.unrepairable.is_empty();
        }
        stays
    }
}
