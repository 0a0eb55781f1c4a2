//! The index of a shard: a log-structured merge tree from keys to small values.

pub mod key;
#[cfg_attr(not(test), expect(dead_code, reason = "the index that uses it comes next"))]
mod memtable;
#[expect(dead_code, reason = "the index that uses it comes next")]
mod table;

pub use self::table::frame::Fault;
