//! Metrics: every name, unit and meaning in one place, counted per core without locks, shown in Prometheus text.
//!
//! Each core owns one [`CoreMetrics`] and is its only writer, so a count is a plain load and store on a cache line no
//! other core writes. A scrape reads all cores with relaxed loads: a sum may be a few requests behind, never torn.

mod disks;
mod histogram;
mod labels;

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use basalt_reactor::arena::ArenaUse;
use basalt_reactor::ring;

pub use self::disks::{DiskGauge, DiskGauges};
use self::histogram::Histogram;
use self::labels::LabelTable;

/// Operations told apart; further ones count as `other`.
const OPERATIONS_MAX: usize = 128;
/// Error codes told apart; further ones count as `other`.
const CODES_MAX: usize = 160;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
}

macro_rules! scalars {
    ($($(#[$doc:meta])* $variant:ident: $kind:ident $name:literal $help:literal;)*) => {
        /// A metric that is one number per core.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Scalar {
            $($(#[$doc])* $variant,)*
        }

        const SCALARS: &[(Scalar, Kind, &str, &str)] =
            &[$((Scalar::$variant, Kind::$kind, $name, $help)),*];
    };
}

scalars! {
    ConnectionsOpen: Gauge "basalt_connections_open" "Client connections open now.";
    ConnectionsAccepted: Counter "basalt_connections_accepted_total" "Client connections accepted.";
    ConnectionsRefused: Counter "basalt_connections_refused_total"
        "Client connections turned away because the cap of their core was reached.";
    AcceptErrors: Counter "basalt_accept_errors_total" "Accepts that failed, mostly for want of descriptors.";
    TlsFailures: Counter "basalt_tls_failures_total" "TLS handshakes that failed.";
    HeaderTimeouts: Counter "basalt_header_timeouts_total" "Connections closed because a request head did not arrive in time.";
    IdleTimeouts: Counter "basalt_idle_timeouts_total" "Kept-alive connections closed for silence.";
    BodyTimeouts: Counter "basalt_body_timeouts_total" "Uploads given up because the client sent too slowly.";
    ResponseTimeouts: Counter "basalt_response_timeouts_total" "Downloads given up because the client took too slowly.";
    RequestsMalformed: Counter "basalt_requests_malformed_total" "Requests refused before they were understood as HTTP.";
    RequestsInFlight: Gauge "basalt_requests_in_flight" "Requests being served now.";
    RequestBytes: Counter "basalt_request_body_bytes_total" "Request body bytes received.";
    ResponseBytes: Counter "basalt_response_body_bytes_total" "Response body bytes handed to the connection.";
    PayloadCopied: Counter "basalt_payload_copied_bytes_total"
        "Body bytes copied in user space on their way out; zero is the aim.";
    RingEnters: Counter "basalt_ring_enters_total" "io_uring_enter calls.";
    RingSubmissions: Counter "basalt_ring_submissions_total" "Submission entries handed to the kernel.";
    RingCompletions: Counter "basalt_ring_completions_total" "Completions reaped.";
    DeviceFlushes: Counter "basalt_device_flushes_total" "Writes and syncs that made a device flush its cache.";
    DiskRead: Counter "basalt_disk_read_bytes_total" "Bytes read from disks.";
    DiskWritten: Counter "basalt_disk_written_bytes_total" "Bytes written to disks.";
    NetReceived: Counter "basalt_net_received_bytes_total" "Bytes received from sockets.";
    NetSent: Counter "basalt_net_sent_bytes_total" "Bytes sent to sockets.";
    WakesSent: Counter "basalt_wakes_sent_total" "Wake-ups sent to other cores.";
    ArenaCapacity: Gauge "basalt_arena_capacity_bytes" "Size of the buffer arena.";
    ArenaUsed: Gauge "basalt_arena_used_bytes" "Bytes of the buffer arena handed out.";
    ArenaUsedMax: Gauge "basalt_arena_used_max_bytes" "Most bytes of the buffer arena ever handed out at one time.";
    ArenaWaiting: Gauge "basalt_arena_waiting" "Tasks waiting for room in the buffer arena.";
    MemoryCapacity: Gauge "basalt_request_memory_capacity_bytes" "Memory that requests can be admitted with.";
    MemoryReserved: Gauge "basalt_request_memory_reserved_bytes" "Memory reserved by requests that were admitted.";
    MemoryWaiting: Gauge "basalt_request_memory_waiting" "Requests waiting for memory.";
    MemoryRefused: Counter "basalt_request_memory_refused_total" "Requests answered SlowDown because memory was spent.";
    MeshBacklog: Gauge "basalt_mesh_backlog" "Requests of other cores queued for this one.";
    LogQueue: Gauge "basalt_log_queue" "Mutations waiting for their batch in the write-ahead log.";
    LogBytes: Gauge "basalt_log_bytes" "Bytes of log extents that are not free, one copy counted.";
    IndexBytes: Gauge "basalt_index_bytes" "Bytes of index tables on disk, one copy counted.";
    IndexEntries: Gauge "basalt_index_entries"
        "Entries of the index: objects, uploads, parts and buckets, with what newer entries hide until it is compacted.";
    MemtableBytes: Gauge "basalt_memtable_bytes" "Bytes of index entries held in memory.";
    LiveBytes: Gauge "basalt_live_bytes"
        "Bytes on disk that belong to objects and parts, before redundancy, padding and directory chunks included.";
    ExtentBytes: Gauge "basalt_extent_bytes" "Bytes on all disks of log and data extents that are not free.";
    ExtentLiveBytes: Gauge "basalt_extent_live_bytes"
        "Bytes on all disks of log and data extents that some object or part still needs.";
    CollectionMoved: Counter "basalt_collection_moved_bytes_total"
        "Bytes of objects and parts that collection has moved.";
    CollectionEmptied: Counter "basalt_collection_emptied_extents_total"
        "Extents that collection has emptied to give them back.";
    BlocksCorrupt: Counter "basalt_blocks_corrupt_total"
        "Blocks of objects whose checksum did not match what was read.";
    BlocksRestored: Counter "basalt_blocks_restored_total"
        "Blocks of objects that a read restored from redundancy.";
    BlocksRepaired: Counter "basalt_blocks_repaired_total"
        "Damaged pieces of any structure that were written again in place, found by reads or by scrub.";
    BlocksUnrepairable: Counter "basalt_blocks_unrepairable_total"
        "Damaged pieces of any structure that redundancy could not restore, or whose disk refused the write.";
    ScrubBytes: Counter "basalt_scrub_bytes_total" "Bytes that scrub has read to verify them, every copy counted.";
    ScrubOldest: Gauge "basalt_scrub_oldest_unverified_seconds"
        "How long ago the byte that has waited longest was verified or written, at most.";
    ReadsHedged: Counter "basalt_reads_hedged_total"
        "Reads of a disk that were late, so that others were asked for the same bytes.";
    HedgesWon: Counter "basalt_hedges_won_total" "Late reads that the others overtook.";
    FailuresTolerated: Gauge "basalt_failures_tolerated"
        "Disks that can still fail without losing data, as this core sees it; 0 also when a shard takes no writes.";
}

const _: () = assert!(SCALARS.len() <= SCALAR_SLOTS);
/// Room for the table above.
const SCALAR_SLOTS: usize = 64;

/// Per-operation measurements.
#[derive(Default)]
struct Operation {
    first_byte: Histogram,
    total: Histogram,
}

#[derive(Default)]
struct Count(AtomicU64);

/// One core's metrics; only that core writes them.
#[repr(align(128))]
pub struct CoreMetrics {
    scalars: [AtomicU64; SCALAR_SLOTS],
    operations: LabelTable<Operation, OPERATIONS_MAX>,
    codes: LabelTable<Count, CODES_MAX>,
}

/// All cores' metrics. Cloning shares them.
#[derive(Clone)]
pub struct Metrics {
    cores: Arc<[CoreMetrics]>,
    disks: Arc<DiskGauges>,
}

impl Metrics {
    pub fn new(cores: usize) -> Metrics {
        let disks = Arc::new(DiskGauges::new());
        Metrics { cores: (0..cores).map(|_| CoreMetrics::new()).collect(), disks }
    }

    /// The part that the core with this index writes.
    ///
    /// # Panics
    /// If there are fewer cores.
    pub fn core(&self, index: usize) -> &CoreMetrics {
        &self.cores[index]
    }

    /// The figures of the disks, for the one core that writes them.
    pub fn disks(&self) -> &DiskGauges {
        &self.disks
    }

    /// The sum of a scalar over all cores.
    pub fn sum(&self, scalar: Scalar) -> u64 {
        self.cores.iter().map(|core| core.get(scalar)).sum()
    }

    /// The Prometheus text exposition, version 0.0.4. `log_lines_dropped` comes from the log queue.
    pub fn render(&self, log_lines_dropped: u64) -> String {
        let mut out = String::with_capacity(64 << 10);
        header(&mut out, "basalt_info", "gauge", "Version of the server.");
        line(&mut out, format_args!("basalt_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION")));
        header(
            &mut out,
            "basalt_log_lines_dropped_total",
            "counter",
            "Log lines dropped because their queue was full.",
        );
        line(&mut out, format_args!("basalt_log_lines_dropped_total {log_lines_dropped}"));
        for (scalar, kind, name, help) in SCALARS {
            header(&mut out, name, if *kind == Kind::Counter { "counter" } else { "gauge" }, help);
            for (index, core) in self.cores.iter().enumerate() {
                line(&mut out, format_args!("{name}{{core=\"{index}\"}} {}", core.get(*scalar)));
            }
        }
        self.disks.render(&mut out);
        self.render_codes(&mut out);
        self.render_operations(&mut out);
        out
    }

    fn render_codes(&self, out: &mut String) {
        header(out, "basalt_errors_total", "counter", "Requests answered with an error, by S3 error code.");
        for name in names(self.cores.iter().flat_map(|core| core.codes.names())) {
            let sum: u64 = self
                .cores
                .iter()
                .filter_map(|core| core.codes.find(name))
                .map(|count| count.0.load(Ordering::Relaxed))
                .sum();
            line(out, format_args!("basalt_errors_total{{code=\"{name}\"}} {sum}"));
        }
    }

    fn render_operations(&self, out: &mut String) {
        let operations = names(self.cores.iter().flat_map(|core| core.operations.names()));
        let of = |name| self.cores.iter().filter_map(move |core| core.operations.find(name));
        header(
            out,
            "basalt_request_duration_seconds",
            "histogram",
            "From a request's head to the last byte of its answer.",
        );
        for name in &operations {
            histogram::render(out, "basalt_request_duration_seconds", name, of(name).map(|op| &op.total));
        }
        header(
            out,
            "basalt_first_byte_seconds",
            "histogram",
            "From a request's head to the first byte of its answer.",
        );
        for name in &operations {
            histogram::render(out, "basalt_first_byte_seconds", name, of(name).map(|op| &op.first_byte));
        }
    }
}

impl CoreMetrics {
    fn new() -> CoreMetrics {
        CoreMetrics {
            scalars: [const { AtomicU64::new(0) }; SCALAR_SLOTS],
            operations: LabelTable::new(),
            codes: LabelTable::new(),
        }
    }

    /// Adds to a counter. Only this core's thread may.
    pub fn add(&self, scalar: Scalar, count: u64) {
        add(&self.scalars[scalar as usize], count);
    }

    /// Takes from a gauge. Only this core's thread may.
    pub fn subtract(&self, scalar: Scalar, count: u64) {
        let slot = &self.scalars[scalar as usize];
        slot.store(slot.load(Ordering::Relaxed).saturating_sub(count), Ordering::Relaxed);
    }

    /// Sets a gauge, or a counter that is counted elsewhere. Only this core's thread may.
    pub fn set(&self, scalar: Scalar, value: u64) {
        self.scalars[scalar as usize].store(value, Ordering::Relaxed);
    }

    pub fn get(&self, scalar: Scalar) -> u64 {
        self.scalars[scalar as usize].load(Ordering::Relaxed)
    }

    /// Counts a finished request.
    pub fn request(
        &self,
        operation: &'static str,
        code: Option<&'static str>,
        first_byte: Option<Duration>,
        total: Duration,
    ) {
        let slot = self.operations.get(operation);
        slot.total.record(total);
        if let Some(first_byte) = first_byte {
            slot.first_byte.record(first_byte);
        }
        if let Some(code) = code {
            add(&self.codes.get(code).0, 1);
        }
    }

    /// Takes over what the ring and the arena count themselves.
    pub fn sample(&self, ring: &ring::Stats, arena: &ArenaUse) {
        self.set(Scalar::RingEnters, ring.enters);
        self.set(Scalar::RingSubmissions, ring.submissions);
        self.set(Scalar::RingCompletions, ring.completions);
        self.set(Scalar::DeviceFlushes, ring.flushes);
        self.set(Scalar::DiskRead, ring.disk_bytes_read);
        self.set(Scalar::DiskWritten, ring.disk_bytes_written);
        self.set(Scalar::NetReceived, ring.net_bytes_received);
        self.set(Scalar::NetSent, ring.net_bytes_sent);
        self.set(Scalar::PayloadCopied, ring.payload_bytes_copied);
        self.set(Scalar::WakesSent, ring.wakes_sent);
        self.set(Scalar::ArenaCapacity, arena.capacity as u64);
        self.set(Scalar::ArenaUsed, arena.used as u64);
        self.set(Scalar::ArenaUsedMax, arena.used_max as u64);
        self.set(Scalar::ArenaWaiting, arena.waiting as u64);
    }
}

/// One writer per slot, so no read-modify-write instruction is needed.
fn add(slot: &AtomicU64, count: u64) {
    slot.store(slot.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
}

fn names<'a>(all: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut names: Vec<&str> = all.collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn header(out: &mut String, name: &str, kind: &str, help: &str) {
    line(out, format_args!("# HELP {name} {help}"));
    line(out, format_args!("# TYPE {name} {kind}"));
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("a String takes everything");
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_carry_their_unit() {
        let mut seen = Vec::new();
        for (scalar, kind, name, help) in SCALARS {
            assert!(!seen.contains(name), "{name} twice");
            seen.push(name);
            assert!(name.starts_with("basalt_"), "{name}");
            assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}");
            assert!(help.ends_with('.'), "{name}: {help}");
            assert_eq!(SCALARS[*scalar as usize].0, *scalar, "the table is indexed by the variant");
        }
    }

    #[test]
    fn a_scrape_gathers_every_core() {
        let metrics = Metrics::new(2);
        metrics.core(0).add(Scalar::ConnectionsAccepted, 3);
        metrics.core(1).add(Scalar::ConnectionsAccepted, 4);
        assert_eq!(metrics.sum(Scalar::ConnectionsAccepted), 7);
        let ms = Duration::from_millis;
        metrics.core(0).request("GetObject", None, Some(ms(1)), ms(2));
        metrics.core(1).request("GetObject", Some("NoSuchKey"), Some(ms(1)), ms(3));
        metrics.core(1).request("PutObject", Some("NoSuchKey"), None, ms(3));
        let text = metrics.render(5);
        for wanted in [
            "basalt_connections_accepted_total{core=\"0\"} 3\n",
            "basalt_connections_accepted_total{core=\"1\"} 4\n",
            "basalt_errors_total{code=\"NoSuchKey\"} 2\n",
            "basalt_request_duration_seconds_count{operation=\"GetObject\"} 2\n",
            "basalt_request_duration_seconds_sum{operation=\"GetObject\"} 0.005\n",
            "basalt_request_duration_seconds_bucket{operation=\"GetObject\",le=\"+Inf\"} 2\n",
            "basalt_first_byte_seconds_count{operation=\"PutObject\"} 0\n",
            "basalt_log_lines_dropped_total 5\n",
        ] {
            assert!(text.contains(wanted), "{wanted} is missing in\n{text}");
        }
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (_, value) = line.rsplit_once(' ').expect("name and value");
            assert!(value.parse::<f64>().is_ok(), "{line}");
        }
    }
}
