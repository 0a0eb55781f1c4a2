//! Directory chunks: what a data extent says about itself, at the end of each of its column slots.
//!
//! A chunk lists segments with the checksums of all their blocks, parity included, and with the index key and value of
//! the object that owns them. So scrub verifies an extent without asking the index, and an index that is lost can be
//! rebuilt from the extents. Chunks follow one another in the directory area; slots are used again under new extent
//! ids, so the area ends where a chunk is not of this extent or not the next in sequence.

use super::layout::{StripeShape, blocks_per_strip};
use crate::extent::{ExtentId, Geometry, round_up_to_block};
use crate::format::codec::{DecodeError, Decoder, Encoder};
use crate::format::frame::{self, FRAME_HEADER_LEN, FrameError};
use crate::format::record::{KEY_LEN_MAX, VALUE_LEN_MAX};

const MAGIC: [u8; 8] = *b"BSLTDIRC";
const VERSION: u16 = 1;

/// Longest chunk, in bytes with frame and padding.
pub const CHUNK_LEN_MAX: usize = 256 * 1024;

/// Checksums of one entry at most; a longer segment is described by several entries.
pub const ENTRY_CRC_COUNT_MAX: usize = 32 * 1024;

/// Entries of a chunk at most: what fits when each is as short as can be.
pub const ENTRY_COUNT_MAX: usize = CHUNK_LEN_MAX / ENTRY_LEN_MIN;

/// Bytes of an entry without checksums, key and value.
const ENTRY_LEN_MIN: usize = 4 + 8 + 8 + 4 * 4;

/// Payload bytes in front of the entries.
const CHUNK_HEAD_LEN: usize = 16 + 2 + 8 + 8 + 4 + 4;

// Any one entry fits a chunk of its own.
const _: () = assert!(
    FRAME_HEADER_LEN + CHUNK_HEAD_LEN + ENTRY_LEN_MIN + 4 * ENTRY_CRC_COUNT_MAX + KEY_LEN_MAX + VALUE_LEN_MAX
        <= CHUNK_LEN_MAX
);

/// One chunk of an extent's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryChunk {
    pub deployment: [u8; 16],
    pub shard: u16,
    pub extent: ExtentId,
    /// The epoch it was written in.
    pub epoch: u64,
    /// 0, 1, 2, … within the extent.
    pub sequence: u32,
    pub entries: Vec<DirectoryEntry>,
}

/// Whole stripes of one segment of a body, all of them or a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryEntry {
    /// Where the stripes start in every column, in blocks of 4 KiB.
    pub block: u32,
    /// Body bytes in them.
    pub len: u64,
    /// Offset in the body of the first of them.
    pub body_offset: u64,
    /// As in the body's description.
    pub data_crcs: Vec<u32>,
    /// As in [`super::Written::parity_crcs`].
    pub parity_crcs: Vec<u32>,
    /// The owner's index key and value as they were when the entry was written.
    pub key: Vec<u8>,
    pub value: Vec<u8>,
}

impl DirectoryEntry {
    /// Bytes it takes in a chunk.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        ENTRY_LEN_MIN
            + 4 * (self.data_crcs.len() + self.parity_crcs.len())
            + self.key.len()
            + self.value.len()
    }

    /// Whether it describes stripes as `geometry` makes them.
    #[must_use]
    pub fn fits(&self, geometry: &Geometry) -> bool {
        let shape = StripeShape::new(geometry);
        let capacity = super::layout::data_len(geometry) / basalt_reactor::disk::BLOCK_LEN as u64;
        // Bounded first, so that the multiplications below cannot overflow.
        self.len > 0
            && self.len <= geometry.data_slot_len * shape.k()
            && u64::from(self.block) + shape.blocks_for(self.len) <= capacity
            && self.data_crcs.len() as u64 == shape.crc_count(self.len)
            && self.parity_crcs.len() as u64 == shape.crc_count(self.len) / shape.k() * u64::from(geometry.m)
    }

    /// Cuts it at ends of stripes into entries of at most [`ENTRY_CRC_COUNT_MAX`] checksums.
    #[must_use]
    pub fn split(self, geometry: &Geometry) -> Vec<DirectoryEntry> {
        if self.data_crcs.len() + self.parity_crcs.len() <= ENTRY_CRC_COUNT_MAX {
            return vec![self];
        }
        let shape = StripeShape::new(geometry);
        let per_strip = blocks_per_strip(shape.strip_len()) as usize;
        let stripes = (ENTRY_CRC_COUNT_MAX / (geometry.columns() * per_strip)) as u64;
        let strip_blocks = shape.blocks_for(shape.stripe_len()) as u32;
        let data_per_part = stripes as usize * shape.k() as usize * per_strip;
        let parity_per_part = stripes as usize * usize::from(geometry.m) * per_strip;
        let part_count = self.len.div_ceil(stripes * shape.stripe_len());
        let cut = |crcs: &[u32], part: u64, count: usize| -> Vec<u32> {
            crcs.iter().copied().skip(part as usize * count).take(count).collect()
        };
        (0..part_count)
            .map(|part| {
                let start = part * stripes * shape.stripe_len();
                DirectoryEntry {
                    block: self.block + part as u32 * stripes as u32 * strip_blocks,
                    len: (self.len - start).min(stripes * shape.stripe_len()),
                    body_offset: self.body_offset + start,
                    data_crcs: cut(&self.data_crcs, part, data_per_part),
                    parity_crcs: cut(&self.parity_crcs, part, parity_per_part),
                    key: self.key.clone(),
                    value: self.value.clone(),
                }
            })
            .collect()
    }

    fn encode(&self, out: &mut Encoder) {
        out.u32(self.block);
        out.u64(self.len);
        out.u64(self.body_offset);
        for crcs in [&self.data_crcs, &self.parity_crcs] {
            out.count(crcs.len());
            for crc in crcs {
                out.u32(*crc);
            }
        }
        out.bytes(&self.key);
        out.bytes(&self.value);
    }

    fn decode(from: &mut Decoder<'_>) -> Result<DirectoryEntry, DecodeError> {
        Ok(DirectoryEntry {
            block: from.u32("entry block")?,
            len: from.u64("entry length")?,
            body_offset: from.u64("entry body offset")?,
            data_crcs: decode_crcs(from, "data checksums")?,
            parity_crcs: decode_crcs(from, "parity checksums")?,
            key: from.bytes("entry key", KEY_LEN_MAX)?.to_vec(),
            value: from.bytes("entry value", VALUE_LEN_MAX)?.to_vec(),
        })
    }
}

fn decode_crcs(from: &mut Decoder<'_>, field: &'static str) -> Result<Vec<u32>, DecodeError> {
    let count = from.count(field, ENTRY_CRC_COUNT_MAX)?;
    // Taken as one piece first: a count that lies allocates nothing.
    let bytes = from.raw(field, count * 4)?;
    Ok(bytes.as_chunks::<4>().0.iter().map(|crc| u32::from_le_bytes(*crc)).collect())
}

impl DirectoryChunk {
    /// Bytes that a chunk with these entries takes in the directory area.
    #[must_use]
    pub fn encoded_len(entries: &[DirectoryEntry]) -> usize {
        let payload: usize = entries.iter().map(DirectoryEntry::encoded_len).sum();
        round_up_to_block((FRAME_HEADER_LEN + CHUNK_HEAD_LEN + payload) as u64) as usize
    }

    /// Whole blocks, ready to be written.
    ///
    /// # Panics
    /// If it exceeds [`CHUNK_LEN_MAX`] or an entry exceeds [`ENTRY_CRC_COUNT_MAX`]: the decoder would refuse it.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Encoder::new();
        out.raw(&self.deployment);
        out.u16(self.shard);
        out.u64(self.extent.0);
        out.u64(self.epoch);
        out.u32(self.sequence);
        out.count(self.entries.len());
        for entry in &self.entries {
            assert!(
                entry.data_crcs.len() + entry.parity_crcs.len() <= ENTRY_CRC_COUNT_MAX
                    && entry.key.len() <= KEY_LEN_MAX
                    && entry.value.len() <= VALUE_LEN_MAX,
                "an entry beyond its limits"
            );
            entry.encode(&mut out);
        }
        let bytes = frame::seal(MAGIC, VERSION, &out.finish());
        assert!(bytes.len() <= CHUNK_LEN_MAX, "a chunk of {} bytes", bytes.len());
        bytes
    }

    /// The chunk at the start of `bytes`.
    ///
    /// # Errors
    /// [`FrameError`], with the evidence.
    pub fn decode(bytes: &[u8]) -> Result<DirectoryChunk, FrameError> {
        let (_, payload) = frame::open(MAGIC, VERSION, &bytes[..bytes.len().min(CHUNK_LEN_MAX)])?;
        Ok(Self::parse(payload)?)
    }

    fn parse(payload: &[u8]) -> Result<DirectoryChunk, DecodeError> {
        let mut from = Decoder::new(payload);
        let mut chunk = DirectoryChunk {
            deployment: from.array("deployment")?,
            shard: from.u16("shard")?,
            extent: ExtentId(from.u64("extent")?),
            epoch: from.u64("epoch")?,
            sequence: from.u32("sequence")?,
            entries: Vec::new(),
        };
        for _ in 0..from.count("entries", ENTRY_COUNT_MAX)? {
            chunk.entries.push(DirectoryEntry::decode(&mut from)?);
        }
        from.end()?;
        Ok(chunk)
    }
}

/// A directory area as far as it can be read.
#[derive(Debug, PartialEq, Eq)]
pub struct DirectoryArea {
    pub chunks: Vec<DirectoryChunk>,
    /// Bytes they take: where the next one goes.
    pub len: usize,
    /// Why reading ended before the end of the area: [`FrameError::Empty`] in a fresh slot; `None` when the area is
    /// full, or when what follows is left from an earlier use of the slot. Another copy of the area may go further.
    pub end: Option<FrameError>,
}

/// Reads the chunks of `extent` from the bytes of its directory area.
#[must_use]
pub fn read_area(area: &[u8], deployment: &[u8; 16], extent: ExtentId) -> DirectoryArea {
    let mut chunks: Vec<DirectoryChunk> = Vec::new();
    let mut len = 0;
    while len < area.len() {
        let chunk = match DirectoryChunk::decode(&area[len..]) {
            Ok(chunk) => chunk,
            Err(error) => return DirectoryArea { chunks, len, end: Some(error) },
        };
        let follows = chunk.deployment == *deployment
            && chunk.extent == extent
            && chunk.sequence as usize == chunks.len();
        if !follows {
            break;
        }
        len += DirectoryChunk::encoded_len(&chunk.entries);
        chunks.push(chunk);
    }
    DirectoryArea { chunks, len, end: None }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::layout::tests::geometry;
    use super::*;
    use crate::checksum::crc32c;

    fn entry(fill: u8) -> DirectoryEntry {
        DirectoryEntry {
            block: 16,
            len: 100_000,
            body_offset: 7,
            data_crcs: vec![1, 2, u32::from(fill)],
            parity_crcs: vec![0xdead_beef],
            key: vec![fill; 20],
            value: vec![fill; 100],
        }
    }

    fn chunk(sequence: u32, entries: Vec<DirectoryEntry>) -> DirectoryChunk {
        DirectoryChunk { deployment: [9; 16], shard: 3, extent: ExtentId(77), epoch: 5, sequence, entries }
    }

    /// The first bytes of a chunk as version 1 lays them out, and the checksum of all of it.
    #[test]
    fn golden_chunk() {
        let bytes = chunk(2, vec![entry(1)]).encode();
        assert_eq!(bytes.len(), 4096);
        let head = "42534c5444495243 0100 0000 d6000000 CRC_____ 00000000 \
                    09090909090909090909090909090909 0300 4d00000000000000 0500000000000000 02000000 01000000 \
                    10000000 a086010000000000 0700000000000000 03000000 01000000 02000000 01000000 \
                    01000000 efbeadde 14000000 0101010101010101010101010101010101010101 64000000 0101";
        let head: String = head.split_whitespace().collect();
        let got: String = bytes.iter().map(|byte| format!("{byte:02x}")).take(head.len() / 2).collect();
        assert_eq!((&got[..32], &got[40..]), (&head[..32], &head[40..]));
        assert_eq!(crc32c(&bytes), GOLDEN_CRC);
    }

    const GOLDEN_CRC: u32 = 0x6543_b04e;

    #[test]
    fn chunks_are_read_until_they_are_not_of_the_extent() {
        let chunks = [chunk(0, vec![entry(1), entry(2)]), chunk(1, vec![]), chunk(2, vec![entry(3)])];
        let mut area: Vec<u8> = chunks.iter().flat_map(DirectoryChunk::encode).collect();
        let len = area.len();
        assert_eq!(len, 3 * 4096);
        assert_eq!(read_area(&area, &[9; 16], ExtentId(77)).end, None);
        area.resize(len + 4096, 0);
        let read = read_area(&area, &[9; 16], ExtentId(77));
        assert_eq!((&read.chunks[..], read.len, read.end), (&chunks[..], len, Some(FrameError::Empty)));

        let stale = DirectoryChunk { extent: ExtentId(5), ..chunk(3, vec![entry(9)]) };
        area.truncate(len);
        area.extend(stale.encode());
        assert_eq!(read_area(&area, &[9; 16], ExtentId(77)).chunks, chunks);
        area.truncate(len);
        area.extend(chunk(2, vec![entry(9)]).encode());
        assert_eq!(read_area(&area, &[9; 16], ExtentId(77)).chunks, chunks);
        assert_eq!(read_area(&area, &[8; 16], ExtentId(77)).chunks, []);

        area[4096 + 30] ^= 1;
        let read = read_area(&area, &[9; 16], ExtentId(77));
        assert_eq!((read.chunks.len(), read.len), (1, 4096));
        assert!(matches!(read.end, Some(FrameError::BadChecksum { .. })));
    }

    #[test]
    fn long_segments_are_split_at_stripes() {
        let geometry = Geometry { data_slot_len: 1 << 30, ..geometry(14, 6, 65_536) };
        let shape = StripeShape::new(&geometry);
        let len = 5000 * shape.stripe_len() + 12_345;
        let whole = DirectoryEntry {
            block: 16,
            len,
            body_offset: 1000,
            data_crcs: (0..shape.crc_count(len) as u32).collect(),
            parity_crcs: (0..(shape.crc_count(len) / 14 * 6) as u32).collect(),
            ..entry(1)
        };
        assert!(whole.fits(&geometry));
        let parts = whole.clone().split(&geometry);
        assert_eq!(parts.len(), 4);
        let (mut block, mut body_offset, mut data, mut parity) = (16, 1000, Vec::new(), Vec::new());
        for part in &parts {
            assert!(part.fits(&geometry));
            assert_eq!((u64::from(part.block), part.body_offset), (block, body_offset));
            block += shape.blocks_for(part.len);
            body_offset += part.len;
            data.extend(&part.data_crcs);
            parity.extend(&part.parity_crcs);
            let alone = chunk(0, vec![part.clone()]);
            assert_eq!(DirectoryChunk::decode(&alone.encode()), Ok(alone));
        }
        assert_eq!((body_offset, data, parity), (1000 + len, whole.data_crcs, whole.parity_crcs));
    }

    #[test]
    fn entries_that_cannot_be_are_told() {
        let geometry = geometry(2, 1, 65_536);
        let good =
            DirectoryEntry { block: 0, len: 8193, data_crcs: vec![0; 2], parity_crcs: vec![0], ..entry(0) };
        assert!(good.fits(&geometry));
        for bad in [
            DirectoryEntry { len: 0, ..good.clone() },
            DirectoryEntry { len: u64::MAX, ..good.clone() },
            DirectoryEntry { block: u32::MAX, ..good.clone() },
            DirectoryEntry { data_crcs: vec![], ..good.clone() },
            DirectoryEntry { parity_crcs: vec![], ..good },
        ] {
            assert!(!bad.fits(&geometry), "{bad:?}");
        }
    }

    #[test]
    fn truncated_and_mutated_payloads_never_panic() {
        let bytes = chunk(0, vec![entry(1), entry(2)]).encode();
        let payload_len = u32::from_le_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]) as usize;
        let payload = &bytes[FRAME_HEADER_LEN..FRAME_HEADER_LEN + payload_len];
        for len in 0..payload.len() {
            assert!(DirectoryChunk::parse(&payload[..len]).is_err());
        }
        for at in 0..payload.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut hostile = payload.to_vec();
                hostile[at] = value;
                let _ = DirectoryChunk::parse(&hostile);
            }
        }
        assert!(DirectoryChunk::decode(&[]).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn round_trips(
            sequence: u32,
            entries in proptest::collection::vec(
                (any::<u32>(), any::<u64>(), proptest::collection::vec(any::<u32>(), 0..40),
                 proptest::collection::vec(any::<u32>(), 0..40), proptest::collection::vec(any::<u8>(), 0..3000)),
                0..8,
            ),
        ) {
            let entries: Vec<DirectoryEntry> = entries
                .into_iter()
                .map(|(block, len, data_crcs, parity_crcs, value)| DirectoryEntry {
                    block, len, body_offset: !len, data_crcs, parity_crcs,
                    key: value[..value.len() / 2].to_vec(), value,
                })
                .collect();
            let chunk = chunk(sequence, entries);
            let bytes = chunk.encode();
            prop_assert_eq!(bytes.len(), DirectoryChunk::encoded_len(&chunk.entries));
            prop_assert_eq!(DirectoryChunk::decode(&bytes), Ok(chunk));
        }
    }
}
