//! Sorted tables: immutable runs of index entries, each in one table extent, replicated whole.
//!
//! Header, data blocks, filter, directory. Filter and directory stay in memory, so that a lookup costs no read when the key
//! is absent and one when it is there. Every structure is a frame that knows its place, and every read is verified.

pub(crate) mod block;
pub(crate) mod directory;
pub(crate) mod filter;
pub(crate) mod frame;
pub(crate) mod header;
