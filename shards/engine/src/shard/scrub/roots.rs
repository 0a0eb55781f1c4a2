//! Scrub of what a shard is reached from: both copies of its root on every disk, and every replica of its manifest.
//!
//! What a root must be is known to the running shard byte by byte, so a bad copy is written again where it lies, before
//! the next checkpoint writes over the other one. A manifest is not mended in place: a checkpoint writes a new one from what
//! the shard knows, and the bad one is freed with the old root.

use std::rc::Rc;

use basalt_reactor::arena::BUF_LEN_MAX;
use basalt_reactor::disk::BLOCK_LEN;
use crc_fast::{CrcAlgorithm, Digest};

use super::super::Shard;
use super::super::checkpoint::ROOT_TURN;
use crate::deployment::shard_file;
use crate::extent::ExtentClass;
use crate::extent::members::{MemberState, Outcome};
use crate::format::root::{ROOT_COPY_LEN, Root};

impl Shard {
    pub(super) async fn scrub_roots(self: &Rc<Self>) {
        let turn = self.roots.lock(ROOT_TURN).await;
        let shard = Rc::clone(self);
        // A task of its own, so that no checkpoint writes a root while a write of this one is under way.
        let task = self.core.spawn(async move {
            shard.mend_root_copies().await;
            drop(turn);
        });
        task.await;
        self.scrub_manifest().await;
    }

    async fn mend_root_copies(&self) {
        let newest = self.root.borrow().clone();
        for disk in self.files.home_disks() {
            if self.files.members().state(disk) == MemberState::Out {
                continue;
            }
            let Some(files) = self.files.disk(disk) else { continue };
            let file = &files.root;
            for sequence in [newest.sequence, newest.sequence.saturating_sub(1)] {
                let expected = Root { sequence, ..newest.clone() }.encode();
                let offset = (sequence & 1) * ROOT_COPY_LEN as u64;
                let buf = self.core.arena().alloc(ROOT_COPY_LEN).await;
                // The turn is held: a disk that does not answer is waited for only until it is out.
                let read = self.files.members().read(&self.core, disk, (file, offset), buf);
                let Some((result, mut buf)) = read.await else { break };
                self.scrub.count(ROOT_COPY_LEN as u64);
                if matches!(result, Ok(ROOT_COPY_LEN)) && buf[..] == expected[..] {
                    continue;
                }
                buf.set_len(ROOT_COPY_LEN);
                buf.copy_from_slice(&expected);
                let (flushes, file) = (Rc::clone(self.files.flushes()), file.clone());
                let write = async move { flushes.write_stable(disk, &file, buf.freeze(), offset).await };
                let written = match self.files.carry_out(&self.core, disk, write).await {
                    Ok(Outcome::Out) => break,
                    Ok(Outcome::Done) => Ok(()),
                    Err(error) => Err(error),
                };
                let name = shard_file(self.id, "root");
                self.note_file(disk, &name, offset, written.map_err(|error| (&error).into()));
            }
        }
    }

    async fn scrub_manifest(self: &Rc<Self>) {
        let root = self.root.borrow().clone();
        let replicas = root.manifest.iter().map(|placement| placement.columns.len()).max().unwrap_or(0);
        let mut bad = Vec::new();
        for replica in 0..replicas {
            if let Some(crc) = self.manifest_crc(&root, replica).await
                && crc != Some(root.manifest_crc)
            {
                bad.push(replica);
            }
        }
        // With another root there is another manifest, and the slots of this one may be others' by now.
        if bad.is_empty() || self.root.borrow().sequence != root.sequence {
            return;
        }
        let written = self.checkpoint_now().await;
        for replica in bad {
            let column = root.manifest[0].columns[replica];
            let offset = u64::from(column.slot) * self.files.geometry().table_slot_len;
            let name = shard_file(self.id, "table");
            match &written {
                Ok(()) => self.note_file(column.disk, &name, offset, Ok(())),
                Err(error) => {
                    tracing::error!(shard = self.id, %error, "a damaged manifest could not be written anew");
                    self.note_lost();
                }
            }
        }
    }

    /// CRC32C of a replica, `Some(None)` when it cannot be read; `None` when some of its disks are absent.
    async fn manifest_crc(&self, root: &Root, replica: usize) -> Option<Option<u32>> {
        let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
        let mut left = root.manifest_len;
        for placement in &root.manifest {
            let column = *placement.columns.get(replica)?;
            let (file, start) = self.files.locate_readable(ExtentClass::Table, column)?;
            let file = file.clone();
            let end = self.files.geometry().table_slot_len.min(left);
            for offset in (0..end).step_by(BUF_LEN_MAX) {
                let want = (end - offset).min(BUF_LEN_MAX as u64) as usize;
                let buf = self.core.arena().alloc(want.next_multiple_of(BLOCK_LEN)).await;
                let members = self.files.members();
                let read = members.read(&self.core, column.disk, (&file, start + offset), buf);
                let (result, buf) = read.await?;
                self.scrub.count(want as u64);
                match result {
                    Ok(len) if len >= want => digest.update(&buf[..want]),
                    _ => return Some(None),
                }
                // Others first: a manifest is read in one go.
                self.core.yield_now().await;
            }
            left -= end;
        }
        Some(u32::try_from(digest.finalize()).ok())
    }
}
