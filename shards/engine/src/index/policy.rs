//! Which tables to compact next: a pure function of the levels' shape.
//!
//! Leveled: flushes pile up as overlapping runs in level 0, four of them are merged into level 1; each further level holds ten
//! times the bytes of the one above, in tables that do not overlap, and one that is over its size gives a table to the next.
//! So a lookup asks few tables and every byte is rewritten about ten times per level. A table that is mostly tombstones
//! moves down out of turn, because scans have to walk them until they meet what they delete.

use super::table::TableDescriptor;
use super::version::LEVEL_COUNT;
use crate::extent::ExtentId;

/// Runs in level 0 that start a compaction.
pub const FLUSHED_RUN_COUNT_MAX: usize = 4;

/// Bytes of a level, as a multiple of the level above.
pub const LEVEL_RATIO: u64 = 10;

/// Fewer tombstones than this in a table are not worth a compaction of their own.
const TOMBSTONE_COUNT_MIN: u64 = 256;

/// Tables to merge into one level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compaction {
    /// Where `inputs` are; they go to the level after it.
    pub level: usize,
    pub inputs: Vec<ExtentId>,
    /// Tables of the level after it that overlap the inputs.
    pub overlapped: Vec<ExtentId>,
    /// The one input can be handed down as it is.
    pub moves: bool,
    /// Bytes to be read, and to be written at most; the tables they fill are needed at once, until the next root.
    pub len: u64,
}

/// What the choice depends on beside the tables.
#[derive(Clone, Copy, Debug)]
pub struct PolicyConfig {
    /// Bytes that level 1 may hold.
    pub base_len: u64,
    /// Tables shorter than this are merged rather than moved, since each takes a whole slot. Bytes.
    pub move_len_min: u64,
}

/// The most urgent compaction, if any. `levels` as in a manifest: level 0 newest first, the others in key order.
#[must_use]
pub fn choose(levels: &[Vec<&TableDescriptor>], config: PolicyConfig) -> Option<Compaction> {
    let flushed = levels.first()?;
    let run_count = flushed.chunk_by(|a, b| a.sequence == b.sequence).count();
    if run_count >= FLUSHED_RUN_COUNT_MAX {
        return Some(merge(levels, 0, flushed, config));
    }
    if let Some(level) = fullest_level(levels, config) {
        let table = cheapest_table(levels, level)?;
        return Some(merge(levels, level, &[table], config));
    }
    // The last level holds no tombstones: there is nothing below that they could hide.
    for (level, tables) in levels.iter().enumerate().take(LEVEL_COUNT - 1) {
        let stale = |table: &&&TableDescriptor| {
            table.tombstone_count >= TOMBSTONE_COUNT_MIN && 2 * table.tombstone_count >= table.entry_count
        };
        match tables.iter().find(stale) {
            // Level 0 goes whole, so that nothing older stays above what is newer.
            Some(_) if level == 0 => return Some(merge(levels, 0, flushed, config)),
            Some(table) => return Some(merge(levels, level, &[table], config)),
            None => {}
        }
    }
    None
}

/// The level furthest over its size, below level 0 and above the last.
fn fullest_level(levels: &[Vec<&TableDescriptor>], config: PolicyConfig) -> Option<usize> {
    let mut capacity = u128::from(config.base_len.max(1));
    let mut fullest = None;
    for (level, tables) in levels.iter().enumerate().take(LEVEL_COUNT - 1).skip(1) {
        let len: u128 = tables.iter().map(|table| u128::from(table.len)).sum();
        // In thousandths, so that levels compare without fractions.
        let fill = len * 1000 / capacity;
        if fill > 1000 && fullest.is_none_or(|(most, _)| fill > most) {
            fullest = Some((fill, level));
        }
        capacity *= u128::from(LEVEL_RATIO);
    }
    fullest.map(|(_, level)| level)
}

/// The table of `level` that rewrites the fewest bytes of the next level per byte of its own.
fn cheapest_table<'a>(levels: &[Vec<&'a TableDescriptor>], level: usize) -> Option<&'a TableDescriptor> {
    let cost = |table: &&&TableDescriptor| {
        let overlap: u64 =
            overlapping(levels, level + 1, &table.min_key, &table.max_key).map(|t| t.len).sum();
        u128::from(overlap) * 1000 / u128::from(table.len.max(1))
    };
    levels[level].iter().min_by_key(cost).copied()
}

fn overlapping<'a, 'b>(
    levels: &'b [Vec<&'a TableDescriptor>],
    level: usize,
    min_key: &'b [u8],
    max_key: &'b [u8],
) -> impl Iterator<Item = &'a TableDescriptor> + use<'a, 'b> {
    let tables = levels.get(level).map_or(&[][..], Vec::as_slice);
    let first = tables.partition_point(|table| *table.max_key < *min_key);
    tables[first..].iter().copied().take_while(move |table| *table.min_key <= *max_key)
}

fn merge(
    levels: &[Vec<&TableDescriptor>],
    level: usize,
    inputs: &[&TableDescriptor],
    config: PolicyConfig,
) -> Compaction {
    let min_key = inputs.iter().map(|table| &*table.min_key).min().unwrap_or_default();
    let max_key = inputs.iter().map(|table| &*table.max_key).max().unwrap_or_default();
    let overlapped: Vec<_> = overlapping(levels, level + 1, min_key, max_key).collect();
    let moves = match inputs {
        [table] => overlapped.is_empty() && table.tombstone_count == 0 && table.len >= config.move_len_min,
        _ => false,
    };
    Compaction {
        level,
        moves,
        len: inputs.iter().chain(&overlapped).map(|table| table.len).sum(),
        inputs: inputs.iter().map(|table| table.placement.id).collect(),
        overlapped: overlapped.iter().map(|table| table.placement.id).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extent::{ExtentClass, Placement};

    const CONFIG: PolicyConfig = PolicyConfig { base_len: 1_000, move_len_min: 50 };

    fn table(id: u64, range: &str, len: u64, sequence: u64) -> TableDescriptor {
        TableDescriptor {
            placement: Placement { id: ExtentId(id), class: ExtentClass::Table, columns: Vec::new() },
            min_key: range.as_bytes()[..1].into(),
            max_key: range.as_bytes()[1..].into(),
            len,
            entry_count: 1_000,
            tombstone_count: 0,
            sequence,
        }
    }

    fn choose_from(levels: &[Vec<TableDescriptor>]) -> Option<Compaction> {
        let levels: Vec<Vec<&TableDescriptor>> = levels.iter().map(|level| level.iter().collect()).collect();
        choose(&levels, CONFIG)
    }

    fn ids(ids: &[u64]) -> Vec<ExtentId> {
        ids.iter().map(|&id| ExtentId(id)).collect()
    }

    #[test]
    fn a_balanced_tree_is_left_alone() {
        assert_eq!(choose_from(&[]), None);
        let flushed = (1..4).rev().map(|id| table(id, "az", 100, id)).collect();
        assert_eq!(choose_from(&[flushed, vec![table(9, "az", 1_000, 0)], Vec::new()]), None);
    }

    #[test]
    fn four_flushes_are_merged_with_what_they_overlap() {
        // Two tables of one flush count as one run.
        let mut flushed: Vec<_> = (1..4).rev().map(|id| table(id, "dk", 100, id)).collect();
        flushed.push(table(7, "lm", 100, 1));
        let below = vec![table(20, "ac", 300, 0), table(21, "de", 300, 0), table(22, "mz", 300, 0)];
        assert_eq!(choose_from(&[flushed.clone(), below.clone()]), None);
        flushed.insert(0, table(8, "gh", 100, 9));
        let chosen = choose_from(&[flushed, below]).expect("four runs");
        assert_eq!((chosen.level, chosen.inputs), (0, ids(&[8, 3, 2, 1, 7])));
        assert_eq!((chosen.overlapped, chosen.moves, chosen.len), (ids(&[21, 22]), false, 1_100));
    }

    #[test]
    fn a_full_level_gives_the_table_that_overlaps_least() {
        let first = vec![table(1, "ac", 600, 0), table(2, "df", 600, 0)];
        let second = vec![table(3, "bb", 900, 0), table(4, "ee", 100, 0)];
        let chosen = choose_from(&[Vec::new(), first.clone(), second]).expect("over 1,000 bytes");
        assert_eq!((chosen.level, chosen.inputs, chosen.overlapped), (1, ids(&[2]), ids(&[4])));
        let apart = choose_from(&[Vec::new(), first, Vec::new()]).expect("over 1,000 bytes");
        assert!(apart.moves);
    }

    #[test]
    fn short_tables_and_tombstones_are_rewritten_not_moved() {
        let mut tables: Vec<_> = (0..30).map(|id| table(id, "aa", 40, 0)).collect();
        for (id, table) in tables.iter_mut().enumerate() {
            table.min_key = [id as u8].into();
            table.max_key = [id as u8].into();
        }
        assert!(!choose_from(&[Vec::new(), tables.clone()]).expect("over").moves);
        for table in &mut tables {
            table.len = 60;
            table.tombstone_count = 1;
        }
        assert!(!choose_from(&[Vec::new(), tables]).expect("over").moves);
    }

    #[test]
    fn tombstones_in_bulk_move_down_out_of_turn() {
        let mut stale = table(1, "ac", 100, 5);
        stale.tombstone_count = 500;
        let chosen = choose_from(&[vec![table(2, "aa", 9, 6), stale.clone()]]).expect("stale");
        assert_eq!((chosen.level, chosen.inputs), (0, ids(&[2, 1])));
        let chosen = choose_from(&[Vec::new(), vec![stale.clone()]]).expect("stale");
        assert_eq!((chosen.level, chosen.moves), (1, false));
        let mut last = vec![Vec::new(); LEVEL_COUNT];
        last[LEVEL_COUNT - 1] = vec![stale];
        assert_eq!(choose_from(&last), None);
    }
}
