//! Reading a body: verified bytes in order, with reads kept in flight ahead of the consumer.
//!
//! What leaves is a range of the very buffer that the disk filled; no byte is copied. A block is verified right before
//! it leaves; a bad or missing one is restored from the other columns ([`super::recover`]) and reported, and the
//! consumer does not notice.
//!
//! A reader has a working set ([`ReadMemory`]), reserved before its first read: room for a block that is read and for those
//! that its consumer has not sent yet. Read-ahead takes what is there beyond it and never waits; a recovery has memory of
//! its own, and gives the read-ahead back when it has to wait. So readers cannot wait for one another, nor for slow clients.

use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;

use basalt_reactor::Slice;
use basalt_reactor::disk::BLOCK_LEN as DEVICE_BLOCK_LEN;

use super::budget::{BudgetUse, Permit};
use super::error::{BodyError, Fault};
use super::flight::Flight;
use super::layout::{BLOCK_CRC_LEN, StripedBody};
use super::plan::{GROUP_LEN_MAX, ReadGroup, ReadPlan};
use super::recover::{Target, Workspace, recover};
use super::writer::buf_len;
use super::{Bodies, BodyCore, OnDamage, Places};
use crate::extent::Placement;

/// Bytes a reader reads ahead while memory is plentiful.
pub const READ_AHEAD_MAX: usize = 2 << 20;

/// Longest checksum block, in bytes: the least that is read at one time.
const BLOCK_LEN_MAX: usize = BLOCK_CRC_LEN as usize;

/// Bytes of a body that its consumer may hold unsent when memory is short, and those that are counted for a consumer that
/// keeps one read behind another that is being sent, as it may when memory is plentiful.
const UNSENT_LEN_MAX: usize = GROUP_LEN_MAX + BLOCK_LEN_MAX;
const UNSENT_LEN_MIN: usize = BLOCK_LEN_MAX;

/// The memory that a body is read in. It is to live until the last byte handed out has been sent.
pub struct ReadMemory {
    permit: Permit,
    /// What the permit began with and never falls below, and what the whole range could take at most.
    len_min: usize,
    len_max: usize,
    unsent_max: usize,
}

/// A range of a body on its way out.
pub struct Reader {
    bodies: Rc<Bodies>,
    body: Rc<StripedBody>,
    places: Places,
    on_damage: OnDamage,
    plan: ReadPlan,
    end: u64,
    memory: Option<Rc<ReadMemory>>,
    /// Reads under way, in body order.
    flights: VecDeque<Flight>,
    /// What the last two groups took from the arena, whose bytes were handed out and may not be sent yet.
    handed: [usize; 2],
    failed: bool,
}

impl Reader {
    pub(super) fn new(
        bodies: Rc<Bodies>,
        body: Rc<StripedBody>,
        range: Range<u64>,
        places: Places,
        on_damage: OnDamage,
        memory: Option<Rc<ReadMemory>>,
    ) -> Result<Reader, BodyError> {
        let end = range.end;
        let plan = ReadPlan::new(bodies.files.geometry(), &body, range)?;
        let flights = VecDeque::new();
        Ok(Reader {
            bodies,
            body,
            places,
            on_damage,
            plan,
            end,
            memory,
            flights,
            handed: [0; 2],
            failed: false,
        })
    }

    /// The next bytes of the range, verified; `None` at its end or after an error.
    ///
    /// # Errors
    /// [`BodyError::Lost`] when a block cannot be restored, [`BodyError::UnknownExtent`].
    pub async fn next(&mut self) -> Option<Result<Slice, BodyError>> {
        if self.failed {
            return None;
        }
        if let Some(flight) = self.flights.front_mut() {
            flight.unattended();
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
        match flight.take_verified(&self.bodies, &self.body).await {
            Ok(slice) => {
                self.drop_finished();
                Some(Ok(slice))
            }
            Err(fault) => Some(self.recover_next(fault).await),
        }
    }

    fn drop_finished(&mut self) {
        if self.flights.front().is_some_and(|flight| flight.next == flight.group.blocks.len())
            && let Some(flight) = self.flights.pop_front()
        {
            self.hand_over(flight.buffers_len());
        }
    }

    /// A buffer of `len` bytes is the consumer's now, and an older one sent by the time it asks for more.
    fn hand_over(&mut self, len: usize) {
        self.handed = [self.handed[1], len];
        let held = self.held();
        if let Some(memory) = &self.memory {
            memory.shrink(held);
        }
    }

    /// Bytes of the arena that this reader and its consumer may hold.
    fn held(&self) -> usize {
        self.flights.iter().map(Flight::buffers_len).chain(self.handed).sum()
    }

    /// Starts reads until enough of them are under way, at least one.
    async fn read_ahead(&mut self) -> Result<(), BodyError> {
        let memory = match &self.memory {
            Some(memory) => Rc::clone(memory),
            None => {
                let len_max = ReadMemory::len_max(self.end, self.body.len);
                let len = ReadMemory::len_min(len_max, UNSENT_LEN_MIN);
                let permit = self.bodies.core.budget.reserve(len).await;
                Rc::clone(self.memory.insert(ReadMemory::new(permit, len_max, UNSENT_LEN_MIN)))
            }
        };
        loop {
            let allowance = read_ahead_max(self.bodies.core.budget.usage());
            let group_len_max = allowance.min(GROUP_LEN_MAX);
            let queued: usize = self.flights.iter().map(|flight| flight.group.read_len()).sum();
            if !self.flights.is_empty() && queued + group_len_max > allowance {
                return Ok(());
            }
            // Worked on as a copy: a dropped future must not leave a gap in the plan.
            let mut plan = self.plan;
            let Some(group) = plan.next_group(&self.body, group_len_max) else { return Ok(()) };
            let placement = self.place_of(&group)?;
            let flight = match Flight::try_start(&self.bodies, &memory, self.held(), group, placement) {
                Some(flight) => flight,
                None if !self.flights.is_empty() => return Ok(()),
                None => {
                    plan = self.plan;
                    let Some(block) = plan.next_group(&self.body, 1) else { return Ok(()) };
                    let placement = self.place_of(&block)?;
                    Flight::start_block(&self.bodies, block, placement).await
                }
            };
            self.flights.push_back(flight);
            self.plan = plan;
        }
    }

    fn place_of(&self, group: &ReadGroup) -> Result<Rc<Placement>, BodyError> {
        (self.places)(group.extent)
            .filter(|placement| placement.columns.len() == self.bodies.files.geometry().columns())
            .ok_or(BodyError::UnknownExtent { extent: group.extent })
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
        self.hand_over(buf_len(restored.len() as u64));
        Ok(restored.slice(block.answer))
    }
}

/// How far to read ahead: less as memory is given away, for then it is better that all readers get on.
fn read_ahead_max(usage: BudgetUse) -> usize {
    if usage.used < usage.capacity / 4 {
        READ_AHEAD_MAX
    } else if usage.used < usage.capacity / 2 {
        READ_AHEAD_MAX / 4
    } else {
        BLOCK_LEN_MAX
    }
}

impl ReadMemory {
    /// What reading `range_len` bytes of a body of `body_len` bytes can take from the arena in all.
    fn len_max(range_len: u64, body_len: u64) -> usize {
        // Neither end of the range needs to be the end of a block.
        let blocks = (range_len / BLOCK_CRC_LEN + 2).saturating_mul(BLOCK_CRC_LEN);
        // An inline body begins and ends anywhere in a block of the device.
        let whole = body_len.saturating_add(2 * DEVICE_BLOCK_LEN as u64);
        let len = blocks.min(whole).checked_next_power_of_two().unwrap_or(u64::MAX);
        usize::try_from(len).unwrap_or(usize::MAX)
    }

    /// What a reader needs to get on, however slowly: one block that is read, one that waits to be taken over, and what
    /// its consumer holds back before it asks for more.
    fn len_min(len_max: usize, unsent_max: usize) -> usize {
        len_max.min(unsent_max + 2 * BLOCK_LEN_MAX)
    }

    fn new(permit: Permit, len_max: usize, unsent_max: usize) -> Rc<ReadMemory> {
        Rc::new(ReadMemory { len_min: permit.len(), len_max: permit.len().max(len_max), permit, unsent_max })
    }

    /// Reserves what a reader of `range_len` bytes of a body of `body_len` bytes needs, and `more` bytes for what else the read
    /// takes. `None` when that cannot be had in time.
    pub(super) async fn admit(
        bodies: &BodyCore,
        range_len: u64,
        body_len: u64,
        more: usize,
    ) -> Option<Rc<ReadMemory>> {
        let len_max = ReadMemory::len_max(range_len, body_len);
        let len = |unsent_max| ReadMemory::len_min(len_max, unsent_max).saturating_add(more);
        if let Some(permit) = bodies.budget.try_extra(len(UNSENT_LEN_MAX)) {
            return Some(ReadMemory::new(permit, len_max.saturating_add(more), UNSENT_LEN_MAX));
        }
        let permit = bodies.budget.admit(&bodies.core, len(UNSENT_LEN_MIN)).await?;
        Some(ReadMemory::new(permit, len_max.saturating_add(more), UNSENT_LEN_MIN))
    }

    /// As [`ReadMemory::admit`], together with `writer_len` bytes for whoever writes what is read.
    pub(super) async fn admit_copy(
        bodies: &BodyCore,
        range_len: u64,
        body_len: u64,
        more: usize,
        writer_len: usize,
    ) -> Option<(Rc<ReadMemory>, Permit)> {
        let len_max = ReadMemory::len_max(range_len, body_len);
        let len = ReadMemory::len_min(len_max, UNSENT_LEN_MIN).saturating_add(more);
        let permit = bodies.budget.admit(&bodies.core, len.saturating_add(writer_len)).await?;
        let writer = permit.split(writer_len);
        Some((ReadMemory::new(permit, len_max.saturating_add(more), UNSENT_LEN_MIN), writer))
    }

    /// Reserves what it takes that reader and consumer hold `held` bytes, and the reader can still get on.
    pub(super) fn try_grow(&self, held: usize) -> bool {
        self.permit.try_grow(self.len_for(held))
    }

    fn shrink(&self, held: usize) {
        self.permit.shrink(self.len_for(held));
    }

    fn len_for(&self, held: usize) -> usize {
        (held + self.unsent_max + BLOCK_LEN_MAX).clamp(self.len_min, self.len_max)
    }

    /// Bytes that may have been handed out and not sent before more is asked for; `None` when a consumer that keeps no more
    /// than two reads need not count.
    #[must_use]
    pub fn unsent_max(&self) -> Option<usize> {
        (self.unsent_max < UNSENT_LEN_MAX).then_some(self.unsent_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_ahead_shrinks_as_memory_is_given_away() {
        let max = |used| read_ahead_max(BudgetUse { capacity: 100, used, waiting: 0, refused: 0 });
        assert_eq!((max(0), max(24)), (READ_AHEAD_MAX, READ_AHEAD_MAX));
        assert_eq!((max(25), max(49)), (READ_AHEAD_MAX / 4, READ_AHEAD_MAX / 4));
        assert_eq!((max(50), max(100)), (65_536, 65_536));
    }

    #[test]
    fn a_working_set_is_what_the_range_can_take_and_bounded() {
        let sets = |range_len, body_len| {
            let len_max = ReadMemory::len_max(range_len, body_len);
            (
                ReadMemory::len_min(len_max, UNSENT_LEN_MIN) >> 10,
                ReadMemory::len_min(len_max, UNSENT_LEN_MAX) >> 10,
            )
        };
        assert_eq!(sets(4096, 4096), (16, 16));
        assert_eq!(sets(1, 1 << 40), (128, 128), "a block, or two if it lies across a border");
        assert_eq!(sets(100 << 10, 100 << 10), (128, 128));
        assert_eq!(sets(1 << 30, 1 << 30), (192, 1216));
        assert_eq!(sets(u64::MAX, u64::MAX), (192, 1216));
    }
}
