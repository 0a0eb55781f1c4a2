//! Directory chunks: what a data extent says about itself, so that scrub needs no index and a lost one can be rebuilt.
//!
//! A chunk lies right behind the stripes it describes and holds the checksums of all their blocks, parity included, and
//! whose they are. It begins on any block and is found by looking at each; what tells it from a payload that imitates one
//! is its seal, a keyed hash of where it lies. Blocks are lent again when a body is given up, so chunks can be
//! stale: [`current`] sorts them out. `docs/DATA_FORMAT.md`, "Directory chunks", is the specification.

use std::collections::BTreeMap;
use std::hash::Hasher;

use basalt_reactor::disk::BLOCK_LEN;
use siphasher::sip128::{Hasher128, SipHasher13};

use super::layout::{StripeShape, blocks_per_strip, crcs_per_column};
use crate::extent::{ExtentId, Geometry, Placement, round_up_to_block};
use crate::format::codec::{DecodeError, Decoder, Encoder};
use crate::format::frame::{self, FRAME_HEADER_LEN, FrameError};
use crate::format::record::{decode_placement, encode_placement};

/// The first bytes of every chunk.
pub const CHUNK_MAGIC: [u8; 8] = *b"BSLTDIRC";
const VERSION: u16 = 1;

/// Longest chunk, in bytes with frame and padding.
pub const CHUNK_LEN_MAX: usize = 64 * 1024;

/// Checksums of one entry at most; segments are kept short enough.
pub const ENTRY_CRC_COUNT_MAX: usize = 8 * 1024;

/// Longest name of an owner, in bytes.
pub const OWNER_NAME_LEN_MAX: usize = 1024;

/// Entries of a chunk at most: what fits when each is as short as can be.
pub const ENTRY_COUNT_MAX: usize = CHUNK_LEN_MAX / ENTRY_LEN_MIN;

/// Where the seal lies in a chunk.
pub const SEAL_OFFSET: usize = FRAME_HEADER_LEN;
pub const SEAL_LEN: usize = 16;

/// Bytes of an entry without checksums and name.
const ENTRY_LEN_MIN: usize = 1 + 1 + 4 + 8 + 8 + OWNER_LEN_MIN + 4 + 4;
const OWNER_LEN_MIN: usize = 16 + 8 + 8 + 16 + 2 + 4;

/// Payload bytes in front of the entries, without the placement's columns, and per column.
const CHUNK_HEAD_LEN: usize = SEAL_LEN + 2 + 4 + 8 + 8 + (8 + 1 + 1) + 4;
const COLUMN_LEN: usize = 5;

// Any one entry fits a chunk of its own.
const _: () = assert!(
    FRAME_HEADER_LEN
        + CHUNK_HEAD_LEN
        + super::layout::COLUMN_COUNT_MAX * COLUMN_LEN
        + ENTRY_LEN_MIN
        + 4 * ENTRY_CRC_COUNT_MAX
        + OWNER_NAME_LEN_MAX
        <= CHUNK_LEN_MAX
);

/// The shard that chunks are written for, and the secret that seals them.
#[derive(Clone, Copy)]
pub struct Origin {
    pub shard: u16,
    /// The epoch that chunks are written in.
    pub epoch: u64,
    /// The deployment's secret; it is never sent anywhere, so no payload can hold a seal.
    pub secret: [u8; 16],
}

impl Origin {
    /// The seal of a chunk at `block` of `extent`: SipHash-1-3-128 of magic, shard, extent and block.
    #[must_use]
    pub fn seal(&self, extent: ExtentId, block: u32) -> [u8; SEAL_LEN] {
        let mut hasher = SipHasher13::new_with_key(&self.secret);
        hasher.write(&CHUNK_MAGIC);
        hasher.write(&self.shard.to_le_bytes());
        hasher.write(&extent.0.to_le_bytes());
        hasher.write(&block.to_le_bytes());
        hasher.finish128().as_bytes()
    }
}

/// One chunk: everything written to one extent under one lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryChunk {
    /// Where it lies in every column, in blocks of 4 KiB.
    pub block: u32,
    /// The epoch it was written in, and the lease: of two chunks, the one with the greater pair is the younger.
    pub epoch: u64,
    pub lease: u64,
    /// Where the extent's columns lay then.
    pub placement: Placement,
    pub entries: Vec<DirectoryEntry>,
}

/// A segment of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryEntry {
    /// Where its stripes start in every column, in blocks of 4 KiB.
    pub block: u32,
    /// Body bytes in them.
    pub len: u64,
    /// Offset in the body of the first of them.
    pub body_offset: u64,
    /// The body ends here, unless another entry goes on where this one ends.
    pub last: bool,
    /// As in the body's description.
    pub data_crcs: Vec<u32>,
    /// CRC32C of every parity block: stripe by stripe, strip by strip, block by block.
    pub parity_crcs: Vec<u32>,
    pub content: Content,
    pub owner: Owner,
}

/// What the bytes of a body are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Content {
    /// What a client sent.
    Payload = 1,
    /// A part of a value that is too long for the index.
    Blob = 2,
    /// Small objects of many keys, and at the end a list of them: [`crate::format::pack`].
    Pack = 3,
}

/// For whom a body was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// Drawn for each body: it tells the segments of one from those of another.
    pub body: [u8; 16],
    /// When the body began, in nanoseconds since the Unix epoch by the clock of the core that took it.
    pub begun: u64,
    pub bucket: u64,
    pub name: Vec<u8>,
    /// Upload and number of a part.
    pub part: Option<([u8; 16], u16)>,
}

/// Bytes of a chunk that describes one segment of `column_len` bytes per column of an owner with that name.
#[must_use]
pub fn chunk_len(geometry: &Geometry, name_len: usize, column_len: u64) -> u64 {
    let columns = geometry.columns();
    let crcs = columns as u64 * crcs_per_column(geometry, column_len);
    let fixed = FRAME_HEADER_LEN + CHUNK_HEAD_LEN + columns * COLUMN_LEN + ENTRY_LEN_MIN + name_len;
    round_up_to_block(fixed as u64 + 4 * crcs)
}

/// Bytes per column of the longest segment that one entry can describe: whole strips.
#[must_use]
pub fn segment_column_len_max(geometry: &Geometry) -> u64 {
    let strip_len = u64::from(geometry.strip_len);
    let per_stripe = geometry.columns() * blocks_per_strip(strip_len) as usize;
    (ENTRY_CRC_COUNT_MAX / per_stripe) as u64 * strip_len
}

/// Bytes per column that stripes may take of `len` bytes, so that their chunk fits behind them.
#[must_use]
pub fn stripes_room(geometry: &Geometry, name_len: usize, len: u64) -> u64 {
    const BLOCK: u64 = BLOCK_LEN as u64;
    let most = segment_column_len_max(geometry);
    let with_chunk = |column_len: u64| column_len + chunk_len(geometry, name_len, column_len);
    // A chunk grows with its segment, so this fits; at most a few blocks more do too.
    let mut room = len.saturating_sub(chunk_len(geometry, name_len, len.min(most))).min(most);
    while room < most && with_chunk(room + BLOCK) <= len {
        room += BLOCK;
    }
    room
}

/// The chunks that no younger one overlaps, in order of their blocks. A lease never covers live blocks, so whatever a
/// younger chunk overlaps is not live any more.
#[must_use]
pub fn current(mut chunks: Vec<DirectoryChunk>) -> Vec<DirectoryChunk> {
    chunks.sort_unstable_by_key(|chunk| std::cmp::Reverse((chunk.epoch, chunk.lease, chunk.block)));
    // Blocks that some chunk looked at so far covers, as disjoint ranges from start to end.
    let mut covered: BTreeMap<u32, u32> = BTreeMap::new();
    chunks.retain(|chunk| {
        let (mut start, mut end) = (chunk.start(), chunk.end());
        let mut is_current = true;
        while let Some((&from, &to)) = covered.range(..end).next_back().filter(|&(_, &to)| to > start) {
            is_current = false;
            covered.remove(&from);
            (start, end) = (start.min(from), end.max(to));
        }
        covered.insert(start, end);
        is_current
    });
    chunks.sort_unstable_by_key(|chunk| chunk.block);
    chunks
}

impl DirectoryEntry {
    /// Whether it describes stripes as `geometry` makes them.
    #[must_use]
    pub fn fits(&self, geometry: &Geometry) -> bool {
        let shape = StripeShape::new(geometry);
        let capacity = geometry.data_slot_len / BLOCK_LEN as u64;
        // Bounded first, so that the multiplications below cannot overflow.
        self.len > 0
            && self.len <= geometry.data_slot_len * shape.k()
            && u64::from(self.block) + shape.blocks_for(self.len) <= capacity
            && self.data_crcs.len() as u64 == shape.crc_count(self.len)
            && self.parity_crcs.len() as u64 == shape.crc_count(self.len) / shape.k() * u64::from(geometry.m)
    }

    fn encode(&self, out: &mut Encoder) {
        out.u8(self.content as u8);
        out.u8(self.last.into());
        out.u32(self.block);
        out.u64(self.len);
        out.u64(self.body_offset);
        out.raw(&self.owner.body);
        out.u64(self.owner.begun);
        out.u64(self.owner.bucket);
        let (upload, number) = self.owner.part.unwrap_or_default();
        out.raw(&upload);
        out.u16(number);
        out.bytes(&self.owner.name);
        for crcs in [&self.data_crcs, &self.parity_crcs] {
            out.count(crcs.len());
            for crc in crcs {
                out.u32(*crc);
            }
        }
    }

    fn decode(from: &mut Decoder<'_>) -> Result<DirectoryEntry, DecodeError> {
        let content = match from.u8("entry content")? {
            1 => Content::Payload,
            2 => Content::Blob,
            3 => Content::Pack,
            got => return Err(DecodeError::Invalid { field: "entry content", got: got.into() }),
        };
        let last = match from.u8("entry flags")? {
            0 => false,
            1 => true,
            got => return Err(DecodeError::Invalid { field: "entry flags", got: got.into() }),
        };
        let (block, len) = (from.u32("entry block")?, from.u64("entry length")?);
        let body_offset = from.u64("entry body offset")?;
        let mut owner = Owner {
            body: from.array("body uuid")?,
            begun: from.u64("body time")?,
            bucket: from.u64("owner bucket")?,
            ..Owner::default()
        };
        let (upload, number) = (from.array("owner upload")?, from.u16("owner part")?);
        owner.part = (number > 0 || upload != [0; 16]).then_some((upload, number));
        owner.name = from.bytes("owner name", OWNER_NAME_LEN_MAX)?.to_vec();
        let data_crcs = decode_crcs(from, "data checksums")?;
        let parity_crcs = decode_crcs(from, "parity checksums")?;
        Ok(DirectoryEntry { block, len, body_offset, last, data_crcs, parity_crcs, content, owner })
    }
}

fn decode_crcs(from: &mut Decoder<'_>, field: &'static str) -> Result<Vec<u32>, DecodeError> {
    let count = from.count(field, ENTRY_CRC_COUNT_MAX)?;
    // Taken as one piece first: a count that lies allocates nothing.
    let bytes = from.raw(field, count * 4)?;
    Ok(bytes.as_chunks::<4>().0.iter().map(|crc| u32::from_le_bytes(*crc)).collect())
}

impl DirectoryChunk {
    /// Bytes it takes in a column.
    #[must_use]
    pub fn encoded_len(&self) -> u64 {
        let crcs = |entry: &DirectoryEntry| entry.data_crcs.len() + entry.parity_crcs.len();
        let entries: usize =
            self.entries.iter().map(|entry| ENTRY_LEN_MIN + entry.owner.name.len() + 4 * crcs(entry)).sum();
        let columns = self.placement.columns.len() * COLUMN_LEN;
        round_up_to_block((FRAME_HEADER_LEN + CHUNK_HEAD_LEN + columns + entries) as u64)
    }

    /// First block of what it describes, itself included.
    #[must_use]
    pub fn start(&self) -> u32 {
        self.entries.iter().map(|entry| entry.block).fold(self.block, u32::min)
    }

    /// First block behind it.
    #[must_use]
    pub fn end(&self) -> u32 {
        self.block.saturating_add(u32::try_from(self.encoded_len() / BLOCK_LEN as u64).unwrap_or(u32::MAX))
    }

    /// Whole blocks, ready to be written.
    ///
    /// # Panics
    /// If it exceeds [`CHUNK_LEN_MAX`] or an entry exceeds its limits: the decoder would refuse it.
    #[must_use]
    pub fn encode(&self, origin: &Origin) -> Vec<u8> {
        let mut out = Encoder::new();
        out.raw(&origin.seal(self.placement.id, self.block));
        out.u16(origin.shard);
        out.u32(self.block);
        out.u64(self.epoch);
        out.u64(self.lease);
        encode_placement(&mut out, &self.placement);
        out.count(self.entries.len());
        for entry in &self.entries {
            assert!(
                entry.data_crcs.len() + entry.parity_crcs.len() <= ENTRY_CRC_COUNT_MAX
                    && entry.owner.name.len() <= OWNER_NAME_LEN_MAX,
                "an entry beyond its limits"
            );
            entry.encode(&mut out);
        }
        let bytes = frame::seal(CHUNK_MAGIC, VERSION, &out.finish());
        assert!(bytes.len() <= CHUNK_LEN_MAX, "a chunk of {} bytes", bytes.len());
        bytes
    }

    /// The chunk at the start of `bytes`, if `origin` sealed it.
    ///
    /// # Errors
    /// [`FrameError`], with the evidence.
    pub fn decode(bytes: &[u8], origin: &Origin) -> Result<DirectoryChunk, FrameError> {
        let (_, payload) = frame::open(CHUNK_MAGIC, VERSION, &bytes[..bytes.len().min(CHUNK_LEN_MAX)])?;
        Ok(Self::parse(payload, origin)?)
    }

    fn parse(payload: &[u8], origin: &Origin) -> Result<DirectoryChunk, DecodeError> {
        let mut from = Decoder::new(payload);
        let seal = from.array("seal")?;
        let shard = from.u16("shard")?;
        let mut chunk = DirectoryChunk {
            block: from.u32("chunk block")?,
            epoch: from.u64("epoch")?,
            lease: from.u64("lease")?,
            placement: decode_placement(&mut from)?,
            entries: Vec::new(),
        };
        for _ in 0..from.count("entries", ENTRY_COUNT_MAX)? {
            chunk.entries.push(DirectoryEntry::decode(&mut from)?);
        }
        from.end()?;
        if shard != origin.shard {
            return Err(DecodeError::Invalid { field: "shard", got: shard.into() });
        }
        if seal != origin.seal(chunk.placement.id, chunk.block) {
            return Err(DecodeError::Invalid { field: "seal", got: u64::from(seal[0]) });
        }
        Ok(chunk)
    }
}

#[cfg(test)]
mod tests;
