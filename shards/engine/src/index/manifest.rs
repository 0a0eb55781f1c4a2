//! Which tables make up the index: what the shard keeps in its manifest, and all it takes to open the index again.
//!
//! ```text
//! version u16, level count u8; per level: table count u32;
//! per table: placement, min key u32 length and bytes, max key likewise, length u64, entries u64, tombstones u64, sequence u64
//! ```

use super::key::KEY_LEN_MAX;
use super::table::TableDescriptor;
use super::version::LEVEL_COUNT;
use crate::extent::{ExtentClass, Placement};
use crate::format::codec::{DecodeError, Decoder, Encoder};
use crate::format::record::{decode_placement, encode_placement};

/// Most tables of a level.
pub const TABLE_COUNT_MAX: usize = 1 << 20;

const VERSION: u16 = 1;

/// The tables by level; level 0 newest first, the others in key order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IndexManifest {
    pub levels: Vec<Vec<TableDescriptor>>,
}

impl IndexManifest {
    /// The extents of all tables.
    pub fn placements(&self) -> impl Iterator<Item = &Placement> {
        self.levels.iter().flatten().map(|table| &table.placement)
    }

    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Encoder::new();
        out.u16(VERSION);
        out.u8(u8::try_from(self.levels.len()).expect("few levels"));
        for level in &self.levels {
            out.count(level.len());
            for table in level {
                encode_placement(&mut out, &table.placement);
                out.bytes(&table.min_key);
                out.bytes(&table.max_key);
                for field in [table.len, table.entry_count, table.tombstone_count, table.sequence] {
                    out.u64(field);
                }
            }
        }
        out.finish()
    }

    /// # Errors
    /// [`DecodeError`], also for levels whose tables are out of order.
    pub fn decode(bytes: &[u8]) -> Result<IndexManifest, DecodeError> {
        let mut from = Decoder::new(bytes);
        let version = from.u16("index manifest version")?;
        if version != VERSION {
            return Err(DecodeError::Invalid { field: "index manifest version", got: version.into() });
        }
        let level_count = from.u8("index levels")?;
        if usize::from(level_count) > LEVEL_COUNT {
            return Err(DecodeError::Invalid { field: "index levels", got: level_count.into() });
        }
        let mut levels = Vec::new();
        for level in 0..level_count {
            let count = from.count("tables of a level", TABLE_COUNT_MAX)?;
            let mut tables: Vec<TableDescriptor> = Vec::new();
            for _ in 0..count {
                let table = decode_table(&mut from)?;
                let ordered = tables.last().is_none_or(|last| {
                    let follows = last.max_key < table.min_key;
                    let older = last.sequence > table.sequence;
                    if level == 0 { older || last.sequence == table.sequence && follows } else { follows }
                });
                if !ordered {
                    return Err(DecodeError::Invalid {
                        field: "order of tables in level",
                        got: level.into(),
                    });
                }
                tables.push(table);
            }
            levels.push(tables);
        }
        from.end()?;
        Ok(IndexManifest { levels })
    }
}

fn decode_table(from: &mut Decoder<'_>) -> Result<TableDescriptor, DecodeError> {
    let placement = decode_placement(from)?;
    if placement.class != ExtentClass::Table {
        return Err(DecodeError::Invalid { field: "class of a table's extent", got: placement.class as u64 });
    }
    let min_key: Box<[u8]> = from.bytes("min key", KEY_LEN_MAX)?.into();
    let max_key: Box<[u8]> = from.bytes("max key", KEY_LEN_MAX)?.into();
    if min_key > max_key {
        return Err(DecodeError::Invalid { field: "key range of a table", got: placement.id.0 });
    }
    Ok(TableDescriptor {
        placement,
        min_key,
        max_key,
        len: from.u64("table length")?,
        entry_count: from.u64("entries")?,
        tombstone_count: from.u64("tombstones")?,
        sequence: from.u64("table sequence")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extent::{Column, DiskIndex, ExtentId, Placement};

    fn table(id: u64, min_key: &[u8], max_key: &[u8], sequence: u64) -> TableDescriptor {
        let columns = vec![Column { disk: DiskIndex(2), slot: 7 }];
        TableDescriptor {
            placement: Placement { id: ExtentId(id), class: ExtentClass::Table, columns },
            min_key: min_key.into(),
            max_key: max_key.into(),
            len: 0x3000,
            entry_count: 5,
            tombstone_count: 1,
            sequence,
        }
    }

    #[test]
    fn golden_bytes() {
        let manifest = IndexManifest { levels: vec![vec![table(9, b"a", b"bc", 4)]] };
        let golden = b"\x01\0\x01\x01\0\0\0\x09\0\0\0\0\0\0\0\x03\x01\x02\x07\0\0\0\
            \x01\0\0\0a\x02\0\0\0bc\0\x30\0\0\0\0\0\0\x05\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0";
        assert_eq!(manifest.encode(), golden);
    }

    #[test]
    fn round_trips_and_refuses_what_is_cut_or_out_of_order() {
        let flushed = vec![table(3, b"a", b"m", 8), table(4, b"n", b"z", 8), table(1, b"b", b"c", 7)];
        let manifest = IndexManifest { levels: vec![flushed, vec![table(2, b"a", b"z", 1)], Vec::new()] };
        let bytes = manifest.encode();
        assert_eq!(IndexManifest::decode(&bytes), Ok(manifest.clone()));
        for len in 0..bytes.len() {
            assert!(IndexManifest::decode(&bytes[..len]).is_err(), "{len} bytes");
        }
        for at in 0..bytes.len() {
            let mut hostile = bytes.clone();
            hostile[at] ^= 0xff;
            let _ = IndexManifest::decode(&hostile);
        }
        let refused = |levels| IndexManifest::decode(&IndexManifest { levels }.encode()).is_err();
        assert!(refused(vec![vec![table(1, b"a", b"b", 1), table(2, b"a", b"b", 2)]]));
        assert!(refused(vec![Vec::new(), vec![table(1, b"a", b"c", 1), table(2, b"c", b"d", 1)]]));
        assert!(refused(vec![vec![table(1, b"b", b"a", 1)]]));
        assert!(refused(vec![Vec::new(); LEVEL_COUNT + 1]));
    }
}
