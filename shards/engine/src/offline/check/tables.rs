//! Index tables: every frame of every replica, keys in order, counts as the header says.

use super::{Checker, Cure, Phase, Progress, Structure};
use crate::extent::{Column, ExtentClass};
use crate::index::Fault;
use crate::index::table::block::{Block, BlockCursor};
use crate::index::table::frame::{FRAME_HEAD_LEN, FrameKind, open};
use crate::offline::media::{Defect, Window};
use crate::offline::shard::{ShardFiles, ShardState};
use crate::offline::table::{FrameAt, Lost, OfflineTable, Runs};

/// What the blocks of a table were seen to hold.
#[derive(Default)]
struct Tally {
    last_key: Vec<u8>,
    entry_count: u64,
    tombstone_count: u64,
    /// Not all blocks could be read.
    incomplete: bool,
}

impl Checker<'_> {
    /// The index as far as it can be read, and whether something of it is lost.
    pub(super) async fn tables(&mut self, files: &ShardFiles, state: &ShardState) -> (Runs, bool) {
        let (runs, lost) = Runs::open(self.core, files, &state.index.levels).await;
        let mut index_lost = !lost.is_empty();
        for lost in lost {
            self.lost_table(files, &lost);
        }
        let on_all =
            |table: &OfflineTable| table.descriptor.len * table.descriptor.placement.columns.len() as u64;
        let total = runs.tables().map(|table| on_all(table)).sum();
        let mut done = 0;
        for table in runs.tables() {
            index_lost |= self.table(files, table).await;
            done += on_all(table);
            self.listener.progress(Progress { shard: files.shard, phase: Phase::Index, done, total });
        }
        (runs, index_lost)
    }

    pub(super) fn lost_table(&mut self, files: &ShardFiles, lost: &Lost) {
        let reason = format!(
            "{} bytes at {} of table extent {} are whole on no replica: {}",
            lost.len, lost.offset, lost.extent.0, lost.defect
        );
        self.lost(
            Structure::Table,
            files.shard,
            None,
            reason,
            "no replica has it; the index has to be rebuilt",
        );
    }

    /// Whether something of the table is lost.
    async fn table(&mut self, files: &ShardFiles, table: &OfflineTable) -> bool {
        let columns = &table.descriptor.placement.columns;
        let slot_len = files.geometry.table_slot_len;
        let mut windows: Vec<(Column, Result<Window<'_>, Defect>)> = Vec::new();
        for &column in columns {
            let Some((file, start)) = files.locate(ExtentClass::Table, column) else { continue };
            let window = match file {
                Ok(file) => Ok(Window::new(self.core, file, start, slot_len)),
                Err(defect) => Err(defect.clone()),
            };
            windows.push((column, window));
        }
        let mut tally = Tally::default();
        for frame in table.frames() {
            let mut replicas = Vec::with_capacity(windows.len());
            for (column, window) in &mut windows {
                replicas.push((*column, read_frame(window, frame).await));
                self.report.read_len += frame.len as u64;
            }
            self.frame(files, table, frame, replicas, &mut tally).await;
        }
        self.tally(files, table, &tally);
        tally.incomplete
    }

    async fn frame(
        &mut self,
        files: &ShardFiles,
        table: &OfflineTable,
        frame: FrameAt,
        replicas: Vec<(Column, Result<Vec<u8>, Defect>)>,
        tally: &mut Tally,
    ) {
        let right = replicas.iter().find_map(|(_, bytes)| bytes.as_ref().ok()).cloned();
        let Some(right) = right else {
            tally.incomplete = true;
            let defect = replicas.into_iter().find_map(|(_, bytes)| bytes.err());
            let absent = || Defect::Contradiction("no disk with a replica is at hand".to_owned());
            let (offset, len) = (frame.offset(), frame.len as u64);
            let lost = Lost {
                extent: table.descriptor.placement.id,
                offset,
                len,
                defect: defect.unwrap_or_else(absent),
            };
            return self.lost_table(files, &lost);
        };
        let used = FRAME_HEAD_LEN + open(&right, frame.place).map_or(0, <[u8]>::len);
        for (column, bytes) in replicas {
            let defect = match bytes {
                Ok(bytes) if bytes[..used] == right[..used] => continue,
                Ok(_) => {
                    Defect::Contradiction("it differs from other replicas, and both are whole".to_owned())
                }
                Err(defect) => defect,
            };
            let place = self.place_in(files, ExtentClass::Table, column, frame.offset());
            let cure = Cure::Bytes(right.clone());
            self.damaged(Structure::Table, Some(files.shard), place, &defect, None, cure).await;
        }
        if frame.place.kind == FrameKind::Data
            && let Err(fault) = tally.add(&right, frame)
        {
            tally.incomplete = true;
            let reason =
                format!("table extent {} at {}: {fault}", table.descriptor.placement.id.0, frame.offset());
            self.contradiction(Structure::Table, files.shard, None, reason);
        }
    }

    fn tally(&mut self, files: &ShardFiles, table: &OfflineTable, tally: &Tally) {
        let header = &table.header;
        let counts = (tally.entry_count, tally.tombstone_count);
        let said = (header.entry_count, header.tombstone_count);
        let is_right = counts == said && tally.last_key == *header.max_key;
        if !tally.incomplete && !is_right {
            let reason = format!(
                "table extent {} holds {} entries and {} tombstones, its header says {} and {}",
                table.descriptor.placement.id.0, counts.0, counts.1, said.0, said.1
            );
            self.contradiction(Structure::Table, files.shard, None, reason);
        }
    }
}

async fn read_frame(window: &mut Result<Window<'_>, Defect>, frame: FrameAt) -> Result<Vec<u8>, Defect> {
    let window = window.as_mut().map_err(|defect| defect.clone())?;
    let bytes = window.get(frame.offset(), frame.len).await?;
    open(bytes, frame.place).map_err(Defect::Table)?;
    Ok(bytes.to_vec())
}

impl Tally {
    fn add(&mut self, bytes: &[u8], frame: FrameAt) -> Result<(), Fault> {
        let mut cursor = BlockCursor::default();
        cursor.enter(std::rc::Rc::new(Block::new(open(bytes, frame.place)?)?));
        let mut first = true;
        while cursor.advance()? {
            if first && self.entry_count > 0 && *cursor.key() <= *self.last_key {
                return Err(Fault::Malformed("a block's keys are not above those of the one before"));
            }
            first = false;
            self.entry_count += 1;
            self.tombstone_count += u64::from(cursor.value().is_none());
            self.last_key.clear();
            self.last_key.extend_from_slice(cursor.key());
        }
        Ok(())
    }
}
