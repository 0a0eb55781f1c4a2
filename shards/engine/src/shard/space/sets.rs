//! Which set the next data extent of a shard goes to.
//!
//! Sets are dealt to the shards, so that with enough disks each shard has disks of its own. When another set is a good deal emptier,
//! as after one was added, extents go to all sets by what is free there: the new one takes the larger share, and never all.

use std::cmp::Reverse;

use crate::extent::groups::GroupIndex;

/// How much emptier than a shard's own another set must be before the shard uses it, in thousandths of a set.
const LEAD_MIN: u64 = 125;

/// What is free in a set.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    pub(super) set: GroupIndex,
    /// Bytes on the fullest of its disks.
    pub(super) available: u64,
    pub(super) total: u64,
}

impl Room {
    /// In thousandths.
    fn free(&self) -> u64 {
        u64::try_from(u128::from(self.available) * 1000 / u128::from(self.total)).unwrap_or(u64::MAX)
    }
}

/// The sets in the order in which to try them. `extent` is the id of the extent that is to be placed.
pub(super) fn order(rooms: &[Room], shard: usize, shard_count: usize, extent: u64) -> Vec<GroupIndex> {
    let is_dealt = |place: usize| {
        if rooms.len() >= shard_count { place % shard_count == shard } else { shard % rooms.len() == place }
    };
    let mut by_free: Vec<_> = rooms.iter().enumerate().collect();
    // Of equally empty ones each extent begins with another.
    by_free.rotate_left(usize::try_from(extent % rooms.len() as u64).unwrap_or(0));
    by_free.sort_by_key(|(_, room)| Reverse(room.free()));
    let own = by_free.iter().find(|(place, _)| is_dealt(*place)).map_or(0, |(_, room)| room.free());
    let emptiest = by_free.first().map_or(0, |(_, room)| room.free());
    let first = if emptiest.saturating_sub(own) < LEAD_MIN {
        by_free.iter().position(|(place, _)| is_dealt(*place))
    } else {
        let sum: u128 = rooms.iter().map(|room| u128::from(room.available)).sum();
        let mut point = (u128::from(mix(extent ^ ((shard as u64) << 48))) * sum) >> 64;
        by_free.iter().position(|(_, room)| {
            let is_here = point < u128::from(room.available);
            point = point.saturating_sub(u128::from(room.available));
            is_here
        })
    };
    by_free[..=first.unwrap_or(0)].rotate_right(1);
    by_free.into_iter().map(|(_, room)| room.set).collect()
}

/// Spreads numbers that follow each other (the finalizer of SplitMix64).
fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rooms(available: &[u64]) -> Vec<Room> {
        let room = |(set, &available)| Room { set: GroupIndex(set), available, total: 1000 };
        (0..).zip(available).map(room).collect()
    }

    fn first_choices(available: &[u64], shard: usize, shard_count: usize) -> Vec<usize> {
        let mut chosen = vec![0; available.len()];
        for extent in 0..1000 {
            let order = order(&rooms(available), shard, shard_count, extent);
            assert_eq!(order.len(), available.len());
            chosen[usize::from(order[0].0)] += 1;
        }
        chosen
    }

    #[test]
    fn each_shard_has_sets_of_its_own_while_they_are_evenly_full() {
        assert_eq!(first_choices(&[500, 500, 500, 500], 1, 4), [0, 1000, 0, 0]);
        assert_eq!(first_choices(&[500, 450], 3, 8), [0, 1000]);
        // Several sets of one shard are used alike.
        assert_eq!(first_choices(&[500, 500, 500, 500], 1, 2), [0, 500, 0, 500]);
    }

    #[test]
    fn a_new_set_takes_more_than_the_others_and_not_all() {
        let chosen = first_choices(&[200, 200, 200, 1000], 0, 4);
        assert!((550..700).contains(&chosen[3]), "{chosen:?}");
        assert!(chosen[..3].iter().all(|&count| count > 80), "{chosen:?}");
    }

    #[test]
    fn sets_fill_up_together() {
        // One set was added to three that are nearly full; extents of 1 are placed by 4 shards in turn.
        let mut available = vec![300, 280, 320, 1000];
        let mut placed = vec![0; 4];
        for extent in 0..1800 {
            let order = order(&rooms(&available), extent % 4, 4, extent as u64 / 4);
            let set = order.into_iter().map(|set| usize::from(set.0)).find(|&set| available[set] > 0);
            let set = set.expect("there is room for all");
            available[set] -= 1;
            placed[set] += 1;
        }
        assert!(
            available.iter().max().zip(available.iter().min()).is_some_and(|(max, min)| max - min < 150),
            "{available:?}"
        );
        assert!(placed.iter().all(|&count| count > 200), "{placed:?}");
    }
}
