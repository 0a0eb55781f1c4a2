//! What a disk may do wrong before it is taken out although it still takes writes: reads that fail, and slowness.
//!
//! Readers go around both, so nothing is urgent: a disk is judged by its record over minutes, against the other disks of
//! the set, so that a common cause (a controller, an overload) takes none out. Pure, so that every rule is tested without
//! a disk.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use basalt_reactor::Monotonic;

use super::super::Engine;
use super::Cause;
use super::figures::DiskFigures;
use crate::extent::DiskIndex;
use crate::extent::members::MemberState;
use crate::extent::reads::DiskTally;

/// Reads that fail, and blocks found damaged, within [`ERROR_WINDOW`]: so many are too many.
const ERRORS_MAX: u64 = 128;
const ERROR_WINDOW: Duration = Duration::from_secs(600);

/// How finely the window slides.
const ERROR_STEP: Duration = Duration::from_secs(10);

/// A disk is far slower than the others when its reads take this many times as long as is usual among them …
const SLOW_FACTOR: u32 = 10;

/// … and longer than this: what is faster harms nobody.
const SLOW_MIN: Duration = Duration::from_millis(50);

/// Slowness is looked at in spells of this length …
const SLOW_SPELL: Duration = Duration::from_secs(15);

/// … in which at least so many reads ended, without which nothing is said …
const SLOW_READS_MIN: u64 = 8;

/// … and after so many slow spells, with no other in between, the disk is out: three minutes.
const SLOW_SPELLS_MAX: u32 = 12;

/// Why a disk is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Complaint {
    Errors { count: u64 },
    Slow { mean: Duration, usual: Duration },
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Complaint::Errors { count } => {
                write!(f, "{count} failed reads or damaged blocks within {} s", ERROR_WINDOW.as_secs())
            }
            Complaint::Slow { mean, usual } => {
                write!(f, "its reads take {mean:?}, those of the others {usual:?}, for minutes")
            }
        }
    }
}

#[derive(Clone, Default)]
struct Record {
    /// Errors so far, at the ends of steps.
    errors: VecDeque<(Monotonic, u64)>,
    /// Reads up to the last spell's end.
    reads: DiskTally,
    slow_spells: u32,
}

impl Record {
    /// Nothing before now counts.
    fn start_over(&mut self, now: Monotonic, figures: &DiskFigures) {
        *self = Record {
            errors: VecDeque::from([(now, errors_of(figures))]),
            reads: figures.reads,
            slow_spells: 0,
        };
    }

    fn note_errors(&mut self, now: Monotonic, total: u64) -> Option<Complaint> {
        if self.errors.back().is_none_or(|(at, _)| now.since(*at) >= ERROR_STEP) {
            self.errors.push_back((now, total));
        }
        while self.errors.get(1).is_some_and(|(at, _)| now.since(*at) >= ERROR_WINDOW) {
            self.errors.pop_front();
        }
        let count = total - self.errors.front().map_or(total, |(_, before)| *before);
        (count >= ERRORS_MAX).then_some(Complaint::Errors { count })
    }
}

fn errors_of(figures: &DiskFigures) -> u64 {
    figures.reads.error_count + figures.damaged
}

/// The records of all disks of a group.
#[derive(Default)]
pub(super) struct Judge {
    records: Vec<Record>,
    spell_began: Option<Monotonic>,
}

impl Judge {
    /// Takes in what is known of each disk by now, where `is_judged` says which of them count at all; names those whose
    /// record is too bad. More than `spare_count` slow ones at a time have a common cause.
    pub(super) fn note(
        &mut self,
        now: Monotonic,
        is_judged: &[bool],
        figures: &[DiskFigures],
        spare_count: usize,
    ) -> Vec<(usize, Complaint)> {
        if self.records.len() != figures.len() {
            self.records = vec![Record::default(); figures.len()];
            self.records
                .iter_mut()
                .zip(figures)
                .for_each(|(record, figures)| record.start_over(now, figures));
        }
        let mut complaints = Vec::new();
        for (place, (record, figures)) in self.records.iter_mut().zip(figures).enumerate() {
            if !is_judged[place] {
                record.start_over(now, figures);
            } else if let Some(complaint) = record.note_errors(now, errors_of(figures)) {
                complaints.push((place, complaint));
            }
        }
        if now.since(*self.spell_began.get_or_insert(now)) >= SLOW_SPELL {
            self.spell_began = Some(now);
            complaints.extend(self.end_spell(is_judged, figures, spare_count));
        }
        for &(place, _) in &complaints {
            self.records[place].start_over(now, &figures[place]);
        }
        complaints
    }

    fn end_spell(
        &mut self,
        is_judged: &[bool],
        figures: &[DiskFigures],
        spare_count: usize,
    ) -> Vec<(usize, Complaint)> {
        let mut means = Vec::with_capacity(figures.len());
        for (place, (record, figures)) in self.records.iter_mut().zip(figures).enumerate() {
            let lately = figures.reads.since(&record.reads);
            record.reads = figures.reads;
            means.push(lately.mean().filter(|_| is_judged[place] && lately.count >= SLOW_READS_MIN));
        }
        let verdicts: Vec<_> = (0..means.len()).map(|place| slowness(&means, place)).collect();
        let is_slow = |verdict: &Option<Option<Complaint>>| matches!(verdict, Some(Some(_)));
        let common_cause = verdicts.iter().filter(|verdict| is_slow(verdict)).count() > spare_count;
        let mut complaints = Vec::new();
        for (place, (record, verdict)) in self.records.iter_mut().zip(verdicts).enumerate() {
            match verdict {
                None => {}
                Some(Some(complaint)) if !common_cause => {
                    record.slow_spells += 1;
                    if record.slow_spells >= SLOW_SPELLS_MAX {
                        complaints.push((place, complaint));
                    }
                }
                Some(_) => record.slow_spells = 0,
            }
        }
        complaints
    }
}

/// Whether a disk was far slower than the others; `None` where too few reads say so.
fn slowness(means: &[Option<Duration>], place: usize) -> Option<Option<Complaint>> {
    let mean = means[place]?;
    let mut others: Vec<Duration> =
        means.iter().enumerate().filter(|(other, _)| *other != place).filter_map(|(_, mean)| *mean).collect();
    others.sort_unstable();
    let usual = *others.get(others.len().checked_sub(1)? / 2)?;
    let is_slow = mean >= SLOW_MIN && mean >= usual * SLOW_FACTOR;
    Some(is_slow.then_some(Complaint::Slow { mean, usual }))
}

impl Engine {
    /// Takes disks out whose record is too bad, as long as another may still fail then.
    pub(super) async fn judge(&self, figures: &[DiskFigures]) {
        let membership = self.membership();
        let states = self.inner.members.states();
        let groups = self.inner.members.groups();
        let spare_count = usize::from(membership.config.borrow().geometry.m);
        let now = self.inner.core.now();
        let mut complaints = Vec::new();
        for group in groups.all() {
            let places: Vec<usize> =
                groups.disks(group).into_iter().map(|disk| usize::from(disk.0)).collect();
            if places.iter().any(|&place| place >= figures.len() || place >= states.len()) {
                // A set that has just joined is judged from the next time on.
                continue;
            }
            let is_judged: Vec<bool> =
                places.iter().map(|&place| states[place] == MemberState::InSync).collect();
            let of_group: Vec<DiskFigures> = places.iter().map(|&place| figures[place]).collect();
            let mut judges = membership.judges.borrow_mut();
            let found = judges.entry(group).or_default().note(now, &is_judged, &of_group, spare_count);
            complaints.extend(found.into_iter().map(|(index, complaint)| (places[index], complaint)));
        }
        for (place, complaint) in complaints {
            let disk = DiskIndex(u8::try_from(place).expect("at most 240 disks"));
            let reason = complaint.to_string();
            if self.take_out(disk, &reason, Cause::Record).await.is_err() {
                tracing::error!(disk = place, path = %self.path_of(place), reason,
                    "a disk would be taken out, but then no other could fail any more");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COUNT: usize = 6;

    /// Six disks whose figures grow by what each second brings.
    struct Set {
        judge: Judge,
        figures: Vec<DiskFigures>,
        seconds: u64,
    }

    impl Set {
        fn new() -> Set {
            Set { judge: Judge::default(), figures: vec![DiskFigures::default(); COUNT], seconds: 0 }
        }

        /// The place and second of the first complaint within `seconds`.
        fn run(
            &mut self,
            seconds: u64,
            bring: impl Fn(u64, usize, &mut DiskFigures),
        ) -> Option<(usize, u64)> {
            let start = self.seconds;
            while self.seconds < start + seconds {
                self.seconds += 1;
                for (place, figures) in self.figures.iter_mut().enumerate() {
                    bring(self.seconds, place, figures);
                }
                let now = Monotonic::default() + Duration::from_secs(self.seconds);
                if let Some((place, _)) = self.judge.note(now, &[true; COUNT], &self.figures, 2).first() {
                    return Some((*place, self.seconds - start));
                }
            }
            None
        }
    }

    fn reads(figures: &mut DiskFigures, millis: u64) {
        figures.reads.count += 10;
        figures.reads.time += Duration::from_millis(10 * millis);
    }

    #[test]
    fn errors_within_the_window_count_and_older_ones_do_not() {
        let mut set = Set::new();
        assert_eq!(
            set.run(7200, |second, place, disk| disk.damaged += u64::from(place == 2 && second % 6 == 0)),
            None
        );
        let found = set.run(60, |_, place, disk| disk.reads.error_count += 20 * u64::from(place == 4));
        assert!(matches!(found, Some((4, 6..=8))), "{found:?}");
    }

    #[test]
    fn a_disk_far_slower_than_the_others_for_minutes_is_named() {
        let mut set = Set::new();
        let millis = |place| if place == 1 { 200 } else { 2 };
        let found = set.run(600, |_, place, disk| reads(disk, millis(place)));
        assert!(matches!(found, Some((1, 170..=210))), "{found:?}");
        let spells = |second: u64, place| if place == 1 && second % 120 < 90 { 200 } else { 2 };
        assert_eq!(Set::new().run(3600, |second, place, disk| reads(disk, spells(second, place))), None);
        assert_eq!(
            Set::new().run(3600, |_, place, disk| reads(disk, if place == 1 { 40 } else { 1 })),
            None,
            "harms nobody"
        );
    }

    #[test]
    fn slowness_with_a_common_cause_takes_none_out() {
        assert_eq!(Set::new().run(3600, |_, _, disk| reads(disk, 900)), None);
        for slow_count in [3, 4, 5] {
            let millis = |place| if place < slow_count { 500 } else { 2 };
            assert_eq!(
                Set::new().run(3600, |_, place, disk| reads(disk, millis(place))),
                None,
                "{slow_count}"
            );
        }
    }

    #[test]
    fn a_disk_nobody_reads_is_not_judged() {
        let found = Set::new().run(3600, |_, place, disk| {
            if place == 0 {
                disk.reads.count += 1;
                disk.reads.time += Duration::from_secs(1) / 4;
            }
        });
        assert_eq!(found, None);
    }
}
