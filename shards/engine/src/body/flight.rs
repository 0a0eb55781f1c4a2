//! The reads of one group under way, and what is read besides them to do without a disk.
//!
//! A read whose disk is absent or known to be slow is not made: the other columns are read at the same place, and what it
//! would have brought is restored from the first k that arrive. The same is done when a read turns out to be late, and
//! then whichever comes first counts. All blocks of a read are restored in one step, because a call of the decoder costs
//! as much as the work on several of them. Memory for it is taken if it is there; otherwise block after block is
//! restored in memory of its own ([`super::recover`]). What was restored is verified like what was read.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use basalt_reactor::{Buf, Monotonic, Slice};

use super::Bodies;
use super::budget::Permit;
use super::error::Fault;
use super::join::Boxed;
use super::layout::StripedBody;
use super::plan::{Block, ReadGroup};
use super::reader::ReadMemory;
use super::recover::{arrived, check};
use super::writer::buf_len;
use crate::extent::reads::DiskRead;
use crate::extent::{ExtentClass, Placement};

/// The shortest time in which a late read is looked at again.
const GRACE: Duration = Duration::from_micros(500);

/// The reads of one group.
pub(super) struct Flight {
    pub(super) group: ReadGroup,
    pub(super) placement: Rc<Placement>,
    /// Next block to hand out.
    pub(super) next: usize,
    /// As `group.reads`, and then what is read to restore some of them.
    runs: Vec<Run>,
    /// For the memory that restoring takes.
    extra: Option<Permit>,
}

/// Consecutive blocks of one column.
struct Run {
    column: usize,
    offset: u64,
    len: usize,
    state: RunState,
    restoring: Option<Restoring>,
    /// It came from the other columns; if it is not right, this is what was wrong at first.
    restored: Option<Fault>,
}

/// Being restored, whether or not its own read is still under way.
struct Restoring {
    cause: Fault,
    /// Where to; `None` if the code makes copies.
    out: Option<Buf>,
}

enum RunState {
    Running(DiskRead),
    Arrived(Slice),
    Missing(Fault),
}

/// What came of an attempt to restore a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attempt {
    UnderWay,
    NoMemory,
    /// There are not enough other columns.
    Impossible,
}

impl Flight {
    /// Issues the reads of a group, as many as `held` bytes that the reader holds already and memory allow: all or none.
    pub(super) fn try_start(
        bodies: &Bodies,
        memory: &ReadMemory,
        held: usize,
        group: ReadGroup,
        placement: Rc<Placement>,
    ) -> Option<Flight> {
        if !memory.try_grow(held + group.buffers_len()) {
            return None;
        }
        let mut flight = Flight::without_reads(bodies, group, placement);
        let around = flight.around(bodies);
        let own: Vec<usize> = (0..flight.runs.len()).filter(|index| !around.contains(index)).collect();
        let arena = bodies.core.core.arena();
        let bufs: Option<Vec<Buf>> =
            own.iter().map(|&index| arena.try_alloc(flight.runs[index].len)).collect();
        for (index, buf) in own.into_iter().zip(bufs?) {
            flight.start(bodies, index, buf);
        }
        for index in around {
            let RunState::Missing(cause) = flight.runs[index].state else { continue };
            // Without memory or enough others, its turn will show what can be done.
            let attempt = flight.restore_from_others(bodies, index, cause);
            if attempt == Attempt::Impossible
                && cause == Fault::Late
                && let Some(buf) = arena.try_alloc(flight.runs[index].len)
            {
                flight.start(bodies, index, buf);
            }
        }
        Some(flight)
    }

    /// Issues the read of a group of one block, waiting for memory. A block that is better not read is left to be restored.
    pub(super) async fn start_block(bodies: &Bodies, group: ReadGroup, placement: Rc<Placement>) -> Flight {
        let mut flight = Flight::without_reads(bodies, group, placement);
        if flight.around(bodies).is_empty() {
            let buf = bodies.core.core.arena().alloc(flight.runs[0].len).await;
            flight.start(bodies, 0, buf);
        }
        flight
    }

    fn without_reads(bodies: &Bodies, group: ReadGroup, placement: Rc<Placement>) -> Flight {
        let run = |column: u8, offset, len| {
            let column = usize::from(column);
            let absent = bodies.files.locate_readable(ExtentClass::Data, placement.columns[column]).is_none();
            let state = RunState::Missing(if absent { Fault::Absent } else { Fault::Late });
            Run { column, offset, len, state, restoring: None, restored: None }
        };
        let runs = group.reads.iter().map(|read| run(read.column, read.offset, read.len)).collect();
        Flight { group, placement, next: 0, runs, extra: None }
    }

    /// The reads that are better not made, because their disks are absent, or slow and others can answer.
    fn around(&self, bodies: &Bodies) -> Vec<usize> {
        let (files, reads) = (&bodies.files, bodies.files.reads());
        let column = |run: &Run| self.placement.columns[run.column];
        let is_avoided = |run: &Run| match run.state {
            RunState::Missing(Fault::Absent) => true,
            _ => reads.is_avoided(column(run).disk),
        };
        let around: Vec<usize> =
            (0..self.runs.len()).filter(|&index| is_avoided(&self.runs[index])).collect();
        for run in around.iter().map(|&index| &self.runs[index]) {
            files.probe(&bodies.core.core, ExtentClass::Data, column(run), run.offset);
        }
        around
    }

    fn start(&mut self, bodies: &Bodies, index: usize, buf: Buf) {
        let run = &mut self.runs[index];
        let column = self.placement.columns[run.column];
        run.state = match bodies.files.read(&bodies.core.core, ExtentClass::Data, column, buf, run.offset) {
            Ok(mut read) => {
                read.submit();
                RunState::Running(read)
            }
            Err(_) => RunState::Missing(Fault::Absent),
        };
    }

    /// Bytes of the arena that its group's buffers take; those for restoring are counted by a permit of their own.
    pub(super) fn buffers_len(&self) -> usize {
        self.group.buffers_len()
    }

    /// Nobody has been waiting for a while.
    pub(super) fn unattended(&mut self) {
        for run in &mut self.runs {
            if let RunState::Running(read) = &mut run.state {
                read.unattended();
            }
        }
    }

    /// Waits for the next block and hands out its answer, together with those of the blocks that follow it in the same
    /// buffer.
    pub(super) async fn take_verified(
        &mut self,
        bodies: &Bodies,
        body: &StripedBody,
    ) -> Result<Slice, Fault> {
        let index = self.group.blocks[self.next].read;
        self.arrive(bodies, index).await?;
        let run = &self.runs[index];
        let RunState::Arrived(bytes) = &run.state else { unreachable!("it arrived") };
        let first = &self.group.blocks[self.next];
        verify(first, bytes, body).map_err(|fault| run.restored.unwrap_or(fault))?;
        let start = first.start + first.answer.start;
        let mut end = first.start + first.answer.end;
        self.next += 1;
        while let Some(block) = self.group.blocks.get(self.next) {
            let follows = block.read == first.read
                && block.start + block.answer.start == end
                && block.answer.start == 0;
            if !follows || verify(block, bytes, body).is_err() {
                break;
            }
            end = block.start + block.answer.end;
            self.next += 1;
        }
        Ok(bytes.slice(start..end))
    }

    /// Waits until run `wanted` has arrived, from its own disk or from the others.
    async fn arrive(&mut self, bodies: &Bodies, wanted: usize) -> Result<(), Fault> {
        let mut timer: Option<Boxed<'_, ()>> = None;
        let mut is_first_look = true;
        poll_fn(|cx| {
            loop {
                self.poll_runs(cx, wanted);
                if let Some(result) = self.settle(bodies, wanted) {
                    return Poll::Ready(result);
                }
                // Blocks before this one may have waited for the same read, in vain. The next look at it is far off by now.
                if std::mem::take(&mut is_first_look) && self.is_given_up(bodies, wanted) {
                    match self.ask_others(bodies, wanted) {
                        Ok(()) => continue,
                        Err(fault) => return Poll::Ready(Err(fault)),
                    }
                }
                if timer.is_none() {
                    let Some(at) = self.check_at(bodies, wanted) else { return Poll::Pending };
                    let core = &bodies.core.core;
                    // What has arrived is seen only when this task has let others run.
                    timer = Some(Box::pin(core.sleep_until(at.max(core.now() + GRACE))));
                }
                match timer.as_mut().map(|timer| timer.as_mut().poll(cx)) {
                    Some(Poll::Ready(())) => timer = None,
                    _ => return Poll::Pending,
                }
                if let Err(fault) = self.look_at_late(bodies, wanted) {
                    return Poll::Ready(Err(fault));
                }
            }
        })
        .await
    }

    /// Polls what `wanted` may come from.
    fn poll_runs(&mut self, cx: &mut Context<'_>, wanted: usize) {
        let all = self.runs[wanted].restoring.is_some();
        for (index, run) in self.runs.iter_mut().enumerate() {
            if (all || index == wanted)
                && let RunState::Running(read) = &mut run.state
                && let Poll::Ready((result, buf)) = Pin::new(read).poll(cx)
            {
                run.state = match arrived(&result, buf.len()) {
                    Ok(()) => RunState::Arrived(buf.freeze()),
                    Err(fault) => RunState::Missing(fault),
                };
            }
        }
    }

    /// How it stands with run `wanted`; `None` if it is to be waited for.
    fn settle(&mut self, bodies: &Bodies, wanted: usize) -> Option<Result<(), Fault>> {
        let run = &self.runs[wanted];
        if matches!(run.state, RunState::Arrived(_)) {
            if self.runs[wanted].restoring.take().is_some() {
                self.drop_extra();
            }
            return Some(Ok(()));
        }
        let Some(restoring) = &run.restoring else {
            return match run.state {
                RunState::Missing(fault) => Some(Err(fault)),
                _ => None,
            };
        };
        let cause = restoring.cause;
        if self.restore(bodies, wanted) {
            return Some(Ok(()));
        }
        // What failed is replaced as long as there are columns left.
        match self.restore_from_others(bodies, wanted, cause) {
            Attempt::UnderWay => None,
            Attempt::NoMemory | Attempt::Impossible => match self.runs[wanted].state {
                RunState::Running(ref read) if !read.is_stuck() => None,
                _ => Some(Err(cause)),
            },
        }
    }

    /// When to look for reads that are late.
    fn check_at(&self, bodies: &Bodies, wanted: usize) -> Option<Monotonic> {
        if bodies.geometry().m == 0 {
            return None;
        }
        let all = self.runs[wanted].restoring.is_some();
        let runs = self.runs.iter().enumerate().filter(|(index, _)| all || *index == wanted);
        let checks = runs.filter_map(|(_, run)| match &run.state {
            RunState::Running(read) => Some(read.check_at()),
            _ => None,
        });
        checks.min()
    }

    /// Asks others for what is late.
    fn look_at_late(&mut self, bodies: &Bodies, wanted: usize) -> Result<(), Fault> {
        let now = bodies.core.core.now();
        let all = self.runs[wanted].restoring.is_some();
        let mut may_hedge = false;
        for (index, run) in self.runs.iter_mut().enumerate() {
            if (all || index == wanted)
                && let RunState::Running(read) = &mut run.state
                && read.check_at() <= now
            {
                read.note_late();
                may_hedge = may_hedge || read.may_hedge();
            }
        }
        if may_hedge { self.ask_others(bodies, wanted) } else { Ok(()) }
    }

    /// Whether run `wanted` was waited for longer than it should be where others can be asked.
    fn is_given_up(&self, bodies: &Bodies, wanted: usize) -> bool {
        bodies.geometry().m > 0
            && matches!(&self.runs[wanted].state, RunState::Running(read) if read.is_given_up())
    }

    /// Has run `wanted` restored from others, if that can be done and is not under way.
    fn ask_others(&mut self, bodies: &Bodies, wanted: usize) -> Result<(), Fault> {
        let all = self.runs[wanted].restoring.is_some();
        let cause = self.runs[wanted].restoring.as_ref().map_or(Fault::Late, |restoring| restoring.cause);
        let before = self.runs.len();
        let attempt = self.restore_from_others(bodies, wanted, cause);
        if attempt == Attempt::UnderWay && (!all || self.runs.len() > before) {
            bodies.files.reads().count(|counts| counts.hedged += 1);
        }
        let (given_up, stuck) = match &self.runs[wanted].state {
            RunState::Running(read) => (read.is_given_up(), read.is_stuck()),
            _ => (true, true),
        };
        // Block after block it may be done: of what cannot be read as a whole, others may have each block.
        match attempt {
            Attempt::NoMemory if given_up => Err(cause),
            Attempt::Impossible if stuck => Err(cause),
            _ => Ok(()),
        }
    }

    /// Makes sure that k other columns, none of them late, are read or under way where run `index` lies.
    fn restore_from_others(&mut self, bodies: &Bodies, index: usize, cause: Fault) -> Attempt {
        let geometry = bodies.geometry();
        let (k, columns) = (usize::from(geometry.k), geometry.columns());
        let (offset, len) = (self.runs[index].offset, self.runs[index].len);
        let (mut timely, mut coming, mut asked) =
            (vec![false; columns], vec![false; columns], vec![false; columns]);
        asked[self.runs[index].column] = true;
        for (other, run) in self.runs.iter().enumerate() {
            // What was itself restored came from the same columns as this is to.
            if other == index || !run.covers(offset, len) || run.restored.is_some() {
                continue;
            }
            asked[run.column] = true;
            let (is_coming, is_timely) = match &run.state {
                RunState::Running(read) => (!read.is_stuck(), !read.is_late()),
                RunState::Arrived(_) => (true, true),
                RunState::Missing(_) => (false, false),
            };
            coming[run.column] |= is_coming;
            timely[run.column] |= is_timely;
        }
        let count = |columns: &[bool]| columns.iter().filter(|column| **column).count();
        let present = |&column: &usize| {
            bodies.files.locate_readable(ExtentClass::Data, self.placement.columns[column]).is_some()
        };
        let reads = bodies.files.reads();
        let (slow, mut unasked): (Vec<usize>, Vec<usize>) = (0..columns)
            .filter(|&column| !asked[column])
            .filter(present)
            .partition(|&column| reads.is_avoided(self.placement.columns[column].disk));
        unasked.extend(slow);
        unasked.truncate(k.saturating_sub(count(&timely)));
        if count(&coming) + unasked.len() < k {
            return Attempt::Impossible;
        }
        let needs_out = k > 1 && self.runs[index].restoring.is_none();
        let Some(mut bufs) = self.extra_bufs(bodies, unasked.len() + usize::from(needs_out), len) else {
            return Attempt::NoMemory;
        };
        let out = if needs_out { bufs.pop() } else { None };
        self.runs[index].restoring.get_or_insert(Restoring { cause, out });
        for (column, buf) in unasked.into_iter().zip(bufs) {
            let state = RunState::Missing(Fault::Absent);
            self.runs.push(Run { column, offset, len, state, restoring: None, restored: None });
            self.start(bodies, self.runs.len() - 1, buf);
        }
        Attempt::UnderWay
    }

    /// Buffers for restoring, if there are any to be had.
    fn extra_bufs(&mut self, bodies: &Bodies, count: usize, len: usize) -> Option<Vec<Buf>> {
        let more = count * buf_len(len as u64);
        let before = self.extra.as_ref().map_or(0, Permit::len);
        match &self.extra {
            Some(permit) if !permit.try_grow(before + more) => return None,
            Some(_) => {}
            None => self.extra = Some(bodies.core.budget.try_extra(more)?),
        }
        let bufs = (0..count).map(|_| bodies.core.core.arena().try_alloc(len)).collect();
        if let (None, Some(permit)) = (&bufs, &self.extra) {
            permit.shrink(before);
        }
        bufs
    }

    /// Restores run `index`, and others that lie at the same place, if enough has arrived.
    fn restore(&mut self, bodies: &Bodies, index: usize) -> bool {
        let k = usize::from(bodies.geometry().k);
        let (offset, len) = (self.runs[index].offset, self.runs[index].len);
        let mut present: Vec<(usize, Slice)> = Vec::with_capacity(k);
        for run in self.runs.iter().filter(|run| run.covers(offset, len)) {
            if let RunState::Arrived(bytes) = &run.state
                && run.restored.is_none()
                && present.len() < k
                && present.iter().all(|(column, _)| *column != run.column)
            {
                let start = (offset - run.offset) as usize;
                present.push((run.column, bytes.slice(start..start + len)));
            }
        }
        if present.len() < k {
            return false;
        }
        let (group_len, mut alike): (usize, Vec<(usize, Restoring)>) = (self.group.reads.len(), Vec::new());
        for (other, run) in self.runs.iter_mut().enumerate().take(group_len) {
            if run.offset == offset
                && run.len == len
                && !matches!(run.state, RunState::Arrived(_))
                && let Some(restoring) = run.restoring.take()
            {
                alike.push((other, restoring));
            }
        }
        let strips: Vec<(usize, &[u8])> =
            present.iter().map(|(column, bytes)| (*column, &bytes[..])).collect();
        let mut missing: Vec<(usize, &mut [u8])> = alike
            .iter_mut()
            .filter_map(|(other, restoring)| {
                let column = self.runs[*other].column;
                restoring.out.as_mut().map(|out| (column, &mut out[..]))
            })
            .collect();
        if !missing.is_empty() {
            bodies.core.codec.borrow_mut().reconstruct(&strips, &mut missing);
        }
        for (other, Restoring { cause, out }) in alike {
            let overtaken = matches!(self.runs[other].state, RunState::Running(_));
            bodies.files.reads().count(|counts| counts.hedges_won += u64::from(overtaken));
            let blocks = self.group.blocks.iter().filter(|block| block.read == other).count();
            bodies.core.count_restored(blocks as u64);
            let bytes = out.map_or_else(|| present[0].1.clone(), Buf::freeze);
            // A late read that is dropped here goes on by itself.
            self.runs[other].state = RunState::Arrived(bytes);
            self.runs[other].restored = Some(cause);
        }
        self.drop_extra();
        true
    }

    /// Lets go of what was read for restoring, unless some of it is still needed.
    fn drop_extra(&mut self) {
        if self.runs.iter().all(|run| run.restoring.is_none()) {
            self.runs.truncate(self.group.reads.len());
            self.extra = None;
        }
    }
}

impl Run {
    fn covers(&self, offset: u64, len: usize) -> bool {
        self.offset <= offset && self.offset + self.len as u64 >= offset + len as u64
    }
}

fn verify(block: &Block, bytes: &[u8], body: &StripedBody) -> Result<(), Fault> {
    check(&bytes[block.start..block.start + block.len], body.crcs[block.crc])
}
