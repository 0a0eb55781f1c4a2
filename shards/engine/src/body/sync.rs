//! Shared syncs: however many writers finish at one moment, each file is flushed once for all of them.
//!
//! A flush covers what was written before it began, so a writer that comes while one runs waits for the next. A failure
//! condemns everything written to the disk before it, also what had not asked for a flush yet, whichever core wrote it and
//! whichever saw the failure ([`crate::extent::flushes`]).

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Poll, Waker};

use basalt_reactor::{Core, File};

use super::error::DeviceError;
use crate::extent::flushes::FlushMark;
use crate::extent::{ArenaFiles, Column, DiskIndex, ExtentClass};
use crate::mutant::Mutant;

/// The syncs of one core on the data files of one shard.
pub struct SyncGroup {
    core: Core,
    files: Rc<ArenaFiles>,
    /// Indexed by disk; grown when a disk is first met.
    points: RefCell<Vec<Rc<SyncPoint>>>,
}

#[derive(Default)]
struct SyncPoint {
    state: RefCell<SyncState>,
}

#[derive(Default)]
struct SyncState {
    running: bool,
    started: u64,
    /// Whom the next sync to start will serve.
    line: Vec<Rc<RefCell<Waiter>>>,
}

#[derive(Default)]
struct Waiter {
    /// How the sync ended; when well, with how many flushes of the disk had begun by then.
    done: Option<Result<u64, DeviceError>>,
    waker: Option<Waker>,
}

impl SyncGroup {
    #[must_use]
    pub fn new(core: Core, files: Rc<ArenaFiles>) -> SyncGroup {
        SyncGroup { core, files, points: RefCell::new(Vec::new()) }
    }

    /// To be taken before the first write that a later [`SyncGroup::sync`] shall vouch for.
    #[must_use]
    pub fn mark(&self, disk: DiskIndex) -> FlushMark {
        self.files.flushes().mark(disk)
    }

    /// Syncs of all disks that were started so far.
    #[must_use]
    pub fn started(&self) -> u64 {
        self.points.borrow().iter().map(|point| point.state.borrow().started).sum()
    }

    /// Asks for a sync of `disk`'s data file. It is under way when this returns; await the result for durability of
    /// every write that completed before the call and began after `since`.
    ///
    /// A disk that is out, or goes out meanwhile, is not waited for.
    ///
    /// # Errors
    /// In the future: what the device said, also when it said so to somebody else between `since` and now, if the set cannot
    /// do without it.
    pub fn sync(
        &self,
        disk: DiskIndex,
        since: FlushMark,
    ) -> impl Future<Output = Result<(), DeviceError>> + use<> {
        let column = Column { disk, slot: 0 };
        let located = self.files.locate(ExtentClass::Data, column);
        let flush = located.map(|(file, _)| self.join(disk, file, since));
        let (core, files) = (self.core.clone(), Rc::clone(&self.files));
        async move {
            let Some(flush) = flush else { return Ok(()) };
            let ended = files.carry_out(&core, disk, flush).await;
            ended.map(drop).map_err(|error| DeviceError::from(&error))
        }
    }

    /// Joins the next flush of `file`, and starts it if none is under way.
    fn join(
        &self,
        disk: DiskIndex,
        file: File,
        since: FlushMark,
    ) -> impl Future<Output = io::Result<()>> + use<> {
        let point = self.point(disk);
        let waiter = Rc::new(RefCell::new(Waiter::default()));
        let start = {
            let mut state = point.state.borrow_mut();
            state.line.push(Rc::clone(&waiter));
            !std::mem::replace(&mut state.running, true)
        };
        if start {
            drop(self.core.spawn(serve(point, Rc::clone(&self.files), disk, file)));
        }
        let (core, files) = (self.core.clone(), Rc::clone(&self.files));
        async move {
            let done = poll_fn(|cx| {
                let mut waiter = waiter.borrow_mut();
                match waiter.done {
                    Some(done) => Poll::Ready(done),
                    None => {
                        waiter.waker = Some(cx.waker().clone());
                        Poll::Pending
                    }
                }
            });
            let begun = done.await.map_err(io::Error::from)?;
            files.flushes().settle(&core, disk, begun).await;
            files.flushes().check(disk, since)
        }
    }

    fn point(&self, disk: DiskIndex) -> Rc<SyncPoint> {
        let index = usize::from(disk.0);
        let mut points = self.points.borrow_mut();
        if points.len() <= index {
            points.resize_with(index + 1, Rc::default);
        }
        Rc::clone(&points[index])
    }
}

/// Syncs for as long as somebody waits. A task of its own, so that no dropped writer stops it for the others.
async fn serve(point: Rc<SyncPoint>, files: Rc<ArenaFiles>, disk: DiskIndex, file: File) {
    loop {
        let served = {
            let mut state = point.state.borrow_mut();
            state.running = !state.line.is_empty();
            if !state.running {
                return;
            }
            state.started += 1;
            std::mem::take(&mut state.line)
        };
        let result = if Mutant::DataSyncSkipped.is_active() { Ok(()) } else { files.sync(disk, &file).await };
        let done = match result {
            Ok(()) => Ok(files.flushes().begun(disk)),
            Err(error) => Err(DeviceError::from(&error)),
        };
        for waiter in served {
            let waker = {
                let mut waiter = waiter.borrow_mut();
                waiter.done = Some(done);
                waiter.waker.take()
            };
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}
