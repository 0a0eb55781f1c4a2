//! A deployment: the disks of a set, formatted together, opened together, one epoch after the other.
//!
//! Formatting writes superblocks in state Formatting on every disk, creates every file, and only then marks all of them
//! Ready; a crash in between leaves disks that were never of use and are formatted anew. Opening takes the locks, reads what
//! each disk says it is, and starts a new epoch that is durable on every member before any shard serves.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use basalt_reactor::disk::BLOCK_LEN;
use basalt_reactor::{Core, Disk, File, WriteMode};

use crate::body::layout::STRIP_LEN_MAX;
use crate::extent::flushes::Flushes;
use crate::extent::{ExtentId, Geometry};
use crate::format::frame::FrameError;
use crate::format::root::{LogPosition, ROOT_COPY_LEN, Root};
use crate::format::superblock::{
    CODE_REED_SOLOMON_SIMD, DiskClass, HASH_SIP13_128, HASH_SLOT_COUNT, MEMBER_COUNT_MAX, Member,
    SHARD_COUNT_MAX, SUPERBLOCK_COPY_LEN, State, Superblock,
};

/// The file with both copies of a disk's superblock.
pub const SUPERBLOCK_FILE: &str = "superblock";

/// The file whose lock owns a disk.
pub const LOCK_FILE: &str = "lock";

/// Files of a shard.
#[must_use]
pub fn shard_file(shard: u16, kind: &str) -> String {
    format!("shard-{shard:04}.{kind}")
}

/// Names a fresh directory may hold without being somebody else's.
const HARMLESS: [&str; 2] = ["lost+found", LOCK_FILE];

/// How a new deployment is laid out. `None` leaves the choice to the defaults.
#[derive(Clone, Debug, Default)]
pub struct FormatOptions {
    pub shard_count: u16,
    /// k and m.
    pub erasure: Option<(u8, u8)>,
    /// For simulations: everything tiny.
    pub geometry: Option<Geometry>,
}

/// An open deployment, the same for every core.
#[derive(Clone, Debug)]
pub struct Deployment {
    pub superblock: Superblock,
    /// Path of each member, in member order.
    pub paths: Vec<PathBuf>,
    /// It was formatted just now.
    pub fresh: bool,
    /// Made by the first core that starts.
    flushes: OnceLock<Arc<Flushes>>,
}

/// What a path turned out to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskState {
    Empty,
    /// Files, but no superblock of ours.
    Foreign {
        example: String,
    },
    /// A superblock file none of whose copies can be believed.
    Unreadable {
        reasons: Vec<String>,
    },
    Ours(Box<Superblock>),
}

#[derive(Debug)]
pub enum OpenError {
    Disk {
        path: PathBuf,
        error: io::Error,
    },
    /// Another process runs on it.
    Locked {
        path: PathBuf,
    },
    Foreign {
        path: PathBuf,
        example: String,
    },
    Unreadable {
        path: PathBuf,
        reasons: Vec<String>,
    },
    /// Disks of two deployments, or one disk twice.
    Mixed {
        path: PathBuf,
        other: PathBuf,
    },
    Duplicate {
        path: PathBuf,
        other: PathBuf,
    },
    /// Some disks are empty, others belong to a deployment.
    Incomplete {
        missing: Vec<usize>,
        empty: Vec<PathBuf>,
    },
    /// A disk that was away while others went on.
    Stale {
        path: PathBuf,
        epoch: u64,
        newest: u64,
    },
    /// The number of disks does not fit any layout, or not the one asked for.
    Layout(String),
}

impl std::fmt::Display for OpenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            OpenError::Disk { path, error } => write!(f, "{}: {error}", path.display()),
            OpenError::Locked { path } => {
                write!(
                    f,
                    "{} is in use by another process, or writes of a dead one are not over yet",
                    path.display()
                )
            }
            OpenError::Foreign { path, example } => write!(
                f,
                "{} holds files that are not Basalt's (such as {example}); give an empty directory",
                path.display()
            ),
            OpenError::Unreadable { path, reasons } => {
                write!(
                    f,
                    "{} has a superblock that cannot be believed: {}",
                    path.display(),
                    reasons.join("; ")
                )
            }
            OpenError::Mixed { path, other } => {
                write!(f, "{} and {} belong to different deployments", path.display(), other.display())
            }
            OpenError::Duplicate { path, other } => {
                write!(f, "{} and {} are the same disk", path.display(), other.display())
            }
            OpenError::Incomplete { missing, empty } => {
                write!(f, "the deployment lacks its disks {missing:?}")?;
                for path in empty {
                    write!(f, "; {} is empty", path.display())?;
                }
                Ok(())
            }
            OpenError::Stale { path, epoch, newest } => write!(
                f,
                "{} was away: it has epoch {epoch}, the others have {newest}; it must be resynced before it counts",
                path.display()
            ),
            OpenError::Layout(reason) => f.write_str(reason),
        }
    }
}

impl std::error::Error for OpenError {}

/// Default parity for a number of disks; `None` where one set cannot hold them.
#[must_use]
pub fn default_parity(disk_count: usize) -> Option<u8> {
    Some(match disk_count {
        1 => 0,
        2..=3 => 1,
        4..=8 => 2,
        9..=13 => 3,
        14..=19 => 4,
        20 => 6,
        _ => return None,
    })
}

/// Slot lengths for disks of `capacity` bytes: large enough for long runs, small enough that a fresh deployment stays small.
#[must_use]
pub fn geometry_for(k: u8, m: u8, capacity: u64, class: DiskClass, shard_count: u16) -> Geometry {
    const MIB: u64 = 1 << 20;
    let power_of_two = |len: u64, least: u64, most: u64| {
        let floor = if len == 0 { 1 } else { 1 << len.ilog2() };
        u64::clamp(floor, least, most)
    };
    // A new deployment takes two log slots and three table slots per shard; together they stay below 224 MiB where that
    // is possible.
    let shards = u64::from(shard_count);
    let log_most = power_of_two(128 * MIB / (2 * shards), 4 * MIB, 64 * MIB);
    let table_most = power_of_two(96 * MIB / (3 * shards), 4 * MIB, 64 * MIB);
    Geometry {
        k,
        m,
        strip_len: match class {
            DiskClass::Flash => 64 << 10,
            DiskClass::Rotational => STRIP_LEN_MAX.min(256 << 10),
        },
        log_slot_len: power_of_two(capacity >> 14, 4 * MIB, 64 * MIB).min(log_most),
        data_slot_len: power_of_two(capacity >> 10, 16 * MIB, 1024 * MIB),
        table_slot_len: power_of_two(capacity >> 14, 4 * MIB, 64 * MIB).min(table_most),
    }
}

impl Deployment {
    /// What `core_count` cores know of each other's flushes; they all give the same number.
    pub(crate) fn flushes(&self, core_count: u16) -> Arc<Flushes> {
        Arc::clone(self.flushes.get_or_init(|| Flushes::new(self.paths.len(), core_count)))
    }

    /// Formats empty disks or opens formatted ones, and makes a new epoch durable on all of them. The caller holds the
    /// disks' locks.
    ///
    /// # Errors
    /// [`OpenError`] says which disk and why.
    pub async fn prepare(
        core: &Core,
        paths: &[PathBuf],
        class: DiskClass,
        options: &FormatOptions,
    ) -> Result<Arc<Deployment>, OpenError> {
        let mut disks = Vec::with_capacity(paths.len());
        for path in paths {
            let disk = Disk::open(core, path).map_err(|error| on(path, error))?;
            let state = inspect(core, &disk).await.map_err(|error| on(path, error))?;
            disks.push((path.clone(), disk, state));
        }
        refuse_strangers(&disks)?;
        let formatted = disks.iter().any(|(_, _, state)| is_ready(state));
        if formatted {
            return open(core, disks).await.map(Arc::new);
        }
        format(core, disks, class, options).await.map(Arc::new)
    }
}

fn on(path: &Path, error: io::Error) -> OpenError {
    OpenError::Disk { path: path.to_owned(), error }
}

fn is_ready(state: &DiskState) -> bool {
    matches!(state, DiskState::Ours(superblock) if superblock.state == State::Ready)
}

fn refuse_strangers(disks: &[(PathBuf, Disk, DiskState)]) -> Result<(), OpenError> {
    for (path, _, state) in disks {
        match state {
            DiskState::Foreign { example } => {
                return Err(OpenError::Foreign { path: path.clone(), example: example.clone() });
            }
            DiskState::Unreadable { reasons } => {
                return Err(OpenError::Unreadable { path: path.clone(), reasons: reasons.clone() });
            }
            DiskState::Empty | DiskState::Ours(_) => {}
        }
    }
    Ok(())
}

/// Says what a disk holds, from its superblock and, where there is none, from its files.
///
/// # Errors
/// When the directory cannot be read at all.
pub async fn inspect(core: &Core, disk: &Disk) -> io::Result<DiskState> {
    let names = disk.list()?;
    if !names.iter().any(|name| name == SUPERBLOCK_FILE) {
        let stranger = names.iter().find(|name| !HARMLESS.contains(&name.as_str()) && !is_own(name)).cloned();
        for name in names.iter().filter(|name| is_own(name) && name.ends_with(".log")) {
            // Formatting leaves logs without a byte; one that has grown belonged to a disk that served.
            if disk.open_file(name)?.len()? > 0 {
                let reasons = vec![format!("there is none, but {name} holds data")];
                return Ok(DiskState::Unreadable { reasons });
            }
        }
        return Ok(match stranger {
            Some(example) => DiskState::Foreign { example },
            None => DiskState::Empty,
        });
    }
    let file = disk.open_file(SUPERBLOCK_FILE)?;
    let mut newest: Option<Superblock> = None;
    let mut reasons = Vec::new();
    for copy in 0..2u64 {
        let buf = core.arena().alloc(SUPERBLOCK_COPY_LEN).await;
        let (result, buf) = file.read_at(buf, copy * SUPERBLOCK_COPY_LEN as u64).await;
        let len = result?;
        match Superblock::decode(&buf[..len]) {
            Ok(superblock) => {
                if newest.as_ref().is_none_or(|newest| newest.sequence < superblock.sequence) {
                    newest = Some(superblock);
                }
            }
            Err(FrameError::Empty | FrameError::BadLength { got: 0, .. }) => {}
            Err(error) => reasons.push(format!("copy {copy}: {error}")),
        }
    }
    Ok(match newest {
        Some(superblock) => DiskState::Ours(Box::new(superblock)),
        // A superblock file without a byte in it: formatting was cut off at its first step.
        None if reasons.is_empty() => DiskState::Empty,
        None => DiskState::Unreadable { reasons },
    })
}

/// A file that formatting creates before the first superblock is durable.
fn is_own(name: &str) -> bool {
    name.strip_prefix("shard-").and_then(|rest| rest.split_once('.')).is_some_and(|(number, kind)| {
        number.len() == 4
            && number.bytes().all(|byte| byte.is_ascii_digit())
            && ["root", "log", "data", "table"].contains(&kind)
    })
}

async fn open(core: &Core, disks: Vec<(PathBuf, Disk, DiskState)>) -> Result<Deployment, OpenError> {
    let mut members: Vec<Option<(PathBuf, Disk, Superblock)>> = Vec::new();
    let mut empty = Vec::new();
    let mut first: Option<(PathBuf, [u8; 16])> = None;
    for (path, disk, state) in disks {
        let DiskState::Ours(superblock) = state else {
            empty.push(path);
            continue;
        };
        match &first {
            None => first = Some((path.clone(), superblock.set)),
            Some((other, set)) if *set != superblock.set => {
                return Err(OpenError::Mixed { path, other: other.clone() });
            }
            Some(_) => {}
        }
        members.resize_with(superblock.members.len().max(members.len()), || None);
        let index = usize::from(superblock.disk_index);
        if let Some((other, ..)) = &members[index] {
            return Err(OpenError::Duplicate { path, other: other.clone() });
        }
        members[index] = Some((path, disk, *superblock));
    }
    let missing = (0..members.len()).filter(|&index| members[index].is_none()).collect::<Vec<_>>();
    if !missing.is_empty() || !empty.is_empty() {
        return Err(OpenError::Incomplete { missing, empty });
    }
    let members = members.into_iter().flatten().collect::<Vec<_>>();
    let newest = members.iter().map(|(_, _, superblock)| superblock.epoch).max().unwrap_or(0);
    for (path, _, superblock) in &members {
        // A new epoch is durable on every member before anything is acknowledged in it; so a disk one epoch behind only
        // missed an opening that never served.
        if superblock.epoch + 1 < newest {
            return Err(OpenError::Stale { path: path.clone(), epoch: superblock.epoch, newest });
        }
    }
    let mut current = members
        .iter()
        .map(|(_, _, superblock)| superblock)
        .max_by_key(|superblock| superblock.epoch)
        .cloned()
        .ok_or_else(|| OpenError::Layout("no disk was given".to_owned()))?;
    // What was read may lie in a drive's cache alone, left there by a killed process. The copy that is overwritten next must
    // not be all that a power cut leaves.
    for (path, disk, _) in &members {
        let file = disk.open_file(SUPERBLOCK_FILE).map_err(|error| on(path, error))?;
        file.sync().await.map_err(|error| on(path, error))?;
    }
    // Two steps, so that however often this is cut off, no two disks are ever more than one epoch apart.
    let behind = members.iter().map(|(_, _, superblock)| superblock.epoch < newest).collect::<Vec<_>>();
    let mut sequences = members.iter().map(|(_, _, superblock)| superblock.sequence).collect::<Vec<_>>();
    for (epoch, step) in [(newest, behind), (newest + 1, vec![true; members.len()])] {
        current.epoch = epoch;
        for member in &mut current.members {
            member.epoch_last = epoch;
        }
        for (index, (path, disk, own)) in members.iter().enumerate().filter(|&(index, _)| step[index]) {
            sequences[index] += 1;
            let superblock = Superblock {
                sequence: sequences[index],
                state: State::Ready,
                disk: own.disk,
                disk_index: u8::try_from(index).expect("a set has at most 20 disks"),
                ..current.clone()
            };
            let file = disk.open_file(SUPERBLOCK_FILE).map_err(|error| on(path, error))?;
            write_superblock(core, &file, &superblock).await.map_err(|error| on(path, error))?;
        }
    }
    let paths = members.into_iter().map(|(path, ..)| path).collect();
    Ok(Deployment { superblock: current, paths, fresh: false, flushes: OnceLock::new() })
}

async fn write_superblock(core: &Core, file: &File, superblock: &Superblock) -> io::Result<()> {
    let bytes = superblock.encode();
    let mut buf = core.arena().alloc(bytes.len()).await;
    buf.set_len(bytes.len());
    buf.copy_from_slice(&bytes);
    let offset = (superblock.sequence & 1) * SUPERBLOCK_COPY_LEN as u64;
    file.write_at(buf.freeze(), offset, WriteMode::Stable).await
}

async fn format(
    core: &Core,
    disks: Vec<(PathBuf, Disk, DiskState)>,
    class: DiskClass,
    options: &FormatOptions,
) -> Result<Deployment, OpenError> {
    let geometry = layout(&disks, class, options)?;
    let shard_count = options.shard_count;
    if shard_count == 0 || usize::from(shard_count) > SHARD_COUNT_MAX {
        return Err(OpenError::Layout(format!("{shard_count} shards; 1 to {SHARD_COUNT_MAX} are possible")));
    }
    let members =
        disks.iter().map(|_| Member { disk: random_id(core), class, epoch_last: 1 }).collect::<Vec<_>>();
    let superblock = Superblock {
        sequence: 1,
        state: State::Formatting,
        deployment: random_id(core),
        set: random_id(core),
        disk: [0; 16],
        disk_index: 0,
        code: CODE_REED_SOLOMON_SIMD,
        geometry,
        hash: HASH_SIP13_128,
        hash_seed: random_id(core),
        shard_count,
        slot_map: (0..HASH_SLOT_COUNT)
            .map(|slot| u16::try_from(slot % usize::from(shard_count)).expect("below the shard count"))
            .collect(),
        epoch: 1,
        members,
    };
    let own = |index: usize, sequence, state| Superblock {
        sequence,
        state,
        disk: superblock.members[index].disk,
        disk_index: u8::try_from(index).expect("a set has at most 20 disks"),
        ..superblock.clone()
    };
    let mut files = Vec::with_capacity(disks.len());
    for (index, (path, disk, _)) in disks.iter().enumerate() {
        let file = format_disk(core, disk, &own(index, 1, State::Formatting)).await;
        files.push(file.map_err(|error| on(path, error))?);
    }
    // Both copies, one after the other on all disks: with one of them damaged, the other must not say Formatting of a
    // disk that has served.
    for sequence in [2, 3] {
        for (index, (path, ..)) in disks.iter().enumerate() {
            let ready = own(index, sequence, State::Ready);
            write_superblock(core, &files[index], &ready).await.map_err(|error| on(path, error))?;
        }
    }
    let paths = disks.into_iter().map(|(path, ..)| path).collect();
    Ok(Deployment { superblock: own(0, 3, State::Ready), paths, fresh: true, flushes: OnceLock::new() })
}

fn random_id(core: &Core) -> [u8; 16] {
    let mut id = [0; 16];
    core.fill_random(&mut id);
    id
}

fn layout(
    disks: &[(PathBuf, Disk, DiskState)],
    class: DiskClass,
    options: &FormatOptions,
) -> Result<Geometry, OpenError> {
    let count = disks.len();
    if count == 0 || count > MEMBER_COUNT_MAX {
        return Err(OpenError::Layout(format!(
            "{count} disks; one erasure set has 1 to {MEMBER_COUNT_MAX}, several sets are not supported yet"
        )));
    }
    if let Some(geometry) = options.geometry {
        return Ok(geometry);
    }
    let (k, m) = match options.erasure {
        Some((k, m)) if usize::from(k) + usize::from(m) == count && k > 0 => (k, m),
        Some((k, m)) => {
            return Err(OpenError::Layout(format!("--erasure {k}+{m} needs {} disks, not {count}", k + m)));
        }
        None => {
            let m = default_parity(count).expect("the count was checked above");
            (u8::try_from(count).expect("at most 20") - m, m)
        }
    };
    let mut capacity = u64::MAX;
    for (path, disk, _) in disks {
        capacity = capacity.min(disk.space().map_err(|error| on(path, error))?.total);
    }
    Ok(geometry_for(k, m, capacity, class, options.shard_count))
}

/// Writes everything a disk needs before it can be marked ready; anything left of an earlier attempt is replaced.
async fn format_disk(core: &Core, disk: &Disk, superblock: &Superblock) -> io::Result<File> {
    for name in disk.list()? {
        if name == SUPERBLOCK_FILE || is_own(&name) {
            disk.remove_file(&name)?;
        }
    }
    let file = disk.create_file(SUPERBLOCK_FILE)?;
    file.grow(2 * SUPERBLOCK_COPY_LEN as u64).await?;
    write_superblock(core, &file, superblock).await?;
    file.sync().await?;
    disk.sync().await?;
    for shard in 0..superblock.shard_count {
        for kind in ["log", "data", "table"] {
            disk.create_file(&shard_file(shard, kind))?;
        }
        let root = disk.create_file(&shard_file(shard, "root"))?;
        root.grow(2 * ROOT_COPY_LEN as u64).await?;
        let bytes = first_root(superblock, shard).encode();
        let mut buf = core.arena().alloc(BLOCK_LEN).await;
        buf.copy_from_slice(&bytes);
        root.write_at(buf.freeze(), 0, WriteMode::Stable).await?;
        root.sync().await?;
    }
    disk.sync().await?;
    Ok(file)
}

fn first_root(superblock: &Superblock, shard: u16) -> Root {
    Root {
        deployment: superblock.deployment,
        shard,
        sequence: 0,
        epoch: superblock.epoch,
        manifest: Vec::new(),
        manifest_len: 0,
        manifest_crc: 0,
        log: LogPosition { extent: ExtentId(0), offset: 0, sequence: 1, previous: [0; 16] },
        next_extent: 1,
        clock_floor: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fresh_deployment_with_eight_shards_takes_less_than_256_mib() {
        for capacity in [1 << 30, 80 << 30, 1 << 40, 20 << 40] {
            let geometry = geometry_for(1, 0, capacity, DiskClass::Flash, 8);
            let len = 8 * (2 * geometry.log_slot_len + 3 * geometry.table_slot_len);
            assert!(len < 256 << 20, "{len} bytes on a disk of {capacity}");
        }
    }

    #[test]
    fn default_parity_grows_with_the_disks() {
        let parity = |count| default_parity(count);
        assert_eq!([1, 2, 3, 4, 8, 9, 13, 14, 19, 20].map(parity), [0, 1, 1, 2, 2, 3, 3, 4, 4, 6].map(Some));
        assert_eq!(parity(21), None);
    }
}
