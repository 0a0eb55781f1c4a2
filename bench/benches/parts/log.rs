//! The log's unit of durability: a batch of small objects, assembled and written.
//!
//! Assembled as the format says, from the engine's own encoders: records, checksums, header, payload, in one aligned buffer.
//! What a whole durable PUT costs, group commit and index included, is in `engine`.

use std::rc::Rc;
use std::time::Duration;

use basalt_engine::checksum::crc32c;
use basalt_engine::extent::ExtentId;
use basalt_engine::format::batch::{BATCH_HEADER_LEN, BatchHeader};
use basalt_engine::format::codec::Encoder;
use basalt_engine::format::record::{InlineSpan, LiveDelta, Record};
use basalt_engine::index::key::{VersionOrder, object};
use basalt_reactor::disk::BLOCK_LEN;
use basalt_reactor::{Buf, Core, Disk, File, WriteMode};
use criterion::{Criterion, Throughput};

use crate::ring_thread::RingThread;
use crate::stopwatch::Clock;
use crate::workspace::Workspace;
use crate::{scaled, scatter};

const OBJECT_LEN: usize = 4 << 10;
/// What a record of a small object comes to, bytes.
const VALUE_LEN: usize = 200;
const EXTENT_LEN: u64 = 64 << 20;
const BATCH_COUNTS: [usize; 3] = [1, 16, 64];

/// A prewritten log extent and the place of the next batch in it.
struct Log {
    core: Core,
    file: File,
    extent_len: u64,
    _workspace: Workspace,
}

async fn open(core: Core) -> Log {
    let workspace = Workspace::new("log");
    let disk = Disk::open(&core, workspace.path()).expect("the directory takes O_DIRECT");
    let file = disk.create_file("log").expect("a new file");
    let extent_len = scaled(EXTENT_LEN, 2 << 20);
    // Written once, as the shard does with its log: commits then change no metadata of the file.
    let mut zeros = core.arena().alloc(1 << 20).await;
    zeros.fill(0);
    let zeros = zeros.freeze();
    for offset in (0..extent_len).step_by(1 << 20) {
        file.write_at(zeros.clone(), offset, WriteMode::Volatile).await.expect("the disk has room");
    }
    file.sync().await.expect("the disk syncs");
    Log { core, file, extent_len, _workspace: workspace }
}

fn record(number: u64, offset: usize) -> Record {
    let name = format!("photos/{:03}/image-{:016x}.jpeg", number % 1000, scatter(number));
    let end_block = (offset + OBJECT_LEN).div_ceil(BLOCK_LEN) as u32;
    Record::Put {
        key: object(1, name.as_bytes(), VersionOrder::NULL),
        value: vec![7; VALUE_LEN],
        inline: Some(InlineSpan { offset: offset as u32, len: OBJECT_LEN as u32 }),
        deltas: vec![LiveDelta { extent: ExtentId(1), bytes: OBJECT_LEN as i64, end_block }],
    }
}

/// The batch as it goes to the disk, and what the next one names as its predecessor.
async fn assemble(core: &Core, records: &[Record], bodies: &[u8], chain: (u64, [u8; 16])) -> (Buf, [u8; 16]) {
    let mut out = Encoder::new();
    for record in records {
        record.encode(&mut out);
    }
    let encoded = out.finish();
    let payload_start = BATCH_HEADER_LEN + encoded.len();
    let len = payload_start + bodies.len();
    let mut buf = core.arena().alloc(len.next_multiple_of(BLOCK_LEN)).await;
    buf.set_len(len.next_multiple_of(BLOCK_LEN));
    buf[BATCH_HEADER_LEN..payload_start].copy_from_slice(&encoded);
    buf[payload_start..len].copy_from_slice(bodies);
    buf[len..].fill(0);
    let header = BatchHeader {
        shard: 0,
        extent: ExtentId(1),
        nonce: [3; 16],
        epoch: 1,
        sequence: chain.0,
        previous: chain.1,
        clock: chain.0,
        record_count: records.len() as u32,
        records_len: encoded.len() as u32,
        payload_len: bodies.len() as u32,
        records_crc: crc32c(&encoded),
        payload_crc: crc32c(bodies),
    };
    buf[..BATCH_HEADER_LEN].copy_from_slice(&header.encode());
    (buf, header.hash())
}

/// Assembles `count` batches one after the other, and with `durable` appends each before the next.
async fn append(log: Rc<Log>, batch_len: usize, count: u64, clock: Clock, durable: bool) -> Duration {
    let records: Vec<Record> =
        (0..batch_len).map(|number| record(number as u64, number * OBJECT_LEN)).collect();
    let bodies: Vec<u8> = (0..batch_len * OBJECT_LEN).map(|at| scatter(at as u64) as u8).collect();
    let (mut previous, mut offset) = ([0; 16], 0);
    let watch = clock.start();
    for sequence in 0..count {
        let (buf, hash) = assemble(&log.core, &records, &bodies, (sequence, previous)).await;
        previous = hash;
        if durable {
            let len = buf.len() as u64;
            if offset + len > log.extent_len {
                offset = 0;
            }
            let written = log.file.write_at(buf.freeze(), offset, WriteMode::Stable).await;
            written.expect("the disk takes a batch");
            offset += len;
        }
    }
    watch.elapsed()
}

pub(crate) fn run(criterion: &mut Criterion) {
    let log = RingThread::start(open);
    let mut group = criterion.benchmark_group("log");
    let kinds = [
        ("assemble", Clock::Cpu, false),
        ("durable append, elapsed", Clock::Elapsed, true),
        ("durable append, CPU", Clock::Cpu, true),
    ];
    for (what, clock, durable) in kinds {
        for batch_len in BATCH_COUNTS {
            group.throughput(Throughput::Elements(batch_len as u64));
            group.bench_function(format!("{what}, {batch_len} x 4 KiB"), |bencher| {
                bencher.iter_custom(|count| {
                    log.measure(move |log| append(log, batch_len, count, clock, durable))
                });
            });
        }
    }
    group.finish();
}
