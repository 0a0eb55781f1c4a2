//! Random histories against a map.

use std::collections::{BTreeMap, BTreeSet};

use basalt_reactor::sim::Random;

use super::*;
use crate::index::key::{VersionOrder, object};

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

/// A stand-in for the shard: keeps what it would log, and a manifest as of its last checkpoint.
struct Shard {
    core: Core,
    slots: Rc<Slots>,
    index: Rc<Index>,
    model: Model,
    /// Writes since the checkpoint, in order.
    log: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    manifest: Vec<u8>,
    obsolete: Vec<ObsoleteTable>,
    random: Random,
}

impl Shard {
    fn key(&mut self) -> Vec<u8> {
        let name = format!("{}/{}", self.random.below(8), self.random.below(60));
        let version = match self.random.below(3) {
            0 => VersionOrder::NULL,
            time => VersionOrder::new(time, [0; 8]),
        };
        object(1 + self.random.below(2), name.as_bytes(), version)
    }

    fn write(&mut self) {
        let key = self.key();
        let value = (!self.random.chance(0.3)).then(|| {
            let len = if self.random.chance(0.02) { 20_000 } else { self.random.below(600) };
            let mut value = vec![0; len as usize];
            self.random.fill(&mut value);
            value
        });
        match &value {
            Some(value) => {
                self.index.put(&key, value);
                self.model.insert(key.clone(), value.clone());
            }
            None => {
                self.index.delete(&key);
                self.model.remove(&key);
            }
        }
        self.log.push((key, value));
    }

    async fn get(&mut self) {
        let key = self.key();
        let got = self.index.get(&key).await.expect("readable");
        assert_eq!(got.as_deref(), self.model.get(&key).map(Vec::as_slice));
    }

    async fn scan(&mut self) {
        let (from, to) = (self.key(), self.key());
        let to = self.random.coin().then_some(to);
        let got = read_all(self.index.cursor(&from, to.as_deref())).await;
        let expected = self.model.range(from..).take_while(|(key, _)| to.as_ref().is_none_or(|to| *key < to));
        assert!(got.iter().map(|(key, value)| (key, value)).eq(expected));
    }

    async fn versions(&mut self) {
        let key = self.key();
        let start = &key[..key.len() - 16];
        let got = read_all(self.index.cursor_of_name(start)).await;
        let expected: Vec<_> =
            self.model.range(start.to_vec()..).take_while(|(key, _)| key.starts_with(start)).collect();
        assert!(got.iter().map(|(key, value)| (key, value)).eq(expected));
    }

    /// Jumps about, also backwards, which must do nothing.
    async fn seek(&mut self) {
        let mut cursor = self.index.cursor(&[], None);
        let mut least: Option<Vec<u8>> = None;
        let mut inclusive = true;
        for _ in 0..20 {
            if self.random.coin() {
                let target = self.key();
                cursor.seek(&target);
                if least.as_ref().is_none_or(|least| *least < target) {
                    (least, inclusive) = (Some(target), true);
                }
            }
            let least_key = least.clone().unwrap_or_default();
            let expected =
                self.model.range(least_key.clone()..).find(|(key, _)| inclusive || **key > least_key);
            let got = cursor.next().await.expect("readable");
            assert_eq!(got, expected.map(|(key, value)| (key.as_slice(), value.as_slice())));
            let Some((key, _)) = got else { break };
            (least, inclusive) = (Some(key.to_vec()), false);
        }
    }

    /// Scans while writing: keys that nobody touches meanwhile are seen as they are, none twice.
    async fn scan_while_writing(&mut self) {
        let before = self.model.clone();
        let written = self.log.len();
        let mut cursor = self.index.cursor(&[], None);
        let mut seen = Model::new();
        loop {
            let Some((key, value)) = cursor.next().await.expect("readable") else { break };
            assert!(seen.last_key_value().is_none_or(|(last, _)| last.as_slice() < key), "order");
            seen.insert(key.to_vec(), value.to_vec());
            if self.random.chance(0.2) {
                self.write();
            }
            if self.random.chance(0.05) {
                self.index.rotate();
            }
        }
        let touched: BTreeSet<&Vec<u8>> = self.log[written..].iter().map(|(key, _)| key).collect();
        let untouched = |(key, _): &(&Vec<u8>, &Vec<u8>)| !touched.contains(key);
        assert!(seen.iter().filter(untouched).eq(before.iter().filter(untouched)));
    }

    /// What the shard does at a checkpoint; writes go on meanwhile.
    async fn checkpoint(&mut self) {
        if !self.index.rotate() {
            self.index.flush().await.expect("no other flush, no faults");
            assert!(self.index.rotate());
        }
        let logged = self.log.len();
        let index = Rc::clone(&self.index);
        let flush = self.core.spawn(async move { index.flush().await });
        while !flush.is_finished() {
            self.write();
            self.get().await;
            // What is in memory is found without a wait.
            self.core.yield_now().await;
        }
        flush.await.expect("not cancelled").expect("no faults");
        self.manifest = self.index.manifest().encode();
        self.obsolete.extend(self.index.take_obsolete());
        self.log.drain(..logged);
        let slots = Rc::clone(&self.slots);
        self.obsolete.retain(|table| {
            if table.is_unreferenced() {
                slots.discard(table.placement().id);
            }
            !table.is_unreferenced()
        });
    }

    /// Ends the process's memory: forgets everything but the manifest and the log.
    async fn reopen(&mut self) {
        let manifest = IndexManifest::decode(&self.manifest).expect("its own bytes");
        let named: BTreeSet<ExtentId> =
            manifest.levels.iter().flatten().map(|table| table.placement.id).collect();
        self.slots.used.borrow_mut().retain(|id, _| named.contains(id));
        self.obsolete.clear();
        let (core, slots) = (self.core.clone(), Rc::clone(&self.slots));
        let index = Index::open(core.clone(), files(&core), slots, config(), &manifest).await;
        self.index = Rc::new(index.expect("readable"));
        for (key, value) in &self.log {
            match value {
                Some(value) => self.index.put(key, value),
                None => self.index.delete(key),
            }
        }
    }
}

fn run_history(seed: u64) {
    let (mut world, index, slots) = index_in(seed, config());
    world.run(async move {
        let mut shard = Shard {
            core: index.store.core.clone(),
            slots,
            index,
            model: Model::new(),
            log: Vec::new(),
            manifest: IndexManifest::default().encode(),
            obsolete: Vec::new(),
            random: Random::new(seed),
        };
        let mut compactions = 0;
        let mut compacting = None;
        for _ in 0..400 {
            match shard.random.below(40) {
                0 => shard.checkpoint().await,
                1 if compacting.is_none() => {
                    if let Some(compaction) = shard.index.choose_compaction() {
                        let index = Rc::clone(&shard.index);
                        compacting = Some(shard.core.spawn(async move { index.compact(compaction).await }));
                        compactions += 1;
                    }
                }
                2 if compacting.is_none() => shard.reopen().await,
                3 | 4 => shard.scan().await,
                5 => shard.seek().await,
                6 => shard.scan_while_writing().await,
                7 if shard.index.stats().memtable_len > 20_000 => {
                    shard.index.rotate();
                    shard.index.flush().await.expect("no other flush, no faults");
                }
                8..13 => shard.get().await,
                13..16 => shard.versions().await,
                _ => (0..5).for_each(|_| shard.write()),
            }
            compacting = match compacting {
                Some(handle) if handle.is_finished() => {
                    handle.await.expect("not cancelled").expect("no faults");
                    None
                }
                other => other,
            };
        }
        if let Some(handle) = compacting {
            handle.await.expect("not cancelled").expect("no faults");
        }
        compact_all(&shard.index).await;
        shard.checkpoint().await;
        shard.reopen().await;
        let all = read_all(shard.index.cursor(&[], None)).await;
        assert!(all.iter().map(|(key, value)| (key, value)).eq(&shard.model));
        assert!(compactions > 0, "the history never compacted");
    });
}

#[test]
fn random_histories_agree_with_a_map() {
    for seed in 0..24 {
        run_history(seed);
    }
}

#[test]
fn tombstones_leave_with_what_they_hide() {
    let (mut world, index, _) = index_in(1, config());
    world.run(async move {
        for round in 0..6_u32 {
            for number in 0..400_u32 {
                let key = number.to_be_bytes();
                if round % 2 == 0 { index.put(&key, &[7; 100]) } else { index.delete(&key) }
            }
            flush_all(&index).await;
            compact_all(&index).await;
        }
        flush_all(&index).await;
        compact_all(&index).await;
        let stats = index.stats();
        assert_eq!((stats.entry_count, stats.tombstone_count, stats.table_len), (0, 0, 0));
        assert!(read_all(index.cursor(&[], None)).await.is_empty());
    });
}

#[test]
fn a_full_disk_leaves_everything_as_it_was() {
    let (mut world, index, slots) = index_in(2, config());
    world.run(async move {
        let value = [1; 900];
        let put_all =
            |round: u32| (0..500_u32).for_each(|number| index.put(&(number + round).to_be_bytes(), &value));
        put_all(0);
        slots.limit.set(Some(1));
        assert!(index.rotate());
        assert!(matches!(index.flush().await, Err(IndexError::NoSpace(NoSpace))));
        assert_eq!((slots.used.borrow().len(), index.stats().frozen_count), (0, 1));
        assert_eq!(read_all(index.cursor(&[], None)).await.len(), 500);
        slots.limit.set(None);
        for round in 0..4 {
            put_all(round);
            flush_all(&index).await;
        }
        let used = slots.used.borrow().len();
        slots.limit.set(Some(used + 1));
        let compaction = index.choose_compaction().expect("four runs");
        assert!(matches!(index.compact(compaction.clone()).await, Err(IndexError::NoSpace(NoSpace))));
        assert_eq!((slots.used.borrow().len(), index.stats().obsolete_count), (used, 0));
        slots.limit.set(None);
        index.compact(compaction.clone()).await.expect("room again");
        assert!(matches!(index.compact(compaction).await, Err(IndexError::Stale { .. })));
        assert_eq!(read_all(index.cursor(&[], None)).await.len(), 503);
    });
}

#[test]
fn obsolete_tables_live_as_long_as_their_readers() {
    let (mut world, index, _) = index_in(3, config());
    world.run(async move {
        for round in 0..4_u8 {
            (0..200_u32).for_each(|number| index.put(&number.to_be_bytes(), &[round; 50]));
            flush_all(&index).await;
        }
        let mut cursor = index.cursor(&[], None);
        assert!(cursor.next().await.expect("readable").is_some());
        compact_all(&index).await;
        let obsolete = index.take_obsolete();
        assert_eq!(obsolete.len(), 4);
        assert!(obsolete.iter().all(|table| !table.is_unreferenced()));
        assert_eq!(read_all(cursor).await.len(), 199);
        assert!(obsolete.iter().all(ObsoleteTable::is_unreferenced));
        assert!(index.take_obsolete().is_empty());
    });
}

#[test]
fn frozen_memtables_are_bounded() {
    let (_world, index, _) = index_in(4, config());
    for number in 0..FROZEN_COUNT_MAX {
        index.put(b"key", &[number as u8]);
        assert!(index.rotate());
    }
    assert!(index.rotate(), "an empty memtable stays");
    index.put(b"key", b"newest");
    assert!(!index.rotate());
    assert_eq!(index.stats().frozen_count, FROZEN_COUNT_MAX);
}
