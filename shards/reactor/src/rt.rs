//! hyper's I/O traits on the ring's streams.
//!
//! hyper hands writes over as borrowed slices, while the ring needs memory that stays until completion. A slice that
//! lies in this core's arena is therefore pinned by its address instead of being copied; only bytes from elsewhere
//! (response heads) are copied into a small arena buffer. `payload_bytes_copied` in [`crate::ring::Stats`] counts the rest.
