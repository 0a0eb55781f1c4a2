//! A deployment: disks in groups, formatted together, opened together, one epoch after the other.
//!
//! Formatting writes superblocks in state Formatting on every disk, creates every file, and only then marks all of them
//! Ready; a crash in between leaves disks that were never of use and are formatted anew. Opening takes the locks, reads what
//! each disk says it is, and starts a new epoch that is durable on every member before any shard serves.

mod inspect;
mod open;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use basalt_reactor::disk::BLOCK_LEN;
use basalt_reactor::{Core, Disk, File, WriteMode};

pub use self::inspect::inspect;
use self::inspect::is_own;
use crate::body::layout::STRIP_LEN_MAX;
use crate::extent::flushes::Flushes;
use crate::extent::groups::{GroupIndex, GroupRole};
use crate::extent::members::MemberState;
use crate::extent::{ExtentId, Geometry};
use crate::format::root::{LogPosition, ROOT_COPY_LEN, Root};
use crate::format::superblock::{
    CODE_REED_SOLOMON_SIMD, DiskClass, HASH_SIP13_128, HASH_SLOT_COUNT, MEMBER_COUNT_MAX, Member,
    SET_WIDTH_MAX, SHARD_COUNT_MAX, SUPERBLOCK_COPY_LEN, State, Superblock,
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

/// What to think of disks that are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MissingDisks {
    /// They may hold newer data if they are enough to have gone on alone.
    MayHaveGoneOn,
    /// The operator says that they are lost for good.
    AreLost,
}

/// A member that cannot be counted on, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    pub disk: usize,
    pub reason: String,
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "disk {} {}", self.disk, self.reason)
    }
}

/// How a new deployment is laid out. `None` leaves the choice to the defaults.
#[derive(Clone, Debug, Default)]
pub struct FormatOptions {
    pub shard_count: u16,
    /// k and m of each set.
    pub erasure: Option<(u8, u8)>,
    /// So many of the disks, the last ones, hold log and index alone; and what they are.
    pub metadata: Option<(usize, DiskClass)>,
    /// For simulations: everything tiny.
    pub geometry: Option<Geometry>,
}

/// An open deployment, the same for every core.
#[derive(Clone, Debug)]
pub struct Deployment {
    pub superblock: Superblock,
    /// Path of each member that is there, in member order; of one that is missing, where it stands in the list if nothing of
    /// use is there.
    pub paths: Vec<Option<PathBuf>>,
    /// Sequence of each member's superblock.
    pub(crate) sequences: Vec<u64>,
    /// Paths where no member was found; one that is missing may turn up there.
    pub unclaimed: Vec<PathBuf>,
    /// Those of them that held an empty disk with nobody's place to take.
    pub spares: Vec<PathBuf>,
    /// It was formatted just now.
    pub fresh: bool,
    /// It is for reading alone: nothing is written to any disk.
    pub read_only: bool,
    /// Members that are not counted on, and why.
    pub missing: Vec<Missing>,
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
    /// A disk that another one has taken the place of.
    Replaced {
        path: PathBuf,
    },
    /// Fewer disks are there than it takes to read everything.
    TooFew {
        in_sync: usize,
        needed: usize,
        missing: Vec<Missing>,
    },
    /// The missing disks were enough to go on without those that are there.
    MayHaveGoneOn {
        missing: Vec<Missing>,
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
            OpenError::Replaced { path } => write!(
                f,
                "{} was replaced by another disk and is no member any more; take it away or empty it",
                path.display()
            ),
            OpenError::TooFew { in_sync, needed, missing } => {
                write!(f, "{in_sync} disks hold all they should, {needed} are needed")?;
                missing.iter().try_for_each(|missing| write!(f, "; {missing}"))?;
                write!(f, "; what the others have can be read with --start-read-only")
            }
            OpenError::MayHaveGoneOn { missing } => {
                write!(f, "the missing disks may hold newer data than those that are there")?;
                missing.iter().try_for_each(|missing| write!(f, "; {missing}"))?;
                write!(f, "; if they are lost for good, start with --start-degraded")
            }
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

/// Disks of each set when nobody says otherwise: all of them in one, or as many as possible in equal ones.
///
/// # Errors
/// Says which numbers of disks would fit.
pub fn set_width(disk_count: usize) -> Result<usize, String> {
    const WIDTHS: std::ops::RangeInclusive<usize> = 8..=SET_WIDTH_MAX;
    let equal = |count: usize| WIDTHS.rev().find(|&width| count.is_multiple_of(width));
    match disk_count {
        0 => Err("no disk was given".to_owned()),
        1..=SET_WIDTH_MAX => Ok(disk_count),
        _ => equal(disk_count).ok_or_else(|| {
            let below = (0..disk_count).rev().find(|&count| count <= SET_WIDTH_MAX || equal(count).is_some());
            let above = (disk_count..).find(|&count| equal(count).is_some());
            format!(
                "{disk_count} disks do not make equal sets of {} to {}; {} or {} would, or say --erasure",
                WIDTHS.start(),
                WIDTHS.end(),
                below.unwrap_or(SET_WIDTH_MAX),
                above.unwrap_or(2 * SET_WIDTH_MAX)
            )
        }),
    }
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
        // Disks may be added while it runs.
        Arc::clone(self.flushes.get_or_init(|| Flushes::new(MEMBER_COUNT_MAX, core_count)))
    }

    /// Disks of the deployment, there or not.
    #[must_use]
    pub fn disk_count(&self) -> usize {
        self.superblock.members.len()
    }

    /// The members as they were when the deployment was opened.
    #[must_use]
    pub fn states(&self) -> Vec<MemberState> {
        self.superblock.members.iter().map(|member| member.state).collect()
    }

    /// Formats empty disks or opens formatted ones, and makes a new epoch durable on all of them. The caller holds the
    /// locks of all disks that have a lock file, and of all where there is no deployment yet.
    ///
    /// # Errors
    /// [`OpenError`] says which disk and why.
    pub async fn prepare(
        core: &Core,
        paths: &[PathBuf],
        class: DiskClass,
        options: &FormatOptions,
    ) -> Result<Arc<Deployment>, OpenError> {
        Deployment::prepare_without(core, paths, class, options, MissingDisks::MayHaveGoneOn).await
    }

    /// As [`Deployment::prepare`], knowing what to think of disks that are missing.
    ///
    /// # Errors
    /// As [`Deployment::prepare`].
    pub async fn prepare_without(
        core: &Core,
        paths: &[PathBuf],
        class: DiskClass,
        options: &FormatOptions,
        missing: MissingDisks,
    ) -> Result<Arc<Deployment>, OpenError> {
        let (disks, mut unreachable) = look_at(core, paths).await;
        if disks.iter().any(|(_, _, state)| is_ready(state)) {
            let mut opening = open::Opening::new(core, paths, disks, unreachable, class, missing)?;
            return opening.open().await.map(Arc::new);
        }
        if let Some((path, error)) = unreachable.pop() {
            return Err(on(&path, error));
        }
        refuse_strangers(&disks)?;
        format(core, disks, class, options).await.map(Arc::new)
    }

    /// Opens formatted disks for reading alone, however many are missing; nothing is written to any of them. The caller holds the
    /// locks of those that can be locked.
    ///
    /// # Errors
    /// As [`Deployment::prepare`]; also when no member is there that holds all it should.
    pub async fn prepare_for_reading(
        core: &Core,
        paths: &[PathBuf],
        missing: MissingDisks,
    ) -> Result<Arc<Deployment>, OpenError> {
        let (disks, unreachable) = look_at(core, paths).await;
        if !disks.iter().any(|(_, _, state)| is_ready(state)) {
            let mut reason = "nothing to be read: no disk of a deployment is there".to_owned();
            for (path, error) in unreachable {
                reason.push_str(&format!("; {}: {error}", path.display()));
            }
            return Err(OpenError::Layout(reason));
        }
        let mut opening = open::Opening::new(core, paths, disks, unreachable, DiskClass::Flash, missing)?;
        opening.open_for_reading().map(Arc::new)
    }
}

/// Disks with what they hold, and paths where none can be looked at.
type LookedAt = (Vec<(PathBuf, Disk, DiskState)>, Vec<(PathBuf, io::Error)>);

async fn look_at(core: &Core, paths: &[PathBuf]) -> LookedAt {
    let mut disks = Vec::with_capacity(paths.len());
    let mut unreachable = Vec::new();
    for path in paths {
        let found = match Disk::open(core, path) {
            Ok(disk) => inspect(core, &disk).await.map(|state| (disk, state)),
            Err(error) => Err(error),
        };
        match found {
            Ok((disk, state)) => disks.push((path.clone(), disk, state)),
            Err(error) => unreachable.push((path.clone(), error)),
        }
    }
    (disks, unreachable)
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

pub(crate) async fn write_superblock(core: &Core, file: &File, superblock: &Superblock) -> io::Result<()> {
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
    let shard_count = options.shard_count;
    if shard_count == 0 || usize::from(shard_count) > SHARD_COUNT_MAX {
        return Err(OpenError::Layout(format!("{shard_count} shards; 1 to {SHARD_COUNT_MAX} are possible")));
    }
    let Layout { geometry, groups, of_disk, homes } = layout(&disks, class, options)?;
    let mut members = Vec::with_capacity(disks.len());
    for ((path, disk, _), &group) in disks.iter().zip(&of_disk) {
        let metadata = options.metadata.filter(|_| groups[usize::from(group.0)] == GroupRole::Metadata);
        members.push(Member {
            disk: random_id(core),
            class: metadata.map_or(class, |(_, class)| class),
            group,
            state: MemberState::InSync,
            own_filesystem: disk.own_filesystem().map_err(|error| on(path, error))?,
            removed: false,
            epoch_last: 1,
            joined: 1,
        });
    }
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
        groups,
        homes,
    };
    let own = |index: usize, sequence, state| Superblock {
        sequence,
        state,
        disk: superblock.members[index].disk,
        disk_index: u8::try_from(index).expect("at most 240 disks"),
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
    Ok(Deployment {
        superblock: own(0, 3, State::Ready),
        sequences: vec![3; disks.len()],
        paths: disks.into_iter().map(|(path, ..)| Some(path)).collect(),
        unclaimed: Vec::new(),
        spares: Vec::new(),
        fresh: true,
        read_only: false,
        missing: Vec::new(),
        flushes: OnceLock::new(),
    })
}

pub(crate) fn random_id(core: &Core) -> [u8; 16] {
    let mut id = [0; 16];
    core.fill_random(&mut id);
    id
}

/// Which disks belong together, how what is on them is cut, and where each shard is at home.
struct Layout {
    geometry: Geometry,
    groups: Vec<GroupRole>,
    /// By disk.
    of_disk: Vec<GroupIndex>,
    /// By shard.
    homes: Vec<GroupIndex>,
}

fn layout(
    disks: &[(PathBuf, Disk, DiskState)],
    class: DiskClass,
    options: &FormatOptions,
) -> Result<Layout, OpenError> {
    let metadata_count = options.metadata.map_or(0, |(count, _)| count);
    let data_count = disks.len().saturating_sub(metadata_count);
    if disks.len() > MEMBER_COUNT_MAX {
        let reason = format!("{} disks; a deployment has at most {MEMBER_COUNT_MAX}", disks.len());
        return Err(OpenError::Layout(reason));
    }
    let (k, m) = match (options.geometry, options.erasure) {
        (Some(geometry), _) => (geometry.k, geometry.m),
        (None, Some((k, m))) => (k, m),
        (None, None) => {
            let width = set_width(data_count).map_err(OpenError::Layout)?;
            let m = default_parity(width).expect("a set is that wide");
            (u8::try_from(width).expect("at most 20") - m, m)
        }
    };
    let width = usize::from(k) + usize::from(m);
    if k == 0 || width > SET_WIDTH_MAX || data_count == 0 || !data_count.is_multiple_of(width) {
        return Err(OpenError::Layout(format!(
            "--erasure {k}+{m} needs {width} disks or a multiple of that (at most {SET_WIDTH_MAX} in a set), not {data_count}"
        )));
    }
    if metadata_count == 1 && m > 0 {
        let reason = "one disk for metadata: with it everything would be lost; give two or more";
        return Err(OpenError::Layout(reason.to_owned()));
    }
    let set_count = data_count / width;
    let group = |index: usize| GroupIndex(u8::try_from(index).expect("fewer groups than disks"));
    let mut groups = vec![GroupRole::Set; set_count];
    let mut of_disk: Vec<_> = (0..data_count).map(|disk| group(disk / width)).collect();
    let mut homes: Vec<_> =
        (0..usize::from(options.shard_count)).map(|shard| group(shard % set_count)).collect();
    if metadata_count > 0 {
        groups.push(GroupRole::Metadata);
        of_disk.extend(vec![group(set_count); metadata_count]);
        homes.fill(group(set_count));
    }
    let geometry = match options.geometry {
        Some(geometry) => geometry,
        None => {
            let (data, metadata) = disks.split_at(data_count);
            let mut geometry = geometry_for(k, m, least_capacity(data)?, class, options.shard_count);
            if metadata_count > 0 {
                let log = geometry_for(k, m, least_capacity(metadata)?, class, options.shard_count);
                geometry.log_slot_len = log.log_slot_len;
                geometry.table_slot_len = log.table_slot_len;
            }
            geometry
        }
    };
    Ok(Layout { geometry, groups, of_disk, homes })
}

fn least_capacity(disks: &[(PathBuf, Disk, DiskState)]) -> Result<u64, OpenError> {
    let total = |(path, disk, _): &(PathBuf, Disk, DiskState)| match disk.space() {
        Ok(space) => Ok(space.total),
        Err(error) => Err(on(path, error)),
    };
    disks.iter().map(total).try_fold(u64::MAX, |least, total| Ok(least.min(total?)))
}

/// Writes everything a disk needs before it can be marked ready; anything left of an earlier attempt is replaced.
pub(crate) async fn format_disk(core: &Core, disk: &Disk, superblock: &Superblock) -> io::Result<File> {
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
        if superblock.home_of(shard) != superblock.members[usize::from(superblock.disk_index)].group {
            continue;
        }
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
        rebuilds: Vec::new(),
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

    #[test]
    fn many_disks_make_equal_sets() {
        assert_eq!([1, 7, 20].map(set_width), [Ok(1), Ok(7), Ok(20)]);
        assert_eq!(
            [21, 24, 32, 40, 60, 68].map(|count| set_width(count).ok()),
            [None, Some(12), Some(16), Some(20), Some(20), Some(17)]
        );
        let refused = set_width(23).expect_err("a prime");
        assert!(refused.contains("22 or 24 would"), "{refused}");
    }
}
