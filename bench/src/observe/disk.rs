//! Reads, writes, flushes and busy time of a block device, from /sys/block/DEVICE/stat
//! (Documentation/block/stat.rst of the kernel).

use std::io;

/// Sectors of the statistics are of 512 bytes, whatever the device's are.
const SECTOR_BYTES: u64 = 512;
/// Flushes are counted since Linux 5.5.
const FIELD_COUNT: usize = 17;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSample {
    device: String,
    fields: [u64; FIELD_COUNT],
}

/// What a device did in the window.
#[derive(Clone, Debug, PartialEq)]
pub struct DiskUsage {
    pub device: String,
    pub read_count: u64,
    pub read_bytes: u64,
    pub write_count: u64,
    pub written_bytes: u64,
    pub flush_count: u64,
    /// Time with at least one request in flight.
    pub busy_seconds: f64,
}

impl DiskSample {
    pub fn read(device: &str) -> io::Result<Self> {
        let text = std::fs::read_to_string(format!("/sys/block/{device}/stat"))?;
        Self::parse(device, &text).ok_or_else(|| io::Error::other("the statistics are not as documented"))
    }

    fn parse(device: &str, text: &str) -> Option<Self> {
        let mut fields = [0; FIELD_COUNT];
        let mut words = text.split_ascii_whitespace();
        for field in &mut fields {
            *field = words.next()?.parse().ok()?;
        }
        Some(Self { device: device.to_owned(), fields })
    }
}

impl DiskUsage {
    pub fn between(before: &DiskSample, after: &DiskSample) -> Self {
        let spent = |field: usize| after.fields[field].wrapping_sub(before.fields[field]);
        Self {
            device: after.device.clone(),
            read_count: spent(0),
            read_bytes: spent(2) * SECTOR_BYTES,
            write_count: spent(4),
            written_bytes: spent(6) * SECTOR_BYTES,
            flush_count: spent(15),
            busy_seconds: spent(9) as f64 / 1e3,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences() {
        let sample = |text| DiskSample::parse("vda", text).expect("as documented");
        let before = sample("1 2 8 4 5 6 16 8 0 100 11 0 0 0 0 3 17");
        let after = sample("4 2 24 4 9 6 80 8 0 600 11 0 0 0 0 10 17\n");
        let expected = DiskUsage {
            device: "vda".to_owned(),
            read_count: 3,
            read_bytes: 16 * 512,
            write_count: 4,
            written_bytes: 64 * 512,
            flush_count: 7,
            busy_seconds: 0.5,
        };
        assert_eq!(DiskUsage::between(&before, &after), expected);
        assert_eq!(DiskSample::parse("old", "1 2 3 4 5 6 7 8 9 10 11"), None);
    }
}
