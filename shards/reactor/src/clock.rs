//! Points in time: monotonic for durations and deadlines, wall for what people and version ids see.
//!
//! Both are plain nanosecond counts, so that the simulated world can own them.

use std::time::Duration;

/// Nanoseconds since an arbitrary start of this process; never goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Monotonic(pub u64);

/// Nanoseconds since 1970-01-01T00:00:00Z; an operator may move it either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct WallTime(pub u64);

impl Monotonic {
    /// Time since `earlier`, zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Monotonic) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl std::ops::Add<Duration> for Monotonic {
    type Output = Monotonic;

    fn add(self, duration: Duration) -> Monotonic {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Monotonic(self.0.saturating_add(nanos))
    }
}

impl WallTime {
    /// Whole seconds since the Unix epoch.
    #[must_use]
    pub fn unix_secs(self) -> u64 {
        self.0 / 1_000_000_000
    }
}
