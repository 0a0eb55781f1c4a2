//! Restoring a block of a stripe from the other columns, and saying which blocks were bad.
//!
//! A body knows the checksums of its data blocks, not of its parity. So a restored block is believed only when it has
//! its own checksum; when it has not, some parity block is bad too, and other choices of parity are tried. The unit is
//! one checksum block, 64 KiB in long strips: the decoder has a fixed cost per call that shorter pieces would multiply.
//! A column that is late is not waited for as long as there are others.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::Poll;

use basalt_reactor::disk::BLOCK_LEN;
use basalt_reactor::{Buf, Slice};

use super::Bodies;
use super::budget::Permit;
use super::error::{BodyError, Damage, DeviceError, Fault};
use super::join::Boxed;
use super::layout::StripedBody;
use super::mend::BlockRow;
use super::plan::Block;
use super::writer::buf_len;
use crate::checksum::crc32c;
use crate::extent::reads::DiskRead;
use crate::extent::{ExtentClass, Geometry, Placement};

/// Choices of parity blocks tried for one damaged block at most.
pub(super) const CHOICES_MAX: usize = 64;

/// Memory for one recovery: a buffer for every column of one block, taken before the first is filled so that no two
/// recoveries wait for each other.
pub(super) struct Workspace {
    pub(super) bufs: Vec<Buf>,
    pub(super) _permit: Permit,
}

/// What a recovery of a block of `block_len` bytes takes from the arena.
pub(super) fn workspace_len(geometry: &Geometry, block_len: usize) -> usize {
    geometry.columns() * buf_len(block_len as u64)
}

impl Workspace {
    /// What is free now; `None` when that is too little.
    pub(super) fn try_new(bodies: &Bodies, block_len: usize) -> Option<Workspace> {
        let columns = bodies.files.geometry().columns();
        let permit = bodies.core.recoveries.try_reserve(workspace_len(bodies.geometry(), block_len))?;
        let bufs: Option<Vec<Buf>> =
            (0..columns).map(|_| bodies.core.core.arena().try_alloc(block_len)).collect();
        Some(Workspace { bufs: bufs?, _permit: permit })
    }

    /// Waits for memory. The caller holds no buffer.
    pub(super) async fn new(bodies: &Bodies, block_len: usize) -> Workspace {
        let columns = bodies.files.geometry().columns();
        let permit = bodies.core.recoveries.reserve(workspace_len(bodies.geometry(), block_len)).await;
        let mut bufs = Vec::with_capacity(columns);
        for _ in 0..columns {
            bufs.push(bodies.core.core.arena().alloc(block_len).await);
        }
        Workspace { bufs, _permit: permit }
    }
}

/// A block that could not be believed, with what is known of it.
pub(super) struct Target<'a> {
    pub(super) body: &'a StripedBody,
    pub(super) placement: &'a Placement,
    pub(super) block: &'a Block,
    pub(super) fault: Fault,
    /// The read that failed was for other blocks as well, so one of those may be to blame.
    pub(super) read_with_others: bool,
}

/// Blocks read so far, by column.
#[derive(Default)]
struct Found {
    data: Vec<(usize, Buf)>,
    parity: Vec<(usize, Buf)>,
    faults: Vec<Damage>,
}

impl Target<'_> {
    fn damage(&self, column: usize, fault: Fault) -> Damage {
        Damage {
            extent: self.placement.id,
            column: column as u8,
            disk: self.placement.columns[column].disk,
            offset: self.block.column_offset,
            len: self.block.len as u32,
            fault,
        }
    }

    /// The target and the blocks beside it in its stripe, for whoever mends them.
    fn row(&self, k: usize) -> BlockRow {
        BlockRow {
            extent: self.placement.id,
            offset: self.block.column_offset,
            len: self.block.len as u32,
            data_crcs: (0..k).filter_map(|column| self.expected(column, k)).collect(),
            parity_crcs: Vec::new(),
        }
    }

    fn report(&self, faults: &[Damage], k: usize, report: &dyn Fn(Damage, Option<&BlockRow>)) {
        let row = self.row(k);
        for damage in faults.iter().filter(|damage| damage.fault.is_damage()) {
            report(*damage, Some(&row));
        }
    }

    fn report_lost(
        &self,
        faults: Vec<Damage>,
        k: usize,
        report: &dyn Fn(Damage, Option<&BlockRow>),
    ) -> BodyError {
        self.report(&faults, k, report);
        let (extent, offset) = (self.placement.id, self.block.column_offset);
        BodyError::Lost { extent, offset, len: self.block.len as u32, faults }
    }

    /// The checksum that the block of `column` must have, as far as the body knows it.
    fn expected(&self, column: usize, k: usize) -> Option<u32> {
        (column < k).then(|| self.body.crcs[self.block.crc_of(column as u8)])
    }
}

impl Target<'_> {
    /// Reads the block from its own disk, alone. A disk that does not answer keeps the buffer.
    async fn read_again(&self, bodies: &Bodies, buf: Buf) -> Result<Buf, (Fault, Option<Buf>)> {
        let column = self.placement.columns[usize::from(self.block.column)];
        let Some((file, origin)) = bodies.files.locate_readable(ExtentClass::Data, column) else {
            return Err((Fault::Absent, Some(buf)));
        };
        let place = (&file, origin + self.block.column_offset);
        let answer = bodies.files.members().read(&bodies.core.core, column.disk, place, buf).await;
        let (result, buf) = answer.ok_or((Fault::Late, None))?;
        let checked = arrived(&result, buf.len());
        match checked.and_then(|()| check(&buf, self.body.crcs[self.block.crc])) {
            Ok(()) => Ok(buf),
            Err(fault) => Err((fault, Some(buf))),
        }
    }
}

/// The blocks of the other columns, as they are read.
struct Others<'a> {
    bodies: &'a Bodies,
    target: &'a Target<'a>,
    /// Columns on present disks, those that are slow last.
    unread: VecDeque<usize>,
    running: Vec<(usize, DiskRead)>,
    bufs: Vec<Buf>,
}

impl<'a> Others<'a> {
    fn new(
        bodies: &'a Bodies,
        target: &'a Target<'a>,
        bufs: Vec<Buf>,
        absent: &mut Vec<Damage>,
    ) -> Others<'a> {
        let disks = &target.placement.columns;
        let others = (0..disks.len()).filter(|&column| column != usize::from(target.block.column));
        let (present, gone): (Vec<usize>, Vec<usize>) = others
            .partition(|&column| bodies.files.locate_readable(ExtentClass::Data, disks[column]).is_some());
        absent.extend(gone.into_iter().map(|column| target.damage(column, Fault::Absent)));
        let (slow, mut unread): (VecDeque<usize>, VecDeque<usize>) =
            present.into_iter().partition(|&column| bodies.files.reads().is_avoided(disks[column].disk));
        unread.extend(slow);
        Others { bodies, target, unread, running: Vec::new(), bufs }
    }

    /// Begins `count` more reads, or as many as there are columns and buffers.
    fn start(&mut self, count: usize) {
        let (bodies, offset) = (self.bodies, self.target.block.column_offset);
        debug_assert!(offset.is_multiple_of(BLOCK_LEN as u64));
        for _ in 0..count.min(self.unread.len()) {
            // One fewer than columns where the target was read again in vain: that read keeps its own.
            let Some(buf) = self.bufs.pop() else { break };
            let Some(column) = self.unread.pop_front() else { break };
            let place = self.target.placement.columns[column];
            match bodies.files.read(&bodies.core.core, ExtentClass::Data, place, buf, offset) {
                Ok(mut read) => {
                    read.submit();
                    self.running.push((column, read));
                }
                Err(buf) => drop(buf),
            }
        }
    }

    /// Waits for any of the reads under way. When one is late, the rest is read as well.
    async fn next(&mut self) -> Option<(usize, Result<(), Fault>, Buf)> {
        let mut timer: Option<Boxed<'_, ()>> = None;
        poll_fn(|cx| {
            loop {
                for place in 0..self.running.len() {
                    let (column, read) = &mut self.running[place];
                    let column = *column;
                    if let Poll::Ready((result, buf)) = Pin::new(read).poll(cx) {
                        self.running.remove(place);
                        return Poll::Ready(Some((column, arrived(&result, buf.len()), buf)));
                    }
                }
                if self.running.is_empty() {
                    return Poll::Ready(None);
                }
                let check_at = self.running.iter().map(|(_, read)| read.check_at()).min();
                let Some(check_at) = check_at else { return Poll::Pending };
                let core = &self.bodies.core.core;
                let timer_now = timer.get_or_insert_with(|| Box::pin(core.sleep_until(check_at)));
                if timer_now.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                timer = None;
                let now = core.now();
                let late = self.running.iter_mut().filter(|(_, read)| read.check_at() <= now);
                late.for_each(|(_, read)| read.note_late());
                self.start(usize::MAX);
                // There is nobody left to ask; what is not there by now does not come.
                self.running.retain(|(_, read)| !read.is_stuck());
            }
        })
        .await
    }
}

/// Restores the target block; `report` hears of every bad block met on the way, the target first.
///
/// # Errors
/// [`BodyError::Lost`] with every fault when no k good blocks of the stripe can be had.
pub(super) async fn recover(
    bodies: &Bodies,
    target: &Target<'_>,
    workspace: Workspace,
    report: &dyn Fn(Damage, Option<&BlockRow>),
) -> Result<Slice, BodyError> {
    let k = usize::from(bodies.files.geometry().k);
    let wanted = usize::from(target.block.column);
    let Workspace { mut bufs, _permit } = workspace;
    let mut out = bufs.pop().expect("one buffer per column");
    let mut found = Found::default();
    let mut fault = target.fault;
    if target.read_with_others && matches!(fault, Fault::Device(_) | Fault::Short { .. }) {
        match target.read_again(bodies, out).await {
            Ok(block) => return Ok(block.freeze()),
            Err((alone, Some(buf))) => (fault, out) = (alone, buf),
            Err((late, None)) => {
                fault = late;
                // That read keeps its memory. Where there is no other, one column fewer can be asked.
                let len = target.block.len;
                let Some(buf) = bodies.core.core.arena().try_alloc(len).or_else(|| bufs.pop()) else {
                    return Err(target.report_lost(found.faults, k, report));
                };
                out = buf;
            }
        }
    }
    found.faults.push(target.damage(wanted, fault));

    // Most often one block is bad and one parity block is enough; the rest is read only when it is not.
    let mut others = Others::new(bodies, target, bufs, &mut found.faults);
    others.start(if bodies.geometry().m > 0 { k } else { 0 });
    let mut restored = false;
    while let Some((column, result, block)) = others.next().await {
        found.take(target, column, k, result, block);
        let count = found.data.len() + found.parity.len();
        restored = count >= k && found.restore(bodies, target, &mut out, report);
        if restored {
            break;
        }
        if count >= k || count + others.running.len() < k {
            others.start(usize::MAX);
        }
    }
    drop(others);
    if !restored && fault == Fault::Late {
        // Nobody else has it. It was late, not bad.
        match target.read_again(bodies, out).await {
            Ok(block) => return Ok(block.freeze()),
            Err((late, _buf)) => {
                found.faults[0] = target.damage(wanted, late);
                return Err(target.report_lost(found.faults, k, report));
            }
        }
    }
    if restored {
        target.report(&found.faults, k, report);
        bodies.core.count_restored(1);
        return Ok(out.freeze());
    }
    Err(target.report_lost(found.faults, k, report))
}

impl Found {
    /// Sorts a block in, or out if it is known to be bad.
    fn take(&mut self, target: &Target<'_>, column: usize, k: usize, result: Result<(), Fault>, block: Buf) {
        let checked = result.and_then(|()| match target.expected(column, k) {
            Some(expected) => check(&block, expected),
            None => Ok(()),
        });
        match checked {
            Ok(()) if column < k => self.data.push((column, block)),
            Ok(()) => self.parity.push((column, block)),
            Err(fault) => self.faults.push(target.damage(column, fault)),
        }
    }

    /// Tries to restore the target into `out` from what was read, with every choice of as many parity blocks as data
    /// blocks are missing.
    fn restore(
        &self,
        bodies: &Bodies,
        target: &Target<'_>,
        out: &mut Buf,
        report: &dyn Fn(Damage, Option<&BlockRow>),
    ) -> bool {
        let k = usize::from(bodies.files.geometry().k);
        let wanted = usize::from(target.block.column);
        let expected = target.body.crcs[target.block.crc];
        let choices = Choices::new(self.parity.len(), k - self.data.len());
        for (tried, choice) in choices.take(CHOICES_MAX).enumerate() {
            let chosen = self.parity.iter().enumerate().filter(|(index, _)| choice >> index & 1 == 1);
            let present: Vec<(usize, &[u8])> = self
                .data
                .iter()
                .chain(chosen.map(|(_, parity)| parity))
                .map(|(column, block)| (*column, &block[..]))
                .collect();
            bodies.core.codec.borrow_mut().reconstruct(&present, &mut [(wanted, out)]);
            if crc32c(out) == expected {
                if tried > 0 {
                    self.report_bad_parity(bodies, target, &present, choice, report);
                }
                return true;
            }
        }
        false
    }

    /// With a choice that is known to be right, says which of the other parity blocks are not.
    fn report_bad_parity(
        &self,
        bodies: &Bodies,
        target: &Target<'_>,
        present: &[(usize, &[u8])],
        choice: u32,
        report: &dyn Fn(Damage, Option<&BlockRow>),
    ) {
        let k = usize::from(bodies.files.geometry().k);
        let mut right = vec![0; target.block.len];
        for (index, (column, block)) in self.parity.iter().enumerate() {
            if choice >> index & 1 == 0 {
                bodies.core.codec.borrow_mut().reconstruct(present, &mut [(*column, &mut right)]);
                if let Err(fault) = check(block, crc32c(&right)) {
                    report(target.damage(*column, fault), Some(&target.row(k)));
                }
            }
        }
    }
}

/// `Ok` if `block` has the checksum.
pub(super) fn check(block: &[u8], expected: u32) -> Result<(), Fault> {
    let got = crc32c(block);
    if got == expected { Ok(()) } else { Err(Fault::Checksum { got, expected }) }
}

/// Whether a finished read brought all of its `len` bytes.
pub(super) fn arrived(result: &io::Result<usize>, len: usize) -> Result<(), Fault> {
    match result {
        Ok(got) if *got == len => Ok(()),
        Ok(got) => Err(Fault::Short { got: *got }),
        Err(error) => Err(Fault::Device(DeviceError::from(error))),
    }
}

/// All sets of `size` out of `count` things, as bit sets, in rising order.
pub(super) struct Choices {
    next: u32,
    count: usize,
    size: usize,
}

impl Choices {
    pub(super) fn new(count: usize, size: usize) -> Choices {
        Choices { next: 0, count, size }
    }
}

impl Iterator for Choices {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        while self.next < 1 << self.count {
            let choice = self.next;
            self.next += 1;
            if choice.count_ones() as usize == self.size {
                return Some(choice);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::Choices;

    #[test]
    fn choices_are_all_sets_of_a_size() {
        assert_eq!(Choices::new(4, 2).collect::<Vec<_>>(), [0b11, 0b101, 0b110, 0b1001, 0b1010, 0b1100]);
        assert_eq!(Choices::new(3, 0).collect::<Vec<_>>(), [0]);
        assert_eq!(Choices::new(1, 2).count(), 0);
        assert_eq!(Choices::new(0, 1).count(), 0);
    }
}
