//! Topology, disk measurement, host checks and tuning.
