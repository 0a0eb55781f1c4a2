//! Walking one replica of a log extent, batch by batch, over whatever is damaged in between.
//!
//! A start follows the log from a root and refuses what is missing. Here every batch that carries the extent's nonce is found,
//! also behind damage and before the root, because small objects live in all of them.

use basalt_reactor::Core;
use basalt_reactor::disk::BLOCK_LEN;

use super::media::{Defect, Window};
use super::shard::ShardFiles;
use crate::extent::{Column, ExtentClass, ExtentId};
use crate::format::batch::{BATCH_LEN_MAX, BatchError, BatchHeader};
use crate::format::log_header::LogHeader;
use crate::format::record::Record;
use crate::log::LOG_HEADER_LEN;

const BLOCK: u64 = BLOCK_LEN as u64;

const _: () = assert!(BATCH_LEN_MAX <= basalt_reactor::arena::BUF_LEN_MAX);

/// Something met on the way.
pub(super) enum Step {
    /// A batch whose header is whole, and its records if the rest of it is.
    Batch { offset: u64, header: BatchHeader, records: Result<Vec<Record>, Defect> },
    /// A block that the device does not give.
    Unreadable { offset: u64, len: u64, defect: Defect },
}

/// One replica, walked from its first batch on.
pub(super) struct LogWalk<'a> {
    window: Window<'a>,
    shard: u16,
    extent: ExtentId,
    nonce: [u8; 16],
    offset: u64,
}

/// The header of a log extent's replica; `None` when its disk is not at hand.
pub(super) async fn read_header(
    core: &Core,
    files: &ShardFiles,
    column: Column,
) -> Option<Result<LogHeader, Defect>> {
    let bytes = files.read(core, ExtentClass::Log, column, 0, LOG_HEADER_LEN as usize).await?;
    Some(bytes.and_then(|bytes| LogHeader::decode(&bytes).map_err(Defect::Frame)))
}

impl<'a> LogWalk<'a> {
    /// `None` when the disk is not at hand.
    ///
    /// # Errors
    /// In the option: the file cannot be opened.
    pub(super) fn new(
        core: &'a Core,
        files: &'a ShardFiles,
        column: Column,
        extent: ExtentId,
        nonce: [u8; 16],
    ) -> Option<Result<LogWalk<'a>, Defect>> {
        let (file, start) = files.locate(ExtentClass::Log, column)?;
        Some(match file {
            Ok(file) => {
                let window = Window::new(core, file, start, files.geometry.log_slot_len);
                let (shard, offset) = (files.shard, u64::from(LOG_HEADER_LEN));
                Ok(LogWalk { window, shard, extent, nonce, offset })
            }
            Err(defect) => Err(defect.clone()),
        })
    }

    pub(super) async fn next(&mut self) -> Option<Step> {
        while self.offset + BLOCK <= self.window.len() {
            let offset = self.offset;
            let block = match self.window.get(offset, BLOCK_LEN).await {
                Ok(block) => block,
                Err(defect) => {
                    self.offset += BLOCK;
                    return Some(Step::Unreadable { offset, len: BLOCK, defect });
                }
            };
            let header = match BatchHeader::decode(block) {
                Ok(header) if self.is_own(&header) => header,
                _ => {
                    self.offset += BLOCK;
                    continue;
                }
            };
            let len = header.disk_len();
            self.offset += len as u64;
            let records = self.records(offset, len, &header).await;
            return Some(Step::Batch { offset, header, records });
        }
        None
    }

    fn is_own(&self, header: &BatchHeader) -> bool {
        (header.nonce, header.extent, header.shard) == (self.nonce, self.extent, self.shard)
    }

    async fn records(
        &mut self,
        offset: u64,
        len: usize,
        header: &BatchHeader,
    ) -> Result<Vec<Record>, Defect> {
        if offset + len as u64 > self.window.len() {
            let (records_len, payload_len) = (header.records_len, header.payload_len);
            return Err(Defect::Batch(BatchError::BadLength { records_len, payload_len }));
        }
        let bytes = self.window.get(offset, len).await?;
        header.decode_records(bytes).map_err(Defect::Batch)
    }
}
