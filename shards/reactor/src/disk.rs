//! A disk is a directory that Basalt owns whole; a file in it is opened O_DIRECT and read and written by offset.
//!
//! Every transfer is a multiple of [`BLOCK_LEN`] at a multiple of [`BLOCK_LEN`], from and into arena buffers,
//! because that is what O_DIRECT demands of every device we run on. The simulated disk asserts the same.
//! Names inside a disk are flat: no separators. Metadata calls (open, create, remove, list) are rare and may
//! block the core for as long as the file system takes.

use std::io;
use std::path::Path;

use crate::arena::{Buf, Slice};
use crate::core::{Core, World};
use crate::{ring, sim};

/// Alignment and granularity of every disk transfer, in bytes.
pub const BLOCK_LEN: usize = 4096;

/// Whether a completed write may still be lost by a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteMode {
    /// In the device's cache at best until the next [`File::sync`].
    Volatile,
    /// On stable media when the write completes (RWF_DSYNC).
    Stable,
}

/// Space of the file system under a disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    pub total: u64,
    pub available: u64,
}

/// One directory of a deployment, as one core sees it. Cloning shares it.
#[derive(Clone)]
pub struct Disk {
    world: DiskWorld,
}

#[derive(Clone)]
enum DiskWorld {
    Ring(ring::RingDisk),
    Sim(sim::SimDisk),
}

/// An open file of a disk, bound to the core that opened it. Cloning shares it; the last clone closes it once
/// no operation is in flight.
#[derive(Clone)]
pub struct File {
    world: FileWorld,
}

#[derive(Clone)]
enum FileWorld {
    Ring(ring::RingFile),
    Sim(sim::SimFile),
}

/// Exclusive ownership of a disk by this process. It is held through a file registered in the ring, so that the
/// kernel releases it only when every in-flight write of a dead process is over.
pub struct DiskLock {
    _world: LockWorld,
}

enum LockWorld {
    Ring { _held: ring::RingLock },
    Sim { _held: sim::SimLock },
}

impl Disk {
    /// Opens the directory at `path` (on a ring) or the simulated disk of that name.
    ///
    /// # Errors
    /// `NotFound` when it does not exist, `NotADirectory`, or what the file system says.
    pub fn open(core: &Core, path: &Path) -> io::Result<Disk> {
        let world = match &core.world {
            World::Ring(ring) => DiskWorld::Ring(ring::RingDisk::open(ring, path)?),
            World::Sim(sim) => DiskWorld::Sim(sim::SimDisk::open(sim, path)?),
        };
        Ok(Disk { world })
    }

    /// Takes the disk's lock file `name` for this process, creating it when absent. Several cores of one
    /// process may hold it together through [`DiskLock`]s of their own; another process may not.
    ///
    /// # Errors
    /// `WouldBlock` when another process holds it or its in-flight writes are not over.
    pub fn lock(&self, name: &str) -> io::Result<DiskLock> {
        let _world = match &self.world {
            DiskWorld::Ring(disk) => LockWorld::Ring { _held: disk.lock(name)? },
            DiskWorld::Sim(disk) => LockWorld::Sim { _held: disk.lock(name)? },
        };
        Ok(DiskLock { _world })
    }

    /// As [`Disk::lock`], of a lock file that is there: nothing is written, and the file system may be mounted read-only.
    ///
    /// # Errors
    /// As [`Disk::lock`]; `NotFound`.
    pub fn lock_existing(&self, name: &str) -> io::Result<DiskLock> {
        let _world = match &self.world {
            DiskWorld::Ring(disk) => LockWorld::Ring { _held: disk.lock_existing(name)? },
            DiskWorld::Sim(disk) => LockWorld::Sim { _held: disk.lock(name)? },
        };
        Ok(DiskLock { _world })
    }

    /// Names of the files in the disk, sorted.
    ///
    /// # Errors
    /// What the file system says.
    pub fn list(&self) -> io::Result<Vec<String>> {
        match &self.world {
            DiskWorld::Ring(disk) => disk.list(),
            DiskWorld::Sim(disk) => disk.list(),
        }
    }

    /// Opens an existing file for reading and writing.
    ///
    /// # Errors
    /// `NotFound`; `InvalidInput` with an explanation when the file system has no O_DIRECT.
    pub fn open_file(&self, name: &str) -> io::Result<File> {
        let world = match &self.world {
            DiskWorld::Ring(disk) => FileWorld::Ring(disk.open_file(name)?),
            DiskWorld::Sim(disk) => FileWorld::Sim(disk.open_file(name)?),
        };
        Ok(File { world })
    }

    /// Opens an existing file for reading alone; works on a file system that is mounted read-only.
    ///
    /// # Errors
    /// As [`Disk::open_file`].
    pub fn open_file_for_reading(&self, name: &str) -> io::Result<File> {
        let world = match &self.world {
            DiskWorld::Ring(disk) => FileWorld::Ring(disk.open_file_for_reading(name)?),
            DiskWorld::Sim(disk) => FileWorld::Sim(disk.open_file(name)?),
        };
        Ok(File { world })
    }

    /// Creates a new, empty file. It survives a power cut only after [`Disk::sync`].
    ///
    /// # Errors
    /// `AlreadyExists`; `InvalidInput` when the file system has no O_DIRECT.
    pub fn create_file(&self, name: &str) -> io::Result<File> {
        let world = match &self.world {
            DiskWorld::Ring(disk) => FileWorld::Ring(disk.create_file(name)?),
            DiskWorld::Sim(disk) => FileWorld::Sim(disk.create_file(name)?),
        };
        Ok(File { world })
    }

    /// Removes a file. Durable after [`Disk::sync`].
    ///
    /// # Errors
    /// `NotFound`, or what the file system says.
    pub fn remove_file(&self, name: &str) -> io::Result<()> {
        match &self.world {
            DiskWorld::Ring(disk) => disk.remove_file(name),
            DiskWorld::Sim(disk) => disk.remove_file(name),
        }
    }

    /// Makes creations and removals in this disk durable (fsync of the directory).
    ///
    /// # Errors
    /// What the device says.
    pub async fn sync(&self) -> io::Result<()> {
        match &self.world {
            DiskWorld::Ring(disk) => disk.sync().await,
            DiskWorld::Sim(disk) => disk.sync().await,
        }
    }

    /// Whether it is the root of a file system of its own, so that its path leads to another one's files when it is not
    /// mounted.
    ///
    /// # Errors
    /// What the file system says.
    pub fn own_filesystem(&self) -> io::Result<bool> {
        match &self.world {
            DiskWorld::Ring(disk) => disk.own_filesystem(),
            DiskWorld::Sim(disk) => disk.own_filesystem(),
        }
    }

    /// Free and total space of the file system underneath.
    ///
    /// # Errors
    /// What the file system says.
    pub fn space(&self) -> io::Result<Space> {
        match &self.world {
            DiskWorld::Ring(disk) => disk.space(),
            DiskWorld::Sim(disk) => disk.space(),
        }
    }
}

#[expect(
    clippy::len_without_is_empty,
    reason = "a disk's length may fail, and nobody asks whether it is zero"
)]
impl File {
    /// Length of the file in bytes.
    ///
    /// # Errors
    /// What the file system says.
    pub fn len(&self) -> io::Result<u64> {
        match &self.world {
            FileWorld::Ring(file) => file.len(),
            FileWorld::Sim(file) => file.len(),
        }
    }

    /// Grows the file to `len` bytes that read as zeros and have space reserved (fallocate). Never shrinks.
    ///
    /// # Errors
    /// `StorageFull` when the file system has no room; nothing has changed then.
    pub async fn grow(&self, len: u64) -> io::Result<()> {
        match &self.world {
            FileWorld::Ring(file) => file.grow(len).await,
            FileWorld::Sim(file) => file.grow(len).await,
        }
    }

    /// Fills `buf` (all `buf.len()` bytes) from `offset`, and hands it back. Fewer bytes come back only at the
    /// end of the file.
    pub async fn read_at(&self, buf: Buf, offset: u64) -> (io::Result<usize>, Buf) {
        debug_assert!(buf.len().is_multiple_of(BLOCK_LEN), "unaligned read length");
        debug_assert!(offset.is_multiple_of(BLOCK_LEN as u64), "unaligned read offset");
        match &self.world {
            FileWorld::Ring(file) => file.read_at(buf, offset).await,
            FileWorld::Sim(file) => file.read_at(buf, offset).await,
        }
    }

    /// Writes all of `data` at `offset`. A dropped future leaves the write to finish or not, but `data` stays
    /// alive until the kernel is done with it.
    ///
    /// # Errors
    /// `StorageFull`, or the device's error; the range then holds anything.
    pub async fn write_at(&self, data: Slice, offset: u64, mode: WriteMode) -> io::Result<()> {
        debug_assert!(data.len().is_multiple_of(BLOCK_LEN), "unaligned write length");
        debug_assert!(offset.is_multiple_of(BLOCK_LEN as u64), "unaligned write offset");
        match &self.world {
            FileWorld::Ring(file) => file.write_at(data, offset, mode).await,
            FileWorld::Sim(file) => file.write_at(data, offset, mode).await,
        }
    }

    /// Writes `data` one slice after the other from `offset`, as one operation.
    ///
    /// # Errors
    /// As [`File::write_at`].
    pub async fn write_vectored_at(&self, data: Vec<Slice>, offset: u64, mode: WriteMode) -> io::Result<()> {
        match &self.world {
            FileWorld::Ring(file) => file.write_vectored_at(data, offset, mode).await,
            FileWorld::Sim(file) => file.write_vectored_at(data, offset, mode).await,
        }
    }

    /// Makes all completed writes of this file durable (fdatasync).
    ///
    /// # Errors
    /// The device's error; whatever was written since the last sync must then be believed lost.
    pub async fn sync(&self) -> io::Result<()> {
        match &self.world {
            FileWorld::Ring(file) => file.sync().await,
            FileWorld::Sim(file) => file.sync().await,
        }
    }
}
