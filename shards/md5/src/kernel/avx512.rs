//! Sixteen lanes in AVX-512 registers: each word of sixteen streams is one register.
//!
//! The four functions of MD5 are one instruction each, and so is the rotation.

use std::arch::x86_64::{
    __m512i, _MM_HINT_T0, _mm_prefetch, _mm512_add_epi32, _mm512_loadu_si512, _mm512_rol_epi32,
    _mm512_set1_epi32, _mm512_setzero_si512, _mm512_shuffle_i32x4, _mm512_storeu_si512,
    _mm512_ternarylogic_epi32, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32,
    _mm512_unpacklo_epi64,
};

use super::{Block, LANES, PREFETCH_BLOCKS, SINES};

/// Truth tables over (b, c, d), b being the highest bit.
macro_rules! table {
    (f) => {
        0b1100_1010
    };
    (g) => {
        0b1110_0100
    };
    (h) => {
        0b1001_0110
    };
    (i) => {
        0b0011_1001
    };
}

macro_rules! step {
    ($function:ident, $i:literal, $shift:literal, $a:ident, $b:ident, $c:ident, $d:ident, $word:expr) => {{
        let sum = _mm512_add_epi32($a, _mm512_add_epi32($word, _mm512_set1_epi32(SINES[$i].cast_signed())));
        let sum = in_order!(zmm_reg, "/* {0} */", sum);
        let mixed = _mm512_ternarylogic_epi32::<{ table!($function) }>($b, $c, $d);
        _mm512_add_epi32(_mm512_rol_epi32::<$shift>(_mm512_add_epi32(sum, mixed)), $b)
    }};
}

#[target_feature(enable = "avx512f")]
pub(super) fn advance(states: &mut [[u32; LANES]; 4], data: &[&[Block]; LANES], count: usize) {
    let mut lanes = *data;
    for blocks in &mut lanes {
        *blocks = &blocks[..count];
    }
    let mut a = load_words(&states[0]);
    let mut b = load_words(&states[1]);
    let mut c = load_words(&states[2]);
    let mut d = load_words(&states[3]);
    for index in 0..count {
        let mut rows = [_mm512_setzero_si512(); LANES];
        for (row, blocks) in rows.iter_mut().zip(lanes) {
            *row = load_block(&blocks[index]);
            let ahead = blocks.as_ptr().wrapping_add(index + PREFETCH_BLOCKS);
            _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
        }
        let words = transposed(rows);
        let before = [a, b, c, d];
        steps!(step, a, b, c, d, words);
        a = _mm512_add_epi32(a, before[0]);
        b = _mm512_add_epi32(b, before[1]);
        c = _mm512_add_epi32(c, before[2]);
        d = _mm512_add_epi32(d, before[3]);
    }
    for (words, value) in states.iter_mut().zip([a, b, c, d]) {
        // SAFETY: the array has the 64 bytes that are written; no alignment is asked for.
        unsafe { _mm512_storeu_si512(words.as_mut_ptr().cast(), value) };
    }
}

/// Turns one block per register into one word per register: a 16 by 16 matrix transposed in four rounds.
#[inline]
#[target_feature(enable = "avx512f")]
fn transposed(rows: [__m512i; 16]) -> [__m512i; 16] {
    let mut pairs = rows;
    for i in 0..8 {
        pairs[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        pairs[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    // Register 4q + j then has word 4p + j of the rows 4q to 4q + 3 in its quarter p.
    let mut quads = pairs;
    for q in (0..16).step_by(4) {
        quads[q] = _mm512_unpacklo_epi64(pairs[q], pairs[q + 2]);
        quads[q + 1] = _mm512_unpackhi_epi64(pairs[q], pairs[q + 2]);
        quads[q + 2] = _mm512_unpacklo_epi64(pairs[q + 1], pairs[q + 3]);
        quads[q + 3] = _mm512_unpackhi_epi64(pairs[q + 1], pairs[q + 3]);
    }
    let mut words = quads;
    for j in 0..4 {
        let even_low = _mm512_shuffle_i32x4::<0x88>(quads[j], quads[4 + j]);
        let odd_low = _mm512_shuffle_i32x4::<0xdd>(quads[j], quads[4 + j]);
        let even_high = _mm512_shuffle_i32x4::<0x88>(quads[8 + j], quads[12 + j]);
        let odd_high = _mm512_shuffle_i32x4::<0xdd>(quads[8 + j], quads[12 + j]);
        words[j] = _mm512_shuffle_i32x4::<0x88>(even_low, even_high);
        words[4 + j] = _mm512_shuffle_i32x4::<0x88>(odd_low, odd_high);
        words[8 + j] = _mm512_shuffle_i32x4::<0xdd>(even_low, even_high);
        words[12 + j] = _mm512_shuffle_i32x4::<0xdd>(odd_low, odd_high);
    }
    words
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_block(block: &Block) -> __m512i {
    // SAFETY: the array has the 64 bytes that are read; no alignment is asked for.
    unsafe { _mm512_loadu_si512(block.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_words(words: &[u32; LANES]) -> __m512i {
    // SAFETY: the array has the 64 bytes that are read; no alignment is asked for.
    unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
}
