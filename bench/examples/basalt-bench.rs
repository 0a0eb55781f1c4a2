//! The load generator as a program of its own, for machines that have no server: `basalt bench` is the same.

use std::process::ExitCode;

use clap::Parser as _;

#[derive(clap::Parser)]
#[command(version, about)]
struct Line {
    #[command(flatten)]
    args: basalt_bench::Args,
}

fn main() -> ExitCode {
    match basalt_bench::run(Line::parse().args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("basalt-bench: {error}");
            ExitCode::FAILURE
        }
    }
}
