//! Exclusive ownership of a disk by one process.
//!
//! A killed process's ring may finish writes after the process is gone, so a lock that ends with the process ends too
//! early. The lock file is therefore registered in every ring that writes: the kernel holds registered files until
//! the ring is torn down, which is after its last operation, and a flock lives as long as its open file.
//!
//! flock belongs to the open file, so all cores of a process must share one. That is the single piece of state the
//! reactor keeps per process and not per core: cores start and stop on their own and have nowhere else to meet.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::rc::Rc;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::driver::Driver;
use super::file::FileHandle;

/// Device and inode of a lock file.
type FileId = (u64, u64);

/// The locks this process holds.
static HELD: Mutex<BTreeMap<FileId, Held>> = Mutex::new(BTreeMap::new());

struct Held {
    file: File,
    holder_count: usize,
}

/// One core's share in a lock. Released when the core has no write in flight.
pub(crate) struct RingLock {
    driver: Rc<Driver>,
    share: Option<Share>,
}

/// The share itself: a place in the ring's file table and a count in the process's.
pub(super) struct Share {
    /// Before the count goes down, so that the file is out of the ring when it is unlocked.
    handle: Option<FileHandle>,
    id: FileId,
}

pub(super) fn lock(driver: &Rc<Driver>, path: &Path) -> io::Result<RingLock> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    lock_file(driver, file)
}

/// As [`lock`], of a file that exists, which is opened for reading alone.
pub(super) fn lock_existing(driver: &Rc<Driver>, path: &Path) -> io::Result<RingLock> {
    lock_file(driver, File::open(path)?)
}

fn lock_file(driver: &Rc<Driver>, file: File) -> io::Result<RingLock> {
    let metadata = file.metadata()?;
    let id = (metadata.dev(), metadata.ino());
    let mut held = held();
    let shared = match held.get_mut(&id) {
        Some(held) => {
            let shared = held.file.try_clone()?;
            held.holder_count += 1;
            shared
        }
        None => {
            // SAFETY: the descriptor is open; the call touches no memory.
            if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
                return Err(io::Error::last_os_error());
            }
            let shared = file.try_clone()?;
            held.insert(id, Held { file, holder_count: 1 });
            shared
        }
    };
    drop(held);
    let handle = FileHandle::new(driver, Rc::new(shared));
    let registered = handle.is_registered();
    let share = Share { handle: Some(handle), id };
    if !registered {
        let message = "the ring has no room to register the lock file";
        return Err(io::Error::other(message));
    }
    Ok(RingLock { driver: Rc::clone(driver), share: Some(share) })
}

fn held() -> MutexGuard<'static, BTreeMap<FileId, Held>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for RingLock {
    fn drop(&mut self) {
        if let Some(share) = self.share.take() {
            self.driver.retire_lock(share);
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        drop(self.handle.take());
        let mut held = held();
        let Some(lock) = held.get_mut(&self.id) else { return };
        lock.holder_count -= 1;
        if lock.holder_count == 0 {
            // Said aloud, because the kernel lets go of a registered file a moment later than we do.
            // SAFETY: the descriptor is open; the call touches no memory.
            unsafe { libc::flock(lock.file.as_raw_fd(), libc::LOCK_UN) };
            held.remove(&self.id);
        }
    }
}
