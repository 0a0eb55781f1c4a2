//! The content of one simulated file: what reads see, what stable media hold, and everything between.
//!
//! Stable content is a sparse map of blocks. Above it, a block that was written since the last sync has a list of
//! versions in the order in which they reached the device; a version covers some sectors of the block. A read sees
//! the last version of each sector. A sync moves versions down to stable content; a power cut lets each sector fall
//! back to any older version. Writes in flight are kept apart and may show sector by sector before they complete.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use crate::disk::{BLOCK_LEN, WriteMode};
use crate::sim::random::Random;

/// Un-synced versions a block keeps. Beyond it the oldest goes to stable media, as if the device had written its
/// cache back.
pub(super) const VERSIONS_MAX: usize = 16;

/// Completion stamp of a version that no sync may count on: its write is in flight or failed.
const NEVER: u64 = u64::MAX;

/// Content of a block; `None` is all zeros.
type Page = Option<Rc<[u8; BLOCK_LEN]>>;

/// A sector that the medium cannot read; the read fails with EIO.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unreadable;

#[derive(Clone)]
pub(super) struct Media {
    sector_len: usize,
    stable: BTreeMap<u64, Page>,
    unsynced: BTreeMap<u64, Vec<Version>>,
    in_flight: BTreeMap<u64, Flight>,
    /// Sector numbers that fail to read until they are written again.
    unreadable: BTreeSet<u64>,
    len: u64,
    len_stable: u64,
    /// Lengths since `len_stable` was, with the stamp of the operation that made each.
    lens: Vec<(u64, u64)>,
    /// Counts completions, to tell what a sync that started earlier covers.
    stamp: u64,
}

#[derive(Clone)]
struct Version {
    write: u64,
    page: Page,
    /// Bit per sector of the block.
    mask: u8,
    completed: u64,
}

#[derive(Clone)]
struct Flight {
    block_first: u64,
    pages: Vec<Page>,
    /// Per block, the sectors that already show.
    applied: Vec<u8>,
    started: u64,
}

/// Which sectors of one write survive an interruption.
enum Fate {
    Whole,
    Lost,
    Before(u64),
    From(u64),
    Scattered,
}

impl Media {
    pub(super) fn new(sector_len: usize) -> Media {
        let sectors = BLOCK_LEN / sector_len;
        assert!((1..=8).contains(&sectors) && BLOCK_LEN.is_multiple_of(sector_len), "sector length");
        Media {
            sector_len,
            stable: BTreeMap::new(),
            unsynced: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            unreadable: BTreeSet::new(),
            len: 0,
            len_stable: 0,
            lens: Vec::new(),
            stamp: 0,
        }
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// What a sync that starts now may make durable.
    pub(super) fn stamp(&self) -> u64 {
        self.stamp
    }

    pub(super) fn grow(&mut self, len: u64) {
        if len > self.len {
            self.stamp += 1;
            self.len = len;
            self.lens.push((len, self.stamp));
        }
    }

    pub(super) fn begin_write<'a>(&mut self, write: u64, offset: u64, data: impl Iterator<Item = &'a [u8]>) {
        let pages: Vec<Page> = data.flat_map(|part| part.chunks_exact(BLOCK_LEN)).map(page_of).collect();
        let applied = vec![0; pages.len()];
        let block_first = offset / BLOCK_LEN as u64;
        self.in_flight.insert(write, Flight { block_first, pages, applied, started: self.stamp });
    }

    pub(super) fn finish_write(&mut self, write: u64, mode: WriteMode, random: &mut Random) {
        let Some((first, end)) = self.span(write) else { return };
        self.interleave(first, end, Some(write), random);
        for block in first..end {
            self.apply(write, block, u8::MAX);
        }
        let started = self.in_flight.remove(&write).map_or(0, |flight| flight.started);
        self.complete(write, first, end);
        let len = end * BLOCK_LEN as u64;
        self.grow(len);
        if mode == WriteMode::Stable {
            for block in first..end {
                self.settle(block, |version| version.write == write);
            }
            self.settle_len(started, len);
        }
    }

    /// The device failed the write: any sector of it may have arrived, and no later sync is to be relied on.
    pub(super) fn fail_write(&mut self, write: u64, random: &mut Random) {
        let Some((first, end)) = self.span(write) else { return };
        for block in first..end.min(self.block_end()) {
            let mask = random.next_u64() as u8;
            self.apply(write, block, mask);
        }
        self.in_flight.remove(&write);
        self.forget_beyond_end(write, first, end);
    }

    /// Nothing of the write happened, for lack of space.
    pub(super) fn refuse_write(&mut self, write: u64) {
        let Some((first, end)) = self.span(write) else { return };
        self.in_flight.remove(&write);
        self.forget_beyond_end(write, first, end);
    }

    /// The write of a killed process reaches the device, whole, in part or not at all.
    pub(super) fn land_late(&mut self, write: u64, mode: WriteMode, random: &mut Random) {
        let Some((first, end)) = self.span(write) else { return };
        let sectors = self.sectors();
        let fate = Fate::draw(first * sectors, end * sectors, random);
        if matches!(fate, Fate::Whole) {
            return self.finish_write(write, mode, random);
        }
        self.interleave(first, end, Some(write), random);
        for block in first..end.min(self.block_end()) {
            let mask = fate.mask(block, sectors, random);
            self.apply(write, block, mask);
        }
        self.in_flight.remove(&write);
        self.complete(write, first, end);
        self.forget_beyond_end(write, first, end);
    }

    pub(super) fn finish_sync(&mut self, started: u64) {
        let blocks: Vec<u64> = self.unsynced.keys().copied().collect();
        for block in blocks {
            self.settle(block, |version| version.completed <= started);
        }
        self.settle_len(started, 0);
    }

    /// The device failed to flush. Each version it should have flushed is still in its cache, or shows but will
    /// never be flushed, or is gone.
    pub(super) fn fail_sync(&mut self, started: u64, random: &mut Random) {
        for versions in self.unsynced.values_mut() {
            for version in versions.iter_mut().filter(|version| version.completed <= started) {
                match random.below(3) {
                    0 => {}
                    1 => version.completed = NEVER,
                    _ => version.mask = 0,
                }
            }
            versions.retain(|version| version.mask != 0);
        }
        self.unsynced.retain(|_, versions| !versions.is_empty());
    }

    /// Fills `out` from `offset` up to the end of the file and says how many bytes that was. Sectors of writes in
    /// flight show or not; one that showed once keeps showing.
    pub(super) fn read(
        &mut self,
        offset: u64,
        out: &mut [u8],
        random: &mut Random,
    ) -> Result<usize, Unreadable> {
        let count = out.len().min(usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX));
        let (first, end) = (offset / BLOCK_LEN as u64, (offset + count as u64).div_ceil(BLOCK_LEN as u64));
        self.interleave(first, end, None, random);
        let sectors = self.sectors();
        if first < end && self.unreadable.range(first * sectors..end * sectors).next().is_some() {
            return Err(Unreadable);
        }
        self.copy_visible(offset, &mut out[..count]);
        Ok(count)
    }

    /// Copies what reads see, writes in flight apart; zeros beyond the end.
    pub(super) fn copy_visible(&self, offset: u64, out: &mut [u8]) {
        for_blocks(offset, out, |block, from, part| copy_page(&self.visible(block), from, part));
    }

    /// Copies what is there if a power cut loses all it may.
    pub(super) fn copy_stable(&self, offset: u64, out: &mut [u8]) {
        let zeros = None;
        for_blocks(offset, out, |block, from, part| {
            copy_page(self.stable.get(&block).unwrap_or(&zeros), from, part);
        });
    }

    /// Overwrites `bytes` at `offset` on stable media behind the file's back.
    pub(super) fn tamper(&mut self, offset: u64, bytes: &[u8]) {
        let mut rest = bytes.to_vec();
        let mut pages = Vec::new();
        for_blocks(offset, &mut rest, |block, from, part| {
            let mut page = content(&self.visible(block));
            page[from..from + part.len()].copy_from_slice(part);
            pages.push((block, page_of(&page)));
        });
        for (block, page) in pages {
            self.unsynced.remove(&block);
            self.stable.insert(block, page);
        }
    }

    /// Flips `bits` of the byte at `offset`, wherever a version of it is kept.
    pub(super) fn flip(&mut self, offset: u64, bits: u8) {
        let (block, from) = (offset / BLOCK_LEN as u64, (offset % BLOCK_LEN as u64) as usize);
        flip_byte(self.stable.entry(block).or_default(), from, bits);
        for version in self.unsynced.get_mut(&block).into_iter().flatten() {
            flip_byte(&mut version.page, from, bits);
        }
    }

    /// Flips one bit at rest in `offset..offset + len`, unless the drawn block has un-synced versions.
    pub(super) fn rot(&mut self, offset: u64, len: u64, random: &mut Random) {
        let offset_end = self.len.min(offset + len);
        if offset >= offset_end {
            return;
        }
        let place = offset + random.below(offset_end - offset);
        if !self.unsynced.contains_key(&(place / BLOCK_LEN as u64)) {
            self.flip(place, 1 << random.below(8));
        }
    }

    pub(super) fn make_unreadable(&mut self, offset: u64, len: u64) {
        let sector_len = self.sector_len as u64;
        self.unreadable.extend(offset / sector_len..(offset + len).div_ceil(sector_len));
    }

    /// Writes in flight never happened, but for what of them already shows.
    pub(super) fn forget_in_flight(&mut self) {
        self.in_flight.clear();
    }

    /// Lets every sector fall back to stable content or to any version written since, and the length with them.
    pub(super) fn power_cut(&mut self, random: &mut Random) {
        for (write, flight) in std::mem::take(&mut self.in_flight) {
            let end = flight.block_first + flight.pages.len() as u64;
            for ((block, page), applied) in (flight.block_first..).zip(flight.pages).zip(flight.applied) {
                self.push(
                    block,
                    Version { write, page, mask: self.mask_full() & !applied, completed: NEVER },
                );
            }
            if end * BLOCK_LEN as u64 > self.len && random.coin() {
                self.grow(end * BLOCK_LEN as u64);
            }
        }
        let sectors = self.sectors();
        let fates = self.draw_fates(random);
        for (block, versions) in std::mem::take(&mut self.unsynced) {
            let page = self.stable.entry(block).or_default();
            for version in versions {
                let mask = version.mask & fates[&version.write].mask(block, sectors, random);
                *page = composed(page, &version.page, mask, self.sector_len);
            }
        }
        let kept = random.below(self.lens.len() as u64 + 1) as usize;
        let kept = if random.coin() { self.lens.len() } else { kept };
        self.len = self.lens[..kept].last().map_or(self.len_stable, |&(len, _)| len).max(self.len_stable);
        self.len_stable = self.len;
        self.lens.clear();
        self.cut_beyond_end();
    }

    fn draw_fates(&self, random: &mut Random) -> BTreeMap<u64, Fate> {
        let sectors = self.sectors();
        let mut spans: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        for (&block, versions) in &self.unsynced {
            for version in versions {
                let span = spans.entry(version.write).or_insert((block * sectors, block * sectors));
                span.1 = (block + 1) * sectors;
            }
        }
        spans.into_iter().map(|(write, (first, end))| (write, Fate::draw(first, end, random))).collect()
    }

    fn cut_beyond_end(&mut self) {
        let end = self.block_end();
        let _beyond = self.stable.split_off(&end);
        let _beyond = self.unreadable.split_off(&(end * self.sectors()));
        let tail = (self.len % BLOCK_LEN as u64) as usize;
        if tail > 0
            && let Some(page) = self.stable.get_mut(&(end - 1))
        {
            let mut bytes = content(page);
            bytes[tail..].fill(0);
            *page = page_of(&bytes);
        }
    }

    /// Shows a random part of each other write in flight over these blocks, for good.
    fn interleave(&mut self, first: u64, end: u64, except: Option<u64>, random: &mut Random) {
        if self.in_flight.len() <= usize::from(except.is_some()) {
            return;
        }
        let writes: Vec<u64> =
            self.in_flight.keys().copied().filter(|&write| Some(write) != except).collect();
        for write in writes {
            let Some((other_first, other_end)) = self.span(write) else { continue };
            for block in other_first.max(first)..other_end.min(end) {
                let mask = random.next_u64() as u8;
                self.apply(write, block, mask);
            }
        }
    }

    fn span(&self, write: u64) -> Option<(u64, u64)> {
        let flight = self.in_flight.get(&write)?;
        Some((flight.block_first, flight.block_first + flight.pages.len() as u64))
    }

    /// Makes the sectors of `mask` that did not show yet visible in `block`.
    fn apply(&mut self, write: u64, block: u64, mask: u8) {
        let mask = mask & self.mask_full();
        let Some(flight) = self.in_flight.get_mut(&write) else { return };
        let index = (block - flight.block_first) as usize;
        let mask = mask & !flight.applied[index];
        flight.applied[index] |= mask;
        let page = flight.pages[index].clone();
        self.push(block, Version { write, page, mask, completed: NEVER });
    }

    fn push(&mut self, block: u64, version: Version) {
        if version.mask == 0 {
            return;
        }
        if !self.unreadable.is_empty() {
            let sectors = self.sectors();
            for sector in (0..sectors).filter(|sector| version.mask >> sector & 1 == 1) {
                self.unreadable.remove(&(block * sectors + sector));
            }
        }
        let versions = self.unsynced.entry(block).or_default();
        versions.push(version);
        if versions.len() > VERSIONS_MAX {
            let oldest = versions.remove(0);
            let page = self.stable.entry(block).or_default();
            *page = composed(page, &oldest.page, oldest.mask, self.sector_len);
        }
    }

    fn complete(&mut self, write: u64, first: u64, end: u64) {
        self.stamp += 1;
        for (_, versions) in self.unsynced.range_mut(first..end) {
            for version in versions.iter_mut().filter(|version| version.write == write) {
                version.completed = self.stamp;
            }
        }
    }

    fn forget_beyond_end(&mut self, write: u64, first: u64, end: u64) {
        let beyond = first.max(self.block_end())..end;
        for block in beyond {
            if let Some(versions) = self.unsynced.get_mut(&block) {
                versions.retain(|version| version.write != write);
                if versions.is_empty() {
                    self.unsynced.remove(&block);
                }
            }
        }
    }

    /// Makes the versions of `block` that `durable` names stable content, and drops what lies under them.
    fn settle(&mut self, block: u64, durable: impl Fn(&Version) -> bool) {
        let Some(versions) = self.unsynced.get_mut(&block) else { return };
        let mut covered = 0;
        for version in versions.iter_mut().rev() {
            if durable(version) {
                let page = self.stable.entry(block).or_default();
                *page = composed(page, &version.page, version.mask & !covered, self.sector_len);
                covered |= version.mask;
            }
            version.mask &= !covered;
        }
        versions.retain(|version| version.mask != 0);
        if versions.is_empty() {
            self.unsynced.remove(&block);
        }
    }

    fn settle_len(&mut self, started: u64, len_min: u64) {
        let settled = self.lens.iter().filter(|&&(_, stamp)| stamp <= started).map(|&(len, _)| len).max();
        self.len_stable = self.len_stable.max(len_min).max(settled.unwrap_or(0));
        self.lens.retain(|&(len, _)| len > self.len_stable);
    }

    fn visible(&self, block: u64) -> Page {
        let mut page = self.stable.get(&block).cloned().flatten();
        for version in self.unsynced.get(&block).into_iter().flatten() {
            page = composed(&page, &version.page, version.mask, self.sector_len);
        }
        page
    }

    fn sectors(&self) -> u64 {
        (BLOCK_LEN / self.sector_len) as u64
    }

    fn mask_full(&self) -> u8 {
        u8::MAX >> (8 - self.sectors())
    }

    fn block_end(&self) -> u64 {
        self.len.div_ceil(BLOCK_LEN as u64)
    }
}

impl Fate {
    /// Whole writes survive or vanish often enough that a crash also finds batches intact that nobody acknowledged.
    fn draw(first: u64, end: u64, random: &mut Random) -> Fate {
        match random.below(8) {
            0..=1 => Fate::Whole,
            2..=3 => Fate::Lost,
            4 => Fate::Before(first + random.below(end - first)),
            5 => Fate::From(first + random.below(end - first)),
            _ => Fate::Scattered,
        }
    }

    fn mask(&self, block: u64, sectors: u64, random: &mut Random) -> u8 {
        let numbers = block * sectors..(block + 1) * sectors;
        let select = |keeps: &dyn Fn(u64) -> bool| {
            numbers.clone().rev().fold(0, |mask: u8, sector| (mask << 1) | u8::from(keeps(sector)))
        };
        match self {
            Fate::Whole => u8::MAX,
            Fate::Lost => 0,
            Fate::Before(limit) => select(&|sector| sector < *limit),
            Fate::From(limit) => select(&|sector| sector >= *limit),
            Fate::Scattered => random.next_u64() as u8,
        }
    }
}

fn page_of(bytes: &[u8]) -> Page {
    let bytes: &[u8; BLOCK_LEN] = bytes.try_into().expect("callers cut whole blocks");
    (*bytes != [0; BLOCK_LEN]).then(|| Rc::new(*bytes))
}

fn content(page: &Page) -> [u8; BLOCK_LEN] {
    page.as_ref().map_or([0; BLOCK_LEN], |bytes| **bytes)
}

fn copy_page(page: &Page, from: usize, out: &mut [u8]) {
    match page {
        Some(bytes) => out.copy_from_slice(&bytes[from..from + out.len()]),
        None => out.fill(0),
    }
}

/// `below`, with the sectors of `mask` taken from `above`.
fn composed(below: &Page, above: &Page, mask: u8, sector_len: usize) -> Page {
    let sectors = BLOCK_LEN / sector_len;
    if mask == 0 {
        return below.clone();
    }
    if mask.count_ones() as usize == sectors {
        return above.clone();
    }
    let mut bytes = content(below);
    for sector in (0..sectors).filter(|sector| mask >> sector & 1 == 1) {
        let range = sector * sector_len..(sector + 1) * sector_len;
        copy_page(above, range.start, &mut bytes[range]);
    }
    page_of(&bytes)
}

fn flip_byte(page: &mut Page, from: usize, bits: u8) {
    let mut bytes = content(page);
    bytes[from] ^= bits;
    *page = page_of(&bytes);
}

/// Calls `each(block, offset in the block, part of out)` for the blocks that `out` at `offset` touches.
fn for_blocks(offset: u64, out: &mut [u8], mut each: impl FnMut(u64, usize, &mut [u8])) {
    let mut place = offset;
    let mut rest = out;
    while !rest.is_empty() {
        let from = (place % BLOCK_LEN as u64) as usize;
        let count = rest.len().min(BLOCK_LEN - from);
        let (part, tail) = rest.split_at_mut(count);
        each(place / BLOCK_LEN as u64, from, part);
        place += count as u64;
        rest = tail;
    }
}
