//! How far scrub has come, in a form that survives a restart, and what that says of every extent.
//!
//! Extents are verified in order of their ids, round after round, and ids only grow. So a place in that order splits the extents in
//! those that this round has verified, and those that were verified in the last one or written since. Marks say when the last round
//! was where, and so how long ago any of the others was verified, at most.

use std::time::Duration;

use rkyv::{Archive, Deserialize, Serialize};

/// Marks of a round, at most; older ones are thinned out beyond that.
const MARK_COUNT_MAX: usize = 128;

/// At this time all extents up to this one had been verified in the round, and none behind it.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    pub extent: u64,
    /// Nanoseconds since the Unix epoch.
    pub at: u64,
}

/// The state of a shard's scrub.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// All extents up to this one have been verified in this round.
    pub cursor: u64,
    /// Of this round, the first at its start; never empty.
    pub marks: Vec<Mark>,
    /// Of the round before, likewise.
    pub previous: Vec<Mark>,
}

impl Progress {
    /// Scrub begins for the first time: what there is counts as verified now, since nothing is known of before.
    pub(crate) fn new(now: u64) -> Progress {
        let start = vec![Mark { extent: 0, at: now }];
        Progress { cursor: 0, marks: start.clone(), previous: start }
    }

    /// When this round began.
    pub(crate) fn started(&self) -> u64 {
        self.marks.first().map_or(0, |mark| mark.at)
    }

    /// The extents up to `extent` are verified.
    pub(crate) fn pass(&mut self, extent: u64, now: u64) {
        self.cursor = extent;
        self.marks.push(Mark { extent, at: now });
        if self.marks.len() > MARK_COUNT_MAX {
            let mut index = 0;
            self.marks.retain(|_| {
                index += 1;
                index % 2 == 1
            });
        }
    }

    /// Every extent is verified: the next round begins.
    pub(crate) fn finish(&mut self, now: u64) {
        self.cursor = 0;
        self.previous = std::mem::replace(&mut self.marks, vec![Mark { extent: 0, at: now }]);
    }

    /// How long ago an extent was verified or written, at most, when `next` is the first that this round has yet to verify.
    pub(crate) fn oldest(&self, next: Option<u64>, now: u64) -> Duration {
        let since = match next {
            None => self.started(),
            Some(next) => {
                let before = self.previous.iter().take_while(|mark| mark.extent < next);
                before.last().map_or(0, |mark| mark.at).min(self.started())
            }
        };
        Duration::from_nanos(now.saturating_sub(since))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// What is said of the oldest extent is never less than the truth, and not much more.
        #[test]
        fn the_oldest_extent_is_no_older_than_said(steps in proptest::collection::vec(0u8..10, 1..600)) {
            let mut progress = Progress::new(0);
            // When each extent that exists was written or last verified.
            let mut extents: BTreeMap<u64, u64> = (1..20).map(|id| (id, 0)).collect();
            let mut next_id = 20;
            for (now, step) in (1u64..).zip(steps) {
                match step {
                    0 => {
                        extents.insert(next_id, now);
                        next_id += 1;
                    }
                    1 => {
                        let freed = extents.keys().nth(now as usize % extents.len().max(1)).copied();
                        freed.map(|id| extents.remove(&id));
                    }
                    _ => {
                        let next = extents.range(progress.cursor + 1..).next().map(|(&id, _)| id);
                        match next {
                            Some(id) => {
                                extents.insert(id, now);
                                progress.pass(id, now);
                            }
                            None => progress.finish(now),
                        }
                    }
                }
                let next = extents.range(progress.cursor + 1..).next().map(|(&id, _)| id);
                let said = progress.oldest(next, now).as_nanos() as u64;
                let truth = extents.values().min().map_or(0, |&at| now - at);
                prop_assert!(said >= truth, "{said} of {truth} at {now}: {progress:?} {extents:?}");
                prop_assert!(progress.marks.len() <= MARK_COUNT_MAX);
            }
        }
    }

    #[test]
    fn an_undisturbed_round_is_told_exactly() {
        let mut progress = Progress::new(1000);
        for id in 1..=10 {
            progress.pass(id, 1000 + id * 10);
        }
        progress.finish(1100);
        for id in 1..=5 {
            progress.pass(id, 1100 + id * 10);
        }
        // Extent 6 was verified at 1060; all that is known is that this was after 5 had been.
        assert_eq!(progress.oldest(Some(6), 1150), Duration::from_nanos(100));
        assert_eq!(progress.oldest(None, 1150), Duration::from_nanos(50));
    }
}
