//! What the file holds: 64-bit words that follow from their place, so that any run can be checked without the file.

pub(crate) const BLOCK_LEN: usize = 4096;
const WORD_LEN: usize = 8;

/// The word at an offset (the finalizer of SplitMix64).
fn word(offset: u64) -> [u8; WORD_LEN] {
    let mixed = offset.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed ^ (mixed >> 31)).to_le_bytes()
}

/// Fills `run` with what lies at `offset`, both multiples of a word.
pub(crate) fn fill(offset: u64, run: &mut [u8]) {
    for (index, place) in run.chunks_exact_mut(WORD_LEN).enumerate() {
        place.copy_from_slice(&word(offset + (index * WORD_LEN) as u64));
    }
}

/// Whether every byte of `run` is what lies at `offset`.
pub(crate) fn is_right(offset: u64, run: &[u8]) -> bool {
    let mut words = run.chunks_exact(WORD_LEN).enumerate();
    words.all(|(index, bytes)| bytes == word(offset + (index * WORD_LEN) as u64))
}

/// Whether every block of `run` begins as it should: cheap enough for the side that must not become the limit.
pub(crate) fn begins_right(offset: u64, run: &[u8]) -> bool {
    let mut blocks = run.chunks(BLOCK_LEN).enumerate();
    blocks.all(|(index, block)| block.starts_with(&word(offset + (index * BLOCK_LEN) as u64)))
}
