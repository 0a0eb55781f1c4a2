//! Index tables frame by frame: where each frame of a table lies, and what the entries of all tables come to.
//!
//! The engine opens a table or refuses it. Here a table whose header and directory any replica has is walked although some of its
//! blocks are gone, and the merge of all tables goes on behind them.

use std::collections::BTreeMap;
use std::collections::btree_map;
use std::rc::Rc;

use basalt_reactor::Core;
use basalt_reactor::disk::BLOCK_LEN;

use super::media::Defect;
use super::shard::ShardFiles;
use crate::extent::{Column, ExtentClass, ExtentId, Placement};
use crate::index::table::block::{BLOCK_FRAME_LEN_MAX, Block, BlockCursor};
use crate::index::table::directory::Directory;
use crate::index::table::frame::{FRAME_HEAD_LEN, FrameKind, FramePlace, open};
use crate::index::table::header::{HEADER_FRAME_LEN, Header, SECTION_FRAME_LEN, SECTION_PAYLOAD_LEN};
use crate::index::{Fault, TableDescriptor};

/// A frame and the bytes that it takes, padding included.
#[derive(Clone, Copy, Debug)]
pub(super) struct FrameAt {
    pub(super) place: FramePlace,
    pub(super) len: usize,
}

impl FrameAt {
    /// From the start of the extent, bytes.
    pub(super) fn offset(&self) -> u64 {
        u64::from(self.place.block) * BLOCK_LEN as u64
    }
}

/// A table of which header and directory were found on some replica.
pub(super) struct OfflineTable {
    pub(super) descriptor: TableDescriptor,
    pub(super) header: Header,
    directory: Directory,
    /// Frames of filter and directory.
    sections: Vec<FrameAt>,
}

impl OfflineTable {
    /// # Errors
    /// What is wrong with the last replica of the header or the directory that was asked.
    pub(super) async fn open(
        core: &Core,
        files: &ShardFiles,
        descriptor: TableDescriptor,
    ) -> Result<OfflineTable, Defect> {
        let placement = &descriptor.placement;
        let slot_len = files.geometry.table_slot_len;
        let check =
            |payload: &[u8]| Header::decode(payload, slot_len).and_then(|header| descriptor.check(header));
        let header = read_frame(core, files, placement, header_frame(placement.id), check).await?;
        let data_end = header.data_end().expect("a decoded header is consistent");
        let (mut sections, filter_end) =
            section_frames(placement.id, FrameKind::Filter, data_end, header.filter_len as usize);
        let (frames, _) =
            section_frames(placement.id, FrameKind::Directory, filter_end, header.directory_len as usize);
        let mut directory = Vec::new();
        for &frame in &frames {
            let take = |payload: &[u8]| Ok(payload.to_vec());
            directory.extend(read_frame(core, files, placement, frame, take).await?);
        }
        let start = (HEADER_FRAME_LEN / BLOCK_LEN) as u32;
        let directory =
            Directory::decode(&directory, header.block_count, start, data_end, BLOCK_FRAME_LEN_MAX)
                .map_err(Defect::Table)?;
        sections.extend(frames);
        Ok(OfflineTable { descriptor, header, directory, sections })
    }

    pub(super) fn block_count(&self) -> usize {
        self.directory.block_count()
    }

    /// The frame of data block `index`.
    pub(super) fn block(&self, index: usize) -> FrameAt {
        let (block, len) = self.directory.place(index);
        let place = FramePlace { kind: FrameKind::Data, extent: self.descriptor.placement.id, block };
        FrameAt { place, len: len as usize * BLOCK_LEN }
    }

    /// All of its frames, in order.
    pub(super) fn frames(&self) -> impl Iterator<Item = FrameAt> + '_ {
        let header = header_frame(self.descriptor.placement.id);
        std::iter::once(header)
            .chain((0..self.block_count()).map(|index| self.block(index)))
            .chain(self.sections.iter().copied())
    }
}

pub(super) fn header_frame(extent: ExtentId) -> FrameAt {
    FrameAt { place: FramePlace { kind: FrameKind::Header, extent, block: 0 }, len: HEADER_FRAME_LEN }
}

/// The frames of a section of `len` bytes that begins at `start`, in blocks; also where it ends.
fn section_frames(extent: ExtentId, kind: FrameKind, start: u32, len: usize) -> (Vec<FrameAt>, u32) {
    let (mut frames, mut block, mut left) = (Vec::new(), start, len);
    while left > 0 {
        let payload_len = left.min(SECTION_PAYLOAD_LEN);
        let len = (FRAME_HEAD_LEN + payload_len).next_multiple_of(BLOCK_LEN).min(SECTION_FRAME_LEN);
        frames.push(FrameAt { place: FramePlace { kind, extent, block }, len });
        block += (len / BLOCK_LEN) as u32;
        left -= payload_len;
    }
    (frames, block)
}

/// The frame as one replica has it; `None` when its disk is not at hand.
pub(super) async fn read_replica(
    core: &Core,
    files: &ShardFiles,
    column: Column,
    frame: FrameAt,
) -> Option<Result<Vec<u8>, Defect>> {
    let bytes = files.read(core, ExtentClass::Table, column, frame.offset(), frame.len).await?;
    Some(bytes.and_then(|bytes| match open(&bytes, frame.place) {
        Ok(_) => Ok(bytes),
        Err(fault) => Err(Defect::Table(fault)),
    }))
}

/// What `decode` makes of the frame's payload on the first replica where both are right.
pub(super) async fn read_frame<T>(
    core: &Core,
    files: &ShardFiles,
    placement: &Placement,
    frame: FrameAt,
    decode: impl Fn(&[u8]) -> Result<T, Fault>,
) -> Result<T, Defect> {
    let mut defect = Defect::Contradiction("no disk with a replica is at hand".to_owned());
    for &column in &placement.columns {
        match read_replica(core, files, column, frame).await {
            None => {}
            Some(Err(found)) => defect = found,
            Some(Ok(bytes)) => match open(&bytes, frame.place).and_then(&decode) {
                Ok(decoded) => return Ok(decoded),
                Err(fault) => defect = Defect::Table(fault),
            },
        }
    }
    Err(defect)
}

/// Tables in key order, none overlapping another.
type Run = Vec<Rc<OfflineTable>>;

/// The runs of a shard's index, newest first.
#[derive(Default)]
pub(super) struct Runs {
    runs: Vec<Run>,
}

/// A table, or a part of one, that no replica has.
pub(super) struct Lost {
    pub(super) extent: ExtentId,
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) defect: Defect,
}

impl Runs {
    /// Opens what can be opened of the tables of each level; the others come back as lost.
    pub(super) async fn open(
        core: &Core,
        files: &ShardFiles,
        levels: &[Vec<TableDescriptor>],
    ) -> (Runs, Vec<Lost>) {
        let (mut runs, mut lost) = (Runs::default(), Vec::new());
        for (level, tables) in levels.iter().enumerate() {
            let of_one_run = |a: &TableDescriptor, b: &TableDescriptor| level > 0 || a.sequence == b.sequence;
            for descriptors in tables.chunk_by(of_one_run) {
                let mut run = Run::new();
                for descriptor in descriptors {
                    match OfflineTable::open(core, files, descriptor.clone()).await {
                        Ok(table) => run.push(Rc::new(table)),
                        Err(defect) => lost.push(Lost {
                            extent: descriptor.placement.id,
                            offset: 0,
                            len: descriptor.len,
                            defect,
                        }),
                    }
                }
                runs.runs.push(run);
            }
        }
        (runs, lost)
    }

    pub(super) fn tables(&self) -> impl Iterator<Item = &Rc<OfflineTable>> {
        self.runs.iter().flatten()
    }
}

/// A key and its value; `None` for one that was deleted.
pub(super) type Entry = (Vec<u8>, Option<Vec<u8>>);

enum Source<'a> {
    Memory(btree_map::Range<'a, Vec<u8>, Option<Vec<u8>>>),
    Run(RunWalk),
}

struct RunWalk {
    tables: Run,
    table: usize,
    block: usize,
    cursor: BlockCursor,
}

/// The entries of an index in key order, each as its newest writer left it.
pub(super) struct Entries<'a> {
    core: &'a Core,
    files: &'a ShardFiles,
    /// Newest first, each with the entry that it stands on.
    sources: Vec<(Source<'a>, Option<Entry>)>,
    /// Where to begin, until that is done.
    from: Option<Vec<u8>>,
    /// Exclusive.
    to: Option<Vec<u8>>,
    /// Blocks that were skipped. What they held may show through in an older state.
    pub(super) lost: Vec<Lost>,
}

impl<'a> Entries<'a> {
    /// From key `from` on, below `to`.
    pub(super) fn new(
        core: &'a Core,
        files: &'a ShardFiles,
        overlay: &'a BTreeMap<Vec<u8>, Option<Vec<u8>>>,
        runs: &Runs,
        from: &[u8],
        to: Option<Vec<u8>>,
    ) -> Entries<'a> {
        let memory = Source::Memory(overlay.range(from.to_vec()..));
        let walks = runs.runs.iter().map(|run| {
            let tables: Run =
                run.iter().filter(|table| *table.descriptor.max_key >= *from).cloned().collect();
            let block = tables.first().and_then(|table| table.directory.find(from)).unwrap_or(0);
            Source::Run(RunWalk { tables, table: 0, block, cursor: BlockCursor::default() })
        });
        let sources = std::iter::once(memory).chain(walks).map(|source| (source, None)).collect();
        Entries { core, files, sources, from: Some(from.to_vec()), to, lost: Vec::new() }
    }

    /// The next key that has a value.
    pub(super) async fn next(&mut self) -> Option<(Vec<u8>, Vec<u8>)> {
        loop {
            if let (key, Some(value)) = self.next_of_any_kind().await? {
                return Some((key, value));
            }
        }
    }

    /// The next key, also one that was deleted.
    pub(super) async fn next_of_any_kind(&mut self) -> Option<Entry> {
        if let Some(from) = self.from.take() {
            for index in 0..self.sources.len() {
                self.advance(index).await;
                // The block that `from` falls into begins below it.
                while self.sources[index].1.as_ref().is_some_and(|(key, _)| *key < from) {
                    self.advance(index).await;
                }
            }
        }
        let key = self.sources.iter().filter_map(|(_, head)| head.as_ref()).map(|(key, _)| key).min()?;
        if self.to.as_ref().is_some_and(|to| key >= to) {
            return None;
        }
        let key = key.clone();
        let mut newest: Option<Option<Vec<u8>>> = None;
        for index in 0..self.sources.len() {
            if self.sources[index].1.as_ref().is_some_and(|(other, _)| *other == key) {
                let (_, value) = self.sources[index].1.take().expect("looked at just now");
                newest.get_or_insert(value);
                self.advance(index).await;
            }
        }
        Some((key, newest.flatten()))
    }

    async fn advance(&mut self, index: usize) {
        let (source, head) = &mut self.sources[index];
        *head = match source {
            Source::Memory(range) => range.next().map(|(key, value)| (key.clone(), value.clone())),
            Source::Run(walk) => walk.next(self.core, self.files, &mut self.lost).await,
        };
    }
}

impl RunWalk {
    async fn next(&mut self, core: &Core, files: &ShardFiles, lost: &mut Vec<Lost>) -> Option<Entry> {
        loop {
            if self.cursor.is_inside() {
                match self.cursor.advance() {
                    Ok(true) => {
                        return Some((self.cursor.key().to_vec(), self.cursor.value().map(<[u8]>::to_vec)));
                    }
                    Ok(false) => {}
                    Err(fault) => self.lose(self.block - 1, Defect::Table(fault), lost),
                }
                self.cursor.leave();
            }
            let table = self.tables.get(self.table)?;
            if self.block == table.block_count() {
                (self.table, self.block) = (self.table + 1, 0);
                continue;
            }
            let frame = table.block(self.block);
            let block = read_frame(core, files, &table.descriptor.placement, frame, Block::new).await;
            self.block += 1;
            match block {
                Ok(block) => self.cursor.enter(Rc::new(block)),
                Err(defect) => self.lose(self.block - 1, defect, lost),
            }
        }
    }

    fn lose(&self, block: usize, defect: Defect, lost: &mut Vec<Lost>) {
        let table = &self.tables[self.table];
        let (frame, placement) = (table.block(block), &table.descriptor.placement);
        lost.push(Lost { extent: placement.id, offset: frame.offset(), len: frame.len as u64, defect });
    }
}
