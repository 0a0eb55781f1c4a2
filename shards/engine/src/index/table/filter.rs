//! A table's Bloom filter: most lookups of an absent key end here, without a read.
//!
//! Blocked: all bits of a key lie in one 64-byte cache line, chosen by the upper half of its hash; the lower half,
//! multiplied by seven odd constants, chooses seven bits in it. Ten bits per key give about 1.2 % false positives for one
//! cache miss per query. (Putze, Sanders, Singler: "Cache-, hash- and space-efficient Bloom filters", 2007.)
//! The hash is SipHash-1-3 with a key of zeros, fixed with the format.

use std::hash::Hasher;

use siphasher::sip::SipHasher13;

use super::frame::Fault;
use crate::index::key::filter_part;

const BITS_PER_KEY: usize = 10;
/// Words of 64 bits in a line.
const LINE_WORDS: usize = 8;
const LINE_LEN: usize = 8 * LINE_WORDS;

/// Fixed with the format: odd, otherwise arbitrary (fractional digits of the square roots of small primes).
const SALTS: [u32; 7] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f373, 0xa54f_f53b, 0x510e_527f, 0x9b05_688d, 0x1f83_d9ab];

/// The hash of `key` that filters know, computed once per lookup.
pub(crate) fn filter_hash(key: &[u8]) -> u64 {
    filter_hash_of_name(filter_part(key))
}

/// The hash that all versions of an object share, from the start of their keys.
pub(crate) fn filter_hash_of_name(start: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new();
    hasher.write(start);
    hasher.finish()
}

/// Bytes of a filter for `key_count` keys.
pub(crate) fn filter_len(key_count: usize) -> usize {
    (key_count * BITS_PER_KEY).div_ceil(8 * LINE_LEN).max(1) * LINE_LEN
}

pub(crate) struct Filter {
    words: Box<[u64]>,
}

impl Filter {
    pub(crate) fn build(hashes: &[u64]) -> Filter {
        let mut words = vec![0; filter_len(hashes.len()) / 8].into_boxed_slice();
        for &hash in hashes {
            let line = line_of(hash, words.len() / LINE_WORDS) * LINE_WORDS;
            for bit in bits_of(hash) {
                words[line + bit / 64] |= 1 << (bit % 64);
            }
        }
        Filter { words }
    }

    /// `false` proves that no key with this hash is in the table.
    pub(crate) fn may_contain(&self, hash: u64) -> bool {
        let line = line_of(hash, self.words.len() / LINE_WORDS) * LINE_WORDS;
        let line = &self.words[line..line + LINE_WORDS];
        bits_of(hash).all(|bit| line[bit / 64] & (1 << (bit % 64)) != 0)
    }

    /// Bytes of memory and on disk.
    pub(crate) fn len(&self) -> usize {
        self.words.len() * 8
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        self.words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// # Errors
    /// [`Fault::Malformed`] unless it is one or more whole lines.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Filter, Fault> {
        let (words, rest) = bytes.as_chunks::<8>();
        if words.is_empty() || !rest.is_empty() || !words.len().is_multiple_of(LINE_WORDS) {
            return Err(Fault::Malformed("length of a filter"));
        }
        Ok(Filter { words: words.iter().map(|word| u64::from_le_bytes(*word)).collect() })
    }
}

fn line_of(hash: u64, line_count: usize) -> usize {
    // Maps the upper half onto 0..line_count by multiplication instead of division.
    (((hash >> 32) * line_count as u64) >> 32) as usize
}

fn bits_of(hash: u64) -> impl Iterator<Item = usize> {
    SALTS.into_iter().map(move |salt| ((hash as u32).wrapping_mul(salt) >> 23) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(index: u64) -> u64 {
        filter_hash(&index.to_be_bytes())
    }

    #[test]
    fn never_denies_a_member_and_seldom_admits_others() {
        for count in [1, 10, 1_000, 50_000] {
            let hashes: Vec<u64> = (0..count).map(hash).collect();
            let filter = Filter::build(&hashes);
            assert!(hashes.iter().all(|&hash| filter.may_contain(hash)));
            let admitted = (count..count + 20_000).filter(|&index| filter.may_contain(hash(index))).count();
            assert!(admitted < 20_000 * 2 / 100, "{admitted} of 20000 at {count} keys");
        }
    }

    #[test]
    fn golden_bytes() {
        let filter = Filter::build(&[hash(1), hash(2)]);
        let set: Vec<usize> = filter
            .encode()
            .iter()
            .enumerate()
            .flat_map(|(at, byte)| {
                (0..8).filter(move |bit| byte >> bit & 1 == 1).map(move |bit| at * 8 + bit)
            })
            .collect();
        assert_eq!(set, GOLDEN);
    }

    const GOLDEN: &[usize] = &[10, 118, 188, 267, 291, 295, 338, 355, 369, 387, 414, 422, 434, 480];

    #[test]
    fn decodes_whole_lines_only() {
        let filter = Filter::build(&[hash(5)]);
        let bytes = filter.encode();
        assert!(Filter::decode(&bytes).expect("whole").may_contain(hash(5)));
        for len in [0, 1, 8, 63, 65] {
            assert!(Filter::decode(&vec![0; len]).is_err(), "{len} bytes");
        }
    }
}
