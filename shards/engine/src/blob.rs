//! Long values of the index, written to data extents, and what bodies there take of each extent.
//!
//! A value holds few segments and checksums itself; a body with more has them in a blob, which is a striped body too. A
//! value's footprint counts both, blocks of directory chunks included, so that an extent is empty exactly when nothing in
//! it is named any more.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use basalt_reactor::disk::BLOCK_LEN;

use crate::body::budget::Permit;
use crate::body::directory::{self, Owner};
use crate::body::layout::StripeShape;
use crate::body::{Bodies, Leases, Written};
use crate::error::EngineError;
use crate::extent::{ExtentId, Geometry};
use crate::format::record::LiveDelta;
use crate::value::{self, FOOTPRINT_COUNT_MAX, Footprint, Part, PartBody, Striped, Value};

/// Block checksums a value holds itself; a body with more has them in a blob.
const CRC_COUNT_MAX: usize = 512;

/// Segments a value holds itself.
const SEGMENT_COUNT_MAX: usize = 64;

/// Longest archive of parts that a value holds itself, bytes.
const PARTS_LEN_MAX: usize = 8 << 10;

/// A value that lies in data extents.
pub(crate) struct Blob {
    pub(crate) map: Striped,
    pub(crate) leases: Leases,
    /// What it was written in.
    pub(crate) memory: Option<Permit>,
}

/// Writes a value that is too long for the index as a body of its own.
pub(crate) async fn write_blob<T: Value>(
    bodies: &Rc<Bodies>,
    owner: Owner,
    memory: Option<Permit>,
    footprint: &mut FootprintSum,
    value: &T,
) -> Result<Blob, EngineError> {
    let bytes = value::encode(value);
    let mut writer = bodies.writer(directory::Content::Blob, owner).in_memory(memory);
    writer.expect(bytes.len() as u64);
    writer.write(&bytes).await?;
    let (written, memory) = writer.finish_and_keep().await?;
    footprint.add(&written);
    Ok(Blob { map: Striped::from(&written.body), leases: written.leases, memory })
}

/// Whether a value cannot hold the description of this body itself.
pub(crate) fn is_spilled(striped: &Striped) -> bool {
    striped.crcs.len() > CRC_COUNT_MAX || striped.segments.len() > SEGMENT_COUNT_MAX
}

/// Whether a value cannot hold these parts itself.
pub(crate) fn are_spilled(parts: &Vec<Part>) -> bool {
    parts.archive(Vec::new()).len() > PARTS_LEN_MAX
}

/// The description of a body as a value holds it, in a blob if need be, whose leases are added to `leases`.
pub(crate) async fn describe(
    bodies: &Rc<Bodies>,
    owner: Owner,
    memory: Option<Permit>,
    footprint: &mut FootprintSum,
    leases: &mut Leases,
    striped: Striped,
) -> Result<(PartBody, Option<Permit>), EngineError> {
    if !is_spilled(&striped) {
        return Ok((PartBody::Striped(striped), memory));
    }
    let Blob { map, leases: own, memory } = write_blob(bodies, owner, memory, footprint, &striped).await?;
    leases.append(own);
    Ok((PartBody::Spilled { map }, memory))
}

/// Live bytes per extent, summed up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FootprintSum {
    /// Column bytes and end block by extent.
    extents: BTreeMap<u64, (u64, u32)>,
}

impl FootprintSum {
    /// A segment's directory chunk lives and dies with it.
    pub(crate) fn add(&mut self, written: &Written) {
        for (segment, &blocks) in written.body.segments.iter().zip(&written.segment_blocks) {
            let sum = self.extents.entry(segment.extent.0).or_insert((0, 0));
            sum.0 += u64::from(blocks) * BLOCK_LEN as u64;
            sum.1 = sum.1.max(segment.block + blocks);
        }
    }

    pub(crate) fn merge(&mut self, prints: &[Footprint]) {
        for print in prints {
            let sum = self.extents.entry(print.extent).or_insert((0, 0));
            sum.0 += print.bytes;
            sum.1 = sum.1.max(print.end_block);
        }
    }

    /// Takes out what the segments of `striped` count, of an owner whose name has `name_len` bytes, but for those in
    /// extent `but`. `false`, and nothing is to be believed, when that is more than there is.
    #[must_use]
    pub(crate) fn subtract(
        &mut self,
        geometry: &Geometry,
        name_len: usize,
        striped: &Striped,
        but: u64,
    ) -> bool {
        striped.segments.iter().filter(|segment| segment.extent != but).all(|segment| {
            let len = segment_len(geometry, name_len, segment.len);
            let Some(sum) = self.extents.get_mut(&segment.extent) else { return false };
            let Some(rest) = sum.0.checked_sub(len) else { return false };
            sum.0 = rest;
            if rest == 0 {
                self.extents.remove(&segment.extent);
            }
            true
        })
    }

    /// Takes out all that lies in `extent`, and says how many column bytes that were.
    pub(crate) fn remove(&mut self, extent: u64) -> u64 {
        self.extents.remove(&extent).map_or(0, |(bytes, _)| bytes)
    }

    /// What has to change in the extents where `old` was in use and this is now.
    pub(crate) fn changes_since(&self, old: &FootprintSum) -> Vec<LiveDelta> {
        let extents: BTreeSet<u64> = self.extents.keys().chain(old.extents.keys()).copied().collect();
        let bytes_in = |sum: &FootprintSum, extent| {
            let bytes = sum.extents.get(&extent).map_or(0, |&(bytes, _)| bytes);
            i64::try_from(bytes).expect("no extent holds 8 EiB")
        };
        extents
            .into_iter()
            .map(|extent| {
                let bytes = bytes_in(self, extent) - bytes_in(old, extent);
                let end_block = self.extents.get(&extent).map_or(0, |&(_, end_block)| end_block);
                LiveDelta { extent: ExtentId(extent), bytes, end_block }
            })
            .filter(|delta| delta.bytes != 0)
            .collect()
    }

    pub(crate) fn finish(self) -> Result<Vec<Footprint>, EngineError> {
        if self.extents.len() > FOOTPRINT_COUNT_MAX {
            return Err(EngineError::NoSpace);
        }
        Ok(self
            .extents
            .into_iter()
            .map(|(extent, (bytes, end_block))| Footprint { extent, bytes, end_block })
            .collect())
    }
}

/// Bytes that a body of `len` bytes takes in every column when it is written in one piece, however many segments that makes.
pub(crate) fn whole_len(geometry: &Geometry, name_len: usize, len: u64) -> u64 {
    let shape = StripeShape::new(geometry);
    // Of a longest segment whole stripes fill all of it.
    let longest = directory::stripes_room(geometry, name_len, geometry.data_slot_len) / shape.strip_len();
    let segment_max = longest * shape.stripe_len();
    let rest = len % segment_max;
    let of_rest = if rest == 0 { 0 } else { segment_len(geometry, name_len, rest) };
    len / segment_max * segment_len(geometry, name_len, segment_max) + of_rest
}

/// Bytes that a segment of `len` body bytes takes in every column with its directory chunk.
pub(crate) fn segment_len(geometry: &Geometry, name_len: usize, len: u64) -> u64 {
    let column_len = StripeShape::new(geometry).column_len(len);
    column_len + directory::chunk_len(geometry, name_len, column_len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::SegmentValue;

    const GEOMETRY: Geometry = Geometry {
        k: 2,
        m: 1,
        strip_len: 4096,
        log_slot_len: 1 << 20,
        data_slot_len: 1 << 20,
        table_slot_len: 1 << 20,
    };

    fn print(extent: u64, bytes: u64) -> Footprint {
        Footprint { extent, bytes, end_block: 9 }
    }

    fn sum(prints: &[Footprint]) -> FootprintSum {
        let mut sum = FootprintSum::default();
        sum.merge(prints);
        sum
    }

    #[test]
    fn a_blob_is_taken_out_with_its_chunk_and_never_more_than_there_is() {
        let segment = |extent| SegmentValue { extent, block: 0, len: 10_000 };
        let map = Striped { len: 20_000, segments: vec![segment(1), segment(2)], crcs: Vec::new() };
        // Two strips of a block in each column, then the chunk.
        let len = segment_len(&GEOMETRY, 3, 10_000);
        assert_eq!(len, 3 * 4096);
        let mut footprint = sum(&[print(1, len), print(2, len), print(3, 5)]);
        assert!(footprint.subtract(&GEOMETRY, 3, &map, 2));
        assert_eq!(footprint, sum(&[print(2, len), print(3, 5)]));
        assert!(!footprint.subtract(&GEOMETRY, 3, &map, 9));
    }

    #[test]
    fn changes_are_what_two_footprints_do_not_share() {
        let (old, new) =
            (sum(&[print(1, 10), print(2, 7), print(3, 4)]), sum(&[print(2, 7), print(3, 9), print(4, 1)]));
        let delta = |extent, bytes, end_block| LiveDelta { extent: ExtentId(extent), bytes, end_block };
        assert_eq!(new.changes_since(&old), [delta(1, -10, 0), delta(3, 5, 9), delta(4, 1, 9)]);
        assert_eq!(new.changes_since(&new), []);
    }
}
