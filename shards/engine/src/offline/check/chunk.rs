//! The directory chunk of a segment: in every column, and it describes what the index knows.

use super::{CheckedShard, Checker, Cure, Owner, Structure};
use crate::body::Segment;
use crate::body::directory::{CHUNK_LEN_MAX, DirectoryChunk, DirectoryEntry, Origin, chunk_len};
use crate::body::layout::StripeShape;
use crate::extent::{Column, ExtentClass};
use crate::format::manifest::ExtentEntry;
use crate::offline::media::Defect;

/// A copy as a column has it.
struct Copy {
    column: Column,
    bytes: Vec<u8>,
    chunk: Result<DirectoryChunk, Defect>,
}

impl Checker<'_> {
    /// Checks the chunk behind `segment`, whose data have the checksums `crcs`; returns those of its parity.
    pub(super) async fn chunk(
        &mut self,
        shard: &CheckedShard,
        entry: &ExtentEntry,
        segment: &Segment,
        crcs: &[u32],
        owner: Option<&Owner>,
    ) -> Option<Vec<u32>> {
        let geometry = &shard.files.geometry;
        let column_len = StripeShape::new(geometry).column_len(segment.len);
        let offset = u64::from(segment.block) * basalt_reactor::disk::BLOCK_LEN as u64 + column_len;
        let room = geometry.data_slot_len - offset;
        let describes = |found: &DirectoryEntry| {
            found.block == segment.block
                && found.len == segment.len
                && found.data_crcs == crcs
                && found.fits(geometry)
        };
        let name_len = owner.map_or(0, |owner| owner.key.len());
        let mut found = None;
        let mut copies = Vec::new();
        // As long as it must be if it describes this segment alone; otherwise as long as it can be.
        for len in [chunk_len(geometry, name_len, column_len), CHUNK_LEN_MAX as u64] {
            copies = self
                .copies(shard, entry, offset, usize::try_from(len.min(room)).expect("64 KiB at most"))
                .await;
            let chunks = copies
                .iter()
                .enumerate()
                .filter_map(|(index, copy)| Some((index, copy.chunk.as_ref().ok()?)));
            found = chunks
                .filter(|(_, chunk)| chunk.entries.iter().any(describes))
                .max_by_key(|(_, chunk)| (chunk.epoch, chunk.lease))
                .map(|(index, _)| index);
            if found.is_some() {
                break;
            }
        }
        let Some(found) = found else {
            let reason = format!("no column has the one at {offset} of data extent {}", entry.placement.id.0);
            let why =
                "a lost index could not be rebuilt without it; the scrub of a running server makes it anew";
            self.lost(Structure::LostChunk, shard.files.shard, owner, reason, why);
            return None;
        };
        let right = copies[found].chunk.as_ref().expect("it was found among the whole ones").clone();
        let len = usize::try_from(right.encoded_len()).expect("64 KiB at most");
        let bytes = copies[found].bytes[..len].to_vec();
        for copy in copies {
            let defect = match copy.chunk {
                Ok(chunk) if is_copy(&chunk, &right) => continue,
                Ok(_) => Defect::Contradiction("another chunk than in other columns".to_owned()),
                Err(defect) => defect,
            };
            let place = self.place_in(&shard.files, ExtentClass::Data, copy.column, offset);
            let (structure, id) = (Structure::DirectoryChunk, shard.files.shard);
            self.damaged(structure, Some(id), place, &defect, owner, Cure::Bytes(bytes.clone())).await;
        }
        right.entries.into_iter().find(describes).map(|entry| entry.parity_crcs)
    }

    async fn copies(
        &mut self,
        shard: &CheckedShard,
        entry: &ExtentEntry,
        offset: u64,
        len: usize,
    ) -> Vec<Copy> {
        let superblock = &self.set.superblock;
        let origin =
            Origin { shard: shard.files.shard, epoch: superblock.epoch, secret: superblock.hash_seed };
        let mut copies = Vec::new();
        for &column in &entry.placement.columns {
            let read = shard.files.read(self.core, ExtentClass::Data, column, offset, len).await;
            let Some(bytes) = read else { continue };
            self.report.read_len += len as u64;
            copies.push(match bytes {
                Ok(bytes) => {
                    let chunk = DirectoryChunk::decode(&bytes, &origin).map_err(Defect::Frame);
                    Copy { column, bytes, chunk }
                }
                Err(defect) => Copy { column, bytes: Vec::new(), chunk: Err(defect) },
            });
        }
        copies
    }
}

/// Copies may differ in where columns lay when they were written: some were made by a repair.
fn is_copy(a: &DirectoryChunk, b: &DirectoryChunk) -> bool {
    (a.block, a.epoch, a.lease, a.placement.id) == (b.block, b.epoch, b.lease, b.placement.id)
        && a.entries == b.entries
}
