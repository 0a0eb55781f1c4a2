//! Object bodies: how their bytes become stripes in data extents, and how they come back verified.
//!
//! The core that accepted a body moves its bytes itself: it asks the owning shard for a place, encodes stripes and
//! writes the columns on its own ring, so payload never crosses cores. [`layout`] and [`plan`] are the arithmetic and
//! do no I/O; [`stripe`] is the erasure code.

pub mod error;
pub mod layout;
pub mod plan;
pub mod stripe;

pub use self::error::{BodyError, Damage, DeviceError, Fault};
pub use self::layout::{Segment, StripedBody};
