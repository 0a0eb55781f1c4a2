//! Who is a member of the set: taking disks out, letting them in again, one epoch after the other.
//!
//! Only the first core makes epochs, one at a time. Each is durable on every present member before any core hears of it, and
//! heard of by every core before whoever asked for it goes on (docs/decisions/0010).

mod add;
mod budget;
mod failing;
mod figures;
mod orders;
mod watch;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use basalt_reactor::disk::DiskLock;
use basalt_reactor::mesh::Port;
use basalt_reactor::{Core, CoreId, Disk, Monotonic};

use self::budget::Judge;
use self::failing::{Failures, could_go_on_alone};
use self::figures::Ledger;
pub use self::figures::{Absence, DiskFigures, DiskReport, DiskStatus, RebuildStatus};
pub use self::orders::{DiskOrder, OrderError};
use self::watch::Distrust;
use super::files::{Access, open_disk_files};
use super::superblocks::SuperblockFiles;
use super::{Engine, EngineOptions};
use crate::deployment::{Deployment, LOCK_FILE, SUPERBLOCK_FILE, write_superblock};
use crate::error::EngineError;
use crate::extent::DiskIndex;
use crate::extent::groups::{GroupIndex, Groups};
use crate::extent::members::{Excluder, MemberState, STUCK_AFTER};
use crate::format::superblock::{State, Superblock};
use crate::request::{Reply, Request};
use crate::shard::rebuild::TellRebuilt;
use crate::wait::KeyLocks;

/// How often the first core looks whether each disk is still where it was, and whether one that is missing is back.
const WATCH_EVERY: Duration = Duration::from_secs(2);

/// Why a disk is out that has no room for a start.
const NO_ROOM: &str = "its file system has no room for what a start or a new epoch writes";

/// The lock of whoever makes an epoch.
pub(super) const EPOCH_TURN: &[u8] = b"epoch";

/// What the first core knows of the members beyond their states.
pub(super) struct Membership {
    pub(super) turn: Rc<KeyLocks>,
    options: EngineOptions,
    /// The newest epoch, as it is written to every disk but for what is the disk's own.
    pub(super) config: RefCell<Superblock>,
    sequences: RefCell<Vec<u64>>,
    /// The epoch that each member is known to have; of one that is out, any.
    written: RefCell<Vec<u64>>,
    /// Superblocks that are being written, whether or not anybody waits for them.
    writing: RefCell<BTreeSet<usize>>,
    /// States in epochs that nobody was told of, and that some members may have, since the last one that all had.
    unestablished: RefCell<Vec<Vec<MemberState>>>,
    /// Members that fail and that the set cannot do without.
    failures: Failures,
    /// Where each member is, or was last.
    pub(super) paths: RefCell<Vec<Option<PathBuf>>>,
    /// As scrub opened them.
    pub(super) superblocks: RefCell<SuperblockFiles>,
    /// Where else one that is missing may turn up.
    unclaimed: RefCell<Vec<PathBuf>>,
    /// Those of the unclaimed paths that held an empty disk while nobody was missing.
    spares: RefCell<BTreeSet<PathBuf>>,
    /// Members that failed while they were there.
    distrusted: RefCell<BTreeMap<usize, Distrust>>,
    /// Members that could not be looked at lately, and how often in a row.
    unseen: RefCell<BTreeMap<usize, u32>>,
    /// Members that are out, since when, for the spare disks to count from.
    vacant: RefCell<BTreeMap<usize, Monotonic>>,
    /// The same for people.
    absences: RefCell<BTreeMap<usize, Absence>>,
    ledger: Ledger,
    /// By group.
    judges: RefCell<BTreeMap<GroupIndex, Judge>>,
    /// Shards that have rebuilt their part of a disk, by disk and the epoch in which it joined.
    rebuilt: RefCell<BTreeMap<(u8, u64), BTreeSet<u16>>>,
    /// Paths that are being looked at.
    looks: RefCell<BTreeSet<PathBuf>>,
}

/// Why a disk is taken out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// It failed: nothing can be acknowledged with it.
    Failure,
    /// A start or a new epoch must write, and there is no room for that on it.
    Full,
    /// It still works, but has done too much wrong; not worth the last redundancy there is.
    Record,
    /// An operator says so, and it stays out until another order.
    Order,
}

impl Membership {
    pub(super) fn new(core: &Core, deployment: &Deployment, options: EngineOptions) -> Membership {
        let membership = Membership {
            turn: Rc::default(),
            options,
            config: RefCell::new(deployment.superblock.clone()),
            sequences: RefCell::new(deployment.sequences.clone()),
            // Opening wrote it to all that are not out.
            written: RefCell::new(vec![deployment.superblock.epoch; deployment.disk_count()]),
            writing: RefCell::default(),
            unestablished: RefCell::default(),
            failures: Failures::default(),
            paths: RefCell::new(deployment.paths.clone()),
            unclaimed: RefCell::new(deployment.unclaimed.clone()),
            spares: RefCell::new(deployment.spares.iter().cloned().collect()),
            distrusted: RefCell::default(),
            unseen: RefCell::default(),
            vacant: RefCell::default(),
            absences: RefCell::default(),
            ledger: Ledger::default(),
            judges: RefCell::default(),
            rebuilt: RefCell::default(),
            superblocks: RefCell::default(),
            looks: RefCell::default(),
        };
        for (place, member) in deployment.superblock.members.iter().enumerate() {
            if member.state == MemberState::Out {
                let reason = if member.removed { "removed by an operator" } else { "missing at the start" };
                membership.note_absence(place, reason, core.wall());
            }
        }
        membership
    }
}

/// How a core asks for a disk to be taken out.
pub(super) fn excluder(port: &Port<Request, Reply>) -> Excluder {
    let port = port.clone();
    Rc::new(move |disk, unfit| {
        let port = port.clone();
        Box::pin(async move {
            let asked = port.call(CoreId(0), Request::Exclude { disk, unfit }).await;
            matches!(asked, Ok(Reply::Excluded(true)))
        })
    })
}

/// How a shard says that it has rebuilt its part of a disk.
pub(super) fn tell_rebuilt(port: &Port<Request, Reply>, shard: u16) -> TellRebuilt {
    let port = port.clone();
    Rc::new(move |disk, joined| port.notify(CoreId(0), Request::Rebuilt { shard, disk, joined }))
}

impl Engine {
    pub(super) fn membership(&self) -> &Membership {
        self.inner.membership.as_ref().expect("only the first core is asked for epochs")
    }

    /// Takes `disk`, which failed, out of the set; `false` when too few would be left.
    pub(super) async fn exclude(&self, disk: DiskIndex, reason: &str) -> bool {
        // There are no epochs.
        if self.is_read_only() {
            return false;
        }
        self.take_out(disk, reason, Cause::Failure).await.is_ok()
    }

    /// Takes `disk`, on which there is no room, out of the set; `false` when too few would be left.
    pub(super) async fn exclude_full(&self, disk: DiskIndex) -> bool {
        !self.is_read_only() && self.take_out(disk, NO_ROOM, Cause::Full).await.is_ok()
    }

    /// Takes `disk` out of the set, if enough others hold all that they should.
    async fn take_out(&self, disk: DiskIndex, reason: &str, cause: Cause) -> Result<(), OrderError> {
        let membership = self.membership();
        let _turn = membership.turn.lock(EPOCH_TURN).await;
        let place = usize::from(disk.0);
        let was_removed = membership.config.borrow().members[place].removed;
        if cause == Cause::Order && !was_removed {
            // So that every epoch from here on says so.
            membership.config.borrow_mut().members[place].removed = true;
        }
        let taken = self.take_out_in_turn(place, reason, cause).await;
        match (&taken, cause) {
            (Err(_), Cause::Order) => membership.config.borrow_mut().members[place].removed = was_removed,
            (Ok(()), Cause::Order) => {
                membership.absences.borrow_mut().remove(&place);
                membership.note_absence(place, reason, self.inner.core.wall());
            }
            _ => {}
        }
        taken
    }

    async fn take_out_in_turn(&self, place: usize, reason: &str, cause: Cause) -> Result<(), OrderError> {
        let membership = self.membership();
        let mut out = BTreeMap::from([(place, reason.to_owned())]);
        if cause == Cause::Failure {
            // What has failed before and still does takes no epoch: it goes as well, or nothing is tried.
            out.extend(membership.failures.reasons().into_iter().filter(|(other, _)| *other != place));
        }
        let groups = self.inner.members.groups();
        let group = groups.of(DiskIndex(u8::try_from(place).expect("at most 240 disks")));
        let floor = groups.needed(group);
        let needed = match cause {
            Cause::Failure | Cause::Full => floor,
            Cause::Record => floor + 1,
            Cause::Order => floor.max(self.inner.members.write_quorum_of(&groups, group)),
        };
        loop {
            let mut states = self.inner.members.states();
            if states[place] == MemberState::Out && cause != Cause::Order {
                return Ok(());
            }
            let was_out = states[place] == MemberState::Out;
            for &place in out.keys() {
                states[place] = MemberState::Out;
            }
            let in_sync = groups.in_sync(group, &states);
            // Nothing changes for one that is out already.
            let is_enough = was_out && out.len() == 1 || in_sync >= needed && groups.are_enough(&states);
            let told_otherwise = |attempt: &Vec<MemberState>| could_go_on_alone(&groups, attempt, &states);
            if !is_enough || membership.unestablished.borrow().iter().any(told_otherwise) {
                if cause == Cause::Failure {
                    self.note_failing(out).await;
                }
                return Err(OrderError::TooFew { in_sync, needed });
            }
            match self.start_epoch(&states, |_| {}).await {
                Ok(()) => {
                    let tolerated = groups.tolerated(&states).unwrap_or(0);
                    for (&place, reason) in &out {
                        tracing::error!(disk = place, path = %self.path_of(place), reason, tolerated,
                            "the disk is taken out of the set");
                        // One that is full may come back as soon as it has room.
                        if matches!(cause, Cause::Failure | Cause::Record) {
                            membership.distrust(place, cause, self.inner.core.now());
                        }
                        membership.note_absence(place, reason, self.inner.core.wall());
                    }
                    self.forget_failing(|place| out.contains_key(&place)).await;
                    return Ok(());
                }
                Err(failed) => {
                    out.extend(
                        failed.into_iter().map(|place| (place, "its superblock is not written".to_owned())),
                    );
                }
            }
        }
    }

    /// Makes the next epoch durable on all members that are not out in it, and tells every core. On failure says which
    /// members did not take it; nobody was told then.
    async fn start_epoch(
        &self,
        states: &[MemberState],
        change: impl FnOnce(&mut Superblock),
    ) -> Result<(), Vec<usize>> {
        let membership = self.membership();
        let before = self.inner.members.states();
        let newest = membership.config.borrow().epoch;
        let takes_part = |place: &usize| states[*place] != MemberState::Out;
        let was_there = |place: &usize| before.get(*place).is_some_and(|&state| state != MemberState::Out);
        // Epochs that did not come about may have left members behind. First these, or more than one epoch would lie between
        // disks in sync, and the next start would take what only missed an attempt for one that was away.
        let has_newest = |place: &usize| membership.written.borrow()[*place] == newest;
        let lagging = (0..states.len()).filter(takes_part).filter(was_there);
        self.write_superblocks(lagging.filter(|place| !has_newest(place)).collect()).await?;
        let mut next = membership.config.borrow().clone();
        next.epoch += 1;
        for (member, &state) in next.members.iter_mut().zip(states) {
            if state == MemberState::Behind && member.state == MemberState::Out {
                member.joined = next.epoch;
            }
            member.state = state;
            if state != MemberState::Out {
                member.epoch_last = next.epoch;
            }
        }
        change(&mut next);
        // The number is never given to another epoch, whatever becomes of this one.
        *membership.config.borrow_mut() = next.clone();
        membership.unestablished.borrow_mut().push(states.to_vec());
        membership.written.borrow_mut().resize(states.len(), 0);
        // Those that were members first: until one of them has it, nobody counts on the others.
        let (old, new): (Vec<usize>, Vec<usize>) = (0..states.len()).filter(takes_part).partition(was_there);
        self.write_superblocks(old).await?;
        self.write_superblocks(new).await?;
        membership.unestablished.borrow_mut().clear();
        self.tell_members(next.epoch, states).await;
        Ok(())
    }

    /// Writes the newest epoch to members, to all at once: none waits for another that does not answer. Says which did not
    /// take it.
    async fn write_superblocks(&self, places: Vec<usize>) -> Result<(), Vec<usize>> {
        let write = |place: usize| {
            let engine = self.clone();
            (place, self.inner.core.spawn(async move { engine.write_superblock(place).await }))
        };
        let writes: Vec<_> = places.into_iter().map(write).collect();
        let mut failed = Vec::new();
        for (place, write) in writes {
            if let Err(error) = write.await.expect("nobody cancels the write of a superblock") {
                tracing::error!(disk = place, path = %self.path_of(place), %error, "superblock not written");
                failed.push(place);
            }
        }
        if failed.is_empty() { Ok(()) } else { Err(failed) }
    }

    /// The superblock of a member as it was written last, or is to be written.
    pub(super) fn superblock_of(&self, place: usize) -> Superblock {
        let membership = self.membership();
        let config = membership.config.borrow();
        Superblock {
            sequence: membership.sequences.borrow()[place],
            state: State::Ready,
            disk: config.members[place].disk,
            disk_index: u8::try_from(place).expect("at most 240 disks"),
            ..config.clone()
        }
    }

    /// Writes the newest epoch to a member.
    async fn write_superblock(&self, place: usize) -> io::Result<()> {
        let membership = self.membership();
        let path = membership.paths.borrow()[place].clone().ok_or(io::ErrorKind::NotFound)?;
        // One that was given up on may land any time, over what came later.
        if !membership.writing.borrow_mut().insert(place) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        membership.sequences.borrow_mut()[place] += 1;
        let superblock = self.superblock_of(place);
        let epoch = superblock.epoch;
        let engine = self.clone();
        let disk = DiskIndex(superblock.disk_index);
        let changing = self.inner.members.begin_change(disk);
        let write = async move {
            let core = &engine.inner.core;
            let file = Disk::open(core, &path).and_then(|disk| disk.open_file(SUPERBLOCK_FILE));
            let written = match file {
                Ok(file) => write_superblock(core, &file, &superblock).await,
                Err(error) => Err(error),
            };
            engine.membership().writing.borrow_mut().remove(&place);
            // Nobody knows what that copy holds now. The next write goes there again, and the other one stays whole.
            if written.is_err()
                && let Some(sequence) = engine.membership().sequences.borrow_mut().get_mut(place)
                && *sequence == superblock.sequence
            {
                *sequence -= 1;
            }
            drop(changing);
            written
        };
        in_time(&self.inner.core, write).await?;
        membership.written.borrow_mut()[place] = epoch;
        Ok(())
    }

    async fn tell_members(&self, epoch: u64, states: &[MemberState]) {
        for core in 0..self.inner.core_count {
            let groups = self.membership().config.borrow().groups();
            let changed = Request::MembersChanged { epoch, states: states.to_vec(), groups };
            // A core that is closing needs no members.
            let _closing = self.inner.port.call(CoreId(core), changed).await.is_err();
        }
    }

    /// On every core: the members are these from now on.
    pub(super) fn install_members(&self, epoch: u64, states: &[MemberState], groups: Groups) {
        self.inner.members.install(epoch, states, groups);
        self.inner.reads.set_groups(self.inner.members.groups());
        for (disk, _) in (0..).map(DiskIndex).zip(states).filter(|(_, state)| **state == MemberState::Out) {
            for files in self.inner.files.borrow().iter() {
                files.set_disk(disk, None);
            }
            // Nothing is left open: its file system may be about to be unmounted.
            self.inner.locks.borrow_mut().remove(&disk);
        }
        for shard in self.inner.shards.borrow().values() {
            shard.members_changed();
        }
    }

    /// On every core: opens the files of a disk that is to join, and gives it the room that this core's shards gave out
    /// on it.
    pub(super) async fn open_disk(&self, disk: DiskIndex, path: &Path) -> Result<(), EngineError> {
        let failed = |error: io::Error| EngineError::Damaged(format!("{}: {error}", path.display()));
        if self.inner.members.changing(disk) > 0 {
            return Err(EngineError::Damaged(format!("{}: old writes to it are not over", path.display())));
        }
        let opened = Disk::open(&self.inner.core, path).map_err(failed)?;
        let lock = opened.lock(LOCK_FILE).map_err(failed)?;
        let all = self.inner.files.borrow().clone();
        for (files, shard) in all.iter().zip(0..) {
            files.set_disk(disk, Some(Rc::new(open_disk_files(&opened, shard, Access::Writes)?)));
        }
        let shards: Vec<_> = self.inner.shards.borrow().values().cloned().collect();
        for shard in shards {
            shard.space.catch_up(disk).await?;
        }
        self.inner.locks.borrow_mut().insert(disk, lock);
        Ok(())
    }

    /// Holds the lock of a disk for as long as it is a member, and this core runs.
    pub fn hold_lock(&self, disk: DiskIndex, lock: DiskLock) {
        if self.inner.members.state(disk) != MemberState::Out {
            self.inner.locks.borrow_mut().insert(disk, lock);
        }
    }

    /// Gives up the locks of all disks, as the last thing that this core does with them.
    pub fn release_locks(&self) {
        self.inner.locks.borrow_mut().clear();
    }

    /// Begins or goes on with the rebuilding of disks that were behind when the deployment was opened: every core has
    /// written to them since.
    pub(super) fn rebuild_disks_behind(&self) {
        let members = &self.inner.deployment.superblock.members;
        for (disk, member) in (0..).map(DiskIndex).zip(members) {
            if self.inner.members.state(disk) == MemberState::Behind {
                for shard in self.inner.shards.borrow().values() {
                    shard.begin_rebuild(disk, member.joined);
                }
            }
        }
    }

    /// A shard has rebuilt its part of a disk; with the last of them the disk is in sync.
    pub(super) async fn note_rebuilt(&self, shard: u16, disk: DiskIndex, joined: u64) {
        let membership = self.membership();
        let _turn = membership.turn.lock(EPOCH_TURN).await;
        let place = usize::from(disk.0);
        {
            let mut rebuilt = membership.rebuilt.borrow_mut();
            let shards = rebuilt.entry((disk.0, joined)).or_default();
            shards.insert(shard);
            let member = &membership.config.borrow().members[place];
            let complete = shards.len() == usize::from(self.shard_count());
            if !complete || member.joined != joined || self.inner.members.state(disk) != MemberState::Behind {
                return;
            }
            rebuilt.remove(&(disk.0, joined));
        }
        let mut states = self.inner.members.states();
        states[place] = MemberState::InSync;
        match self.start_epoch(&states, |_| {}).await {
            Ok(()) => {
                tracing::info!(disk = place, path = %self.path_of(place), "the disk is rebuilt and in sync")
            }
            Err(failed) => tracing::error!(
                disk = place,
                ?failed,
                "the disk is rebuilt, but the epoch that says so failed"
            ),
        }
    }

    fn path_of(&self, place: usize) -> String {
        let paths = self.membership().paths.borrow();
        paths[place].as_ref().map_or_else(|| "(unknown)".to_owned(), |path| path.display().to_string())
    }
}

/// Runs `operation`, but does not wait for a device for ever.
pub(super) async fn in_time<T: 'static>(
    core: &Core,
    operation: impl Future<Output = io::Result<T>> + 'static,
) -> io::Result<T> {
    let mut task = pin!(core.spawn(operation));
    let mut late = pin!(core.sleep(STUCK_AFTER));
    poll_fn(|cx| match task.as_mut().poll(cx) {
        Poll::Ready(result) => Poll::Ready(result.unwrap_or(Err(io::ErrorKind::Interrupted.into()))),
        Poll::Pending => late.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into())),
    })
    .await
}
