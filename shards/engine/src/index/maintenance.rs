//! What changes the tables: opening them, flushing memtables, compacting.
//!
//! Both flush and compaction are one thing, a merge written out as new tables. They work beside reads, yield after each
//! transfer's worth of entries, and show their result all at once; until then, and if they fail, nothing has changed.

use std::rc::Rc;

use basalt_reactor::Core;

use super::error::IndexError;
use super::manifest::IndexManifest;
use super::merge::{Merge, Step};
use super::policy::{self, Compaction, PolicyConfig};
use super::source::{MemorySource, ReadAhead, Run, RunSource, Source};
use super::table::writer::{Authorship, TableWriter};
use super::table::{Table, TableDescriptor};
use super::version::{LEVEL_COUNT, Version};
use super::{Index, IndexConfig, State, TableAllocator};
use crate::extent::{ArenaFiles, ExtentId, Placement};

/// Tables opened at once.
const OPEN_COUNT_MAX: usize = 16;

/// Bytes of entries merged before other tasks get their turn.
const YIELD_LEN: usize = 64 * 1024;

/// A table that the current version no longer has. Its extent may be reused once the manifest without it is durable and
/// nobody reads it.
pub struct ObsoleteTable {
    table: Rc<Table>,
}

impl ObsoleteTable {
    #[must_use]
    pub fn placement(&self) -> &Placement {
        &self.table.descriptor.placement
    }

    /// Whether the last cursor, lookup and compaction that might read it is gone.
    #[must_use]
    pub fn is_unreferenced(&self) -> bool {
        Rc::strong_count(&self.table) == 1
    }
}

/// Clears a flag when a flush or compaction ends, also by being dropped.
struct Turn<'a> {
    index: &'a Index,
    flag: fn(&mut State) -> &mut bool,
}

impl Turn<'_> {
    fn take(index: &Index, flag: fn(&mut State) -> &mut bool) -> Result<Turn<'_>, IndexError> {
        let taken = std::mem::replace(flag(&mut index.state.borrow_mut()), true);
        if taken { Err(IndexError::Busy) } else { Ok(Turn { index, flag }) }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *(self.flag)(&mut self.index.state.borrow_mut()) = false;
    }
}

impl Index {
    /// Opens the tables that `manifest` names. The writes since that manifest are for the shard to replay.
    ///
    /// # Errors
    /// [`IndexError::Corrupt`], [`IndexError::Read`] or [`IndexError::Absent`] when a table has no readable replica.
    ///
    /// # Panics
    /// As [`Index::new`].
    pub async fn open(
        core: Core,
        files: Rc<ArenaFiles>,
        allocator: Rc<dyn TableAllocator>,
        config: IndexConfig,
        manifest: &IndexManifest,
    ) -> Result<Index, IndexError> {
        let index = Index::new(core, files, allocator, config);
        let mut version = Version::empty();
        let (flushed, levels) = match manifest.levels.split_first() {
            Some((flushed, levels)) => (flushed.as_slice(), levels),
            None => (&[][..], &[][..]),
        };
        for run in flushed.chunk_by(|a, b| a.sequence == b.sequence) {
            version.flushed.push(index.open_tables(run).await?);
        }
        for (level, tables) in version.levels.iter_mut().zip(levels) {
            *level = index.open_tables(tables).await?;
        }
        {
            let mut state = index.state.borrow_mut();
            let newest = version.tables().map(|table| table.descriptor.sequence).max();
            state.next_sequence = newest.unwrap_or(0) + 1;
            state.version = Rc::new(version);
        }
        Ok(index)
    }

    async fn open_tables(&self, descriptors: &[TableDescriptor]) -> Result<Run, IndexError> {
        let mut tables = Vec::with_capacity(descriptors.len());
        for batch in descriptors.chunks(OPEN_COUNT_MAX) {
            let opening: Vec<_> = batch
                .iter()
                .map(|descriptor| {
                    let (store, descriptor) = (Rc::clone(&self.store), descriptor.clone());
                    self.store.core.spawn(async move { Table::open(&store, descriptor).await })
                })
                .collect();
            for table in opening {
                tables.push(Rc::new(table.await.expect("nobody cancels an open")?));
            }
        }
        Ok(tables.into())
    }

    /// The current tables, for the shard's manifest.
    #[must_use]
    pub fn manifest(&self) -> IndexManifest {
        let version = Rc::clone(&self.state.borrow().version);
        let descriptors =
            |level| version.tables_of(level).into_iter().map(|table| table.descriptor.clone()).collect();
        IndexManifest { levels: (0..LEVEL_COUNT).map(descriptors).collect() }
    }

    /// The tables dropped since the last call. To be taken together with [`Index::manifest`], without a wait between: that
    /// manifest names none of them, an earlier one may.
    #[must_use]
    pub fn take_obsolete(&self) -> Vec<ObsoleteTable> {
        let obsolete = std::mem::take(&mut self.state.borrow_mut().obsolete);
        obsolete.into_iter().map(|table| ObsoleteTable { table }).collect()
    }

    /// Writes the frozen memtables of this moment to tables of level 0 and lets go of them. The future is not to be
    /// dropped before it is done: its extents would stay allocated until the next start.
    ///
    /// # Errors
    /// [`IndexError::NoSpace`], [`IndexError::Write`], [`IndexError::Absent`] or [`IndexError::Busy`]. Nothing has
    /// changed then, and a later flush tries again.
    pub async fn flush(&self) -> Result<(), IndexError> {
        let _turn = Turn::take(self, |state| &mut state.flushing)?;
        let (memtables, sequence) = {
            let mut state = self.state.borrow_mut();
            if state.frozen.is_empty() {
                return Ok(());
            }
            let sequence = state.next_sequence;
            state.next_sequence += 1;
            (state.frozen.clone(), sequence)
        };
        let sources =
            memtables.iter().map(|table| Source::Memory(MemorySource::new(Rc::clone(table), None))).collect();
        let merge = Merge::new(Rc::clone(&self.store), sources, &[], None);
        let tables = self.write_out(merge, sequence, |_| false).await?;
        let mut state = self.state.borrow_mut();
        let mut version = Version::clone(&state.version);
        version.flushed.insert(0, tables.into());
        state.version = Rc::new(version);
        state.frozen.retain(|table| !memtables.iter().any(|flushed| Rc::ptr_eq(table, flushed)));
        Ok(())
    }

    /// The most urgent compaction of the current tables, if any.
    #[must_use]
    pub fn choose_compaction(&self) -> Option<Compaction> {
        let state = self.state.borrow();
        if state.compacting {
            return None;
        }
        let descriptors =
            |level| state.version.tables_of(level).into_iter().map(|table| &table.descriptor).collect();
        let levels: Vec<Vec<&TableDescriptor>> = (0..LEVEL_COUNT).map(descriptors).collect();
        policy::choose(&levels, self.policy())
    }

    fn policy(&self) -> PolicyConfig {
        let slot_len = self.store.files.geometry().table_slot_len;
        PolicyConfig { base_len: self.config.level_base_len, move_len_min: slot_len / 2 }
    }

    /// Carries out a compaction. As with [`Index::flush`], the future is not to be dropped before it is done.
    ///
    /// # Errors
    /// [`IndexError::Stale`] when the tables it names have changed, otherwise as [`Index::flush`] and [`Index::get`].
    /// Nothing has changed then.
    pub async fn compact(&self, compaction: Compaction) -> Result<(), IndexError> {
        let _turn = Turn::take(self, |state| &mut state.compacting)?;
        let target = compaction.level + 1;
        assert!(target < LEVEL_COUNT, "nothing is below the last level");
        let version = Rc::clone(&self.state.borrow().version);
        let stale = |extent| IndexError::Stale { extent };
        let mut inputs = version.select(compaction.level, &compaction.inputs).map_err(stale)?;
        if compaction.moves {
            let moved: Vec<Rc<Table>> = inputs.iter().flat_map(|run| run.iter()).map(Rc::clone).collect();
            self.install(&compaction.inputs, target, &moved);
            return Ok(());
        }
        inputs.extend(version.select(target, &compaction.overlapped).map_err(stale)?);
        let sequence = inputs
            .iter()
            .flat_map(|run| run.iter())
            .map(|table| table.descriptor.sequence)
            .max()
            .unwrap_or(0);
        let block_count_max = (self.config.transfer_len / self.config.block_len).max(1);
        let read_ahead = ReadAhead { block_count_max, cached: false };
        let sources = inputs.into_iter().map(|run| Source::Run(RunSource::new(run, read_ahead))).collect();
        let merge = Merge::new(Rc::clone(&self.store), sources, &[], None);
        // Levels below the target change only by compaction, of which this is the only one.
        let hides_nothing = |key: &[u8]| !version.is_key_below(target, key);
        let tables = self.write_out(merge, sequence, hides_nothing).await?;
        let replaced: Vec<ExtentId> =
            compaction.inputs.iter().chain(&compaction.overlapped).copied().collect();
        self.install(&replaced, target, &tables);
        Ok(())
    }

    /// Swaps in the next version.
    fn install(&self, replaced: &[ExtentId], target: usize, added: &[Rc<Table>]) {
        let mut state = self.state.borrow_mut();
        let is_added = |table: &Rc<Table>| added.iter().any(|added| Rc::ptr_eq(added, table));
        let is_dropped =
            |table: &&Rc<Table>| replaced.contains(&table.descriptor.placement.id) && !is_added(table);
        let dropped: Vec<Rc<Table>> = state.version.tables().filter(is_dropped).map(Rc::clone).collect();
        state.version = Rc::new(state.version.replace(replaced, target, added));
        state.obsolete.extend(dropped);
    }

    /// Writes the entries of `merge` to as many tables as they fill, except tombstones that `hides_nothing` holds for.
    async fn write_out(
        &self,
        merge: Merge,
        sequence: u64,
        hides_nothing: impl Fn(&[u8]) -> bool,
    ) -> Result<Vec<Rc<Table>>, IndexError> {
        let mut output = Output::new(self, sequence);
        match output.fill(merge, hides_nothing).await {
            Ok(()) => Ok(output.tables),
            Err(error) => {
                output.discard().await;
                Err(error)
            }
        }
    }
}

/// Tables being written.
struct Output<'a> {
    index: &'a Index,
    sequence: u64,
    tables: Vec<Rc<Table>>,
    writer: Option<TableWriter>,
}

impl<'a> Output<'a> {
    fn new(index: &'a Index, sequence: u64) -> Output<'a> {
        Output { index, sequence, tables: Vec::new(), writer: None }
    }

    async fn fill(
        &mut self,
        mut merge: Merge,
        hides_nothing: impl Fn(&[u8]) -> bool,
    ) -> Result<(), IndexError> {
        let mut merged_len = 0;
        loop {
            match merge.step()? {
                Step::Entry => {}
                Step::Load => {
                    merge.load().await?;
                    continue;
                }
                Step::End => break,
            }
            let (key, value) = (merge.key(), merge.value());
            merged_len += key.len() + value.map_or(0, <[u8]>::len);
            if merged_len > YIELD_LEN {
                merged_len = 0;
                self.index.store.core.yield_now().await;
            }
            if value.is_some() || !hides_nothing(key) {
                self.writer_for(key.len(), value.map_or(0, <[u8]>::len)).await?.add(key, value).await?;
            }
        }
        self.end_table().await
    }

    /// The table that the next entry goes to.
    async fn writer_for(&mut self, key_len: usize, value_len: usize) -> Result<&mut TableWriter, IndexError> {
        if self.writer.as_ref().is_some_and(|writer| !writer.has_room(key_len, value_len)) {
            self.end_table().await?;
        }
        if self.writer.is_none() {
            let placement = self.index.allocator.allocate()?;
            let IndexConfig { shard, epoch, block_len, .. } = self.index.config;
            let authorship = Authorship { shard, epoch, sequence: self.sequence, block_len };
            self.writer = Some(TableWriter::new(Rc::clone(&self.index.store), placement, authorship));
        }
        Ok(self.writer.as_mut().expect("just made"))
    }

    async fn end_table(&mut self) -> Result<(), IndexError> {
        let Some(writer) = self.writer.take() else { return Ok(()) };
        match writer.finish().await {
            Ok(table) => {
                self.tables.push(Rc::new(table));
                Ok(())
            }
            Err((placement, error)) => {
                self.index.allocator.discard(placement.id);
                Err(error)
            }
        }
    }

    async fn discard(self) {
        if let Some(writer) = self.writer {
            let placement = writer.abandon().await;
            self.index.allocator.discard(placement.id);
        }
        for table in self.tables {
            self.index.allocator.discard(table.descriptor.placement.id);
        }
    }
}
