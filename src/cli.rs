//! The command line: one file and one struct per subcommand.

mod bench;
mod check;
mod disk;
mod durability;
mod inspect;
mod offline;
mod rebuild_index;
mod server;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// S3-compatible object storage on this machine's disks.
#[derive(Parser)]
#[command(name = "basalt", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Server(server::Server),
    Bench(bench::Bench),
    Check(check::Check),
    Disk(disk::Disk),
    Durability(durability::Durability),
    Inspect(inspect::Inspect),
    RebuildIndex(rebuild_index::RebuildIndex),
}

/// Parses the command line and runs what it asks for.
#[must_use]
pub fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Server(server) => server.run(),
        Command::Bench(bench) => bench.run(),
        Command::Check(check) => check.run(),
        Command::Disk(disk) => disk.run(),
        Command::Durability(durability) => durability.run(),
        Command::Inspect(inspect) => inspect.run(),
        Command::RebuildIndex(rebuild) => rebuild.run(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn every_flag_has_a_variable_and_a_line_of_help() {
        Cli::command().debug_assert();
        let cli = Cli::command();
        let server = cli.find_subcommand("server").expect("it exists");
        for argument in server.get_arguments().filter(|argument| argument.get_id() != "help") {
            let id = argument.get_id().as_str();
            if id == "version" {
                continue;
            }
            assert!(argument.get_help().is_some(), "{id} has no help");
            let wanted = match argument.get_long() {
                None => "BASALT_DISKS".to_owned(),
                Some(long) => format!("BASALT_{}", long.to_uppercase().replace('-', "_")),
            };
            assert_eq!(argument.get_env().and_then(|name| name.to_str()), Some(wanted.as_str()));
        }
    }
}
