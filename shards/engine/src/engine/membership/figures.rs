//! What is known of each disk: its state, how far it is rebuilt, how it answers, why it is out.
//!
//! Every core knows its own shards and its own reads. The first core adds them up every few seconds, so that rates and
//! times left are measured in one place, whoever asks.

use std::cell::RefCell;
use std::path::PathBuf;
use std::time::Duration;

use basalt_reactor::{CoreId, Monotonic, WallTime};

use super::super::Engine;
use super::Membership;
use crate::error::EngineError;
use crate::extent::DiskIndex;
use crate::extent::members::MemberState;
use crate::extent::reads::DiskTally;
use crate::request::{Reply, Request};
use crate::shard::rebuild::RebuildLens;

/// How often the log says how far disks are rebuilt.
const PROGRESS_EVERY: Duration = Duration::from_secs(30);

/// The share of the newest measurement in a rate, in parts of eight.
const RATE_WEIGHT: u64 = 2;

/// What one core knows of a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskFigures {
    /// Of this core's shards.
    pub rebuild: RebuildLens,
    pub reads: DiskTally,
    /// Damaged blocks of it that repair has met.
    pub damaged: u64,
}

/// A disk of the deployment, as an operator sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskStatus {
    /// Its place among the members.
    pub place: usize,
    /// Where it is, or was last.
    pub path: Option<PathBuf>,
    pub disk: [u8; 16],
    /// The name of the group that it stands in for the others of.
    pub group: String,
    pub state: MemberState,
    /// An operator took it out.
    pub removed: bool,
    /// Why it is out, and since when this process knows.
    pub out: Option<Absence>,
    /// Why it would be out, if the set could do without it, and since when.
    pub failing: Option<Absence>,
    pub rebuild: Option<RebuildStatus>,
    /// Bytes of its file system, and how many of them can be had; `None` when it does not say.
    pub space: Option<(u64, u64)>,
    /// How long reads of up to 64 KiB took on average in the last seconds that had any.
    pub read_latency: Option<Duration>,
    /// Reads that the device failed, and blocks found damaged, since the start.
    pub read_errors: u64,
    pub damaged: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Absence {
    pub reason: String,
    pub since: WallTime,
}

/// How far a disk that is behind has been rebuilt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RebuildStatus {
    /// Bytes of its columns that are there again, and that are still to be made.
    pub lens: RebuildLens,
    /// Bytes per second lately.
    pub rate: u64,
}

impl RebuildStatus {
    /// In hundredths of a percent, rounded down.
    #[must_use]
    pub fn permyriad(&self) -> u64 {
        let RebuildLens { done_len, left_len } = self.lens;
        let total = u128::from(done_len) + u128::from(left_len);
        (u128::from(done_len) * 10_000).checked_div(total).map_or(10_000, |share| share as u64)
    }

    /// How long it takes at the present rate; `None` while nothing moves.
    #[must_use]
    pub fn time_left(&self) -> Option<Duration> {
        self.lens.left_len.checked_div(self.rate).map(Duration::from_secs)
    }
}

/// All that is known of the disks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskReport {
    pub epoch: u64,
    pub disks: Vec<DiskStatus>,
    /// Empty disks that wait to take the place of one that is out.
    pub spares: Vec<PathBuf>,
    /// Disks that can still fail without losing data; `None` when too few are left.
    pub failures_tolerated: Option<u8>,
    /// It was started for reading alone.
    pub read_only: bool,
}

/// What has been added up so far, to tell what changed.
#[derive(Default)]
pub(super) struct Ledger {
    entries: RefCell<Vec<Entry>>,
    report: RefCell<DiskReport>,
    logged: RefCell<Option<Monotonic>>,
}

#[derive(Clone, Copy, Default)]
struct Entry {
    /// When and at how many bytes left the rate was measured last, and of which joining.
    measured: Option<(Monotonic, u64, u64)>,
    rate: u64,
    reads: DiskTally,
    latency: Option<Duration>,
}

impl Ledger {
    /// Takes in what all cores know of one disk by now.
    fn note(&self, place: usize, joined: u64, now: Monotonic, figures: &DiskFigures) -> Entry {
        let mut entries = self.entries.borrow_mut();
        if entries.len() <= place {
            entries.resize(place + 1, Entry::default());
        }
        let entry = &mut entries[place];
        let left = figures.rebuild.left_len;
        match entry.measured {
            Some((before, left_before, of)) if of == joined => {
                let elapsed = now.since(before).as_millis() as u64;
                // Short spells say little.
                if elapsed >= 1000 {
                    let rate = left_before.saturating_sub(left).saturating_mul(1000) / elapsed;
                    entry.rate = match entry.rate {
                        0 => rate,
                        before => (before * (8 - RATE_WEIGHT) + rate * RATE_WEIGHT) / 8,
                    };
                    entry.measured = Some((now, left, joined));
                }
            }
            _ => (entry.rate, entry.measured) = (0, Some((now, left, joined))),
        }
        let lately = figures.reads.since(&entry.reads);
        if let Some(mean) = lately.mean() {
            entry.latency = Some(mean);
            entry.reads = figures.reads;
        }
        *entry
    }
}

impl Engine {
    /// What this core knows of each disk.
    pub(in super::super) fn disk_figures(&self) -> Vec<DiskFigures> {
        let mut figures: Vec<DiskFigures> = self
            .inner
            .reads
            .tallies()
            .into_iter()
            .map(|reads| DiskFigures { reads, ..DiskFigures::default() })
            .collect();
        // A set that joins just now may be known here and not there.
        let count = figures.len().max(self.inner.members.states().len());
        figures.resize(count, DiskFigures::default());
        for shard in self.inner.shards.borrow().values() {
            for (disk, lens) in shard.rebuild_lens() {
                figures[usize::from(disk.0)].rebuild.add(lens);
            }
            for (disk, damaged) in shard.damaged_by_disk() {
                figures[usize::from(disk.0)].damaged += damaged;
            }
        }
        figures
    }

    /// All that is known of the disks, on any core.
    ///
    /// # Errors
    /// [`EngineError::Closed`] when a core is going away.
    pub async fn disks(&self) -> Result<DiskReport, EngineError> {
        match self.inner.port.call(CoreId(0), Request::DiskReport).await {
            Ok(Reply::DiskReport(report)) => report.map(|report| *report),
            _ => Err(EngineError::Closed),
        }
    }

    /// What was known of the disks a few seconds ago; on the first core alone.
    #[must_use]
    pub fn disks_lately(&self) -> Option<DiskReport> {
        self.inner.membership.as_ref().map(|membership| membership.ledger.report.borrow().clone())
    }

    /// What every core knows of each disk, added up, and whether all shards take writes.
    pub(super) async fn add_up(&self) -> Result<(Vec<DiskFigures>, bool), EngineError> {
        let mut is_healthy = true;
        let mut sums = vec![DiskFigures::default(); self.inner.members.states().len()];
        for core in 0..self.inner.core_count {
            let Ok(Reply::DiskFigures { figures, shards_fail }) =
                self.inner.port.call(CoreId(core), Request::DiskFigures).await
            else {
                return Err(EngineError::Closed);
            };
            is_healthy &= !shards_fail;
            for (sum, figures) in sums.iter_mut().zip(figures) {
                sum.rebuild.add(figures.rebuild);
                sum.reads.add(&figures.reads);
                sum.damaged += figures.damaged;
            }
        }
        Ok((sums, is_healthy))
    }

    /// On the first core: looks at everything anew.
    pub(in super::super) async fn report_disks(&self) -> Result<DiskReport, EngineError> {
        let (figures, is_healthy) = self.add_up().await?;
        self.note_health(is_healthy).await;
        Ok(self.draw_report(&figures))
    }

    pub(super) fn draw_report(&self, figures: &[DiskFigures]) -> DiskReport {
        let membership = self.membership();
        let now = self.inner.core.now();
        let states = self.inner.members.states();
        let groups = self.inner.members.groups();
        let config = membership.config.borrow();
        let paths = membership.paths.borrow();
        let status = |(place, figures): (usize, &DiskFigures)| {
            let member = &config.members[place];
            let entry = membership.ledger.note(place, member.joined, now, figures);
            let state = states[place];
            let rebuild = RebuildStatus { lens: figures.rebuild, rate: entry.rate };
            DiskStatus {
                place,
                path: paths[place].clone(),
                disk: member.disk,
                group: groups.name(member.group),
                state,
                removed: member.removed,
                out: membership.absences.borrow().get(&place).cloned(),
                failing: membership.failures.of(place),
                rebuild: (state == MemberState::Behind).then_some(rebuild),
                space: self.space_of(DiskIndex(place as u8)),
                read_latency: entry.latency,
                read_errors: figures.reads.error_count,
                damaged: figures.damaged,
            }
        };
        let report = DiskReport {
            epoch: self.inner.members.epoch(),
            disks: figures.iter().take(states.len()).enumerate().map(status).collect(),
            spares: membership.spares.borrow().iter().cloned().collect(),
            failures_tolerated: self.failures_tolerated(),
            read_only: self.is_read_only(),
        };
        *membership.ledger.report.borrow_mut() = report.clone();
        report
    }

    fn space_of(&self, disk: DiskIndex) -> Option<(u64, u64)> {
        let files = self.inner.files.borrow().first()?.disk(disk)?;
        files.disk.space().ok().map(|space| (space.total, space.available))
    }

    /// Says now and then how far disks that are behind have been rebuilt.
    pub(super) fn log_progress(&self, report: &DiskReport) {
        let now = self.inner.core.now();
        let logged = &self.membership().ledger.logged;
        if logged.borrow().is_some_and(|before| now.since(before) < PROGRESS_EVERY) {
            return;
        }
        *logged.borrow_mut() = Some(now);
        for disk in &report.disks {
            let Some(rebuild) = disk.rebuild else { continue };
            let share = rebuild.permyriad();
            let percent = format!("{}.{:02}", share / 100, share % 100);
            let left = rebuild
                .time_left()
                .map_or_else(|| "unknown".to_owned(), |left| format!("{} s", left.as_secs()));
            tracing::info!(disk = disk.place, path = %self.path_of(disk.place), %percent,
                left_bytes = rebuild.lens.left_len, bytes_per_second = rebuild.rate, time_left = %left,
                "the disk is being rebuilt");
        }
    }
}

impl Membership {
    /// Takes note of when and why a disk went.
    pub(super) fn note_absence(&self, place: usize, reason: &str, since: WallTime) {
        self.absences
            .borrow_mut()
            .entry(place)
            .or_insert_with(|| Absence { reason: reason.to_owned(), since });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_follows_what_is_left_and_starts_over_with_each_joining() {
        let ledger = Ledger::default();
        let start = Monotonic::default();
        let at = |seconds: u64, left_len: u64, joined: u64| {
            let rebuild = RebuildLens { done_len: 10_000 - left_len, left_len };
            let figures = DiskFigures { rebuild, ..DiskFigures::default() };
            ledger.note(1, joined, start + Duration::from_secs(seconds), &figures).rate
        };
        assert_eq!(at(0, 10_000, 7), 0);
        assert_eq!(at(10, 9_000, 7), 100);
        assert_eq!(at(20, 8_000, 7), 100);
        assert!((101..200).contains(&at(30, 5_000, 7)), "it changes by and by");
        assert_eq!(at(31, 10_000, 9), 0);
    }

    #[test]
    fn shares_and_times_are_right_at_both_ends() {
        let status =
            |done_len, left_len, rate| RebuildStatus { lens: RebuildLens { done_len, left_len }, rate };
        assert_eq!(status(0, 0, 0).permyriad(), 10_000);
        assert_eq!(status(1, 2, 0).permyriad(), 3333);
        assert_eq!(status(u64::MAX, u64::MAX, 1).permyriad(), 5000);
        assert_eq!(status(0, 100, 0).time_left(), None);
        assert_eq!(status(0, 100, 10).time_left(), Some(Duration::from_secs(10)));
    }
}
