//! Durations as they are written on the command line: `500ms`, `10s`, `2m`, `1h`.

use std::time::Duration;

/// Longer than a day is a mistake.
const DURATION_MAX: Duration = Duration::from_secs(86_400);

/// Parses a duration; a number without a unit is seconds. The error is a sentence for the command line.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let seconds_per_unit = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3_600.0,
        other => return Err(format!("unknown unit {other:?}: use ms, s, m or h")),
    };
    let number: f64 =
        number.parse().map_err(|_| format!("{text:?} is not a duration: write 500ms, 10s or 2m"))?;
    Duration::try_from_secs_f64(number * seconds_per_unit)
        .ok()
        .filter(|duration| *duration <= DURATION_MAX)
        .ok_or_else(|| format!("{text} is longer than a day"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, millis) in [("500ms", 500), ("10s", 10_000), ("3", 3_000), ("1.5m", 90_000), ("0s", 0)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "s", "-1s", "10x", "25h", "1e9s", "1.1.1s"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
