//! `basalt`: the S3 object storage server. Everything is reached from this one binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    basalt::cli::main()
}
