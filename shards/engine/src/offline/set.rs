//! The disks of a set as they are found, each by what its own superblock says, however many of them there are.

use std::io;
use std::path::{Path, PathBuf};

use basalt_reactor::disk::DiskLock;
use basalt_reactor::{Core, Disk, File};

use super::media::{Defect, read};
use crate::deployment::{LOCK_FILE, SUPERBLOCK_FILE};
use crate::extent::DiskIndex;
use crate::extent::members::MemberState;
use crate::format::frame::FrameError;
use crate::format::superblock::{SUPERBLOCK_COPY_LEN, State, Superblock};

/// What may be done to the disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing is written and no lock is taken; a server may be running.
    Look,
    /// The disks are locked and nothing is written.
    Check,
    /// The disks are locked, and what is damaged is written anew.
    Repair,
}

/// One disk, its superblock as it lies there.
pub struct OfflineDisk {
    pub path: PathBuf,
    /// Names of the files in it, sorted.
    pub names: Vec<String>,
    /// Copies A and B.
    pub copies: [Result<Superblock, Defect>; 2],
    pub(super) disk: Disk,
    access: Access,
    _lock: Option<DiskLock>,
}

/// Why the tools cannot begin.
#[derive(Debug)]
pub enum OfflineError {
    Disk {
        path: PathBuf,
        error: io::Error,
    },
    /// A server runs on it.
    Locked {
        path: PathBuf,
    },
    /// A newer Basalt wrote it: what of it can be read is out of date.
    Newer {
        path: PathBuf,
        reason: String,
    },
    /// No disk says what set it belongs to.
    NoSuperblock {
        reasons: Vec<String>,
    },
    Mixed {
        path: PathBuf,
        other: PathBuf,
    },
    Duplicate {
        path: PathBuf,
        other: PathBuf,
    },
    /// Formatting was cut off: there is no data yet, and the next start formats anew.
    Formatting,
}

impl std::fmt::Display for OfflineError {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            OfflineError::Disk { path, error } => write!(out, "{}: {error}", path.display()),
            OfflineError::Locked { path } => {
                write!(out, "{} is in use by another process; stop the server first", path.display())
            }
            OfflineError::Newer { path, reason } => {
                write!(out, "the superblock of {}: {reason}", path.display())
            }
            OfflineError::NoSuperblock { reasons } => {
                write!(out, "no disk has a superblock that can be believed: {}", reasons.join("; "))
            }
            OfflineError::Mixed { path, other } => {
                write!(out, "{} and {} belong to different sets", path.display(), other.display())
            }
            OfflineError::Duplicate { path, other } => {
                write!(out, "{} and {} are the same disk", path.display(), other.display())
            }
            OfflineError::Formatting => write!(out, "the disks were never formatted to the end"),
        }
    }
}

impl std::error::Error for OfflineError {}

impl OfflineDisk {
    /// Opens the disk at `path` and reads both copies of its superblock.
    ///
    /// # Errors
    /// [`OfflineError::Disk`] when the directory cannot be opened, [`OfflineError::Locked`].
    pub async fn open(core: &Core, path: &Path, access: Access) -> Result<OfflineDisk, OfflineError> {
        let on_disk = |error| OfflineError::Disk { path: path.to_owned(), error };
        let disk = Disk::open(core, path).map_err(on_disk)?;
        let names = disk.list().map_err(on_disk)?;
        let lock = match access {
            Access::Look => None,
            Access::Check | Access::Repair => match disk.lock(LOCK_FILE) {
                Ok(lock) => Some(lock),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(OfflineError::Locked { path: path.to_owned() });
                }
                Err(error) => return Err(on_disk(error)),
            },
        };
        let missing = || Err(Defect::from(&io::Error::from(io::ErrorKind::NotFound)));
        let mut found = OfflineDisk {
            path: path.to_owned(),
            names,
            copies: [missing(), missing()],
            disk,
            access,
            _lock: lock,
        };
        for copy in 0..2 {
            found.copies[copy] = found.read_superblock(core, copy).await;
        }
        Ok(found)
    }

    async fn read_superblock(&self, core: &Core, copy: usize) -> Result<Superblock, Defect> {
        let file = self.open_file(SUPERBLOCK_FILE)?;
        let bytes = read(core, &file, (copy * SUPERBLOCK_COPY_LEN) as u64, SUPERBLOCK_COPY_LEN).await?;
        Superblock::decode(&bytes).map_err(Defect::Frame)
    }

    /// The newest copy that can be believed.
    #[must_use]
    pub fn superblock(&self) -> Option<&Superblock> {
        self.copies.iter().flatten().max_by_key(|superblock| superblock.sequence)
    }

    /// Makes an empty file, durably.
    pub(super) async fn create_file(&self, name: &str) -> Result<(), Defect> {
        self.disk.create_file(name).map_err(|error| Defect::from(&error))?;
        self.disk.sync().await.map_err(|error| Defect::from(&error))
    }

    /// Opens one of the disk's files, for writing only if that is allowed.
    pub(super) fn open_file(&self, name: &str) -> Result<File, Defect> {
        let opened = match self.access {
            Access::Look | Access::Check => self.disk.open_file_for_reading(name),
            Access::Repair => self.disk.open_file(name),
        };
        opened.map_err(|error| Defect::from(&error))
    }
}

/// The disks of one set that are at hand.
pub struct OfflineSet {
    pub disks: Vec<OfflineDisk>,
    /// The newest of any disk: it says how the set is laid out.
    pub superblock: Superblock,
    /// Which of `disks` each member is.
    pub members: Vec<Option<usize>>,
    /// Those of `disks` that count for nothing, and why.
    pub strangers: Vec<(usize, String)>,
}

impl OfflineSet {
    /// Finds out which member each disk is.
    ///
    /// # Errors
    /// [`OfflineError`] when there is no set to speak of.
    pub fn assemble(disks: Vec<OfflineDisk>) -> Result<OfflineSet, OfflineError> {
        // To look at the rest does no harm; to judge by it, or to repair, would.
        for disk in disks.iter().filter(|disk| disk.access != Access::Look) {
            let is_newer =
                |defect: &&Defect| matches!(defect, Defect::Frame(FrameError::NewerVersion { .. }));
            let defects = disk.copies.iter().filter_map(|copy| copy.as_ref().err());
            if let Some(defect) = defects.into_iter().find(is_newer) {
                return Err(OfflineError::Newer { path: disk.path.clone(), reason: defect.to_string() });
            }
        }
        let newest = disks.iter().filter_map(OfflineDisk::superblock);
        let newest = newest.max_by_key(|superblock| (superblock.epoch, superblock.sequence)).cloned();
        let Some(superblock) = newest else {
            let reason = |disk: &OfflineDisk| {
                let reasons =
                    disk.copies.iter().filter_map(|copy| copy.as_ref().err()).map(Defect::to_string);
                format!("{}: {}", disk.path.display(), reasons.collect::<Vec<_>>().join(", "))
            };
            return Err(OfflineError::NoSuperblock { reasons: disks.iter().map(reason).collect() });
        };
        if superblock.state != State::Ready {
            return Err(OfflineError::Formatting);
        }
        let mut members: Vec<Option<usize>> = vec![None; superblock.members.len()];
        let mut strangers = Vec::new();
        let first = disks.iter().find(|disk| disk.superblock().is_some()).map(|disk| disk.path.clone());
        for (index, disk) in disks.iter().enumerate() {
            let Some(own) = disk.superblock() else {
                strangers.push((index, "it has no superblock that can be believed".to_owned()));
                continue;
            };
            if (own.deployment, own.set) != (superblock.deployment, superblock.set) {
                let other = first.clone().unwrap_or_default();
                return Err(OfflineError::Mixed { path: disk.path.clone(), other });
            }
            let member = usize::from(own.disk_index);
            if superblock.members.get(member).is_none_or(|member| member.disk != own.disk) {
                strangers.push((index, "the set no longer has it as a member".to_owned()));
            } else if let Some(other) = members[member] {
                let other = disks[other].path.clone();
                return Err(OfflineError::Duplicate { path: disk.path.clone(), other });
            } else if let Some(reason) = staleness(own, &superblock) {
                strangers.push((index, reason));
            } else {
                members[member] = Some(index);
            }
        }
        Ok(OfflineSet { disks, superblock, members, strangers })
    }

    /// The disk that is member `index`, if it is here.
    #[must_use]
    pub fn member(&self, index: DiskIndex) -> Option<&OfflineDisk> {
        self.members.get(usize::from(index.0)).copied().flatten().map(|disk| &self.disks[disk])
    }

    /// Members of which no disk says that it is one of them, though the newest epoch counts on them.
    pub(super) fn unclaimed(&self) -> Vec<DiskIndex> {
        let is_claimed = |disk: &[u8; 16]| {
            self.disks.iter().filter_map(OfflineDisk::superblock).any(|own| own.disk == *disk)
        };
        let members = (0..).map(DiskIndex).zip(&self.superblock.members);
        let unclaimed = members
            .filter(|(_, member)| member.state == MemberState::InSync && !is_claimed(&member.disk))
            .map(|(index, _)| index);
        unclaimed.collect()
    }

    /// Members that no disk is at hand for.
    pub fn missing(&self) -> impl Iterator<Item = DiskIndex> {
        (0..).map(DiskIndex).zip(&self.members).filter(|(_, disk)| disk.is_none()).map(|(index, _)| index)
    }
}

/// Why a disk that is a member is not believed, by the rules that opening goes by: what counts is the state that the newest
/// epoch gives it, and that it was there then.
fn staleness(own: &Superblock, newest: &Superblock) -> Option<String> {
    let away = || {
        format!(
            "it was away: it has epoch {}, the set has {}; what it holds is stale",
            own.epoch, newest.epoch
        )
    };
    match newest.members[usize::from(own.disk_index)].state {
        MemberState::InSync => (own.epoch + 1 < newest.epoch).then(away),
        MemberState::Behind => Some("it was away, and is not rebuilt yet: what it holds is stale".to_owned()),
        MemberState::Out => Some(away()),
    }
}
