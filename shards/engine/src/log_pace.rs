//! Log lines that many requests would write at once: so many per second, and how many were left out.

use std::cell::Cell;
use std::time::Duration;

use basalt_reactor::Monotonic;

const SECOND: Duration = Duration::from_secs(1);

/// Paces the lines of one kind.
#[derive(Debug)]
pub struct LogPace {
    count_max: u32,
    /// When the present second began, and lines written in it.
    second: Cell<Option<Monotonic>>,
    count: Cell<u32>,
    left_out: Cell<u64>,
}

impl LogPace {
    /// At most `count_max` lines in a second.
    #[must_use]
    pub fn new(count_max: u32) -> LogPace {
        LogPace { count_max, second: Cell::new(None), count: Cell::new(0), left_out: Cell::new(0) }
    }

    /// Whether a line may be written now; if so, how many were left out since the last one.
    pub fn admit(&self, now: Monotonic) -> Option<u64> {
        if self.second.get().is_none_or(|began| now.since(began) >= SECOND) {
            self.second.set(Some(now));
            self.count.set(0);
        }
        if self.count.get() >= self.count_max {
            self.left_out.set(self.left_out.get() + 1);
            return None;
        }
        self.count.set(self.count.get() + 1);
        Some(self.left_out.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_lines_a_second_and_the_others_are_counted() {
        let pace = LogPace::new(2);
        let start = Monotonic::default();
        let at = |millis| pace.admit(start + Duration::from_millis(millis));
        assert_eq!([at(0), at(1), at(2), at(999)], [Some(0), Some(0), None, None]);
        assert_eq!([at(1000), at(1500), at(1600)], [Some(2), Some(0), None]);
        assert_eq!(at(60_000), Some(1));
    }
}
