//! The io_uring thread-per-core runtime, and the simulated world that can stand in for it.
