//! The root of a shard: where its last checkpoint lies and where its log goes on from there.
//!
//! Two copies, A and B, one block each, in the file `shard-NNNN.root` on every member. A checkpoint writes both with
//! RWF_DSYNC, the second when the first is durable everywhere. Everything a shard knows is reached from its newest valid
//! root: the manifest, then the log.

use super::codec::{DecodeError, Decoder, Encoder};
use super::frame::{self, FrameError};
use super::record::{decode_placement, encode_placement};
use crate::extent::{DiskIndex, ExtentId, Placement};

/// Bytes of one copy; A at 0, B here.
pub const ROOT_COPY_LEN: usize = 4096;

/// Table extents one manifest may span.
pub const MANIFEST_EXTENT_COUNT_MAX: usize = 16;

/// Disks whose rebuilding a root can keep the position of; further ones begin anew after a restart.
pub const REBUILD_COUNT_MAX: usize = 32;

const MAGIC: [u8; 8] = *b"BSLTROOT";
const VERSION: u16 = 2;

/// A place in the log: the next batch has number `sequence`, starts at `offset` of `extent`, and names `previous`
/// as the hash of the batch before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogPosition {
    pub extent: ExtentId,
    pub offset: u32,
    pub sequence: u64,
    pub previous: [u8; 16],
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    pub deployment: [u8; 16],
    pub shard: u16,
    /// Counts roots of this shard; the copy index is its lowest bit.
    pub sequence: u64,
    pub epoch: u64,
    /// Table extents holding the manifest, in order.
    pub manifest: Vec<Placement>,
    pub manifest_len: u64,
    pub manifest_crc: u32,
    pub log: LogPosition,
    pub next_extent: u64,
    /// No version handed out later is at or below this (nanoseconds since the Unix epoch).
    pub clock_floor: u64,
    /// How far each disk that is behind has been rebuilt.
    pub rebuilds: Vec<Rebuild>,
}

/// How far a disk has been rebuilt: its columns of extents from `next` up to `until` are still to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rebuild {
    pub disk: DiskIndex,
    /// The epoch in which the disk joined: a later absence makes this void.
    pub joined: u64,
    pub next: ExtentId,
    pub until: ExtentId,
}

impl Root {
    /// One block.
    ///
    /// # Panics
    /// If the manifest spans more extents than a root can name.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        assert!(self.manifest.len() <= MANIFEST_EXTENT_COUNT_MAX && self.rebuilds.len() <= REBUILD_COUNT_MAX);
        let mut out = Encoder::new();
        out.raw(&self.deployment);
        out.u16(self.shard);
        out.u64(self.sequence);
        out.u64(self.epoch);
        out.count(self.manifest.len());
        for placement in &self.manifest {
            encode_placement(&mut out, placement);
        }
        out.u64(self.manifest_len);
        out.u32(self.manifest_crc);
        out.u64(self.log.extent.0);
        out.u32(self.log.offset);
        out.u64(self.log.sequence);
        out.raw(&self.log.previous);
        out.u64(self.next_extent);
        out.u64(self.clock_floor);
        out.count(self.rebuilds.len());
        for rebuild in &self.rebuilds {
            out.u8(rebuild.disk.0);
            out.u64(rebuild.joined);
            out.u64(rebuild.next.0);
            out.u64(rebuild.until.0);
        }
        let bytes = frame::seal(MAGIC, VERSION, &out.finish());
        assert_eq!(bytes.len(), ROOT_COPY_LEN);
        bytes
    }

    /// # Errors
    /// [`FrameError`].
    pub fn decode(bytes: &[u8]) -> Result<Root, FrameError> {
        let (version, payload) = frame::open(MAGIC, VERSION, bytes)?;
        Ok(Root::decode_payload(version, payload)?)
    }

    fn decode_payload(version: u16, payload: &[u8]) -> Result<Root, DecodeError> {
        let mut from = Decoder::new(payload);
        let deployment = from.array("deployment")?;
        let shard = from.u16("shard")?;
        let sequence = from.u64("sequence")?;
        let epoch = from.u64("epoch")?;
        let count = from.count("manifest extents", MANIFEST_EXTENT_COUNT_MAX)?;
        let manifest = (0..count).map(|_| decode_placement(&mut from)).collect::<Result<_, _>>()?;
        let mut root = Root {
            deployment,
            shard,
            sequence,
            epoch,
            manifest,
            manifest_len: from.u64("manifest length")?,
            manifest_crc: from.u32("manifest checksum")?,
            log: LogPosition {
                extent: ExtentId(from.u64("log extent")?),
                offset: from.u32("log offset")?,
                sequence: from.u64("log sequence")?,
                previous: from.array("log hash")?,
            },
            next_extent: from.u64("next extent")?,
            clock_floor: from.u64("clock floor")?,
            rebuilds: Vec::new(),
        };
        if version > 1 {
            for _ in 0..from.count("rebuilds", REBUILD_COUNT_MAX)? {
                root.rebuilds.push(Rebuild {
                    disk: DiskIndex(from.u8("rebuilt disk")?),
                    joined: from.u64("rebuild epoch")?,
                    next: ExtentId(from.u64("rebuild position")?),
                    until: ExtentId(from.u64("rebuild end")?),
                });
            }
        }
        from.end()?;
        Ok(root)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extent::{Column, ExtentClass};

    #[test]
    fn every_version_ever_released_decodes() {
        let (first, second) =
            (include_bytes!("fixtures/root-v1.bin"), include_bytes!("fixtures/root-v2.bin"));
        let columns = [(0, 4), (1, 5)].map(|(disk, slot)| Column { disk: DiskIndex(disk), slot });
        let mut root = Root {
            deployment: [0x11; 16],
            shard: 2,
            sequence: 77,
            epoch: 17,
            manifest: vec![Placement {
                id: ExtentId(901),
                class: ExtentClass::Table,
                columns: columns.to_vec(),
            }],
            manifest_len: 12_345,
            manifest_crc: 0xdead_beef,
            log: LogPosition { extent: ExtentId(900), offset: 8192, sequence: 5000, previous: [0x55; 16] },
            next_extent: 902,
            clock_floor: 1_700_000_000_000_000_000,
            rebuilds: Vec::new(),
        };
        assert_eq!(Root::decode(first), Ok(root.clone()));
        let rebuild = Rebuild { disk: DiskIndex(2), joined: 16, next: ExtentId(10), until: ExtentId(900) };
        root.rebuilds.push(rebuild);
        assert_eq!(Root::decode(second), Ok(root.clone()));
        assert_eq!(root.encode(), second, "this version's bytes stay what they are");
    }

    #[test]
    fn round_trips_and_survives_hostile_bytes() {
        let root = Root {
            deployment: [1; 16],
            shard: 3,
            sequence: 12,
            epoch: 4,
            manifest: vec![Placement {
                id: ExtentId(9),
                class: ExtentClass::Table,
                columns: vec![Column { disk: DiskIndex(0), slot: 2 }, Column { disk: DiskIndex(3), slot: 0 }],
            }],
            manifest_len: 777,
            manifest_crc: 0xdead_beef,
            log: LogPosition { extent: ExtentId(5), offset: 8192, sequence: 100, previous: [9; 16] },
            next_extent: 10,
            clock_floor: 1 << 60,
            rebuilds: vec![Rebuild { disk: DiskIndex(3), joined: 4, next: ExtentId(2), until: ExtentId(10) }],
        };
        let bytes = root.encode();
        assert_eq!(Root::decode(&bytes), Ok(root));
        let (_, payload) = frame::open(MAGIC, VERSION, &bytes).expect("own frame");
        for len in 0..payload.len() {
            assert!(Root::decode_payload(VERSION, &payload[..len]).is_err());
        }
    }
}
