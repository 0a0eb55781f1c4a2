//! The frames of a table one after the other, each from a replica that has it intact: for a replica that is to be made.

use basalt_reactor::disk::BLOCK_LEN;
use basalt_reactor::{Core, Slice};

use super::table::frame::{FRAME_HEAD_LEN, FrameKind, FramePlace, open};
use super::table::header::HEADER_FRAME_LEN;
use crate::extent::{ArenaFiles, DiskIndex, ExtentClass, Placement};

/// Bytes looked at for a frame, at most: the longest there is.
const FRAME_LEN_MAX: usize = 128 * 1024;

/// A walk over a table.
pub(crate) struct Frames<'a> {
    core: &'a Core,
    files: &'a ArenaFiles,
    placement: &'a Placement,
    /// The disk whose replica is not believed.
    except: DiskIndex,
    offset: u64,
}

impl<'a> Frames<'a> {
    pub(crate) fn new(
        core: &'a Core,
        files: &'a ArenaFiles,
        placement: &'a Placement,
        except: DiskIndex,
    ) -> Frames<'a> {
        Frames { core, files, placement, except, offset: 0 }
    }

    /// Offset and bytes of the next frame, padding included. One that no replica has intact is left out, with all behind it
    /// until the next whole one; scrub tells of it.
    pub(crate) async fn next(&mut self) -> Option<(u64, Slice)> {
        let end = self.files.geometry().table_slot_len;
        while self.offset < end {
            let at = self.offset;
            for &column in self.placement.columns.iter().filter(|column| column.disk != self.except) {
                let Some((file, start)) = self.files.locate_readable(ExtentClass::Table, column) else {
                    continue;
                };
                let want = (end - at).min(FRAME_LEN_MAX as u64) as usize;
                let buf = self.core.arena().alloc(want).await;
                let read = self.files.members().read(self.core, column.disk, (&file, start + at), buf);
                let Some((Ok(got), buf)) = read.await else { continue };
                let bytes = buf.freeze();
                if let Some(len) = frame_len(&bytes[..got], self.placement, at) {
                    self.offset = at + len as u64;
                    return Some((at, bytes.slice(0..len)));
                }
            }
            self.offset += BLOCK_LEN as u64;
        }
        None
    }
}

/// Length of the intact frame at the start of `bytes`, in whole blocks.
fn frame_len(bytes: &[u8], placement: &Placement, offset: u64) -> Option<usize> {
    let block = u32::try_from(offset / BLOCK_LEN as u64).ok()?;
    let kinds = [FrameKind::Header, FrameKind::Data, FrameKind::Filter, FrameKind::Directory];
    kinds.into_iter().find_map(|kind| {
        let payload = open(bytes, FramePlace { kind, extent: placement.id, block }).ok()?;
        let len = (FRAME_HEAD_LEN + payload.len()).next_multiple_of(BLOCK_LEN);
        let len = if kind == FrameKind::Header { HEADER_FRAME_LEN } else { len };
        (len <= bytes.len()).then_some(len)
    })
}
