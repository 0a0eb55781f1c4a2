//! What cores ask of each other: requests to a shard, or to a core about its bucket copies, and their replies.
//!
//! Requests own their bytes and nothing else; buffers and files stay with their core. A request that reached its shard
//! takes effect whether or not the asking core still waits for it.

use std::path::PathBuf;

use crate::engine::{DiskFigures, DiskOrder, DiskReport, OrderError};
use crate::error::EngineError;
use crate::extent::groups::Groups;
use crate::extent::members::{Failing, MemberState, Unfit};
use crate::extent::{DiskIndex, ExtentId, Placement};
use crate::shard::ShardStats;
use crate::shard::leases::LeaseGrant;
use crate::shard::list::{ListChunk, ListQuery, UploadChunk, UploadQuery};
use crate::shard::mutate::{Found, Guard, PutDone, PutObject};
use crate::shard::repair::Suspect;
use crate::shard::uploads::{CompleteUpload, Completion, PartsPage, PutPart};
use crate::value::{Bucket, Upload};

/// A message of the mesh.
pub enum Request {
    /// To the core that runs the shard.
    Shard { shard: u16, ask: Ask },
    /// To the core that runs the bucket's home shard, where the changes of one bucket happen one after the other.
    ChangeBucket(BucketChange),
    /// To every core: answered once it has told all cores of the buckets it is home to.
    AwaitBuckets,
    /// To every core: a bucket's record is this from now on.
    BucketChanged(Bucket),
    /// To every core: this shard cannot be read, and why.
    ShardUnserved { shard: u16, error: EngineError },
    /// To every core: this bucket is gone.
    BucketGone(u64),
    /// To the first core: take the disk out of the set.
    Exclude { disk: DiskIndex, unfit: Unfit },
    /// To every core: these are the members from now on; it is durable already.
    MembersChanged { epoch: u64, states: Vec<MemberState>, groups: Groups },
    /// To every core: these members fail and cannot be taken out; and whether some shard takes no writes any more.
    Failing { disks: Vec<Failing>, shards_fail: bool },
    /// To every core: whether the disk takes a flush through the files that the core has open.
    ProbeDisk(DiskIndex),
    /// To the first core: make these empty disks a further set.
    AddSet { paths: Vec<PathBuf> },
    /// To every core: open the files of a disk that is about to join, and make room on it.
    OpenDisk { disk: DiskIndex, path: PathBuf },
    /// To every core: every core writes to the disk that joined; what is older is to be rebuilt.
    Rebuild { disk: DiskIndex, joined: u64 },
    /// To the first core: the shard's part of the disk that joined in this epoch is rebuilt.
    Rebuilt { shard: u16, disk: DiskIndex, joined: u64 },
    /// To every core: what it knows of each disk.
    DiskFigures,
    /// To the first core: what all cores know of the disks.
    DiskReport,
    /// To the first core: an operator's word about a disk.
    DiskOrder(DiskOrder),
}

/// A change of a bucket as a whole.
pub enum BucketChange {
    Create { name: String, settings: Vec<(String, Vec<u8>)> },
    Update(Bucket),
    Delete { name: String },
}

/// What a shard can be asked.
pub enum Ask {
    Lookup {
        key: Vec<u8>,
        pin: bool,
    },
    Place {
        extents: Vec<ExtentId>,
    },
    Unpin(u64),
    Lease {
        blocks_min: u32,
        blocks_max: u32,
    },
    EndLease(u64),
    Put(Box<PutObject>),
    Delete {
        bucket: u64,
        name: Vec<u8>,
        guard: Option<Guard>,
    },
    List(ListQuery),
    CreateUpload {
        bucket: u64,
        name: Vec<u8>,
        upload: Box<Upload>,
    },
    PutPart(Box<PutPart>),
    ListParts {
        bucket: u64,
        name: Vec<u8>,
        id: [u8; 16],
        after: u16,
        limit: usize,
    },
    CompleteUpload(Box<CompleteUpload>),
    AbortUpload {
        bucket: u64,
        name: Vec<u8>,
        id: [u8; 16],
    },
    ListUploads(UploadQuery),
    /// To the bucket's home shard: create it there.
    CreateBucket {
        name: String,
        settings: Vec<(String, Vec<u8>)>,
    },
    /// To the bucket's home shard: keep this record, if the bucket is still the same.
    StoreBucket(Box<Bucket>),
    /// To the bucket's home shard: drop its record.
    DropBucket(Box<Bucket>),
    /// Let no mutation into the bucket any more; answers whether it is empty here once none is under way.
    Fence(u64),
    Unfence(u64),
    /// Nobody knows whether the fenced bucket is gone: let nothing in, and nothing wait, until the next start.
    Refuse(u64),
    Stats,
    Checkpoint,
    Collect,
    /// A reader met damage in the shard's extents.
    Repair(Suspect),
}

impl Ask {
    /// The leases that end with it.
    pub(crate) fn leases(&self) -> Vec<u64> {
        let leases = match self {
            Ask::Put(put) => &put.leases,
            Ask::PutPart(part) => &part.leases,
            Ask::CompleteUpload(complete) => &complete.leases,
            _ => return Vec::new(),
        };
        leases.iter().map(|lease| lease.id).collect()
    }

    /// Whether a client's write begins or ends with it.
    pub(crate) fn is_write(&self) -> bool {
        match self {
            Ask::Put(_)
            | Ask::Delete { .. }
            | Ask::CreateUpload { .. }
            | Ask::PutPart(_)
            | Ask::CompleteUpload(_)
            | Ask::AbortUpload { .. } => true,
            // Buckets are asked for where a change begins, so that none is stopped halfway.
            Ask::CreateBucket { .. } | Ask::StoreBucket(_) | Ask::DropBucket(_) => false,
            // What is written before it is named.
            Ask::Lease { .. } | Ask::EndLease(_) => false,
            Ask::Lookup { .. }
            | Ask::Place { .. }
            | Ask::Unpin(_)
            | Ask::List(_)
            | Ask::ListParts { .. }
            | Ask::ListUploads(_)
            | Ask::Fence(_)
            | Ask::Unfence(_)
            | Ask::Refuse(_)
            | Ask::Stats
            | Ask::Checkpoint
            | Ask::Collect
            | Ask::Repair(_) => false,
        }
    }
}

pub enum Reply {
    Done(Result<(), EngineError>),
    /// A write that nothing can come of for now.
    Refused(EngineError),
    Found(Result<Option<Found>, EngineError>),
    Places(Vec<Placement>),
    Lease(Result<LeaseGrant, EngineError>),
    Put(Result<PutDone, EngineError>),
    Deleted(Result<bool, EngineError>),
    List(Result<ListChunk, EngineError>),
    Upload(Result<[u8; 16], EngineError>),
    Completed(Result<Completion, EngineError>),
    Parts(Result<PartsPage, EngineError>),
    Uploads(Result<UploadChunk, EngineError>),
    Bucket(Result<Bucket, EngineError>),
    Empty(Result<bool, EngineError>),
    /// Whether the disk is out.
    Excluded(bool),
    Collected(Result<bool, EngineError>),
    Stats(ShardStats),
    DiskFigures {
        figures: Vec<DiskFigures>,
        shards_fail: bool,
    },
    DiskReport(Result<Box<DiskReport>, EngineError>),
    DiskOrdered(Result<(), OrderError>),
}
