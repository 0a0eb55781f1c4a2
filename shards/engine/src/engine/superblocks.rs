//! Scrub of superblocks: both copies on every present disk say what they should, or are written again.
//!
//! What a copy must be is known to the first core byte by byte, as with roots. A file is opened once it was seen to be the member's,
//! and written through that handle: whatever its path may lead to by then, no other disk is written to.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use basalt_reactor::{Core, Disk, File};

use super::Engine;
use super::membership::{EPOCH_TURN, in_time};
use crate::deployment::{SUPERBLOCK_FILE, write_superblock};
use crate::extent::DiskIndex;
use crate::extent::members::MemberState;
use crate::format::superblock::{SUPERBLOCK_COPY_LEN, State, Superblock};

/// The part of the deadline that a round takes, in tenths; and how often there is one at least.
const ROUND_TENTHS: u32 = 9;
const ROUND_MAX: Duration = Duration::from_secs(3600);

/// The files of superblocks, by place, with the disk that each was seen to be of.
pub(super) type SuperblockFiles = BTreeMap<usize, ([u8; 16], File)>;

impl Engine {
    /// Verifies the superblocks of all present disks, over and over. For the first core.
    pub(super) async fn scrub_superblocks(self, deadline: Duration) {
        loop {
            for place in 0..self.inner.members.states().len() {
                self.mend_superblock(place).await;
            }
            self.inner.core.sleep((deadline * ROUND_TENTHS / 10).min(ROUND_MAX)).await;
        }
    }

    /// Verifies both copies of a member's superblock, and writes again what is not what it should be; says whether both are
    /// right now. A disk that does not take it is asked to be taken out.
    pub(super) async fn mend_superblock(&self, place: usize) -> bool {
        let Some(file) = self.superblock_file(place).await else { return false };
        // What is suspicious may just be on its way from one epoch to the next: then nobody has the turn.
        if self.bad_copies(place, &file).await.is_ok_and(|bad| bad.is_empty()) {
            return true;
        }
        let disk = DiskIndex(u8::try_from(place).expect("a set has at most 20 disks"));
        let failed = {
            let _turn = self.membership().turn.lock(EPOCH_TURN).await;
            // While an epoch is begun that did not come about, nobody knows what should be there: its superblocks may say of the
            // disk that others go on without it, and those others may be gone. The epoch that follows writes them all.
            if self.inner.members.state(disk) == MemberState::Out || self.has_unsettled_epoch() {
                return false;
            }
            self.rewrite_copies(place, &file).await
        };
        let Err(error) = failed else { return true };
        self.exclude(disk, &format!("its superblock cannot be mended: {error}")).await;
        false
    }

    async fn rewrite_copies(&self, place: usize, file: &File) -> io::Result<()> {
        for superblock in self.bad_copies(place, file).await? {
            let disk = DiskIndex(superblock.disk_index);
            let offset = (superblock.sequence & 1) * SUPERBLOCK_COPY_LEN as u64;
            let changing = self.inner.members.begin_change(disk);
            let (core, file) = (self.inner.core.clone(), file.clone());
            let write = async move {
                let written = write_superblock(&core, &file, &superblock).await;
                drop(changing);
                written
            };
            let written = in_time(&self.inner.core, write).await;
            // The first shard runs here, and its counters are as good as any.
            if let Some(shard) = self.inner.shards.borrow().values().next() {
                let noted = written.as_ref().copied().map_err(Into::into);
                shard.note_file(disk, SUPERBLOCK_FILE, offset, noted);
            }
            written?;
        }
        Ok(())
    }

    /// What has to be written for both copies to be right, the newest first.
    async fn bad_copies(&self, place: usize, file: &File) -> io::Result<Vec<Superblock>> {
        let newest = self.superblock_of(place);
        let mut bad = Vec::new();
        for sequence in [newest.sequence, newest.sequence.saturating_sub(1)] {
            let (core, file) = (self.inner.core.clone(), file.clone());
            let bytes = in_time(&self.inner.core, async move { read_copy(&core, &file, sequence & 1).await });
            let expected = Superblock { sequence, ..newest.clone() };
            // The older one is of the epoch before, or of an earlier one; never of the time before the disk served.
            let is_right = bytes.await?.is_some_and(|bytes| match Superblock::decode(&bytes) {
                Ok(found) if sequence == newest.sequence => found == expected,
                Ok(found) => {
                    (found.sequence, found.set, found.disk, found.state)
                        == (sequence, newest.set, newest.disk, State::Ready)
                }
                Err(_) => false,
            });
            if !is_right {
                bad.push(expected);
            }
        }
        Ok(bad)
    }

    /// Opens the superblock of a member while it can still be seen whose it is.
    pub(super) async fn keep_superblock_open(&self, place: usize) {
        drop(self.superblock_file(place).await);
    }

    /// The file of a present member's superblock, opened now if it was not before.
    async fn superblock_file(&self, place: usize) -> Option<File> {
        let membership = self.membership();
        let disk = DiskIndex(u8::try_from(place).expect("a set has at most 20 disks"));
        if self.inner.members.state(disk) == MemberState::Out {
            self.forget_superblock(place);
            return None;
        }
        let id = membership.config.borrow().members[place].disk;
        if let Some((of, file)) = membership.superblocks.borrow().get(&place)
            && *of == id
        {
            return Some(file.clone());
        }
        let path = membership.paths.borrow()[place].clone()?;
        let core = self.inner.core.clone();
        let open = async move {
            let file = Disk::open(&core, &path)?.open_file(SUPERBLOCK_FILE)?;
            let mut is_member = false;
            for copy in 0..2 {
                let found = read_copy(&core, &file, copy).await?;
                let found = found.and_then(|bytes| Superblock::decode(&bytes).ok());
                is_member |= found.is_some_and(|found| found.disk == id);
            }
            Ok(is_member.then_some(file))
        };
        let file = in_time(&self.inner.core, open).await.ok()??;
        membership.superblocks.borrow_mut().insert(place, (id, file.clone()));
        Some(file)
    }

    /// Closes the superblock of a member that is out: its file system may be about to be unmounted.
    pub(super) fn forget_superblock(&self, place: usize) {
        self.membership().superblocks.borrow_mut().remove(&place);
    }
}

/// Bytes of a copy; `None` when they cannot be read.
async fn read_copy(core: &Core, file: &File, copy: u64) -> io::Result<Option<Vec<u8>>> {
    let buf = core.arena().alloc(SUPERBLOCK_COPY_LEN).await;
    let (result, buf) = file.read_at(buf, copy * SUPERBLOCK_COPY_LEN as u64).await;
    Ok(result.ok().map(|len| buf[..len].to_vec()))
}
