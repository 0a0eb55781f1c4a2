//! The state of one stream: the chain, the bytes of a block that is not full yet, and the padding at the end.

use std::ops::Range;

use crate::kernel::{BLOCK_LEN, Block, START, State, advance_one};

/// Where the padding's length field begins.
const LENGTH_AT: usize = BLOCK_LEN - size_of::<u64>();

/// The MD5 of one stream, computed by itself.
#[derive(Clone, Debug)]
pub struct Md5 {
    pub(crate) state: State,
    /// Bytes so far; what lies beyond the last whole block is in `open`.
    len: u64,
    open: Block,
}

/// What becomes of a piece of the stream: a block that it fills up, whole blocks inside it, and a rest that was kept.
#[derive(Debug)]
pub(crate) struct Cut {
    pub(crate) filled: Option<Block>,
    pub(crate) whole: Range<usize>,
}

impl Default for Md5 {
    fn default() -> Self {
        Md5::new()
    }
}

impl Md5 {
    #[must_use]
    pub fn new() -> Md5 {
        Md5 { state: START, len: 0, open: [0; BLOCK_LEN] }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        let cut = self.cut(bytes);
        if let Some(block) = cut.filled {
            advance_one(&mut self.state, &[block]);
        }
        advance_one(&mut self.state, bytes[cut.whole].as_chunks().0);
    }

    #[must_use]
    pub fn finalize(mut self) -> [u8; 16] {
        let (blocks, count) = self.padding();
        advance_one(&mut self.state, &blocks[..count]);
        self.digest()
    }

    /// Takes note of `bytes` and says which blocks they bring; the chain is the caller's to advance.
    pub(crate) fn cut(&mut self, bytes: &[u8]) -> Cut {
        let open = self.open_len();
        self.len = self.len.wrapping_add(bytes.len() as u64);
        let mut start = 0;
        let mut filled = None;
        if open > 0 {
            start = bytes.len().min(BLOCK_LEN - open);
            self.open[open..open + start].copy_from_slice(&bytes[..start]);
            if open + start < BLOCK_LEN {
                return Cut { filled: None, whole: start..start };
            }
            filled = Some(self.open);
        }
        let rest = (bytes.len() - start) % BLOCK_LEN;
        let end = bytes.len() - rest;
        self.open[..rest].copy_from_slice(&bytes[end..]);
        Cut { filled, whole: start..end }
    }

    /// The last one or two blocks: RFC 1321, sections 3.1 and 3.2.
    pub(crate) fn padding(&self) -> ([Block; 2], usize) {
        let open = self.open_len();
        let mut blocks = [[0; BLOCK_LEN]; 2];
        blocks[0][..open].copy_from_slice(&self.open[..open]);
        blocks[0][open] = 0x80;
        let count = if open < LENGTH_AT { 1 } else { 2 };
        let bits = self.len.wrapping_mul(8);
        blocks[count - 1][LENGTH_AT..].copy_from_slice(&bits.to_le_bytes());
        (blocks, count)
    }

    /// What the chain says after the padding.
    pub(crate) fn digest(&self) -> [u8; 16] {
        let mut digest = [0; 16];
        for (bytes, word) in digest.chunks_exact_mut(4).zip(self.state) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        digest
    }

    fn open_len(&self) -> usize {
        (self.len % BLOCK_LEN as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn oracle(data: &[u8]) -> [u8; 16] {
        use ::md5::Digest;
        ::md5::Md5::digest(data).into()
    }

    /// RFC 1321, appendix A.5.
    #[test]
    fn published_vectors() {
        for (text, digest) in [
            ("", "d41d8cd98f00b204e9800998ecf8427e"),
            ("a", "0cc175b9c0f1b6a831c399e269772661"),
            ("abc", "900150983cd24fb0d6963f7d28e17f72"),
            ("message digest", "f96b697d7cb7938d525a2f31aaf161d0"),
            ("abcdefghijklmnopqrstuvwxyz", "c3fcd3d76192e4007dfb496cca67e13b"),
            (
                "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789",
                "d174ab98d277d9f5a5611c2c9f419d9f",
            ),
            (
                "12345678901234567890123456789012345678901234567890123456789012345678901234567890",
                "57edf4a22be3c955ac49da2e2107b67a",
            ),
        ] {
            let mut md5 = Md5::new();
            md5.update(text.as_bytes());
            assert_eq!(hex::encode(md5.finalize()), digest, "{text}");
        }
    }

    #[test]
    fn every_length_around_a_block() {
        let data: Vec<u8> = (0..200).map(|i| (i * 7) as u8).collect();
        for len in 0..data.len() {
            let mut md5 = Md5::new();
            md5.update(&data[..len]);
            assert_eq!(md5.finalize(), oracle(&data[..len]), "{len} bytes");
        }
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(
            data in prop::collection::vec(any::<u8>(), 0..2000),
            cuts in prop::collection::vec(0usize..200, 1..20),
        ) {
            let mut md5 = Md5::new();
            let mut rest = &data[..];
            for cut in cuts.iter().cycle().take(2000) {
                let (piece, after) = rest.split_at((*cut).min(rest.len()));
                md5.update(piece);
                rest = after;
            }
            md5.update(rest);
            prop_assert_eq!(md5.finalize(), oracle(&data));
        }
    }
}
