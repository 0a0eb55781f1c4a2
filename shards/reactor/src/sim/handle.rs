//! A process's handles on simulated disks: directory, files and locks.

use std::io;
use std::path::Path;
use std::rc::Rc;

use crate::arena::{Buf, Slice};
use crate::disk::{BLOCK_LEN, Space, WriteMode};
use crate::sim::SimCore;
use crate::sim::operation::{Completion, Errno, Kind, Target};
use crate::sim::state::Shared;
use crate::sim::volume::{Holder, Volume};

#[derive(Clone)]
pub(crate) struct SimDisk {
    shared: Rc<Shared>,
    target: Target,
}

#[derive(Clone)]
pub(crate) struct SimFile {
    open: Rc<OpenFile>,
}

/// Closes the file when its last handle goes.
struct OpenFile {
    shared: Rc<Shared>,
    target: Target,
    inode: u64,
}

pub(crate) struct SimLock {
    shared: Rc<Shared>,
    target: Target,
    name: String,
}

impl SimDisk {
    pub(crate) fn open(core: &SimCore, path: &Path) -> io::Result<SimDisk> {
        let state = core.shared.state.borrow();
        let found = state.volumes.iter().enumerate().find(|(_, volume)| Path::new(&volume.name) == path);
        let Some((index, volume)) = found.filter(|(_, volume)| volume.plugged) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let target =
            Target { process: core.process, volume: index, generation: volume.generation, inode: None };
        Ok(SimDisk { shared: Rc::clone(&core.shared), target })
    }

    pub(crate) fn lock(&self, name: &str) -> io::Result<SimLock> {
        let process = self.target.process;
        if !self.list()?.iter().any(|found| found == name) {
            drop(self.create_file(name)?);
        }
        let mut state = self.shared.state.borrow_mut();
        let count = match state.volumes[self.target.volume].locks.get(name) {
            Some(holder) if holder.process == process => holder.count,
            Some(holder) => {
                let alive = holder.count > 0 && state.alive.contains(&holder.process);
                if alive || state.has_writes_in_flight(holder.process) {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                0
            }
            None => 0,
        };
        let holder = Holder { process, count: count + 1 };
        state.volumes[self.target.volume].locks.insert(name.to_owned(), holder);
        Ok(SimLock { shared: Rc::clone(&self.shared), target: self.target, name: name.to_owned() })
    }

    pub(crate) fn list(&self) -> io::Result<Vec<String>> {
        self.with(|volume| Ok(volume.files.entries.keys().cloned().collect()))
    }

    pub(crate) fn open_file(&self, name: &str) -> io::Result<SimFile> {
        let inode = self.with(|volume| {
            let inode = *volume.files.entries.get(name).ok_or(io::ErrorKind::NotFound)?;
            volume.files.acquire(inode);
            Ok(inode)
        })?;
        Ok(self.file(inode))
    }

    pub(crate) fn create_file(&self, name: &str) -> io::Result<SimFile> {
        if name.is_empty() || name.contains('/') {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a name in a disk is flat"));
        }
        let inode = self.with(|volume| {
            if volume.files.entries.contains_key(name) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            let inode = volume.files.create(name, volume.sector_len);
            volume.files.acquire(inode);
            Ok(inode)
        })?;
        Ok(self.file(inode))
    }

    pub(crate) fn remove_file(&self, name: &str) -> io::Result<()> {
        self.with(
            |volume| if volume.files.remove(name) { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) },
        )
    }

    pub(crate) async fn sync(&self) -> io::Result<()> {
        let started = self.shared.state.borrow().volumes[self.target.volume].files.stamp();
        Completion::submit(&self.shared, self.target, Kind::Sync { started }).await.0.map(drop)
    }

    pub(crate) fn own_filesystem(&self) -> io::Result<bool> {
        self.with(|volume| Ok(volume.own_filesystem))
    }

    pub(crate) fn space(&self) -> io::Result<Space> {
        self.with(|volume| Ok(volume.space()))
    }

    fn file(&self, inode: u64) -> SimFile {
        let target = Target { inode: Some(inode), ..self.target };
        SimFile { open: Rc::new(OpenFile { shared: Rc::clone(&self.shared), target, inode }) }
    }

    fn with<T>(&self, act: impl FnOnce(&mut Volume) -> io::Result<T>) -> io::Result<T> {
        with_volume(&self.shared, &self.target, act)
    }
}

impl SimFile {
    pub(crate) fn len(&self) -> io::Result<u64> {
        let OpenFile { shared, target, inode } = &*self.open;
        with_volume(shared, target, |volume| {
            Ok(volume.files.media(*inode).ok_or(Errno::IO).map_err(io::Error::from)?.len())
        })
    }

    pub(crate) async fn grow(&self, len: u64) -> io::Result<()> {
        self.submit(Kind::Grow { len }).await.0.map(drop)
    }

    pub(crate) async fn read_at(&self, buf: Buf, offset: u64) -> (io::Result<usize>, Buf) {
        assert_aligned(&buf, offset);
        match self.submit(Kind::Read { buf, offset, early: None }).await {
            (result, Kind::Read { buf, .. }) => (result, buf),
            _ => unreachable!("an operation comes back as it was submitted"),
        }
    }

    pub(crate) async fn write_at(&self, data: Slice, offset: u64, mode: WriteMode) -> io::Result<()> {
        self.write_vectored_at(vec![data], offset, mode).await
    }

    pub(crate) async fn write_vectored_at(
        &self,
        data: Vec<Slice>,
        offset: u64,
        mode: WriteMode,
    ) -> io::Result<()> {
        data.iter().for_each(|slice| assert_aligned(slice, offset));
        self.submit(Kind::Write { data, offset, mode }).await.0.map(drop)
    }

    pub(crate) async fn sync(&self) -> io::Result<()> {
        self.submit(Kind::Sync { started: 0 }).await.0.map(drop)
    }

    fn submit(&self, kind: Kind) -> Completion {
        Completion::submit(&self.open.shared, self.open.target, kind)
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        let mut state = self.shared.state.borrow_mut();
        let volume = &mut state.volumes[self.target.volume];
        if volume.generation == self.target.generation {
            volume.files.release(self.inode);
        }
    }
}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut state = self.shared.state.borrow_mut();
        let volume = &mut state.volumes[self.target.volume];
        if volume.generation == self.target.generation
            && let Some(holder) = volume.locks.get_mut(&self.name)
            && holder.process == self.target.process
        {
            holder.count = holder.count.saturating_sub(1);
        }
    }
}

/// What the kernel demands of O_DIRECT, on the strictest device there is.
fn assert_aligned(memory: &[u8], offset: u64) {
    assert!(
        !memory.is_empty() && memory.len().is_multiple_of(BLOCK_LEN),
        "transfer of {} bytes",
        memory.len()
    );
    assert!(memory.as_ptr().addr().is_multiple_of(BLOCK_LEN), "memory of a transfer is not aligned");
    assert!(offset.is_multiple_of(BLOCK_LEN as u64), "transfer at offset {offset}");
}

fn with_volume<T>(
    shared: &Shared,
    target: &Target,
    act: impl FnOnce(&mut Volume) -> io::Result<T>,
) -> io::Result<T> {
    let mut state = shared.state.borrow_mut();
    if !state.alive.contains(&target.process) {
        return Err(io::Error::other("the process is dead"));
    }
    let volume = &mut state.volumes[target.volume];
    if !volume.plugged || volume.generation != target.generation {
        return Err(Errno::IO.into());
    }
    act(volume)
}
