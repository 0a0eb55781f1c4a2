//! The storage engine: log, extents, index and recovery of one erasure set. Knows no HTTP and no S3.
