//! One row of a stripe: the block that each column has at the same place, which of them are right, and what the others must be.
//!
//! Pure: bytes and checksums in, right bytes out. A restored block is believed only if it has its checksum, and parity whose
//! checksums nobody knows only if it agrees with data that have theirs.

use crate::body::stripe::Codec;
use crate::checksum::crc32c;
use crate::offline::media::Defect;

/// Choices of parity tried for one row at most.
const CHOICES_MAX: u32 = 1 << 12;

/// The block of one column.
pub(in crate::offline) struct Cell<'a> {
    pub(in crate::offline) bytes: &'a [u8],
    pub(in crate::offline) state: CellState,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::offline) enum CellState {
    /// It has its checksum.
    Good,
    /// Parity, and its checksum is not known.
    Unverified,
    Bad(Defect),
    /// Its disk is not at hand.
    Absent,
}

/// What a cell is, by the checksum that it must have.
pub(in crate::offline) fn judge(
    bytes: &[u8],
    unreadable: Option<Defect>,
    expected: Option<u32>,
) -> CellState {
    match (unreadable, expected) {
        (Some(defect), _) => CellState::Bad(defect),
        (None, None) => CellState::Unverified,
        (None, Some(expected)) => match crc32c(bytes) {
            got if got == expected => CellState::Good,
            got => CellState::Bad(Defect::Checksum { expected, got }),
        },
    }
}

/// Right bytes of all columns that are not known to be good; `None` if too few are. `expected` are the checksums of columns as far
/// as they are known, data first.
pub(in crate::offline) fn restore(
    codec: &mut Codec,
    k: usize,
    row: &[Cell<'_>],
    expected: &[Option<u32>],
) -> Option<Vec<(usize, Vec<u8>)>> {
    let of =
        |state: &CellState| (0..row.len()).filter(|&index| row[index].state == *state).collect::<Vec<_>>();
    let (mut good, unverified) = (of(&CellState::Good), of(&CellState::Unverified));
    good.truncate(k);
    let short = k - good.len();
    if unverified.len() < short || row.len() == k {
        return None;
    }
    let choices =
        (0..CHOICES_MAX.min(1 << unverified.len())).filter(|choice| choice.count_ones() as usize == short);
    for choice in choices {
        let chosen =
            unverified.iter().enumerate().filter(|(bit, _)| choice >> bit & 1 == 1).map(|(_, &index)| index);
        let present: Vec<(usize, &[u8])> =
            good.iter().copied().chain(chosen).map(|index| (index, row[index].bytes)).collect();
        let mut restored: Vec<(usize, Vec<u8>)> = (0..row.len())
            .filter(|index| present.iter().all(|(given, _)| given != index))
            .filter(|&index| row[index].state != CellState::Good)
            .map(|index| (index, vec![0; row[index].bytes.len()]))
            .collect();
        let mut missing: Vec<(usize, &mut [u8])> =
            restored.iter_mut().map(|(index, bytes)| (*index, bytes.as_mut_slice())).collect();
        codec.reconstruct(&present, &mut missing);
        let is_right =
            |(index, bytes): &(usize, Vec<u8>)| expected[*index].is_none_or(|crc| crc32c(bytes) == crc);
        if restored.iter().all(is_right) {
            return Some(restored);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: usize = 4096;

    fn columns(k: usize, m: usize) -> Vec<Vec<u8>> {
        let mut columns: Vec<Vec<u8>> = (0..k + m).map(|index| vec![index as u8 * 7 + 1; LEN]).collect();
        Codec::new(k as u8, m as u8).encode(&mut columns, 0, LEN);
        columns
    }

    /// Restores a row in which `bad` columns are damaged; with the checksums of parity, or without.
    fn restored(k: usize, m: usize, bad: &[usize], parity_known: bool) -> Option<bool> {
        let right = columns(k, m);
        let expected: Vec<Option<u32>> = right
            .iter()
            .enumerate()
            .map(|(index, bytes)| (index < k || parity_known).then(|| crc32c(bytes)))
            .collect();
        let mut damaged = right.clone();
        bad.iter().for_each(|&index| damaged[index][100] ^= 1);
        let row: Vec<Cell<'_>> = damaged
            .iter()
            .zip(&expected)
            .map(|(bytes, &expected)| Cell { bytes, state: judge(bytes, None, expected) })
            .collect();
        let restored = restore(&mut Codec::new(k as u8, m as u8), k, &row, &expected)?;
        let all_bad = bad.iter().filter(|index| **index < k || parity_known);
        let covers = all_bad.clone().all(|index| restored.iter().any(|(other, _)| other == index));
        Some(covers && restored.iter().all(|(index, bytes)| *bytes == right[*index]))
    }

    #[test]
    fn up_to_m_bad_columns_are_restored_and_no_more() {
        for (k, m) in [(1, 1), (2, 1), (4, 2), (3, 3)] {
            for bad in 0..1_u32 << (k + m) {
                let bad: Vec<usize> = (0..k + m).filter(|index| bad >> index & 1 == 1).collect();
                let expected = (bad.len() <= m).then_some(true);
                assert_eq!(restored(k, m, &bad, true), expected, "{k}+{m}, {bad:?}");
            }
        }
    }

    #[test]
    fn parity_without_checksums_is_believed_where_data_vouch_for_it() {
        // One data block and one parity block: the other parity block restores both.
        assert_eq!(restored(4, 2, &[1, 4], false), Some(true));
        assert_eq!(restored(4, 2, &[1, 5], false), Some(true));
        assert_eq!(restored(4, 2, &[5], false), Some(true));
        assert_eq!(restored(4, 2, &[0, 1, 5], false), None);
    }
}
