//! Data blocks: sorted entries with prefix-compressed keys.
//!
//! Every 16th entry (a restart) holds its key whole, the others leave out what they share with the entry before. Offsets of
//! the restarts end the block, so a search is a binary search over whole keys and then a walk of at most 15 entries.
//!
//! ```text
//! entry:   shared varint, unshared varint, value length + 1 or 0 for a tombstone varint, key bytes, value bytes
//! payload: entries, restart offsets u32 each, restart count u32, entry count u32
//! ```
//!
//! Varints are LEB128 of at most 32 bits. Decoding trusts nothing: lengths are checked against the block, keys against
//! each other's order.

use std::cmp::Ordering;
use std::ops::Range;
use std::rc::Rc;

use basalt_reactor::disk::BLOCK_LEN;

use super::frame::{FRAME_HEAD_LEN, Fault, FrameKind, FramePlace, seal};
use crate::extent::ExtentId;
use crate::index::key::{KEY_LEN_MAX, VALUE_LEN_MAX};

/// Entries from one whole key to the next.
const RESTART_INTERVAL: u32 = 16;

/// Restart count and entry count.
const TRAILER_LEN: usize = 8;

/// Most bytes that an entry takes beyond its key and value, its share of the restarts included.
const ENTRY_HEAD_LEN_MAX: usize = 2 + 2 + 3 + 4;

/// Longest data block frame, in bytes: one entry of the greatest size, in whole 4 KiB blocks.
pub(crate) const BLOCK_FRAME_LEN_MAX: usize =
    (FRAME_HEAD_LEN + ENTRY_HEAD_LEN_MAX + KEY_LEN_MAX + VALUE_LEN_MAX + TRAILER_LEN)
        .next_multiple_of(BLOCK_LEN);

/// Builds one block after the other.
pub(crate) struct BlockBuilder {
    /// Room for the frame's head, then entries.
    frame: Vec<u8>,
    restarts: Vec<u32>,
    entry_count: u32,
    last_key: Vec<u8>,
}

impl BlockBuilder {
    pub(crate) fn new() -> BlockBuilder {
        BlockBuilder {
            frame: vec![0; FRAME_HEAD_LEN],
            restarts: Vec::new(),
            entry_count: 0,
            last_key: Vec::new(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entry_count == 0
    }

    /// Bytes of the finished frame before padding.
    pub(crate) fn len(&self) -> usize {
        self.frame.len() + 4 * self.restarts.len() + TRAILER_LEN
    }

    /// As [`BlockBuilder::len`], if an entry of these lengths were added and shared nothing with the one before.
    pub(crate) fn len_with(&self, key_len: usize, value_len: usize) -> usize {
        self.len() + ENTRY_HEAD_LEN_MAX + key_len + value_len
    }

    /// Adds an entry (`None`: a tombstone).
    ///
    /// # Panics
    /// If keys do not ascend or an entry exceeds its maxima.
    pub(crate) fn add(&mut self, key: &[u8], value: Option<&[u8]>) {
        assert!(key.len() <= KEY_LEN_MAX, "a key of {} bytes", key.len());
        assert!(value.is_none_or(|value| value.len() <= VALUE_LEN_MAX), "a value too long for the index");
        assert!(self.is_empty() || *self.last_key < *key, "keys of a block ascend");
        let shared = if self.entry_count.is_multiple_of(RESTART_INTERVAL) {
            self.restarts.push(as_u32(self.frame.len() - FRAME_HEAD_LEN));
            0
        } else {
            shared_len(&self.last_key, key)
        };
        put_varint(&mut self.frame, as_u32(shared));
        put_varint(&mut self.frame, as_u32(key.len() - shared));
        put_varint(&mut self.frame, value.map_or(0, |value| as_u32(value.len()) + 1));
        self.frame.extend_from_slice(&key[shared..]);
        self.frame.extend_from_slice(value.unwrap_or_default());
        self.last_key.truncate(shared);
        self.last_key.extend_from_slice(&key[shared..]);
        self.entry_count += 1;
    }

    /// Seals the block for its place, hands the frame, padded with zeros to whole 4 KiB blocks, to `write` and starts
    /// the next one.
    pub(crate) fn finish<T>(&mut self, extent: ExtentId, block: u32, write: impl FnOnce(&[u8]) -> T) -> T {
        for restart in &self.restarts {
            self.frame.extend_from_slice(&restart.to_le_bytes());
        }
        self.frame.extend_from_slice(&as_u32(self.restarts.len()).to_le_bytes());
        self.frame.extend_from_slice(&self.entry_count.to_le_bytes());
        seal(&mut self.frame, FramePlace { kind: FrameKind::Data, extent, block });
        self.frame.resize(self.frame.len().next_multiple_of(BLOCK_LEN), 0);
        assert!(self.frame.len() <= BLOCK_FRAME_LEN_MAX, "a block of {} bytes", self.frame.len());
        let written = write(&self.frame);
        self.frame.truncate(FRAME_HEAD_LEN);
        self.restarts.clear();
        self.entry_count = 0;
        written
    }

    pub(crate) fn last_key(&self) -> &[u8] {
        &self.last_key
    }
}

/// A verified block in memory.
pub(crate) struct Block {
    payload: Box<[u8]>,
    /// End of the entries, start of the restart offsets.
    entries_end: usize,
    restart_count: usize,
}

impl Block {
    /// Takes over a payload whose checksum was found right.
    ///
    /// # Errors
    /// [`Fault::Malformed`] when the counts do not fit the length.
    pub(crate) fn new(payload: &[u8]) -> Result<Block, Fault> {
        let malformed = Fault::Malformed("restart offsets of a data block");
        let (rest, trailer) = payload.split_last_chunk::<TRAILER_LEN>().ok_or(malformed)?;
        let restart_count = u32::from_le_bytes([trailer[0], trailer[1], trailer[2], trailer[3]]) as usize;
        let entry_count = u32::from_le_bytes([trailer[4], trailer[5], trailer[6], trailer[7]]);
        let entries_end =
            restart_count.checked_mul(4).and_then(|len| rest.len().checked_sub(len)).ok_or(malformed)?;
        if restart_count == 0 || restart_count != entry_count.div_ceil(RESTART_INTERVAL) as usize {
            return Err(malformed);
        }
        Ok(Block { payload: payload.into(), entries_end, restart_count })
    }

    /// Bytes of memory.
    pub(crate) fn len(&self) -> usize {
        self.payload.len()
    }

    fn restart(&self, index: usize) -> usize {
        let at = self.entries_end + 4 * index;
        let bytes = &self.payload[at..at + 4];
        u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize
    }

    fn entry(&self, offset: usize) -> Result<RawEntry, Fault> {
        let malformed = Fault::Malformed("entry of a data block");
        let entries = &self.payload[..self.entries_end];
        let mut at = offset;
        let shared_len = get_varint(entries, &mut at).ok_or(malformed)? as usize;
        let unshared_len = get_varint(entries, &mut at).ok_or(malformed)? as usize;
        let value_tag = get_varint(entries, &mut at).ok_or(malformed)? as usize;
        let value_len = value_tag.saturating_sub(1);
        if shared_len + unshared_len > KEY_LEN_MAX || value_len > VALUE_LEN_MAX {
            return Err(malformed);
        }
        let value_start = at + unshared_len;
        let end = value_start + value_len;
        if end > entries.len() {
            return Err(malformed);
        }
        Ok(RawEntry {
            shared_len,
            unshared: at..value_start,
            value: (value_tag > 0).then_some(value_start..end),
            end,
        })
    }
}

struct RawEntry {
    shared_len: usize,
    unshared: Range<usize>,
    value: Option<Range<usize>>,
    end: usize,
}

/// A position in a block. Keeps its key buffer from block to block.
#[derive(Default)]
pub(crate) struct BlockCursor {
    block: Option<Rc<Block>>,
    /// Offset of the entry after the current one.
    next: usize,
    key: Vec<u8>,
    value: Option<Range<usize>>,
}

impl BlockCursor {
    /// Stands before the first entry of `block`.
    pub(crate) fn enter(&mut self, block: Rc<Block>) {
        self.block = Some(block);
        self.rewind(0);
    }

    pub(crate) fn leave(&mut self) {
        self.block = None;
    }

    pub(crate) fn is_inside(&self) -> bool {
        self.block.is_some()
    }

    fn rewind(&mut self, offset: usize) {
        self.next = offset;
        self.key.clear();
        self.value = None;
    }

    /// Moves to the next entry; `false` at the end of the block.
    ///
    /// # Errors
    /// [`Fault::Malformed`] on bytes that no [`BlockBuilder`] wrote.
    pub(crate) fn advance(&mut self) -> Result<bool, Fault> {
        let Some(block) = &self.block else { return Ok(false) };
        if self.next >= block.entries_end {
            return Ok(false);
        }
        let entry = block.entry(self.next)?;
        let unshared = &block.payload[entry.unshared];
        let Some(replaced) = self.key.get(entry.shared_len..) else {
            return Err(Fault::Malformed("a key shares more than there is"));
        };
        if unshared <= replaced && !self.key.is_empty() {
            return Err(Fault::Malformed("keys of a data block do not ascend"));
        }
        self.key.truncate(entry.shared_len);
        self.key.extend_from_slice(unshared);
        self.value = entry.value;
        self.next = entry.end;
        Ok(true)
    }

    /// Moves to the first entry with a key not below `target`; `false` when the block has none.
    ///
    /// # Errors
    /// As [`BlockCursor::advance`].
    pub(crate) fn seek(&mut self, target: &[u8]) -> Result<bool, Fault> {
        let Some(block) = &self.block else { return Ok(false) };
        // The last restart whose key is not above the target.
        let (mut low, mut high) = (0, block.restart_count);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            let entry = block.entry(block.restart(middle))?;
            match block.payload[entry.unshared].cmp(target) {
                Ordering::Greater => high = middle,
                Ordering::Less | Ordering::Equal => low = middle,
            }
        }
        let offset = block.restart(low);
        self.rewind(offset);
        while self.advance()? {
            if self.key.as_slice() >= target {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub(crate) fn key(&self) -> &[u8] {
        &self.key
    }

    /// The value of the current entry; `None` for a tombstone.
    pub(crate) fn value(&self) -> Option<&[u8]> {
        let block = self.block.as_ref()?;
        self.value.clone().map(|range| &block.payload[range])
    }
}

fn as_u32(len: usize) -> u32 {
    u32::try_from(len).expect("blocks are far below 4 GiB")
}

fn shared_len(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

fn put_varint(out: &mut Vec<u8>, mut value: u32) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[inline]
fn get_varint(bytes: &[u8], at: &mut usize) -> Option<u32> {
    let mut value = 0_u32;
    for shift in [0, 7, 14, 21, 28] {
        let byte = *bytes.get(*at)?;
        *at += 1;
        value |= u32::from(byte & 0x7f).checked_shl(shift)?;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::frame::open;
    use super::*;

    type Entries = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

    fn build(entries: &Entries) -> Vec<u8> {
        let mut builder = BlockBuilder::new();
        for (key, value) in entries {
            builder.add(key, value.as_deref());
        }
        let len = builder.len();
        let frame = builder.finish(ExtentId(9), 2, <[u8]>::to_vec);
        assert_eq!(frame.len(), len.next_multiple_of(BLOCK_LEN));
        frame
    }

    fn payload(frame: &[u8]) -> &[u8] {
        open(frame, FramePlace { kind: FrameKind::Data, extent: ExtentId(9), block: 2 }).expect("sealed")
    }

    fn entries() -> impl Strategy<Value = Entries> {
        let key = proptest::collection::vec(prop_oneof![Just(b'a'), Just(b'b'), any::<u8>()], 0..12);
        let value = proptest::option::of(proptest::collection::vec(any::<u8>(), 0..300));
        proptest::collection::btree_map(key, value, 1..120)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn reads_and_seeks_like_the_map_it_was_built_from(entries in entries(), targets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..4), 20)) {
            let frame = build(&entries);
            let block = Rc::new(Block::new(payload(&frame)).expect("well-formed"));
            let mut cursor = BlockCursor::default();
            cursor.enter(Rc::clone(&block));
            let mut read = Entries::new();
            while cursor.advance().expect("well-formed") {
                read.insert(cursor.key().to_vec(), cursor.value().map(<[u8]>::to_vec));
            }
            prop_assert_eq!(&read, &entries);
            for target in targets.iter().chain(entries.keys()) {
                let expected = entries.range(target.clone()..).next();
                prop_assert_eq!(cursor.seek(target).expect("well-formed"), expected.is_some());
                if let Some((key, value)) = expected {
                    prop_assert_eq!((cursor.key(), cursor.value()), (key.as_slice(), value.as_deref()));
                }
            }
        }

        /// Whatever a payload holds, reading it ends, in entries or in an error.
        #[test]
        fn hostile_payloads_never_panic(entries in entries(), changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), cut in any::<prop::sample::Index>()) {
            let frame = build(&entries);
            let mut hostile = payload(&frame).to_vec();
            for (index, byte) in changes {
                let index = index.index(hostile.len());
                hostile[index] = byte;
            }
            for bytes in [hostile.as_slice(), &hostile[cut.index(hostile.len())..]] {
                let Ok(block) = Block::new(bytes) else { continue };
                let mut cursor = BlockCursor::default();
                cursor.enter(Rc::new(block));
                while let Ok(true) = cursor.advance() {
                    prop_assert!(cursor.key().len() <= KEY_LEN_MAX);
                }
                for target in entries.keys() {
                    let _ = cursor.seek(target);
                }
            }
        }
    }

    #[test]
    fn golden_bytes() {
        let entries = Entries::from([
            (b"apple".to_vec(), Some(b"red".to_vec())),
            (b"apply".to_vec(), None),
            (b"b".to_vec(), Some(Vec::new())),
        ]);
        let frame = build(&entries);
        let golden = b"\0\x05\x04applered\x04\x01\0y\0\x01\x01b\0\0\0\0\x01\0\0\0\x03\0\0\0";
        assert_eq!(payload(&frame), golden);
    }

    #[test]
    fn the_largest_entry_fits_a_block_of_its_own() {
        let entries = Entries::from([(vec![7; KEY_LEN_MAX], Some(vec![8; VALUE_LEN_MAX]))]);
        assert_eq!(build(&entries).len(), BLOCK_FRAME_LEN_MAX);
    }
}
