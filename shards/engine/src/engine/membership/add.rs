//! Growing by a whole set of empty disks while the engine serves.
//!
//! The new disks are formatted first and belong to nobody; the epoch that makes them members is written to the old members
//! before it is written to them. A crash in between leaves either the old deployment or the grown one (docs/decisions/0015).

use std::path::PathBuf;

use basalt_reactor::{CoreId, Disk};

use super::{EPOCH_TURN, Membership};
use crate::deployment::{DiskState, SUPERBLOCK_FILE, format_disk, inspect, random_id};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::extent::DiskIndex;
use crate::extent::groups::{GroupIndex, GroupRole};
use crate::extent::members::MemberState;
use crate::format::superblock::{MEMBER_COUNT_MAX, Member, State, Superblock};
use crate::request::{Reply, Request};

/// Data slots that a disk must at least have room for to be of any use.
const SLOT_COUNT_MIN: u64 = 4;

impl Engine {
    /// Makes the empty disks at `paths` a further set of the deployment, on which new data is placed from then on. The next
    /// start must name them.
    ///
    /// # Errors
    /// [`EngineError::DisksRefused`] says what is wrong with the disks, or which member did not take the change; the deployment is
    /// what it was then.
    pub async fn add_set(&self, paths: Vec<PathBuf>) -> Result<(), EngineError> {
        match self.inner.port.call(CoreId(0), Request::AddSet { paths }).await {
            Ok(Reply::Done(result)) => result,
            _ => Err(EngineError::Closed),
        }
    }

    /// On the first core: [`Engine::add_set`].
    pub(in crate::engine) async fn grow(&self, paths: &[PathBuf]) -> Result<(), EngineError> {
        if self.is_read_only() {
            return Err(EngineError::ReadOnly);
        }
        let membership = self.membership();
        let _turn = membership.turn.lock(EPOCH_TURN).await;
        let old = membership.config.borrow().clone();
        let width = old.geometry.columns();
        if paths.len() != width {
            return Err(refused(format!("a set has {width} disks here, not {}", paths.len())));
        }
        if old.members.len() + width > MEMBER_COUNT_MAX {
            return Err(refused(format!("a deployment has at most {MEMBER_COUNT_MAX} disks")));
        }
        let next = match self.format_set(&old, paths).await {
            Ok(next) => next,
            Err(error) => {
                self.forget_set(paths).await;
                return Err(error);
            }
        };
        let states = next.members.iter().map(|member| member.state).collect::<Vec<_>>();
        membership.extend(next, paths);
        match self.start_epoch(&states, |_| {}).await {
            Ok(()) => {
                tracing::info!(disks = width, "a set of disks was added");
                Ok(())
            }
            Err(failed) => {
                let failed: Vec<_> = failed.into_iter().map(|place| self.path_of(place)).collect();
                membership.truncate(old.members.len(), old.groups.len());
                self.forget_set(paths).await;
                Err(refused(format!("{} did not take the superblock", failed.join(", "))))
            }
        }
    }

    /// Formats the disks as members of the next epoch, and has every core open them. Gives the members with them, under the old
    /// epoch's number still.
    async fn format_set(&self, old: &Superblock, paths: &[PathBuf]) -> Result<Superblock, EngineError> {
        let core = &self.inner.core;
        let group = GroupIndex(u8::try_from(old.groups.len()).expect("fewer groups than disks"));
        let mut next = old.clone();
        next.groups.push(GroupRole::Set);
        let class =
            old.members.iter().find(|member| old.groups[usize::from(member.group.0)] == GroupRole::Set);
        let class = class.map(|member| member.class).expect("there is a set");
        for _ in paths {
            next.members.push(Member {
                disk: random_id(core),
                class,
                group,
                state: MemberState::InSync,
                own_filesystem: false,
                removed: false,
                epoch_last: old.epoch + 1,
                joined: old.epoch + 1,
            });
        }
        let places = old.members.len()..;
        for (place, path) in places.clone().zip(paths) {
            let disk =
                Disk::open(core, path).map_err(|error| refused(format!("{}: {error}", path.display())))?;
            let failed = |error: std::io::Error| refused(format!("{}: {error}", path.display()));
            match inspect(core, &disk).await.map_err(failed)? {
                DiskState::Empty => {}
                // Left of an attempt that failed; nobody's.
                DiskState::Ours(found) if found.state == State::Formatting && !is_named(&next, &found) => {}
                _ => return Err(refused(format!("{} is not empty", path.display()))),
            }
            let least = SLOT_COUNT_MIN * old.geometry.data_slot_len;
            let total = disk.space().map_err(failed)?.total;
            if total < least {
                return Err(refused(format!("{} has {total} bytes; a disk needs {least}", path.display())));
            }
            next.members[place].own_filesystem = disk.own_filesystem().map_err(failed)?;
            let superblock = Superblock {
                sequence: 1,
                state: State::Formatting,
                epoch: old.epoch + 1,
                disk: next.members[place].disk,
                disk_index: u8::try_from(place).expect("at most 240 disks"),
                ..next.clone()
            };
            format_disk(core, &disk, &superblock).await.map_err(failed)?;
        }
        for (place, path) in places.zip(paths) {
            let disk = DiskIndex(u8::try_from(place).expect("at most 240 disks"));
            for core in 0..self.inner.core_count {
                let open = Request::OpenDisk { disk, path: path.clone() };
                match self.inner.port.call(CoreId(core), open).await {
                    Ok(Reply::Done(result)) => result?,
                    _ => return Err(EngineError::Closed),
                }
            }
        }
        Ok(next)
    }

    /// Leaves disks that did not become members empty.
    async fn forget_set(&self, paths: &[PathBuf]) {
        for path in paths {
            let Ok(disk) = Disk::open(&self.inner.core, path) else { continue };
            let is_new = |found: &DiskState| {
                let config = self.membership().config.borrow();
                matches!(found, DiskState::Ours(found) if found.set == config.set && !is_named(&config, found))
            };
            if inspect(&self.inner.core, &disk).await.as_ref().is_ok_and(is_new)
                && let Err(error) = disk.remove_file(SUPERBLOCK_FILE)
            {
                tracing::warn!(path = %path.display(), %error, "a disk that was not added is not emptied");
            }
        }
    }
}

impl Membership {
    fn extend(&self, config: Superblock, paths: &[PathBuf]) {
        *self.config.borrow_mut() = config;
        self.sequences.borrow_mut().extend(paths.iter().map(|_| 1));
        self.paths.borrow_mut().extend(paths.iter().cloned().map(Some));
        self.unclaimed.borrow_mut().retain(|unclaimed| !paths.contains(unclaimed));
        self.spares.borrow_mut().retain(|spare| !paths.contains(spare));
    }

    fn truncate(&self, members: usize, groups: usize) {
        let mut config = self.config.borrow_mut();
        config.members.truncate(members);
        config.groups.truncate(groups);
        self.sequences.borrow_mut().truncate(members);
        self.paths.borrow_mut().truncate(members);
    }
}

fn is_named(config: &Superblock, found: &Superblock) -> bool {
    config.members.iter().any(|member| member.disk == found.disk)
}

fn refused(reason: String) -> EngineError {
    EngineError::DisksRefused(reason)
}
