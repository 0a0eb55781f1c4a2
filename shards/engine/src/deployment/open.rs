//! Opening a formatted deployment: who is there, who counts, and the epoch that says so.
//!
//! What a disk says of itself counts only as far as the newest epoch agrees; disks that are missing are left out by the next
//! one, as long as the rest is enough and nobody can have gone on without it (docs/decisions/0010).

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::OnceLock;

use basalt_reactor::{Core, Disk};

use super::{
    Deployment, DiskState, Missing, MissingDisks, OpenError, SUPERBLOCK_FILE, format_disk, random_id,
    write_superblock,
};
use crate::extent::members::MemberState;
use crate::format::superblock::{DiskClass, Member, State, Superblock};

/// A disk that is there.
struct Present {
    path: PathBuf,
    disk: Disk,
    superblock: Superblock,
}

/// The disks of a deployment on their way to serve.
pub(super) struct Opening<'a> {
    core: &'a Core,
    class: DiskClass,
    missing_disks: MissingDisks,
    /// By place among the members.
    present: BTreeMap<usize, Present>,
    empty: Vec<(PathBuf, Disk)>,
    /// Empty disks beyond the members.
    spares: Vec<PathBuf>,
    /// The paths given, whatever is there, in their order.
    given: Vec<PathBuf>,
    /// Paths where nothing is to be had, and why.
    unusable: Vec<(PathBuf, String)>,
    /// What the newest epoch says.
    newest: Superblock,
    /// Members that were there and then refused a write.
    failed: BTreeMap<usize, String>,
}

impl<'a> Opening<'a> {
    /// Sorts the disks out.
    ///
    /// # Errors
    /// [`OpenError`] for disks that must not be touched.
    pub(super) fn new(
        core: &'a Core,
        given: &[PathBuf],
        disks: Vec<(PathBuf, Disk, DiskState)>,
        unreachable: Vec<(PathBuf, io::Error)>,
        class: DiskClass,
        missing_disks: MissingDisks,
    ) -> Result<Opening<'a>, OpenError> {
        let mut unusable: Vec<_> =
            unreachable.into_iter().map(|(path, error)| (path, error.to_string())).collect();
        let mut ours: Vec<Present> = Vec::new();
        let mut formatting: Vec<Present> = Vec::new();
        let mut empty = Vec::new();
        for (path, disk, state) in disks {
            match state {
                DiskState::Foreign { example } => return Err(OpenError::Foreign { path, example }),
                DiskState::Empty => empty.push((path, disk)),
                DiskState::Unreadable { reasons } => unusable.push((path, reasons.join("; "))),
                // A new disk whose formatting was cut off, unless the others count on it already.
                DiskState::Ours(superblock) if superblock.state == State::Formatting => {
                    formatting.push(Present { path, disk, superblock: *superblock });
                }
                DiskState::Ours(superblock) => {
                    if let Some(first) = ours.first()
                        && first.superblock.set != superblock.set
                    {
                        return Err(OpenError::Mixed { path, other: first.path.clone() });
                    }
                    ours.push(Present { path, disk, superblock: *superblock });
                }
            }
        }
        let newest = ours.iter().map(|disk| &disk.superblock).max_by_key(|superblock| superblock.epoch);
        let newest = newest.cloned().ok_or_else(|| OpenError::Layout("no disk was given".to_owned()))?;
        let is_member =
            |disk: &Present| newest.members.iter().any(|member| member.disk == disk.superblock.disk);
        let (members, cut_off): (Vec<_>, Vec<_>) = formatting.into_iter().partition(is_member);
        ours.extend(members);
        empty.extend(cut_off.into_iter().map(|disk| (disk.path, disk.disk)));
        let mut present: BTreeMap<usize, Present> = BTreeMap::new();
        for disk in ours {
            let place = newest.members.iter().position(|member| member.disk == disk.superblock.disk);
            let Some(place) = place else {
                return Err(OpenError::Replaced { path: disk.path });
            };
            if let Some(other) = present.get(&place) {
                return Err(OpenError::Duplicate { path: disk.path, other: other.path.clone() });
            }
            present.insert(place, disk);
        }
        let failed = BTreeMap::new();
        let spares = Vec::new();
        Ok(Opening {
            core,
            class,
            missing_disks,
            present,
            empty,
            spares,
            given: given.to_vec(),
            unusable,
            newest,
            failed,
        })
    }

    /// The deployment as the newest epoch has it, without those that are not counted on. Of one that is behind nothing is
    /// believed, so it is as good as missing.
    pub(super) fn open_for_reading(&mut self) -> Result<Deployment, OpenError> {
        let mut states = self.states();
        self.check_newest(&states)?;
        let missing = self.missing(&states);
        if !states.contains(&MemberState::InSync) {
            return Err(OpenError::TooFew { in_sync: 0, needed: 1, missing });
        }
        let mut superblock = self.newest.clone();
        for (member, state) in superblock.members.iter_mut().zip(&mut states) {
            member.state = if *state == MemberState::InSync { *state } else { MemberState::Out };
        }
        Ok(Deployment { read_only: true, missing, ..self.finish(superblock) })
    }

    /// Starts the next epoch on every disk that takes it.
    pub(super) async fn open(&mut self) -> Result<Deployment, OpenError> {
        // A disk that refuses is missing, and the others are asked anew whether they are enough.
        loop {
            let states = self.states();
            self.check(&states)?;
            let replaced = self.choose_replacements(&states);
            match self.start_epoch(&states, replaced).await {
                Ok(superblock) => return Ok(self.finish(superblock)),
                Err((place, error)) => {
                    let reason = error.to_string();
                    let Some(disk) = self.present.remove(&place) else {
                        return Err(OpenError::Layout(reason));
                    };
                    tracing::warn!(disk = place, path = %disk.path.display(), %reason, "left out");
                    self.unusable.push((disk.path, reason.clone()));
                    self.failed.insert(place, reason);
                }
            }
        }
    }

    /// What each member is good for.
    fn states(&self) -> Vec<MemberState> {
        let state = |(place, member): (usize, &Member)| match self.present.get(&place) {
            None => MemberState::Out,
            // Sound or not, an operator does not want it.
            Some(_) if member.removed => MemberState::Out,
            // A new epoch is durable on every member before anything is acknowledged in it; so a disk one epoch behind
            // only missed an opening that never served.
            Some(disk)
                if member.state == MemberState::InSync && disk.superblock.epoch + 1 >= self.newest.epoch =>
            {
                MemberState::InSync
            }
            Some(_) => MemberState::Behind,
        };
        self.newest.members.iter().enumerate().map(state).collect()
    }

    fn missing(&self, states: &[MemberState]) -> Vec<Missing> {
        let reason = |(disk, state): (usize, &MemberState)| {
            let reason = match state {
                MemberState::InSync => return None,
                MemberState::Behind => "was away and is not rebuilt yet".to_owned(),
                MemberState::Out => match self.failed.get(&disk) {
                    Some(reason) => format!("failed: {reason}"),
                    None if self.newest.members[disk].removed => "was removed by an operator".to_owned(),
                    None => "is missing".to_owned(),
                },
            };
            Some(Missing { disk, reason })
        };
        let mut missing: Vec<_> = states.iter().enumerate().filter_map(reason).collect();
        if let Some(last) = missing.last_mut() {
            for (path, reason) in &self.unusable {
                last.reason.push_str(&format!(" ({}: {reason})", path.display()));
            }
        }
        missing
    }

    /// Whether the disks that hold all they should are enough, and whether the others can have gone on without them.
    fn check(&self, states: &[MemberState]) -> Result<(), OpenError> {
        let groups = self.newest.groups();
        for group in groups.all() {
            let (in_sync, needed) = (groups.in_sync(group, states), groups.needed(group));
            if in_sync < needed {
                return Err(OpenError::TooFew { in_sync, needed, missing: self.missing(states) });
            }
        }
        self.check_newest(states)
    }

    /// Whether the missing disks can have gone on without those that are there.
    fn check_newest(&self, states: &[MemberState]) -> Result<(), OpenError> {
        let groups = self.newest.groups();
        let unseen = |place: usize| !self.present.contains_key(&place) && !self.failed.contains_key(&place);
        let elsewhere = |(place, member): (usize, &Member)| match member.state {
            MemberState::InSync if unseen(place) => MemberState::InSync,
            _ => MemberState::Out,
        };
        let elsewhere: Vec<_> = self.newest.members.iter().enumerate().map(elsewhere).collect();
        // Not without enough of every group.
        if groups.are_enough(&elsewhere) && self.missing_disks == MissingDisks::MayHaveGoneOn {
            return Err(OpenError::MayHaveGoneOn { missing: self.missing(states) });
        }
        Ok(())
    }

    /// Empty disks that take the places of missing members. Where more disks were given than there are members, some are meant as
    /// spares: what is missing may be late, and gets the time that a disk gets which goes while the server runs.
    fn choose_replacements(&mut self, states: &[MemberState]) -> BTreeMap<usize, (PathBuf, Disk)> {
        let missing: Vec<usize> = (0..states.len())
            .filter(|place| states[*place] == MemberState::Out && !self.failed.contains_key(place))
            .collect();
        if self.given.len() > states.len() {
            for (path, _) in std::mem::take(&mut self.empty) {
                self.unusable.push((path.clone(), "empty, a spare disk".to_owned()));
                self.spares.push(path);
            }
        }
        let own = |place: &usize| self.newest.members[*place].own_filesystem;
        let expects_own = missing.iter().any(own);
        let mut replaced = BTreeMap::new();
        let (mut vacant, mut others) = (missing, Vec::new());
        for (path, disk) in std::mem::take(&mut self.empty) {
            // Not knowing is no reason to write to it.
            let is_own = disk.own_filesystem().unwrap_or(false);
            if expects_own && !is_own {
                let reason = "empty, and not a file system of its own as the missing disk was: not mounted?";
                tracing::warn!(path = %path.display(), "{reason}");
                self.unusable.push((path, reason.to_owned()));
                continue;
            }
            // Where disks are named in their usual order, a new one stands where the old one stood; another one that is missing
            // may come back, and would be refused if its place were taken.
            let place = vacant.iter().copied().find(|&place| self.given.get(place) == Some(&path));
            vacant.retain(|&vacant| Some(vacant) != place);
            match place {
                Some(place) => {
                    replaced.insert(place, (path, disk));
                }
                None => others.push((path, disk)),
            }
        }
        let mut vacant = vacant.into_iter();
        for (path, disk) in others {
            match vacant.next() {
                Some(place) => {
                    replaced.insert(place, (path, disk));
                }
                None => self.unusable.push((path, "empty, and no disk is missing".to_owned())),
            }
        }
        for (place, (path, _)) in &replaced {
            tracing::info!(disk = place, path = %path.display(), "an empty disk takes the place of a missing one");
        }
        replaced
    }

    /// Where a member is, or where it stands in the list if it is not there and nothing of use is.
    fn path_of(&self, place: usize) -> Option<PathBuf> {
        let is_unusable = |path: &&PathBuf| self.unusable.iter().any(|(unusable, _)| unusable == *path);
        match self.present.get(&place) {
            Some(disk) => Some(disk.path.clone()),
            None => self.given.get(place).filter(is_unusable).cloned(),
        }
    }

    /// Makes the next epoch durable; on failure says which member refused.
    async fn start_epoch(
        &mut self,
        states: &[MemberState],
        replaced: BTreeMap<usize, (PathBuf, Disk)>,
    ) -> Result<Superblock, (usize, io::Error)> {
        // What was read may lie in a drive's cache alone, left there by a killed process. The copy that is overwritten next
        // must not be all that a power cut leaves.
        for (&place, disk) in &self.present {
            let synced = async { disk.disk.open_file(SUPERBLOCK_FILE)?.sync().await };
            synced.await.map_err(|error| (place, error))?;
        }
        // Two steps, so that however often this is cut off, no two disks in sync are ever more than one epoch apart.
        let epoch = self.newest.epoch;
        for place in places(states, MemberState::InSync) {
            if self.present.get(&place).is_some_and(|disk| disk.superblock.epoch < epoch) {
                let newest = self.newest.clone();
                self.write(place, &newest).await.map_err(|error| (place, error))?;
            }
        }
        let mut next = self.newest.clone();
        next.epoch = epoch + 1;
        for (place, member) in next.members.iter_mut().enumerate() {
            let is_recent = self.present.get(&place).is_some_and(|disk| disk.superblock.epoch + 1 >= epoch);
            let was_behind = member.state == MemberState::Behind && member.epoch_last == epoch && is_recent;
            member.state = states[place];
            if replaced.contains_key(&place) {
                *member = Member {
                    disk: random_id(self.core),
                    class: self.class,
                    state: MemberState::Behind,
                    removed: false,
                    ..member.clone()
                };
            }
            if member.state == MemberState::Behind && !was_behind {
                member.joined = next.epoch;
            }
            if member.state != MemberState::Out {
                member.epoch_last = next.epoch;
            }
        }
        for (place, (path, disk)) in replaced {
            next.members[place].own_filesystem = disk.own_filesystem().map_err(|error| (place, error))?;
            let superblock = Superblock {
                sequence: 1,
                state: State::Formatting,
                disk: next.members[place].disk,
                disk_index: u8::try_from(place).expect("at most 240 disks"),
                ..next.clone()
            };
            let formatted = format_disk(self.core, &disk, &superblock).await;
            // In the list first, so that one that refuses is left out like any other.
            self.present.insert(place, Present { path, disk, superblock });
            formatted.map_err(|error| (place, error))?;
        }
        // An epoch's number is never given to other members: should one refuse, the next attempt takes the next.
        self.newest = next.clone();
        // Those in sync first: while one of them lacks the epoch, nobody needs it.
        let behind = places_of(&next.members, MemberState::Behind);
        for place in places(states, MemberState::InSync).into_iter().chain(behind) {
            let was_formatted = self.was_formatted(place);
            self.write(place, &next).await.map_err(|error| (place, error))?;
            if !was_formatted {
                // Over the copy that says Formatting too: it would be the disk's word, were this one damaged.
                self.write(place, &next).await.map_err(|error| (place, error))?;
            }
        }
        Ok(next)
    }

    /// Whether the disk's formatting was not cut off.
    fn was_formatted(&self, place: usize) -> bool {
        self.present.get(&place).is_none_or(|disk| disk.superblock.state == State::Ready)
    }

    async fn write(&mut self, place: usize, config: &Superblock) -> io::Result<()> {
        let disk = self.present.get_mut(&place).ok_or(io::ErrorKind::NotFound)?;
        let superblock = Superblock {
            sequence: disk.superblock.sequence + 1,
            state: State::Ready,
            disk: config.members[place].disk,
            disk_index: u8::try_from(place).expect("at most 240 disks"),
            ..config.clone()
        };
        let file = disk.disk.open_file(SUPERBLOCK_FILE)?;
        write_superblock(self.core, &file, &superblock).await?;
        disk.superblock = superblock;
        Ok(())
    }

    fn finish(&mut self, superblock: Superblock) -> Deployment {
        let disk = |place: usize| self.present.get(&place);
        let count = superblock.members.len();
        Deployment {
            sequences: (0..count)
                .map(|place| disk(place).map_or(0, |disk| disk.superblock.sequence))
                .collect(),
            paths: (0..count).map(|place| self.path_of(place)).collect(),
            unclaimed: self.unusable.iter().map(|(path, _)| path.clone()).collect(),
            spares: self.spares.clone(),
            superblock,
            fresh: false,
            read_only: false,
            missing: Vec::new(),
            flushes: OnceLock::new(),
        }
    }
}

/// Places of `state` among `states`.
fn places(states: &[MemberState], state: MemberState) -> Vec<usize> {
    (0..states.len()).filter(|&place| states[place] == state).collect()
}

fn places_of(members: &[Member], state: MemberState) -> Vec<usize> {
    (0..members.len()).filter(|&place| members[place].state == state).collect()
}
