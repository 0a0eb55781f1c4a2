//! The io_uring thread-per-core runtime, and the simulated world that can stand in for it.
//!
//! Everything the engine and the server know of the machine comes through the concrete types here: [`Core`]
//! (tasks, clocks, randomness), [`Disk`] and [`File`], [`Buf`] and [`Slice`], [`mesh::Port`]. Each is backed
//! either by a ring or by [`sim`], chosen at run time by enum dispatch, so the same engine code runs on real
//! disks and in a seeded simulation. This is the only crate of the workspace that may contain unsafe code.

#![expect(unsafe_code, reason = "io_uring and aligned buffers; every block says why it is sound")]

pub mod arena;
pub mod clock;
mod core;
pub mod disk;
pub mod mesh;
pub mod net;
pub mod ring;
pub mod rt;
pub mod sim;
mod task;

pub use self::arena::{Arena, Buf, Slice};
pub use self::clock::{Monotonic, WallTime};
pub use self::core::{Core, CoreId};
pub use self::disk::{Disk, File, WriteMode};
pub use self::task::JoinHandle;
