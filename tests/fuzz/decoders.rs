//! The decoders that input from outside reaches, each a function that no bytes may make panic.
//!
//! tests/fuzz_smoke runs each on mutated samples in every test run; the package beside this file gives each to
//! libFuzzer. Both share this list, so a decoder is added once.

#[path = "engine_decoders.rs"]
mod engine;
#[path = "s3_decoders.rs"]
mod s3;

/// A decoder under test.
pub(crate) struct Target {
    pub(crate) name: &'static str,
    /// Panics only on a defect.
    pub(crate) run: fn(&[u8]),
    /// Inputs that get far.
    pub(crate) seeds: fn() -> Vec<Vec<u8>>,
}

pub(crate) fn targets() -> impl Iterator<Item = &'static Target> {
    engine::TARGETS.iter().chain(s3::TARGETS)
}
