//! The manifest of a shard: its extent table and its index's tables, as of one place in the log.
//!
//! Written whole at every checkpoint, into table extents that the root names. What it says and what the log says from
//! the root's position on are together everything.

use super::codec::{DecodeError, Decoder, Encoder};
use super::record::{decode_placement, encode_placement};
use crate::extent::Placement;

/// Extents one shard may have.
pub const EXTENT_COUNT_MAX: usize = 1 << 20;

/// Longest encoding of the index's part, bytes.
pub const INDEX_MANIFEST_LEN_MAX: usize = 64 << 20;

const VERSION: u16 = 1;

/// One extent of class log or data, as the manifest keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtentEntry {
    pub placement: Placement,
    pub sealed: bool,
    /// Bytes that some key's value still names.
    pub live_len: u64,
    /// First column block that was never given out (data), or 0.
    pub next_block: u32,
    /// Nonce of the batches in a log extent, zeros otherwise.
    pub nonce: [u8; 16],
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    pub extents: Vec<ExtentEntry>,
    /// The index's own encoding of its levels.
    pub index: Vec<u8>,
}

impl Manifest {
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Encoder::new();
        out.u16(VERSION);
        out.count(self.extents.len());
        for entry in &self.extents {
            encode_placement(&mut out, &entry.placement);
            out.u8(entry.sealed.into());
            out.u64(entry.live_len);
            out.u32(entry.next_block);
            out.raw(&entry.nonce);
        }
        out.bytes(&self.index);
        out.finish()
    }

    /// # Errors
    /// [`DecodeError`].
    pub fn decode(bytes: &[u8]) -> Result<Manifest, DecodeError> {
        let mut from = Decoder::new(bytes);
        let version = from.u16("manifest version")?;
        if version != VERSION {
            return Err(DecodeError::Invalid { field: "manifest version", got: version.into() });
        }
        let count = from.count("extents", EXTENT_COUNT_MAX)?;
        let extents = (0..count)
            .map(|_| {
                let placement = decode_placement(&mut from)?;
                let sealed = match from.u8("sealed")? {
                    0 => false,
                    1 => true,
                    got => return Err(DecodeError::Invalid { field: "sealed", got: got.into() }),
                };
                Ok(ExtentEntry {
                    placement,
                    sealed,
                    live_len: from.u64("live length")?,
                    next_block: from.u32("next block")?,
                    nonce: from.array("nonce")?,
                })
            })
            .collect::<Result<_, DecodeError>>()?;
        let index = from.bytes("index manifest", INDEX_MANIFEST_LEN_MAX)?.to_vec();
        from.end()?;
        Ok(Manifest { extents, index })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extent::{Column, DiskIndex, ExtentClass, ExtentId};

    #[test]
    fn round_trips_and_survives_truncation() {
        let entry = |id, class| ExtentEntry {
            placement: Placement {
                id: ExtentId(id),
                class,
                columns: vec![Column { disk: DiskIndex(0), slot: id as u32 }],
            },
            sealed: id % 2 == 0,
            live_len: id * 1000,
            next_block: 17,
            nonce: [id as u8; 16],
        };
        let manifest = Manifest {
            extents: vec![entry(1, ExtentClass::Log), entry(2, ExtentClass::Data)],
            index: vec![1, 2, 3],
        };
        let bytes = manifest.encode();
        assert_eq!(Manifest::decode(&bytes), Ok(manifest));
        for len in 0..bytes.len() {
            assert!(Manifest::decode(&bytes[..len]).is_err());
        }
    }
}
