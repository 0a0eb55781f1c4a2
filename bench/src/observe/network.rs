//! Bytes over network links with a known speed, from /sys/class/net. Loopback and most virtual links state
//! no speed and are no limit that could be named.

use std::fs;

/// Links that are looked at.
const LINKS_MAX: usize = 256;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkSample {
    name: String,
    bits_per_second: u64,
    received_bytes: u64,
    sent_bytes: u64,
}

/// What went over a link in the window.
#[derive(Clone, Debug, PartialEq)]
pub struct LinkUsage {
    pub name: String,
    /// Per direction.
    pub bits_per_second: u64,
    pub received_bytes: u64,
    pub sent_bytes: u64,
}

impl LinkSample {
    pub fn read_all() -> Vec<Self> {
        let Ok(entries) = fs::read_dir("/sys/class/net") else { return Vec::new() };
        let links = entries.take(LINKS_MAX).filter_map(|entry| {
            let entry = entry.ok()?;
            let number = |file: &str| -> Option<i64> {
                fs::read_to_string(entry.path().join(file)).ok()?.trim().parse().ok()
            };
            // -1 stands for "unknown".
            let megabits = number("speed").filter(|speed| *speed > 0)?;
            Some(Self {
                name: entry.file_name().to_string_lossy().into_owned(),
                bits_per_second: megabits.unsigned_abs() * 1_000_000,
                received_bytes: number("statistics/rx_bytes")?.unsigned_abs(),
                sent_bytes: number("statistics/tx_bytes")?.unsigned_abs(),
            })
        });
        links.collect()
    }
}

impl LinkUsage {
    pub fn between(before: &[LinkSample], after: &[LinkSample]) -> Vec<Self> {
        let usage = |after: &LinkSample| {
            let before = before.iter().find(|before| before.name == after.name)?;
            Some(Self {
                name: after.name.clone(),
                bits_per_second: after.bits_per_second,
                received_bytes: after.received_bytes.saturating_sub(before.received_bytes),
                sent_bytes: after.sent_bytes.saturating_sub(before.sent_bytes),
            })
        };
        after.iter().filter_map(usage).collect()
    }

    /// Of the busier direction, between 0 and 1.
    pub fn utilisation(&self, seconds: f64) -> f64 {
        let bits = self.received_bytes.max(self.sent_bytes) as f64 * 8.0;
        bits / (self.bits_per_second as f64 * seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_busier_direction_counts() {
        let link = |received_bytes, sent_bytes| LinkSample {
            name: "eth0".to_owned(),
            bits_per_second: 1_000_000_000,
            received_bytes,
            sent_bytes,
        };
        let usage = LinkUsage::between(&[link(0, 0)], &[link(125_000_000, 62_500_000)]);
        assert_eq!(usage[0].utilisation(2.0), 0.5);
    }
}
