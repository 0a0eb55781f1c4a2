//! The parts of an object that lie in one body: where each ends, for what asks for a part by its number.
//!
//! Collection merges short parts into one body. Their numbers, lengths and checksums then go into an extension of the object's
//! value. Parts are as long as one another for the most part, so they are listed in runs of equal ones, and a list
//! of thousands is short enough for a value.

use super::codec::{DecodeError, Decoder, Encoder};
use crate::shard::uploads::PART_NUMBER_MAX;
use crate::value::{Checksum, Part};

const VERSION: u8 = 1;

/// Longest list, bytes. A value that holds a longer one would burden the index.
pub const PART_LIST_LEN_MAX: usize = 32 << 10;

/// A part of an object, as bytes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartSpan {
    pub number: u16,
    /// Bytes of it, behind those of the parts before.
    pub len: u64,
    pub checksum: Option<Checksum>,
}

impl PartSpan {
    /// Whether `next` goes on a run of parts like this one, the last of `run`.
    fn is_followed_by(&self, next: &PartSpan) -> bool {
        let shape = |checksum: &Checksum| (checksum.algorithm, checksum.composite, checksum.value.len());
        self.number.checked_add(1) == Some(next.number)
            && self.len == next.len
            && self.checksum.as_ref().map(shape) == next.checksum.as_ref().map(shape)
    }
}

impl From<Part> for PartSpan {
    fn from(part: Part) -> PartSpan {
        PartSpan { number: part.number, len: part.len, checksum: part.checksum }
    }
}

/// The list as a value holds it; `None` when it is longer than [`PART_LIST_LEN_MAX`], or a checksum than 255 bytes.
#[must_use]
pub fn encode(parts: &[PartSpan]) -> Option<Vec<u8>> {
    let mut out = Encoder::new();
    out.u8(VERSION);
    let runs = parts.chunk_by(PartSpan::is_followed_by);
    out.u16(u16::try_from(runs.clone().count()).ok()?);
    for run in runs {
        let first = &run[0];
        out.u16(first.number);
        out.u16(u16::try_from(run.len()).ok()?);
        out.u64(first.len);
        match &first.checksum {
            None => out.u8(0),
            Some(checksum) => {
                out.u8(1 + u8::from(checksum.composite));
                out.u8(checksum.algorithm);
                out.u8(u8::try_from(checksum.value.len()).ok()?);
            }
        }
        run.iter().filter_map(|part| part.checksum.as_ref()).for_each(|checksum| out.raw(&checksum.value));
    }
    Some(out.finish()).filter(|bytes| bytes.len() <= PART_LIST_LEN_MAX)
}

/// The parts in the order of their numbers, which is that of their bytes.
///
/// # Errors
/// [`DecodeError`]; whatever the bytes are, nothing panics.
pub fn decode(bytes: &[u8]) -> Result<Vec<PartSpan>, DecodeError> {
    let mut from = Decoder::new(bytes);
    let version = from.u8("part list version")?;
    if version != VERSION {
        return Err(DecodeError::Invalid { field: "part list version", got: version.into() });
    }
    let mut parts: Vec<PartSpan> = Vec::new();
    let mut total_len = 0u64;
    for _ in 0..from.u16("runs of parts")? {
        let (first, count) = (from.u16("part number")?, from.u16("parts of a run")?);
        let above = parts.last().map_or(0, |part| part.number);
        let end = u32::from(first) + u32::from(count);
        if first <= above || count == 0 || end > u32::from(PART_NUMBER_MAX) + 1 {
            return Err(DecodeError::Invalid { field: "part number", got: first.into() });
        }
        let len = from.u64("part length")?;
        let sum = len.checked_mul(count.into()).and_then(|len| total_len.checked_add(len));
        total_len = sum.ok_or(DecodeError::Invalid { field: "part length", got: len })?;
        let shape = match from.u8("part checksum")? {
            0 => None,
            composite @ 1..=2 => {
                Some((composite == 2, from.u8("checksum algorithm")?, from.u8("checksum length")?))
            }
            got => return Err(DecodeError::Invalid { field: "part checksum", got: got.into() }),
        };
        for number in first..first + count {
            let checksum = match shape {
                None => None,
                Some((composite, algorithm, len)) => {
                    let value = from.raw("part checksum", len.into())?.to_vec();
                    Some(Checksum { algorithm, composite, value })
                }
            };
            parts.push(PartSpan { number, len, checksum });
        }
    }
    from.end()?;
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn part(number: u16, len: u64, checksum: &[u8]) -> PartSpan {
        let value = checksum.to_vec();
        let checksum =
            (!checksum.is_empty()).then_some(Checksum { algorithm: 3, composite: value.len() > 4, value });
        PartSpan { number, len, checksum }
    }

    #[test]
    fn golden_bytes() {
        let parts = [part(1, 7, &[1, 2]), part(2, 7, &[3, 4]), part(3, 5, &[5, 6]), part(9, 5, &[])];
        let expected = [
            &[1, 3, 0][..],
            &[1, 0, 2, 0, 7, 0, 0, 0, 0, 0, 0, 0, 1, 3, 2, 1, 2, 3, 4],
            &[3, 0, 1, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1, 3, 2, 5, 6],
            &[9, 0, 1, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0],
        ];
        let expected = expected.concat();
        assert_eq!(encode(&parts), Some(expected.clone()));
        assert_eq!(decode(&expected), Ok(parts.to_vec()));
    }

    #[test]
    fn ten_thousand_equal_parts_are_a_short_list_and_what_is_too_long_is_none() {
        let parts: Vec<_> = (1..=PART_NUMBER_MAX).map(|number| part(number, 4096, &[])).collect();
        assert_eq!(encode(&parts).map(|bytes| bytes.len()), Some(16));
        let parts: Vec<_> = (1..=1100).map(|number| part(number, 4096, &[9; 32])).collect();
        assert_eq!(encode(&parts), None);
    }

    #[test]
    fn mutated_lists_never_panic_and_numbers_ascend() {
        let parts = [part(1, 7, &[1, 2]), part(2, 7, &[3, 4]), part(3, 5, &[5, 6, 7, 8, 9]), part(9, 5, &[])];
        let bytes = encode(&parts).expect("it is short");
        for len in 0..bytes.len() {
            assert!(decode(&bytes[..len]).is_err());
        }
        for at in 0..bytes.len() {
            for value in [0, 1, 2, 0x7f, 0xff] {
                let mut hostile = bytes.clone();
                hostile[at] = value;
                let parts = decode(&hostile).unwrap_or_default();
                assert!(parts.windows(2).all(|pair| pair[0].number < pair[1].number));
                assert!(parts.iter().try_fold(0u64, |sum, part| sum.checked_add(part.len)).is_some());
            }
        }
    }

    proptest! {
        #[test]
        fn round_trips(steps in prop::collection::vec((1u16..3, 0u64..3, 0usize..6), 0..200)) {
            let mut number = 0;
            let parts: Vec<_> = steps
                .into_iter()
                .map(|(step, len, checksum_len)| {
                    number += step;
                    part(number, len << 20, &vec![number as u8; checksum_len])
                })
                .collect();
            let bytes = encode(&parts).expect("it is short");
            prop_assert_eq!(decode(&bytes), Ok(parts));
        }
    }
}
