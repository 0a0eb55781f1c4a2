//! `basalt bench`: load any S3 endpoint.

use std::process::ExitCode;

/// Load any S3 endpoint, verify every byte, and say what limited the result
#[derive(clap::Args)]
pub(super) struct Bench {
    #[command(flatten)]
    args: basalt_bench::Args,
}

impl Bench {
    pub(super) fn run(self) -> ExitCode {
        match basalt_bench::run(self.args) {
            Ok(code) => code,
            Err(error) => {
                eprintln!("basalt bench: {error}");
                ExitCode::FAILURE
            }
        }
    }
}
