//! Load generator for any S3 endpoint, workloads, reports and microbenchmarks.
