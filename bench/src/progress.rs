//! The progress bar: on a terminal only, and never on standard output, where the result goes.

use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::plan::Plan;
use crate::size::format_bytes;

/// Shows how far a phase is.
pub(crate) struct Progress {
    bar: ProgressBar,
    /// Milliseconds when time bounds the phase; else operations.
    by_time: bool,
}

impl Progress {
    pub(crate) fn new(
        plan: &Plan,
        what: &'static str,
        duration: Option<Duration>,
        op_count: Option<u64>,
    ) -> Self {
        if plan.quiet || !std::io::stderr().is_terminal() {
            return Self { bar: ProgressBar::hidden(), by_time: duration.is_some() };
        }
        let length = duration.map(|duration| duration.as_millis() as u64).or(op_count);
        let bar = ProgressBar::new(length.unwrap_or(0));
        let style = ProgressStyle::with_template("{prefix:10} [{bar:30}] {msg}").expect("a valid template");
        bar.set_style(style.progress_chars("=> "));
        bar.set_prefix(what);
        Self { bar, by_time: duration.is_some() }
    }

    pub(crate) fn show(&self, elapsed: Duration, op_count: u64, bytes: u64) {
        if self.bar.is_hidden() {
            return;
        }
        self.bar.set_position(if self.by_time { elapsed.as_millis() as u64 } else { op_count });
        let seconds = elapsed.as_secs_f64().max(0.001);
        self.bar.set_message(format!(
            "{:.0} ops/s, {}/s",
            op_count as f64 / seconds,
            format_bytes(bytes as f64 / seconds)
        ));
    }

    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
