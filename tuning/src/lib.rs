//! Topology, disk measurement, host checks and tuning: what the machine is, and what it should be told to be.

pub mod host;
pub mod limits;

pub use host::{Finding, Severity, host_checks};
