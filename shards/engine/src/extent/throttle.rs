//! How fast rebuilding goes beside users: measured by how long they wait, with it and without it.
//!
//! Rebuilding takes a share of the time: after each piece of work it rests in proportion. Every few seconds it rests for a
//! while altogether, so that what users see without it is known; if what they see with it is worse by more than a factor, the
//! share shrinks, else it grows. It never falls below a floor, so that rebuilding ends. Where there are no users, there are no
//! rests. Pure, so that every rule is tested without a disk.

use std::time::Duration;

use basalt_reactor::Monotonic;

use super::latency::Latencies;

/// With rebuilding, the 95th percentile of what users wait may be this many percent of what it is without.
const PERCENT_MAX: u32 = 200;
const PER_MILLE: u32 = 950;

/// Differences below this are nobody's concern.
const DIFFERENCE_MIN: Duration = Duration::from_millis(1);

/// How long the work goes on between two looks, and how long a look takes.
const WORK_FOR: Duration = Duration::from_secs(2);
const LOOK_FOR: Duration = Duration::from_millis(250);

/// The share of the time that is worked, in thousandths: at first, and at least.
const SHARE_FIRST: u32 = 500;
const SHARE_MIN: u32 = 50;
const SHARE_MAX: u32 = 1000;

/// A rest in one piece, at most.
const REST_MAX: Duration = Duration::from_secs(1);

/// What happens just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing is rebuilt.
    Idle,
    Work {
        since: Monotonic,
    },
    Look {
        since: Monotonic,
    },
}

/// What one core knows of how rebuilding and users get along.
#[derive(Clone, Debug)]
pub struct Throttle {
    phase: Phase,
    with: Latencies,
    without: Latencies,
    share: u32,
    /// Operations of users that ended since the phase began.
    user_count: u32,
}

impl Default for Throttle {
    fn default() -> Throttle {
        Throttle {
            phase: Phase::Idle,
            with: Latencies::default(),
            without: Latencies::default(),
            share: SHARE_FIRST,
            user_count: 0,
        }
    }
}

impl Throttle {
    /// An operation of a user took from `begun` until now. What fell into two phases says nothing.
    pub fn note_user(&mut self, begun: Monotonic, now: Monotonic) {
        self.user_count = self.user_count.saturating_add(1);
        match self.phase {
            Phase::Work { since } if begun >= since => self.with.record(now.since(begun)),
            Phase::Look { since } if begun >= since => self.without.record(now.since(begun)),
            Phase::Idle | Phase::Work { .. } | Phase::Look { .. } => {}
        }
    }

    /// How long to rest after work that took from `begun` until now.
    #[must_use]
    pub fn rest_after(&mut self, begun: Monotonic, now: Monotonic) -> Duration {
        match self.phase {
            Phase::Look { since } if now.since(since) < LOOK_FOR => return since_end(since, now),
            Phase::Idle | Phase::Look { .. } => self.enter(Phase::Work { since: now }),
            Phase::Work { since } if now.since(since) >= WORK_FOR => {
                if self.user_count > 0 {
                    self.adapt();
                    self.enter(Phase::Look { since: now });
                    return LOOK_FOR;
                }
                self.share = SHARE_MAX;
                self.enter(Phase::Work { since: now });
            }
            Phase::Work { .. } => {}
        }
        if self.user_count == 0 {
            return Duration::ZERO;
        }
        let worked = now.since(begun);
        (worked * (SHARE_MAX - self.share) / self.share).min(REST_MAX)
    }

    /// Nothing is rebuilt any more.
    pub fn end(&mut self) {
        self.enter(Phase::Idle);
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.user_count = 0;
    }

    fn adapt(&mut self) {
        let (Some(with), Some(without)) = (self.with.quantile(PER_MILLE), self.without.quantile(PER_MILLE))
        else {
            // Not known yet: as at first.
            self.share = self.share.min(SHARE_FIRST);
            return;
        };
        let harms = with >= without + DIFFERENCE_MIN && with > without * PERCENT_MAX / 100;
        self.share = if harms { self.share * 2 / 3 } else { self.share * 5 / 4 }.clamp(SHARE_MIN, SHARE_MAX);
        // What was measured at another share counts ever less.
        self.with.forget_half();
        self.without.forget_half();
    }
}

/// What is left of a look.
fn since_end(since: Monotonic, now: Monotonic) -> Duration {
    LOOK_FOR.saturating_sub(now.since(since))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs rebuilding in pieces of 2 ms beside users who come every 5 ms and wait as `wait` says, which is told whether a
    /// piece is being worked on; the share of the last half of the time that was worked.
    fn run(seconds: u64, users: bool, wait: impl Fn(u64) -> Duration) -> f64 {
        let mut throttle = Throttle::default();
        let at = |micros: u64| Monotonic::default() + Duration::from_micros(micros);
        let (mut now, mut worked, mut next_user) = (0u64, 0u64, 0u64);
        let mut rest_until = 0;
        // The share of the last 20 ms that was worked, in thousandths: what users feel.
        let mut load = 0;
        while now < seconds * 1_000_000 {
            let works = now >= rest_until;
            load = (load * 9 + if works { 1000 } else { 0 }) / 10;
            if works {
                let begun = now;
                now += 2000;
                worked += if now > seconds * 500_000 { 2000 } else { 0 };
                rest_until = now + throttle.rest_after(at(begun), at(now)).as_micros() as u64;
            } else {
                now += 1000;
            }
            while users && next_user < now {
                let took = wait(load).as_micros() as u64;
                throttle.note_user(at(now.saturating_sub(took)), at(now));
                next_user += 5000;
            }
        }
        worked as f64 / (seconds * 500_000) as f64
    }

    #[test]
    fn without_users_nothing_rests() {
        assert!(run(20, false, |_| Duration::ZERO) > 0.99);
    }

    #[test]
    fn users_who_feel_nothing_leave_nearly_all_the_time() {
        let share = run(60, true, |_| Duration::from_micros(800));
        assert!(share > 0.8, "{share}");
    }

    #[test]
    fn users_who_wait_longer_push_it_back_until_they_do_not() {
        // From 2 ms up to 12 ms at full load: the factor is exceeded beyond a fifth.
        let share = run(120, true, |load| Duration::from_micros(2000 + load * 10));
        assert!((0.1..0.5).contains(&share), "{share}");
    }

    #[test]
    fn the_floor_is_kept_whatever_users_feel() {
        let share = run(120, true, |load| Duration::from_millis(if load > 0 { 100 } else { 1 }));
        assert!((0.02..0.2).contains(&share), "{share}");
    }
}
