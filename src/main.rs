//! `basalt`: the S3 object storage server. Everything is reached from this one binary.

mod s3;

fn main() {}
