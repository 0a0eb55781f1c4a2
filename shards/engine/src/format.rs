//! What each structure looks like on disk: explicit little-endian layouts, nothing else.
//!
//! Encoders and decoders are pure and know no disk. Whatever they decode came from a medium that may lie, so every
//! length is bounded, every count has a named maximum, and a mismatch is an error with its evidence, never a panic.
//! `docs/DATA_FORMAT.md` gives the bytes in prose; the golden fixtures in the tests below hold them.

pub mod batch;
pub mod codec;
pub mod frame;
pub mod log_header;
pub mod manifest;
pub mod pack;
pub mod part_list;
pub mod record;
pub mod root;
pub mod superblock;
