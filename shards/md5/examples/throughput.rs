//! What each kernel of this machine computes, by the number of streams: in sum, in GB/s.
//!
//! `throughput [MILLISECONDS [KIB]]` spends that long on each figure (20 unless told) and prints the best of its runs. Each
//! stream has KIB KiB (64 unless told): many times sixteen of them lie in no cache.

use std::hint::black_box;
use std::time::{Duration, Instant};

use basalt_md5::kernel::START;
use basalt_md5::together::{Source, advance_all};
use basalt_md5::{BLOCK_LEN, Block, Kernel, State};

struct Bytes<'a> {
    state: State,
    rest: &'a [Block],
}

impl Source for Bytes<'_> {
    fn state(&self) -> State {
        self.state
    }
    fn set_state(&mut self, state: State) {
        self.state = state;
    }
    fn front(&self) -> &[Block] {
        self.rest
    }
    fn consume(&mut self, count: usize) {
        self.rest = &self.rest[count..];
    }
}

fn main() {
    let argument = |index| std::env::args().nth(index).and_then(|number| number.parse::<usize>().ok());
    let millis = argument(1).unwrap_or(20) as u64;
    let len = argument(2).unwrap_or(64) << 10;
    let data: Vec<Vec<Block>> =
        (0..64).map(|stream| vec![[stream as u8; BLOCK_LEN]; len / BLOCK_LEN]).collect();
    let counts = [1, 2, 3, 4, 8, 16, 32, 64];
    print!("{:>8}", "streams");
    counts.iter().for_each(|count| print!("{count:>7}"));
    println!();
    for kernel in Kernel::available() {
        print!("{:>8}", kernel.name());
        for count in counts {
            let best = best_run(kernel, &data[..count], Duration::from_millis(millis));
            print!("{:>7.2}", (count * len) as f64 / best.as_secs_f64() / 1e9);
        }
        println!();
    }
}

fn best_run(kernel: Kernel, data: &[Vec<Block>], time: Duration) -> Duration {
    let begin = Instant::now();
    let mut best = Duration::MAX;
    while begin.elapsed() < time {
        let mut sources: Vec<_> = data.iter().map(|blocks| Bytes { state: START, rest: blocks }).collect();
        let start = Instant::now();
        advance_all(kernel, black_box(&mut sources));
        best = best.min(start.elapsed());
    }
    best
}
