//! Planning reads: from a body's description and a byte range to aligned reads of columns and the blocks in them.
//!
//! Pure, so it is tested without a disk. A range becomes groups of reads: in a group, consecutive blocks of one column
//! are one read, which costs one submission instead of one per block, and the group's blocks are listed in body order,
//! each with its checksum and the part of it that belongs to the answer. Groups are bounded, so that a reader keeps a
//! few in flight whatever the length of the body.

use std::ops::Range;

use basalt_reactor::arena::BUF_LEN_MAX;
use basalt_reactor::disk::BLOCK_LEN;

use super::error::BodyError;
use super::layout::{BLOCK_CRC_LEN, StripeShape, StripedBody, blocks_per_strip};
use super::writer::buf_len;
use crate::extent::{ExtentId, Geometry};

/// Bytes of one group of reads at most: what one arena buffer can hold, should all lie in one column.
pub const GROUP_LEN_MAX: usize = BUF_LEN_MAX;

/// One read of one column: whole checksum blocks, aligned as O_DIRECT demands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ColumnRead {
    pub column: u8,
    /// In bytes from the start of the column.
    pub offset: u64,
    pub len: usize,
}

/// One checksum block inside a read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Index among the group's reads.
    pub read: usize,
    /// Where it lies in the read's buffer.
    pub start: usize,
    pub len: usize,
    /// Index of its checksum in [`StripedBody::crcs`].
    pub crc: usize,
    /// The bytes that belong to the answer, counted from the start of the block; never empty.
    pub answer: Range<usize>,
    /// Where it lies in its column, in bytes; the blocks of the other strips of its stripe lie there too.
    pub column_offset: u64,
    /// Its data column.
    pub column: u8,
    /// Checksums per strip of its stripe: the block of column c has checksum `crc + (c - column) * blocks_per_strip`.
    pub blocks_per_strip: usize,
    /// Offset in the body of the first byte of its answer.
    pub body_offset: u64,
}

impl Block {
    /// Index of the checksum of the block that data column `column` has at the same place.
    #[must_use]
    pub fn crc_of(&self, column: u8) -> usize {
        self.crc + usize::from(column) * self.blocks_per_strip
            - usize::from(self.column) * self.blocks_per_strip
    }
}

/// Reads to issue together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadGroup {
    pub extent: ExtentId,
    /// At most one per data column.
    pub reads: Vec<ColumnRead>,
    /// In body order.
    pub blocks: Vec<Block>,
}

impl ReadGroup {
    /// Bytes of all its reads.
    #[must_use]
    pub fn read_len(&self) -> usize {
        self.reads.iter().map(|read| read.len).sum()
    }

    /// Bytes of the buffers that they take.
    #[must_use]
    pub fn buffers_len(&self) -> usize {
        self.reads.iter().map(|read| buf_len(read.len as u64)).sum()
    }
}

/// Walks a range of a body, one group at a time. A copy of it is a bookmark.
#[derive(Clone, Copy, Debug)]
pub struct ReadPlan {
    shape: StripeShape,
    /// Next byte to plan, and the end of the range; both offsets in the body.
    at: u64,
    end: u64,
    segment: usize,
    /// Body offset and first checksum of that segment.
    segment_start: u64,
    segment_crc: u64,
}

/// Plans all reads of `range`.
///
/// # Errors
/// As [`ReadPlan::new`].
pub fn plan_read(
    geometry: &Geometry,
    body: &StripedBody,
    range: Range<u64>,
) -> Result<Vec<ReadGroup>, BodyError> {
    let mut plan = ReadPlan::new(geometry, body, range)?;
    Ok(std::iter::from_fn(|| plan.next_group(body, GROUP_LEN_MAX)).collect())
}

impl ReadPlan {
    /// # Errors
    /// [`BodyError::Malformed`] when the description contradicts itself, [`BodyError::OutOfRange`] when the range
    /// does not lie inside the body.
    pub fn new(geometry: &Geometry, body: &StripedBody, range: Range<u64>) -> Result<ReadPlan, BodyError> {
        body.check(geometry)?;
        if range.start > range.end || range.end > body.len {
            return Err(BodyError::OutOfRange { start: range.start, end: range.end, len: body.len });
        }
        let shape = StripeShape::new(geometry);
        let mut plan =
            ReadPlan { shape, at: 0, end: range.end, segment: 0, segment_start: 0, segment_crc: 0 };
        plan.seek(body, range.start);
        Ok(plan)
    }

    /// Goes on at `at`, which lies at or after the place reached so far.
    pub fn seek(&mut self, body: &StripedBody, at: u64) {
        debug_assert!(at >= self.segment_start, "a plan goes forward only");
        self.at = at;
        while let Some(segment) = body.segments.get(self.segment) {
            if at < self.segment_start + segment.len {
                break;
            }
            self.segment += 1;
            self.segment_start += segment.len;
            self.segment_crc += self.shape.crc_count(segment.len);
        }
    }

    /// The next reads, at least one block and otherwise at most `len_max` bytes (and [`GROUP_LEN_MAX`]) of them;
    /// `None` at the end of the range.
    pub fn next_group(&mut self, body: &StripedBody, len_max: usize) -> Option<ReadGroup> {
        if self.at >= self.end {
            return None;
        }
        let len_max = len_max.min(GROUP_LEN_MAX);
        let segment = &body.segments[self.segment];
        let segment_end = self.segment_start + segment.len;
        let mut group = ReadGroup { extent: segment.extent, reads: Vec::new(), blocks: Vec::new() };
        let mut group_len = 0;
        while self.at < self.end.min(segment_end) {
            let mut block = self.block(segment.len, u64::from(segment.block) * BLOCK_LEN as u64);
            if group_len > 0 && group_len + block.len > len_max {
                let stripe_len = self.shape.stripe_len();
                let segment_start = self.segment_start;
                self.at = group.end_where(|at| (at - segment_start).is_multiple_of(stripe_len));
                break;
            }
            group_len += block.len;
            group.place(&mut block);
            self.at += block.answer.len() as u64;
            group.blocks.push(block);
        }
        self.seek(body, self.at);
        Some(group)
    }

    /// The block that holds the next byte, in a segment of `len` bytes that starts at `origin` in its columns.
    fn block(&self, len: u64, origin: u64) -> Block {
        let stripe = self.shape.stripe_at(len, self.at - self.segment_start);
        let in_stripe = self.at - self.segment_start - stripe.start;
        let strip = in_stripe / stripe.strip_len;
        let in_strip = in_stripe % stripe.strip_len;
        let index = in_strip / BLOCK_CRC_LEN;
        let start = index * BLOCK_CRC_LEN;
        let block_len = BLOCK_CRC_LEN.min(stripe.strip_len - start);
        let per_strip = blocks_per_strip(stripe.strip_len);
        let answer_start = in_strip - start;
        // Padding is no answer: a block may end with zeros that are not the body's.
        let body_left = (self.segment_start + stripe.start + stripe.len).min(self.end) - self.at;
        let answer_len = (block_len - answer_start).min(body_left);
        Block {
            read: 0,
            start: 0,
            len: block_len as usize,
            crc: (self.segment_crc + stripe.first_crc + strip * per_strip + index) as usize,
            answer: answer_start as usize..(answer_start + answer_len) as usize,
            column_offset: origin + stripe.column_offset + start,
            column: strip as u8,
            blocks_per_strip: per_strip as usize,
            body_offset: self.at,
        }
    }
}

impl ReadGroup {
    /// Gives up the blocks after the last offset in the body that is an end of a stripe, if there is one: then all columns are
    /// read at the same places, and each can be restored from the others. Says where the group ends now.
    fn end_where(&mut self, is_end: impl Fn(u64) -> bool) -> u64 {
        let end = |block: &Block| block.body_offset + block.answer.len() as u64;
        let last = self.blocks.iter().rposition(|block| is_end(end(block)));
        let kept = last.map_or(self.blocks.len(), |last| last + 1);
        for block in self.blocks.drain(kept..) {
            self.reads[block.read].len -= block.len;
        }
        self.reads.retain(|read| read.len > 0);
        self.blocks.last().map_or(0, end)
    }

    /// Appends the block to its column's read. Within a group the blocks of a column always follow one another: only
    /// the first and last stripes can be cut, and a column's part of them ends or starts at its strip's edge.
    fn place(&mut self, block: &mut Block) {
        block.read = match self.reads.iter().position(|read| read.column == block.column) {
            Some(index) => index,
            None => {
                self.reads.push(ColumnRead { column: block.column, offset: block.column_offset, len: 0 });
                self.reads.len() - 1
            }
        };
        let read = &mut self.reads[block.read];
        debug_assert_eq!(read.offset + read.len as u64, block.column_offset, "a gap in a column's read");
        block.start = read.len;
        read.len += block.len;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::layout::Segment;
    use super::super::layout::tests::{geometry, naive_columns};
    use super::*;

    fn body(shape: &StripeShape, segments: &[(u32, u64)]) -> StripedBody {
        let segments: Vec<Segment> = segments
            .iter()
            .enumerate()
            .map(|(index, &(block, len))| Segment { extent: ExtentId(index as u64 + 1), block, len })
            .collect();
        let crc_count: u64 = segments.iter().map(|segment| shape.crc_count(segment.len)).sum();
        StripedBody {
            len: segments.iter().map(|segment| segment.len).sum(),
            crcs: (0..crc_count as u32).collect(),
            segments,
        }
    }

    #[test]
    fn one_column_reads_whole_runs() {
        let geometry = Geometry { data_slot_len: 8 << 20, ..geometry(1, 0, 65_536) };
        let body = body(&StripeShape::new(&geometry), &[(5, 3 << 20)]);
        let groups = plan_read(&geometry, &body, 100..(2 << 20) + 7).expect("valid");
        let reads: Vec<ColumnRead> = groups.iter().flat_map(|group| group.reads.clone()).collect();
        let read = |offset: u64, len| ColumnRead { column: 0, offset: 5 * 4096 + offset, len };
        assert_eq!(reads, [read(0, 1 << 20), read(1 << 20, 1 << 20), read(2 << 20, 65_536)]);
        assert_eq!(groups[0].blocks[0].answer, 100..65_536);
        assert_eq!(groups[2].blocks[0].answer, 0..7);
    }

    #[test]
    fn a_small_range_touches_one_block() {
        let geometry = geometry(4, 2, 65_536);
        let body = body(&StripeShape::new(&geometry), &[(0, 600_000)]);
        let groups = plan_read(&geometry, &body, 70_000..70_001).expect("valid");
        assert_eq!(groups.len(), 1);
        assert_eq!(groups[0].reads, [ColumnRead { column: 1, offset: 0, len: 65_536 }]);
        assert_eq!(groups[0].blocks[0].crc, 1);
        assert_eq!(groups[0].blocks[0].crc_of(3), 3);
        assert_eq!(groups[0].blocks[0].crc_of(0), 0);
    }

    #[test]
    fn empty_and_impossible_ranges() {
        let geometry = geometry(2, 1, 4096);
        let body = body(&StripeShape::new(&geometry), &[(0, 10)]);
        assert_eq!(plan_read(&geometry, &body, 3..3), Ok(Vec::new()));
        assert_eq!(plan_read(&geometry, &StripedBody::default(), 0..0), Ok(Vec::new()));
        let range = Range { start: 5, end: 4 };
        assert!(matches!(plan_read(&geometry, &body, range), Err(BodyError::OutOfRange { .. })));
        assert!(matches!(plan_read(&geometry, &body, 0..11), Err(BodyError::OutOfRange { .. })));
        let short = StripedBody { crcs: Vec::new(), ..body };
        assert!(matches!(plan_read(&geometry, &short, 0..1), Err(BodyError::Malformed { .. })));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// The answers of a plan, looked up in columns laid out byte by byte, are the bytes of the range.
        #[test]
        fn answers_are_the_range(
            k in 1u8..=5,
            strip_blocks in 1u32..=20,
            segments in proptest::collection::vec((0u32..9, 1u64..120_000), 1..4),
            a in 0u64..1000, b in 0u64..1000,
            len_max in 1usize..400_000,
        ) {
            let geometry = geometry(k, 0, strip_blocks * BLOCK_LEN as u32);
            let shape = StripeShape::new(&geometry);
            let body = body(&shape, &segments);
            let (a, b) = (a * body.len / 999, b * body.len / 999);
            let range = a.min(b)..a.max(b);
            let columns: Vec<_> = segments
                .iter()
                .map(|&(_, len)| naive_columns(usize::from(k), geometry.strip_len as usize, len as usize))
                .collect();
            let mut plan = ReadPlan::new(&geometry, &body, range.clone()).expect("valid");
            let mut at = range.start;
            while let Some(group) = plan.next_group(&body, len_max) {
                let index = group.extent.0 as usize - 1;
                let segment_start: u64 = segments[..index].iter().map(|&(_, len)| len).sum();
                let origin = u64::from(segments[index].0) * BLOCK_LEN as u64;
                prop_assert!(group.blocks.len() == 1 || group.read_len() <= len_max);
                prop_assert_eq!(group.read_len(), group.blocks.iter().map(|block| block.len).sum::<usize>());
                for read in &group.reads {
                    prop_assert!(read.len.is_multiple_of(BLOCK_LEN) && read.len <= GROUP_LEN_MAX);
                    prop_assert!(read.offset.is_multiple_of(BLOCK_LEN as u64));
                }
                for block in &group.blocks {
                    let read = &group.reads[block.read];
                    prop_assert_eq!(read.column, block.column);
                    prop_assert_eq!(read.offset + block.start as u64, block.column_offset);
                    prop_assert!(!block.answer.is_empty() && block.answer.end <= block.len);
                    prop_assert_eq!(block.body_offset, at);
                    for offset in block.answer.clone() {
                        let place = (block.column_offset - origin) as usize + offset;
                        let byte = columns[index][usize::from(block.column)][place];
                        prop_assert_eq!(byte.map(|byte| byte as u64 + segment_start), Some(at));
                        at += 1;
                    }
                }
            }
            prop_assert_eq!(at, range.end);
        }

        /// A plan of the whole body meets every checksum exactly once unless its block is all padding, in order.
        #[test]
        fn checksums_come_in_body_order(k in 1u8..=5, strip_blocks in 1u32..=40, len in 1u64..900_000) {
            let geometry = Geometry { data_slot_len: 4 << 20, ..geometry(k, 0, strip_blocks * BLOCK_LEN as u32) };
            let body = body(&StripeShape::new(&geometry), &[(0, len)]);
            let groups = plan_read(&geometry, &body, 0..len).expect("valid");
            let crcs: Vec<usize> = groups.iter().flat_map(|g| g.blocks.iter().map(|b| b.crc)).collect();
            prop_assert_eq!(&crcs, &(0..crcs.len()).collect::<Vec<_>>());
            prop_assert!(crcs.len() <= body.crcs.len());
        }
    }
}
