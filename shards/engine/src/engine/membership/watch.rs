//! Looking after the members: who has gone, who is back, and which empty disk takes whose place.

use std::io;
use std::path::Path;
use std::time::Duration;

use basalt_reactor::{CoreId, Disk, Monotonic};

use super::super::Engine;
use super::{Cause, Membership, WATCH_EVERY, in_time};
use crate::deployment::{DiskState, LOCK_FILE, SUPERBLOCK_FILE, format_disk, inspect, random_id};
use crate::error::EngineError;
use crate::extent::DiskIndex;
use crate::extent::members::MemberState;
use crate::format::superblock::{State, Superblock};
use crate::request::{Reply, Request};

/// How long a disk that failed is left alone the first time, and how often that is doubled at most (then a day and a half).
const DISTRUST_FIRST: Duration = Duration::from_secs(30);
const DISTRUST_DOUBLINGS_MAX: u32 = 12;

/// Looks at a member in a row that its device failed, until it is out.
const UNSEEN_MAX: u32 = 3;

/// Why a disk that looks sound is not let in.
#[derive(Clone, Copy)]
pub(super) struct Distrust {
    failures: u32,
    /// `None`: until it was away, or an operator says otherwise.
    until: Option<Monotonic>,
}

/// Who asks for a disk to be let in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Newcomer {
    /// It was a member before.
    Old,
    /// An empty one takes the place.
    Empty,
}

impl Membership {
    /// A disk that fails is left alone for a while, each time for twice as long, unless it was away in between; one that is
    /// out because of its record, for good.
    pub(super) fn distrust(&self, place: usize, cause: Cause, now: Monotonic) {
        let mut distrusted = self.distrusted.borrow_mut();
        let failures = distrusted.get(&place).map_or(0, |distrust| distrust.failures);
        let until = match cause {
            Cause::Failure => Some(now + DISTRUST_FIRST * (1 << failures.min(DISTRUST_DOUBLINGS_MAX))),
            Cause::Record | Cause::Order | Cause::Full => None,
        };
        distrusted.insert(place, Distrust { failures: failures + 1, until });
    }

    fn trusts(&self, place: usize, now: Monotonic) -> bool {
        let trusted = |distrust: &Distrust| distrust.until.is_some_and(|until| now >= until);
        !self.config.borrow().members[place].removed
            && self.distrusted.borrow().get(&place).is_none_or(trusted)
    }

    /// A look at a member said nothing, which is as good as a failed read; whether it has been so too often in a row.
    fn note_unseen(&self, place: usize) -> bool {
        let mut unseen = self.unseen.borrow_mut();
        let count = unseen.entry(place).or_default();
        *count += 1;
        let too_often = *count >= UNSEEN_MAX;
        if too_often {
            unseen.remove(&place);
        }
        too_often
    }

    /// Whether `path` is where another member was: what is empty there takes that one's place.
    fn is_for_another(&self, place: usize, path: &Path) -> bool {
        let paths = self.paths.borrow();
        paths.iter().enumerate().any(|(other, known)| other != place && known.as_deref() == Some(path))
    }

    /// Whether `place` has been out for so long that a spare disk is to take it.
    fn wants_spare(&self, place: usize, now: Monotonic) -> bool {
        let mut vacant = self.vacant.borrow_mut();
        let since = *vacant.entry(place).or_insert(now);
        now.since(since) >= self.options.spare_after
    }
}

impl Engine {
    /// Looks after the members: one whose path leads elsewhere is taken out, one that is missing is let in when it is back,
    /// or when an empty disk has taken its place; one whose record is bad is taken out.
    pub(in super::super) async fn watch_members(self) {
        let is_read_only = self.is_read_only();
        if !is_read_only {
            for place in 0..self.inner.members.states().len() {
                self.keep_superblock_open(place).await;
            }
        }
        loop {
            self.inner.core.sleep(WATCH_EVERY).await;
            let states = self.inner.members.states();
            let is_out = |place: &usize| states[*place] == MemberState::Out;
            self.membership().vacant.borrow_mut().retain(|place, _| is_out(place));
            // Alone, there is nobody to do without a disk, or to take its place.
            if is_read_only {
                // Who is there was decided at the start.
            } else if states.len() > 1 {
                for place in 0..states.len() {
                    self.watch_member(place).await;
                }
                if self.inner.members.states().iter().all(|&state| state != MemberState::Out) {
                    self.find_spares().await;
                }
                self.settle_epochs().await;
            } else {
                self.look_at_failing(0).await;
            }
            // A core that is closing has nothing to say, and needs no judge.
            if let Ok((figures, is_healthy)) = self.add_up().await {
                self.note_health(is_healthy).await;
                let report = self.draw_report(&figures);
                if !is_read_only {
                    self.log_progress(&report);
                    self.judge(&figures).await;
                }
            }
        }
    }

    async fn watch_member(&self, place: usize) {
        let membership = self.membership();
        let disk = DiskIndex(u8::try_from(place).expect("at most 240 disks"));
        let known = membership.paths.borrow()[place].clone();
        if self.inner.members.state(disk) != MemberState::Out {
            let Some(path) = known else { return };
            let mut found = self.look_at(&path).await;
            let is_member = |found: &io::Result<DiskState>| {
                found.as_ref().is_ok_and(|state| self.is_member(place, state))
            };
            let is_late = found.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::TimedOut);
            // A disk that is where it was, and has lost both copies of its superblock, gets them again.
            if !is_member(&found) && !is_late && self.mend_superblock(place).await {
                found = self.look_at(&path).await;
            }
            if is_member(&found) {
                self.keep_superblock_open(place).await;
                membership.unseen.borrow_mut().remove(&place);
                self.look_at_failing(place).await;
                return;
            }
            let reason = match &found {
                Ok(DiskState::Empty) => "its path leads to an empty directory: not mounted?".to_owned(),
                Ok(_) => "its path holds another disk".to_owned(),
                Err(error) => error.to_string(),
            };
            let is_late = found.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::TimedOut);
            if is_away(&found) || is_late {
                if !self.exclude(disk, &reason).await {
                    self.note_away(place, is_late).await;
                }
                if !is_late {
                    membership.distrusted.borrow_mut().remove(&place);
                }
            } else if membership.note_unseen(place) {
                self.exclude(disk, &format!("its superblock cannot be read: {reason}")).await;
                membership.distrust(place, Cause::Record, self.inner.core.now());
            }
            return;
        }
        self.forget_superblock(place);
        let now = self.inner.core.now();
        let spare_is_due = membership.wants_spare(place, now);
        let mut candidates = membership.unclaimed.borrow().clone();
        candidates.splice(0..0, known);
        for path in candidates {
            let is_spare = membership.spares.borrow().contains(&path);
            match self.look_at(&path).await {
                // It failed where it is, and still is there; or nobody wants it.
                Ok(state) if self.is_member(place, &state) && !membership.trusts(place, now) => {}
                Ok(state) if self.is_member(place, &state) && !self.has_room(place, &path) => {}
                Ok(state) if self.is_member(place, &state) => {
                    // A refusal was logged; the next look tries again.
                    let _refused = self.let_in(place, &path, Newcomer::Old).await.is_err();
                    return;
                }
                Ok(DiskState::Empty)
                    if (spare_is_due || !is_spare)
                        && !membership.is_for_another(place, &path)
                        && self.may_replace(place, &path) =>
                {
                    let _refused = self.let_in(place, &path, Newcomer::Empty).await.is_err();
                    return;
                }
                // It was away: what is there next is looked at anew.
                found if is_away(&found) && membership.paths.borrow()[place].as_ref() == Some(&path) => {
                    membership.distrusted.borrow_mut().remove(&place);
                }
                _ => {}
            }
        }
    }

    /// Which of the paths where no member is hold empty disks, while nobody is missing.
    async fn find_spares(&self) {
        let membership = self.membership();
        let candidates = membership.unclaimed.borrow().clone();
        for path in candidates {
            let is_spare = matches!(self.look_at(&path).await, Ok(DiskState::Empty));
            let mut spares = membership.spares.borrow_mut();
            if !is_spare {
                spares.remove(&path);
            } else if spares.insert(path.clone()) {
                tracing::info!(path = %path.display(), "a spare disk");
            }
        }
    }

    pub(super) fn is_member(&self, place: usize, state: &DiskState) -> bool {
        let config = self.membership().config.borrow();
        matches!(state, DiskState::Ours(superblock)
            if superblock.set == config.set && superblock.disk == config.members[place].disk)
    }

    /// Whether a disk is a member, by its id.
    fn counts_on(&self, disk: [u8; 16]) -> bool {
        self.membership().config.borrow().members.iter().any(|member| member.disk == disk)
    }

    pub(super) async fn look_at(&self, path: &Path) -> io::Result<DiskState> {
        // A disk that has not answered yet is not asked again: every question takes memory for as long.
        if !self.membership().looks.borrow_mut().insert(path.to_owned()) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let (engine, path) = (self.clone(), path.to_owned());
        let look = async move {
            let core = &engine.inner.core;
            let found = async { inspect(core, &Disk::open(core, &path)?).await }.await;
            engine.membership().looks.borrow_mut().remove(&path);
            Ok(match found? {
                // A new disk whose formatting was cut off was never of use, unless the others count on it already.
                DiskState::Ours(superblock)
                    if superblock.state == State::Formatting && !engine.counts_on(superblock.disk) =>
                {
                    DiskState::Empty
                }
                found => found,
            })
        };
        in_time(&self.inner.core, look).await
    }

    /// Whether clients' writes would find room on the disk at `path`, or at least half as much as on the others of its group: with one
    /// that something else has filled they would all be refused.
    fn has_room(&self, place: usize, path: &Path) -> bool {
        let members = &self.inner.members;
        let groups = members.groups();
        let disk = DiskIndex(u8::try_from(place).expect("at most 240 disks"));
        let group = groups.of(disk);
        let shards = self.inner.shards.borrow();
        // The first core has the first shard, and nothing to lose where it is not open yet.
        let Some(shard) = shards.values().next() else { return true };
        let of_others = groups.disks(group).into_iter().filter(|&other| other != disk);
        let available = |other| shard.files.disk(other)?.disk.space().ok().map(|space| space.available);
        let least = of_others.filter_map(available).min().map_or(u64::MAX, |least| least / 2);
        let needed = shard.space.wanted_len(group).min(least);
        let space = Disk::open(&self.inner.core, path).and_then(|disk| disk.space());
        // One that cannot say will say so when it is opened.
        space.map_or(true, |space| space.available >= needed)
    }

    /// An empty directory where a file system of its own was mounted is a mount point without its disk.
    pub(super) fn may_replace(&self, place: usize, path: &Path) -> bool {
        if !self.membership().config.borrow().members[place].own_filesystem {
            return true;
        }
        Disk::open(&self.inner.core, path).and_then(|disk| disk.own_filesystem()).unwrap_or(false)
    }

    /// Makes the disk at `path` member `place` again, behind; an empty one is formatted first.
    pub(super) async fn let_in(
        &self,
        place: usize,
        path: &Path,
        newcomer: Newcomer,
    ) -> Result<(), EngineError> {
        let membership = self.membership();
        let _turn = membership.turn.lock(super::EPOCH_TURN).await;
        let mut states = self.inner.members.states();
        if states[place] != MemberState::Out {
            return Ok(());
        }
        let let_in = self.let_in_as(place, path, newcomer, &mut states).await;
        if let Err(error) = &let_in {
            tracing::warn!(disk = place, path = %path.display(), %error, "the disk is not let in");
            // What was given out meanwhile does not fit: that will not be otherwise in two seconds.
            if *error == EngineError::NoSpace {
                membership.distrust(place, Cause::Failure, self.inner.core.now());
            }
            self.forget(place).await;
        }
        let_in
    }

    async fn let_in_as(
        &self,
        place: usize,
        path: &Path,
        newcomer: Newcomer,
        states: &mut [MemberState],
    ) -> Result<(), EngineError> {
        let membership = self.membership();
        let disk = DiskIndex(u8::try_from(place).expect("at most 240 disks"));
        let id = self.open_everywhere(place, path, newcomer).await?;
        states[place] = MemberState::Behind;
        let own = Disk::open(&self.inner.core, path).and_then(|disk| disk.own_filesystem());
        let taken = self.start_epoch(states, |next| {
            let member = &mut next.members[place];
            (member.disk, member.removed) = (id, false);
            member.own_filesystem = own.unwrap_or(false);
        });
        if taken.await.is_err() {
            // The next look tries again; an epoch that nobody was told of has left it out.
            return Err(EngineError::MembersChanged);
        }
        let new = newcomer == Newcomer::Empty;
        tracing::info!(disk = place, path = %path.display(), new, "the disk is a member again and is rebuilt");
        membership.absences.borrow_mut().remove(&place);
        membership.vacant.borrow_mut().remove(&place);
        let joined = membership.config.borrow().members[place].joined;
        for core in 0..self.inner.core_count {
            let rebuild = Request::Rebuild { disk, joined };
            let _closing = self.inner.port.call(CoreId(core), rebuild).await.is_err();
        }
        Ok(())
    }

    /// Has every core open the disk; gives the disk's id.
    async fn open_everywhere(
        &self,
        place: usize,
        path: &Path,
        newcomer: Newcomer,
    ) -> Result<[u8; 16], EngineError> {
        let membership = self.membership();
        let failed = |error: io::Error| EngineError::Damaged(error.to_string());
        let core = &self.inner.core;
        let opened = Disk::open(core, path).map_err(failed)?;
        // Before anything is written to it: it may be somebody else's by now.
        let _lock = opened.lock(LOCK_FILE).map_err(failed)?;
        let mut id = membership.config.borrow().members[place].disk;
        if newcomer == Newcomer::Empty {
            id = random_id(core);
            let superblock = Superblock {
                sequence: 1,
                state: State::Formatting,
                disk: id,
                disk_index: u8::try_from(place).expect("at most 240 disks"),
                ..membership.config.borrow().clone()
            };
            format_disk(core, &opened, &superblock).await.map_err(failed)?;
            membership.sequences.borrow_mut()[place] = 1;
        } else if let DiskState::Ours(superblock) = inspect(core, &opened).await.map_err(failed)? {
            // The copy that is overwritten next must not be all that a power cut leaves.
            opened.open_file(SUPERBLOCK_FILE).map_err(failed)?.sync().await.map_err(failed)?;
            membership.sequences.borrow_mut()[place] = superblock.sequence;
        }
        membership.claim(place, path);
        let disk = DiskIndex(u8::try_from(place).expect("at most 240 disks"));
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
}

/// Whether a look says that the disk is not there. One that fails to be read is, and so is one that does not answer.
fn is_away(found: &io::Result<DiskState>) -> bool {
    match found {
        Ok(_) => true,
        Err(error) => matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
    }
}

impl Membership {
    /// `path` is where member `place` is from now on; where it was is free for another.
    fn claim(&self, place: usize, path: &Path) {
        let mut paths = self.paths.borrow_mut();
        // It is not where anybody else is to be looked for.
        for known in paths.iter_mut().filter(|known| known.as_deref() == Some(path)) {
            *known = None;
        }
        let before = paths[place].replace(path.to_owned());
        let mut unclaimed = self.unclaimed.borrow_mut();
        unclaimed.retain(|unclaimed| unclaimed != path);
        self.spares.borrow_mut().remove(path);
        if let Some(before) = before.filter(|before| before != path && !unclaimed.contains(before)) {
            unclaimed.push(before);
        }
    }
}
