//! One lane in general registers: the kernel of a stream that is alone.

use super::{Block, SINES, State};

macro_rules! mixed {
    (f, $b:ident, $c:ident, $d:ident, $sum:ident) => {
        $sum.wrapping_add($d ^ ($b & ($c ^ $d)))
    };
    // The two halves of the selection share no bit, so they can be added; only the second waits for `b`.
    (g, $b:ident, $c:ident, $d:ident, $sum:ident) => {
        $sum.wrapping_add(!$d & $c).wrapping_add($b & $d)
    };
    (h, $b:ident, $c:ident, $d:ident, $sum:ident) => {
        $sum.wrapping_add($b ^ ($c ^ $d))
    };
    (i, $b:ident, $c:ident, $d:ident, $sum:ident) => {
        $sum.wrapping_add($c ^ ($b | !$d))
    };
}

#[cfg(target_arch = "x86_64")]
macro_rules! settled {
    ($sum:expr) => {
        in_order!(reg, "/* {0:e} */", $sum)
    };
}
#[cfg(target_arch = "aarch64")]
macro_rules! settled {
    ($sum:expr) => {
        in_order!(reg, "/* {0:w} */", $sum)
    };
}
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
macro_rules! settled {
    ($sum:expr) => {
        $sum
    };
}

macro_rules! step {
    ($function:ident, $i:literal, $shift:literal, $a:ident, $b:ident, $c:ident, $d:ident, $word:expr) => {{
        let sum = settled!($a.wrapping_add($word.wrapping_add(SINES[$i])));
        mixed!($function, $b, $c, $d, sum).rotate_left($shift).wrapping_add($b)
    }};
}

pub(super) fn advance(state: &mut State, blocks: &[Block]) {
    let [mut a, mut b, mut c, mut d] = *state;
    for block in blocks {
        let (words, _) = block.as_chunks::<4>();
        let words: [u32; 16] = std::array::from_fn(|word| u32::from_le_bytes(words[word]));
        let before = [a, b, c, d];
        steps!(step, a, b, c, d, words);
        a = a.wrapping_add(before[0]);
        b = b.wrapping_add(before[1]);
        c = c.wrapping_add(before[2]);
        d = d.wrapping_add(before[3]);
    }
    *state = [a, b, c, d];
}
