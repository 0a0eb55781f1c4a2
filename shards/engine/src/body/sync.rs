//! Shared syncs: however many writers finish at one moment, each file is flushed once for all of them.
//!
//! A flush covers what was written before it began, so a writer that comes while one runs waits for the next. After a
//! failed flush the kernel may forget the failure and report the next one as good although bytes were dropped; so a
//! failure condemns everything written before it, also what had not asked for a flush yet.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use basalt_reactor::{Core, File};

use super::error::DeviceError;
use crate::extent::{ArenaFiles, Column, DiskIndex, ExtentClass};
use crate::mutant::Mutant;

/// The syncs of one core on the data files of one shard.
pub struct SyncGroup {
    core: Core,
    files: Rc<ArenaFiles>,
    /// Indexed by disk; grown when a disk is first met.
    points: RefCell<Vec<Rc<SyncPoint>>>,
}

/// How many syncs of a file had failed at some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SyncMark(u64);

#[derive(Default)]
struct SyncPoint {
    state: RefCell<SyncState>,
}

#[derive(Default)]
struct SyncState {
    running: bool,
    started: u64,
    failures: u64,
    last_failure: Option<DeviceError>,
    /// Whom the next sync to start will serve.
    line: Vec<Rc<RefCell<Waiter>>>,
}

#[derive(Default)]
struct Waiter {
    done: bool,
    waker: Option<Waker>,
}

impl SyncGroup {
    #[must_use]
    pub fn new(core: Core, files: Rc<ArenaFiles>) -> SyncGroup {
        SyncGroup { core, files, points: RefCell::new(Vec::new()) }
    }

    /// To be taken before the first write that a later [`SyncGroup::sync`] shall vouch for.
    #[must_use]
    pub fn mark(&self, disk: DiskIndex) -> SyncMark {
        SyncMark(self.point(disk).state.borrow().failures)
    }

    /// Syncs of all disks that were started so far.
    #[must_use]
    pub fn started(&self) -> u64 {
        self.points.borrow().iter().map(|point| point.state.borrow().started).sum()
    }

    /// Asks for a sync of `disk`'s data file. It is under way when this returns; await the result for durability of
    /// every write that completed before the call and began after `since`.
    ///
    /// # Errors
    /// In the future: what the device said, also when it said so between `since` and now.
    ///
    /// # Panics
    /// If the disk is absent: it was present when it was written to.
    pub fn sync(
        &self,
        disk: DiskIndex,
        since: SyncMark,
    ) -> impl Future<Output = Result<(), DeviceError>> + use<> {
        let point = self.point(disk);
        let waiter = Rc::new(RefCell::new(Waiter::default()));
        let start = {
            let mut state = point.state.borrow_mut();
            state.line.push(Rc::clone(&waiter));
            !std::mem::replace(&mut state.running, true)
        };
        if start {
            let column = Column { disk, slot: 0 };
            let (file, _) = self.files.locate(ExtentClass::Data, column).expect("a written disk is present");
            drop(self.core.spawn(serve(Rc::clone(&point), file.clone())));
        }
        async move {
            poll_fn(|cx| {
                let mut waiter = waiter.borrow_mut();
                if waiter.done {
                    return Poll::Ready(());
                }
                waiter.waker = Some(cx.waker().clone());
                Poll::Pending
            })
            .await;
            let state = point.state.borrow();
            match state.last_failure {
                Some(error) if state.failures != since.0 => Err(error),
                _ => Ok(()),
            }
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
async fn serve(point: Rc<SyncPoint>, file: File) {
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
        let result = if Mutant::DataSyncSkipped.is_active() { Ok(()) } else { file.sync().await };
        if let Err(error) = result {
            let mut state = point.state.borrow_mut();
            state.failures += 1;
            state.last_failure = Some(DeviceError::from(&error));
        }
        for waiter in served {
            let waker = {
                let mut waiter = waiter.borrow_mut();
                waiter.done = true;
                waiter.waker.take()
            };
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}
