//! Which disks of the set take part, as one core knows it, and how one of them is taken out.
//!
//! A disk that fails under a write is not retried: it is taken out of the set by a new epoch, and the write is done when that
//! epoch is durable (docs/decisions/0010). The first core makes epochs; every core holds what it was told last.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use basalt_reactor::{Buf, Core, File};

use super::DiskIndex;
use super::groups::{GroupIndex, Groups};
use crate::error::EngineError;
use crate::wait::RareEvent;

/// How long a write or a flush may take before the disk counts as failed.
pub const STUCK_AFTER: Duration = Duration::from_secs(10);

/// What a member of the set is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum MemberState {
    /// Holds all that it should.
    InSync = 0,
    /// Is written to, and not read until it is rebuilt.
    Behind = 1,
    /// Is not there, or was taken out.
    Out = 2,
}

/// How an operation on a disk ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// The disk is no member any more; it may or may not hold what was written.
    Out,
}

/// A member that fails and cannot be taken out, because too few would be left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failing {
    pub disk: DiskIndex,
    /// It is not where it was, or says nothing: no write can succeed that needs it, and none is tried.
    pub away: bool,
    /// It says nothing: a read would only hold memory.
    pub silent: bool,
}

/// What is wrong with a disk that is asked to be taken out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// It failed, in these words.
    Failed(String),
    /// It has no room for what cannot wait for room.
    Full,
}

/// Takes a disk out; answers whether it is out.
pub type Excluder = Rc<dyn Fn(DiskIndex, Unfit) -> Pin<Box<dyn Future<Output = bool>>>>;

/// The members as one core knows them.
pub struct Members {
    epoch: Cell<u64>,
    states: RefCell<Vec<MemberState>>,
    /// Operations under way that change a disk, by disk, whether or not anybody waits for them.
    changing: RefCell<Vec<u32>>,
    /// Reads that were given up on, of disks that the set cannot do without, by disk.
    silent: RefCell<Vec<u32>>,
    /// Changes that are waited for in vain, of disks that the set cannot do without, by disk.
    unanswered: RefCell<Vec<u32>>,
    /// Members that fail or are away and that the set cannot do without, as the first core says.
    failing: RefCell<Vec<Failing>>,
    /// Nothing is written at all.
    read_only: Cell<bool>,
    /// Some shard, on whichever core, takes no writes any more.
    shards_fail: Cell<bool>,
    groups: RefCell<Rc<Groups>>,
    /// Members of each group that must be in sync for writes to be taken.
    write_quorum: Cell<usize>,
    changed: RareEvent,
    excluder: RefCell<Option<Excluder>>,
}

impl Members {
    #[must_use]
    pub fn new(epoch: u64, states: Vec<MemberState>, groups: Groups) -> Rc<Members> {
        let none = RefCell::new(vec![0; states.len()]);
        Rc::new(Members {
            epoch: Cell::new(epoch),
            states: RefCell::new(states),
            groups: RefCell::new(Rc::new(groups)),
            changing: none.clone(),
            unanswered: none.clone(),
            silent: none,
            failing: RefCell::default(),
            read_only: Cell::new(false),
            shards_fail: Cell::new(false),
            write_quorum: Cell::new(0),
            changed: RareEvent::default(),
            excluder: RefCell::default(),
        })
    }

    /// Who is asked to take a disk out. Without one, none ever is.
    pub fn set_excluder(&self, excluder: Excluder) {
        *self.excluder.borrow_mut() = Some(excluder);
    }

    /// From here on no write is taken.
    pub(crate) fn set_read_only(&self) {
        self.read_only.set(true);
    }

    /// How many members of each group must be in sync for [`Members::take_writes`].
    pub fn set_write_quorum(&self, count: usize) {
        self.write_quorum.set(count);
    }

    /// How many members of `group` must be in sync for that: as many as there are at most.
    pub(crate) fn write_quorum_of(&self, groups: &Groups, group: GroupIndex) -> usize {
        self.write_quorum.get().min(groups.disks(group).len())
    }

    /// Whether clients' writes are taken.
    ///
    /// # Errors
    /// [`EngineError::ReadOnly`], [`EngineError::Degraded`], [`EngineError::DisksFail`].
    pub(crate) fn take_writes(&self) -> Result<(), EngineError> {
        if self.read_only.get() {
            return Err(EngineError::ReadOnly);
        }
        let lost = self.lost();
        if !lost.is_empty() {
            return Err(EngineError::DisksFail { disks: lost });
        }
        if self.write_quorum.get() == 0 {
            return Ok(());
        }
        let groups = self.groups();
        let states = self.states.borrow();
        for group in groups.all() {
            let (in_sync, needed) = (groups.in_sync(group, &states), self.write_quorum_of(&groups, group));
            if in_sync < needed {
                return Err(EngineError::Degraded { in_sync, needed });
            }
        }
        Ok(())
    }

    /// Members without which nothing can be written, and which take no writes.
    fn lost(&self) -> Vec<DiskIndex> {
        let failing = self.failing.borrow();
        let is_away = |disk: DiskIndex| failing.iter().any(|failing| failing.disk == disk && failing.away);
        let unanswered = self.unanswered.borrow();
        let disks = (0..).map(DiskIndex).zip(unanswered.iter());
        let lost = disks.filter(|&(disk, &count)| count > 0 || is_away(disk)).map(|(disk, _)| disk);
        lost.filter(|&disk| self.state(disk) != MemberState::Out).collect()
    }

    /// Waits for a client's write, unless disks fail without which it cannot end. What was begun then goes on, or is given
    /// up, as if the client had gone away.
    ///
    /// # Errors
    /// [`EngineError::DisksFail`].
    pub(crate) async fn unless_lost<T>(
        &self,
        write: impl Future<Output = Result<T, EngineError>>,
    ) -> Result<T, EngineError> {
        let mut write = pin!(write);
        let mut lost = pin!(self.changed.wait_until(|| !self.lost().is_empty()));
        poll_fn(|cx| match write.as_mut().poll(cx) {
            Poll::Pending => {
                lost.as_mut().poll(cx).map(|()| Err(EngineError::DisksFail { disks: self.lost() }))
            }
            ended => ended,
        })
        .await
    }

    /// Whether `disk` fails and stays a member only because the set cannot do without it.
    pub(crate) fn is_failing(&self, disk: DiskIndex) -> bool {
        self.failing.borrow().iter().any(|failing| failing.disk == disk)
    }

    /// Whether `disk` is known to say nothing, so that it is not asked.
    pub(crate) fn is_silent(&self, disk: DiskIndex) -> bool {
        self.failing.borrow().iter().any(|failing| failing.disk == disk && failing.silent)
    }

    /// What the first core says of members that fail and cannot be taken out, and whether all shards take writes.
    pub(crate) fn set_failing(&self, disks: Vec<Failing>, shards_fail: bool) {
        *self.failing.borrow_mut() = disks;
        self.shards_fail.set(shards_fail);
        self.changed.notify();
    }

    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch.get()
    }

    #[must_use]
    pub fn states(&self) -> Vec<MemberState> {
        self.states.borrow().clone()
    }

    #[must_use]
    pub fn state(&self, disk: DiskIndex) -> MemberState {
        self.states.borrow().get(usize::from(disk.0)).copied().unwrap_or(MemberState::Out)
    }

    /// Who stands in for whom.
    #[must_use]
    pub fn groups(&self) -> Rc<Groups> {
        Rc::clone(&self.groups.borrow())
    }

    /// Further disks that may fail, whichever they are, before something is lost; `None` when something is, for as long as
    /// the disks that fail do.
    #[must_use]
    pub fn tolerated(&self) -> Option<usize> {
        if self.shards_fail.get() || !self.failing.borrow().is_empty() || !self.lost().is_empty() {
            return None;
        }
        self.groups.borrow().tolerated(&self.states.borrow())
    }

    /// What the first core made durable. Disks are only ever added.
    pub(crate) fn install(&self, epoch: u64, states: &[MemberState], groups: Groups) {
        debug_assert!(epoch >= self.epoch.get() && states.len() >= self.states.borrow().len());
        self.epoch.set(epoch);
        let count = states.len().max(self.changing.borrow().len());
        self.changing.borrow_mut().resize(count, 0);
        self.silent.borrow_mut().resize(states.len(), 0);
        self.unanswered.borrow_mut().resize(states.len(), 0);
        states.clone_into(&mut self.states.borrow_mut());
        *self.groups.borrow_mut() = Rc::new(groups);
        self.changed.notify();
    }

    /// Operations of this core that may still change `disk`: also those that nobody waits for any more.
    #[must_use]
    pub fn changing(&self, disk: DiskIndex) -> u32 {
        self.changing.borrow().get(usize::from(disk.0)).copied().unwrap_or(0)
    }

    /// Counts an operation that changes `disk`, until the result is dropped: by whatever runs it to its end.
    #[must_use]
    pub(crate) fn begin_change(self: &Rc<Self>, disk: DiskIndex) -> Changing {
        let (mut changing, place) = (self.changing.borrow_mut(), usize::from(disk.0));
        if place >= changing.len() {
            // Of a disk that is about to become a member.
            changing.resize(place + 1, 0);
        }
        changing[place] += 1;
        drop(changing);
        Changing { members: Rc::clone(self), disk }
    }

    /// Asks for `disk` to be taken out. Once this says so, the epoch without it is durable.
    pub async fn exclude(&self, disk: DiskIndex, reason: String) -> bool {
        self.exclude_as(disk, Unfit::Failed(reason)).await
    }

    /// As [`Members::exclude`], of a disk without room for what a start or a new epoch must write.
    pub(crate) async fn exclude_full(&self, disk: DiskIndex) -> bool {
        self.exclude_as(disk, Unfit::Full).await
    }

    async fn exclude_as(&self, disk: DiskIndex, unfit: Unfit) -> bool {
        if self.state(disk) == MemberState::Out {
            return true;
        }
        let excluder = self.excluder.borrow().clone();
        match excluder {
            Some(exclude) => exclude(disk, unfit).await,
            None => false,
        }
    }

    /// Fills `buf` from `offset` of `file`, which lies on `disk`, as long as the disk is a member and the reader's patience lasts:
    /// one that never answers must not keep whoever holds a lock or a pin, nor take memory again and again. Where nobody takes
    /// disks out, it is waited for.
    pub(crate) async fn read(
        self: &Rc<Self>,
        core: &Core,
        disk: DiskIndex,
        (file, offset): (&File, u64),
        buf: Buf,
    ) -> Option<(io::Result<usize>, Buf)> {
        if self.silent.borrow()[usize::from(disk.0)] > 0 {
            return None;
        }
        let file = file.clone();
        let mut read = Box::pin(async move { file.read_at(buf, offset).await });
        let is_judged = self.excluder.borrow().is_some();
        let mut late = is_judged.then(|| Box::pin(core.sleep(STUCK_AFTER)));
        let mut out = pin!(self.changed.wait_until(|| self.state(disk) == MemberState::Out));
        let ended = poll_fn(|cx| {
            if let Poll::Ready(read) = read.as_mut().poll(cx) {
                return Poll::Ready(Some(Some(read)));
            }
            if out.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Some(None));
            }
            match late.as_mut().map(|late| late.as_mut().poll(cx)) {
                Some(Poll::Ready(())) => Poll::Ready(None),
                _ => Poll::Pending,
            }
        });
        if let Some(answer) = ended.await {
            return answer;
        }
        // If the set cannot do without the disk, it is not asked again before it has answered.
        if !self.exclude(disk, no_answer()).await {
            self.silent.borrow_mut()[usize::from(disk.0)] += 1;
            let members = Rc::clone(self);
            core.spawn(async move {
                drop(read.await);
                members.silent.borrow_mut()[usize::from(disk.0)] -= 1;
            });
        }
        None
    }

    /// Runs something that changes `disk` to its end, or until the disk is out: then it goes on in the background, with
    /// whatever memory it holds.
    ///
    /// # Errors
    /// The device's, when the set cannot do without the disk; that it is full, whatever the set could do.
    pub async fn carry_out(
        self: &Rc<Self>,
        core: &Core,
        disk: DiskIndex,
        operation: impl Future<Output = io::Result<()>> + 'static,
    ) -> io::Result<Outcome> {
        if self.states.borrow().len() == 1 {
            return operation.await.map(|()| Outcome::Done);
        }
        let changing = self.begin_change(disk);
        let mut task = core.spawn(async move {
            let result = operation.await;
            drop(changing);
            result
        });
        let mut late = Some(Box::pin(core.sleep(STUCK_AFTER)));
        let mut _unanswered = None;
        let mut out = pin!(self.changed.wait_until(|| self.state(disk) == MemberState::Out));
        loop {
            let ended = poll_fn(|cx| {
                if let Poll::Ready(result) = Pin::new(&mut task).poll(cx) {
                    return Poll::Ready(Ended::Operation(result));
                }
                if out.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Ended::Out);
                }
                match late.as_mut().map(|late| late.as_mut().poll(cx)) {
                    Some(Poll::Ready(())) => Poll::Ready(Ended::Late),
                    _ => Poll::Pending,
                }
            });
            match ended.await {
                Ended::Operation(None) => return Err(io::ErrorKind::Interrupted.into()),
                Ended::Operation(Some(Ok(()))) => return Ok(Outcome::Done),
                Ended::Operation(Some(Err(error))) => {
                    let out = !is_full(&error) && self.exclude(disk, error.to_string()).await;
                    return if out { Ok(Outcome::Out) } else { Err(error) };
                }
                Ended::Out => return Ok(Outcome::Out),
                Ended::Late => {
                    late = None;
                    if self.exclude(disk, no_answer()).await {
                        return Ok(Outcome::Out);
                    }
                    // Nothing that it may still write to may be given to others, so whoever began this waits for its end;
                    // clients are told meanwhile.
                    _unanswered = Some(self.note_unanswered(disk));
                }
            }
        }
    }

    fn note_unanswered(self: &Rc<Self>, disk: DiskIndex) -> Unanswered {
        self.unanswered.borrow_mut()[usize::from(disk.0)] += 1;
        self.changed.notify();
        Unanswered { members: Rc::clone(self), disk }
    }
}

/// A change that is waited for in vain.
struct Unanswered {
    members: Rc<Members>,
    disk: DiskIndex,
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        self.members.unanswered.borrow_mut()[usize::from(self.disk.0)] -= 1;
    }
}

/// An operation under way that changes a disk.
pub(crate) struct Changing {
    members: Rc<Members>,
    disk: DiskIndex,
}

impl Drop for Changing {
    fn drop(&mut self) {
        self.members.changing.borrow_mut()[usize::from(self.disk.0)] -= 1;
    }
}

enum Ended {
    Operation(Option<io::Result<()>>),
    Out,
    Late,
}

fn no_answer() -> String {
    format!("no answer for {} s", STUCK_AFTER.as_secs())
}

/// Whether that is all that is wrong with the disk.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
