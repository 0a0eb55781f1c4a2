//! Verifying a block: its CRC32C, on every byte read from a disk and every byte written to one.

use std::hint::black_box;

use basalt_engine::checksum::crc32c;
use criterion::{Criterion, Throughput};

use crate::scatter;

pub(crate) fn run(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("verify");
    for (name, len) in [("block of 4 KiB", 4_u64 << 10), ("block of 64 KiB", 64 << 10)] {
        let block: Vec<u8> = (0..len).map(|at| scatter(at) as u8).collect();
        let expected = crc32c(&block);
        group.throughput(Throughput::Bytes(len));
        group.bench_function(name, |bencher| bencher.iter(|| crc32c(black_box(&block)) == expected));
    }
    group.finish();
}
