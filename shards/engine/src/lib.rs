//! The storage engine of Basalt: one erasure set's log, extents, index and recovery. Knows no HTTP and no S3.
//!
//! A shard owns its keys alone: one log, one index, one extent table. What a reader needs first: [`extent`] says
//! what addresses mean, [`body`] how bytes become stripes, [`index`] how keys are found, [`format`] how each
//! structure looks on disk; [`Deployment`] opens the disks, [`Engine`] is what a server talks to.
//! `docs/DATA_FORMAT.md` gives every byte.

mod blob;
pub mod body;
pub mod buckets;
pub mod checksum;
pub mod deployment;
pub mod engine;
mod error;
pub mod extent;
pub mod format;
pub mod index;
mod log;
mod log_pace;
pub mod mutant;
pub mod offline;
pub mod request;
mod shard;
pub mod value;
mod wait;

pub use self::deployment::{Deployment, FormatOptions, OpenError};
pub use self::engine::objects::{ObjectDraft, Page};
pub use self::engine::{
    Absence, BlockCounts, BodyReader, BodyWriter, DiskFigures, DiskOrder, DiskReport, DiskStatus, Engine,
    EngineOptions, ObjectReader, OrderError, RebuildStatus, WrittenBody,
};
pub use self::error::{EngineError, Refused};
pub use self::log_pace::LogPace;
pub use self::shard::ShardStats;
pub use self::shard::list::{ListItem, ListQuery, ListStart, UploadItem, UploadQuery, UploadStart};
pub use self::shard::mutate::{Guard, PutDone};
pub use self::shard::rebuild::RebuildLens;
pub use self::shard::recovery::Recovered;
pub use self::shard::repair::RepairCounts;
pub use self::shard::scrub::progress::{Mark as ScrubMark, Progress as ScrubProgress};
pub use self::shard::scrub::{DEADLINE_DEFAULT as SCRUB_DEADLINE_DEFAULT, ScrubStats};
pub use self::shard::uploads::{PART_NUMBER_MAX, PartItem, PartsPage};
