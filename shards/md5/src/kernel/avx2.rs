//! Eight lanes in AVX2 registers, twice if more than eight have a stream.
//!
//! Sixteen registers hold the four words of one group of lanes and what a step needs. Two groups at a time would hide
//! each other's latency, but their words do not fit: they spill, and cost more than one group after the other.

use std::arch::x86_64::{
    __m256i, _MM_HINT_T0, _mm_prefetch, _mm256_add_epi32, _mm256_and_si256, _mm256_andnot_si256,
    _mm256_loadu_si256, _mm256_or_si256, _mm256_permute2x128_si256, _mm256_set1_epi32, _mm256_setzero_si256,
    _mm256_slli_epi32, _mm256_srli_epi32, _mm256_storeu_si256, _mm256_unpackhi_epi32, _mm256_unpackhi_epi64,
    _mm256_unpacklo_epi32, _mm256_unpacklo_epi64, _mm256_xor_si256,
};

use super::{Block, LANES, PREFETCH_BLOCKS, SINES};

/// Lanes of one register.
const GROUP: usize = 8;

macro_rules! mixed {
    (f, $b:ident, $c:ident, $d:ident, $sum:ident) => {
        _mm256_add_epi32($sum, _mm256_xor_si256($d, _mm256_and_si256($b, _mm256_xor_si256($c, $d))))
    };
    // The two halves of the selection share no bit, so they can be added; only the second waits for `b`.
    (g, $b:ident, $c:ident, $d:ident, $sum:ident) => {
        _mm256_add_epi32(_mm256_add_epi32($sum, _mm256_andnot_si256($d, $c)), _mm256_and_si256($b, $d))
    };
    (h, $b:ident, $c:ident, $d:ident, $sum:ident) => {
        _mm256_add_epi32($sum, _mm256_xor_si256($b, _mm256_xor_si256($c, $d)))
    };
    (i, $b:ident, $c:ident, $d:ident, $sum:ident) => {{
        let not_d = _mm256_xor_si256($d, _mm256_set1_epi32(-1));
        _mm256_add_epi32($sum, _mm256_xor_si256($c, _mm256_or_si256($b, not_d)))
    }};
}

macro_rules! step {
    ($function:ident, $i:literal, $shift:literal, $a:ident, $b:ident, $c:ident, $d:ident, $word:expr) => {{
        let sum = _mm256_add_epi32($a, _mm256_add_epi32($word, _mm256_set1_epi32(SINES[$i].cast_signed())));
        let sum = in_order!(ymm_reg, "/* {0} */", sum);
        let sum = mixed!($function, $b, $c, $d, sum);
        let (left, right) = (_mm256_slli_epi32::<$shift>(sum), _mm256_srli_epi32::<{ 32 - $shift }>(sum));
        _mm256_add_epi32(_mm256_or_si256(left, right), $b)
    }};
}

#[target_feature(enable = "avx2")]
pub(super) fn advance(states: &mut [[u32; LANES]; 4], data: &[&[Block]; LANES], live: usize, count: usize) {
    advance_group(states, data, 0, count);
    if live > GROUP {
        advance_group(states, data, 1, count);
    }
}

#[target_feature(enable = "avx2")]
fn advance_group(states: &mut [[u32; LANES]; 4], data: &[&[Block]; LANES], group: usize, count: usize) {
    let mut lanes = data.as_chunks::<GROUP>().0[group];
    for blocks in &mut lanes {
        *blocks = &blocks[..count];
    }
    let mut a = load_words(&states[0], group);
    let mut b = load_words(&states[1], group);
    let mut c = load_words(&states[2], group);
    let mut d = load_words(&states[3], group);
    for index in 0..count {
        let mut words = [_mm256_setzero_si256(); 16];
        for part in 0..2 {
            let mut rows = [_mm256_setzero_si256(); GROUP];
            for (row, blocks) in rows.iter_mut().zip(lanes) {
                *row = load_half(&blocks[index], part);
                let ahead = blocks.as_ptr().wrapping_add(index + PREFETCH_BLOCKS);
                _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
            }
            words[GROUP * part..][..GROUP].copy_from_slice(&transposed(rows));
        }
        let before = [a, b, c, d];
        steps!(step, a, b, c, d, words);
        a = _mm256_add_epi32(a, before[0]);
        b = _mm256_add_epi32(b, before[1]);
        c = _mm256_add_epi32(c, before[2]);
        d = _mm256_add_epi32(d, before[3]);
    }
    for (words, value) in states.iter_mut().zip([a, b, c, d]) {
        let half = &mut words.as_chunks_mut::<GROUP>().0[group];
        // SAFETY: the array has the 32 bytes that are written; no alignment is asked for.
        unsafe { _mm256_storeu_si256(half.as_mut_ptr().cast(), value) };
    }
}

/// Turns half a block per register into one word per register: an 8 by 8 matrix transposed in three rounds.
#[inline]
#[target_feature(enable = "avx2")]
fn transposed(rows: [__m256i; GROUP]) -> [__m256i; GROUP] {
    let mut pairs = rows;
    for i in 0..4 {
        pairs[2 * i] = _mm256_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        pairs[2 * i + 1] = _mm256_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    let mut quads = pairs;
    for q in [0, 4] {
        quads[q] = _mm256_unpacklo_epi64(pairs[q], pairs[q + 2]);
        quads[q + 1] = _mm256_unpackhi_epi64(pairs[q], pairs[q + 2]);
        quads[q + 2] = _mm256_unpacklo_epi64(pairs[q + 1], pairs[q + 3]);
        quads[q + 3] = _mm256_unpackhi_epi64(pairs[q + 1], pairs[q + 3]);
    }
    let mut words = quads;
    for j in 0..4 {
        words[j] = _mm256_permute2x128_si256::<0x20>(quads[j], quads[4 + j]);
        words[4 + j] = _mm256_permute2x128_si256::<0x31>(quads[j], quads[4 + j]);
    }
    words
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_half(block: &Block, part: usize) -> __m256i {
    let half = &block.as_chunks::<32>().0[part];
    // SAFETY: the array has the 32 bytes that are read; no alignment is asked for.
    unsafe { _mm256_loadu_si256(half.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_words(words: &[u32; LANES], group: usize) -> __m256i {
    let half = &words.as_chunks::<GROUP>().0[group];
    // SAFETY: the array has the 32 bytes that are read; no alignment is asked for.
    unsafe { _mm256_loadu_si256(half.as_ptr().cast()) }
}
