//! Erasure coding of one stripe with strips of 64 KiB: parity on the way in, and one lost strip restored.

use std::hint::black_box;

use basalt_engine::body::stripe::Codec;
use criterion::{Criterion, Throughput};

use crate::scatter;

const STRIP_LEN: usize = 64 << 10;

/// 1+0 has no parity: it is what the call itself costs.
const CODES: [(u8, u8); 3] = [(1, 0), (4, 2), (10, 4)];

fn columns(k: u8, m: u8) -> Vec<Vec<u8>> {
    let strip =
        |column: u64| (0..STRIP_LEN as u64).map(|at| scatter(column << 32 | at) as u8).collect::<Vec<u8>>();
    (0..u64::from(k + m)).map(strip).collect()
}

pub(crate) fn run(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("stripe");
    for (k, m) in CODES {
        group.throughput(Throughput::Bytes(u64::from(k) * STRIP_LEN as u64));
        let (mut codec, mut columns) = (Codec::new(k, m), columns(k, m));
        group.bench_function(format!("encode {k}+{m}"), |bencher| {
            bencher.iter(|| codec.encode(black_box(&mut columns), 0, STRIP_LEN));
        });
    }
    for (k, m) in CODES.into_iter().filter(|(_, m)| *m > 0) {
        group.throughput(Throughput::Bytes(STRIP_LEN as u64));
        let (mut codec, mut columns) = (Codec::new(k, m), columns(k, m));
        codec.encode(&mut columns, 0, STRIP_LEN);
        let present: Vec<(usize, &[u8])> =
            (1..=usize::from(k)).map(|column| (column, columns[column].as_slice())).collect();
        let mut restored = vec![0; STRIP_LEN];
        group.bench_function(format!("reconstruct 1 of {k}+{m}"), |bencher| {
            bencher.iter(|| codec.reconstruct(black_box(&present), &mut [(0, restored.as_mut_slice())]));
        });
    }
    group.finish();
}
