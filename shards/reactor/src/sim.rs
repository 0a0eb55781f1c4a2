//! The simulated world: virtual clock, seeded scheduling, and disks that tear, lose, rot and stall.
//!
//! One thread runs any number of virtual cores deterministically: the seed decides which ready task runs next, how long
//! each disk operation takes, in which order completions arrive, and what a crash leaves behind.

use std::io;
use std::path::Path;

use crate::arena::{Arena, Buf, Slice};
use crate::clock::{Monotonic, WallTime};
use crate::core::CoreId;
use crate::disk::{Space, WriteMode};
use crate::task::Task;

#[derive(Clone)]
pub(crate) struct SimCore {}

#[derive(Clone)]
pub(crate) struct SimDisk {}

#[derive(Clone)]
pub(crate) struct SimFile {}

pub(crate) struct SimLock {}

impl SimCore {
    pub(crate) fn id(&self) -> CoreId {
        unimplemented!()
    }
    pub(crate) fn arena(&self) -> &Arena {
        unimplemented!()
    }
    pub(crate) fn now(&self) -> Monotonic {
        unimplemented!()
    }
    pub(crate) fn wall(&self) -> WallTime {
        unimplemented!()
    }
    pub(crate) fn fill_random(&self, _out: &mut [u8]) {
        unimplemented!()
    }
    pub(crate) fn spawn(&self, _task: Task) {
        unimplemented!()
    }
    pub(crate) async fn sleep_until(&self, _deadline: Monotonic) {
        unimplemented!()
    }
}

impl SimDisk {
    pub(crate) fn open(_core: &SimCore, _path: &Path) -> io::Result<SimDisk> {
        unimplemented!()
    }
    pub(crate) fn lock(&self, _name: &str) -> io::Result<SimLock> {
        unimplemented!()
    }
    pub(crate) fn list(&self) -> io::Result<Vec<String>> {
        unimplemented!()
    }
    pub(crate) fn open_file(&self, _name: &str) -> io::Result<SimFile> {
        unimplemented!()
    }
    pub(crate) fn create_file(&self, _name: &str) -> io::Result<SimFile> {
        unimplemented!()
    }
    pub(crate) fn remove_file(&self, _name: &str) -> io::Result<()> {
        unimplemented!()
    }
    pub(crate) async fn sync(&self) -> io::Result<()> {
        unimplemented!()
    }
    pub(crate) fn space(&self) -> io::Result<Space> {
        unimplemented!()
    }
}

impl SimFile {
    pub(crate) fn len(&self) -> io::Result<u64> {
        unimplemented!()
    }
    pub(crate) async fn grow(&self, _len: u64) -> io::Result<()> {
        unimplemented!()
    }
    pub(crate) async fn read_at(&self, _buf: Buf, _offset: u64) -> (io::Result<usize>, Buf) {
        unimplemented!()
    }
    pub(crate) async fn write_at(&self, _data: Slice, _offset: u64, _mode: WriteMode) -> io::Result<()> {
        unimplemented!()
    }
    pub(crate) async fn write_vectored_at(
        &self,
        _data: Vec<Slice>,
        _offset: u64,
        _mode: WriteMode,
    ) -> io::Result<()> {
        unimplemented!()
    }
    pub(crate) async fn sync(&self) -> io::Result<()> {
        unimplemented!()
    }
}
