//! The tester's hands on a simulated disk: look into files, do harm, pull cables.

use std::rc::Rc;

use crate::sim::Faults;
use crate::sim::media::Media;
use crate::sim::state::{Shared, State};
use crate::sim::volume::{Access, DiskImage, Volume};

/// One disk of a world, as its tester sees it. Everything takes effect at once, also in the middle of a run.
#[derive(Clone)]
pub struct DiskHandle {
    shared: Rc<Shared>,
    index: usize,
}

impl DiskHandle {
    pub(super) fn find(shared: &Rc<Shared>, name: &str) -> DiskHandle {
        let index = shared.state.borrow().volumes.iter().position(|volume| volume.name == name);
        let index = index.unwrap_or_else(|| panic!("there is no disk {name}"));
        DiskHandle { shared: Rc::clone(shared), index }
    }

    #[must_use]
    pub fn name(&self) -> String {
        self.with(|volume| volume.name.clone())
    }

    /// Names of the files, sorted.
    #[must_use]
    pub fn files(&self) -> Vec<String> {
        self.with(|volume| volume.files.entries.keys().cloned().collect())
    }

    /// Length of `file` in bytes; `None` when there is no such file.
    #[must_use]
    pub fn file_len(&self, file: &str) -> Option<u64> {
        self.with(|volume| volume.files.media_named(file).map(|media| media.len()))
    }

    /// What a read of `file` would see now, without faults; zeros beyond the end.
    ///
    /// # Panics
    /// Like everything here that names a file: if there is no such file.
    #[must_use]
    pub fn read(&self, file: &str, offset: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        self.with_media(file, |media| media.copy_visible(offset, &mut out));
        out
    }

    /// As [`DiskHandle::read`], if a power cut lost everything that it may lose.
    #[must_use]
    pub fn read_durable(&self, file: &str, offset: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        self.with_media(file, |media| media.copy_stable(offset, &mut out));
        out
    }

    /// Puts `bytes` on the medium at `offset`, durably and behind everyone's back. Does not change the length.
    pub fn overwrite(&self, file: &str, offset: u64, bytes: &[u8]) {
        self.with_media(file, |media| media.tamper(offset, bytes));
    }

    /// Bit rot: flips `bits` of the byte at `offset`.
    pub fn corrupt(&self, file: &str, offset: u64, bits: u8) {
        self.with_media(file, |media| media.flip(offset, bits));
    }

    /// Makes reads that touch these bytes' sectors fail with EIO, until the sectors are written again.
    pub fn make_unreadable(&self, file: &str, offset: u64, len: u64) {
        self.with_media(file, |media| media.make_unreadable(offset, len));
    }

    /// Fails every operation of this kind with EIO from now on, or stops failing it. Operations in flight fail too.
    pub fn set_failing(&self, access: Access, failing: bool) {
        self.with(|volume| {
            if failing {
                volume.failing.insert(access);
            } else {
                volume.failing.remove(&access);
            }
        });
    }

    pub fn set_faults(&self, faults: Faults) {
        self.with(|volume| volume.faults = faults);
    }

    /// Multiplies the latency of operations submitted from now on; 1 is normal.
    pub fn set_slowness(&self, factor: u32) {
        self.with(|volume| volume.slowness = factor);
    }

    /// While stuck, no operation completes, not even one that is in flight. Ends with `stuck == false`.
    pub fn set_stuck(&self, stuck: bool) {
        let mut state = self.shared.state.borrow_mut();
        state.volumes[self.index].stuck = stuck;
        if !stuck {
            state.release_parked(self.index);
        }
    }

    /// Bytes that something else occupies on the file system; growth beyond the rest fails with `StorageFull`.
    pub fn occupy(&self, bytes: u64) {
        self.with(|volume| volume.foreign = bytes);
    }

    /// Pulls the disk out: what was not durable may be lost, and every handle on it fails with EIO from now on, also
    /// after it is back.
    pub fn unplug(&self) {
        let mut state = self.shared.state.borrow_mut();
        let State { volumes, disk_random, .. } = &mut *state;
        let volume = &mut volumes[self.index];
        let parked = volume.parked.clone();
        volume.power_cut(disk_random);
        volume.plugged = false;
        volume.parked = parked;
        state.release_parked(self.index);
    }

    /// Says whether the disk is the root of a file system of its own; it is not, to begin with.
    pub fn set_own_filesystem(&self, own: bool) {
        self.with(|volume| volume.own_filesystem = own);
    }

    /// Puts the disk back in; it has to be opened anew.
    pub fn plug(&self) {
        self.with(|volume| volume.plugged = true);
    }

    /// The disk's content as reads see it now; what is not durable now is not durable in the image either.
    #[must_use]
    pub fn image(&self) -> DiskImage {
        self.with(|volume| volume.image())
    }

    /// Replaces the disk's content, as if another disk had been put in its place: all handles become stale.
    pub fn put_image(&self, image: DiskImage) {
        self.with(|volume| volume.put(image));
    }

    /// Exchanges the contents of two disks, as if their cables had been mixed up: all handles become stale.
    pub fn swap(&self, other: &DiskHandle) {
        let image = self.image();
        self.put_image(other.image());
        other.put_image(image);
    }

    fn with<T>(&self, act: impl FnOnce(&mut Volume) -> T) -> T {
        act(&mut self.shared.state.borrow_mut().volumes[self.index])
    }

    fn with_media<T>(&self, file: &str, act: impl FnOnce(&mut Media) -> T) -> T {
        self.with(|volume| match volume.files.media_named(file) {
            Some(media) => act(media),
            None => panic!("disk {} has no file {file}", volume.name),
        })
    }
}
