//! MD5 (RFC 1321) of many streams at once.
//!
//! MD5 is a chain: every step needs the one before, so a core computes one stream at 0.9 GB/s however wide it is. What a
//! core can do is compute many streams side by side, one per lane of its vector registers, at the price of one and a
//! half. An S3 server has many uploads at a time and owes each an MD5, which is its ETag; [`shared`] brings their bytes
//! together, [`together`] deals them to the lanes and [`kernel`] is the arithmetic.
//!
//! Pure computation: no I/O, no tasks, no clock.

#[expect(unsafe_code, reason = "vector loads, and calls that the detection of the CPU's features guards")]
pub mod kernel;
mod md5;
pub mod shared;
pub mod together;

pub use self::kernel::{BLOCK_LEN, Block, Kernel, State};
pub use self::md5::Md5;
