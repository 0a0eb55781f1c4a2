//! Which extent to empty next: a pure function of what the extents hold.
//!
//! An extent is worth emptying when moving what lives in it takes much less than the extent itself. Of all, the one is
//! chosen that gives back most per byte moved; and nothing is moved while the store is tight enough as a whole, so that an
//! idle or a well-filled store writes nothing. Since the mean over all extents is above its target only if some extent is,
//! there is always one to choose then, and emptying it brings the mean down.

use crate::extent::{ExtentClass, ExtentId};

/// Space taken per space needed, in thousandths, above which extents are emptied. The promise is 1,200; between the two
/// lies what becomes garbage while a step is under way.
pub(super) const AMPLIFICATION_MAX: u64 = 1_120;

/// Thousandths of an extent that must come back for it to be worth a step, and how little will do where space is short.
const GAIN_MIN: u64 = 80;
const GAIN_MIN_SHORT: u64 = 30;

/// Data extents' worth of space that must come back in all before anything is moved, unless space is short: a small store
/// is left alone.
const GAIN_EXTENTS_MIN: u64 = 2;

/// An extent that could be emptied: sealed, with something live in it. Bytes count on all disks together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) id: ExtentId,
    pub(super) class: ExtentClass,
    /// What it takes.
    pub(super) used: u64,
    /// What the live part of it takes elsewhere.
    pub(super) moved: u64,
}

impl Candidate {
    fn gain(&self) -> u64 {
        self.used.saturating_sub(self.moved)
    }

    fn is_worth(&self, share_min: u64) -> bool {
        self.gain() * 1000 >= self.used * share_min
    }
}

/// What the choice depends on beside the candidates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Situation {
    /// Bytes of one data extent on all disks.
    pub(super) data_extent_len: u64,
    /// Somebody waits for space, or soon will.
    pub(super) is_short: bool,
    /// The log has hardly a slot left, while there is room for data: every log extent that is emptied helps.
    pub(super) is_log_short: bool,
}

/// Space taken per space needed by all `candidates`, in thousandths.
pub(super) fn amplification(candidates: &[Candidate]) -> u64 {
    let used: u64 = candidates.iter().map(|candidate| candidate.used).sum();
    let moved: u64 = candidates.iter().map(|candidate| candidate.moved).sum();
    if moved == 0 {
        1000
    } else {
        u64::try_from(u128::from(used) * 1000 / u128::from(moved)).unwrap_or(u64::MAX)
    }
}

/// The extent to empty next, if any is worth it.
pub(super) fn choose(candidates: &[Candidate], situation: Situation) -> Option<ExtentId> {
    let best = |candidates: &mut dyn Iterator<Item = &Candidate>| {
        // Least moved per byte that comes back; of equals the oldest.
        candidates
            .min_by_key(|one| (one.moved.saturating_mul(1000) / one.used.max(1), one.id))
            .map(|one| one.id)
    };
    if situation.is_log_short {
        let mut logs = candidates.iter().filter(|one| one.class == ExtentClass::Log);
        if let Some(log) = best(&mut logs) {
            return Some(log);
        }
    }
    if situation.is_short {
        return best(&mut candidates.iter().filter(|one| one.is_worth(GAIN_MIN_SHORT)));
    }
    let gain: u64 = candidates.iter().map(Candidate::gain).sum();
    if amplification(candidates) <= AMPLIFICATION_MAX || gain < GAIN_EXTENTS_MIN * situation.data_extent_len {
        return None;
    }
    best(&mut candidates.iter().filter(|one| one.is_worth(GAIN_MIN)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SITUATION: Situation = Situation { data_extent_len: 1000, is_short: false, is_log_short: false };
    const SHORT: Situation = Situation { is_short: true, ..SITUATION };

    fn data(id: u64, moved: u64) -> Candidate {
        Candidate { id: ExtentId(id), class: ExtentClass::Data, used: 1000, moved }
    }

    fn log(id: u64, moved: u64) -> Candidate {
        Candidate { id: ExtentId(id), class: ExtentClass::Log, used: 500, moved }
    }

    #[test]
    fn a_tight_store_is_left_alone() {
        assert_eq!(choose(&[], SITUATION), None);
        let full: Vec<_> = (0..50).map(|id| data(id, 900 + id)).collect();
        assert!(amplification(&full) <= AMPLIFICATION_MAX);
        assert_eq!(choose(&full, SITUATION), None);
        // One hollow extent among many costs little.
        let mut hollow = full.clone();
        hollow[7].moved = 10;
        assert_eq!(choose(&hollow, SITUATION), None);
        assert_eq!(choose(&hollow, SHORT), Some(ExtentId(7)));
    }

    #[test]
    fn a_small_store_is_left_alone_until_space_is_short() {
        let few = [data(1, 10), log(2, 1)];
        assert_eq!(choose(&few, SITUATION), None);
        assert_eq!(choose(&few, SHORT), Some(ExtentId(2)));
    }

    #[test]
    fn the_emptiest_goes_first_and_of_equals_the_oldest() {
        let mut extents: Vec<_> = (0..20).map(|id| data(id, 700)).collect();
        extents[11].moved = 300;
        extents[4].moved = 300;
        assert_eq!(choose(&extents, SITUATION), Some(ExtentId(4)));
        // A log extent of three copies whose objects fit half of that elsewhere.
        extents.push(log(30, 140));
        assert_eq!(choose(&extents, SITUATION), Some(ExtentId(30)));
    }

    #[test]
    fn what_gives_nothing_back_is_never_moved() {
        let full: Vec<_> = (0..9).map(|id| data(id, 1000)).collect();
        assert_eq!(choose(&full, SHORT), None);
        assert_eq!(choose(&[data(1, 1200)], SHORT), None);
    }

    #[test]
    fn a_log_without_slots_moves_even_what_is_full() {
        let extents = [data(1, 990), log(2, 600), log(3, 500)];
        let short = Situation { is_log_short: true, ..SHORT };
        assert_eq!(choose(&extents, short), Some(ExtentId(3)));
        assert_eq!(choose(&[data(1, 990)], short), None);
    }

    #[test]
    fn above_the_target_there_is_always_a_choice_and_it_ends() {
        // Whatever the extents hold: emptying what is chosen, into full ones, ends, and the target is met then.
        for seed in 0..200u64 {
            let mut state = seed;
            let mut next = |below: u64| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) % below
            };
            let mut extents: Vec<_> = (0..3 + next(40))
                .map(|id| if next(3) == 0 { log(id, 1 + next(700)) } else { data(id, 1 + next(1000)) })
                .collect();
            let mut open = 0;
            let mut steps = 0;
            while let Some(chosen) = choose(&extents, SITUATION) {
                let at = extents.iter().position(|one| one.id == chosen).expect("one of them");
                open += extents.remove(at).moved;
                while open >= 1000 {
                    open -= 1000;
                    steps += 1;
                    extents.push(data(1000 + steps, 1000));
                }
                assert!(steps < 1000, "seed {seed} does not end");
            }
            let gain: u64 = extents.iter().map(Candidate::gain).sum();
            assert!(
                amplification(&extents) <= AMPLIFICATION_MAX || gain < 2 * SITUATION.data_extent_len,
                "seed {seed}: {extents:?}"
            );
        }
    }
}
