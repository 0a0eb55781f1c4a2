//! What the data extents say of themselves: where each of them lies, and which bodies are whole in them.
//!
//! Slots are given out again without being wiped, so that a slot may hold chunks of several extents: the one with the
//! highest id has it now, and the others are dead, in all their columns.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use basalt_reactor::Core;
use basalt_reactor::disk::BLOCK_LEN;

use super::history::slots;
use super::replay::UploadName;
use crate::body::Bodies;
use crate::body::directory::{Content, DirectoryChunk, DirectoryEntry, Owner, current};
use crate::extent::{ArenaFiles, Column, DiskIndex, ExtentClass, ExtentId, Placement};
use crate::value::{Footprint, SegmentValue, Striped};

/// A body of which every segment is described.
#[derive(Clone, Debug)]
pub(super) struct FoundBody {
    pub(super) owner: Owner,
    pub(super) content: Content,
    pub(super) striped: Striped,
    pub(super) footprint: Vec<Footprint>,
}

/// A body of which some segment is not.
#[derive(Clone, Debug)]
pub(super) struct Fragment {
    pub(super) owner: Owner,
    pub(super) segments: Vec<SegmentValue>,
}

#[derive(Default)]
pub(super) struct DataSurvey {
    /// Extents that nothing shows to be dead.
    pub(super) placements: BTreeMap<ExtentId, Rc<Placement>>,
    pub(super) bodies: Vec<FoundBody>,
    pub(super) fragments: Vec<Fragment>,
    /// Extents that are known to have lost their slots, or not to be live.
    pub(super) dead: BTreeSet<ExtentId>,
    /// Parts that lie in dead extents.
    pub(super) dead_parts: BTreeMap<UploadName, BTreeSet<u16>>,
    /// Highest id met anywhere.
    pub(super) extent_max: u64,
}

/// One segment as its entry has it.
struct Piece {
    extent: ExtentId,
    entry: DirectoryEntry,
    /// Blocks per column, with the chunk.
    blocks: u32,
    age: (u64, u64),
}

/// Chunks by extent and by what tells them apart.
type Chunks = BTreeMap<ExtentId, BTreeMap<(u32, u64, u64), DirectoryChunk>>;

type DeadParts = BTreeMap<UploadName, BTreeSet<u16>>;

/// Reads all data arenas of a shard. `opened` are places that the log or a manifest names; `alive` says of an extent
/// whether it can be live, as far as a manifest tells.
pub(super) async fn survey(
    core: &Core,
    files: &Rc<ArenaFiles>,
    bodies: &Rc<Bodies>,
    disks: &[DiskIndex],
    opened: Vec<Placement>,
    alive: &dyn Fn(ExtentId) -> bool,
) -> DataSurvey {
    let chunks: Rc<RefCell<Chunks>> = Rc::default();
    let found: Rc<RefCell<Vec<(Column, ExtentId)>>> = Rc::default();
    let dead_parts: Rc<RefCell<DeadParts>> = Rc::default();
    let walks: Vec<_> = disks
        .iter()
        .map(|&disk| {
            let (files, bodies) = (Rc::clone(files), Rc::clone(bodies));
            let (chunks, found) = (Rc::clone(&chunks), Rc::clone(&found));
            let dead_parts = Rc::clone(&dead_parts);
            core.spawn(async move {
                for slot in 0..slots(&files, ExtentClass::Data, disk) {
                    let place = Column { disk, slot };
                    // What cannot be read here is in another column, or is missed below.
                    let walked = bodies.walk_slot(place).await;
                    let Some(holder) = walked.iter().map(|chunk| chunk.placement.id).max() else { continue };
                    found.borrow_mut().push((place, holder));
                    let mut chunks = chunks.borrow_mut();
                    let of_holder = chunks.entry(holder).or_default();
                    for mut chunk in walked {
                        if chunk.placement.id != holder {
                            note_dead(&mut dead_parts.borrow_mut(), &chunk);
                            continue;
                        }
                        chunk.entries.retain(|entry| entry.fits(files.geometry()));
                        of_holder.insert((chunk.block, chunk.epoch, chunk.lease), chunk);
                    }
                }
            })
        })
        .collect();
    for walk in walks {
        walk.await.expect("nobody cancels a walk");
    }
    let mut chunks = chunks.take();
    let known: BTreeSet<ExtentId> =
        chunks.keys().copied().chain(opened.iter().map(|placement| placement.id)).collect();
    let mut placements = places(&chunks, opened, &found.take());
    placements.retain(|&id, _| alive(id));
    let dead = known.iter().copied().filter(|id| !placements.contains_key(id)).collect();
    let extent_max = known.last().map_or(0, |id| id.0);
    let mut pieces: BTreeMap<([u8; 16], u8), Vec<Piece>> = BTreeMap::new();
    let mut dead_parts = dead_parts.take();
    chunks.retain(|id, chunks| {
        let live = placements.contains_key(id);
        chunks.values().filter(|_| !live).for_each(|chunk| note_dead(&mut dead_parts, chunk));
        live
    });
    for (extent, chunks) in chunks {
        for chunk in current(chunks.into_values().collect()) {
            let (age, mut chunk_blocks) = ((chunk.epoch, chunk.lease), chunk.end() - chunk.block);
            for mut entry in chunk.entries {
                // Only the data's are part of a body's description.
                entry.parity_crcs = Vec::new();
                let column_len =
                    crate::body::layout::StripeShape::new(files.geometry()).column_len(entry.len);
                let blocks = (column_len / BLOCK_LEN as u64) as u32 + std::mem::take(&mut chunk_blocks);
                let of = (entry.owner.body, entry.content as u8);
                pieces.entry(of).or_default().push(Piece { extent, entry, blocks, age });
            }
        }
    }
    let mut survey = DataSurvey { placements, dead, dead_parts, extent_max, ..DataSurvey::default() };
    for pieces in pieces.into_values() {
        match assemble(pieces) {
            Ok(body) => survey.bodies.push(body),
            Err(fragment) => survey.fragments.push(fragment),
        }
    }
    survey
}

/// Remembers the parts that a chunk of a dead extent speaks of.
fn note_dead(dead: &mut DeadParts, chunk: &DirectoryChunk) {
    for entry in chunk.entries.iter().filter(|entry| entry.content == Content::Payload) {
        let Some((upload, number)) = entry.owner.part else { continue };
        let name = (entry.owner.bucket, entry.owner.name.clone());
        dead.entry((name, upload)).or_default().insert(number);
    }
}

/// Where the extents lie that still have their slots.
fn places(
    chunks: &Chunks,
    opened: Vec<Placement>,
    found: &[(Column, ExtentId)],
) -> BTreeMap<ExtentId, Rc<Placement>> {
    let mut placements: BTreeMap<ExtentId, Placement> = BTreeMap::new();
    for placement in opened {
        placements.insert(placement.id, placement);
    }
    for (&id, chunks) in chunks {
        if let Some(newest) = chunks.values().max_by_key(|chunk| (chunk.epoch, chunk.lease)) {
            placements.insert(id, newest.placement.clone());
        }
    }
    // A column is where its bytes are, wherever a chunk that was copied there says.
    for &(place, id) in found {
        let columns = placements.get_mut(&id).map(|placement| &mut placement.columns);
        if let Some(column) = columns.and_then(|columns| columns.iter_mut().find(|c| c.disk == place.disk)) {
            column.slot = place.slot;
        }
    }
    let mut holders: BTreeMap<(DiskIndex, u32), ExtentId> = BTreeMap::new();
    for placement in placements.values() {
        for column in &placement.columns {
            let holder = holders.entry((column.disk, column.slot)).or_insert(placement.id);
            *holder = (*holder).max(placement.id);
        }
    }
    let holds = |placement: &Placement| {
        placement.columns.iter().all(|column| holders.get(&(column.disk, column.slot)) == Some(&placement.id))
    };
    placements.into_iter().filter(|(_, place)| holds(place)).map(|(id, place)| (id, Rc::new(place))).collect()
}

/// Puts a body's segments one behind the other.
fn assemble(mut pieces: Vec<Piece>) -> Result<FoundBody, Fragment> {
    pieces.sort_by_key(|piece| (piece.entry.body_offset, std::cmp::Reverse(piece.age)));
    let chain = chain(&pieces);
    let owner = pieces[0].entry.owner.clone();
    let content = pieces[0].entry.content;
    let mut striped = Striped { len: 0, segments: Vec::new(), crcs: Vec::new() };
    let mut prints: BTreeMap<u64, (u64, u32)> = BTreeMap::new();
    for piece in chain.iter().flatten().map(|&index| &pieces[index]) {
        let entry = &piece.entry;
        striped.segments.push(SegmentValue { extent: piece.extent.0, block: entry.block, len: entry.len });
        striped.crcs.extend_from_slice(&entry.data_crcs);
        striped.len += entry.len;
        let print = prints.entry(piece.extent.0).or_insert((0, 0));
        print.0 += u64::from(piece.blocks) * BLOCK_LEN as u64;
        print.1 = print.1.max(entry.block.saturating_add(piece.blocks));
    }
    if chain.is_none() {
        let segment = |piece: &Piece| SegmentValue {
            extent: piece.extent.0,
            block: piece.entry.block,
            len: piece.entry.len,
        };
        return Err(Fragment { owner, segments: pieces.iter().map(segment).collect() });
    }
    let footprint = prints.into_iter();
    let footprint = footprint.map(|(extent, (bytes, end_block))| Footprint { extent, bytes, end_block });
    Ok(FoundBody { owner, content, striped, footprint: footprint.collect() })
}

/// With which piece one goes on from some byte.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Way {
    /// What speaks for it: how far one gets, and its age.
    rank: (u64, (u64, u64)),
    /// How far one gets.
    reach: u64,
    /// Of the piece.
    index: usize,
}

/// Pieces that reach from the first byte to the end, one behind the other. Bytes may be described more than once, cut
/// differently: where a move was cut off, what it had copied leads nowhere. Of what does, the furthest counts, then the youngest; of
/// blobs the youngest alone, for each was written as a whole, and an older one of the same body may be longer.
fn chain(pieces: &[Piece]) -> Option<Vec<usize>> {
    let mut onward: BTreeMap<u64, Way> = BTreeMap::new();
    for (index, piece) in pieces.iter().enumerate().rev() {
        let entry = &piece.entry;
        let Some(end) = entry.body_offset.checked_add(entry.len).filter(|_| entry.len > 0) else { continue };
        let reach = onward.get(&end).map(|way| way.reach).or(entry.last.then_some(end));
        if let Some(reach) = reach {
            let rank = match entry.content {
                Content::Blob => (0, piece.age),
                Content::Payload | Content::Pack => (reach, piece.age),
            };
            let way = Way { rank, reach, index };
            let best = onward.entry(entry.body_offset).or_insert(way);
            *best = (*best).max(way);
        }
    }
    let (mut chain, mut at) = (Vec::new(), 0);
    while let Some(&Way { index, .. }) = onward.get(&at) {
        chain.push(index);
        at += pieces[index].entry.len;
    }
    (!chain.is_empty()).then_some(chain)
}

/// What tells the place of a segment.
pub(super) fn place_of(segment: &SegmentValue) -> (u64, u32) {
    (segment.extent, segment.block)
}

/// Places of the segments of `striped`.
pub(super) fn places_of(striped: &Striped) -> BTreeSet<(u64, u32)> {
    striped.segments.iter().map(place_of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(extent: u64, offset: u64, len: u64, last: bool, age: u64) -> Piece {
        let entry = DirectoryEntry {
            block: (offset / 4096) as u32,
            len,
            body_offset: offset,
            last,
            data_crcs: vec![len as u32],
            parity_crcs: Vec::new(),
            content: Content::Payload,
            owner: Owner { body: [1; 16], ..Owner::default() },
        };
        Piece { extent: ExtentId(extent), entry, blocks: 3, age: (1, age) }
    }

    #[test]
    fn a_body_is_whole_when_its_segments_reach_from_the_first_byte_to_the_end() {
        let whole = assemble(vec![piece(2, 8192, 100, true, 2), piece(1, 0, 8192, true, 1)]).expect("whole");
        assert_eq!((whole.striped.len, whole.striped.crcs), (8292, vec![8192, 100]));
        assert_eq!(whole.footprint.len(), 2);
        for broken in [
            vec![piece(1, 0, 8192, false, 1)],
            vec![piece(1, 4096, 4096, true, 1)],
            vec![piece(1, 0, 4096, false, 1), piece(1, 8192, 10, true, 1)],
        ] {
            assert!(assemble(broken).is_err());
        }
    }

    #[test]
    fn of_a_segment_written_twice_the_younger_copy_counts() {
        let body = assemble(vec![piece(1, 0, 8192, true, 1), piece(5, 0, 8192, true, 9)]).expect("whole");
        assert_eq!(body.striped.segments.iter().map(|segment| segment.extent).collect::<Vec<_>>(), [5]);
    }

    #[test]
    fn a_copy_that_was_cut_off_does_not_hide_what_is_whole() {
        let whole = || [piece(1, 0, 8192, false, 1), piece(2, 8192, 100, true, 1)];
        let extents = |pieces: Vec<Piece>| {
            let body = assemble(pieces).expect("whole");
            body.striped.segments.iter().map(|segment| segment.extent).collect::<Vec<_>>()
        };
        assert_eq!(extents(whole().into_iter().chain([piece(5, 0, 4096, false, 9)]).collect()), [1, 2]);
        // However a copy says that it reaches the end, what lies further counts.
        assert_eq!(extents(whole().into_iter().chain([piece(5, 0, 8192, true, 9)]).collect()), [5, 2]);
    }

    #[test]
    fn of_blobs_the_younger_counts_though_the_older_is_longer() {
        let blob = |extent, offset, len, last, age| {
            let mut piece = piece(extent, offset, len, last, age);
            piece.entry.content = Content::Blob;
            piece
        };
        let extents = |pieces: Vec<Piece>| {
            let body = assemble(pieces).expect("whole");
            body.striped.segments.iter().map(|segment| segment.extent).collect::<Vec<_>>()
        };
        let older = || [blob(1, 0, 4096, false, 1), blob(2, 4096, 5000, true, 2)];
        assert_eq!(extents(older().into_iter().chain([blob(5, 0, 8000, true, 9)]).collect()), [5]);
        assert_eq!(extents(older().into_iter().chain([blob(5, 0, 8000, false, 9)]).collect()), [1, 2]);
    }

    #[test]
    fn an_extent_that_lost_a_slot_to_a_younger_one_is_dead() {
        let at = |id, slots: [u32; 2]| Placement {
            id: ExtentId(id),
            class: ExtentClass::Data,
            columns: (0..2)
                .map(|disk| Column { disk: DiskIndex(disk), slot: slots[usize::from(disk)] })
                .collect(),
        };
        let opened = vec![at(4, [0, 0]), at(9, [1, 0]), at(5, [2, 2])];
        let moved = [(Column { disk: DiskIndex(1), slot: 7 }, ExtentId(5))];
        let places = places(&Chunks::new(), opened, &moved);
        assert_eq!(places.keys().map(|id| id.0).collect::<Vec<_>>(), [5, 9]);
        assert_eq!(places[&ExtentId(5)].columns[1].slot, 7);
    }
}
