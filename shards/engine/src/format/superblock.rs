//! The superblock: who a disk is, which deployment it belongs to, and how that is laid out.
//!
//! Two copies, A and B, in the file `superblock` of each disk. The copy with the higher sequence is the newest; a new
//! one always overwrites the other, so the newest valid copy is never at risk.

use std::hash::Hasher;

use siphasher::sip128::{Hasher128, SipHasher13};

use super::codec::{DecodeError, Decoder, Encoder};
use super::frame::{self, FrameError};
use crate::body::layout::STRIP_LEN_MAX;
use crate::extent::Geometry;
use crate::extent::groups::{GroupIndex, GroupRole, Groups};
use crate::extent::members::MemberState;

/// Bytes reserved for one copy; A starts at 0, B here.
pub const SUPERBLOCK_COPY_LEN: usize = 64 << 10;

/// Slots the keyspace is hashed into.
pub const HASH_SLOT_COUNT: usize = 4096;

/// Disks one erasure set may have.
pub const SET_WIDTH_MAX: usize = 20;

/// Disks one deployment may have.
pub const MEMBER_COUNT_MAX: usize = 240;

/// Shards one deployment may have.
pub const SHARD_COUNT_MAX: usize = 1024;

/// The erasure code of reed-solomon-simd 3 over GF(2^16).
pub const CODE_REED_SOLOMON_SIMD: u8 = 1;

/// SipHash-1-3 with 128 bits, keyed by the seed.
pub const HASH_SIP13_128: u8 = 1;

const MAGIC: [u8; 8] = *b"BSLTSUPR";
const VERSION: u16 = 3;

/// A disk is of use only once everyone formatted together with it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    Formatting = 1,
    Ready = 2,
}

/// What kind of medium a disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum DiskClass {
    Flash = 1,
    Rotational = 2,
}

/// One disk of the deployment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub disk: [u8; 16],
    pub class: DiskClass,
    /// The disks it stands together with.
    pub group: GroupIndex,
    pub state: MemberState,
    /// It is the root of a file system of its own, so that its path holds another one's files when it is not mounted.
    pub own_filesystem: bool,
    /// An operator took it out: it stays out, wherever it turns up, until an operator says otherwise.
    pub removed: bool,
    /// The newest epoch this disk was a member of.
    pub epoch_last: u64,
    /// The epoch since when it is a member without a break.
    pub joined: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Counts writes of this disk's superblock.
    pub sequence: u64,
    pub state: State,
    pub deployment: [u8; 16],
    /// Of everything that starts together: its member list and its epochs.
    pub set: [u8; 16],
    pub disk: [u8; 16],
    /// This disk's place in `members`.
    pub disk_index: u8,
    pub code: u8,
    pub geometry: Geometry,
    pub hash: u8,
    pub hash_seed: [u8; 16],
    pub shard_count: u16,
    /// Shard of each of the [`HASH_SLOT_COUNT`] slots.
    pub slot_map: Vec<u16>,
    pub epoch: u64,
    pub members: Vec<Member>,
    /// What the disks of each group hold.
    pub groups: Vec<GroupRole>,
    /// By shard, the group that its log, tables and roots lie on.
    pub homes: Vec<GroupIndex>,
}

impl Superblock {
    /// The groups of disks.
    #[must_use]
    pub fn groups(&self) -> Groups {
        let of_disk = self.members.iter().map(|member| member.group).collect();
        Groups::new(self.geometry.m, self.groups.clone(), of_disk)
    }

    /// The group that `shard` is at home in.
    #[must_use]
    pub fn home_of(&self, shard: u16) -> GroupIndex {
        self.homes[usize::from(shard)]
    }

    /// The shard that owns `name` in `bucket`; a bucket's own record goes by bucket 0 and its name.
    #[must_use]
    pub fn shard_of(&self, bucket: u64, name: &[u8]) -> u16 {
        let mut hasher = SipHasher13::new_with_key(&self.hash_seed);
        hasher.write(&bucket.to_le_bytes());
        hasher.write(name);
        let hash = hasher.finish128().as_u128();
        let slot = usize::try_from(hash % HASH_SLOT_COUNT as u128).expect("below the slot count");
        self.slot_map[slot]
    }

    /// The framed copy, shorter than [`SUPERBLOCK_COPY_LEN`].
    ///
    /// # Panics
    /// If the superblock is not well formed (counts beyond their maxima).
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        assert_eq!(self.slot_map.len(), HASH_SLOT_COUNT);
        assert!(self.members.len() <= MEMBER_COUNT_MAX);
        let mut out = Encoder::new();
        out.u64(self.sequence);
        out.u8(self.state as u8);
        out.u8(self.disk_index);
        out.u8(self.code);
        out.u8(self.hash);
        out.raw(&self.deployment);
        out.raw(&self.set);
        out.raw(&self.disk);
        out.raw(&self.hash_seed);
        out.u8(self.geometry.k);
        out.u8(self.geometry.m);
        out.u16(self.shard_count);
        out.u32(self.geometry.strip_len);
        out.u64(self.geometry.log_slot_len);
        out.u64(self.geometry.data_slot_len);
        out.u64(self.geometry.table_slot_len);
        out.u64(self.epoch);
        out.count(self.members.len());
        for member in &self.members {
            out.raw(&member.disk);
            out.u8(member.class as u8);
            out.u8(member.state as u8);
            out.u8(u8::from(member.own_filesystem));
            out.u8(member.group.0);
            out.u8(u8::from(member.removed));
            out.raw(&[0; 3]);
            out.u64(member.epoch_last);
            out.u64(member.joined);
        }
        for &shard in &self.slot_map {
            out.u16(shard);
        }
        out.count(self.groups.len());
        for &role in &self.groups {
            out.u8(role as u8);
        }
        for home in &self.homes {
            out.u8(home.0);
        }
        let bytes = frame::seal(MAGIC, VERSION, &out.finish());
        assert!(bytes.len() <= SUPERBLOCK_COPY_LEN);
        bytes
    }

    /// Decodes one copy.
    ///
    /// # Errors
    /// [`FrameError`]: empty, foreign, damaged or newer.
    pub fn decode(bytes: &[u8]) -> Result<Superblock, FrameError> {
        let (version, payload) = frame::open(MAGIC, VERSION, bytes)?;
        Ok(Superblock::decode_payload(version, payload)?)
    }

    fn decode_payload(version: u16, payload: &[u8]) -> Result<Superblock, DecodeError> {
        let mut from = Decoder::new(payload);
        let sequence = from.u64("sequence")?;
        let state = match from.u8("state")? {
            1 => State::Formatting,
            2 => State::Ready,
            got => return Err(DecodeError::Invalid { field: "state", got: got.into() }),
        };
        let disk_index = from.u8("disk index")?;
        let code = from.u8("code")?;
        if code != CODE_REED_SOLOMON_SIMD {
            return Err(DecodeError::Invalid { field: "code", got: code.into() });
        }
        let hash = from.u8("hash")?;
        if hash != HASH_SIP13_128 {
            return Err(DecodeError::Invalid { field: "hash", got: hash.into() });
        }
        let deployment = from.array("deployment")?;
        let set = from.array("set")?;
        let disk = from.array("disk")?;
        let hash_seed = from.array("hash seed")?;
        let (k, m) = (from.u8("k")?, from.u8("m")?);
        let shard_count = from.u16("shard count")?;
        let geometry = Geometry {
            k,
            m,
            strip_len: from.u32("strip length")?,
            log_slot_len: from.u64("log slot length")?,
            data_slot_len: from.u64("data slot length")?,
            table_slot_len: from.u64("table slot length")?,
        };
        if k == 0 || geometry.columns() > SET_WIDTH_MAX {
            return Err(DecodeError::Invalid { field: "k", got: k.into() });
        }
        if geometry.strip_len > STRIP_LEN_MAX {
            return Err(DecodeError::Invalid { field: "strip length", got: geometry.strip_len.into() });
        }
        for (field, len) in [
            ("strip length", u64::from(geometry.strip_len)),
            ("log slot length", geometry.log_slot_len),
            ("data slot length", geometry.data_slot_len),
            ("table slot length", geometry.table_slot_len),
        ] {
            if len == 0 || !len.is_multiple_of(4096) || len > 1 << 40 {
                return Err(DecodeError::Invalid { field, got: len });
            }
        }
        if shard_count == 0 || usize::from(shard_count) > SHARD_COUNT_MAX {
            return Err(DecodeError::Invalid { field: "shard count", got: shard_count.into() });
        }
        let epoch = from.u64("epoch")?;
        let member_count = from.count("members", MEMBER_COUNT_MAX)?;
        if usize::from(disk_index) >= member_count {
            return Err(DecodeError::Invalid { field: "disk index", got: disk_index.into() });
        }
        let mut members = Vec::with_capacity(member_count);
        for _ in 0..member_count {
            let disk = from.array("member disk")?;
            let class = match from.u8("member class")? {
                1 => DiskClass::Flash,
                2 => DiskClass::Rotational,
                got => return Err(DecodeError::Invalid { field: "member class", got: got.into() }),
            };
            // Version 1 knew no other states, and had zeros here.
            let state = match from.u8("member state")? {
                0 => MemberState::InSync,
                1 => MemberState::Behind,
                2 => MemberState::Out,
                got => return Err(DecodeError::Invalid { field: "member state", got: got.into() }),
            };
            let own_filesystem = match from.u8("member file system")? {
                0 => false,
                1 => true,
                got => return Err(DecodeError::Invalid { field: "member file system", got: got.into() }),
            };
            let group = GroupIndex(from.u8("member group")?);
            // Zero before version 3, which knew no such thing.
            let removed = match from.u8("member removed")? {
                0 => false,
                1 => true,
                got => return Err(DecodeError::Invalid { field: "member removed", got: got.into() }),
            };
            from.raw("member reserved", 3)?;
            let epoch_last = from.u64("member epoch")?;
            let joined = if version == 1 { 0 } else { from.u64("member joined")? };
            members.push(Member { disk, class, group, state, own_filesystem, removed, epoch_last, joined });
        }
        let mut slot_map = Vec::with_capacity(HASH_SLOT_COUNT);
        for _ in 0..HASH_SLOT_COUNT {
            let shard = from.u16("slot map")?;
            if shard >= shard_count {
                return Err(DecodeError::Invalid { field: "slot map", got: shard.into() });
            }
            slot_map.push(shard);
        }
        // Before version 3 there was one set.
        let (mut groups, mut homes) = (vec![GroupRole::Set], vec![GroupIndex(0); usize::from(shard_count)]);
        if version > 2 {
            (groups, homes) = decode_groups(&mut from, shard_count)?;
        }
        from.end()?;
        check_groups(&groups, &homes, &members)?;
        Ok(Superblock {
            sequence,
            state,
            deployment,
            set,
            disk,
            disk_index,
            code,
            geometry,
            hash,
            hash_seed,
            shard_count,
            slot_map,
            epoch,
            members,
            groups,
            homes,
        })
    }
}

fn decode_groups(
    from: &mut Decoder<'_>,
    shard_count: u16,
) -> Result<(Vec<GroupRole>, Vec<GroupIndex>), DecodeError> {
    let mut groups = Vec::new();
    for _ in 0..from.count("groups", MEMBER_COUNT_MAX)? {
        groups.push(match from.u8("group role")? {
            1 => GroupRole::Set,
            2 => GroupRole::Metadata,
            got => return Err(DecodeError::Invalid { field: "group role", got: got.into() }),
        });
    }
    let homes = (0..shard_count).map(|_| Ok(GroupIndex(from.u8("home")?)));
    let homes = homes.collect::<Result<_, DecodeError>>()?;
    Ok((groups, homes))
}

/// Whether every disk and every shard has a group, and every group a disk.
fn check_groups(groups: &[GroupRole], homes: &[GroupIndex], members: &[Member]) -> Result<(), DecodeError> {
    let exists = |group: &GroupIndex| usize::from(group.0) < groups.len();
    if let Some(member) = members.iter().find(|member| !exists(&member.group)) {
        return Err(DecodeError::Invalid { field: "member group", got: member.group.0.into() });
    }
    if let Some(home) = homes.iter().find(|home| !exists(home)) {
        return Err(DecodeError::Invalid { field: "home", got: home.0.into() });
    }
    let empty =
        (0..groups.len()).find(|&group| members.iter().all(|member| usize::from(member.group.0) != group));
    if let Some(group) = empty {
        return Err(DecodeError::Invalid { field: "group without disks", got: group as u64 });
    }
    if !groups.contains(&GroupRole::Set) {
        return Err(DecodeError::Invalid { field: "groups without a set", got: groups.len() as u64 });
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sample() -> Superblock {
        Superblock {
            sequence: 7,
            state: State::Ready,
            deployment: [1; 16],
            set: [2; 16],
            disk: [3; 16],
            disk_index: 1,
            code: CODE_REED_SOLOMON_SIMD,
            geometry: Geometry {
                k: 1,
                m: 1,
                strip_len: 65536,
                log_slot_len: 4 << 20,
                data_slot_len: 16 << 20,
                table_slot_len: 4 << 20,
            },
            hash: HASH_SIP13_128,
            hash_seed: [4; 16],
            shard_count: 2,
            slot_map: (0..HASH_SLOT_COUNT).map(|slot| (slot % 2) as u16).collect(),
            epoch: 9,
            members: vec![
                Member {
                    disk: [5; 16],
                    class: DiskClass::Flash,
                    group: GroupIndex(1),
                    state: MemberState::InSync,
                    own_filesystem: true,
                    removed: false,
                    epoch_last: 9,
                    joined: 1,
                },
                Member {
                    disk: [3; 16],
                    class: DiskClass::Rotational,
                    group: GroupIndex(0),
                    state: MemberState::Behind,
                    own_filesystem: false,
                    removed: true,
                    epoch_last: 8,
                    joined: 9,
                },
            ],
            groups: vec![GroupRole::Set, GroupRole::Metadata],
            homes: vec![GroupIndex(1), GroupIndex(1)],
        }
    }

    #[test]
    fn round_trips() {
        let superblock = sample();
        assert_eq!(Superblock::decode(&superblock.encode()), Ok(superblock));
    }

    /// What the fixtures of all versions hold: a disk of three, as each version could say it.
    fn released(version: u16) -> Superblock {
        let member = |disk, class, state, own_filesystem, epoch_last, joined| Member {
            disk: [disk; 16],
            class,
            group: GroupIndex(u8::from(version > 2 && disk == 0x31)),
            state: if version > 1 { state } else { MemberState::InSync },
            own_filesystem: version > 1 && own_filesystem,
            removed: version > 2 && disk == 0x33,
            epoch_last,
            joined: if version > 1 { joined } else { 0 },
        };
        let (k, m) = if version > 2 { (1, 1) } else { (2, 1) };
        let (groups, home) = match version {
            3 => (vec![GroupRole::Set, GroupRole::Metadata], 1),
            _ => (vec![GroupRole::Set], 0),
        };
        Superblock {
            sequence: 41,
            state: State::Ready,
            deployment: [0x11; 16],
            set: [0x22; 16],
            disk: [0x32; 16],
            disk_index: 1,
            geometry: Geometry { k, m, ..sample().geometry },
            hash_seed: [0x44; 16],
            shard_count: 3,
            slot_map: (0..HASH_SLOT_COUNT).map(|slot| (slot % 3) as u16).collect(),
            epoch: 17,
            members: vec![
                member(0x31, DiskClass::Flash, MemberState::InSync, false, 17, 1),
                member(0x32, DiskClass::Rotational, MemberState::InSync, true, 17, 1),
                member(0x33, DiskClass::Flash, MemberState::Out, true, 15, 9),
            ],
            groups,
            homes: vec![GroupIndex(home); 3],
            ..sample()
        }
    }

    #[test]
    fn every_version_ever_released_decodes() {
        let fixtures: [&[u8]; 3] = [
            include_bytes!("fixtures/superblock-v1.bin"),
            include_bytes!("fixtures/superblock-v2.bin"),
            include_bytes!("fixtures/superblock-v3.bin"),
        ];
        for (version, bytes) in (1..).zip(fixtures) {
            assert_eq!(Superblock::decode(bytes), Ok(released(version)), "version {version}");
        }
        assert_eq!(released(VERSION).encode(), fixtures[2], "this version's bytes stay what they are");
    }

    #[test]
    fn hostile_payloads_are_refused_without_panic() {
        let bytes = sample().encode();
        let (_, payload) = frame::open(MAGIC, VERSION, &bytes).expect("own frame");
        for len in 0..256 {
            assert!(Superblock::decode_payload(VERSION, &payload[..len]).is_err());
        }
        for at in 0..200 {
            for value in [0, 1, 0x7f, 0xff] {
                let mut hostile = payload.to_vec();
                hostile[at] = value;
                let _ = Superblock::decode_payload(VERSION, &hostile);
            }
        }
    }
}
