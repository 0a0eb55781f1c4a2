//! The flushes of the disks, as all cores see them.
//!
//! A device that fails a flush may have dropped whatever its cache held, of any file and written by any core. It says so
//! once, to whoever asked; the next flush succeeds, and means nothing for what was written before. Nor does the kernel
//! remember: bytes written past its page cache leave no error behind on the file. So every flush is counted here. Bytes are
//! durable when a flush that began after them has succeeded, and none has failed since they were written: also
//! none that another core has begun and not yet heard of, which is what [`CoreFlushes::settle`] waits for.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use basalt_reactor::{Core, CoreId, File, Slice, WriteMode};

use super::DiskIndex;

/// How often a core looks whether another one's flush is over. Flushes run side by side, so the rest of one is short.
const SETTLE_POLL: Duration = Duration::from_micros(50);

/// What a device says whose flush failed.
const EIO: i32 = 5;

/// No flush is under way.
const NONE: u64 = u64::MAX;

/// The flushes of a deployment's disks; shared by all cores.
#[derive(Debug)]
pub struct Flushes {
    disks: Vec<DiskFlushes>,
}

#[derive(Debug)]
struct DiskFlushes {
    /// Number of the next flush, whichever core it is of.
    next: AtomicU64,
    failures: AtomicU64,
    /// By core, its oldest flush under way. Each is written by its core alone.
    oldest: Vec<AtomicU64>,
}

/// One core's part in the flushes.
pub struct CoreFlushes {
    shared: Arc<Flushes>,
    core: usize,
    /// Numbers of this core's flushes under way, by disk.
    running: RefCell<Vec<BTreeSet<u64>>>,
}

/// How many flushes of a disk had failed at some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlushMark(u64);

/// A flush under way. One that is dropped without its result counts as failed: nobody knows how it ended.
pub struct Flush {
    flushes: Rc<CoreFlushes>,
    disk: DiskIndex,
    number: u64,
    failed: bool,
}

impl Flushes {
    #[must_use]
    pub fn new(disk_count: usize, core_count: u16) -> Arc<Flushes> {
        let disk = || DiskFlushes {
            next: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            oldest: (0..core_count).map(|_| AtomicU64::new(NONE)).collect(),
        };
        Arc::new(Flushes { disks: (0..disk_count).map(|_| disk()).collect() })
    }
}

impl CoreFlushes {
    /// # Panics
    /// If there are fewer cores.
    #[must_use]
    pub fn new(shared: Arc<Flushes>, core: CoreId) -> Rc<CoreFlushes> {
        let running = RefCell::new(vec![BTreeSet::new(); shared.disks.len()]);
        let core = usize::from(core.0);
        assert!(shared.disks.iter().all(|disk| core < disk.oldest.len()), "core {core} was not counted");
        Rc::new(CoreFlushes { shared, core, running })
    }

    /// To be taken before the first write that a later flush shall vouch for.
    #[must_use]
    pub fn mark(&self, disk: DiskIndex) -> FlushMark {
        FlushMark(self.disk(disk).failures.load(Ordering::SeqCst))
    }

    /// To be called before a flush, or a write that includes one, is submitted.
    #[must_use]
    pub fn begin(self: &Rc<Self>, disk: DiskIndex) -> Flush {
        let number = self.disk(disk).next.fetch_add(1, Ordering::SeqCst);
        self.running.borrow_mut()[usize::from(disk.0)].insert(number);
        self.publish(disk);
        Flush { flushes: Rc::clone(self), disk, number, failed: true }
    }

    /// The flushes that have begun by now, for [`CoreFlushes::settle`].
    #[must_use]
    pub fn begun(&self, disk: DiskIndex) -> u64 {
        self.disk(disk).next.load(Ordering::SeqCst)
    }

    /// Waits until the first `begun` flushes of the disk are over and known to have succeeded or failed. A flush waits for
    /// nothing but its device, so this ends.
    pub async fn settle(&self, core: &Core, disk: DiskIndex, begun: u64) {
        while self.disk(disk).oldest.iter().any(|oldest| oldest.load(Ordering::SeqCst) < begun) {
            core.sleep(SETTLE_POLL).await;
        }
    }

    /// Writes `data` durably. Such a write is a write and then a flush; should a flush fail in between, ours vouches for
    /// nothing.
    ///
    /// # Errors
    /// What the device said, also to others meanwhile.
    pub async fn write_stable(
        self: &Rc<Self>,
        disk: DiskIndex,
        file: &File,
        data: Slice,
        offset: u64,
    ) -> io::Result<()> {
        let mark = self.mark(disk);
        let flush = self.begin(disk);
        flush.end(file.write_at(data, offset, WriteMode::Stable).await)?;
        self.check(disk, mark)
    }

    /// # Errors
    /// EIO when a flush of the disk has failed since `mark`.
    pub fn check(&self, disk: DiskIndex, mark: FlushMark) -> io::Result<()> {
        if self.mark(disk) == mark { Ok(()) } else { Err(io::Error::from_raw_os_error(EIO)) }
    }

    fn disk(&self, disk: DiskIndex) -> &DiskFlushes {
        &self.shared.disks[usize::from(disk.0)]
    }

    fn publish(&self, disk: DiskIndex) {
        let oldest = self.running.borrow()[usize::from(disk.0)].first().copied().unwrap_or(NONE);
        self.disk(disk).oldest[self.core].store(oldest, Ordering::SeqCst);
    }
}

impl Flush {
    /// Says how it ended.
    ///
    /// # Errors
    /// That of `result`.
    pub fn end<T>(mut self, result: io::Result<T>) -> io::Result<T> {
        self.failed = result.is_err();
        result
    }
}

impl Drop for Flush {
    fn drop(&mut self) {
        if self.failed {
            // Before the flush is over for the others.
            self.flushes.disk(self.disk).failures.fetch_add(1, Ordering::SeqCst);
        }
        self.flushes.running.borrow_mut()[usize::from(self.disk.0)].remove(&self.number);
        self.flushes.publish(self.disk);
    }
}

#[cfg(test)]
mod tests {
    use basalt_reactor::sim::{Config, World};

    use super::*;

    const DISK: DiskIndex = DiskIndex(0);

    /// One core's flush has failed in the device but is not heard of yet, when another's succeeds.
    #[test]
    fn a_flush_of_another_core_is_waited_for_and_its_failure_seen() {
        let mut world = World::new(1, Config::default());
        let cores = world.boot(2);
        let shared = Flushes::new(1, 2);
        let (ours, theirs) =
            (CoreFlushes::new(Arc::clone(&shared), CoreId(0)), CoreFlushes::new(shared, CoreId(1)));
        let core = cores[0].clone();
        world.run(async move {
            let mark = ours.mark(DISK);
            let slow = theirs.begin(DISK);
            ours.begin(DISK).end(Ok(())).expect("as given");
            let begun = ours.begun(DISK);
            let later = theirs.begin(DISK);
            let other = core.clone();
            let task = core.spawn(async move {
                other.sleep(Duration::from_millis(1)).await;
                slow.end::<()>(Err(io::ErrorKind::Other.into())).expect_err("as given");
            });
            let before = core.now();
            ours.settle(&core, DISK, begun).await;
            let waited = core.now().since(before);
            assert!(waited >= Duration::from_micros(900), "{waited:?}: the slow flush was not waited for");
            assert_ne!(ours.mark(DISK), mark, "its failure concerns us");
            assert!(task.await.is_some());
            // What began later is not waited for, and may end in any order.
            later.end(Ok(())).expect("as given");
            let begun = ours.begun(DISK);
            ours.settle(&core, DISK, begun).await;
        });
    }

    #[test]
    fn a_flush_without_a_result_counts_as_failed() {
        let flushes = CoreFlushes::new(Flushes::new(2, 1), CoreId(0));
        let mark = flushes.mark(DISK);
        drop(flushes.begin(DISK));
        assert_ne!(flushes.mark(DISK), mark);
        assert_eq!(flushes.mark(DiskIndex(1)), FlushMark(0), "other disks are not concerned");
    }
}
