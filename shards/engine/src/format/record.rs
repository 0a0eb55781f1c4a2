//! Records of a log batch: what changed, in which keys, and which bytes live or died by it.
//!
//! Every record carries the change of live bytes per extent that it causes, so live counts are a pure function of the
//! log and nobody has to interpret a value to keep them.

use super::codec::{DecodeError, Decoder, Encoder};
use crate::extent::{Column, DiskIndex, ExtentClass, ExtentId, Placement};

/// Longest encoded index key, bytes: a bucket id, a key of 1,024 bytes all escaped, and the longest suffix fit.
pub const KEY_LEN_MAX: usize = 2304;

/// Longest encoded index value, bytes.
pub const VALUE_LEN_MAX: usize = 64 << 10;

/// Live-byte changes one record may carry.
pub const DELTA_COUNT_MAX: usize = 8192;

/// Bytes that became live in an extent, or died there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveDelta {
    pub extent: ExtentId,
    pub bytes: i64,
    /// First column block behind the bytes that became live; 0 where bytes died.
    pub end_block: u32,
}

/// Payload bytes of a record inside its batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InlineSpan {
    /// From the start of the batch's payload.
    pub offset: u32,
    pub len: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// `key` has `value` from here on. With `inline`, its body lies in this batch and is live there.
    Put { key: Vec<u8>, value: Vec<u8>, inline: Option<InlineSpan>, deltas: Vec<LiveDelta> },
    /// `key` has no value from here on.
    Delete { key: Vec<u8>, deltas: Vec<LiveDelta> },
    /// An extent of class log or data came into use; a log extent with the nonce of its batches.
    ExtentOpened { placement: Placement, nonce: [u8; 16] },
    /// Nothing more will be written to an extent.
    ExtentSealed { extent: ExtentId },
}

const PUT: u8 = 1;
const DELETE: u8 = 2;
const EXTENT_OPENED: u8 = 3;
const EXTENT_SEALED: u8 = 4;

const INLINE: u8 = 1;

impl Record {
    /// Appends the record to `out`.
    pub fn encode(&self, out: &mut Encoder) {
        match self {
            Record::Put { key, value, inline, deltas } => {
                debug_assert!(key.len() <= KEY_LEN_MAX && value.len() <= VALUE_LEN_MAX);
                out.u8(PUT);
                out.u8(if inline.is_some() { INLINE } else { 0 });
                if let Some(span) = inline {
                    out.u32(span.offset);
                    out.u32(span.len);
                }
                out.bytes(key);
                out.bytes(value);
                encode_deltas(out, deltas);
            }
            Record::Delete { key, deltas } => {
                out.u8(DELETE);
                out.u8(0);
                out.bytes(key);
                encode_deltas(out, deltas);
            }
            Record::ExtentOpened { placement, nonce } => {
                out.u8(EXTENT_OPENED);
                out.u8(0);
                encode_placement(out, placement);
                out.raw(nonce);
            }
            Record::ExtentSealed { extent } => {
                out.u8(EXTENT_SEALED);
                out.u8(0);
                out.u64(extent.0);
            }
        }
    }

    /// Upper bound of the encoded length, bytes.
    #[must_use]
    pub fn len_max(&self) -> usize {
        match self {
            Record::Put { key, value, deltas, .. } => 32 + key.len() + value.len() + deltas.len() * 20,
            Record::Delete { key, deltas } => 32 + key.len() + deltas.len() * 20,
            Record::ExtentOpened { placement, .. } => 64 + placement.columns.len() * 8,
            Record::ExtentSealed { .. } => 16,
        }
    }

    /// Whether [`Record::decode`] will take it back.
    #[must_use]
    pub fn is_within_bounds(&self) -> bool {
        match self {
            Record::Put { key, value, deltas, .. } => {
                key.len() <= KEY_LEN_MAX && value.len() <= VALUE_LEN_MAX && deltas.len() <= DELTA_COUNT_MAX
            }
            Record::Delete { key, deltas } => key.len() <= KEY_LEN_MAX && deltas.len() <= DELTA_COUNT_MAX,
            Record::ExtentOpened { .. } | Record::ExtentSealed { .. } => true,
        }
    }

    /// Takes one record off `from`.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn decode(from: &mut Decoder<'_>) -> Result<Record, DecodeError> {
        let kind = from.u8("record kind")?;
        let flags = from.u8("record flags")?;
        if flags & !INLINE != 0 || (flags != 0 && kind != PUT) {
            return Err(DecodeError::Invalid { field: "record flags", got: flags.into() });
        }
        Ok(match kind {
            PUT => {
                let inline = if flags & INLINE != 0 {
                    Some(InlineSpan { offset: from.u32("inline offset")?, len: from.u32("inline length")? })
                } else {
                    None
                };
                Record::Put {
                    inline,
                    key: from.bytes("key", KEY_LEN_MAX)?.to_vec(),
                    value: from.bytes("value", VALUE_LEN_MAX)?.to_vec(),
                    deltas: decode_deltas(from)?,
                }
            }
            DELETE => {
                Record::Delete { key: from.bytes("key", KEY_LEN_MAX)?.to_vec(), deltas: decode_deltas(from)? }
            }
            EXTENT_OPENED => {
                Record::ExtentOpened { placement: decode_placement(from)?, nonce: from.array("nonce")? }
            }
            EXTENT_SEALED => Record::ExtentSealed { extent: ExtentId(from.u64("extent")?) },
            got => return Err(DecodeError::Invalid { field: "record kind", got: got.into() }),
        })
    }
}

fn encode_deltas(out: &mut Encoder, deltas: &[LiveDelta]) {
    debug_assert!(deltas.len() <= DELTA_COUNT_MAX);
    out.count(deltas.len());
    for delta in deltas {
        out.u64(delta.extent.0);
        out.i64(delta.bytes);
        out.u32(delta.end_block);
    }
}

fn decode_deltas(from: &mut Decoder<'_>) -> Result<Vec<LiveDelta>, DecodeError> {
    let count = from.count("deltas", DELTA_COUNT_MAX)?;
    (0..count)
        .map(|_| {
            Ok(LiveDelta {
                extent: ExtentId(from.u64("delta extent")?),
                bytes: from.i64("delta bytes")?,
                end_block: from.u32("delta end")?,
            })
        })
        .collect()
}

/// Appends a placement: id, class, columns.
pub(crate) fn encode_placement(out: &mut Encoder, placement: &Placement) {
    out.u64(placement.id.0);
    out.u8(placement.class as u8);
    out.u8(u8::try_from(placement.columns.len()).expect("a set has at most 20 disks"));
    for column in &placement.columns {
        out.u8(column.disk.0);
        out.u32(column.slot);
    }
}

pub(crate) fn decode_placement(from: &mut Decoder<'_>) -> Result<Placement, DecodeError> {
    let id = ExtentId(from.u64("extent")?);
    let class = match from.u8("extent class")? {
        1 => ExtentClass::Log,
        2 => ExtentClass::Data,
        3 => ExtentClass::Table,
        got => return Err(DecodeError::Invalid { field: "extent class", got: got.into() }),
    };
    let count = from.u8("columns")?;
    if usize::from(count) > super::superblock::SET_WIDTH_MAX {
        return Err(DecodeError::TooLarge { field: "columns", got: count.into(), max: 20 });
    }
    let columns = (0..count)
        .map(|_| Ok(Column { disk: DiskIndex(from.u8("column disk")?), slot: from.u32("column slot")? }))
        .collect::<Result<_, DecodeError>>()?;
    Ok(Placement { id, class, columns })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn samples() -> Vec<Record> {
        let delta = |extent, bytes, end_block| LiveDelta { extent: ExtentId(extent), bytes, end_block };
        vec![
            Record::Put {
                key: b"key".to_vec(),
                value: vec![1, 2, 3],
                inline: Some(InlineSpan { offset: 0, len: 5 }),
                deltas: vec![delta(4, -9, 0)],
            },
            Record::Put {
                key: vec![0; KEY_LEN_MAX],
                value: vec![],
                inline: None,
                deltas: vec![delta(5, 70_000, 3)],
            },
            Record::Delete { key: b"gone".to_vec(), deltas: vec![] },
            Record::ExtentOpened {
                placement: Placement {
                    id: ExtentId(8),
                    class: ExtentClass::Log,
                    columns: vec![Column { disk: DiskIndex(1), slot: 9 }],
                },
                nonce: [7; 16],
            },
            Record::ExtentSealed { extent: ExtentId(8) },
        ]
    }

    #[test]
    fn round_trips_within_the_stated_length() {
        for record in samples() {
            let mut out = Encoder::new();
            record.encode(&mut out);
            let bytes = out.finish();
            assert!(bytes.len() <= record.len_max());
            let mut from = Decoder::new(&bytes);
            assert_eq!(Record::decode(&mut from), Ok(record));
            assert!(from.is_empty());
        }
    }

    #[test]
    fn truncated_and_mutated_records_never_panic() {
        for record in samples() {
            let mut out = Encoder::new();
            record.encode(&mut out);
            let bytes = out.finish();
            for len in 0..bytes.len() {
                assert!(Record::decode(&mut Decoder::new(&bytes[..len])).is_err());
            }
            for at in 0..bytes.len().min(64) {
                for value in [0, 2, 0x80, 0xff] {
                    let mut hostile = bytes.clone();
                    hostile[at] = value;
                    let _ = Record::decode(&mut Decoder::new(&hostile));
                }
            }
        }
    }
}
