//! Extents: the unit in which disk space is given out, sealed and freed.
//!
//! Addresses in the index are logical, an extent id and an offset in its columns; only the extent table knows on which
//! disks an extent's columns lie. So repair, growth and replication never rewrite a record. An id is never used twice;
//! the slots behind it are, each time under a new id.

pub mod flushes;
pub mod groups;
pub mod latency;
pub mod members;
pub mod reads;
pub(crate) mod replicas;
pub(crate) mod table;
pub mod throttle;

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use basalt_reactor::disk::BLOCK_LEN;
use basalt_reactor::{Buf, Core, CoreId, Disk, File, Slice, WriteMode};

use self::flushes::{CoreFlushes, FlushMark, Flushes};
use self::groups::{GroupIndex, Groups};
use self::members::{MemberState, Members, Outcome};
use self::reads::DiskReads;
use crate::body::DeviceError;

/// Names one extent of one shard, for all time. Ids grow by one per allocation; 0 names none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExtentId(pub u64);

/// What an extent holds; each class has an arena file of its own per shard and disk, with slots of one length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum ExtentClass {
    /// Log batches, the same bytes on m+1 disks.
    Log = 1,
    /// Stripes, one column on each of k+m disks.
    Data = 2,
    /// A sorted table of the index, or a manifest, the same bytes on m+1 disks.
    Table = 3,
}

/// Index of a disk among the members of the deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DiskIndex(pub u8);

/// Where one column (or replica) of an extent lies: a slot in the class's arena file on one disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Column {
    pub disk: DiskIndex,
    pub slot: u32,
}

/// An extent and its places: k+m columns in code order (data first) for [`ExtentClass::Data`], replicas otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    pub id: ExtentId,
    pub class: ExtentClass,
    pub columns: Vec<Column>,
}

/// What is fixed for a set when it is formatted. Lengths in bytes, multiples of [`BLOCK_LEN`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Data columns of a stripe, 1..=20.
    pub k: u8,
    /// Parity columns of a stripe, k + m ≤ 20.
    pub m: u8,
    /// Bytes of one column in a full stripe.
    pub strip_len: u32,
    /// Slot lengths per class.
    pub log_slot_len: u64,
    pub data_slot_len: u64,
    pub table_slot_len: u64,
}

impl Geometry {
    /// Columns of a data extent.
    #[must_use]
    pub fn columns(&self) -> usize {
        usize::from(self.k) + usize::from(self.m)
    }

    /// Copies of a log or table extent when every disk is present.
    #[must_use]
    pub fn replicas(&self) -> usize {
        usize::from(self.m) + 1
    }

    #[must_use]
    pub fn slot_len(&self, class: ExtentClass) -> u64 {
        match class {
            ExtentClass::Log => self.log_slot_len,
            ExtentClass::Data => self.data_slot_len,
            ExtentClass::Table => self.table_slot_len,
        }
    }
}

/// The files of one shard on all members, opened by one core: for each disk a root file and one arena file per class. A disk
/// that is out has none.
pub struct ArenaFiles {
    geometry: Geometry,
    /// Indexed by disk.
    disks: RefCell<Vec<Option<Rc<DiskFiles>>>>,
    members: Rc<Members>,
    /// Where the shard's log, tables and roots lie.
    home: GroupIndex,
    flushes: Rc<CoreFlushes>,
    reads: Rc<DiskReads>,
}

/// One disk's files of a shard.
pub struct DiskFiles {
    pub disk: Disk,
    pub root: File,
    pub log: File,
    pub data: File,
    pub table: File,
}

impl DiskFiles {
    pub(crate) fn of_class(&self, class: ExtentClass) -> &File {
        match class {
            ExtentClass::Log => &self.log,
            ExtentClass::Data => &self.data,
            ExtentClass::Table => &self.table,
        }
    }
}

impl ArenaFiles {
    /// The files of a core that no other shares the disks with; those that are given are in sync.
    #[must_use]
    pub fn new(geometry: Geometry, disks: Vec<Option<DiskFiles>>) -> Rc<ArenaFiles> {
        let flushes = CoreFlushes::new(Flushes::new(disks.len(), 1), CoreId(0));
        let reads = DiskReads::new(&geometry, Rc::new(Groups::one(geometry.m, disks.len())));
        ArenaFiles::sharing(geometry, disks, flushes, reads)
    }

    /// As [`ArenaFiles::new`], of one of several cores, which knows of the disks what all its shards have learned.
    #[must_use]
    pub fn sharing(
        geometry: Geometry,
        disks: Vec<Option<DiskFiles>>,
        flushes: Rc<CoreFlushes>,
        reads: Rc<DiskReads>,
    ) -> Rc<ArenaFiles> {
        let state = |disk: &Option<DiskFiles>| match disk {
            Some(_) => MemberState::InSync,
            None => MemberState::Out,
        };
        let groups = Groups::one(geometry.m, disks.len());
        let members = Members::new(1, disks.iter().map(state).collect(), groups);
        ArenaFiles::of_members(geometry, disks, (members, GroupIndex(0)), flushes, reads)
    }

    /// The files of a shard on the disks of a deployment whose members may change, and the shard's home.
    #[must_use]
    pub fn of_members(
        geometry: Geometry,
        disks: Vec<Option<DiskFiles>>,
        (members, home): (Rc<Members>, GroupIndex),
        flushes: Rc<CoreFlushes>,
        reads: Rc<DiskReads>,
    ) -> Rc<ArenaFiles> {
        let disks = RefCell::new(disks.into_iter().map(|disk| disk.map(Rc::new)).collect());
        Rc::new(ArenaFiles { geometry, disks, members, home, flushes, reads })
    }

    /// What this core knows of how the disks answer reads.
    #[must_use]
    pub fn reads(&self) -> &Rc<DiskReads> {
        &self.reads
    }

    /// The set's members as this core knows them.
    #[must_use]
    pub fn members(&self) -> &Rc<Members> {
        &self.members
    }

    #[must_use]
    pub fn disk_count(&self) -> u8 {
        u8::try_from(self.disks.borrow().len()).expect("at most 240 disks")
    }

    /// The disks that the shard's log, tables and roots lie on.
    #[must_use]
    pub fn home_disks(&self) -> Vec<DiskIndex> {
        self.members.groups().disks(self.home)
    }

    /// The group that the shard is at home in.
    #[must_use]
    pub fn home(&self) -> GroupIndex {
        self.home
    }

    /// The files of a disk, whatever its state.
    #[must_use]
    pub fn disk(&self, disk: DiskIndex) -> Option<Rc<DiskFiles>> {
        self.disks.borrow().get(usize::from(disk.0))?.clone()
    }

    /// Gives a disk other files, or none.
    pub(crate) fn set_disk(&self, disk: DiskIndex, files: Option<Rc<DiskFiles>>) {
        let (mut disks, place) = (self.disks.borrow_mut(), usize::from(disk.0));
        if place >= disks.len() {
            disks.resize(place + 1, None);
        }
        disks[place] = files;
    }

    /// Runs something that changes `disk`; see [`Members::carry_out`].
    ///
    /// # Errors
    /// As [`Members::carry_out`].
    pub async fn carry_out(
        &self,
        core: &Core,
        disk: DiskIndex,
        operation: impl Future<Output = io::Result<()>> + 'static,
    ) -> io::Result<Outcome> {
        self.members.carry_out(core, disk, operation).await
    }

    /// What the cores know of the disks' flushes.
    #[must_use]
    pub fn flushes(&self) -> &Rc<CoreFlushes> {
        &self.flushes
    }

    /// Flushes `file`, which lies on `disk`, in sight of the other cores.
    pub fn sync(&self, disk: DiskIndex, file: &File) -> impl Future<Output = io::Result<()>> + use<> {
        let (flush, file) = (self.flushes.begin(disk), file.clone());
        async move { flush.end(file.sync().await) }
    }

    /// Flushes `file`, which lies on `disk`, and answers for everything that was written to it after `mark` was taken.
    pub fn sync_since(
        &self,
        core: &Core,
        disk: DiskIndex,
        file: &File,
        mark: FlushMark,
    ) -> impl Future<Output = io::Result<()>> + use<> {
        let (synced, core, flushes) = (self.sync(disk, file), core.clone(), Rc::clone(&self.flushes));
        async move {
            synced.await?;
            flushes.settle(&core, disk, flushes.begun(disk)).await;
            flushes.check(disk, mark)
        }
    }

    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Writes `bytes` durably over what lies at a place, an offset in a column of an extent of some class, and reads them
    /// back into `spare`, which is as long, and which a disk that does not answer keeps. The extent must stay what it is until
    /// this is over. A disk that does not take the bytes, or does not give them back, is asked to be taken out.
    ///
    /// # Errors
    /// What the device said; `InvalidData` when it does not give back what it took.
    pub async fn rewrite(
        &self,
        core: &Core,
        (class, column, offset): (ExtentClass, Column, u64),
        bytes: Slice,
        spare: Buf,
    ) -> (Result<Outcome, DeviceError>, Option<Buf>) {
        let Some((file, start)) = self.locate(class, column) else { return (Ok(Outcome::Out), Some(spare)) };
        let (disk, at) = (column.disk, start + offset);
        let write = {
            let (flushes, file, bytes) = (Rc::clone(&self.flushes), file.clone(), bytes.clone());
            async move { flushes.write_stable(disk, &file, bytes, at).await }
        };
        match self.carry_out(core, disk, write).await {
            Ok(Outcome::Done) => {}
            Ok(Outcome::Out) => return (Ok(Outcome::Out), Some(spare)),
            Err(error) => return (Err((&error).into()), Some(spare)),
        }
        let Some((result, spare)) = self.members.read(core, disk, (&file, at), spare).await else {
            return (Ok(Outcome::Out), None);
        };
        let error: io::Error = match result {
            Ok(len) if spare[..len.min(spare.len())] == bytes[..] => return (Ok(Outcome::Done), Some(spare)),
            Ok(_) => io::ErrorKind::InvalidData.into(),
            Err(error) => error,
        };
        let reason = format!("it does not give back what it took: {error}");
        let judged = match self.members.exclude(disk, reason).await {
            true => Ok(Outcome::Out),
            false => Err((&error).into()),
        };
        (judged, Some(spare))
    }

    /// Writes `bytes`, whole blocks, over what lies at a place, without a flush: [`ArenaFiles::sync_since`] is to follow.
    ///
    /// # Errors
    /// As [`Members::carry_out`].
    pub(crate) async fn write_unsynced(
        &self,
        core: &Core,
        (class, column, offset): (ExtentClass, Column, u64),
        bytes: Slice,
    ) -> io::Result<Outcome> {
        let Some((file, start)) = self.locate(class, column) else { return Ok(Outcome::Out) };
        let write = async move { file.write_at(bytes, start + offset, WriteMode::Volatile).await };
        self.carry_out(core, column.disk, write).await
    }

    /// The file that is to be written for `column` of an extent of `class`, and the byte offset in it where the column
    /// starts; `None` when the disk is out.
    #[must_use]
    pub fn locate(&self, class: ExtentClass, column: Column) -> Option<(File, u64)> {
        self.locate_if(class, column, |state| state != MemberState::Out)
    }

    /// As [`ArenaFiles::locate`], to be read from: `None` also when the disk does not hold all that it should, or says nothing.
    #[must_use]
    pub fn locate_readable(&self, class: ExtentClass, column: Column) -> Option<(File, u64)> {
        if self.members.is_silent(column.disk) {
            return None;
        }
        self.locate_if(class, column, |state| state == MemberState::InSync)
    }

    /// Slots that the arena file of `class` on `disk` has room for; `None` when the disk is out.
    pub(crate) fn slot_count(&self, class: ExtentClass, disk: DiskIndex) -> Option<io::Result<u32>> {
        let (file, _) = self.locate(class, Column { disk, slot: 0 })?;
        let slots = |len| u32::try_from(len / self.geometry.slot_len(class)).unwrap_or(u32::MAX);
        Some(file.len().map(slots))
    }

    fn locate_if(
        &self,
        class: ExtentClass,
        column: Column,
        admits: impl Fn(MemberState) -> bool,
    ) -> Option<(File, u64)> {
        let disks = self.disks.borrow();
        let files = disks.get(usize::from(column.disk.0))?.as_ref()?;
        let start = u64::from(column.slot) * self.geometry.slot_len(class);
        admits(self.members.state(column.disk)).then(|| (files.of_class(class).clone(), start))
    }
}

/// `len` rounded up to whole blocks, in bytes.
#[must_use]
pub fn round_up_to_block(len: u64) -> u64 {
    len.next_multiple_of(BLOCK_LEN as u64)
}
