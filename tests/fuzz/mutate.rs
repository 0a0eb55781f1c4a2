//! Deterministic mutations of a seed input: what a fuzzer does, repeatable from one number and bounded in time.

/// A small generator (SplitMix64): good enough to choose mutations, the same on every machine.
pub(crate) struct Draw(u64);

impl Draw {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `end`; 0 if `end` is 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        if end == 0 { 0 } else { (self.next() % end as u64) as usize }
    }
}

/// Inputs grow to this many bytes at most.
const LEN_MAX: usize = 64 << 10;

/// What parsers stumble over.
const TOKENS: [&[u8]; 28] = [
    b"0",
    b"-1",
    b"18446744073709551615",
    b"18446744073709551616",
    b"9223372036854775808",
    b"%",
    b"%00",
    b"%ff",
    b"%2F",
    b"\r\n",
    b"\n",
    b"\0",
    b"\"",
    b"<",
    b"&#0;",
    b"]]>",
    b"<!DOCTYPE a>",
    b"=",
    b"&",
    b";",
    b",",
    b"..",
    b"//",
    b"*",
    b"bytes=",
    b"\xff\xfe",
    "é".as_bytes(),
    "\u{1f600}".as_bytes(),
];

/// One to eight changes of one of `seeds`.
pub(crate) fn mutated(draw: &mut Draw, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut data = seeds[draw.below(seeds.len())].clone();
    for _ in 0..=draw.below(8) {
        let at = draw.below(data.len() + 1);
        let end = at + draw.below(data.len() - at + 1);
        match draw.below(10) {
            0 if at < data.len() => data[at] ^= 1 << draw.below(8),
            1 if at < data.len() => data[at] = draw.next() as u8,
            2 if at < data.len() => data[at] = [0, 1, 0x7f, 0x80, 0xff][draw.below(5)],
            3 => data.truncate(at),
            4 => drop(data.drain(at..end.min(at + 64))),
            5 => {
                let copy = data[at..end.min(at + 256)].to_vec();
                let to = draw.below(data.len() + 1);
                data.splice(to..to, copy);
            }
            6 => {
                let other = &seeds[draw.below(seeds.len())];
                let from = draw.below(other.len() + 1);
                data.truncate(at);
                data.extend(&other[from..]);
            }
            7 => {
                let token = TOKENS[draw.below(TOKENS.len())];
                data.splice(at..at, token.iter().copied());
            }
            8 if at + 4 <= data.len() => {
                let extreme = [0, 1, u32::MAX, u32::MAX - 1, 1 << 31, 1 << 16][draw.below(6)];
                data[at..at + 4].copy_from_slice(&extreme.to_le_bytes());
            }
            _ => {
                let byte = draw.next() as u8;
                data.splice(at..at, std::iter::repeat_n(byte, draw.below(32)));
            }
        }
        data.truncate(LEN_MAX);
    }
    data
}
