//! The codec of directory chunks, their arithmetic, and which of them are stale.

use proptest::prelude::*;

use super::super::layout::tests::geometry;
use super::*;
use crate::checksum::crc32c;
use crate::extent::{Column, DiskIndex, ExtentClass};

const ORIGIN: Origin = Origin { shard: 3, epoch: 5, secret: [9; 16] };

fn entry(fill: u8) -> DirectoryEntry {
    DirectoryEntry {
        block: 16,
        len: 100_000,
        body_offset: 7,
        last: true,
        data_crcs: vec![1, 2, u32::from(fill)],
        parity_crcs: vec![0xdead_beef],
        content: Content::Payload,
        owner: Owner {
            body: [fill; 16],
            begun: 1_700_000_000_000_000_000,
            bucket: 0x0102_0304_0506_0708,
            name: b"photos/1".to_vec(),
            part: Some(([6; 16], 300)),
        },
    }
}

fn chunk(block: u32, entries: Vec<DirectoryEntry>) -> DirectoryChunk {
    let columns = vec![Column { disk: DiskIndex(1), slot: 258 }, Column { disk: DiskIndex(0), slot: 4 }];
    let placement = Placement { id: ExtentId(77), class: ExtentClass::Data, columns };
    DirectoryChunk { block, epoch: 5, lease: 11, placement, entries }
}

/// A chunk as version 1 lays it out.
#[test]
fn golden_chunk() {
    let golden = chunk(41, vec![entry(1)]);
    let bytes = golden.encode(&ORIGIN);
    assert_eq!(bytes.len(), 4096);
    let head = "42534c5444495243 0100 0000 aa000000 CRC_____ 00000000 \
                SEAL____________________________ 0300 29000000 0500000000000000 0b00000000000000 \
                4d00000000000000 02 02 01 02010000 00 04000000 01000000 \
                01 01 10000000 a086010000000000 0700000000000000 01010101010101010101010101010101 \
                00002a36fe9c9717 0807060504030201 06060606060606060606060606060606 2c01 \
                08000000 70686f746f732f31 03000000 01000000 02000000 01000000 01000000 efbeadde 0000";
    let head: String = head.split_whitespace().collect();
    let got: String = bytes.iter().map(|byte| format!("{byte:02x}")).take(head.len() / 2).collect();
    assert_eq!((&got[..32], &got[40..48], &got[80..]), (&head[..32], &head[40..48], &head[80..]));
    assert_eq!(crc32c(&bytes), GOLDEN_CRC);
    assert_eq!(DirectoryChunk::decode(&bytes, &ORIGIN), Ok(golden));
}

const GOLDEN_CRC: u32 = 0xe887_1c85;

#[test]
fn only_the_secret_makes_a_chunk_of_a_place() {
    let bytes = chunk(41, vec![entry(1)]).encode(&ORIGIN);
    assert_eq!(bytes[SEAL_OFFSET..SEAL_OFFSET + SEAL_LEN], ORIGIN.seal(ExtentId(77), 41));
    for other in [Origin { secret: [8; 16], ..ORIGIN }, Origin { shard: 4, ..ORIGIN }] {
        assert!(matches!(DirectoryChunk::decode(&bytes, &other), Err(FrameError::Payload(_))));
    }
    let elsewhere = chunk(42, vec![entry(1)]).encode(&ORIGIN);
    assert_ne!(bytes[SEAL_OFFSET..SEAL_OFFSET + SEAL_LEN], elsewhere[SEAL_OFFSET..SEAL_OFFSET + SEAL_LEN]);
    // A later epoch of the same deployment still reads it.
    assert!(DirectoryChunk::decode(&bytes, &Origin { epoch: 9, ..ORIGIN }).is_ok());
}

#[test]
fn entries_that_cannot_be_are_told() {
    let geometry = geometry(2, 1, 65_536);
    let good =
        DirectoryEntry { block: 0, len: 8193, data_crcs: vec![0; 2], parity_crcs: vec![0], ..entry(0) };
    assert!(good.fits(&geometry));
    for bad in [
        DirectoryEntry { len: 0, ..good.clone() },
        DirectoryEntry { len: u64::MAX, ..good.clone() },
        DirectoryEntry { block: u32::MAX, ..good.clone() },
        DirectoryEntry { data_crcs: vec![], ..good.clone() },
        DirectoryEntry { parity_crcs: vec![], ..good },
    ] {
        assert!(!bad.fits(&geometry), "{bad:?}");
    }
}

#[test]
fn truncated_and_mutated_payloads_never_panic() {
    let bytes = chunk(0, vec![entry(1), entry(2)]).encode(&ORIGIN);
    let payload_len = u32::from_le_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]) as usize;
    let payload = &bytes[FRAME_HEADER_LEN..FRAME_HEADER_LEN + payload_len];
    for len in 0..payload.len() {
        assert!(DirectoryChunk::parse(&payload[..len], &ORIGIN).is_err());
    }
    for at in 0..payload.len() {
        for value in [0, 1, 0x7f, 0xff] {
            let mut hostile = payload.to_vec();
            hostile[at] = value;
            if let Ok(chunk) = DirectoryChunk::parse(&hostile, &ORIGIN) {
                let _ = (chunk.start(), chunk.end(), current(vec![chunk.clone(), chunk]));
            }
        }
    }
    assert!(DirectoryChunk::decode(&[], &ORIGIN).is_err());
}

/// A chunk described by first block, own block and age.
fn aged(start: u32, block: u32, epoch: u64, lease: u64) -> DirectoryChunk {
    DirectoryChunk { epoch, lease, ..chunk(block, vec![DirectoryEntry { block: start, ..entry(1) }]) }
}

#[test]
fn a_younger_chunk_ends_what_it_overlaps() {
    let live = aged(0, 9, 1, 5);
    // Given up, and its blocks lent twice again: once up to a chunk, once without.
    let stale = aged(10, 99, 1, 6);
    let (first, second) = (aged(10, 49, 1, 7), aged(50, 89, 2, 0));
    let kept = [live.clone(), first.clone(), second.clone()];
    assert_eq!(current(vec![second.clone(), stale.clone(), live.clone(), first.clone()]), kept);
    // The one that ended another may itself be ended: neither comes back.
    let last = aged(45, 46, 3, 1);
    assert_eq!(current(vec![first, stale, live.clone(), last.clone(), second.clone()]), [live, last, second]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn round_trips(
        block: u32,
        entries in proptest::collection::vec(
            (any::<u32>(), any::<u64>(), proptest::collection::vec(any::<u32>(), 0..40),
             proptest::collection::vec(any::<u32>(), 0..40), proptest::collection::vec(any::<u8>(), 0..1024),
             any::<bool>(), proptest::option::of((any::<[u8; 16]>(), 1u16..))),
            0..8,
        ),
    ) {
        let entries: Vec<DirectoryEntry> = entries
            .into_iter()
            .map(|(block, len, data_crcs, parity_crcs, name, last, part)| DirectoryEntry {
                block, len, body_offset: !len, last, data_crcs, parity_crcs,
                content: if last { Content::Blob } else { Content::Payload },
                owner: Owner { name, part, ..Owner::default() },
            })
            .collect();
        let chunk = chunk(block, entries);
        let bytes = chunk.encode(&ORIGIN);
        prop_assert_eq!(bytes.len() as u64, chunk.encoded_len());
        prop_assert_eq!(DirectoryChunk::decode(&bytes, &ORIGIN), Ok(chunk));
    }

    /// Whatever is lent, the stripes and their chunk fit, and one block more of stripes would not.
    #[test]
    fn stripes_and_their_chunk_share_a_lease(
        k in 1u8..=14, m in 0u8..=6, strip_blocks in 1u32..=40, name_len in 0usize..=1024, blocks in 1u64..=300_000,
    ) {
        let geometry = geometry(k, m, strip_blocks * BLOCK_LEN as u32);
        let (len, most) = (blocks * BLOCK_LEN as u64, segment_column_len_max(&geometry));
        let room = stripes_room(&geometry, name_len, len);
        prop_assert!(room <= most && most >= u64::from(geometry.strip_len));
        prop_assert!(room == 0 || room + chunk_len(&geometry, name_len, room) <= len);
        let more = room + BLOCK_LEN as u64;
        prop_assert!(more > most || more + chunk_len(&geometry, name_len, more) > len);
        prop_assert!(chunk_len(&geometry, name_len, most) <= CHUNK_LEN_MAX as u64);
    }

    /// The length computed from a segment's place is that of the chunk that describes it.
    #[test]
    fn chunk_lengths_are_known_beforehand(k in 1u8..=5, m in 0u8..=3, strip_blocks in 1u32..=40, len in 1u64..4_000_000) {
        let geometry = geometry(k, m, strip_blocks * BLOCK_LEN as u32);
        let shape = StripeShape::new(&geometry);
        prop_assume!(shape.column_len(len) <= segment_column_len_max(&geometry));
        let count = shape.crc_count(len);
        let parity_crcs = vec![0; (count / shape.k() * u64::from(m)) as usize];
        let entry = DirectoryEntry { data_crcs: vec![0; count as usize], parity_crcs, ..entry(1) };
        let mut chunk = chunk(0, vec![entry]);
        chunk.placement.columns = vec![Column { disk: DiskIndex(0), slot: 0 }; geometry.columns()];
        prop_assert_eq!(chunk.encode(&ORIGIN).len() as u64, chunk_len(&geometry, 8, shape.column_len(len)));
    }
}
