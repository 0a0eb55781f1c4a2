//! Time by the clock, or by what the thread has run: other load on the machine costs only the former.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

#[derive(Clone, Copy)]
pub(crate) enum Clock {
    Elapsed,
    /// CPU time of the calling thread, user and system. Work the kernel does in threads of its own is not in it.
    Cpu,
}

impl Clock {
    pub(crate) fn start(self) -> Stopwatch {
        Stopwatch { clock: self, at: self.now() }
    }

    fn now(self) -> Duration {
        let id = match self {
            Clock::Elapsed => ClockId::Monotonic,
            Clock::Cpu => ClockId::ThreadCPUTime,
        };
        clock_gettime(id).try_into().expect("these clocks do not run below zero")
    }
}

pub(crate) struct Stopwatch {
    clock: Clock,
    at: Duration,
}

impl Stopwatch {
    pub(crate) fn elapsed(&self) -> Duration {
        self.clock.now() - self.at
    }
}
