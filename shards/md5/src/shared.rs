//! The streams of one core, whose bytes wait for each other for a while.
//!
//! Bytes arrive stream by stream and a lane has room for one stream, so a stream may run ahead of its chain: its pieces
//! are kept (they are shared, not copied) until it has as many as it may have, and then it takes along whoever else has
//! some. What is due is decided by numbers alone; nobody waits for bytes that have not arrived.
//!
//! - A stream that is alone is computed at once, while its bytes are in the cache; but a short one keeps its bytes to its end,
//!   since it would be over before another begins.
//! - A stream that holds more than [`LAG_MAX`] advances by half of what it has, together with the streams that have
//!   most. Streams of one speed so come to share every run.
//! - When all of them hold more than [`HELD_MAX`], those that hold most advance until half of it is gone.
//! - A stream whose owner asks for it ([`Stream::ask`]) advances to its end when that owner, or another that has asked
//!   too, catches up. Whoever gives others a chance to ask in between, by one turn of its executor, shares the lanes
//!   with all that end in that turn.
//!
//! A stream that is dropped takes its pieces with it; nothing refers to it any more.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use slab::Slab;

use crate::kernel::{BLOCK_LEN, Block, Kernel, LANES, State};
use crate::md5::Md5;
use crate::together::{Source, advance_all};

/// Bytes that one stream holds while it runs ahead of its chain.
pub const LAG_MAX: usize = 128 << 10;

/// Bytes that all streams of one core hold.
pub const HELD_MAX: usize = 2 << 20;

/// What a piece counts at least: a short one keeps the whole buffer that it was received into.
pub const PIECE_COST_MIN: usize = 16 << 10;

/// The streams of one core. Cloning shares them. What the end of a piece runs must not come back here.
pub struct Streams<P>(Rc<RefCell<Shared<P>>>);

/// One stream of bytes in pieces of `P`.
pub struct Stream<P: AsRef<[u8]>> {
    streams: Streams<P>,
    key: usize,
    short: bool,
}

struct Shared<P> {
    kernel: Kernel,
    streams: Slab<Option<Pending<P>>>,
    /// Keys of streams with blocks that wait, in no order; each knows its place here.
    busy: Vec<usize>,
    /// What all of them hold.
    held: usize,
    /// Kept for its memory.
    chosen: Vec<Chosen<P>>,
}

/// A stream that takes part in a run; away from its place meanwhile.
struct Chosen<P> {
    key: usize,
    pending: Pending<P>,
    /// Blocks that it may advance by.
    quota: usize,
}

struct Pending<P> {
    md5: Md5,
    segments: VecDeque<Segment<P>>,
    /// Blocks in the segments.
    blocks: usize,
    /// What the segments hold.
    held: usize,
    asked: bool,
    /// The padding is among the segments, or was.
    padded: bool,
    /// Where `busy` names this stream.
    busy_at: Option<usize>,
}

enum Segment<P> {
    /// A block that spans pieces, or padding.
    Block(Block),
    /// `count` blocks of a piece, from byte `start` on.
    Piece { piece: P, start: usize, count: usize },
}

impl<P> Clone for Streams<P> {
    fn clone(&self) -> Self {
        Streams(Rc::clone(&self.0))
    }
}

impl<P: AsRef<[u8]>> Streams<P> {
    /// No streams yet, to be computed by `kernel`.
    #[must_use]
    pub fn new(kernel: Kernel) -> Streams<P> {
        Streams(Rc::new(RefCell::new(Shared {
            kernel,
            streams: Slab::new(),
            busy: Vec::new(),
            held: 0,
            chosen: Vec::new(),
        })))
    }

    /// A new stream without bytes.
    #[must_use]
    pub fn stream(&self) -> Stream<P> {
        self.begin(false)
    }

    /// A new stream that will have few bytes, and whose owner gives others a turn between its end and its digest.
    #[must_use]
    pub fn short_stream(&self) -> Stream<P> {
        self.begin(true)
    }

    fn begin(&self, short: bool) -> Stream<P> {
        let key = self.0.borrow_mut().streams.insert(Some(Pending::new()));
        Stream { streams: self.clone(), key, short }
    }

    /// What all streams hold, in bytes: never more than [`HELD_MAX`].
    #[must_use]
    pub fn held(&self) -> usize {
        self.0.borrow().held
    }
}

impl<P: AsRef<[u8]>> Stream<P> {
    /// Takes the next piece. It may be kept for a while.
    pub fn update(&mut self, piece: P) {
        let mut shared = self.streams.0.borrow_mut();
        if shared.streams.len() == 1 && !self.short {
            shared.catch_up(self.key);
            shared.pending(self.key).md5.update(piece.as_ref());
            return;
        }
        let pending = shared.pending(self.key);
        let held_before = pending.held;
        pending.keep(piece);
        let (held, blocks) = (pending.held, pending.blocks);
        shared.held += held - held_before;
        shared.note_busy(self.key);
        if held > LAG_MAX {
            shared.lead(self.key, blocks.div_ceil(2));
        }
        if shared.held > HELD_MAX {
            shared.relieve();
        }
    }

    /// Whether waiting for a turn may fill lanes: other streams are under way on this core, or this one is short.
    #[must_use]
    pub fn may_share(&self) -> bool {
        self.short || self.streams.0.borrow().streams.len() > 1
    }

    /// Says that all bytes so far are wanted, or are to be let go, by the end of this turn. The next stream that catches
    /// up takes this one along.
    pub fn ask(&mut self) {
        self.streams.0.borrow_mut().pending(self.key).asked = true;
    }

    /// Computes all bytes so far; afterwards no piece is kept.
    pub fn catch_up(&mut self) {
        self.streams.0.borrow_mut().catch_up(self.key);
    }

    /// No more bytes will come. As [`Stream::ask`], for the digest.
    #[must_use]
    pub fn end(self) -> Ended<P> {
        {
            let mut shared = self.streams.0.borrow_mut();
            if shared.streams.len() > 1 || self.short {
                let pending = shared.pending(self.key);
                let held_before = pending.held;
                pending.pad();
                pending.asked = true;
                let held = pending.held;
                shared.held += held - held_before;
                shared.note_busy(self.key);
            }
        }
        Ended(self)
    }
}

/// A stream that has all its bytes.
pub struct Ended<P: AsRef<[u8]>>(Stream<P>);

impl<P: AsRef<[u8]>> Ended<P> {
    /// As [`Stream::may_share`].
    #[must_use]
    pub fn may_share(&self) -> bool {
        self.0.may_share()
    }

    #[must_use]
    pub fn digest(self) -> [u8; 16] {
        let mut shared = self.0.streams.0.borrow_mut();
        shared.catch_up(self.0.key);
        let pending = shared.pending(self.0.key);
        if pending.padded { pending.md5.digest() } else { pending.md5.clone().finalize() }
    }
}

impl<P: AsRef<[u8]>> Drop for Stream<P> {
    fn drop(&mut self) {
        self.streams.0.borrow_mut().remove(self.key);
    }
}

impl<P: AsRef<[u8]>> Shared<P> {
    fn pending(&mut self, key: usize) -> &mut Pending<P> {
        self.streams[key].as_mut().expect("a stream is away from its place only within a run")
    }

    fn remove(&mut self, key: usize) {
        let Some(pending) = self.streams.remove(key) else { return };
        self.held -= pending.held;
        if let Some(at) = pending.busy_at {
            self.leave_busy(at);
        }
    }

    fn note_busy(&mut self, key: usize) {
        let at = self.busy.len();
        let pending = self.pending(key);
        if pending.blocks > 0 && pending.busy_at.is_none() {
            pending.busy_at = Some(at);
            self.busy.push(key);
        }
    }

    fn leave_busy(&mut self, at: usize) {
        self.busy.swap_remove(at);
        if let Some(&moved) = self.busy.get(at) {
            self.pending(moved).busy_at = Some(at);
        }
    }

    /// Advances `leader` by `quota` blocks, and by as many those that have most to share its lanes with.
    fn lead(&mut self, leader: usize, quota: usize) {
        self.choose(leader, quota);
        self.add_riders(quota);
        self.run();
    }

    /// Advances whoever asked to the end, if `key` has something left.
    fn catch_up(&mut self, key: usize) {
        if self.pending(key).blocks == 0 {
            return;
        }
        self.choose(key, usize::MAX);
        for at in (0..self.busy.len()).rev() {
            // A chosen one leaves; those behind it have had their turn.
            let key = self.busy[at];
            if self.pending(key).asked {
                self.choose(key, usize::MAX);
            }
        }
        self.chosen.sort_unstable_by_key(|chosen| std::cmp::Reverse(chosen.pending.blocks));
        let longest = self.chosen[0].pending.blocks;
        self.add_riders(longest);
        self.run();
    }

    /// Advances those that hold most to their end, until half of what is held is gone.
    fn relieve(&mut self) {
        let mut by_held: Vec<(usize, usize)> =
            self.busy.iter().map(|&key| (self.streams[key].as_ref().map_or(0, |p| p.held), key)).collect();
        by_held.sort_unstable_by_key(|entry| std::cmp::Reverse(*entry));
        let target = self.held / 2;
        for (_, key) in by_held {
            if self.held <= target {
                break;
            }
            self.choose(key, usize::MAX);
        }
        self.run();
    }

    /// Fills lanes that are free with the streams that have most blocks, each for at most `quota` of them.
    fn add_riders(&mut self, quota: usize) {
        let free = LANES.saturating_sub(self.chosen.len());
        if self.busy.len() > free {
            let mut by_blocks: Vec<(usize, usize)> = self
                .busy
                .iter()
                .map(|&key| (self.streams[key].as_ref().map_or(0, |p| p.blocks), key))
                .collect();
            by_blocks.sort_unstable_by_key(|entry| std::cmp::Reverse(*entry));
            by_blocks.truncate(free);
            by_blocks.into_iter().for_each(|(_, key)| self.choose(key, quota));
        } else {
            while let Some(&key) = self.busy.last() {
                self.choose(key, quota);
            }
        }
    }

    /// Takes a stream that has blocks from its place for the next run.
    fn choose(&mut self, key: usize, quota: usize) {
        let mut pending = self.streams[key].take().expect("chosen once");
        if let Some(at) = pending.busy_at.take() {
            self.leave_busy(at);
        }
        self.held -= pending.held;
        let quota = quota.min(pending.blocks);
        self.chosen.push(Chosen { key, pending, quota });
    }

    /// Advances the chosen streams and puts them back.
    fn run(&mut self) {
        let mut chosen = std::mem::take(&mut self.chosen);
        advance_all(self.kernel, &mut chosen);
        for Chosen { key, mut pending, .. } in chosen.drain(..) {
            pending.asked &= pending.blocks > 0;
            self.held += pending.held;
            self.streams[key] = Some(pending);
            self.note_busy(key);
        }
        self.chosen = chosen;
    }
}

impl<P: AsRef<[u8]>> Pending<P> {
    fn new() -> Pending<P> {
        Pending {
            md5: Md5::new(),
            segments: VecDeque::new(),
            blocks: 0,
            held: 0,
            asked: false,
            padded: false,
            busy_at: None,
        }
    }

    fn keep(&mut self, piece: P) {
        let cut = self.md5.cut(piece.as_ref());
        if let Some(block) = cut.filled {
            self.push(Segment::Block(block));
        }
        if !cut.whole.is_empty() {
            let count = cut.whole.len() / BLOCK_LEN;
            self.push(Segment::Piece { piece, start: cut.whole.start, count });
        }
    }

    fn pad(&mut self) {
        let (blocks, count) = self.md5.padding();
        for block in &blocks[..count] {
            self.push(Segment::Block(*block));
        }
        self.padded = true;
    }

    fn push(&mut self, segment: Segment<P>) {
        self.blocks += segment.count();
        self.held += segment.cost();
        self.segments.push_back(segment);
    }
}

impl<P: AsRef<[u8]>> Segment<P> {
    fn count(&self) -> usize {
        match self {
            Segment::Block(_) => 1,
            Segment::Piece { count, .. } => *count,
        }
    }

    /// What it holds as long as it has a block left.
    fn cost(&self) -> usize {
        match self {
            Segment::Block(_) => BLOCK_LEN,
            Segment::Piece { piece, .. } => piece.as_ref().len().max(PIECE_COST_MIN),
        }
    }

    fn blocks(&self) -> &[Block] {
        match self {
            Segment::Block(block) => std::slice::from_ref(block),
            Segment::Piece { piece, start, count } => {
                piece.as_ref()[*start..*start + count * BLOCK_LEN].as_chunks().0
            }
        }
    }
}

impl<P: AsRef<[u8]>> Source for Chosen<P> {
    fn state(&self) -> State {
        self.pending.md5.state
    }

    fn set_state(&mut self, state: State) {
        self.pending.md5.state = state;
    }

    fn front(&self) -> &[Block] {
        let blocks = self.pending.segments.front().map_or(&[][..], Segment::blocks);
        &blocks[..blocks.len().min(self.quota)]
    }

    fn consume(&mut self, taken: usize) {
        self.quota -= taken;
        self.pending.blocks -= taken;
        match self.pending.segments.front_mut() {
            Some(Segment::Piece { start, count, .. }) if *count > taken => {
                *start += taken * BLOCK_LEN;
                *count -= taken;
            }
            _ => {
                if let Some(done) = self.pending.segments.pop_front() {
                    self.pending.held -= done.cost();
                }
            }
        }
    }
}
