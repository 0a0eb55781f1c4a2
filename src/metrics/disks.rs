//! What is known of each disk, as gauges with its place among the members for a label.
//!
//! One core writes them, whatever core asks; places that no disk has are not shown.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::{header, line};
use crate::config::disks::DISKS_MAX;

macro_rules! disk_gauges {
    ($($(#[$doc:meta])* $variant:ident: $kind:literal $name:literal $help:literal;)*) => {
        /// A figure of one disk.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum DiskGauge {
            $($(#[$doc])* $variant,)*
        }

        const GAUGES: &[(DiskGauge, &str, &str, &str)] = &[$((DiskGauge::$variant, $kind, $name, $help)),*];
    };
}

disk_gauges! {
    State: "gauge" "basalt_disk_state" "0 in sync, 1 behind and being rebuilt, 2 out.";
    Capacity: "gauge" "basalt_disk_capacity_bytes" "Bytes of the disk's file system.";
    Available: "gauge" "basalt_disk_available_bytes" "Bytes of the disk's file system that can be had.";
    RebuiltBytes: "gauge" "basalt_disk_rebuilt_bytes" "Bytes of a disk that is behind that are there again.";
    RebuildLeft: "gauge" "basalt_disk_rebuild_left_bytes" "Bytes of a disk that is behind that are still to be made.";
    RebuildRate: "gauge" "basalt_disk_rebuild_bytes_per_second" "How fast a disk that is behind is rebuilt.";
    RebuildSeconds: "gauge" "basalt_disk_rebuild_left_seconds"
        "How long the rebuilding takes at the present rate; 0 when nothing is rebuilt, or nothing moves.";
    ReadMicroseconds: "gauge" "basalt_disk_read_microseconds"
        "How long reads of up to 64 KiB took lately, on average.";
    ReadErrors: "counter" "basalt_disk_read_errors_total" "Reads that the device failed.";
    Damaged: "counter" "basalt_disk_damaged_blocks_total" "Blocks found damaged, by reads or by scrub.";
}

const GAUGE_COUNT: usize = 10;
const _: () = assert!(GAUGES.len() == GAUGE_COUNT);

/// The gauges of all disks.
pub struct DiskGauges {
    count: AtomicUsize,
    disks: Vec<[AtomicU64; GAUGE_COUNT]>,
}

impl DiskGauges {
    pub(super) fn new() -> DiskGauges {
        let disks = (0..DISKS_MAX).map(|_| [const { AtomicU64::new(0) }; GAUGE_COUNT]).collect();
        DiskGauges { count: AtomicUsize::new(0), disks }
    }

    /// There are this many disks; further places are not shown.
    pub fn set_count(&self, count: usize) {
        self.count.store(count.min(DISKS_MAX), Ordering::Relaxed);
    }

    /// Sets a figure of the disk at `place`.
    pub fn set(&self, place: usize, gauge: DiskGauge, value: u64) {
        if let Some(disk) = self.disks.get(place) {
            disk[gauge as usize].store(value, Ordering::Relaxed);
        }
    }

    pub(super) fn render(&self, out: &mut String) {
        let count = self.count.load(Ordering::Relaxed);
        for (gauge, kind, name, help) in GAUGES {
            header(out, name, kind, help);
            for (place, disk) in self.disks.iter().take(count).enumerate() {
                let value = disk[*gauge as usize].load(Ordering::Relaxed);
                line(out, format_args!("{name}{{disk=\"{place}\"}} {value}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_disks_that_are_there_are_shown() {
        let gauges = DiskGauges::new();
        let render = || {
            let mut out = String::new();
            gauges.render(&mut out);
            out
        };
        assert!(!render().contains("disk="));
        gauges.set_count(2);
        gauges.set(1, DiskGauge::Damaged, 7);
        gauges.set(DISKS_MAX, DiskGauge::Damaged, 9);
        let text = render();
        assert!(text.contains("basalt_disk_damaged_blocks_total{disk=\"1\"} 7\n"), "{text}");
        assert!(text.contains("basalt_disk_state{disk=\"0\"} 0\n") && !text.contains("disk=\"2\""), "{text}");
        for (gauge, kind, name, help) in GAUGES {
            assert_eq!(GAUGES[*gauge as usize].0, *gauge, "the table is indexed by the variant");
            assert_eq!(name.ends_with("_total"), *kind == "counter", "{name}");
            assert!(help.ends_with('.'), "{name}");
        }
    }
}
