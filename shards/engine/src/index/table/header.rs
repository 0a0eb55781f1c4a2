//! A table's header: what it holds and where. Two 4 KiB blocks at the start of the extent, written after everything else.
//!
//! ```text
//! 0  shard u32          24 entries u64          48 filter length u64, bytes
//! 4  data blocks u32    32 tombstones u64       56 directory length u64, bytes
//! 8  epoch u64          40 table length u64     64 min key length u16, max key length u16, min key, max key
//! 16 sequence u64
//! ```
//!
//! Data blocks begin after the header, then come the filter and the directory, each cut into frames of at most 64 KiB.

use basalt_reactor::disk::BLOCK_LEN;

use super::frame::{FRAME_HEAD_LEN, Fault};
use crate::index::key::KEY_LEN_MAX;

/// Bytes of the header's frame, padding included.
pub(crate) const HEADER_FRAME_LEN: usize = 2 * BLOCK_LEN;

/// Longest frame of a section (filter or directory), in bytes.
pub(crate) const SECTION_FRAME_LEN: usize = 64 * 1024;

/// Payload of a full section frame, in bytes.
pub(crate) const SECTION_PAYLOAD_LEN: usize = SECTION_FRAME_LEN - FRAME_HEAD_LEN;

const FIXED_LEN: usize = 68;

const _: () = assert!(FRAME_HEAD_LEN + FIXED_LEN + 2 * KEY_LEN_MAX <= HEADER_FRAME_LEN);

/// Bytes that a section of `len` bytes takes in the extent, frames and padding included.
pub(crate) fn section_len(len: usize) -> u64 {
    let rest = len % SECTION_PAYLOAD_LEN;
    let tail = if rest == 0 { 0 } else { (FRAME_HEAD_LEN + rest).next_multiple_of(BLOCK_LEN) };
    (len / SECTION_PAYLOAD_LEN * SECTION_FRAME_LEN + tail) as u64
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) shard: u32,
    pub(crate) block_count: u32,
    pub(crate) epoch: u64,
    pub(crate) sequence: u64,
    pub(crate) entry_count: u64,
    pub(crate) tombstone_count: u64,
    /// Bytes of the extent in use, from its start.
    pub(crate) table_len: u64,
    pub(crate) filter_len: u64,
    pub(crate) directory_len: u64,
    pub(crate) min_key: Box<[u8]>,
    pub(crate) max_key: Box<[u8]>,
}

impl Header {
    /// Appends the payload.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.shard.to_le_bytes());
        out.extend_from_slice(&self.block_count.to_le_bytes());
        let counts = [self.epoch, self.sequence, self.entry_count, self.tombstone_count];
        for field in counts.into_iter().chain([self.table_len, self.filter_len, self.directory_len]) {
            out.extend_from_slice(&field.to_le_bytes());
        }
        for key in [&self.min_key, &self.max_key] {
            out.extend_from_slice(&u16::try_from(key.len()).expect("keys are short").to_le_bytes());
        }
        out.extend_from_slice(&self.min_key);
        out.extend_from_slice(&self.max_key);
    }

    /// Reads the header of a table in a slot of `slot_len` bytes. What it returns is consistent: the parts fit the table
    /// and the table fits the slot.
    ///
    /// # Errors
    /// [`Fault::Malformed`] when not.
    pub(crate) fn decode(payload: &[u8], slot_len: u64) -> Result<Header, Fault> {
        let (fixed, keys) =
            payload.split_first_chunk::<FIXED_LEN>().ok_or(Fault::Malformed("length of a header"))?;
        let half = |at: usize| u32::from_le_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
        let word = |at: usize| u64::from(half(at)) | u64::from(half(at + 4)) << 32;
        let key_len = |at: usize| usize::from(u16::from_le_bytes([fixed[at], fixed[at + 1]]));
        let (min_key, max_key) =
            keys.split_at_checked(key_len(64)).ok_or(Fault::Malformed("keys of a header"))?;
        let header = Header {
            shard: half(0),
            block_count: half(4),
            epoch: word(8),
            sequence: word(16),
            entry_count: word(24),
            tombstone_count: word(32),
            table_len: word(40),
            filter_len: word(48),
            directory_len: word(56),
            min_key: min_key.into(),
            max_key: max_key.into(),
        };
        if max_key.len() != key_len(66) || min_key > max_key {
            return Err(Fault::Malformed("keys of a header"));
        }
        if min_key.len() > KEY_LEN_MAX || max_key.len() > KEY_LEN_MAX {
            return Err(Fault::Malformed("length of a key in a header"));
        }
        let consistent = header.table_len <= slot_len
            && header.filter_len <= slot_len
            && header.directory_len <= slot_len
            && header.data_end().is_some()
            && header.tombstone_count <= header.entry_count;
        if !consistent {
            return Err(Fault::Malformed("lengths of a header"));
        }
        Ok(header)
    }

    /// Where the data blocks end and the filter begins, in 4 KiB blocks; `None` when the lengths contradict each other.
    pub(crate) fn data_end(&self) -> Option<u32> {
        let sections = section_len(usize::try_from(self.filter_len).ok()?)
            + section_len(usize::try_from(self.directory_len).ok()?);
        let end = self.table_len.checked_sub(sections)?;
        let blocks = u32::try_from(end / BLOCK_LEN as u64).ok()?;
        (end.is_multiple_of(BLOCK_LEN as u64) && end >= HEADER_FRAME_LEN as u64).then_some(blocks)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SLOT_LEN: u64 = 1 << 20;

    fn header() -> Header {
        Header {
            shard: 3,
            block_count: 5,
            epoch: 7,
            sequence: 0x0102_0304_0506_0708,
            entry_count: 90,
            tombstone_count: 9,
            table_len: 65_536,
            filter_len: 128,
            directory_len: 60,
            min_key: b"aa".as_slice().into(),
            max_key: b"zzz".as_slice().into(),
        }
    }

    fn bytes(header: &Header) -> Vec<u8> {
        let mut out = Vec::new();
        header.encode(&mut out);
        out
    }

    #[test]
    fn golden_bytes() {
        let hex: String = bytes(&header()).iter().map(|byte| format!("{byte:02x}")).collect();
        let golden = "0300000005000000070000000000000008070605040302015a000000000000000900000000000000\
                      00000100000000008000000000000000 3c00000000000000 0200 0300 6161 7a7a7a";
        assert_eq!(hex, golden.replace(' ', ""));
        assert_eq!(Header::decode(&bytes(&header()), SLOT_LEN), Ok(header()));
        assert_eq!(header().data_end(), Some(14));
    }

    #[test]
    fn refuses_contradictions() {
        let refused = |change: fn(&mut Header)| {
            let mut header = header();
            change(&mut header);
            Header::decode(&bytes(&header), SLOT_LEN).is_err()
        };
        assert!(refused(|header| header.table_len = SLOT_LEN + 4096));
        assert!(refused(|header| header.table_len = 4096));
        assert!(refused(|header| header.table_len += 1));
        assert!(refused(|header| header.filter_len = u64::MAX));
        assert!(refused(|header| header.directory_len = 65_536));
        assert!(refused(|header| header.min_key = b"zzzz".as_slice().into()));
        assert!(refused(|header| header.tombstone_count = 91));
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(changes in proptest::collection::vec((0..80_usize, any::<u8>()), 0..8), cut in 0..80_usize) {
            let mut bytes = bytes(&header());
            for (at, byte) in changes {
                if let Some(target) = bytes.get_mut(at) {
                    *target = byte;
                }
            }
            if let Ok(header) = Header::decode(&bytes, SLOT_LEN) {
                prop_assert!(header.data_end().is_some());
            }
            prop_assert!(Header::decode(&bytes[..cut.min(72)], SLOT_LEN).is_err());
        }
    }

    #[test]
    fn sections_take_whole_blocks() {
        assert_eq!(section_len(0), 0);
        assert_eq!(section_len(1), 4096);
        assert_eq!(section_len(SECTION_PAYLOAD_LEN), SECTION_FRAME_LEN as u64);
        assert_eq!(section_len(SECTION_PAYLOAD_LEN + 1), SECTION_FRAME_LEN as u64 + 4096);
    }
}
