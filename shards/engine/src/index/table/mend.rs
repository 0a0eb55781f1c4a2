//! Verifying all replicas of a table, and copying frames from those that have them whole to those that have not.
//!
//! Every frame says where it belongs and has a checksum, so any one that is whole is as it was written. As long as a check is
//! held, so is its table: the slot is nobody else's.

use std::ops::Range;
use std::rc::Rc;

use basalt_reactor::arena::BUF_LEN_MAX;
use basalt_reactor::disk::BLOCK_LEN;
use basalt_reactor::{Buf, Slice};

use super::Table;
use super::frame::{FRAME_HEAD_LEN, FrameKind, FramePlace, open};
use super::header::{HEADER_FRAME_LEN, SECTION_FRAME_LEN, SECTION_PAYLOAD_LEN, section_len};
use super::store::TableStore;
use crate::extent::{ExtentClass, ExtentId, Placement};
use crate::index::Index;

/// Bytes read at one time.
const READ_LEN: usize = 256 * 1024;

const _: () = assert!(READ_LEN <= BUF_LEN_MAX && READ_LEN >= SECTION_FRAME_LEN);

/// A table that is being verified.
pub(crate) struct TableCheck {
    store: Rc<TableStore>,
    table: Rc<Table>,
    frames: Vec<(FramePlace, usize)>,
}

/// A frame that some replicas lack.
pub(crate) struct MendedFrame {
    /// In the extent, bytes.
    pub(crate) offset: u64,
    pub(crate) len: usize,
    /// What it must hold; `None` when no replica has it.
    pub(crate) bytes: Option<Slice>,
    /// Indices of the present replicas that have it not.
    pub(crate) lacking: Vec<usize>,
}

impl Index {
    /// Extents of the current tables, and the bytes of each in use.
    pub(crate) fn table_extents(&self) -> Vec<(ExtentId, u64)> {
        let version = Rc::clone(&self.state.borrow().version);
        version.tables().map(|table| (table.descriptor.placement.id, table.descriptor.len)).collect()
    }

    /// The table in `extent`, held until the check is dropped; `None` when the current version has none there.
    pub(crate) fn check_table(&self, extent: ExtentId) -> Option<TableCheck> {
        let version = Rc::clone(&self.state.borrow().version);
        let table = version.tables().find(|table| table.descriptor.placement.id == extent)?;
        Some(TableCheck { store: Rc::clone(&self.store), table: Rc::clone(table), frames: frames_of(table) })
    }
}

/// Every frame of a table, in order of their places.
fn frames_of(table: &Table) -> Vec<(FramePlace, usize)> {
    let extent = table.descriptor.placement.id;
    let place = |kind, block| FramePlace { kind, extent, block };
    let mut frames = vec![(place(FrameKind::Header, 0), HEADER_FRAME_LEN)];
    frames.extend((0..table.directory.block_count()).map(|index| {
        let (block, len) = table.directory.place(index);
        (place(FrameKind::Data, block), len as usize * BLOCK_LEN)
    }));
    let sections =
        [(FrameKind::Filter, table.filter.len()), (FrameKind::Directory, table.directory.encoded_len())];
    let mut at = table.descriptor.len - sections.iter().map(|(_, len)| section_len(*len)).sum::<u64>();
    for (kind, len) in sections {
        for start in (0..len).step_by(SECTION_PAYLOAD_LEN) {
            let payload_len = (len - start).min(SECTION_PAYLOAD_LEN);
            let frame_len = (FRAME_HEAD_LEN + payload_len).next_multiple_of(BLOCK_LEN);
            frames.push((place(kind, (at / BLOCK_LEN as u64) as u32), frame_len));
            at += frame_len as u64;
        }
    }
    frames
}

impl TableCheck {
    pub(crate) fn placement(&self) -> &Placement {
        &self.table.descriptor.placement
    }

    /// Runs of frames, as indices, each to be read at one time.
    pub(crate) fn runs(&self) -> Vec<Range<usize>> {
        let mut runs: Vec<Range<usize>> = Vec::new();
        let mut len = 0;
        for (index, (_, frame_len)) in self.frames.iter().enumerate() {
            match runs.last_mut() {
                Some(run) if len + frame_len <= READ_LEN => run.end = index + 1,
                _ => {
                    runs.push(index..index + 1);
                    len = 0;
                }
            }
            len += frame_len;
        }
        runs
    }

    /// Bytes of a run on one replica.
    pub(crate) fn run_len(&self, run: &Range<usize>) -> usize {
        self.frames[run.clone()].iter().map(|(_, len)| len).sum()
    }

    /// Whether a run holds bytes of `range` of the extent.
    pub(crate) fn overlaps(&self, run: &Range<usize>, range: &Range<u64>) -> bool {
        let start = offset_of(&self.frames[run.start].0);
        start < range.end && range.start < start + self.run_len(run) as u64
    }

    /// Reads a run of frames from every present replica; returns those that some of them lack.
    pub(crate) async fn run(&self, run: Range<usize>) -> Vec<MendedFrame> {
        let frames = &self.frames[run.clone()];
        let len = self.run_len(&run);
        let start = offset_of(&frames[0].0);
        let mut lacking: Vec<Vec<usize>> = vec![Vec::new(); frames.len()];
        for index in 0..self.placement().columns.len() {
            let Some(read) = self.read(index, start, len).await else { continue };
            for ((place, frame_len), lacking) in frames.iter().zip(&mut lacking) {
                let at = (offset_of(place) - start) as usize;
                let is_whole = match &read {
                    Ok(bytes) => open(&bytes[at..at + frame_len], *place).is_ok(),
                    // Alone it may be readable.
                    Err(()) => match self.read(index, offset_of(place), *frame_len).await {
                        Some(Ok(bytes)) => open(&bytes, *place).is_ok(),
                        Some(Err(())) => false,
                        None => true,
                    },
                };
                if !is_whole {
                    lacking.push(index);
                }
            }
        }
        let mut mended = Vec::new();
        for ((place, frame_len), lacking) in frames.iter().zip(lacking) {
            if !lacking.is_empty() {
                let bytes = self.whole(*place, *frame_len, &lacking).await;
                mended.push(MendedFrame { offset: offset_of(place), len: *frame_len, bytes, lacking });
            }
        }
        mended
    }

    /// The frame from a replica that has it.
    async fn whole(&self, place: FramePlace, len: usize, lacking: &[usize]) -> Option<Slice> {
        for index in (0..self.placement().columns.len()).filter(|index| !lacking.contains(index)) {
            let Some(Ok(mut bytes)) = self.read(index, offset_of(&place), len).await else { continue };
            let Ok(payload_len) = open(&bytes, place).map(<[u8]>::len) else { continue };
            // No checksum covers the padding.
            bytes[FRAME_HEAD_LEN + payload_len..].fill(0);
            return Some(bytes.freeze());
        }
        None
    }

    /// Bytes of a replica; `None` when its disk is absent, or does not answer.
    async fn read(&self, index: usize, offset: u64, len: usize) -> Option<Result<Buf, ()>> {
        let column = self.placement().columns[index];
        let (file, start) = self.store.files.locate_readable(ExtentClass::Table, column)?;
        let buf = self.store.core.arena().alloc(len).await;
        let members = self.store.files.members();
        let read = members.read(&self.store.core, column.disk, (&file, start + offset), buf);
        let (result, buf) = read.await?;
        Some(if matches!(result, Ok(got) if got == len) { Ok(buf) } else { Err(()) })
    }
}

fn offset_of(place: &FramePlace) -> u64 {
    u64::from(place.block) * BLOCK_LEN as u64
}
