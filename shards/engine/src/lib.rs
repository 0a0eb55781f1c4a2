//! The storage engine of Basalt: one erasure set's log, extents, index and recovery. Knows no HTTP and no S3.
//!
//! A shard owns its keys alone: one log, one index, one extent table. What a reader needs first: [`extent`] says
//! what addresses mean, [`body`] how bytes become stripes, [`index`] how keys are found, [`format`] how each
//! structure looks on disk. `docs/DATA_FORMAT.md` gives every byte.

pub mod body;
pub mod checksum;
pub mod extent;
pub mod format;
pub mod index;
