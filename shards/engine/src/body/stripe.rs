//! The erasure code of stripes (code id 1): parity from data strips, and missing strips from any k present ones.
//!
//! Code id 1 is the GF(2^16) Reed-Solomon code of the crate reed-solomon-simd 3. Two of its cases are so simple that
//! they are computed here without it, at memory speed and with the same result (a test holds them equal): with k = 1
//! every parity strip is a copy of the data strip, and with m = 1 the parity strip is the exclusive or of the data
//! strips. The code works byte column by byte column in units of 64 bytes, so strips are processed in slices that fit
//! the caches. Strips are restored without the crate's decoder, which takes long to set up: as sums of products, which
//! the crate's engine multiplies. The decoder is asked once for each set of columns, for the factors.

use std::ops::DerefMut;

use reed_solomon_simd::engine::{DefaultEngine, Engine, GfElement, tables};
use reed_solomon_simd::{ReedSolomonDecoder, ReedSolomonEncoder};

use super::layout::COLUMN_COUNT_MAX;

/// The code id of this code, as superblocks and extents record it.
pub const CODE_ID: u8 = 1;

/// Strips are encoded in slices of this length, in bytes: k + m of them and the coder's copies stay in the L2 cache.
const ENCODE_SLICE_LEN: usize = 32 * 1024;

/// Products are made in slices of this many units: they, and what they are added to, stay in the L1 cache.
const PRODUCT_UNITS: usize = 128;

/// Combinations that are kept, of up to 100 bytes each. One absent disk takes as many as there are columns.
const COMBINATIONS_MAX: usize = 400;

/// The granularity of the code; other lengths would give wrong data silently.
const UNIT_LEN: usize = 64;

/// The erasure coder of one core for stripes of k + m strips; its working memory is reused from stripe to stripe.
pub struct Codec {
    k: usize,
    m: usize,
    encoder: Option<ReedSolomonEncoder>,
    /// Made when it is first needed: its tables are large.
    engine: Option<DefaultEngine>,
    combinations: Vec<Combination>,
}

/// How one strip follows from k others: the sum of their symbols, each times a factor.
///
/// A symbol is 16 bits: of 64 bytes, byte i is the low half of symbol i, and byte 32 + i the high half.
struct Combination {
    /// The k columns, a bit each, and the column that follows from them.
    present: u32,
    missing: usize,
    /// The logarithms of the factors of the k columns, in rising order.
    factors: Vec<GfElement>,
}

impl Codec {
    /// # Panics
    /// If k is 0 or k + m exceeds [`COLUMN_COUNT_MAX`].
    #[must_use]
    pub fn new(k: u8, m: u8) -> Codec {
        let (k, m) = (usize::from(k), usize::from(m));
        assert!(k >= 1 && k + m <= COLUMN_COUNT_MAX, "a code of {k}+{m}");
        Codec { k, m, encoder: None, engine: None, combinations: Vec::new() }
    }

    /// Fills the parity strips of a stripe: `columns` are its k data and m parity columns, in each of which the
    /// strip lies at `at..at + len`.
    ///
    /// # Panics
    /// If there are not k + m columns, one is too short, or `len` is not a multiple of 64.
    pub fn encode<B: DerefMut<Target = [u8]>>(&mut self, columns: &mut [B], at: usize, len: usize) {
        assert!(columns.len() == self.k + self.m && len.is_multiple_of(UNIT_LEN), "{len} bytes to encode");
        let (data, parity) = columns.split_at_mut(self.k);
        if self.k == 1 {
            for copy in parity {
                copy[at..at + len].copy_from_slice(&data[0][at..at + len]);
            }
        } else if self.m == 1 {
            let parity = &mut parity[0][at..at + len];
            parity.copy_from_slice(&data[0][at..at + len]);
            for strip in &data[1..] {
                xor_into(parity, &strip[at..at + len]);
            }
        } else if self.m > 1 {
            for start in (at..at + len).step_by(ENCODE_SLICE_LEN) {
                let end = (start + ENCODE_SLICE_LEN).min(at + len);
                self.encode_slice(
                    data.iter().map(|strip| &strip[start..end]),
                    end - start,
                    |index, bytes| {
                        parity[index][start..end].copy_from_slice(bytes);
                    },
                );
            }
        }
    }

    /// Restores strips from k others. `present` holds strips of one length with their column indices, each column at
    /// most once; `missing` holds the strips to fill.
    ///
    /// Whether the result is right depends on every present strip being right: the caller verifies it.
    ///
    /// # Panics
    /// If fewer than k strips are present, or lengths differ or are not multiples of 64.
    pub fn reconstruct(&mut self, present: &[(usize, &[u8])], missing: &mut [(usize, &mut [u8])]) {
        assert!(present.len() >= self.k, "{} of {} strips", present.len(), self.k);
        let len = present[0].1.len();
        assert!(len.is_multiple_of(UNIT_LEN), "{len} bytes to decode");
        assert!(present.iter().all(|(_, strip)| strip.len() == len), "strips of unequal length");
        assert!(missing.iter().all(|(_, strip)| strip.len() == len), "strips of unequal length");
        if self.k == 1 {
            for (_, strip) in missing {
                strip.copy_from_slice(present[0].1);
            }
        } else if let (1, [(_, strip)]) = (self.m, &mut *missing) {
            // Any strip of such a stripe is the exclusive or of all others.
            strip.copy_from_slice(present[0].1);
            for (_, other) in &present[1..] {
                xor_into(strip, other);
            }
        } else {
            let mut sources = present[..self.k].to_vec();
            sources.sort_unstable_by_key(|(column, _)| *column);
            for (column, strip) in missing {
                let combination = self.combination(&sources, *column);
                let factors = &self.combinations[combination].factors;
                let engine = self.engine.get_or_insert_with(DefaultEngine::new);
                add_products(engine, &sources, factors, strip);
            }
        }
    }

    /// Where it stands how column `missing` follows from those of `sources`.
    fn combination(&mut self, sources: &[(usize, &[u8])], missing: usize) -> usize {
        let present = sources.iter().fold(0, |mask, (column, _)| mask | 1 << column);
        let known = self.combinations.iter().position(|of| of.present == present && of.missing == missing);
        known.unwrap_or_else(|| {
            if self.combinations.len() == COMBINATIONS_MAX {
                self.combinations.clear();
            }
            let columns: Vec<usize> = sources.iter().map(|(column, _)| *column).collect();
            let factors = factors(self.k, self.m, &columns, missing);
            self.combinations.push(Combination { present, missing, factors });
            self.combinations.len() - 1
        })
    }

    fn encode_slice<'a>(
        &mut self,
        data: impl Iterator<Item = &'a [u8]>,
        len: usize,
        parity: impl FnMut(usize, &[u8]),
    ) {
        let (k, m) = (self.k, self.m);
        let encoder = self
            .encoder
            .get_or_insert_with(|| ReedSolomonEncoder::new(k, m, len).expect("k and m were checked in new"));
        encode_slice(encoder, (k, m, len), data, parity);
    }
}

fn encode_slice<'a>(
    encoder: &mut ReedSolomonEncoder,
    (k, m, len): (usize, usize, usize),
    data: impl Iterator<Item = &'a [u8]>,
    mut parity: impl FnMut(usize, &[u8]),
) {
    encoder.reset(k, m, len).expect("k, m and the length were checked");
    for strip in data {
        encoder.add_original_shard(strip).expect("k strips of one length");
    }
    let encoded = encoder.encode().expect("k strips were added");
    for (index, bytes) in encoded.recovery_iter().enumerate() {
        parity(index, bytes);
    }
}

/// The logarithms of the factors with which k columns, in rising order, make up column `missing`. In column c of those that
/// are decoded for it, the symbols of unit c are 1 and all others 0, so that unit c of the result holds c's factor.
fn factors(k: usize, m: usize, columns: &[usize], missing: usize) -> Vec<GfElement> {
    let len = k * UNIT_LEN;
    let mut decoder = ReedSolomonDecoder::new(k, m, len).expect("k and m were checked in new");
    let ones: Vec<Vec<u8>> = (0..k)
        .map(|unit| {
            let mut strip = vec![0; len];
            strip[unit * UNIT_LEN..][..UNIT_LEN / 2].fill(1);
            strip
        })
        .collect();
    for (&column, strip) in columns.iter().zip(&ones) {
        let added = match column.checked_sub(k) {
            None => decoder.add_original_shard(column, strip),
            Some(parity) => decoder.add_recovery_shard(parity, strip),
        };
        added.expect("columns are distinct and of one length");
    }
    let restored = decoder.decode().expect("k strips are present");
    let data = |column: usize| {
        let given = columns.iter().position(|present| *present == column);
        let strip = given.map(|index| &ones[index][..]).or_else(|| restored.restored_original(column));
        strip.expect("the decoder restores all data strips").to_vec()
    };
    let result = match missing.checked_sub(k) {
        None => data(missing),
        Some(parity) => {
            let all: Vec<Vec<u8>> = (0..k).map(data).collect();
            reed_solomon_simd::encode(k, m, &all).expect("k strips of one length").swap_remove(parity)
        }
    };
    let logarithms = &tables::get_exp_log().log;
    let symbol = |unit: &[u8; UNIT_LEN]| u16::from_le_bytes([unit[0], unit[UNIT_LEN / 2]]);
    result.as_chunks().0.iter().map(|unit| logarithms[usize::from(symbol(unit))]).collect()
}

/// `into` = the sum of `sources`, each times its factor.
fn add_products(engine: &DefaultEngine, sources: &[(usize, &[u8])], factors: &[GfElement], into: &mut [u8]) {
    let mut products = [[0; UNIT_LEN]; PRODUCT_UNITS];
    let (first, others) = sources.split_first().expect("k is at least 1");
    for (slice, into) in into.as_chunks_mut::<UNIT_LEN>().0.chunks_mut(PRODUCT_UNITS).enumerate() {
        let (start, count) = (slice * PRODUCT_UNITS, into.len());
        into.copy_from_slice(&first.1.as_chunks().0[start..start + count]);
        engine.mul(into, factors[0]);
        for ((_, strip), factor) in others.iter().zip(&factors[1..]) {
            let products = &mut products[..count];
            products.copy_from_slice(&strip.as_chunks().0[start..start + count]);
            engine.mul(products, *factor);
            xor_into(into.as_flattened_mut(), products.as_flattened());
        }
    }
}

/// `into ^= from`, in words that the compiler turns into vector instructions.
fn xor_into(into: &mut [u8], from: &[u8]) {
    for (a, b) in into.iter_mut().zip(from) {
        *a ^= b;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum::crc32c;

    fn noise(seed: u64, len: usize) -> Vec<u8> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        (0..len)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 32) as u8
            })
            .collect()
    }

    fn stripe(k: usize, m: usize, len: usize) -> Vec<Vec<u8>> {
        (0..k + m)
            .map(|column| if column < k { noise(column as u64 + 1, len) } else { vec![0; len] })
            .collect()
    }

    /// What the crate itself gives for whole strips.
    fn reference(k: usize, m: usize, data: &[Vec<u8>]) -> Vec<Vec<u8>> {
        reed_solomon_simd::encode(k, m, data).expect("supported")
    }

    #[test]
    fn the_short_cuts_and_slices_equal_the_code() {
        for (k, m, len) in [
            (1, 1, 4096),
            (1, 3, 4096),
            (2, 1, 8192),
            (3, 1, 4096),
            (4, 1, 4096),
            (8, 1, 4096),
            (19, 1, 4096),
        ]
        .into_iter()
        .chain([(2, 2, 36_864), (4, 2, 65_536 + 4096), (10, 4, 4096), (14, 6, 8192)])
        {
            let mut columns = stripe(k, m, len);
            let expected = reference(k, m, &columns[..k]);
            Codec::new(k as u8, m as u8).encode(&mut columns, 0, len);
            assert!(columns[k..] == expected[..], "{k}+{m}");
        }
    }

    #[test]
    fn encodes_in_place_at_an_offset() {
        let mut columns = stripe(4, 2, 3 * 4096);
        let before = columns.clone();
        Codec::new(4, 2).encode(&mut columns, 4096, 4096);
        let middle: Vec<Vec<u8>> = before[..4].iter().map(|strip| strip[4096..8192].to_vec()).collect();
        for (parity, expected) in reference(4, 2, &middle).iter().enumerate() {
            assert!(columns[4 + parity][4096..8192] == expected[..]);
            assert!(columns[4 + parity][..4096] == before[4 + parity][..4096]);
            assert!(columns[4 + parity][8192..] == before[4 + parity][8192..]);
        }
    }

    /// The bytes of code id 1 never change: a newer crate that gives others must not be used under this id.
    #[test]
    fn golden_parity() {
        let mut columns = stripe(4, 2, 4096);
        Codec::new(4, 2).encode(&mut columns, 0, 4096);
        let crcs: Vec<u32> = columns.iter().map(|strip| crc32c(strip)).collect();
        assert_eq!(crcs, [0x07c5_5ccd, 0x5b25_a49e, 0x046f_8fce, 0xac7a_eb75, 0xc3a5_d11d, 0x3750_4df5]);
    }

    #[test]
    fn any_k_strips_restore_any_others() {
        for (k, m, len) in [(1usize, 2usize, 4096), (2, 1, 8192), (4, 2, 4096), (3, 3, 12_288)] {
            let mut whole = stripe(k, m, len);
            let mut codec = Codec::new(k as u8, m as u8);
            codec.encode(&mut whole, 0, len);
            for lost in 0u32..1 << (k + m) {
                if lost.count_ones() as usize > m || lost == 0 {
                    continue;
                }
                let is_lost = |column: usize| lost >> column & 1 == 1;
                let present: Vec<(usize, &[u8])> =
                    (0..k + m).filter(|&c| !is_lost(c)).map(|c| (c, &whole[c][..])).collect();
                let mut filled = vec![vec![0xaa; len]; k + m];
                let mut missing: Vec<(usize, &mut [u8])> = filled
                    .iter_mut()
                    .enumerate()
                    .filter(|&(c, _)| is_lost(c))
                    .map(|(c, strip)| (c, &mut strip[..]))
                    .collect();
                codec.reconstruct(&present[..k], &mut missing);
                for column in (0..k + m).filter(|&c| is_lost(c)) {
                    assert!(filled[column] == whole[column], "{k}+{m}, lost {lost:b}, column {column}");
                }
            }
        }
    }

    #[test]
    fn long_strips_are_restored_in_slices() {
        let len = 5 * PRODUCT_UNITS * UNIT_LEN + 4096;
        let mut whole = stripe(2, 2, len);
        let mut codec = Codec::new(2, 2);
        codec.encode(&mut whole, 0, len);
        let (mut first, mut last) = (vec![0; len], vec![0; len]);
        codec.reconstruct(&[(1, &whole[1]), (2, &whole[2])], &mut [(0, &mut first), (3, &mut last)]);
        assert!(first == whole[0] && last == whole[3]);
    }
}
