//! The compression function on one lane and on sixteen.
//!
//! Each kernel runs the same 64 steps; they differ in what a word is: a `u32`, an AVX2 register, an AVX-512 register.
//! All are bound by the latency of the chain of steps and not by the number of instructions. A step therefore adds up
//! all that does not depend on the step before first, and `in_order!` keeps the compiler from bringing the sums into
//! another order (it would: sums of integers may be regrouped, and its measure is not latency). That alone is worth
//! 24 % on one lane.

/// Adds one word of each lane in the order it is written: an empty instruction that the optimizer does not see through.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! in_order {
    ($class:ident, $template:literal, $value:expr) => {{
        let mut value = $value;
        // SAFETY: emits no instruction; the value stays in its register.
        unsafe {
            std::arch::asm!($template, inout($class) value, options(pure, nomem, nostack, preserves_flags));
        }
        value
    }};
}

/// The 64 steps of RFC 1321, section 3.4: `$step!(function, index, shift, a, b, c, d, word)` gives the new `a`.
macro_rules! steps {
    ($step:ident, $a:ident, $b:ident, $c:ident, $d:ident, $words:ident) => {
        steps!(@four $step $a $b $c $d $words f 7 12 17 22: 0 0, 1 1, 2 2, 3 3);
        steps!(@four $step $a $b $c $d $words f 7 12 17 22: 4 4, 5 5, 6 6, 7 7);
        steps!(@four $step $a $b $c $d $words f 7 12 17 22: 8 8, 9 9, 10 10, 11 11);
        steps!(@four $step $a $b $c $d $words f 7 12 17 22: 12 12, 13 13, 14 14, 15 15);
        steps!(@four $step $a $b $c $d $words g 5 9 14 20: 16 1, 17 6, 18 11, 19 0);
        steps!(@four $step $a $b $c $d $words g 5 9 14 20: 20 5, 21 10, 22 15, 23 4);
        steps!(@four $step $a $b $c $d $words g 5 9 14 20: 24 9, 25 14, 26 3, 27 8);
        steps!(@four $step $a $b $c $d $words g 5 9 14 20: 28 13, 29 2, 30 7, 31 12);
        steps!(@four $step $a $b $c $d $words h 4 11 16 23: 32 5, 33 8, 34 11, 35 14);
        steps!(@four $step $a $b $c $d $words h 4 11 16 23: 36 1, 37 4, 38 7, 39 10);
        steps!(@four $step $a $b $c $d $words h 4 11 16 23: 40 13, 41 0, 42 3, 43 6);
        steps!(@four $step $a $b $c $d $words h 4 11 16 23: 44 9, 45 12, 46 15, 47 2);
        steps!(@four $step $a $b $c $d $words i 6 10 15 21: 48 0, 49 7, 50 14, 51 5);
        steps!(@four $step $a $b $c $d $words i 6 10 15 21: 52 12, 53 3, 54 10, 55 1);
        steps!(@four $step $a $b $c $d $words i 6 10 15 21: 56 8, 57 15, 58 6, 59 13);
        steps!(@four $step $a $b $c $d $words i 6 10 15 21: 60 4, 61 11, 62 2, 63 9);
    };
    (@four $step:ident $a:ident $b:ident $c:ident $d:ident $words:ident
        $function:ident $s0:literal $s1:literal $s2:literal $s3:literal:
        $i0:literal $w0:literal, $i1:literal $w1:literal, $i2:literal $w2:literal, $i3:literal $w3:literal) => {
        $a = $step!($function, $i0, $s0, $a, $b, $c, $d, $words[$w0]);
        $d = $step!($function, $i1, $s1, $d, $a, $b, $c, $words[$w1]);
        $c = $step!($function, $i2, $s2, $c, $d, $a, $b, $words[$w2]);
        $b = $step!($function, $i3, $s3, $b, $c, $d, $a, $words[$w3]);
    };
}

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod scalar;

/// Bytes that one run of the compression function takes.
pub const BLOCK_LEN: usize = 64;

pub type Block = [u8; BLOCK_LEN];

/// The four words that the chain carries from block to block.
pub type State = [u32; 4];

/// The chain before the first block.
pub const START: State = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];

/// Streams that a vector kernel computes side by side.
pub const LANES: usize = 16;

/// How far ahead the bytes of each lane are called for: sixteen streams are more than the hardware follows, and without it
/// streams that lie in no cache are computed at two thirds of the speed.
#[cfg(target_arch = "x86_64")]
const PREFETCH_BLOCKS: usize = 4;

/// A way to compute that this machine has: no value of it exists for one that it has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Kernel {
    /// One lane at a time; every machine has it.
    pub const SCALAR: Kernel = Kernel(Kind::Scalar);

    /// The fastest kernel that this machine has.
    #[must_use]
    pub fn detect() -> Kernel {
        Kernel::available().last().copied().unwrap_or(Kernel::SCALAR)
    }

    /// All kernels that this machine has, the slowest first.
    #[must_use]
    pub fn available() -> Vec<Kernel> {
        #[cfg_attr(not(target_arch = "x86_64"), expect(unused_mut, reason = "only x86-64 has others"))]
        let mut kernels = vec![Kernel::SCALAR];
        #[cfg(target_arch = "x86_64")]
        {
            if std::arch::is_x86_feature_detected!("avx2") {
                kernels.push(Kernel(Kind::Avx2));
            }
            if std::arch::is_x86_feature_detected!("avx512f") {
                kernels.push(Kernel(Kind::Avx512));
            }
        }
        kernels
    }

    #[must_use]
    pub fn name(self) -> &'static str {
        match self.0 {
            Kind::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => "avx512",
        }
    }

    /// From how many streams on their common run is faster than one run for each.
    pub(crate) fn lanes_min(self) -> usize {
        match self.0 {
            Kind::Scalar => usize::MAX,
            // A run takes 2.5 times as long as a single lane.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => 3,
            // A run takes 1.8 times as long as a single lane.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => 2,
        }
    }

    /// Takes the first `count` blocks of the first `live` lanes; the states of the others become anything.
    ///
    /// # Panics
    /// If a lane, live or not, has fewer.
    pub(crate) fn advance(
        self,
        states: &mut LaneStates,
        data: &[&[Block]; LANES],
        live: usize,
        count: usize,
    ) {
        match self.0 {
            Kind::Scalar => {
                for (lane, blocks) in data[..live].iter().enumerate() {
                    let mut state = states.get(lane);
                    advance_one(&mut state, &blocks[..count]);
                    states.set(lane, state);
                }
            }
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a kernel of this kind exists only where the feature was detected.
            Kind::Avx2 => unsafe { avx2::advance(&mut states.words, data, live, count) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a kernel of this kind exists only where the feature was detected.
            Kind::Avx512 => unsafe { avx512::advance(&mut states.words, data, count) },
        }
    }
}

/// Takes `blocks` on a single lane.
pub(crate) fn advance_one(state: &mut State, blocks: &[Block]) {
    scalar::advance(state, blocks);
}

/// The chains of all lanes, word by word as registers hold them.
#[derive(Clone)]
pub(crate) struct LaneStates {
    words: [[u32; LANES]; 4],
}

impl LaneStates {
    pub(crate) fn new() -> LaneStates {
        LaneStates { words: [[0; LANES]; 4] }
    }

    pub(crate) fn get(&self, lane: usize) -> State {
        std::array::from_fn(|word| self.words[word][lane])
    }

    pub(crate) fn set(&mut self, lane: usize, state: State) {
        for (words, word) in self.words.iter_mut().zip(state) {
            words[lane] = word;
        }
    }
}

/// floor(2^32 * abs(sin(i + 1))): RFC 1321, section 3.4.
const SINES: [u32; 64] = [
    0xd76a_a478,
    0xe8c7_b756,
    0x2420_70db,
    0xc1bd_ceee,
    0xf57c_0faf,
    0x4787_c62a,
    0xa830_4613,
    0xfd46_9501,
    0x6980_98d8,
    0x8b44_f7af,
    0xffff_5bb1,
    0x895c_d7be,
    0x6b90_1122,
    0xfd98_7193,
    0xa679_438e,
    0x49b4_0821,
    0xf61e_2562,
    0xc040_b340,
    0x265e_5a51,
    0xe9b6_c7aa,
    0xd62f_105d,
    0x0244_1453,
    0xd8a1_e681,
    0xe7d3_fbc8,
    0x21e1_cde6,
    0xc337_07d6,
    0xf4d5_0d87,
    0x455a_14ed,
    0xa9e3_e905,
    0xfcef_a3f8,
    0x676f_02d9,
    0x8d2a_4c8a,
    0xfffa_3942,
    0x8771_f681,
    0x6d9d_6122,
    0xfde5_380c,
    0xa4be_ea44,
    0x4bde_cfa9,
    0xf6bb_4b60,
    0xbebf_bc70,
    0x289b_7ec6,
    0xeaa1_27fa,
    0xd4ef_3085,
    0x0488_1d05,
    0xd9d4_d039,
    0xe6db_99e5,
    0x1fa2_7cf8,
    0xc4ac_5665,
    0xf429_2244,
    0x432a_ff97,
    0xab94_23a7,
    0xfc93_a039,
    0x655b_59c3,
    0x8f0c_cc92,
    0xffef_f47d,
    0x8584_5dd1,
    0x6fa8_7e4f,
    0xfe2c_e6e0,
    0xa301_4314,
    0x4e08_11a1,
    0xf753_7e82,
    0xbd3a_f235,
    0x2ad7_d2bb,
    0xeb86_d391,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_constants_are_sines() {
        for (i, constant) in SINES.into_iter().enumerate() {
            assert_eq!(constant, (((i + 1) as f64).sin().abs() * 4_294_967_296.0) as u32, "step {i}");
        }
    }

    #[test]
    fn all_kernels_agree_on_every_lane() {
        let lanes: Vec<Vec<Block>> = (0..LANES)
            .map(|lane| {
                let byte = |block: usize, at: usize| (lane * 31 + block * 7 + at * 13) as u8;
                (0..9).map(|block| std::array::from_fn(|at| byte(block, at))).collect()
            })
            .collect();
        let data: [&[Block]; LANES] = std::array::from_fn(|lane| &lanes[lane][..]);
        for kernel in Kernel::available() {
            for (live, count) in [(LANES, 0), (LANES, 1), (LANES, 9), (8, 2), (9, 2), (1, 3)] {
                let mut states = LaneStates::new();
                (0..LANES).for_each(|lane| states.set(lane, START.map(|word| word ^ lane as u32)));
                let mut expected = states.clone();
                kernel.advance(&mut states, &data, live, count);
                Kernel::SCALAR.advance(&mut expected, &data, live, count);
                for lane in 0..live {
                    assert_eq!(states.get(lane), expected.get(lane), "{} on {live} lanes", kernel.name());
                }
            }
        }
    }
}
