//! Small bodies that live in the log: one aligned read around them, verified, from any replica that has them right.

use std::io;
use std::ops::Range;

use basalt_reactor::arena::BUF_LEN_MAX;
use basalt_reactor::disk::BLOCK_LEN;
use basalt_reactor::{Buf, Slice};

use super::error::{BodyError, Damage, Fault};
use super::layout::BLOCK_CRC_LEN;
use super::recover::{arrived, check};
use super::{Bodies, OnDamage};
use crate::extent::replicas::ReplicaRead;
use crate::extent::{ExtentClass, ExtentId, Placement};
use crate::mutant::Mutant;

/// Longest inline body, in bytes: wherever it starts, the blocks around it fit one buffer.
pub const INLINE_LEN_MAX: u32 = (BUF_LEN_MAX - 2 * BLOCK_LEN) as u32;

/// A body whose bytes lie in one piece in the payload of a log batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InlineBody {
    /// A log extent.
    pub extent: ExtentId,
    /// Where in the extent the bytes start; any byte.
    pub offset: u64,
    pub len: u32,
    /// CRC32C of each [`BLOCK_CRC_LEN`] bytes of the body, the last ones of what is left.
    pub crcs: Vec<u32>,
}

impl InlineBody {
    /// Checks that the description is whole and stays inside a log extent of `slot_len` bytes.
    ///
    /// # Errors
    /// [`BodyError::Malformed`] saying what contradicts what.
    pub fn check(&self, slot_len: u64) -> Result<(), BodyError> {
        if self.len > INLINE_LEN_MAX {
            return Err(BodyError::Malformed { what: "an inline body longer than a buffer" });
        }
        if self.offset.checked_add(u64::from(self.len)).is_none_or(|end| end > slot_len) {
            return Err(BodyError::Malformed { what: "an inline body beyond its extent" });
        }
        if self.crcs.len() as u64 != u64::from(self.len).div_ceil(BLOCK_CRC_LEN) {
            return Err(BodyError::Malformed { what: "not one checksum per inline block" });
        }
        Ok(())
    }
}

/// The aligned read that covers some checksum blocks of an inline body.
#[derive(Clone, Debug, PartialEq, Eq)]
struct InlineRead {
    /// In the extent.
    offset: u64,
    len: usize,
    /// Where the first covered block starts in the buffer, and its index.
    start: usize,
    first_crc: usize,
    /// End of the covered blocks in the buffer.
    end: usize,
    answer: Range<usize>,
}

fn plan_inline(body: &InlineBody, range: Range<u32>) -> InlineRead {
    let block = BLOCK_CRC_LEN as u32;
    let covered = range.start / block * block..range.end.next_multiple_of(block).min(body.len);
    let first = body.offset + u64::from(covered.start);
    let offset = first / BLOCK_LEN as u64 * BLOCK_LEN as u64;
    let start = (first - offset) as usize;
    let end = start + covered.len();
    let skipped = start + (range.start - covered.start) as usize;
    InlineRead {
        offset,
        len: end.next_multiple_of(BLOCK_LEN),
        start,
        first_crc: (range.start / block) as usize,
        end,
        answer: skipped..skipped + range.len(),
    }
}

impl Bodies {
    /// Reads bytes `range` of an inline body, which must not be empty. A damaged replica is reported, and the next one
    /// answers; so it does for one that is late.
    ///
    /// # Errors
    /// [`BodyError::Lost`] when no replica has the bytes; [`BodyError::Malformed`], [`BodyError::OutOfRange`].
    pub async fn read_inline(
        &self,
        placement: &Placement,
        body: &InlineBody,
        range: Range<u32>,
        on_damage: &OnDamage,
    ) -> Result<Slice, BodyError> {
        body.check(self.files.geometry().log_slot_len)?;
        if range.is_empty() || range.end > body.len {
            let (start, end, len) = (range.start.into(), range.end.into(), body.len.into());
            return Err(BodyError::OutOfRange { start, end, len });
        }
        let plan = plan_inline(body, range);
        let damage = |index: usize, fault| Damage {
            extent: body.extent,
            column: index as u8,
            disk: placement.columns[index].disk,
            offset: plan.offset,
            len: plan.len as u32,
            fault,
        };
        let read = ReplicaRead {
            core: &self.core.core,
            files: &self.files,
            class: ExtentClass::Log,
            columns: &placement.columns,
            // Which replica is asked first differs from place to place, so that all disks share the reads.
            first: (plan.offset / BLOCK_LEN as u64) as usize % placement.columns.len().max(1),
            offset: plan.offset,
            len: plan.len,
        };
        let mut faults = Vec::new();
        let open = |_, result, buf| verified(result, buf, body, &plan);
        let bytes = read
            .first_good(open, |index, fault| {
                let damage = damage(index, fault);
                on_damage(damage, None);
                faults.push(damage);
            })
            .await;
        if let Some(bytes) = bytes {
            if !faults.is_empty() {
                self.core.count_restored(1);
            }
            return Ok(bytes.slice(plan.answer));
        }
        let absent =
            |index: &usize| self.files.locate_readable(ExtentClass::Log, placement.columns[*index]).is_none();
        faults.extend((0..placement.columns.len()).filter(absent).map(|index| damage(index, Fault::Absent)));
        Err(BodyError::Lost { extent: body.extent, offset: plan.offset, len: plan.len as u32, faults })
    }
}

/// What a read around an inline body brought, if it is what was written.
fn verified(
    result: io::Result<usize>,
    buf: Buf,
    body: &InlineBody,
    plan: &InlineRead,
) -> Result<Slice, Fault> {
    arrived(&result, buf.len())?;
    let bytes = buf.freeze();
    let blocks = bytes[plan.start..plan.end].chunks(BLOCK_CRC_LEN as usize);
    for (block, expected) in blocks.zip(&body.crcs[plan.first_crc..]) {
        if !Mutant::InlineUnverified.is_active() {
            check(block, *expected)?;
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(offset: u64, len: u32) -> InlineBody {
        let crcs = vec![0; len.div_ceil(BLOCK_CRC_LEN as u32) as usize];
        InlineBody { extent: ExtentId(1), offset, len, crcs }
    }

    #[test]
    fn covers_whole_checksum_blocks_and_aligns() {
        let read = plan_inline(&body(5000, 100), 10..20);
        let expected =
            InlineRead { offset: 4096, len: 4096, start: 904, first_crc: 0, end: 1004, answer: 914..924 };
        assert_eq!(read, expected);
        let read = plan_inline(&body(100, 200_000), 70_000..70_001);
        assert_eq!((read.offset, read.start, read.first_crc), (65_536, 100, 1));
        assert_eq!((read.end, read.len, read.answer), (100 + 65_536, 65_536 + 4096, 4564..4565));
        let read = plan_inline(&body(4095, INLINE_LEN_MAX), 0..INLINE_LEN_MAX);
        assert!(read.len <= BUF_LEN_MAX);
    }

    #[test]
    fn a_description_that_contradicts_itself_is_refused() {
        assert!(body(10, 100).check(110).is_ok());
        assert!(body(10, 100).check(109).is_err());
        assert!(body(u64::MAX, 100).check(u64::MAX).is_err());
        assert!(body(0, INLINE_LEN_MAX + 1).check(u64::MAX).is_err());
        assert!(InlineBody { crcs: Vec::new(), ..body(0, 1) }.check(10).is_err());
    }
}
