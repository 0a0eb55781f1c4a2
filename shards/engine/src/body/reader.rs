//! Reading a body: verified bytes in order, with reads kept in flight ahead of the consumer.
//!
//! What leaves is a range of the very buffer that the disk filled; no byte is copied. A block is verified right before
//! it leaves; a bad or missing one is restored from the other columns ([`super::recover`]) and reported, and the
//! consumer does not notice.
//!
//! A reader waits for arena memory only while it holds none: read-ahead takes what is free, and a recovery that finds
//! too little free gives the read-ahead back first. So readers cannot wait for one another.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::ops::Range;
use std::rc::Rc;
use std::task::{Context, Poll};

use basalt_reactor::arena::ArenaUse;
use basalt_reactor::{Buf, Slice};

use super::error::{BodyError, Fault};
use super::join::Boxed;
use super::layout::{BLOCK_CRC_LEN, StripedBody};
use super::plan::{Block, GROUP_LEN_MAX, ReadGroup, ReadPlan};
use super::recover::{Target, Workspace, arrived, check, recover};
use super::{Bodies, OnDamage, Places};
use crate::extent::{ExtentClass, Placement};

/// Bytes a reader reads ahead while memory is plentiful.
pub const READ_AHEAD_MAX: usize = 2 << 20;

/// A range of a body on its way out.
pub struct Reader {
    bodies: Rc<Bodies>,
    body: Rc<StripedBody>,
    places: Places,
    on_damage: OnDamage,
    plan: ReadPlan,
    end: u64,
    /// Reads under way, in body order.
    flights: VecDeque<Flight>,
    failed: bool,
}

/// The reads of one group.
struct Flight {
    group: ReadGroup,
    placement: Rc<Placement>,
    /// As `group.reads`.
    reads: Vec<ReadState>,
    /// Next block to hand out.
    next: usize,
}

enum ReadState {
    Running(Boxed<'static, (std::io::Result<usize>, Buf)>),
    Arrived(Slice),
    Failed(Fault),
}

impl Reader {
    pub(super) fn new(
        bodies: Rc<Bodies>,
        body: Rc<StripedBody>,
        range: Range<u64>,
        places: Places,
        on_damage: OnDamage,
    ) -> Result<Reader, BodyError> {
        let end = range.end;
        let plan = ReadPlan::new(bodies.files.geometry(), &body, range)?;
        Ok(Reader { bodies, body, places, on_damage, plan, end, flights: VecDeque::new(), failed: false })
    }

    /// The next bytes of the range, verified; `None` at its end or after an error.
    ///
    /// # Errors
    /// [`BodyError::Lost`] when a block cannot be restored, [`BodyError::UnknownExtent`].
    pub async fn next(&mut self) -> Option<Result<Slice, BodyError>> {
        if self.failed {
            return None;
        }
        let result = self.advance().await;
        self.failed = matches!(result, Some(Err(_)));
        result
    }

    async fn advance(&mut self) -> Option<Result<Slice, BodyError>> {
        if let Err(error) = self.read_ahead().await {
            return Some(Err(error));
        }
        let flight = self.flights.front_mut()?;
        match flight.take_verified(&self.body).await {
            Ok(slice) => {
                self.drop_finished();
                Some(Ok(slice))
            }
            Err(fault) => Some(self.recover_next(fault).await),
        }
    }

    fn drop_finished(&mut self) {
        if self.flights.front().is_some_and(|flight| flight.next == flight.group.blocks.len()) {
            self.flights.pop_front();
        }
    }

    /// Starts reads until enough of them are under way, at least one.
    async fn read_ahead(&mut self) -> Result<(), BodyError> {
        loop {
            let arena = self.bodies.core.core.arena();
            let allowance = read_ahead_max(arena.usage());
            let group_len_max = allowance.min(GROUP_LEN_MAX);
            let queued: usize = self.flights.iter().map(|flight| flight.group.read_len()).sum();
            if !self.flights.is_empty() && queued + group_len_max > allowance {
                return Ok(());
            }
            // Worked on as a copy: a dropped future must not leave a gap in the plan.
            let mut plan = self.plan;
            let Some(mut group) = plan.next_group(&self.body, group_len_max) else { return Ok(()) };
            let mut bufs: Option<Vec<Buf>> =
                group.reads.iter().map(|read| arena.try_alloc(read.len)).collect();
            if bufs.is_none() {
                if !self.flights.is_empty() {
                    return Ok(());
                }
                plan = self.plan;
                let Some(block) = plan.next_group(&self.body, 1) else { return Ok(()) };
                group = block;
                bufs = Some(vec![arena.alloc(group.reads[0].len).await]);
            }
            let placement = (self.places)(group.extent)
                .filter(|placement| placement.columns.len() == self.bodies.files.geometry().columns())
                .ok_or(BodyError::UnknownExtent { extent: group.extent })?;
            let flight = self.start(group, placement, bufs.unwrap_or_default()).await;
            self.flights.push_back(flight);
            self.plan = plan;
        }
    }

    /// Issues the reads of a group.
    async fn start(&self, group: ReadGroup, placement: Rc<Placement>, bufs: Vec<Buf>) -> Flight {
        let reads = group.reads.iter().zip(bufs).map(|(read, buf)| {
            let column = placement.columns[usize::from(read.column)];
            match self.bodies.files.locate(ExtentClass::Data, column) {
                Some((file, origin)) => {
                    let (file, offset) = (file.clone(), origin + read.offset);
                    ReadState::Running(Box::pin(async move { file.read_at(buf, offset).await }))
                }
                None => ReadState::Failed(Fault::Absent),
            }
        });
        let mut flight = Flight { reads: reads.collect(), group, placement, next: 0 };
        // Operations start at their first poll.
        poll_fn(|cx| {
            for read in &mut flight.reads {
                let _ = read.poll(cx);
            }
            Poll::Ready(())
        })
        .await;
        flight
    }

    /// Restores the block that the front flight is at.
    async fn recover_next(&mut self, fault: Fault) -> Result<Slice, BodyError> {
        let flight = self.flights.front().expect("a block of it is bad");
        let block = flight.group.blocks[flight.next].clone();
        let placement = Rc::clone(&flight.placement);
        let read_with_others = flight.group.reads[block.read].len > block.len;
        let after = block.body_offset + block.answer.len() as u64;
        let workspace = Workspace::try_new(&self.bodies, block.len);
        let kept_read_ahead = workspace.is_some();
        let workspace = match workspace {
            Some(workspace) => workspace,
            None => {
                self.flights.clear();
                self.plan =
                    ReadPlan::new(self.bodies.files.geometry(), &self.body, block.body_offset..self.end)?;
                Workspace::new(&self.bodies, block.len).await
            }
        };
        let target =
            Target { body: &self.body, placement: &placement, block: &block, fault, read_with_others };
        let restored = recover(&self.bodies, &target, workspace, &*self.on_damage).await?;
        if kept_read_ahead {
            if let Some(flight) = self.flights.front_mut() {
                flight.next += 1;
            }
            self.drop_finished();
        } else {
            self.plan.seek(&self.body, after);
        }
        Ok(restored.slice(block.answer))
    }
}

/// How far to read ahead: less as the arena fills, for then it is better that all readers get on.
fn read_ahead_max(usage: ArenaUse) -> usize {
    if usage.used < usage.capacity / 2 {
        READ_AHEAD_MAX
    } else if usage.used < usage.capacity / 4 * 3 {
        READ_AHEAD_MAX / 4
    } else {
        BLOCK_CRC_LEN as usize
    }
}

impl Flight {
    /// Waits for the read of the next block and hands out its answer, together with those of the blocks that follow it
    /// in the same buffer.
    async fn take_verified(&mut self, body: &StripedBody) -> Result<Slice, Fault> {
        let first = &self.group.blocks[self.next];
        let read = &mut self.reads[first.read];
        poll_fn(|cx| read.poll(cx)).await;
        let bytes = match read {
            ReadState::Arrived(bytes) => bytes,
            ReadState::Failed(fault) => return Err(*fault),
            ReadState::Running(_) => unreachable!("polled until it was not"),
        };
        verify(first, bytes, body)?;
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
}

fn verify(block: &Block, bytes: &[u8], body: &StripedBody) -> Result<(), Fault> {
    check(&bytes[block.start..block.start + block.len], body.crcs[block.crc])
}

impl ReadState {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let ReadState::Running(read) = self {
            match read.as_mut().poll(cx) {
                Poll::Ready((result, buf)) => {
                    *self = match arrived(&result, buf.len()) {
                        Ok(()) => ReadState::Arrived(buf.freeze()),
                        Err(fault) => ReadState::Failed(fault),
                    };
                }
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_ahead_shrinks_as_the_arena_fills() {
        let max = |used| read_ahead_max(ArenaUse { capacity: 100, used, used_max: 100, waiting: 0 });
        assert_eq!((max(0), max(49)), (READ_AHEAD_MAX, READ_AHEAD_MAX));
        assert_eq!((max(50), max(74)), (READ_AHEAD_MAX / 4, READ_AHEAD_MAX / 4));
        assert_eq!((max(75), max(100)), (65_536, 65_536));
    }
}
