//! What a check finds, and what it says of it.

use std::path::PathBuf;

use crate::extent::DiskIndex;
use crate::offline::inspect::Place;

/// Faults that a report keeps; further ones are counted, and told to the listener like all others.
pub const FAULTS_KEPT_MAX: usize = 10_000;

/// What is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Structure {
    /// A file that is not there.
    File,
    Superblock,
    Root,
    Manifest,
    /// Places of extents.
    Extents,
    LogHeader,
    LogBatch,
    Table,
    /// A key or a value of the index.
    Entry,
    /// A body in the log.
    Inline,
    Data,
    Parity,
    DirectoryChunk,
    /// A directory chunk that no column has.
    LostChunk,
    /// A small object in a pack, of which bytes are lost.
    Packed,
    /// The list at the end of a pack.
    PackList,
    /// Live bytes of extents.
    LiveCount,
}

impl Structure {
    /// In words, for reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Structure::File => "file",
            Structure::Superblock => "superblock",
            Structure::Root => "root",
            Structure::Manifest => "manifest",
            Structure::Extents => "extent table",
            Structure::LogHeader => "log header",
            Structure::LogBatch => "log batch",
            Structure::Table => "index table",
            Structure::Entry => "index entry",
            Structure::Inline => "inline body",
            Structure::Data => "data block",
            Structure::Parity => "parity block",
            Structure::DirectoryChunk => "directory chunk",
            Structure::LostChunk => "lost directory chunk",
            Structure::Packed => "packed body",
            Structure::PackList => "pack list",
            Structure::LiveCount => "live count",
        }
    }
}

/// Whose bytes are concerned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    pub bucket_id: u64,
    /// Where the bucket's record was found.
    pub bucket: Option<String>,
    pub key: Vec<u8>,
    /// The number of a part of an upload that is not complete.
    pub part: Option<u16>,
}

impl std::fmt::Display for Owner {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.bucket {
            Some(name) => write!(out, "{name}/")?,
            None => write!(out, "bucket {}/", self.bucket_id)?,
        }
        write!(out, "{}", String::from_utf8_lossy(&self.key))?;
        match self.part {
            Some(number) => write!(out, " (part {number} of an upload)"),
            None => Ok(()),
        }
    }
}

/// What can be done, or was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Redundancy has what belongs there; nothing was written, for nobody asked for it.
    Mendable,
    Mended,
    /// It was tried.
    Failed(String),
    /// It cannot be mended, and why.
    None(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub structure: Structure,
    pub shard: Option<u16>,
    /// `None` where no one disk is to blame.
    pub place: Option<Place>,
    pub len: u64,
    pub owner: Option<Owner>,
    pub reason: String,
    pub remedy: Remedy,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(place) = &self.place {
            write!(out, "{}/{} at {}, {} bytes: ", place.path.display(), place.file, place.offset, self.len)?;
        } else if let Some(shard) = self.shard {
            write!(out, "shard {shard}: ")?;
        }
        write!(out, "{}: {}", self.structure.name(), self.reason)?;
        if let Some(owner) = &self.owner {
            write!(out, "; of {owner}")?;
        }
        match &self.remedy {
            Remedy::Mendable => write!(out, " [can be mended]"),
            Remedy::Mended => write!(out, " [mended]"),
            Remedy::Failed(why) => write!(out, " [NOT mended: {why}]"),
            Remedy::None(why) => write!(out, " [cannot be mended: {why}]"),
        }
    }
}

/// What a check found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Disks that were checked, by their place in the set.
    pub disks: Vec<(DiskIndex, PathBuf)>,
    pub missing: Vec<DiskIndex>,
    /// Disks that were given and do not count, and why.
    pub strangers: Vec<(PathBuf, String)>,
    pub shard_count: u16,
    pub object_count: u64,
    pub part_count: u64,
    pub upload_count: u64,
    pub bucket_count: u64,
    /// Bytes read from all disks.
    pub read_len: u64,
    /// The first [`FAULTS_KEPT_MAX`].
    pub faults: Vec<Fault>,
    pub fault_count: u64,
    pub mended_count: u64,
    /// Those that redundancy cannot mend, or that could not be written.
    pub unmended_count: u64,
    /// What is worth knowing and no fault.
    pub notes: Vec<String>,
}

impl Report {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.fault_count == 0 && self.missing.is_empty() && self.strangers.is_empty()
    }

    pub(super) fn note(&mut self, fault: &Fault) {
        self.fault_count += 1;
        match fault.remedy {
            Remedy::Mendable => {}
            Remedy::Mended => self.mended_count += 1,
            Remedy::Failed(_) | Remedy::None(_) => self.unmended_count += 1,
        }
        if self.faults.len() < FAULTS_KEPT_MAX {
            self.faults.push(fault.clone());
        }
    }
}

/// How far a check is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub shard: u16,
    pub phase: Phase,
    /// Bytes, of all disks.
    pub done: u64,
    /// As far as is known.
    pub total: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Log,
    Index,
    Bodies,
}

/// Hears of faults as they are found, and how far it is.
pub trait Listener {
    fn fault(&mut self, fault: &Fault);
    fn progress(&mut self, progress: Progress);
}
