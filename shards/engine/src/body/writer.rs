//! Writing a body: bytes in, stripes on k+m disks out, durable when [`Writer::finish`] returns.
//!
//! Bytes are copied once, to the place in the column buffers where they will lie on disk; a full stripe gets its
//! checksums and its parity while it is in the cache; and a run of stripes goes out as one long write per column, the
//! last run of a segment together with the segment's directory chunk ([`super::directory`]). Few runs are in flight, so memory is bounded and a slow disk slows the writer down. Where the bytes go is the shard's
//! choice ([`super::lease`]).
//!
//! A writer has a working set: memory for one stripe and its chunk, reserved before its first byte. Longer runs, and
//! runs that are filled while others are written, take more where there is some; where there is none, the writer waits for its own
//! writes and never for another writer.

use std::collections::VecDeque;
use std::rc::Rc;

use basalt_reactor::arena::BUF_LEN_MAX;
use basalt_reactor::disk::BLOCK_LEN;
use basalt_reactor::{Buf, JoinHandle, Slice, WriteMode};

use super::Bodies;
use super::budget::Permit;
use super::directory::{self, Content, DirectoryChunk, DirectoryEntry, Owner};
use super::error::{BodyError, DeviceError, Operation};
use super::layout::{BLOCK_CRC_LEN, Segment, StripeShape, StripedBody};
use super::lease::Leases;
use crate::checksum::crc32c;
use crate::extent::flushes::FlushMark;
use crate::extent::{Column, DiskIndex, ExtentClass, Geometry, Placement};

/// Bytes of a run over all its columns at most (unless a single stripe is longer).
pub const RUN_LEN_MAX: usize = 4 << 20;

/// Runs of one writer whose writes are under way while the next run is filled.
pub const RUNS_IN_FLIGHT_MAX: usize = 2;

/// Body bytes that the first lease of a body of unknown length is for; each further one is for twice as many.
const LEASE_LEN_FIRST: u64 = 1 << 20;
const LEASE_LEN_MAX: u64 = 16 << 20;

/// A body on its way to the disks. Dropping it gives everything back that it took.
pub struct Writer {
    bodies: Rc<Bodies>,
    shape: StripeShape,
    /// Bytes still to come, as far as the caller has said so.
    expected: Option<u64>,
    owner: Owner,
    content: Content,
    /// Where in the whole body the first byte belongs.
    body_offset: u64,
    /// Whether the whole body ends with the last byte.
    reaches_end: bool,
    is_contiguous: bool,
    body: StripedBody,
    segment_blocks: Vec<u32>,
    /// Index of the open segment's first data checksum, and its parity checksums.
    segment_crc: usize,
    parity_crcs: Vec<u32>,
    leases: Leases,
    /// What the open segment lies in.
    lease: Option<OpenLease>,
    lease_len: u64,
    /// The working set; `None` until the first stripe of a writer that was given none.
    memory: Option<Permit>,
    /// A run that is being filled or written lies in the working set.
    memory_lent: bool,
    run: Option<Run>,
    flights: VecDeque<Flight>,
    touched: Vec<(DiskIndex, FlushMark)>,
    failed: Option<BodyError>,
}

/// A body that is durable but has no name yet.
pub struct Written {
    pub body: StripedBody,
    /// Blocks that each segment takes in every column, its directory chunk included.
    pub segment_blocks: Vec<u32>,
    /// Where it lies; released if dropped, so keep them once the record that names the body is handed over.
    pub leases: Leases,
}

/// What is left of the newest lease.
struct OpenLease {
    id: u64,
    placement: Rc<Placement>,
    /// Next free block, and the end of what stripes may take: behind it is room for the chunk.
    block: u32,
    end: u32,
}

/// Stripes being filled: per column one buffer with the run's strips one after the other.
struct Run {
    columns: Vec<Buf>,
    /// For the directory chunk, should the segment end in this run.
    chunk: Buf,
    memory: RunMemory,
    /// Bytes per column in this run when it is full.
    column_len: usize,
    /// Bytes per column of complete stripes.
    filled: usize,
    /// Strip length and body bytes so far of the open stripe.
    strip_len: usize,
    stripe_filled: usize,
}

/// What the buffers of a run are counted against.
enum RunMemory {
    WorkingSet,
    Extra(Permit),
}

/// The writes of a run; each task ends when its write has.
struct Flight {
    in_working_set: bool,
    writes: Vec<JoinHandle<Result<(), BodyError>>>,
}

impl Writer {
    pub(super) fn new(bodies: Rc<Bodies>, content: Content, owner: Owner) -> Writer {
        Writer {
            owner,
            content,
            body_offset: 0,
            reaches_end: true,
            is_contiguous: false,
            shape: StripeShape::new(bodies.files.geometry()),
            expected: None,
            body: StripedBody::default(),
            segment_blocks: Vec::new(),
            segment_crc: 0,
            parity_crcs: Vec::new(),
            leases: Leases::new(Rc::clone(&bodies.lessor)),
            lease: None,
            lease_len: LEASE_LEN_FIRST,
            memory: None,
            memory_lent: false,
            run: None,
            flights: VecDeque::new(),
            touched: Vec::new(),
            failed: None,
            bodies,
        }
    }

    /// Gives the writer its working set, of the length that [`Bodies::writer_len`] says. Without one it waits for it with
    /// the first stripe.
    #[must_use]
    pub fn in_memory(mut self, memory: Option<Permit>) -> Writer {
        self.memory = memory;
        self
    }

    /// Says that `len` more bytes will come. A wrong number costs space or a copy, nothing else.
    pub fn expect(&mut self, len: u64) {
        self.expected = Some(len);
    }

    /// Says that what comes is a part of a longer body, from byte `offset` on, and whether that body's end is in it; before the
    /// first byte.
    #[must_use]
    pub fn at(mut self, offset: u64, reaches_end: bool) -> Writer {
        self.body_offset = offset;
        self.reaches_end = reaches_end;
        self
    }

    /// Puts as much as was announced into one segment; [`BodyError::NoSpace`] is the answer where none is long enough.
    #[must_use]
    pub fn contiguous(mut self) -> Writer {
        self.is_contiguous = true;
        self
    }

    /// Takes the next bytes of the body. Waits for arena memory and for earlier writes, which is the backpressure
    /// that the body's sender feels.
    ///
    /// # Errors
    /// [`BodyError`]; the writer is then of no further use.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), BodyError> {
        self.check_usable()?;
        let result = self.place(bytes).await;
        self.note_failure(result)
    }

    /// Writes what is left and makes all of it durable on every column.
    ///
    /// # Errors
    /// [`BodyError`]; all leases are then released.
    pub async fn finish(self) -> Result<Written, BodyError> {
        Ok(self.finish_and_keep().await?.0)
    }

    /// As [`Writer::finish`], and hands the working set on to the writer that comes next.
    ///
    /// # Errors
    /// As [`Writer::finish`].
    pub async fn finish_and_keep(mut self) -> Result<(Written, Option<Permit>), BodyError> {
        self.check_usable()?;
        self.end_last_stripe();
        self.send_run(true)?;
        self.end_segment(true).await?;
        while !self.flights.is_empty() {
            self.land_oldest().await?;
        }
        self.sync().await?;
        let written = Written {
            body: std::mem::take(&mut self.body),
            segment_blocks: std::mem::take(&mut self.segment_blocks),
            leases: self.leases.take(),
        };
        Ok((written, self.memory.take()))
    }

    fn check_usable(&self) -> Result<(), BodyError> {
        match &self.failed {
            Some(first) => Err(BodyError::Failed(Box::new(first.clone()))),
            None => Ok(()),
        }
    }

    fn note_failure(&mut self, result: Result<(), BodyError>) -> Result<(), BodyError> {
        if let Err(error) = &result {
            self.failed = Some(error.clone());
        }
        result
    }

    async fn place(&mut self, mut bytes: &[u8]) -> Result<(), BodyError> {
        while !bytes.is_empty() {
            if self.expected == Some(0) {
                // More comes than was announced.
                self.expected = None;
            }
            if self.run.is_none() {
                self.open_lease().await?;
                self.open_run().await?;
            }
            let run = self.run.as_mut().expect("just opened");
            let taken = run.fill(self.shape.k() as usize, bytes);
            bytes = &bytes[taken..];
            self.expected = self.expected.map(|rest| rest.saturating_sub(taken as u64));
            if run.stripe_filled == run.strip_len * self.shape.k() as usize {
                self.end_stripe();
                if self.run.as_ref().is_some_and(Run::is_full) {
                    self.send_run(false)?;
                    while self.flights.len() > RUNS_IN_FLIGHT_MAX {
                        self.land_oldest().await?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Bytes that surely come, if any are known to.
    fn rest(&self) -> Option<u64> {
        self.expected.filter(|&rest| rest > 0)
    }

    /// Strip length of the next stripe, as far as one can know.
    fn next_strip_len(&self) -> u64 {
        match self.rest() {
            Some(rest) if rest < self.shape.stripe_len() => self.shape.short_strip_len(rest),
            _ => self.shape.strip_len(),
        }
    }

    /// Makes sure that the open lease has room for a stripe.
    async fn open_lease(&mut self) -> Result<(), BodyError> {
        let strip_len = self.next_strip_len();
        if self.lease.as_ref().is_some_and(|lease| lease.room() >= strip_len) {
            return Ok(());
        }
        self.end_segment(false).await?;
        let most = directory::segment_column_len_max(self.bodies.files.geometry());
        let wanted = match self.rest() {
            Some(rest) => self.shape.column_len(rest),
            None => {
                let len = self.lease_len.next_multiple_of(self.shape.stripe_len());
                self.lease_len = (self.lease_len * 2).min(LEASE_LEN_MAX);
                self.shape.column_len(len)
            }
        };
        let blocks_max = self.blocks_with_chunk(wanted.min(most));
        let blocks_min = if self.is_contiguous { blocks_max } else { self.blocks_with_chunk(strip_len) };
        let lease = self.bodies.lessor.lease(blocks_min, blocks_max).await?;
        self.leases.push(lease.id);
        let placement = lease.placement;
        assert!(
            (blocks_min..=blocks_max).contains(&lease.blocks)
                && placement.columns.len() == self.bodies.files.geometry().columns(),
            "a lease of {} blocks of {placement:?}, asked for {blocks_min} to {blocks_max}",
            lease.blocks
        );
        let files = &self.bodies.files;
        let is_there = |column: &&Column| files.locate(ExtentClass::Data, **column).is_some();
        let (there, absent): (Vec<&Column>, Vec<&Column>) = placement.columns.iter().partition(is_there);
        if let Some(column) = absent.first()
            && there.len() < usize::from(files.geometry().k)
        {
            return Err(BodyError::Absent { disk: column.disk, extent: placement.id });
        }
        for column in there {
            if !self.touched.iter().any(|(disk, _)| *disk == column.disk) {
                self.touched.push((column.disk, self.bodies.syncs.mark(column.disk)));
            }
        }
        let lent = u64::from(lease.blocks) * BLOCK_LEN as u64;
        let room = directory::stripes_room(self.bodies.files.geometry(), self.owner.name.len(), lent);
        self.body.segments.push(Segment { extent: placement.id, block: lease.block, len: 0 });
        self.segment_crc = self.body.crcs.len();
        let end = lease.block + blocks(room);
        self.lease = Some(OpenLease { id: lease.id, placement, block: lease.block, end });
        Ok(())
    }

    /// Bytes of the chunk of a segment that takes `column_len` bytes in every column.
    fn chunk_len(&self, column_len: u64) -> u64 {
        directory::chunk_len(self.bodies.files.geometry(), self.owner.name.len(), column_len)
    }

    /// Blocks of a segment that takes `column_len` bytes in every column, its chunk included.
    fn blocks_with_chunk(&self, column_len: u64) -> u32 {
        blocks(column_len + self.chunk_len(column_len))
    }

    /// Takes memory for as many stripes as lease, expected length and memory allow.
    async fn open_run(&mut self) -> Result<(), BodyError> {
        let lease = self.lease.as_ref().expect("leased before");
        let segment = self.body.segments.last().expect("a lease is for a segment");
        let sent = u64::from(lease.block - segment.block) * BLOCK_LEN as u64;
        let room = lease.room();
        let room = self.rest().map_or(room, |rest| room.min(self.shape.column_len(rest)));
        let strip_len = self.shape.strip_len();
        let columns = self.bodies.files.geometry().columns();
        let fitting = |limit: u64| if room <= limit { room } else { limit / strip_len * strip_len };
        let shortest = room.min(strip_len);
        let longest = fitting(run_column_len(columns)).max(shortest);
        // A run that could end in the middle of nothing holds whole strips, unless the body ends in it.
        let ends_here = self.rest().is_some_and(|rest| longest == self.shape.column_len(rest));
        let longest = if ends_here { longest } else { (longest / strip_len * strip_len).max(shortest) };

        let chunk_len = |writer: &Writer, column_len: u64| writer.chunk_len(sent + column_len);
        let taken = |writer: &Writer, column_len: u64| {
            columns * buf_len(column_len) + buf_len(chunk_len(writer, column_len))
        };
        // A short body has no use for more than its working set.
        let wants_extra = longest > shortest || self.memory_lent;
        let extra = wants_extra.then(|| self.bodies.core.budget.try_extra(taken(self, longest))).flatten();
        let (mut column_len, memory) = match extra {
            Some(permit) => (longest, RunMemory::Extra(permit)),
            // When memory is short, many writers with a stripe each get further than few with a run each.
            None => (shortest, self.take_memory(taken(self, shortest)).await?),
        };
        let arena = self.bodies.core.core.arena();
        let bufs = loop {
            let bufs: Option<Vec<Buf>> = (0..columns).map(|_| arena.try_alloc(column_len as usize)).collect();
            if let Some(bufs) = bufs {
                break bufs;
            }
            if column_len <= shortest {
                let mut bufs = Vec::with_capacity(columns);
                for _ in 0..columns {
                    bufs.push(arena.alloc(column_len as usize).await);
                }
                break bufs;
            }
            column_len = (column_len / 2 / strip_len * strip_len).max(shortest);
            if let RunMemory::Extra(permit) = &memory {
                permit.shrink(taken(self, column_len));
            }
        };
        let chunk = arena.alloc(chunk_len(self, column_len) as usize).await;
        self.run = Some(Run {
            columns: bufs,
            chunk,
            memory,
            column_len: column_len as usize,
            filled: 0,
            strip_len: strip_len.min(column_len) as usize,
            stripe_filled: 0,
        });
        Ok(())
    }

    /// Finds memory of `len` bytes, which is no more than a stripe and its chunk: beyond the working set if there is some
    /// to spare and the working set is in use, else in the working set, once the writes that lie in it have landed.
    async fn take_memory(&mut self, len: usize) -> Result<RunMemory, BodyError> {
        if self.memory_lent {
            if let Some(permit) = self.bodies.core.budget.try_extra(len) {
                return Ok(RunMemory::Extra(permit));
            }
            while self.memory_lent && !self.flights.is_empty() {
                self.land_oldest().await?;
            }
        }
        // More came than was announced: the whole is reserved anew, so that nothing is held while waiting.
        if self.memory.as_ref().is_some_and(|permit| permit.len() < len && !permit.is_whole_budget()) {
            while !self.flights.is_empty() {
                self.land_oldest().await?;
            }
            self.memory = None;
        }
        if self.memory.is_none() {
            let working_len = self.bodies.writer_len(self.rest(), self.owner.name.len()).max(len);
            self.memory = Some(self.bodies.core.budget.reserve(working_len).await);
        }
        self.memory_lent = true;
        Ok(RunMemory::WorkingSet)
    }

    /// Checksums and encodes the open stripe, which is full or padded.
    fn end_stripe(&mut self) {
        let Some(run) = &mut self.run else { return };
        let (at, len) = (run.filled, run.strip_len);
        let k = self.shape.k() as usize;
        self.bodies.core.codec.borrow_mut().encode(&mut run.columns, at, len);
        for (column, buf) in run.columns.iter().enumerate() {
            let crcs = if column < k { &mut self.body.crcs } else { &mut self.parity_crcs };
            crcs.extend(buf[at..at + len].chunks(BLOCK_CRC_LEN as usize).map(crc32c));
        }
        let segment = self.body.segments.last_mut().expect("a run lies in a segment");
        segment.len += run.stripe_filled as u64;
        self.body.len += run.stripe_filled as u64;
        run.filled += len;
        run.stripe_filled = 0;
        run.strip_len = run.strip_len.min(run.column_len - run.filled);
        if len < self.shape.strip_len() as usize {
            // A short stripe is the last of its segment.
            run.column_len = run.filled;
        }
    }

    /// Pads the open stripe and gives its strips the length that its bytes need.
    fn end_last_stripe(&mut self) {
        let Some(run) = &mut self.run else { return };
        if run.stripe_filled == 0 {
            return;
        }
        let strip_len = self.shape.short_strip_len(run.stripe_filled as u64) as usize;
        run.narrow(self.shape.k() as usize, strip_len);
        self.end_stripe();
    }

    /// Starts the writes of the open run, one per column. When the segment ends with it, which is known if nothing more
    /// comes or fits, its chunk is part of the same writes.
    fn send_run(&mut self, is_last: bool) -> Result<(), BodyError> {
        let Some(run) = self.run.take().filter(|run| run.filled > 0) else { return Ok(()) };
        let next_strip_len = self.next_strip_len();
        let lease = self.lease.as_mut().expect("a run lies in a lease");
        let block = lease.block;
        lease.block += blocks(run.filled as u64);
        assert!(lease.block <= lease.end, "a run beyond its lease");
        self.leases.count(blocks(run.filled as u64));
        let is_last = is_last || self.expected == Some(0);
        // Behind a short stripe no other can follow in the same segment.
        let is_short = !(run.filled as u64).is_multiple_of(self.shape.strip_len());
        let placement = Rc::clone(&lease.placement);
        // Where nobody knows whether more comes, the chunk waits for it: it says whether the body ends here.
        let is_full = self.expected.is_some() && lease.room() < next_strip_len;
        let ends = is_last || is_short || is_full;
        let chunk = if ends { self.seal_segment(run.chunk, is_last) } else { None };
        let columns = run.columns.into_iter().map(|mut buf| {
            buf.set_len(run.filled);
            std::iter::once(buf.freeze()).chain(chunk.clone()).collect()
        });
        self.send(&placement, block, columns.collect(), run.memory)
    }

    /// Ends the open segment, if there is one, whose stripes are all on their way.
    async fn end_segment(&mut self, is_last: bool) -> Result<(), BodyError> {
        let Some(lease) = &self.lease else { return Ok(()) };
        let (placement, block) = (Rc::clone(&lease.placement), lease.block);
        let segment = self.body.segments.last().expect("a lease is for a segment");
        let len = self.chunk_len(u64::from(block - segment.block) * BLOCK_LEN as u64);
        let memory = self.take_memory(buf_len(len)).await?;
        let buf = self.bodies.core.core.arena().alloc(len as usize).await;
        let Some(chunk) = self.seal_segment(buf, is_last) else {
            self.memory_lent &= !matches!(memory, RunMemory::WorkingSet);
            return Ok(());
        };
        let columns = placement.columns.iter().map(|_| vec![chunk.clone()]).collect();
        self.send(&placement, block, columns, memory)
    }

    /// Closes the open segment and its lease: its directory chunk, ready to be written behind its last stripe.
    fn seal_segment(&mut self, mut buf: Buf, is_last: bool) -> Option<Slice> {
        let lease = self.lease.take()?;
        let segment = self.body.segments.last().filter(|segment| segment.len > 0)?;
        let entry = DirectoryEntry {
            block: segment.block,
            len: segment.len,
            body_offset: self.body_offset + self.body.len - segment.len,
            last: is_last && self.reaches_end,
            data_crcs: self.body.crcs[self.segment_crc..].to_vec(),
            parity_crcs: std::mem::take(&mut self.parity_crcs),
            content: self.content,
            owner: self.owner.clone(),
        };
        let chunk = DirectoryChunk {
            block: lease.block,
            epoch: self.bodies.origin.epoch,
            lease: lease.id,
            placement: (*lease.placement).clone(),
            entries: vec![entry],
        };
        let bytes = chunk.encode(&self.bodies.origin);
        buf.set_len(bytes.len());
        buf.copy_from_slice(&bytes);
        self.leases.count(blocks(bytes.len() as u64));
        self.segment_blocks.push(lease.block - segment.block + blocks(bytes.len() as u64));
        Some(buf.freeze())
    }

    /// Starts one write per column, of `columns` from `block` on.
    fn send(
        &mut self,
        placement: &Placement,
        block: u32,
        columns: Vec<Vec<Slice>>,
        memory: RunMemory,
    ) -> Result<(), BodyError> {
        let extent = placement.id;
        let offset = u64::from(block) * BLOCK_LEN as u64;
        let in_working_set = matches!(memory, RunMemory::WorkingSet);
        let memory = Rc::new(memory);
        let mut writes = Vec::with_capacity(columns.len());
        let core = &self.bodies.core.core;
        for (column, bytes) in placement.columns.iter().zip(columns) {
            let disk = column.disk;
            // What is left of the set takes the body; the members see to it that this is enough.
            let Some((file, origin)) = self.bodies.files.locate(ExtentClass::Data, *column) else { continue };
            let (files, other, memory) = (Rc::clone(&self.bodies.files), core.clone(), Rc::clone(&memory));
            writes.push(core.spawn(async move {
                let write = async move {
                    let result = file.write_vectored_at(bytes, origin + offset, WriteMode::Volatile).await;
                    drop(memory);
                    result
                };
                files.carry_out(&other, disk, write).await.map(drop).map_err(|error| BodyError::Device {
                    operation: Operation::Write,
                    disk,
                    extent,
                    error: DeviceError::from(&error),
                })
            }));
        }
        self.bodies.column_writes.set(self.bodies.column_writes.get() + writes.len() as u64);
        self.flights.push_back(Flight { in_working_set, writes });
        Ok(())
    }

    async fn land_oldest(&mut self) -> Result<(), BodyError> {
        let Some(flight) = self.flights.front_mut() else { return Ok(()) };
        flight.land().await?;
        let flight = self.flights.pop_front();
        if flight.is_some_and(|flight| flight.in_working_set) {
            self.memory_lent = false;
        }
        Ok(())
    }

    async fn sync(&self) -> Result<(), BodyError> {
        // All are asked for before the first is awaited: the disks flush side by side.
        let syncs: Vec<_> =
            self.touched.iter().map(|&(disk, mark)| (disk, self.bodies.syncs.sync(disk, mark))).collect();
        let extent = self.body.segments.last().map(|segment| segment.extent);
        for (disk, sync) in syncs {
            sync.await.map_err(|error| BodyError::Device {
                operation: Operation::Sync,
                disk,
                extent: extent.expect("a disk is touched for a segment"),
                error,
            })?;
        }
        Ok(())
    }
}

impl Drop for Writer {
    /// Blocks are given back only when no write to them is under way any more: their next owner must not be
    /// overwritten by a late one.
    fn drop(&mut self) {
        let (leases, memory) = (self.leases.take(), self.memory.take());
        let flights = std::mem::take(&mut self.flights);
        if flights.is_empty() {
            return;
        }
        drop(self.bodies.core.core.spawn(async move {
            for mut flight in flights {
                while flight.land().await.is_err() {}
            }
            drop((leases, memory));
        }));
    }
}

impl OpenLease {
    /// Bytes left in every column.
    fn room(&self) -> u64 {
        u64::from(self.end - self.block) * BLOCK_LEN as u64
    }
}

impl Run {
    fn is_full(&self) -> bool {
        self.filled == self.column_len
    }

    /// Copies bytes into the open stripe; returns how many fitted.
    fn fill(&mut self, k: usize, bytes: &[u8]) -> usize {
        let mut taken = 0;
        while taken < bytes.len() && self.stripe_filled < k * self.strip_len {
            let (strip, at) = (self.stripe_filled / self.strip_len, self.stripe_filled % self.strip_len);
            let len = (self.strip_len - at).min(bytes.len() - taken);
            let start = self.filled + at;
            self.columns[strip][start..start + len].copy_from_slice(&bytes[taken..taken + len]);
            taken += len;
            self.stripe_filled += len;
        }
        taken
    }

    /// Lays the open stripe out anew with shorter strips, and pads it with zeros.
    fn narrow(&mut self, k: usize, strip_len: usize) {
        let (old_len, len, at) = (self.strip_len, self.stripe_filled, self.filled);
        debug_assert!(strip_len <= old_len && k * strip_len >= len);
        // From the last strip down: every strip takes bytes only from itself and from those before it.
        for strip in (0..k).rev() {
            let (start, end) = ((strip * strip_len).min(len), ((strip + 1) * strip_len).min(len));
            let mut to_end = if strip_len == old_len { start } else { end };
            while to_end > start {
                let from = (to_end - 1) / old_len;
                let from_start = start.max(from * old_len);
                let source = at + from_start - from * old_len..at + to_end - from * old_len;
                let target = at + from_start - strip * strip_len;
                if from == strip {
                    self.columns[strip].copy_within(source, target);
                } else {
                    let (before, after) = self.columns.split_at_mut(strip);
                    after[0][target..target + source.len()].copy_from_slice(&before[from][source]);
                }
                to_end = from_start;
            }
            self.columns[strip][at + end - start..at + strip_len].fill(0);
        }
        self.strip_len = strip_len;
    }
}

impl Flight {
    /// Waits for the writes one by one; after an error, call again for the rest.
    async fn land(&mut self) -> Result<(), BodyError> {
        while let Some(write) = self.writes.last_mut() {
            let result = write.await;
            self.writes.pop();
            // A write task ends by itself alone; `None` would say that it was cancelled.
            result.unwrap_or(Err(BodyError::Closed))?;
        }
        Ok(())
    }
}

/// What [`Bodies::writer_len`] says: buffers for one stripe, and for the chunk of the longest segment the body can have.
pub(super) fn working_len(geometry: &Geometry, expected: Option<u64>, name_len: usize) -> usize {
    let shape = StripeShape::new(geometry);
    let (strip_len, column_len) = match expected {
        Some(len) if len < shape.stripe_len() => {
            (shape.short_strip_len(len.max(1)), shape.column_len(len.max(1)))
        }
        Some(len) => (shape.strip_len(), shape.column_len(len)),
        None => (shape.strip_len(), u64::MAX),
    };
    let column_len = column_len.min(directory::segment_column_len_max(geometry));
    let chunk_len = directory::chunk_len(geometry, name_len, column_len);
    geometry.columns() * buf_len(strip_len) + buf_len(chunk_len)
}

/// Bytes per column of a run over `columns` columns: a power of two, as that is what arena buffers are.
fn run_column_len(columns: usize) -> u64 {
    let share = (RUN_LEN_MAX / columns).min(BUF_LEN_MAX);
    1 << share.ilog2()
}

/// `bytes`, whole blocks of a column, in blocks.
fn blocks(bytes: u64) -> u32 {
    u32::try_from(bytes / BLOCK_LEN as u64).expect("a column has less than 2^32 blocks")
}

/// What a buffer for `len` bytes takes from the arena.
pub(super) fn buf_len(len: u64) -> usize {
    (len as usize).next_power_of_two().max(BLOCK_LEN)
}
