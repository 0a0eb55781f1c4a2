//! The files of the shards on each disk, as one core opens them.

use std::path::PathBuf;
use std::rc::Rc;

use basalt_reactor::{Core, Disk};

use crate::deployment::{Deployment, shard_file};
use crate::error::EngineError;
use crate::extent::flushes::CoreFlushes;
use crate::extent::members::{MemberState, Members};
use crate::extent::reads::DiskReads;
use crate::extent::{ArenaFiles, DiskFiles, DiskIndex};

/// The disks of the members that are not out.
pub(super) fn open_disks(core: &Core, deployment: &Deployment) -> Result<Vec<Option<Disk>>, EngineError> {
    let mut disks = Vec::with_capacity(deployment.disk_count());
    for (path, state) in deployment.paths.iter().zip(deployment.states()) {
        let open = |path: &PathBuf| Disk::open(core, path).map_err(|error| at(&path.display(), &error));
        // One that is out is of no use, whether it is there or not.
        let path = path.as_ref().filter(|_| state != MemberState::Out);
        disks.push(path.map(open).transpose()?);
    }
    Ok(disks)
}

fn at(what: &dyn std::fmt::Display, error: &std::io::Error) -> EngineError {
    EngineError::Damaged(format!("{what}: {error}"))
}

/// The files of `shard` on all disks that are not out.
pub(super) fn open_files(
    deployment: &Deployment,
    disks: &[Option<Disk>],
    shard: u16,
    members: &Rc<Members>,
    flushes: &Rc<CoreFlushes>,
    reads: &Rc<DiskReads>,
) -> Result<Rc<ArenaFiles>, EngineError> {
    let mut files = Vec::with_capacity(disks.len());
    for (disk, index) in disks.iter().zip(0..) {
        let is_out = members.state(DiskIndex(index)) == MemberState::Out;
        let disk = disk.as_ref().filter(|_| !is_out);
        let access = if deployment.read_only { Access::Reads } else { Access::Writes };
        files.push(disk.map(|disk| open_disk_files(disk, shard, access)).transpose()?);
    }
    let (geometry, home) = (deployment.superblock.geometry, deployment.superblock.home_of(shard));
    let members = (Rc::clone(members), home);
    Ok(ArenaFiles::of_members(geometry, files, members, Rc::clone(flushes), Rc::clone(reads)))
}

/// What files are opened for.
#[derive(Clone, Copy)]
pub(super) enum Access {
    Reads,
    Writes,
}

/// The files of a shard on one disk.
pub(super) fn open_disk_files(disk: &Disk, shard: u16, access: Access) -> Result<DiskFiles, EngineError> {
    let open = |kind| {
        let name = shard_file(shard, kind);
        let file = match access {
            Access::Reads => disk.open_file_for_reading(&name),
            Access::Writes => disk.open_file(&name),
        };
        file.map_err(|error| at(&name, &error))
    };
    Ok(DiskFiles {
        root: open("root")?,
        log: open("log")?,
        data: open("data")?,
        table: open("table")?,
        disk: disk.clone(),
    })
}
