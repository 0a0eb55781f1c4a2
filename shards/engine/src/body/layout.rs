//! Stripe arithmetic: which byte of a body lies where in the columns of its extents.
//!
//! Pure functions of the geometry and a length, so that a body's description stays small (a few segments and its
//! checksums) and every reader, writer and repairer computes the same places. `docs/DATA_FORMAT.md`, "Data extents
//! and bodies", is the specification.

use basalt_reactor::arena::BUF_LEN_MAX;
use basalt_reactor::disk::BLOCK_LEN;

use super::error::BodyError;
use crate::extent::{ExtentId, Geometry, round_up_to_block};

/// Longest run of bytes on a disk under one CRC32C.
pub const BLOCK_CRC_LEN: u64 = 64 * 1024;

/// Longest strip a geometry may ask for: a strip fits one arena buffer.
pub const STRIP_LEN_MAX: u32 = BUF_LEN_MAX as u32;

/// Most columns of a data extent.
pub const COLUMN_COUNT_MAX: usize = 20;

/// Consecutive stripes of a body in one extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub extent: ExtentId,
    /// Where the run starts in every column, in blocks of [`BLOCK_LEN`].
    pub block: u32,
    /// Body bytes in it, never 0.
    pub len: u64,
}

/// A body that lies in stripes: what its index value holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StripedBody {
    pub len: u64,
    /// In body order; their lengths sum to `len`.
    pub segments: Vec<Segment>,
    /// CRC32C of every data block: segment by segment, stripe by stripe, strip by strip, block by block.
    pub crcs: Vec<u32>,
}

impl StripedBody {
    /// Checks that the description is whole and stays inside extents of `geometry`, so that arithmetic on it cannot
    /// leave them.
    ///
    /// # Errors
    /// [`BodyError::Malformed`] saying what contradicts what.
    pub fn check(&self, geometry: &Geometry) -> Result<(), BodyError> {
        let shape = StripeShape::new(geometry);
        let (mut len, mut crc_count) = (0u64, 0u64);
        for segment in &self.segments {
            let capacity = geometry
                .data_slot_len
                .checked_sub(u64::from(segment.block) * BLOCK_LEN as u64)
                .ok_or(BodyError::Malformed { what: "a segment starts beyond its column" })?;
            if segment.len == 0 {
                return Err(BodyError::Malformed { what: "an empty segment" });
            }
            // Bounded before any multiplication below can overflow.
            if segment.len > capacity * shape.k() || shape.column_len(segment.len) > capacity {
                return Err(BodyError::Malformed { what: "a segment ends beyond its column" });
            }
            len = len
                .checked_add(segment.len)
                .ok_or(BodyError::Malformed { what: "segments longer than 2^64 bytes" })?;
            crc_count += shape.crc_count(segment.len);
        }
        if len != self.len {
            return Err(BodyError::Malformed { what: "segments do not sum to the body's length" });
        }
        if crc_count != self.crcs.len() as u64 {
            return Err(BodyError::Malformed { what: "not one checksum per block" });
        }
        Ok(())
    }
}

/// Checksums of a strip of `strip_len` bytes.
#[must_use]
pub fn blocks_per_strip(strip_len: u64) -> u64 {
    strip_len.div_ceil(BLOCK_CRC_LEN)
}

/// Checksums of `column_len` bytes of one column: full strips and perhaps a shorter one.
#[must_use]
pub fn crcs_per_column(geometry: &Geometry, column_len: u64) -> u64 {
    let strip_len = u64::from(geometry.strip_len);
    column_len / strip_len * blocks_per_strip(strip_len) + blocks_per_strip(column_len % strip_len)
}

/// How bodies are cut into stripes: k data strips of at most `strip_len` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StripeShape {
    k: u64,
    strip_len: u64,
}

/// One stripe of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stripe {
    /// Offset of its strips in the columns, in bytes from where the segment starts.
    pub column_offset: u64,
    /// Bytes of each of its strips, padding included.
    pub strip_len: u64,
    /// Offset of its first body byte in the segment.
    pub start: u64,
    /// Body bytes in it.
    pub len: u64,
    /// Index of its first data checksum among the segment's.
    pub first_crc: u64,
}

impl StripeShape {
    /// # Panics
    /// If the geometry breaks the limits above: it was validated when the set was opened.
    #[must_use]
    pub fn new(geometry: &Geometry) -> StripeShape {
        assert!(geometry.k >= 1 && geometry.columns() <= COLUMN_COUNT_MAX, "columns of {geometry:?}");
        assert!(
            (BLOCK_LEN as u32..=STRIP_LEN_MAX).contains(&geometry.strip_len)
                && geometry.strip_len.is_multiple_of(BLOCK_LEN as u32),
            "strip length of {geometry:?}"
        );
        StripeShape { k: u64::from(geometry.k), strip_len: u64::from(geometry.strip_len) }
    }

    #[must_use]
    pub fn k(&self) -> u64 {
        self.k
    }

    /// Bytes of each strip of a full stripe.
    #[must_use]
    pub fn strip_len(&self) -> u64 {
        self.strip_len
    }

    /// Body bytes in a full stripe.
    #[must_use]
    pub fn stripe_len(&self) -> u64 {
        self.k * self.strip_len
    }

    /// Length of the strips of a stripe that holds only `rest` bytes.
    #[must_use]
    pub fn short_strip_len(&self, rest: u64) -> u64 {
        debug_assert!(rest <= self.stripe_len());
        round_up_to_block(rest.div_ceil(self.k))
    }

    /// Bytes that a segment of `len` body bytes takes in every column.
    #[must_use]
    pub fn column_len(&self, len: u64) -> u64 {
        len / self.stripe_len() * self.strip_len + self.short_strip_len(len % self.stripe_len())
    }

    /// [`StripeShape::column_len`] in blocks of [`BLOCK_LEN`].
    #[must_use]
    pub fn blocks_for(&self, len: u64) -> u64 {
        self.column_len(len) / BLOCK_LEN as u64
    }

    /// Data checksums of a segment of `len` body bytes.
    #[must_use]
    pub fn crc_count(&self, len: u64) -> u64 {
        let rest = len % self.stripe_len();
        len / self.stripe_len() * self.k * blocks_per_strip(self.strip_len)
            + self.k * blocks_per_strip(self.short_strip_len(rest))
    }

    /// The stripe of a segment of `len` body bytes that holds its byte `at`.
    #[must_use]
    pub fn stripe_at(&self, len: u64, at: u64) -> Stripe {
        debug_assert!(at < len);
        let index = at / self.stripe_len();
        let start = index * self.stripe_len();
        let rest = len - start;
        let (strip_len, len) = if rest >= self.stripe_len() {
            (self.strip_len, self.stripe_len())
        } else {
            (self.short_strip_len(rest), rest)
        };
        Stripe {
            column_offset: index * self.strip_len,
            strip_len,
            start,
            len,
            first_crc: index * self.k * blocks_per_strip(self.strip_len),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Where every byte of a segment lies, said byte by byte: `columns[c][offset]` is the body byte there, or `None`
    /// for padding.
    pub(crate) fn naive_columns(k: usize, strip_len: usize, len: usize) -> Vec<Vec<Option<usize>>> {
        let mut columns = vec![Vec::new(); k];
        let mut at = 0;
        while at < len {
            let mut stripe_strip_len = strip_len;
            while stripe_strip_len > BLOCK_LEN && (stripe_strip_len - BLOCK_LEN) * k >= len - at {
                stripe_strip_len -= BLOCK_LEN;
            }
            for column in &mut columns {
                for _ in 0..stripe_strip_len {
                    column.push((at < len).then_some(at));
                    at += 1;
                }
            }
            at = at.min(len);
        }
        columns
    }

    pub(crate) fn geometry(k: u8, m: u8, strip_len: u32) -> Geometry {
        Geometry { k, m, strip_len, log_slot_len: 1 << 20, data_slot_len: 1 << 20, table_slot_len: 1 << 20 }
    }

    fn body(len: u64, segments: &[(u32, u64)], crc_count: usize) -> StripedBody {
        let segments =
            segments.iter().map(|&(block, len)| Segment { extent: ExtentId(1), block, len }).collect();
        StripedBody { len, segments, crcs: vec![0; crc_count] }
    }

    #[test]
    fn known_lengths() {
        let shape = StripeShape::new(&geometry(4, 2, 65_536));
        assert_eq!(shape.column_len(0), 0);
        assert_eq!(shape.column_len(1), 4096);
        assert_eq!(shape.column_len(4 * 4096), 4096);
        assert_eq!(shape.column_len(4 * 4096 + 1), 8192);
        assert_eq!(shape.column_len(4 * 65_536), 65_536);
        assert_eq!(shape.blocks_for(4 * 65_536 + 1), 17);
        assert_eq!(shape.crc_count(4 * 65_536 + 1), 8);
        let long = StripeShape::new(&geometry(3, 0, 131_072 + 4096));
        assert_eq!(long.crc_count(3 * (131_072 + 4096)), 9);
        assert_eq!(long.crc_count(1), 3);
    }

    #[test]
    fn a_description_that_contradicts_itself_is_refused() {
        let geometry = geometry(2, 1, 8192);
        let last = ((geometry.data_slot_len - 4096) / 4096) as u32;
        assert!(body(0, &[], 0).check(&geometry).is_ok());
        assert!(body(20_000, &[(3, 16_384), (0, 3616)], 4).check(&geometry).is_ok());
        assert!(body(8192, &[(last, 8192)], 2).check(&geometry).is_ok());
        for bad in [
            body(1, &[], 0),
            body(0, &[(0, 0)], 0),
            body(20_000, &[(3, 16_384), (0, 3616)], 3),
            body(20_001, &[(3, 16_384), (0, 3616)], 4),
            body(8193, &[(last, 8193)], 2),
            body(1, &[(last + 1, 1)], 2),
            body(1, &[(u32::MAX, 1)], 2),
            body(u64::MAX, &[(0, u64::MAX)], 2),
            body(1, &[(0, u64::MAX), (0, 2)], 2),
        ] {
            assert!(matches!(bad.check(&geometry), Err(BodyError::Malformed { .. })), "{bad:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn agrees_with_counting_bytes(k in 1u8..=5, strip_blocks in 1u32..=20, len in 1usize..300_000) {
            let strip_len = strip_blocks * BLOCK_LEN as u32;
            let geometry = geometry(k, 0, strip_len);
            let shape = StripeShape::new(&geometry);
            let columns = naive_columns(usize::from(k), strip_len as usize, len);
            for column in &columns {
                prop_assert_eq!(column.len() as u64, shape.column_len(len as u64));
            }
            let per_column = crcs_per_column(&geometry, shape.column_len(len as u64));
            prop_assert_eq!(per_column * shape.k(), shape.crc_count(len as u64));
            let mut crc_count = 0;
            let mut at = 0;
            while at < len {
                let stripe = shape.stripe_at(len as u64, at as u64);
                prop_assert_eq!(stripe.start, at as u64);
                prop_assert_eq!(stripe.first_crc, crc_count);
                prop_assert_eq!(stripe, shape.stripe_at(len as u64, stripe.start + stripe.len - 1));
                for byte in 0..stripe.len {
                    let column = &columns[(byte / stripe.strip_len) as usize];
                    let offset = stripe.column_offset + byte % stripe.strip_len;
                    prop_assert_eq!(column[offset as usize], Some((stripe.start + byte) as usize));
                }
                crc_count += shape.k() * blocks_per_strip(stripe.strip_len);
                at += stripe.len as usize;
            }
            prop_assert_eq!(at, len);
            prop_assert_eq!(crc_count, shape.crc_count(len as u64));
        }
    }
}
