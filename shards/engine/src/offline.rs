//! Tools for the worst day: looking at what lies on disks, checking it, mending it.
//!
//! Everything else in this engine refuses what it cannot believe, and is right to. These tools are for the hour after that:
//! they read every copy of every structure, say of each what is there or why it cannot be read, and go on. They take the
//! disks as they are, one or all of a set, and believe nothing but checksums.

pub mod check;
pub mod inspect;
mod log_walk;
mod media;
mod mend;
pub mod rebuild;
mod set;
mod shard;
mod table;

pub use self::media::Defect;
pub use self::set::{Access, OfflineDisk, OfflineError, OfflineSet};
