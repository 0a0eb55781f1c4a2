//! How long reads of a disk take, and when one of them is late.
//!
//! Percentiles are kept in fixed memory: a histogram of logarithmic buckets, halved as it fills, so that it speaks of the last
//! few hundred reads. What counts as late is measured against the disks of a set together, for a disk that is slow is not
//! to set its own measure. Pure, so that every rule is tested without a disk.

use std::time::Duration;

/// Latencies below this share the first bucket: 2^14 ns, 16 µs.
const FIRST_OCTAVE: u32 = 14;

/// Buckets of one octave, so that a bucket's bounds are at most a quarter apart.
const BUCKETS_PER_OCTAVE: usize = 4;

/// The last octave ends at 2^35 ns, 34 s; what takes longer counts there.
const BUCKET_COUNT: usize = 1 + (35 - FIRST_OCTAVE as usize) * BUCKETS_PER_OCTAVE;

/// Reads after which all counts are halved.
const WINDOW: u32 = 1024;

/// Reads without which a histogram says nothing.
const SAMPLES_MIN: u32 = 32;

/// A read is late when it takes longer than this many times the set's usual 99th percentile …
const LATE_FACTOR: u32 = 2;

/// … and never earlier than this: a healthy disk of any kind hardly ever is.
pub const LATE_MIN: Duration = Duration::from_millis(3);

/// A read that takes longer is late whatever the others do.
pub const LATE_MAX: Duration = Duration::from_secs(1);

/// What counts as late before enough reads were seen.
const LATE_AT_FIRST: Duration = Duration::from_millis(50);

/// Late reads among a disk's last eight that make it a slow one.
const LATE_COUNT_SLOW: u32 = 4;

/// Reads that earn the right to one hedge: three reads in a hundred may be asked for twice.
const READS_PER_HEDGE: u32 = 32;

/// Hedges that can be saved up.
const HEDGES_SAVED_MAX: u32 = 16;

/// Latencies of recent reads.
#[derive(Clone, Debug)]
pub struct Latencies {
    counts: [u16; BUCKET_COUNT],
    total: u32,
}

impl Default for Latencies {
    fn default() -> Latencies {
        Latencies { counts: [0; BUCKET_COUNT], total: 0 }
    }
}

impl Latencies {
    pub fn record(&mut self, latency: Duration) {
        self.counts[bucket_of(latency)] += 1;
        self.total += 1;
        if self.total >= WINDOW {
            self.forget_half();
        }
    }

    /// What is known so far counts half as much.
    pub fn forget_half(&mut self) {
        self.counts.iter_mut().for_each(|count| *count /= 2);
        self.total = self.counts.iter().map(|count| u32::from(*count)).sum();
    }

    /// The latency that `per_mille` of recent reads did not exceed, at most a quarter too long; `None` while too few are known.
    #[must_use]
    pub fn quantile(&self, per_mille: u32) -> Option<Duration> {
        if self.total < SAMPLES_MIN {
            return None;
        }
        let rank = (self.total * per_mille).div_ceil(1000).max(1);
        let mut seen = 0;
        let bucket = self.counts.iter().position(|count| {
            seen += u32::from(*count);
            seen >= rank
        });
        Some(bucket_end(bucket.unwrap_or(BUCKET_COUNT - 1)))
    }
}

fn bucket_of(latency: Duration) -> usize {
    let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
    let octave = nanos.max(1).ilog2();
    if octave < FIRST_OCTAVE {
        return 0;
    }
    let within = (nanos >> (octave - 2)) as usize % BUCKETS_PER_OCTAVE;
    (1 + (octave - FIRST_OCTAVE) as usize * BUCKETS_PER_OCTAVE + within).min(BUCKET_COUNT - 1)
}

/// The latency at which the next bucket begins.
fn bucket_end(bucket: usize) -> Duration {
    let (octave, within) = match bucket.checked_sub(1) {
        None => return Duration::from_nanos(1 << FIRST_OCTAVE),
        Some(index) => (FIRST_OCTAVE as usize + index / BUCKETS_PER_OCTAVE, index % BUCKETS_PER_OCTAVE),
    };
    Duration::from_nanos((BUCKETS_PER_OCTAVE + within + 1) as u64 * (1 << (octave - 2)))
}

/// After how long a read is late, from the 99th percentiles of the set's disks as far as they are known: by the lower
/// median, which no minority of slow disks can raise, and of two disks the faster one sets.
#[must_use]
pub fn late_after(mut percentiles: Vec<Duration>) -> Duration {
    percentiles.sort_unstable();
    let middle = percentiles.len().saturating_sub(1) / 2;
    let usual = percentiles.get(middle).map(|usual| *usual * LATE_FACTOR);
    usual.unwrap_or(LATE_AT_FIRST).clamp(LATE_MIN, LATE_MAX)
}

/// Whether a disk answers in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Its last eight reads, a bit each: set for a late one.
    recent: u8,
    slow: bool,
}

impl Standing {
    /// A disk is slow once half of its last eight reads were late, and again a good one after eight in time.
    pub fn note(&mut self, late: bool) {
        self.recent = self.recent << 1 | u8::from(late);
        if self.recent.count_ones() >= LATE_COUNT_SLOW {
            self.slow = true;
        } else if self.recent == 0 {
            self.slow = false;
        }
    }

    #[must_use]
    pub fn is_slow(self) -> bool {
        self.slow
    }
}

/// The right to ask for something twice, earned by asking once: a set that is slow because it has too much to do is not
/// given more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HedgeBudget {
    reads: u32,
}

impl Default for HedgeBudget {
    fn default() -> HedgeBudget {
        HedgeBudget { reads: HEDGES_SAVED_MAX * READS_PER_HEDGE }
    }
}

impl HedgeBudget {
    pub fn earn(&mut self) {
        self.reads = (self.reads + 1).min(HEDGES_SAVED_MAX * READS_PER_HEDGE);
    }

    /// Takes one hedge, if there is one.
    #[must_use]
    pub fn spend(&mut self) -> bool {
        let left = self.reads.checked_sub(READS_PER_HEDGE);
        self.reads = left.unwrap_or(self.reads);
        left.is_some()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn buckets_follow_one_another_without_a_gap() {
        let mut start = Duration::ZERO;
        for bucket in 0..BUCKET_COUNT {
            let end = bucket_end(bucket);
            assert_eq!(bucket_of(start), bucket, "from {start:?}");
            assert_eq!(bucket_of(end - Duration::from_nanos(1)), bucket, "to {end:?}");
            assert!(bucket == 0 || end.as_nanos() * 4 <= start.as_nanos() * 5);
            start = end;
        }
        assert_eq!(bucket_of(Duration::MAX), BUCKET_COUNT - 1);
    }

    #[test]
    fn few_reads_say_nothing_and_old_ones_are_forgotten() {
        let mut latencies = Latencies::default();
        for _ in 1..SAMPLES_MIN {
            latencies.record(Duration::from_millis(200));
        }
        assert_eq!(latencies.quantile(500), None);
        latencies.record(Duration::from_millis(200));
        assert!(latencies.quantile(500) > Some(Duration::from_millis(199)));
        for _ in 0..8 * WINDOW {
            latencies.record(Duration::from_micros(100));
        }
        assert!(latencies.quantile(999) < Some(Duration::from_micros(126)));
    }

    #[test]
    fn one_slow_disk_does_not_raise_the_measure() {
        let millis = |values: &[u64]| late_after(values.iter().copied().map(Duration::from_millis).collect());
        assert_eq!(millis(&[]), LATE_AT_FIRST);
        assert_eq!(millis(&[1, 1, 1, 200, 1, 1]), LATE_MIN);
        assert_eq!(millis(&[200, 20]), Duration::from_millis(40));
        assert_eq!(millis(&[20, 200, 30]), Duration::from_millis(60));
        assert_eq!(millis(&[200, 200, 30, 40, 30, 200]), Duration::from_millis(80));
        assert_eq!(millis(&[900, 900, 800]), LATE_MAX, "whatever the others do");
    }

    #[test]
    fn a_disk_is_slow_after_four_late_reads_and_good_after_eight_in_time() {
        let mut standing = Standing::default();
        for turn in 0..40 {
            standing.note(turn % 3 == 0);
            assert!(!standing.is_slow(), "one late read in three");
        }
        let mut standing = Standing::default();
        for late in 1..=4 {
            standing.note(true);
            assert_eq!(standing.is_slow(), late == 4);
        }
        for timely in 1..=8 {
            standing.note(false);
            assert_eq!(standing.is_slow(), timely < 8);
        }
    }

    #[test]
    fn hedges_are_a_few_in_a_hundred_reads() {
        let mut budget = HedgeBudget::default();
        let mut hedges = 0;
        for _ in 0..10_000 {
            budget.earn();
            hedges += u32::from(budget.spend());
        }
        assert_eq!(hedges, 10_000 / READS_PER_HEDGE + HEDGES_SAVED_MAX);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Against sorting the values, before anything is halved.
        #[test]
        fn quantiles_are_at_most_a_quarter_too_long(
            micros in proptest::collection::vec(1u64..3_000_000, SAMPLES_MIN as usize..WINDOW as usize),
            per_mille in 1u32..=1000,
        ) {
            let mut latencies = Latencies::default();
            micros.iter().for_each(|micros| latencies.record(Duration::from_micros(*micros)));
            let mut sorted = micros.clone();
            sorted.sort_unstable();
            let rank = (sorted.len() * per_mille as usize).div_ceil(1000).max(1);
            let exact = Duration::from_micros(sorted[rank - 1]);
            let found = latencies.quantile(per_mille).expect("enough values");
            prop_assert!(found >= exact && found <= (exact * 5 / 4).max(Duration::from_nanos(1 << FIRST_OCTAVE)));
        }
    }
}
