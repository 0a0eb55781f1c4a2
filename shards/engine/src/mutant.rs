//! Deliberately broken variants of the engine: each leaves out one thing that durability or correctness rests on.
//!
//! A simulation that has never caught a bug proves nothing. Its tests run every variant and demand that some seed fails.
//! The variants exist under the feature `mutants` alone, which only this crate's own tests turn on; without it
//! every question here is a constant, and nothing of them is left in the code.

/// What is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// Bodies are committed without a sync of their columns.
    DataSyncSkipped,
    /// Log batches are written without waiting for the medium.
    LogWriteVolatile,
    /// The root points to a manifest that was not synced.
    ManifestNotSynced,
    /// Dead extents are given out again before the root without them is durable.
    ExtentsFreedEarly,
    /// Readers' pins do not keep extents.
    PinsIgnored,
    /// Mutations of one key do not wait for each other.
    KeysUnlocked,
    /// Recovery applies the last batch without writing it again.
    LastBatchNotRepeated,
    /// Bytes read from the log are not compared with their checksums.
    InlineUnverified,
    /// The log ends at the first batch that cannot be read.
    DamagedLogCutOff,
    /// Restored blocks are written without being compared with their checksums.
    RepairUnverified,
    /// Collection does not look whether what it moved is still what its key has.
    MovesUnchecked,
}

impl Mutant {
    pub const ALL: [Mutant; 11] = [
        Mutant::DataSyncSkipped,
        Mutant::LogWriteVolatile,
        Mutant::ManifestNotSynced,
        Mutant::ExtentsFreedEarly,
        Mutant::PinsIgnored,
        Mutant::KeysUnlocked,
        Mutant::LastBatchNotRepeated,
        Mutant::InlineUnverified,
        Mutant::DamagedLogCutOff,
        Mutant::RepairUnverified,
        Mutant::MovesUnchecked,
    ];

    /// Whether this process runs the variant.
    #[cfg(not(feature = "mutants"))]
    #[must_use]
    pub const fn is_active(self) -> bool {
        false
    }

    /// Whether this process runs the variant: the one that `BASALT_MUTANT` names, for the whole life of the process.
    #[cfg(feature = "mutants")]
    #[must_use]
    pub fn is_active(self) -> bool {
        static ACTIVE: std::sync::OnceLock<Option<Mutant>> = std::sync::OnceLock::new();
        let active = ACTIVE.get_or_init(|| {
            let name = std::env::var("BASALT_MUTANT").ok()?;
            Mutant::ALL.into_iter().find(|mutant| format!("{mutant:?}") == name)
        });
        *active == Some(self)
    }
}
