//! Every decoder of bytes that came from a disk, as a function that no input may make panic.
//!
//! A framed structure is tried twice: as it is, and sealed anew, so that mutations get past the checksum to the parser
//! behind it. What decodes must encode to what decodes to the same value.

use basalt_engine::body::directory::{self, Content, DirectoryChunk, DirectoryEntry, Origin, Owner};
use basalt_engine::checksum::crc32c;
use basalt_engine::extent::groups::{GroupIndex, GroupRole};
use basalt_engine::extent::members::MemberState;
use basalt_engine::extent::{Column, DiskIndex, ExtentClass, ExtentId, Geometry, Placement};
use basalt_engine::format::batch::{BATCH_HEADER_LEN, BatchHeader};
use basalt_engine::format::codec::{Decoder, Encoder};
use basalt_engine::format::frame;
use basalt_engine::format::log_header::LogHeader;
use basalt_engine::format::manifest::{ExtentEntry, Manifest};
use basalt_engine::format::part_list::{self, PartSpan};
use basalt_engine::format::record::{InlineSpan, LiveDelta, Record};
use basalt_engine::format::root::{LogPosition, Rebuild, Root};
use basalt_engine::format::superblock::{
    CODE_REED_SOLOMON_SIMD, DiskClass, HASH_SIP13_128, HASH_SLOT_COUNT, Member, State, Superblock,
};
use basalt_engine::index::IndexManifest;
use basalt_engine::index::key::{self, Key, VersionOrder};
use basalt_engine::value::Checksum;

use super::Target;

/// Bytes in front of a frame's payload, as docs/DATA_FORMAT.md gives them.
const FRAME_HEADER_LEN: usize = 24;

pub(crate) const TARGETS: &[Target] = &[
    Target { name: "frame", run: frame, seeds: || vec![frame::seal(*b"BSLTTEST", 1, b"payload")] },
    Target { name: "superblock", run: superblock, seeds: || framed(&superblock_sample().encode()) },
    Target { name: "root", run: root, seeds: || framed(&root_sample().encode()) },
    Target { name: "log_header", run: log_header, seeds: || framed(&log_header_sample().encode()) },
    Target { name: "manifest", run: manifest, seeds: || vec![manifest_sample().encode()] },
    Target {
        name: "index_manifest",
        run: index_manifest,
        seeds: || vec![IndexManifest::default().encode(), vec![1, 0, 2, 0, 0, 0, 0]],
    },
    Target { name: "record", run: record, seeds: || record_samples().iter().map(encoded_record).collect() },
    Target { name: "batch", run: batch, seeds: || vec![batch_sample()] },
    Target { name: "directory_chunk", run: directory_chunk, seeds: directory_chunk_seeds },
    Target { name: "part_list", run: part_list, seeds: || vec![part_list_sample()] },
    Target { name: "index_key", run: index_key, seeds: index_key_seeds },
];

/// Both what a frame holds and the frame itself.
fn framed(bytes: &[u8]) -> Vec<Vec<u8>> {
    let len = u32::from_le_bytes(bytes[12..16].try_into().expect("four bytes")) as usize;
    vec![bytes[FRAME_HEADER_LEN..FRAME_HEADER_LEN + len].to_vec(), bytes.to_vec()]
}

fn frame(data: &[u8]) {
    let _ = frame::open(*b"BSLTTEST", 1, data);
    let sealed = frame::seal(*b"BSLTTEST", 1, data);
    assert_eq!(frame::open(*b"BSLTTEST", 1, &sealed), Ok((1, data)));
}

fn part_list(data: &[u8]) {
    if let Ok(parts) = part_list::decode(data)
        && let Some(bytes) = part_list::encode(&parts)
    {
        assert_eq!(part_list::decode(&bytes), Ok(parts));
    }
}

fn part_list_sample() -> Vec<u8> {
    let checksum = |value| Checksum { algorithm: 2, composite: false, value };
    let part = |number, len, checksum| PartSpan { number, len, checksum };
    let parts = [
        part(1, 5 << 20, Some(checksum(vec![1; 4]))),
        part(2, 5 << 20, Some(checksum(vec![2; 4]))),
        part(7, 9, None),
    ];
    part_list::encode(&parts).expect("it is short")
}

fn superblock(data: &[u8]) {
    for bytes in [data.to_vec(), frame::seal(*b"BSLTSUPR", 1, data)] {
        if let Ok(superblock) = Superblock::decode(&bytes) {
            assert_eq!(Superblock::decode(&superblock.encode()), Ok(superblock));
        }
    }
}

fn root(data: &[u8]) {
    for bytes in [data.to_vec(), frame::seal(*b"BSLTROOT", 1, data)] {
        if let Ok(root) = Root::decode(&bytes) {
            assert_eq!(Root::decode(&root.encode()), Ok(root));
        }
    }
}

fn log_header(data: &[u8]) {
    for bytes in [data.to_vec(), frame::seal(*b"BSLTLOGX", 1, data)] {
        if let Ok(header) = LogHeader::decode(&bytes) {
            assert_eq!(LogHeader::decode(&header.encode()), Ok(header));
        }
    }
}

fn manifest(data: &[u8]) {
    if let Ok(manifest) = Manifest::decode(data) {
        assert_eq!(Manifest::decode(&manifest.encode()), Ok(manifest));
    }
}

fn index_manifest(data: &[u8]) {
    if let Ok(manifest) = IndexManifest::decode(data) {
        assert_eq!(IndexManifest::decode(&manifest.encode()), Ok(manifest));
    }
}

fn record(data: &[u8]) {
    if let Ok(record) = Record::decode(&mut Decoder::new(data)) {
        let bytes = encoded_record(&record);
        assert!(bytes.len() <= record.len_max());
        assert_eq!(Record::decode(&mut Decoder::new(&bytes)), Ok(record));
    }
}

/// The header as it is, then records and payload under a header that vouches for them.
fn batch(data: &[u8]) {
    if let Ok(header) = BatchHeader::decode(data) {
        let _ = header.decode_records(data);
        assert_eq!(BatchHeader::decode(&header.encode()), Ok(header));
    }
    let Some((lens, body)) = data.split_first_chunk::<4>() else { return };
    let records_len = (u16::from_le_bytes([lens[0], lens[1]]) as usize).min(body.len());
    let (records, payload) = body.split_at(records_len);
    let header = BatchHeader {
        record_count: u16::from_le_bytes([lens[2], lens[3]]).into(),
        records_len: records.len() as u32,
        payload_len: payload.len() as u32,
        records_crc: crc32c(records),
        payload_crc: crc32c(payload),
        ..batch_header()
    };
    let bytes = [&header.encode()[..], body].concat();
    if let Ok(header) = BatchHeader::decode(&bytes) {
        let _ = header.decode_records(&bytes);
    }
}

/// What seals chunks here: mutations get behind the seal, which only covers where a chunk lies.
const ORIGIN: Origin = Origin { shard: 1, epoch: 1, secret: [1; 16] };

fn directory_chunk(data: &[u8]) {
    for bytes in [data.to_vec(), frame::seal(*b"BSLTDIRC", 1, data)] {
        if let Ok(chunk) = DirectoryChunk::decode(&bytes, &ORIGIN) {
            assert_eq!(DirectoryChunk::decode(&chunk.encode(&ORIGIN), &ORIGIN).as_ref(), Ok(&chunk));
            let _ = directory::current(vec![chunk.clone(), chunk]);
        }
    }
}

fn index_key(data: &[u8]) {
    if let Ok(key) = Key::decode(data) {
        let bytes = key.encode();
        assert_eq!(Key::decode(&bytes).as_ref(), Ok(&key));
    }
}

fn encoded_record(record: &Record) -> Vec<u8> {
    let mut out = Encoder::new();
    record.encode(&mut out);
    out.finish()
}

fn placement() -> Placement {
    Placement {
        id: ExtentId(8),
        class: ExtentClass::Log,
        columns: vec![Column { disk: DiskIndex(1), slot: 9 }],
    }
}

fn superblock_sample() -> Superblock {
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
                group: GroupIndex(0),
                state: MemberState::InSync,
                own_filesystem: true,
                removed: false,
                epoch_last: 9,
                joined: 1,
            },
            Member {
                disk: [3; 16],
                class: DiskClass::Rotational,
                group: GroupIndex(1),
                state: MemberState::Behind,
                own_filesystem: false,
                removed: true,
                epoch_last: 8,
                joined: 9,
            },
        ],
        groups: vec![GroupRole::Set, GroupRole::Metadata],
        homes: vec![GroupIndex(1); 2],
    }
}

fn root_sample() -> Root {
    Root {
        deployment: [1; 16],
        shard: 3,
        sequence: 12,
        epoch: 4,
        manifest: vec![Placement { class: ExtentClass::Table, ..placement() }],
        manifest_len: 5000,
        manifest_crc: 77,
        log: LogPosition { extent: ExtentId(9), offset: 8192, sequence: 40, previous: [6; 16] },
        next_extent: 10,
        clock_floor: 123,
        rebuilds: vec![Rebuild { disk: DiskIndex(1), joined: 3, next: ExtentId(2), until: ExtentId(9) }],
    }
}

fn log_header_sample() -> LogHeader {
    LogHeader { deployment: [1; 16], shard: 2, extent: ExtentId(3), epoch: 4, nonce: [5; 16] }
}

fn manifest_sample() -> Manifest {
    let entry =
        ExtentEntry { placement: placement(), sealed: true, live_len: 99, next_block: 0, nonce: [7; 16] };
    Manifest { extents: vec![entry.clone(), entry], index: IndexManifest::default().encode() }
}

fn record_samples() -> Vec<Record> {
    let delta = LiveDelta { extent: ExtentId(4), bytes: -9, end_block: 0 };
    vec![
        Record::Put {
            key: b"key".to_vec(),
            value: vec![1, 2, 3],
            inline: Some(InlineSpan { offset: 0, len: 5 }),
            deltas: vec![delta, LiveDelta { bytes: 70_000, end_block: 3, ..delta }],
        },
        Record::Delete { key: b"gone".to_vec(), deltas: vec![delta] },
        Record::ExtentOpened { placement: placement(), nonce: [7; 16] },
        Record::ExtentSealed { extent: ExtentId(8) },
    ]
}

fn batch_header() -> BatchHeader {
    BatchHeader {
        shard: 2,
        extent: ExtentId(11),
        nonce: [3; 16],
        epoch: 5,
        sequence: 42,
        previous: [6; 16],
        clock: 99,
        record_count: 0,
        records_len: 0,
        payload_len: 0,
        records_crc: 0,
        payload_crc: 0,
    }
}

/// As [`batch`] reads it: lengths, records, payload.
fn batch_sample() -> Vec<u8> {
    let records: Vec<u8> = record_samples().iter().flat_map(encoded_record).collect();
    let mut data = (records.len() as u16).to_le_bytes().to_vec();
    data.extend((record_samples().len() as u16).to_le_bytes());
    data.extend(records);
    data.extend(b"hello");
    assert!(data.len() > BATCH_HEADER_LEN / 2);
    data
}

fn directory_chunk_seeds() -> Vec<Vec<u8>> {
    let owner = Owner { bucket: 5, name: b"name".to_vec(), part: Some(([8; 16], 2)), ..Owner::default() };
    let entry = DirectoryEntry {
        block: 0,
        len: 5000,
        body_offset: 0,
        last: true,
        data_crcs: vec![1, 2],
        parity_crcs: vec![3],
        content: Content::Payload,
        owner,
    };
    let placement = Placement {
        id: ExtentId(9),
        class: ExtentClass::Data,
        columns: vec![Column { disk: DiskIndex(0), slot: 4 }],
    };
    let chunk = DirectoryChunk { block: 2, epoch: 3, lease: 4, placement, entries: vec![entry] };
    [framed(&chunk.encode(&ORIGIN)), vec![vec![0; 200]]].concat()
}

fn index_key_seeds() -> Vec<Vec<u8>> {
    vec![
        key::object(1, b"name\0with zero", VersionOrder::NULL),
        key::upload(2, b"name", [9; 16]),
        key::part(3, b"", [9; 16], 10_000),
        key::bucket(b"bucket"),
    ]
}
