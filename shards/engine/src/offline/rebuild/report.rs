//! What a rebuild found and what it made of it: a line for every object, told apart by how much is known of it.

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// What is left of a shard's log.
    Log { shard: u16, batches: u64, gaps: u64 },
    /// A bucket.
    Bucket { id: u64, name: String, source: NameSource },
    /// An object, an open upload, or a body that became neither.
    Entry(Entry),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub shard: u16,
    pub bucket: u64,
    pub name: Vec<u8>,
    /// Bytes.
    pub len: u64,
    pub fate: Fate,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    Recovered(How),
    NotRecovered(Why),
}

/// How an entry was recovered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum How {
    /// From its record, behind which the log has no gap: it is as it was.
    Current,
    /// From the last record there is. A later one may have been in a gap of the log.
    LastKnown,
    /// The same, and some of its bytes, in a pack, are lost: reading those fails.
    LastKnownInPart,
    /// From directories: name, bytes and time. Its metadata are gone, and it may have been deleted.
    Directory { etag: ETagSource },
    /// From the parts of an upload that nothing says was completed: they may have been given up. When the last one is as
    /// long as the first (`end_seen` is false), more may have followed.
    Parts { count: u32, end_seen: bool, etag: ETagSource },
    /// An upload that can be completed or aborted, with so many parts.
    Upload { id: [u8; 16], parts: u32, certain: bool },
}

/// Where the name of a bucket comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameSource {
    /// From its record, behind which the log has no gap.
    Current,
    /// From the last record there is. It may have been deleted in a gap of the log.
    LastKnown,
    /// Something is in it, and no record names it.
    Invented,
}

/// Where the ETag of an object without a record comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ETagSource {
    /// Computed from the bytes, all of which were read and verified.
    Bytes,
    /// The uuid of its body, because computing was not wanted.
    Opaque,
    /// The uuid of its body, because some blocks are lost: what is left can be read in ranges.
    Damaged,
}

/// Why a body is not recovered. Its blocks are free for others once a server runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// Another state of its name is younger, or its name is deleted.
    Superseded,
    /// It began after the unbroken end of the log did, which has no record of it.
    Uncommitted,
    /// Parts of it are not there.
    Incomplete(String),
    /// Its record is there, its bytes are not.
    Lost(String),
    /// Its bucket was deleted.
    BucketDeleted,
}

/// The lines counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Shards that have a new index.
    pub shards: u64,
    /// Shards whose index was fine.
    pub untouched: u64,
    pub current: u64,
    pub last_known: u64,
    pub from_directories: u64,
    pub uploads: u64,
    /// Recovered, but with lost blocks.
    pub damaged: u64,
    /// Superseded, never committed, or of deleted buckets.
    pub left_behind: u64,
    /// Incomplete, or a record without its bytes.
    pub lost: u64,
    pub buckets_invented: u64,
}

impl Summary {
    pub(super) fn count(&mut self, line: &Line) {
        match line {
            Line::Log { .. } => self.shards += 1,
            Line::Bucket { source, .. } => {
                self.buckets_invented += u64::from(*source == NameSource::Invented)
            }
            Line::Entry(Entry { fate, .. }) => {
                let counter = match fate {
                    Fate::Recovered(How::Current) => &mut self.current,
                    Fate::Recovered(How::LastKnown) => &mut self.last_known,
                    Fate::Recovered(
                        How::LastKnownInPart
                        | How::Directory { etag: ETagSource::Damaged }
                        | How::Parts { etag: ETagSource::Damaged, .. },
                    ) => &mut self.damaged,
                    Fate::Recovered(How::Directory { .. } | How::Parts { .. }) => &mut self.from_directories,
                    Fate::Recovered(How::Upload { .. }) => &mut self.uploads,
                    Fate::NotRecovered(Why::Incomplete(_) | Why::Lost(_)) => &mut self.lost,
                    Fate::NotRecovered(_) => &mut self.left_behind,
                };
                *counter += 1;
            }
        }
    }
}

impl std::fmt::Display for Line {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Line::Log { shard, batches, gaps } => {
                write!(out, "log\tshard {shard}\t{batches} batches\t{gaps} gaps")
            }
            Line::Bucket { id, name, source } => write!(out, "bucket\t{name}\t{id:016x}\t{source}"),
            Line::Entry(entry) => write!(
                out,
                "{}\t{:016x}\t{}\t{} bytes",
                entry.fate,
                entry.bucket,
                entry.name.escape_ascii(),
                entry.len
            ),
        }
    }
}

impl std::fmt::Display for NameSource {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            NameSource::Current => "current",
            NameSource::LastKnown => "last-known",
            NameSource::Invented => "name made up",
        })
    }
}

impl std::fmt::Display for Fate {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Fate::Recovered(how) => how.fmt(out),
            Fate::NotRecovered(why) => why.fmt(out),
        }
    }
}

impl std::fmt::Display for How {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            How::Current => out.write_str("current"),
            How::LastKnown => out.write_str("last-known"),
            How::LastKnownInPart => out.write_str("last-known (blocks are lost)"),
            How::Directory { etag } => write!(out, "directory ({etag})"),
            How::Parts { count, end_seen: true, etag } => write!(out, "parts ({count} parts, {etag})"),
            How::Parts { count, end_seen: false, etag } => {
                write!(out, "parts ({count} parts, more may have followed, {etag})")
            }
            How::Upload { parts, certain: true, .. } => write!(out, "upload ({parts} parts)"),
            How::Upload { parts, certain: false, .. } => write!(out, "upload ({parts} parts, may be over)"),
        }
    }
}

impl std::fmt::Display for ETagSource {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            ETagSource::Bytes => "ETag computed",
            ETagSource::Opaque => "ETag made up",
            ETagSource::Damaged => "blocks are lost, ETag made up",
        })
    }
}

impl std::fmt::Display for Why {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Why::Superseded => out.write_str("superseded"),
            Why::Uncommitted => out.write_str("uncommitted"),
            Why::Incomplete(what) => write!(out, "incomplete ({what})"),
            Why::Lost(what) => write!(out, "lost ({what})"),
            Why::BucketDeleted => out.write_str("bucket-deleted"),
        }
    }
}
