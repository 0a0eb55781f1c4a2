//! Files and directories of a real disk.
//!
//! Descriptors sit in the ring's table of registered files where it has room, which spares the kernel a lookup per
//! operation. Transfers are continued until they are complete, because the kernel may stop short whenever it likes.
//!
//! Nothing that waits for a device may wait in this thread: a disk that does not answer would hold the core. The ring asks
//! the kernel not to wait, but not every file system listens (docs/decisions/0019), and there writes go to its workers.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use io_uring::{IoUring, opcode, squeue, types};
use rustix::fs::{Dir, FileType};

use super::RingCore;
use super::driver::Driver;
use super::lock::{self, RingLock};
use super::op::{Completion, Keep, VectoredWrite};
use super::setup;
use crate::arena::{Buf, Slice};
use crate::disk::{BLOCK_LEN, Space, WriteMode};

/// Registered files of one ring at most; further ones work unregistered.
const TABLE_LEN_MAX: u32 = 4096;

/// Slices of one vectored write at most (the kernel's UIO_MAXIOV); longer lists take several.
const SLICES_PER_WRITE_MAX: usize = 1024;

/// The ring's table of registered files.
pub(super) struct FileTable {
    free: RefCell<Vec<u32>>,
}

impl FileTable {
    pub(super) fn new(ring: &IoUring, warnings: &mut Vec<String>) -> FileTable {
        let limit = setup::raise_limit(libc::RLIMIT_NOFILE);
        let len = TABLE_LEN_MAX.min(u32::try_from(limit).unwrap_or(u32::MAX));
        let free = match ring.submitter().register_files_sparse(len) {
            Ok(()) => (0..len).rev().collect(),
            Err(error) => {
                warnings.push(format!("files are not registered with the ring: {error}"));
                Vec::new()
            }
        };
        FileTable { free: RefCell::new(free) }
    }

    fn insert(&self, ring: &IoUring, fd: RawFd) -> Option<u32> {
        let index = self.free.borrow_mut().pop()?;
        match ring.submitter().register_files_update(index, &[fd]) {
            Ok(_) => Some(index),
            Err(error) => {
                tracing::debug!(%error, "file not registered");
                self.free.borrow_mut().push(index);
                None
            }
        }
    }

    fn remove(&self, ring: &IoUring, index: u32) {
        // Operations in flight hold the file by themselves.
        if ring.submitter().register_files_update(index, &[-1]).is_ok() {
            self.free.borrow_mut().push(index);
        }
    }
}

/// An open descriptor and its place in the ring's table.
pub(super) struct FileHandle {
    driver: Rc<Driver>,
    file: Rc<File>,
    index: Option<u32>,
}

impl FileHandle {
    pub(super) fn new(driver: &Rc<Driver>, file: Rc<File>) -> FileHandle {
        let index = driver.with_ring(|ring| driver.files.insert(ring, file.as_raw_fd()));
        FileHandle { driver: Rc::clone(driver), file, index }
    }

    pub(super) fn is_registered(&self) -> bool {
        self.index.is_some()
    }
}

impl Drop for FileHandle {
    fn drop(&mut self) {
        if let Some(index) = self.index {
            self.driver.with_ring(|ring| self.driver.files.remove(ring, index));
        }
    }
}

/// Builds an entry for a handle, by its table index or its descriptor.
macro_rules! entry {
    ($handle:expr, |$target:ident| $build:expr) => {
        match $handle.index {
            Some(index) => {
                let $target = types::Fixed(index);
                $build
            }
            None => {
                let $target = types::Fd($handle.file.as_raw_fd());
                $build
            }
        }
    };
}

#[derive(Clone)]
pub(crate) struct RingDisk {
    driver: Rc<Driver>,
    path: Rc<PathBuf>,
    directory: Rc<FileHandle>,
}

#[derive(Clone)]
pub(crate) struct RingFile {
    driver: Rc<Driver>,
    handle: Rc<FileHandle>,
    /// Of every write's entry.
    write_entry: squeue::Flags,
}

impl RingDisk {
    pub(crate) fn open(core: &Rc<RingCore>, path: &Path) -> io::Result<RingDisk> {
        let directory = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(path)?;
        let driver = Rc::clone(core.driver());
        let directory = Rc::new(FileHandle::new(&driver, Rc::new(directory)));
        Ok(RingDisk { driver, path: Rc::new(path.to_owned()), directory })
    }

    pub(crate) fn lock_existing(&self, name: &str) -> io::Result<RingLock> {
        lock::lock_existing(&self.driver, &self.path_of(name)?)
    }

    pub(crate) fn lock(&self, name: &str) -> io::Result<RingLock> {
        lock::lock(&self.driver, &self.path_of(name)?)
    }

    pub(crate) fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        let directory = open_quietly(OpenOptions::new().read(true), libc::O_DIRECTORY, &self.path)?;
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy();
            let is_file = match entry.file_type() {
                FileType::Unknown => std::fs::symlink_metadata(self.path.join(&*name))?.is_file(),
                known => known.is_file(),
            };
            if is_file {
                names.push(name.into_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    pub(crate) fn open_file(&self, name: &str) -> io::Result<RingFile> {
        self.open_with(OpenOptions::new().read(true).write(true), name)
    }

    pub(crate) fn open_file_for_reading(&self, name: &str) -> io::Result<RingFile> {
        self.open_with(OpenOptions::new().read(true), name)
    }

    pub(crate) fn create_file(&self, name: &str) -> io::Result<RingFile> {
        self.open_with(OpenOptions::new().read(true).write(true).create_new(true), name)
    }

    fn open_with(&self, options: &mut OpenOptions, name: &str) -> io::Result<RingFile> {
        let path = self.path_of(name)?;
        let file = open_quietly(options, libc::O_DIRECT, &path).map_err(|error| {
            if error.raw_os_error() != Some(libc::EINVAL) {
                return error;
            }
            let message = format!(
                "{}: the file system has no O_DIRECT; put the disk on XFS, ext4 or another that has",
                path.display()
            );
            io::Error::new(io::ErrorKind::InvalidInput, message)
        })?;
        let write_entry = match submitting_may_wait(&file)? {
            true => squeue::Flags::ASYNC,
            false => squeue::Flags::empty(),
        };
        let handle = Rc::new(FileHandle::new(&self.driver, Rc::new(file)));
        Ok(RingFile { driver: Rc::clone(&self.driver), handle, write_entry })
    }

    pub(crate) fn remove_file(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path_of(name)?)
    }

    pub(crate) async fn sync(&self) -> io::Result<()> {
        sync(&self.driver, &self.directory, types::FsyncFlags::empty()).await
    }

    pub(crate) fn own_filesystem(&self) -> io::Result<bool> {
        let own = self.directory.file.metadata()?;
        let parent = std::fs::metadata(self.path.join(".."))?;
        // The root of everything is its own parent.
        Ok(own.dev() != parent.dev() || own.ino() == parent.ino())
    }

    pub(crate) fn space(&self) -> io::Result<Space> {
        // SAFETY: all-zero is a valid statvfs.
        let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
        // SAFETY: the descriptor is open and `stat` lives through the call.
        if unsafe { libc::fstatvfs(self.directory.file.as_raw_fd(), &raw mut stat) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let unit = stat.f_frsize;
        Ok(Space { total: stat.f_blocks * unit, available: stat.f_bavail * unit })
    }

    fn path_of(&self, name: &str) -> io::Result<PathBuf> {
        if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{name:?} names no file of a disk"),
            ));
        }
        Ok(self.path.join(name))
    }
}

impl RingFile {
    pub(crate) fn len(&self) -> io::Result<u64> {
        Ok(self.handle.file.metadata()?.len())
    }

    pub(crate) async fn grow(&self, len: u64) -> io::Result<()> {
        let before = self.len()?;
        if len <= before {
            return Ok(());
        }
        loop {
            let entry =
                entry!(self.handle, |file| opcode::Fallocate::new(file, len - before).offset(before).build());
            let completion = self.submit(entry).await;
            if completion.is_transient() {
                continue;
            }
            let Err(error) = completion.into_result() else { return Ok(()) };
            // Some file systems keep what they got before they ran out of room.
            if self.len()? != before {
                self.handle.file.set_len(before)?;
            }
            return Err(error);
        }
    }

    pub(crate) async fn read_at(&self, mut buf: Buf, offset: u64) -> (io::Result<usize>, Buf) {
        let mut done = 0;
        while done < buf.len() {
            let rest = &mut buf[done..];
            let (start, len, at) = (rest.as_mut_ptr(), rest.len() as u32, offset + done as u64);
            let buffer = self.buffer_index(start);
            let entry = entry!(self.handle, |file| match buffer {
                Some(index) => opcode::ReadFixed::new(file, start, len, index).offset(at).build(),
                None => opcode::Read::new(file, start, len).offset(at).build(),
            });
            // SAFETY: `start..start + len` lies in `buf`, whose memory stays where it is as the handle moves.
            let submitted =
                unsafe { self.driver.submit(entry, Keep::Read { buf, _file: Rc::clone(&self.handle) }) };
            let (completion, keep) = submitted.await;
            let Keep::Read { buf: back, .. } = keep else {
                unreachable!("an operation returns what it kept")
            };
            buf = back;
            if completion.is_transient() {
                continue;
            }
            match completion.into_result() {
                Ok(0) => break,
                Ok(count) => {
                    self.driver.stats.update(|stats| stats.disk_bytes_read += u64::from(count));
                    done += count as usize;
                    // A stop off the block grid is the end of the file.
                    if !done.is_multiple_of(BLOCK_LEN) {
                        break;
                    }
                }
                Err(error) => return (Err(error), buf),
            }
        }
        (Ok(done), buf)
    }

    pub(crate) async fn write_at(&self, mut data: Slice, offset: u64, mode: WriteMode) -> io::Result<()> {
        let mut at = offset;
        while !data.is_empty() {
            let (start, len, flags) = (data.as_ptr(), data.len() as u32, write_flags(mode));
            let buffer = self.buffer_index(start);
            let entry = entry!(self.handle, |file| match buffer {
                Some(index) => {
                    opcode::WriteFixed::new(file, start, len, index).offset(at).rw_flags(flags).build()
                }
                None => opcode::Write::new(file, start, len).offset(at).rw_flags(flags).build(),
            });
            let entry = entry.flags(self.write_entry);
            let keep = Keep::Write { data, _file: Rc::clone(&self.handle) };
            // SAFETY: `start..start + len` is the slice that `keep` holds.
            let (completion, keep) = unsafe { self.driver.submit(entry, keep) }.await;
            let Keep::Write { data: back, .. } = keep else {
                unreachable!("an operation returns what it kept")
            };
            data = back;
            let count = self.written(completion, mode)?;
            data = data.slice(count..data.len());
            at += count as u64;
        }
        Ok(())
    }

    pub(crate) async fn write_vectored_at(
        &self,
        data: Vec<Slice>,
        offset: u64,
        mode: WriteMode,
    ) -> io::Result<()> {
        let mut at = offset;
        let mut write = Box::new(VectoredWrite { data, table: Vec::new() });
        write.data.retain(|slice| !slice.is_empty());
        while !write.data.is_empty() {
            let count = write.data.len().min(SLICES_PER_WRITE_MAX);
            let VectoredWrite { data, table } = &mut *write;
            table.clear();
            table.extend(data[..count].iter().map(|slice| libc::iovec {
                iov_base: slice.as_ptr().cast_mut().cast(),
                iov_len: slice.len(),
            }));
            let (start, flags) = (table.as_ptr(), write_flags(mode));
            let entry = entry!(self.handle, |file| opcode::Writev::new(file, start, count as u32)
                .offset(at)
                .rw_flags(flags)
                .build());
            let entry = entry.flags(self.write_entry);
            let keep = Keep::WriteVectored { write, _file: Rc::clone(&self.handle) };
            // SAFETY: table and slices live in the box that `keep` holds, and nobody changes them meanwhile.
            let (completion, keep) = unsafe { self.driver.submit(entry, keep) }.await;
            let Keep::WriteVectored { write: back, .. } = keep else {
                unreachable!("an operation returns what it kept")
            };
            write = back;
            let count = self.written(completion, mode)?;
            skip(&mut write.data, count);
            at += count as u64;
        }
        Ok(())
    }

    pub(crate) async fn sync(&self) -> io::Result<()> {
        sync(&self.driver, &self.handle, types::FsyncFlags::DATASYNC).await
    }

    /// Bytes that a completed write took; 0 to try again.
    fn written(&self, completion: Completion, mode: WriteMode) -> io::Result<usize> {
        if completion.is_transient() {
            return Ok(0);
        }
        let count = completion.into_result()?;
        if count == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.driver.stats.update(|stats| {
            stats.disk_bytes_written += u64::from(count);
            stats.flushes += u64::from(mode == WriteMode::Stable);
        });
        Ok(count as usize)
    }

    async fn submit(&self, entry: squeue::Entry) -> Completion {
        // SAFETY: the entry points to nothing.
        unsafe { self.driver.submit(entry, Keep::File { _file: Rc::clone(&self.handle) }) }.await.0
    }

    fn buffer_index(&self, start: *const u8) -> Option<u16> {
        self.driver.with_ring(|ring| self.driver.buffers.index_of(ring, start))
    }
}

async fn sync(driver: &Rc<Driver>, handle: &Rc<FileHandle>, flags: types::FsyncFlags) -> io::Result<()> {
    loop {
        let entry = entry!(handle, |file| opcode::Fsync::new(file).flags(flags).build());
        // SAFETY: the entry points to nothing.
        let (completion, _) = unsafe { driver.submit(entry, Keep::File { _file: Rc::clone(handle) }) }.await;
        driver.stats.update(|stats| stats.flushes += 1);
        if !completion.is_transient() {
            return completion.into_result().map(drop);
        }
    }
}

/// Opens what lies at `path` so that reading it writes nothing: a new access time goes to the journal, and waits for it.
fn open_quietly(options: &mut OpenOptions, flags: i32, path: &Path) -> io::Result<File> {
    match options.custom_flags(flags | libc::O_NOATIME).open(path) {
        // It is another user's, who alone may ask for that.
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => options.custom_flags(flags).open(path),
        opened => opened,
    }
}

/// Whether a write to `file` may wait inside the kernel for the device, even where it is asked not to. XFS does as it is
/// asked. ext4 sets the file's time first, and that waits while a journal commit holds the inode's block.
fn submitting_may_wait(file: &File) -> io::Result<bool> {
    // SAFETY: all-zero is a valid statfs.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open and `stat` lives through the call.
    if unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut stat) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(stat.f_type != libc::XFS_SUPER_MAGIC)
}

fn write_flags(mode: WriteMode) -> i32 {
    match mode {
        WriteMode::Volatile => 0,
        WriteMode::Stable => libc::RWF_DSYNC,
    }
}

/// Removes the first `count` bytes of `data`.
fn skip(data: &mut Vec<Slice>, mut count: usize) {
    let whole = data.iter().take_while(|slice| {
        let fits = slice.len() <= count;
        count -= if fits { slice.len() } else { 0 };
        fits
    });
    let whole = whole.count();
    data.drain(..whole);
    if count > 0 {
        let first = &mut data[0];
        *first = first.slice(count..first.len());
    }
}
