//! Latency histograms with fixed logarithmic buckets: 32 µs, doubling up to 67 s.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const BUCKETS: usize = 22;
/// Upper bound of the first bucket.
const FIRST_BOUND_US: u64 = 32;

#[derive(Default)]
pub(super) struct Histogram {
    /// The last counts what is beyond the largest bound.
    buckets: [AtomicU64; BUCKETS + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    /// Only the owning core may.
    pub(super) fn record(&self, duration: Duration) {
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        super::add(&self.buckets[bucket(us)], 1);
        super::add(&self.sum_us, us);
    }
}

/// The first bucket whose bound is not below `us`.
fn bucket(us: u64) -> usize {
    let units = us.div_ceil(FIRST_BOUND_US).max(1);
    // The smallest exponent with 2^exponent >= units.
    let exponent = (u64::BITS - (units - 1).leading_zeros()) as usize;
    exponent.min(BUCKETS)
}

fn bound_secs(bucket: usize) -> f64 {
    (FIRST_BOUND_US << bucket) as f64 / 1e6
}

/// Appends the sum of `histograms` under one operation.
pub(super) fn render<'a>(
    out: &mut String,
    name: &str,
    operation: &str,
    histograms: impl Iterator<Item = &'a Histogram>,
) {
    let mut counts = [0u64; BUCKETS + 1];
    let mut sum_us = 0u64;
    for histogram in histograms {
        for (count, bucket) in counts.iter_mut().zip(&histogram.buckets) {
            *count += bucket.load(Ordering::Relaxed);
        }
        sum_us += histogram.sum_us.load(Ordering::Relaxed);
    }
    let mut below = 0;
    for (index, count) in counts.iter().enumerate() {
        below += count;
        let bound = if index < BUCKETS { bound_secs(index).to_string() } else { "+Inf".to_owned() };
        writeln!(out, "{name}_bucket{{operation=\"{operation}\",le=\"{bound}\"}} {below}")
            .expect("a String takes everything");
    }
    writeln!(
        out,
        "{name}_sum{{operation=\"{operation}\"}} {}\n{name}_count{{operation=\"{operation}\"}} {below}",
        sum_us as f64 / 1e6
    )
    .expect("a String takes everything");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_falls_into_the_first_bucket_that_holds_it() {
        for us in [0, 1, 31, 32, 33, 64, 65, 1_000, 1_024, 60_000_000, 67_108_864, 67_108_865, u64::MAX] {
            let secs = us as f64 / 1e6;
            let wanted = (0..BUCKETS).find(|index| secs <= bound_secs(*index)).unwrap_or(BUCKETS);
            assert_eq!(bucket(us), wanted, "{us} µs");
        }
    }
}
