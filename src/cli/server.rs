//! `basalt server`: serve S3 from one or more disks.

use std::process::ExitCode;

use crate::config::{Config, RawConfig};
use crate::server;

/// Serve S3 from one or more disk directories
#[derive(clap::Args)]
pub(super) struct Server {
    #[command(flatten)]
    raw: RawConfig,
}

impl Server {
    pub(super) fn run(self) -> ExitCode {
        match Config::load(self.raw) {
            Ok(config) => server::run(config),
            Err(error) => {
                eprintln!("basalt: {error}");
                server::Exit::Usage.into()
            }
        }
    }
}
