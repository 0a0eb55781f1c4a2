//! What a disk holds that nobody has opened yet.

use std::io;

use basalt_reactor::{Core, Disk};

use super::{DiskState, HARMLESS, SUPERBLOCK_FILE};
use crate::format::frame::FrameError;
use crate::format::superblock::{SUPERBLOCK_COPY_LEN, Superblock};

/// Says what a disk holds, from its superblock and, where there is none, from its files.
///
/// # Errors
/// When the directory cannot be read at all.
pub async fn inspect(core: &Core, disk: &Disk) -> io::Result<DiskState> {
    let names = disk.list()?;
    if !names.iter().any(|name| name == SUPERBLOCK_FILE) {
        let stranger = names.iter().find(|name| !HARMLESS.contains(&name.as_str()) && !is_own(name)).cloned();
        if let Some(name) = log_with_data(disk, &names)? {
            let reasons = vec![format!("there is none, but {name} holds data")];
            return Ok(DiskState::Unreadable { reasons });
        }
        return Ok(match stranger {
            Some(example) => DiskState::Foreign { example },
            None => DiskState::Empty,
        });
    }
    let file = disk.open_file_for_reading(SUPERBLOCK_FILE)?;
    let mut newest: Option<Superblock> = None;
    let (mut reasons, mut refused, mut blank, mut is_newer) = (Vec::new(), Vec::new(), 0, false);
    for copy in 0..2u64 {
        let buf = core.arena().alloc(SUPERBLOCK_COPY_LEN).await;
        let (result, buf) = file.read_at(buf, copy * SUPERBLOCK_COPY_LEN as u64).await;
        let len = match result {
            Ok(len) => len,
            Err(error) => {
                refused.push(error);
                continue;
            }
        };
        match Superblock::decode(&buf[..len]) {
            Ok(superblock) => {
                if newest.as_ref().is_none_or(|newest| newest.sequence < superblock.sequence) {
                    newest = Some(superblock);
                }
            }
            Err(FrameError::Empty | FrameError::BadLength { got: 0, .. }) => blank += 1,
            Err(error) => {
                is_newer |= matches!(error, FrameError::NewerVersion { .. });
                reasons.push(format!("copy {copy}: {error}"));
            }
        }
    }
    if refused.len() == 2
        && let Some(error) = refused.pop()
    {
        return Err(error);
    }
    let answered = refused.is_empty();
    reasons.extend(refused.iter().map(io::Error::to_string));
    Ok(match newest {
        // Beside a copy that a newer Basalt wrote the other one is out of date, whole as it may be.
        Some(_) if is_newer => DiskState::Unreadable { reasons },
        Some(superblock) => DiskState::Ours(Box::new(superblock)),
        // A superblock file without a byte in it: formatting was cut off at its first step.
        None if reasons.is_empty() => DiskState::Empty,
        // It was cut off within the first copy: a disk that has served has both.
        None if answered && blank == 1 && log_with_data(disk, &names)?.is_none() => DiskState::Empty,
        None => DiskState::Unreadable { reasons },
    })
}

/// Formatting leaves logs without a byte; one that has grown belonged to a disk that served.
fn log_with_data<'a>(disk: &Disk, names: &'a [String]) -> io::Result<Option<&'a String>> {
    for name in names.iter().filter(|name| is_own(name) && name.ends_with(".log")) {
        if disk.open_file_for_reading(name)?.len()? > 0 {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// A file that formatting creates before the first superblock is durable.
pub(super) fn is_own(name: &str) -> bool {
    name.strip_prefix("shard-").and_then(|rest| rest.split_once('.')).is_some_and(|(number, kind)| {
        number.len() == 4
            && number.bytes().all(|byte| byte.is_ascii_digit())
            && ["root", "log", "data", "table"].contains(&kind)
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use basalt_reactor::WriteMode;
    use basalt_reactor::sim::{Config, World};

    use super::*;

    /// What is said of a disk whose superblock copies hold these bytes, beside a log of `log_len` bytes.
    fn found(copies: [u8; 2], log_len: u64) -> DiskState {
        let mut world = World::new(1, Config::with_disks(1, 64 << 20));
        let core = world.boot(1).remove(0);
        world.run(async move {
            let disk = Disk::open(&core, Path::new("disk0")).expect("opens");
            let file = disk.create_file(SUPERBLOCK_FILE).expect("creates");
            file.grow(2 * SUPERBLOCK_COPY_LEN as u64).await.expect("has room");
            for (offset, byte) in [0, SUPERBLOCK_COPY_LEN as u64].into_iter().zip(copies) {
                let mut buf = core.arena().alloc(4096).await;
                buf.set_len(4096);
                buf.fill(byte);
                file.write_at(buf.freeze(), offset, WriteMode::Stable).await.expect("writes");
            }
            let log = disk.create_file("shard-0000.log").expect("creates");
            log.grow(log_len).await.expect("has room");
            inspect(&core, &disk).await.expect("answers")
        })
    }

    #[test]
    fn a_first_superblock_that_is_torn_is_of_no_disk() {
        assert!(matches!(found([0, 0], 0), DiskState::Empty));
        assert!(matches!(found([0, 7], 0), DiskState::Empty));
        assert!(matches!(found([0, 7], 4096), DiskState::Unreadable { .. }), "it has served");
        assert!(matches!(found([7, 7], 0), DiskState::Unreadable { .. }), "both copies were written");
    }
}
