//! A table's directory of data blocks: where each one is and which keys it ends with. Loaded at open and kept, so that a
//! lookup reads one block.
//!
//! The separator of a block is the shortest string not below its last key and below the first key of the next; the last
//! block's is the table's greatest key itself.
//!
//! ```text
//! payload: per block: length u16 in 4 KiB blocks, separator length u16, separator
//! ```

use basalt_reactor::disk::BLOCK_LEN;

use super::frame::Fault;
use crate::index::key::KEY_LEN_MAX;

/// Blocks and separators, in flat arrays: 8 bytes of memory per block beside the separators.
pub(crate) struct Directory {
    /// Offset of each block in the extent in 4 KiB blocks, and the end of the last.
    starts: Vec<u32>,
    /// End of each separator in `separators`.
    ends: Vec<u32>,
    separators: Vec<u8>,
}

impl Directory {
    /// An empty directory of blocks that begin at `start`, in 4 KiB blocks.
    pub(crate) fn new(start: u32) -> Directory {
        Directory { starts: vec![start], ends: Vec::new(), separators: Vec::new() }
    }

    /// Appends a block of `len` 4 KiB blocks.
    pub(crate) fn push(&mut self, len: u32, separator: &[u8]) {
        self.starts.push(self.end() + len);
        self.separators.extend_from_slice(separator);
        self.ends.push(u32::try_from(self.separators.len()).expect("a directory is far below 4 GiB"));
    }

    pub(crate) fn block_count(&self) -> usize {
        self.ends.len()
    }

    /// Offset where the data ends, in 4 KiB blocks.
    pub(crate) fn end(&self) -> u32 {
        *self.starts.last().expect("never empty")
    }

    /// Offset and length of a data block, both in 4 KiB blocks.
    pub(crate) fn place(&self, index: usize) -> (u32, u32) {
        (self.starts[index], self.starts[index + 1] - self.starts[index])
    }

    fn separator(&self, index: usize) -> &[u8] {
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.separators[start as usize..self.ends[index] as usize]
    }

    /// The only block that may hold `key`, and the first with a key not below it; `None` when all keys are below.
    pub(crate) fn find(&self, key: &[u8]) -> Option<usize> {
        let (mut low, mut high) = (0, self.block_count());
        while low < high {
            let middle = low + (high - low) / 2;
            if self.separator(middle) < key { low = middle + 1 } else { high = middle }
        }
        (low < self.block_count()).then_some(low)
    }

    /// Bytes of memory.
    pub(crate) fn len(&self) -> usize {
        4 * (self.starts.capacity() + self.ends.capacity()) + self.separators.capacity()
    }

    pub(crate) fn shrink(&mut self) {
        self.starts.shrink_to_fit();
        self.ends.shrink_to_fit();
        self.separators.shrink_to_fit();
    }

    /// Bytes of [`Directory::encode`].
    pub(crate) fn encoded_len(&self) -> usize {
        4 * self.block_count() + self.separators.len()
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.encoded_len());
        for index in 0..self.block_count() {
            let separator = self.separator(index);
            let len = u16::try_from(self.place(index).1).expect("a block frame has less than 256 MiB");
            out.extend_from_slice(&len.to_le_bytes());
            out.extend_from_slice(
                &u16::try_from(separator.len()).expect("separators are keys").to_le_bytes(),
            );
            out.extend_from_slice(separator);
        }
        out
    }

    /// Reads the directory of `block_count` blocks that begin at `start` and end by `end_max`, in 4 KiB blocks.
    ///
    /// # Errors
    /// [`Fault::Malformed`] when lengths or order are wrong.
    pub(crate) fn decode(
        mut bytes: &[u8],
        block_count: u32,
        start: u32,
        end_max: u32,
        block_len_max: usize,
    ) -> Result<Directory, Fault> {
        let mut directory = Directory::new(start);
        for _ in 0..block_count {
            let (&[a, b, c, d], rest) =
                bytes.split_first_chunk::<4>().ok_or(Fault::Malformed("a directory ends early"))?;
            let (len, separator_len) = (u16::from_le_bytes([a, b]), usize::from(u16::from_le_bytes([c, d])));
            let (separator, rest) =
                rest.split_at_checked(separator_len).ok_or(Fault::Malformed("a directory ends early"))?;
            let last = directory.block_count().checked_sub(1);
            if separator_len > KEY_LEN_MAX || last.is_some_and(|last| directory.separator(last) >= separator)
            {
                return Err(Fault::Malformed("separators of a directory"));
            }
            if len == 0
                || usize::from(len) * BLOCK_LEN > block_len_max
                || u32::from(len) > end_max.saturating_sub(directory.end())
            {
                return Err(Fault::Malformed("a block's length in a directory"));
            }
            directory.push(u32::from(len), separator);
            bytes = rest;
        }
        if !bytes.is_empty() || block_count == 0 {
            return Err(Fault::Malformed("length of a directory"));
        }
        directory.shrink();
        Ok(directory)
    }
}

/// The shortest string not below `last` and below `next`, which is above `last`.
pub(crate) fn separator<'a>(last: &[u8], next: &'a [u8]) -> std::borrow::Cow<'a, [u8]> {
    let shared = last.iter().zip(next).take_while(|(a, b)| a == b).count();
    // One byte more than they share is above `last` already; it is below `next` only if `next` goes on.
    match next.get(..=shared) {
        Some(short) if short.len() < next.len() => short.into(),
        _ => last.to_vec().into(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::index::table::block::BLOCK_FRAME_LEN_MAX;

    fn decode(bytes: &[u8], count: u32) -> Result<Directory, Fault> {
        Directory::decode(bytes, count, 2, 1_000, BLOCK_FRAME_LEN_MAX)
    }

    proptest! {
        #[test]
        fn separators_separate(a in proptest::collection::vec(0..4_u8, 0..6), b in proptest::collection::vec(0..4_u8, 0..6)) {
            prop_assume!(a != b);
            let (last, next) = if a < b { (a, b) } else { (b, a) };
            let separator = separator(&last, &next);
            prop_assert!(*last <= *separator && *separator < *next);
        }

        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(0..6_u8, 0..60), count in 0..8_u32) {
            if let Ok(directory) = decode(&bytes, count) {
                prop_assert_eq!(directory.encode(), bytes);
                prop_assert!(directory.end() <= 1_000);
            }
        }
    }

    #[test]
    fn finds_the_block_of_a_key() {
        let mut directory = Directory::new(2);
        directory.push(4, b"f");
        directory.push(1, b"m");
        directory.push(9, b"zz");
        let directory = decode(&directory.encode(), 3).expect("its own bytes");
        for (key, block) in
            [("a", Some(0)), ("f", Some(0)), ("fa", Some(1)), ("n", Some(2)), ("zz", Some(2)), ("zza", None)]
        {
            assert_eq!(directory.find(key.as_bytes()), block, "{key}");
        }
        assert_eq!((directory.place(1), directory.place(2), directory.end()), ((6, 1), (7, 9), 16));
    }

    #[test]
    fn golden_bytes() {
        let mut directory = Directory::new(2);
        directory.push(4, b"f");
        directory.push(0x0102, b"mm");
        assert_eq!(directory.encode(), b"\x04\0\x01\0f\x02\x01\x02\0mm");
    }
}
