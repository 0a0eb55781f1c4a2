//! Small bodies that share a striped one: the blocks around them alone are read, and verified by their own checksums.
//!
//! A pack's own checksums cover 64 KiB of a strip each; for an object of 4 KiB that would be sixteen times the reading. An
//! object keeps the checksums it had in the log, so a read of its device blocks is enough while nothing is wrong. When
//! something is, the pack is read like any striped body, which restores what is damaged.

use std::future::poll_fn;
use std::io;
use std::ops::Range;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;

use basalt_reactor::disk::BLOCK_LEN;
use basalt_reactor::{Buf, Core, Slice};

use super::error::{BodyError, Fault};
use super::layout::{BLOCK_CRC_LEN, StripeShape, StripedBody};
use super::recover::{arrived, check};
use super::{Bodies, OnDamage, Places, ReadMemory, Reader};
use crate::extent::reads::DiskRead;
use crate::extent::{ExtentClass, Placement};
use crate::format::pack::PACK_LEN_MAX;

/// A body that lies in one piece in a pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedBody {
    pub pack: Rc<StripedBody>,
    /// Where in the pack the bytes start.
    pub offset: u64,
    pub len: u32,
    /// CRC32C of each [`BLOCK_CRC_LEN`] bytes of the body, the last ones of what is left.
    pub crcs: Vec<u32>,
}

/// Bytes of a packed body that lie side by side in one column.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Piece {
    column: usize,
    /// From the start of the column, bytes.
    offset: u64,
    len: usize,
}

impl PackedBody {
    /// Checks that the description is whole.
    ///
    /// # Errors
    /// [`BodyError::Malformed`] saying what contradicts what.
    pub fn check(&self) -> Result<(), BodyError> {
        let malformed = |what| Err(BodyError::Malformed { what });
        if self.pack.len > PACK_LEN_MAX as u64 {
            return malformed("a pack longer than one can be");
        }
        if self.offset.checked_add(self.len.into()).is_none_or(|end| end > self.pack.len) {
            return malformed("a packed body beyond its pack");
        }
        if self.crcs.len() as u64 != u64::from(self.len).div_ceil(BLOCK_CRC_LEN) {
            return malformed("not one checksum per packed block");
        }
        Ok(())
    }

    /// Where bytes `range` of the pack lie, if it is one segment.
    fn pieces(&self, shape: StripeShape, range: Range<u64>) -> Option<Vec<Piece>> {
        let [segment] = self.pack.segments.as_slice() else { return None };
        let origin = u64::from(segment.block) * BLOCK_LEN as u64;
        let mut pieces = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let stripe = shape.stripe_at(segment.len, at);
            let (strip, in_strip) =
                ((at - stripe.start) / stripe.strip_len, (at - stripe.start) % stripe.strip_len);
            let len = (stripe.strip_len - in_strip).min(range.end - at);
            let offset = origin + stripe.column_offset + in_strip;
            pieces.push(Piece { column: strip as usize, offset, len: len as usize });
            at += len;
        }
        Some(pieces)
    }
}

impl Bodies {
    /// Reads bytes `range` of a packed body, which must not be empty, if nothing is wrong with them. `None` when something is:
    /// [`Bodies::packed_reader`] then says what, and restores it.
    ///
    /// # Errors
    /// [`BodyError::Malformed`], [`BodyError::OutOfRange`].
    pub async fn read_packed(
        &self,
        placement: &Placement,
        body: &PackedBody,
        range: Range<u32>,
    ) -> Result<Option<Slice>, BodyError> {
        self.check_packed(body, &range)?;
        let block = BLOCK_CRC_LEN as u32;
        let covered = range.start / block * block..range.end.next_multiple_of(block).min(body.len);
        let in_pack = body.offset + u64::from(covered.start)..body.offset + u64::from(covered.end);
        let Some(pieces) = body.pieces(StripeShape::new(self.geometry()), in_pack) else { return Ok(None) };
        let Ok(bytes) = self.read_pieces(placement, &pieces).await else { return Ok(None) };
        let first_crc = (range.start / block) as usize;
        let is_sound = bytes
            .chunks(BLOCK_CRC_LEN as usize)
            .zip(&body.crcs[first_crc..])
            .all(|(bytes, &crc)| check(bytes, crc).is_ok());
        let skipped = (range.start - covered.start) as usize;
        Ok(is_sound.then(|| bytes.slice(skipped..skipped + range.len())))
    }

    /// Reads bytes `range` of a packed body through its pack, which restores what is damaged.
    ///
    /// # Errors
    /// As [`Bodies::reader`].
    pub fn packed_reader(
        self: &Rc<Bodies>,
        body: &PackedBody,
        range: Range<u32>,
        places: Places,
        on_damage: OnDamage,
        memory: Option<Rc<ReadMemory>>,
    ) -> Result<Reader, BodyError> {
        self.check_packed(body, &range)?;
        let in_pack = body.offset + u64::from(range.start)..body.offset + u64::from(range.end);
        self.reader(Rc::clone(&body.pack), in_pack, places, on_damage, memory)
    }

    fn check_packed(&self, body: &PackedBody, range: &Range<u32>) -> Result<(), BodyError> {
        body.check()?;
        body.pack.check(self.geometry())?;
        if range.is_empty() || range.end > body.len {
            let (start, end, len) = (range.start.into(), range.end.into(), body.len.into());
            return Err(BodyError::OutOfRange { start, end, len });
        }
        Ok(())
    }

    /// The bytes of all pieces, one behind the other.
    async fn read_pieces(&self, placement: &Placement, pieces: &[Piece]) -> Result<Slice, Fault> {
        let arena = self.core.core.arena();
        if let [piece] = pieces {
            let buf = arena.alloc(piece.read_len()).await;
            return self.read_piece(placement, piece, buf).await;
        }
        let len = pieces.iter().map(|piece| piece.len).sum::<usize>();
        // Nobody waits for a buffer while holding another: where there is none, the pack's reader has its memory.
        let mut whole = arena.try_alloc(len.next_multiple_of(BLOCK_LEN)).ok_or(Fault::Absent)?;
        let mut at = 0;
        for piece in pieces {
            let buf = arena.try_alloc(piece.read_len()).ok_or(Fault::Absent)?;
            let bytes = self.read_piece(placement, piece, buf).await?;
            whole[at..at + piece.len].copy_from_slice(&bytes);
            at += piece.len;
        }
        Ok(whole.freeze().slice(0..len))
    }

    async fn read_piece(&self, placement: &Placement, piece: &Piece, buf: Buf) -> Result<Slice, Fault> {
        let column = *placement.columns.get(piece.column).ok_or(Fault::Absent)?;
        let (core, class, skipped) = (&self.core.core, ExtentClass::Data, piece.skipped());
        let offset = piece.offset - skipped as u64;
        let has_others = self.geometry().m > 0;
        if has_others && self.files.reads().is_avoided(column.disk) {
            self.files.probe(core, class, column, offset);
            return Err(Fault::Late);
        }
        let read = self.files.read(core, class, column, buf, offset).map_err(|_| Fault::Absent)?;
        let (result, buf) =
            if has_others { in_time(core, read).await.ok_or(Fault::Late)? } else { read.await };
        arrived(&result, buf.len())?;
        Ok(buf.freeze().slice(skipped..skipped + piece.len))
    }
}

/// Waits for `read` unless it is late, and others may be asked instead.
async fn in_time(core: &Core, mut read: DiskRead) -> Option<(io::Result<usize>, Buf)> {
    read.submit();
    loop {
        let mut late = pin!(core.sleep_until(read.check_at()));
        let ended = poll_fn(|cx| match Pin::new(&mut read).poll(cx) {
            Poll::Ready(ended) => Poll::Ready(Some(ended)),
            Poll::Pending => late.as_mut().poll(cx).map(|()| None),
        });
        if let Some(ended) = ended.await {
            return Some(ended);
        }
        read.note_late();
        if read.may_hedge() {
            return None;
        }
    }
}

impl Piece {
    /// Bytes in front of it in its first device block.
    fn skipped(&self) -> usize {
        (self.offset % BLOCK_LEN as u64) as usize
    }

    /// Bytes of the whole device blocks around it.
    fn read_len(&self) -> usize {
        (self.skipped() + self.len).next_multiple_of(BLOCK_LEN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::Segment;
    use crate::extent::{ExtentId, Geometry};

    const GEOMETRY: Geometry = Geometry {
        k: 2,
        m: 1,
        strip_len: 65_536,
        log_slot_len: 1 << 20,
        data_slot_len: 1 << 20,
        table_slot_len: 1 << 20,
    };

    fn body(offset: u64, len: u32) -> PackedBody {
        let pack_len = 2 * 65_536 + 10_000;
        let segments = vec![Segment { extent: ExtentId(1), block: 3, len: pack_len }];
        let pack = StripedBody { len: pack_len, segments, crcs: vec![0; 4] };
        let crcs = vec![0; len.div_ceil(65_536) as usize];
        PackedBody { pack: Rc::new(pack), offset, len, crcs }
    }

    #[test]
    fn an_object_across_strips_is_read_in_pieces() {
        let shape = StripeShape::new(&GEOMETRY);
        let origin = 3 * 4096;
        let pieces = body(0, 1).pieces(shape, 65_000..66_000).expect("one segment");
        let first = Piece { column: 0, offset: origin + 65_000, len: 536 };
        assert_eq!(pieces, [first, Piece { column: 1, offset: origin, len: 464 }]);
        // The short stripe at the end has strips of its own length, 8 KiB.
        let pieces = body(0, 1).pieces(shape, 131_072 + 8_000..131_072 + 8_200).expect("one segment");
        let first = Piece { column: 0, offset: origin + 65_536 + 8_000, len: 192 };
        assert_eq!(pieces, [first, Piece { column: 1, offset: origin + 65_536, len: 8 }]);
    }

    #[test]
    fn a_description_that_contradicts_itself_is_refused() {
        assert!(body(10, 100).check().is_ok());
        assert!(body(141_000, 73).check().is_err());
        assert!(body(u64::MAX, 1).check().is_err());
        assert!(PackedBody { crcs: Vec::new(), ..body(0, 1) }.check().is_err());
    }
}
