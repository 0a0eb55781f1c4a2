//! What can be asked for, and what is answered.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::PathBuf;

use crate::body::directory::{DirectoryChunk, DirectoryEntry};
use crate::extent::{DiskIndex, ExtentId, Placement};
use crate::format::batch::BatchHeader;
use crate::format::log_header::LogHeader;
use crate::format::manifest::{ExtentEntry, Manifest};
use crate::format::pack::PackItem;
use crate::format::record::Record;
use crate::format::root::Root;
use crate::format::superblock::Superblock;
use crate::index::IndexManifest;
use crate::offline::media::Defect;

/// Kinds of structures to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    Superblock,
    Root,
    Manifest,
    /// The extent table as the log leaves it.
    Extents,
    Log,
    Table,
    /// Directory chunks of data extents.
    Directory,
    /// Packs of small objects, with the lists at their ends.
    Pack,
}

/// An object, by the names of its bucket and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectName {
    pub bucket: Vec<u8>,
    pub key: Vec<u8>,
}

/// What to look at.
#[derive(Clone, Debug, Default)]
pub struct Query {
    pub what: BTreeSet<What>,
    pub object: Option<ObjectName>,
    /// Of this shard alone.
    pub shard: Option<u16>,
    /// Of this extent alone, for [`What::Extents`], [`What::Log`], [`What::Table`], [`What::Directory`] and
    /// [`What::Pack`].
    pub extent: Option<ExtentId>,
    /// Entries of index tables too, not only where their blocks lie; of packs values too, not only keys.
    pub entries: bool,
}

/// Where something lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub path: PathBuf,
    pub disk: DiskIndex,
    pub file: String,
    /// In the file, bytes.
    pub offset: u64,
}

/// A structure that was met.
#[derive(Clone, Debug)]
pub enum Item {
    /// A disk that was given and counts for nothing.
    Stranger {
        path: PathBuf,
        reason: String,
    },
    /// A member of the set that was not given.
    Missing {
        disk: DiskIndex,
    },
    Superblock {
        path: PathBuf,
        copy: u8,
        found: Result<Box<Superblock>, Defect>,
    },
    Root {
        place: Place,
        shard: u16,
        copy: u8,
        found: Result<Box<Root>, Defect>,
    },
    /// No copy of a shard's root, or no manifest, can be believed: nothing more can be said of it.
    ShardLost {
        shard: u16,
        defect: Defect,
    },
    /// A part of the newest root's manifest, as one disk has it.
    ManifestReplica {
        place: Place,
        shard: u16,
        extent: ExtentId,
        len: u64,
        defect: Option<Defect>,
    },
    Manifest {
        shard: u16,
        manifest: Box<Manifest>,
        index: Result<IndexManifest, Defect>,
    },
    /// What the log behind the root comes to.
    LogEnd {
        shard: u16,
        batches: u64,
        defects: Vec<String>,
    },
    Extent {
        shard: u16,
        entry: Box<ExtentEntry>,
    },
    LogHeader {
        place: Place,
        shard: u16,
        extent: ExtentId,
        found: Result<LogHeader, Defect>,
    },
    Batch {
        place: Place,
        shard: u16,
        header: Box<BatchHeader>,
        records: Result<Vec<Record>, Defect>,
    },
    /// A run of bytes that the device does not give.
    Unreadable {
        place: Place,
        len: u64,
        defect: Defect,
    },
    Table {
        shard: u16,
        level: usize,
        table: Box<TableSummary>,
    },
    /// A table, or a block of one, that no disk at hand has whole.
    TableLost {
        shard: u16,
        extent: ExtentId,
        offset: u64,
        len: u64,
        defect: Defect,
    },
    TableFrame {
        place: Place,
        shard: u16,
        extent: ExtentId,
        kind: &'static str,
        len: u64,
        defect: Option<Defect>,
    },
    Entry {
        shard: u16,
        key: Vec<u8>,
        /// `None` for one that was deleted.
        value: Option<Vec<u8>>,
    },
    Chunk {
        place: Place,
        shard: u16,
        extent: ExtentId,
        found: Result<Box<DirectoryChunk>, Defect>,
    },
    /// A pack, restored from what disks are at hand.
    Pack {
        shard: u16,
        placement: Placement,
        /// What the directory says of it.
        entry: Box<DirectoryEntry>,
        /// Runs of its bytes that cannot be had.
        lost: Vec<Range<u64>>,
        /// What its list says; values are empty where they were not asked for.
        objects: Result<Vec<PackItem>, Defect>,
    },
    NoSuchBucket,
    NoSuchKey,
    /// A version of the object that was asked for, and where the extents lie that its value names.
    Object {
        shard: u16,
        key: Vec<u8>,
        value: Vec<u8>,
        places: Vec<Placement>,
    },
}

/// A table's header.
#[derive(Clone, Debug)]
pub struct TableSummary {
    pub placement: Placement,
    pub epoch: u64,
    pub sequence: u64,
    pub len: u64,
    pub entry_count: u64,
    pub tombstone_count: u64,
    pub block_count: u32,
    pub filter_len: u64,
    pub directory_len: u64,
    pub min_key: Vec<u8>,
    pub max_key: Vec<u8>,
}
