//! Object bodies: how their bytes become stripes in data extents, and how they come back verified.
//!
//! The core that accepted a body moves its bytes itself: it asks the owning shard for a place, encodes stripes and
//! writes the columns on its own ring, so payload never crosses cores. [`layout`] and [`plan`] are the arithmetic and
//! do no I/O; [`stripe`] is the erasure code; [`writer`] and [`reader`] move bytes; [`flight`] does without slow and
//! absent disks, [`recover`] restores damaged blocks for a reader and [`mend`] where they lie; [`inline`] reads the small
//! bodies that live in the log, and [`directory`] is what an extent says of itself.

pub mod budget;
pub mod directory;
pub mod error;
mod flight;
pub mod inline;
mod join;
pub mod layout;
pub mod lease;
mod mend;
pub mod packed;
pub mod plan;
pub mod reader;
pub mod recover;
mod redescribe;
pub mod stripe;
pub mod sync;
#[cfg(test)]
mod tests;
pub mod verify;
pub mod walk;
pub mod writer;

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;

use basalt_reactor::Core;

use self::budget::{Budget, Permit};
use self::directory::{CHUNK_LEN_MAX, Content, Origin, Owner};
pub use self::error::{BodyError, Damage, DeviceError, Fault};
pub use self::inline::InlineBody;
pub use self::layout::{Segment, StripedBody};
pub use self::lease::{Lease, LeaseFuture, LeaseUse, Leases, Lessor};
pub use self::mend::{BlockRow, Mended};
pub use self::packed::PackedBody;
pub use self::reader::{ReadMemory, Reader};
use self::stripe::Codec;
use self::sync::SyncGroup;
pub use self::writer::{Writer, Written};
use crate::extent::members::Members;
use crate::extent::reads::LateMemory;
use crate::extent::{ArenaFiles, ExtentId, Geometry, Placement};

/// Where the extents of a body lie; from the record's pin, so it answers for as long as the body is read.
pub type Places = Rc<dyn Fn(ExtentId) -> Option<Rc<Placement>>>;

/// Told of every block that had to be read around, for repair and for counting; for a block of a stripe together with its
/// row.
pub type OnDamage = Rc<dyn Fn(Damage, Option<&BlockRow>)>;

/// The part of the arena that recoveries of damaged blocks may fill at one time.
const RECOVERY_SHARE: usize = 16;

/// The part of the arena that collection may fill.
const COLLECTION_SHARE: usize = 16;

/// What all bodies on one core share: the coder's working memory and the share of the arena they may fill.
pub struct BodyCore {
    core: Core,
    codec: RefCell<Codec>,
    budget: Rc<Budget>,
    /// For restoring damaged blocks: apart, because a reader needs it while it holds its working set. It is never held
    /// longer than disks take.
    recoveries: Rc<Budget>,
    /// Blocks that readers restored from redundancy.
    restored: Cell<u64>,
    serves_requests: bool,
}

/// Bodies of one shard, as moved by one core.
pub struct Bodies {
    core: Rc<BodyCore>,
    files: Rc<ArenaFiles>,
    lessor: Rc<dyn Lessor>,
    syncs: SyncGroup,
    origin: Origin,
    column_writes: Cell<u64>,
}

impl BodyCore {
    /// Bodies under way may fill three quarters of the core's arena. The rest is for what no client can hold on to: the
    /// log's batches, the index, recovery of damaged blocks.
    ///
    /// # Panics
    /// If the arena cannot hold one stripe of `geometry` and a directory chunk.
    #[must_use]
    pub fn new(core: Core, geometry: &Geometry) -> Rc<BodyCore> {
        let capacity = core.arena().usage().capacity;
        let stripe_len = geometry.columns() * writer::buf_len(u64::from(geometry.strip_len)) + CHUNK_LEN_MAX;
        assert!(stripe_len <= capacity, "an arena of {capacity} bytes for stripes of {stripe_len}");
        let codec = RefCell::new(Codec::new(geometry.k, geometry.m));
        let budget = Budget::new((capacity / 4 * 3).max(stripe_len));
        let workspace_len = recover::workspace_len(geometry, layout::BLOCK_CRC_LEN as usize);
        let recoveries = Budget::new((capacity / RECOVERY_SHARE).max(workspace_len));
        Rc::new(BodyCore { core, codec, budget, recoveries, restored: Cell::new(0), serves_requests: true })
    }

    /// A core's memory for what it moves of its own accord: apart from that of requests, since requests may wait for the space
    /// that this gives back.
    #[must_use]
    pub fn for_collection(&self, geometry: &Geometry) -> Rc<BodyCore> {
        let working_len = writer::working_len(geometry, None, directory::OWNER_NAME_LEN_MAX);
        let budget =
            Budget::new((self.core.arena().usage().capacity / COLLECTION_SHARE).max(2 * working_len));
        let codec = RefCell::new(Codec::new(geometry.k, geometry.m));
        let (core, recoveries) = (self.core.clone(), Rc::clone(&self.recoveries));
        Rc::new(BodyCore { core, codec, budget, recoveries, restored: Cell::new(0), serves_requests: false })
    }

    /// The memory that requests are admitted with.
    #[must_use]
    pub fn budget(&self) -> &Rc<Budget> {
        &self.budget
    }

    /// Blocks that readers of bodies restored from redundancy: from other columns, or taken from another replica of the log.
    #[must_use]
    pub fn restored(&self) -> u64 {
        self.restored.get()
    }

    fn count_restored(&self, blocks: u64) {
        self.restored.set(self.restored.get() + blocks);
    }
}

impl Bodies {
    #[must_use]
    pub fn new(
        core: Rc<BodyCore>,
        files: Rc<ArenaFiles>,
        lessor: Rc<dyn Lessor>,
        origin: Origin,
    ) -> Rc<Bodies> {
        let syncs = SyncGroup::new(core.core.clone(), Rc::clone(&files));
        // What late reads hold is the requests' loss: of collection's little memory a stuck disk would soon have all.
        if core.serves_requests {
            files.reads().account_with(Rc::clone(&core.budget) as Rc<dyn LateMemory>);
        }
        Rc::new(Bodies { core, files, lessor, syncs, origin, column_writes: Cell::new(0) })
    }

    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        self.files.geometry()
    }

    /// Which disks take part.
    #[must_use]
    pub(crate) fn members(&self) -> &Rc<Members> {
        self.files.members()
    }

    /// For whom directory chunks are written, and with which seal.
    #[must_use]
    pub(crate) fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Who lends blocks to this core's writers.
    #[must_use]
    pub fn lessor(&self) -> Rc<dyn Lessor> {
        Rc::clone(&self.lessor)
    }

    /// The syncs of this core on the shard's data files.
    #[must_use]
    pub fn syncs(&self) -> &SyncGroup {
        &self.syncs
    }

    /// Writes of columns that this core has started on the shard's data files.
    #[must_use]
    pub fn column_writes(&self) -> u64 {
        self.column_writes.get()
    }

    /// Whom a body that begins now belongs to.
    #[must_use]
    pub fn owner(&self, bucket: u64, name: &[u8]) -> Owner {
        let mut body = [0; 16];
        self.core.core.fill_random(&mut body);
        Owner { body, begun: self.core.core.wall().0, bucket, name: name.to_vec(), part: None }
    }

    /// The working set of a body of `expected` bytes (any length if that is not known) under a name of `name_len` bytes:
    /// what a writer needs to get it to the disks, however slowly.
    #[must_use]
    pub fn writer_len(&self, expected: Option<u64>, name_len: usize) -> usize {
        writer::working_len(self.files.geometry(), expected, name_len)
    }

    /// Reserves `len` bytes; `None` when memory is spent.
    pub async fn admit(&self, len: usize) -> Option<Permit> {
        self.core.budget.admit(&self.core.core, len).await
    }

    /// Admits a reader of `range_len` bytes of a body of `body_len` bytes: reserves its working set, and `more` bytes for
    /// what else the read takes. `None` when memory is spent.
    pub async fn admit_reader(&self, range_len: u64, body_len: u64, more: usize) -> Option<Rc<ReadMemory>> {
        ReadMemory::admit(&self.core, range_len, body_len, more).await
    }

    /// As [`Bodies::admit_reader`], together with `writer_len` bytes for the writer of the copy.
    pub async fn admit_copy(
        &self,
        range_len: u64,
        body_len: u64,
        more: usize,
        writer_len: usize,
    ) -> Option<(Rc<ReadMemory>, Permit)> {
        ReadMemory::admit_copy(&self.core, range_len, body_len, more, writer_len).await
    }

    /// A new body.
    ///
    /// # Panics
    /// If the owner's name is longer than [`directory::OWNER_NAME_LEN_MAX`].
    #[must_use]
    pub fn writer(self: &Rc<Bodies>, content: Content, owner: Owner) -> Writer {
        assert!(owner.name.len() <= directory::OWNER_NAME_LEN_MAX, "a name of {} bytes", owner.name.len());
        Writer::new(Rc::clone(self), content, owner)
    }

    /// Reads bytes `range` of a body, in `memory`, or in what the reader waits for itself if there is none.
    ///
    /// # Errors
    /// [`BodyError::Malformed`], [`BodyError::OutOfRange`].
    pub fn reader(
        self: &Rc<Bodies>,
        body: Rc<StripedBody>,
        range: Range<u64>,
        places: Places,
        on_damage: OnDamage,
        memory: Option<Rc<ReadMemory>>,
    ) -> Result<Reader, BodyError> {
        Reader::new(Rc::clone(self), body, range, places, on_damage, memory)
    }
}
