//! The bytes of every object, computed instead of stored.
//!
//! An object's content is a keyed stream: word `n` is a mix of `n` and a key made of (seed, object index,
//! generation). So any range of any object can be checked on its own, no payload is kept in memory, and an
//! object served in place of another, or an older generation of itself, differs nearly everywhere.
//! One multiplication and a few shifts per eight bytes: checking costs less than receiving.

/// The odd constant of Weyl sequences: 2^64 divided by the golden ratio.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Words that are compared before looking for a difference among them.
const GROUP_WORDS: usize = 8;
const WORD_BYTES: usize = 8;

/// The finalizer of splitmix64 (Steele, Lea and Flood, 2014): a bijection of 64-bit numbers.
#[inline]
pub(crate) fn mix64(n: u64) -> u64 {
    let mut x = n.wrapping_add(GOLDEN);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A sequence of random numbers that a seed reproduces.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// Streams of different numbers under one seed are unrelated.
    pub(crate) fn new(seed: u64, stream: u64) -> Self {
        Self(mix64(mix64(seed) ^ stream))
    }

    /// The next number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mix64(self.0)
    }

    /// A number below `bound`, which must not be 0. The bias of the remainder is below 2^-32 for our bounds.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// A byte that is not what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Within the object.
    pub offset: u64,
    pub expected: u8,
    pub found: u8,
}

/// The content of one generation of one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    key: u64,
}

impl Content {
    pub fn new(seed: u64, index: u64, generation: u32) -> Self {
        Self { key: mix64(mix64(mix64(seed) ^ index) ^ u64::from(generation)) }
    }

    /// A number that belongs to this content, for choosing its size.
    pub fn identity(self) -> u64 {
        mix64(!self.key)
    }

    #[inline]
    fn word(self, position: u64) -> u64 {
        let mut x = self.key.wrapping_add(position.wrapping_mul(GOLDEN));
        x = (x ^ (x >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        x ^ (x >> 29)
    }

    fn byte(self, offset: u64) -> u8 {
        self.word(offset / WORD_BYTES as u64).to_le_bytes()[(offset % WORD_BYTES as u64) as usize]
    }

    /// Writes the bytes from `offset` on into `bytes`.
    pub fn fill(self, offset: u64, bytes: &mut [u8]) {
        let (head, body) = bytes.split_at_mut(head_len(offset).min(bytes.len()));
        for (n, byte) in head.iter_mut().enumerate() {
            *byte = self.byte(offset + n as u64);
        }
        let body_offset = offset + head.len() as u64;
        let position = body_offset / WORD_BYTES as u64;
        let (words, tail) = body.as_chunks_mut::<WORD_BYTES>();
        for (n, word) in words.iter_mut().enumerate() {
            *word = self.word(position + n as u64).to_le_bytes();
        }
        let tail_offset = body_offset + (words.len() * WORD_BYTES) as u64;
        for (n, byte) in tail.iter_mut().enumerate() {
            *byte = self.byte(tail_offset + n as u64);
        }
    }

    /// The first byte of `bytes`, which were received for `offset`, that differs from what was written.
    pub fn first_mismatch(self, offset: u64, bytes: &[u8]) -> Option<Mismatch> {
        let head = head_len(offset).min(bytes.len());
        if let Some(mismatch) = self.first_mismatch_bytewise(offset, &bytes[..head]) {
            return Some(mismatch);
        }
        let body_offset = offset + head as u64;
        let mut position = body_offset / WORD_BYTES as u64;
        let (words, tail) = bytes[head..].as_chunks::<WORD_BYTES>();
        for (n, group) in words.chunks(GROUP_WORDS).enumerate() {
            let mut difference = 0;
            for word in group {
                difference |= u64::from_le_bytes(*word) ^ self.word(position);
                position += 1;
            }
            if difference != 0 {
                let group_offset = body_offset + (n * GROUP_WORDS * WORD_BYTES) as u64;
                return self.first_mismatch_bytewise(group_offset, group.as_flattened());
            }
        }
        let tail_offset = body_offset + (words.len() * WORD_BYTES) as u64;
        self.first_mismatch_bytewise(tail_offset, tail)
    }

    fn first_mismatch_bytewise(self, offset: u64, bytes: &[u8]) -> Option<Mismatch> {
        bytes.iter().zip(offset..).find_map(|(&found, offset)| {
            let expected = self.byte(offset);
            (found != expected).then_some(Mismatch { offset, expected, found })
        })
    }
}

/// Bytes from `offset` to the next word.
fn head_len(offset: u64) -> usize {
    offset.wrapping_neg() as usize % WORD_BYTES
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::prelude::*;

    use super::*;

    fn whole(content: Content, len: usize) -> Vec<u8> {
        (0..len as u64).map(|offset| content.byte(offset)).collect()
    }

    proptest! {
        #[test]
        fn any_range_is_a_slice_of_the_whole(seed: u64, index: u64, start in 0_usize..300, len in 0_usize..300) {
            let content = Content::new(seed, index, 3);
            let mut range = vec![0; len];
            content.fill(start as u64, &mut range);
            prop_assert_eq!(&range[..], &whole(content, 600)[start..start + len]);
            prop_assert_eq!(content.first_mismatch(start as u64, &range), None);
        }

        #[test]
        fn any_changed_byte_is_found(seed: u64, start in 0_u64..100, len in 1_usize..300, at: prop::sample::Index, flip in 1_u8..) {
            let content = Content::new(seed, 0, 0);
            let mut range = vec![0; len];
            content.fill(start, &mut range);
            let at = at.index(len);
            let expected = range[at];
            range[at] ^= flip;
            let mismatch = Mismatch { offset: start + at as u64, expected, found: expected ^ flip };
            prop_assert_eq!(content.first_mismatch(start, &range), Some(mismatch));
        }
    }

    #[test]
    fn other_objects_generations_seeds_and_offsets_differ_at_once() {
        let content = Content::new(1, 2, 3);
        let mut bytes = vec![0; 64];
        content.fill(0, &mut bytes);
        for other in
            [Content::new(1, 2, 4), Content::new(1, 3, 3), Content::new(2, 2, 3), Content::new(2, 1, 3)]
        {
            assert!(other.first_mismatch(0, &bytes).unwrap().offset < 8);
        }
        assert!(content.first_mismatch(8, &bytes).is_some());
        assert!(content.first_mismatch(4096, &bytes).is_some());
    }

    #[test]
    fn a_seed_reproduces_the_bytes() {
        // Kept objects of an earlier run must verify: the stream never changes.
        let mut bytes = [0; 20];
        Content::new(7, 11, 13).fill(3, &mut bytes);
        assert_eq!(hex::encode(bytes), "fe5572ae114672fdba3239e6d60dd63d035e1cb5");
    }
}
