//! How fast scrub goes: evenly through its deadline, in small units, below user traffic.

use std::cell::Cell;
use std::time::Duration;

use basalt_reactor::Monotonic;

use crate::shard::Shard;

/// Longest sleep before looks are taken again at what is due.
const NAP_MAX: Duration = Duration::from_secs(30);

/// How long a unit that is due waits for users to be done, at most, and between two looks. A unit in so long a time
/// reads 12 TiB in 30 days, so that the deadline holds under a load that never ends.
const POLITE_MAX: Duration = Duration::from_millis(200);
const POLITE_NAP: Duration = Duration::from_millis(5);

/// Longest rest after a unit; until then scrub rests as long as the unit took.
const REST_MAX: Duration = Duration::from_millis(100);

/// How long until the next of `total` bytes are due, when `done` of them have been verified `elapsed` after the start of a
/// round that is to take `round`.
#[must_use]
pub(crate) fn wait(total: u64, done: u64, elapsed: Duration, round: Duration) -> Duration {
    let part = done.min(total) as f64 / total.max(1) as f64;
    round.mul_f64(part).saturating_sub(elapsed)
}

/// What holds a walk over an extent back.
pub(in crate::shard) enum Pace {
    /// Nothing: damage was met, and is looked for.
    Free,
    Scrub(Pacer),
}

/// The pace of a round, at one extent of it.
pub(in crate::shard) struct Pacer {
    /// When the round began, nanoseconds since the Unix epoch.
    pub(in crate::shard) started: u64,
    pub(in crate::shard) round: Duration,
    /// Bytes of the round, and those of the extents before this one and of the units so far.
    pub(in crate::shard) total: u64,
    pub(in crate::shard) done: Cell<u64>,
    /// When the last unit began.
    pub(in crate::shard) last: Cell<Monotonic>,
}

impl Pace {
    /// Waits until `len` bytes may be read; `false` when the shard has failed, and scrub is over.
    pub(in crate::shard) async fn unit(&self, shard: &Shard, len: usize) -> bool {
        let failed = || shard.failed.borrow().is_some();
        let Pace::Scrub(pacer) = self else { return !failed() };
        let core = &shard.core;
        core.sleep(core.now().since(pacer.last.get()).min(REST_MAX)).await;
        loop {
            let elapsed = core.wall().0.saturating_sub(pacer.started);
            let due = wait(pacer.total, pacer.done.get(), Duration::from_nanos(elapsed), pacer.round);
            if due.is_zero() || failed() {
                break;
            }
            core.sleep(due.min(NAP_MAX)).await;
        }
        let patience = core.now() + POLITE_MAX;
        while shard.is_busy() && core.now() < patience {
            core.sleep(POLITE_NAP).await;
        }
        pacer.done.set(pacer.done.get() + len as u64);
        shard.scrub.count(len as u64);
        pacer.last.set(core.now());
        !failed()
    }
}

impl Shard {
    /// Whether users wait for this shard's disks: mutations that are not durable yet, or readers.
    fn is_busy(&self) -> bool {
        self.commits.len() > 0 || self.pins.count() > self.repairs.pin_count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn bytes_fall_due_evenly() {
        assert_eq!(wait(100, 0, Duration::ZERO, DAY), Duration::ZERO, "the first at once");
        assert_eq!(wait(100, 50, Duration::ZERO, DAY), DAY / 2);
        assert_eq!(wait(100, 50, DAY / 4, DAY), DAY / 4);
        assert_eq!(wait(100, 50, DAY, DAY), Duration::ZERO, "what is late is due");
        assert_eq!(wait(100, 250, DAY / 4, DAY), DAY * 3 / 4, "what came to it meanwhile is not early");
        assert_eq!(wait(0, 0, Duration::ZERO, DAY), Duration::ZERO);
    }

    /// Units read when they are due: the round ends within its time, and no tenth of it carries more than its share.
    #[test]
    fn a_round_is_spread_over_its_time() {
        for total in [1u64 << 20, 7 << 20, 3 << 30] {
            let unit = 1u64 << 20;
            let (mut done, mut now) = (0, Duration::ZERO);
            let mut tenths = [0u64; 10];
            while done < total {
                now += wait(total, done, now, DAY);
                tenths[(now.as_nanos() * 10 / DAY.as_nanos()).min(9) as usize] += unit;
                done += unit;
            }
            assert!(now <= DAY);
            assert!(tenths.iter().all(|&len| len <= total / 10 + unit), "{tenths:?} of {total}");
        }
    }
}
