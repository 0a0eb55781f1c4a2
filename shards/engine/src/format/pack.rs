//! The list at the end of a pack: which small objects lie in it, and where.
//!
//! A pack is a striped body that collection fills with small objects, one behind the other. The log that held them is
//! freed, so the list keeps what its records said: key and value of each. With it the collector finds what a pack
//! still holds, and a lost index can be rebuilt.

use std::ops::Range;

use super::codec::{DecodeError, Decoder, Encoder};
use super::record::{KEY_LEN_MAX, VALUE_LEN_MAX};

/// Longest pack, in bytes with its list.
pub const PACK_LEN_MAX: usize = 1 << 20;

/// Objects of one pack at most.
pub const PACK_COUNT_MAX: usize = 4096;

/// The last bytes of every pack: magic, version u16, reserved u16, length of the list u32.
pub const TRAILER_LEN: usize = 16;

const MAGIC: [u8; 8] = *b"BSLTPACK";
const VERSION: u16 = 1;

/// An object of a pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackItem {
    /// Its index key.
    pub key: Vec<u8>,
    /// Its value when it was packed, with [`crate::value::Body::Inline`] and no inline place.
    pub value: Vec<u8>,
    /// From the start of the pack, bytes.
    pub offset: u32,
    pub len: u32,
}

impl PackItem {
    /// Bytes it takes in the list.
    #[must_use]
    pub fn listed_len(&self) -> usize {
        listed_len(self.key.len(), self.value.len())
    }

    /// What it takes of its pack, list and directory chunk included: the shares of all add up to no more than `column_bytes`,
    /// which the pack of `pack_len` bytes takes in every column.
    #[must_use]
    pub fn share(&self, column_bytes: u64, pack_len: u64) -> u64 {
        let own_len = u64::from(self.len) + self.listed_len() as u64;
        (column_bytes * own_len / pack_len.max(1)).max(1)
    }
}

/// Bytes that an object takes in the list.
#[must_use]
pub fn listed_len(key_len: usize, value_len: usize) -> usize {
    16 + key_len + value_len
}

/// The end of a pack of `items`: list and trailer.
///
/// # Panics
/// If there are more than [`PACK_COUNT_MAX`].
#[must_use]
pub fn encode_list(items: &[PackItem]) -> Vec<u8> {
    assert!(items.len() <= PACK_COUNT_MAX, "a pack of {} objects", items.len());
    let mut out = Encoder::new();
    out.count(items.len());
    for item in items {
        out.u32(item.offset);
        out.u32(item.len);
        out.bytes(&item.key);
        out.bytes(&item.value);
    }
    let mut bytes = out.finish();
    let len = u32::try_from(bytes.len()).expect("a pack is at most 1 MiB");
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&[0; 2]);
    bytes.extend_from_slice(&len.to_le_bytes());
    bytes
}

/// Bytes of the list of no object, with its trailer.
pub const EMPTY_LIST_LEN: usize = 4 + TRAILER_LEN;

/// Where the list lies in a pack of `pack_len` bytes that ends in `trailer`.
///
/// # Errors
/// [`DecodeError`].
pub fn list_range(pack_len: usize, trailer: &[u8]) -> Result<Range<usize>, DecodeError> {
    let invalid = |field, got| DecodeError::Invalid { field, got };
    let Some(end) = pack_len.checked_sub(TRAILER_LEN) else {
        return Err(invalid("pack length", pack_len as u64));
    };
    let mut trailer = Decoder::new(trailer);
    if trailer.array("pack magic")? != MAGIC {
        return Err(invalid("pack magic", 0));
    }
    let version = trailer.u16("pack version")?;
    if version != VERSION {
        return Err(invalid("pack version", version.into()));
    }
    trailer.u16("reserved")?;
    let len = trailer.u32("list length")?;
    let Some(start) = end.checked_sub(len as usize) else { return Err(invalid("list length", len.into())) };
    Ok(start..end)
}

/// The objects of a whole pack.
///
/// # Errors
/// [`DecodeError`]; whatever the bytes are, nothing panics.
pub fn decode_list(pack: &[u8]) -> Result<Vec<PackItem>, DecodeError> {
    let invalid = |field, got| DecodeError::Invalid { field, got };
    let list = list_range(pack.len(), &pack[pack.len().saturating_sub(TRAILER_LEN)..])?;
    let (start, at) = (list.start, list.end);
    let mut from = Decoder::new(&pack[start..at]);
    let count = from.count("pack items", PACK_COUNT_MAX)?;
    let mut items = Vec::with_capacity(count);
    for _ in 0..count {
        let (offset, len) = (from.u32("item offset")?, from.u32("item length")?);
        if u64::from(offset) + u64::from(len) > start as u64 {
            return Err(invalid("item offset", offset.into()));
        }
        items.push(PackItem {
            offset,
            len,
            key: from.bytes("key", KEY_LEN_MAX)?.to_vec(),
            value: from.bytes("value", VALUE_LEN_MAX)?.to_vec(),
        });
    }
    from.end()?;
    Ok(items)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pack() -> (Vec<u8>, Vec<PackItem>) {
        let item = |key: &[u8], offset, len| PackItem { key: key.to_vec(), value: vec![7; 30], offset, len };
        let items = vec![item(b"a", 0, 5), item(b"bc", 5, 0), item(b"d", 5, 95)];
        let mut bytes = vec![1; 100];
        bytes.extend(encode_list(&items));
        (bytes, items)
    }

    #[test]
    fn round_trips_in_the_stated_length() {
        let (bytes, items) = pack();
        let listed = items.iter().map(PackItem::listed_len).sum::<usize>();
        assert_eq!(bytes.len(), 100 + listed + EMPTY_LIST_LEN);
        assert_eq!(decode_list(&bytes), Ok(items));
    }

    #[test]
    fn golden_bytes() {
        let items = [PackItem { key: b"k".to_vec(), value: b"v".to_vec(), offset: 2, len: 3 }];
        let expected = [
            &[1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0][..],
            &[b'k', 1, 0, 0, 0, b'v'],
            b"BSLTPACK",
            &[1, 0, 0, 0, 22, 0, 0, 0],
        ];
        assert_eq!(encode_list(&items), expected.concat());
    }

    #[test]
    fn mutated_packs_never_panic_nor_reach_beyond_themselves() {
        let (bytes, _) = pack();
        for len in 0..bytes.len() {
            assert!(decode_list(&bytes[..len]).is_err());
        }
        for at in 100..bytes.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut hostile = bytes.clone();
                hostile[at] = value;
                for item in decode_list(&hostile).into_iter().flatten() {
                    assert!((item.offset + item.len) as usize <= bytes.len());
                }
            }
        }
    }
}
