//! Who is a member of the set: taking disks out, letting them in again, one epoch after the other.
//!
//! Only the first core makes epochs, one at a time. Each is durable on every present member before any core hears of it, and
//! heard of by every core before whoever asked for it goes on (docs/decisions/0010).

mod add;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use basalt_reactor::mesh::Port;
use basalt_reactor::{Core, CoreId, Disk, Monotonic};

use super::{Engine, open_disk_files};
use crate::deployment::{
    Deployment, DiskState, LOCK_FILE, SUPERBLOCK_FILE, format_disk, inspect, random_id, write_superblock,
};
use crate::error::EngineError;
use crate::extent::DiskIndex;
use crate::extent::groups::Groups;
use crate::extent::members::{Excluder, MemberState, STUCK_AFTER};
use crate::format::superblock::{State, Superblock};
use crate::request::{Reply, Request};
use crate::shard::rebuild::TellRebuilt;
use crate::wait::KeyLocks;

/// How often the first core looks whether each disk is still where it was, and whether one that is missing is back.
const WATCH_EVERY: Duration = Duration::from_secs(2);

/// How long a disk that failed is left alone the first time, and how often that is doubled at most (then a day and a half).
const DISTRUST_FIRST: Duration = Duration::from_secs(30);
const DISTRUST_DOUBLINGS_MAX: u32 = 12;

/// The lock of whoever makes an epoch.
const EPOCH_TURN: &[u8] = b"epoch";

/// What the first core knows of the members beyond their states.
pub(super) struct Membership {
    turn: Rc<KeyLocks>,
    /// The newest epoch, as it is written to every disk but for what is the disk's own.
    config: RefCell<Superblock>,
    sequences: RefCell<Vec<u64>>,
    /// Where each member is, or was last.
    paths: RefCell<Vec<Option<PathBuf>>>,
    /// Where else one that is missing may turn up.
    unclaimed: RefCell<Vec<PathBuf>>,
    /// Members that failed while they were there.
    distrusted: RefCell<BTreeMap<usize, Distrust>>,
    /// Shards that have rebuilt their part of a disk, by disk and the epoch in which it joined.
    rebuilt: RefCell<BTreeMap<(u8, u64), BTreeSet<u16>>>,
    /// Paths that are being looked at.
    looks: RefCell<BTreeSet<PathBuf>>,
    /// Looks at the disks that have ended.
    rounds: Cell<u64>,
}

/// Why a disk that looks sound is not let in.
#[derive(Clone, Copy)]
struct Distrust {
    failures: u32,
    until: Monotonic,
}

impl Membership {
    /// A disk that fails is left alone for a while, each time for twice as long, unless it was away in between.
    fn distrust(&self, place: usize, now: Monotonic) {
        let mut distrusted = self.distrusted.borrow_mut();
        let failures = distrusted.get(&place).map_or(0, |distrust| distrust.failures);
        let until = now + DISTRUST_FIRST * (1 << failures.min(DISTRUST_DOUBLINGS_MAX));
        distrusted.insert(place, Distrust { failures: failures + 1, until });
    }

    fn trusts(&self, place: usize, now: Monotonic) -> bool {
        self.distrusted.borrow().get(&place).is_none_or(|distrust| now >= distrust.until)
    }

    pub(super) fn new(deployment: &Deployment) -> Membership {
        Membership {
            turn: Rc::default(),
            config: RefCell::new(deployment.superblock.clone()),
            sequences: RefCell::new(deployment.sequences.clone()),
            paths: RefCell::new(deployment.paths.clone()),
            unclaimed: RefCell::new(deployment.unclaimed.clone()),
            distrusted: RefCell::default(),
            rebuilt: RefCell::default(),
            looks: RefCell::default(),
            rounds: Cell::new(0),
        }
    }
}

/// How a core asks for a disk to be taken out.
pub(super) fn excluder(port: &Port<Request, Reply>) -> Excluder {
    let port = port.clone();
    Rc::new(move |disk, reason| {
        let port = port.clone();
        Box::pin(async move {
            let asked = port.call(CoreId(0), Request::Exclude { disk, reason }).await;
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
    fn membership(&self) -> &Membership {
        self.inner.membership.as_ref().expect("only the first core is asked for epochs")
    }

    /// Takes `disk` out of the set; `false` when too few would be left.
    pub(super) async fn exclude(&self, disk: DiskIndex, reason: &str) -> bool {
        let membership = self.membership();
        let _turn = membership.turn.lock(EPOCH_TURN).await;
        let place = usize::from(disk.0);
        let mut out = BTreeMap::from([(place, reason.to_owned())]);
        let mut told = BTreeSet::new();
        loop {
            let mut states = self.inner.members.states();
            if states[place] == MemberState::Out {
                return true;
            }
            for &place in out.keys() {
                states[place] = MemberState::Out;
            }
            let groups = self.inner.members.groups();
            let Some(tolerated) = groups.tolerated(&states) else {
                let group = groups.of(disk);
                let (in_sync, needed) = (groups.in_sync(group, &states), groups.needed(group));
                tracing::error!(
                    disk = place,
                    reason,
                    in_sync,
                    needed,
                    "a disk fails that its group cannot do without"
                );
                return false;
            };
            for (&place, reason) in out.iter().filter(|(place, _)| told.insert(**place)) {
                tracing::error!(disk = place, path = %self.path_of(place), reason, tolerated,
                    "the disk is taken out of the set");
                membership.distrust(place, self.inner.core.now());
            }
            match self.start_epoch(&states, |_| {}).await {
                Ok(()) => return true,
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
        let mut failed = Vec::new();
        for place in (0..states.len()).filter(|&place| states[place] != MemberState::Out) {
            if let Err(error) = self.write_superblock(place, &next).await {
                tracing::error!(disk = place, path = %self.path_of(place), %error, "superblock not written");
                failed.push(place);
            }
        }
        if failed.is_empty() {
            self.tell_members(next.epoch, states).await;
            Ok(())
        } else {
            Err(failed)
        }
    }

    async fn write_superblock(&self, place: usize, config: &Superblock) -> io::Result<()> {
        let membership = self.membership();
        let path = membership.paths.borrow()[place].clone().ok_or(io::ErrorKind::NotFound)?;
        let sequence = {
            let mut sequences = membership.sequences.borrow_mut();
            sequences[place] += 1;
            sequences[place]
        };
        let superblock = Superblock {
            sequence,
            state: State::Ready,
            disk: config.members[place].disk,
            disk_index: u8::try_from(place).expect("a set has at most 20 disks"),
            ..config.clone()
        };
        let core = self.inner.core.clone();
        let disk = DiskIndex(superblock.disk_index);
        let changing = self.inner.members.begin_change(disk);
        let write = async move {
            let file = Disk::open(&core, &path)?.open_file(SUPERBLOCK_FILE)?;
            let written = write_superblock(&core, &file, &superblock).await;
            drop(changing);
            written
        };
        in_time(&self.inner.core, write).await
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
        for files in self.inner.files.borrow().iter() {
            for (disk, &state) in (0..).map(DiskIndex).zip(states) {
                if state == MemberState::Out {
                    files.set_disk(disk, None);
                }
            }
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
            files.set_disk(disk, Some(Rc::new(open_disk_files(&opened, shard)?)));
        }
        let shards: Vec<_> = self.inner.shards.borrow().values().cloned().collect();
        for shard in shards {
            shard.space.catch_up(disk).await?;
        }
        self.inner.locks.borrow_mut().push(lock);
        Ok(())
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

    /// Looks after the members: one whose path leads elsewhere is taken out, one that is missing is let in when it is back,
    /// or when an empty disk has taken its place.
    pub(super) async fn watch_members(self) {
        if self.inner.members.states().len() == 1 {
            return;
        }
        loop {
            self.inner.core.sleep(WATCH_EVERY).await;
            for place in 0..self.inner.members.states().len() {
                self.watch_member(place).await;
            }
            let rounds = &self.membership().rounds;
            rounds.set(rounds.get() + 1);
        }
    }

    async fn watch_member(&self, place: usize) {
        let membership = self.membership();
        let disk = DiskIndex(u8::try_from(place).expect("a set has at most 20 disks"));
        let (set, id) = {
            let config = membership.config.borrow();
            (config.set, config.members[place].disk)
        };
        let is_member = |state: &DiskState| matches!(state, DiskState::Ours(superblock) if superblock.set == set && superblock.disk == id);
        let known = membership.paths.borrow()[place].clone();
        if self.inner.members.state(disk) != MemberState::Out {
            let Some(path) = known else { return };
            let found = self.look_at(&path).await;
            if !found.as_ref().is_ok_and(is_member) {
                let reason = match found {
                    Ok(_) => "its path holds another disk".to_owned(),
                    Err(error) => error.to_string(),
                };
                self.exclude(disk, &reason).await;
                membership.distrusted.borrow_mut().remove(&place);
            }
            return;
        }
        let mut candidates = membership.unclaimed.borrow().clone();
        candidates.splice(0..0, known);
        for path in candidates {
            match self.look_at(&path).await {
                // It failed where it is, and still is there.
                Ok(state) if is_member(&state) && !membership.trusts(place, self.inner.core.now()) => {}
                Ok(state) if is_member(&state) => {
                    self.let_in(place, &path, false).await;
                    return;
                }
                Ok(DiskState::Empty) if self.may_replace(place, &path) => {
                    self.let_in(place, &path, true).await;
                    return;
                }
                // It was away: what is there next is looked at anew.
                _ if membership.paths.borrow()[place].as_ref() == Some(&path) => {
                    membership.distrusted.borrow_mut().remove(&place);
                }
                _ => {}
            }
        }
    }

    async fn look_at(&self, path: &Path) -> io::Result<DiskState> {
        // A disk that has not answered yet is not asked again: every question takes memory for as long.
        if !self.membership().looks.borrow_mut().insert(path.to_owned()) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let (engine, path) = (self.clone(), path.to_owned());
        let look = async move {
            let core = &engine.inner.core;
            let found = async { inspect(core, &Disk::open(core, &path)?).await }.await;
            engine.membership().looks.borrow_mut().remove(&path);
            found
        };
        in_time(&self.inner.core, look).await
    }

    /// An empty directory where a file system of its own was mounted is a mount point without its disk.
    fn may_replace(&self, place: usize, path: &Path) -> bool {
        if !self.membership().config.borrow().members[place].own_filesystem {
            return true;
        }
        Disk::open(&self.inner.core, path).and_then(|disk| disk.own_filesystem()).unwrap_or(false)
    }

    /// Makes the disk at `path` member `place` again, behind; a new one is formatted first.
    async fn let_in(&self, place: usize, path: &Path, new: bool) {
        let membership = self.membership();
        let _turn = membership.turn.lock(EPOCH_TURN).await;
        let disk = DiskIndex(u8::try_from(place).expect("a set has at most 20 disks"));
        let mut states = self.inner.members.states();
        if states[place] != MemberState::Out {
            return;
        }
        match self.open_everywhere(place, path, new).await {
            Ok(id) => {
                states[place] = MemberState::Behind;
                let own = Disk::open(&self.inner.core, path).and_then(|disk| disk.own_filesystem());
                let taken = self
                    .start_epoch(&states, |next| {
                        next.members[place].disk = id;
                        next.members[place].own_filesystem = own.unwrap_or(false);
                    })
                    .await;
                if taken.is_ok() {
                    tracing::info!(disk = place, path = %path.display(), new, "the disk is a member again and is rebuilt");
                    let joined = membership.config.borrow().members[place].joined;
                    for core in 0..self.inner.core_count {
                        let rebuild = Request::Rebuild { disk, joined };
                        let _closing = self.inner.port.call(CoreId(core), rebuild).await.is_err();
                    }
                    return;
                }
                // The next look tries again; an epoch that nobody was told of has left it out.
                self.forget(place).await;
            }
            Err(error) => {
                tracing::warn!(disk = place, path = %path.display(), %error, "the disk is not let in");
                self.forget(place).await;
            }
        }
    }

    /// Has every core open the disk; gives the disk's id.
    async fn open_everywhere(&self, place: usize, path: &Path, new: bool) -> Result<[u8; 16], EngineError> {
        let membership = self.membership();
        let failed = |error: io::Error| EngineError::Damaged(error.to_string());
        let core = &self.inner.core;
        let opened = Disk::open(core, path).map_err(failed)?;
        let mut id = membership.config.borrow().members[place].disk;
        if new {
            id = random_id(core);
            let superblock = Superblock {
                sequence: 1,
                state: State::Formatting,
                disk: id,
                disk_index: u8::try_from(place).expect("a set has at most 20 disks"),
                ..membership.config.borrow().clone()
            };
            format_disk(core, &opened, &superblock).await.map_err(failed)?;
            membership.sequences.borrow_mut()[place] = 1;
        } else if let DiskState::Ours(superblock) = inspect(core, &opened).await.map_err(failed)? {
            // The copy that is overwritten next must not be all that a power cut leaves.
            opened.open_file(SUPERBLOCK_FILE).map_err(failed)?.sync().await.map_err(failed)?;
            membership.sequences.borrow_mut()[place] = superblock.sequence;
        }
        membership.paths.borrow_mut()[place] = Some(path.to_owned());
        membership.unclaimed.borrow_mut().retain(|unclaimed| unclaimed != path);
        let disk = DiskIndex(u8::try_from(place).expect("a set has at most 20 disks"));
        for core in 0..self.inner.core_count {
            let open = Request::OpenDisk { disk, path: path.to_owned() };
            match self.inner.port.call(CoreId(core), open).await {
                Ok(Reply::Done(result)) => result?,
                _ => return Err(EngineError::Closed),
            }
        }
        Ok(id)
    }

    /// Has every core close a disk that was not let in after all.
    async fn forget(&self, place: usize) {
        let states = self.inner.members.states();
        debug_assert!(states[place] == MemberState::Out, "a member is not forgotten");
        self.tell_members(self.inner.members.epoch(), &states).await;
    }

    fn path_of(&self, place: usize) -> String {
        let paths = self.membership().paths.borrow();
        paths[place].as_ref().map_or_else(|| "(unknown)".to_owned(), |path| path.display().to_string())
    }
}

/// Runs `operation`, but does not wait for a device for ever.
async fn in_time<T: 'static>(
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
