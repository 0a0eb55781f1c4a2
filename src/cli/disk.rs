//! `basalt disk`: see the disks of a deployment, and take them out, let them in, replace and add them, while the server runs.

mod call;
mod list;
mod order;

use std::process::ExitCode;

use clap::Subcommand;

use super::offline::Outcome;

/// See the disks of a deployment, take one out, let it in again, give its place to another, add a whole set
#[derive(clap::Args)]
pub(super) struct Disk {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    List(list::List),
    Remove(order::Remove),
    Return(order::Return),
    Replace(order::Replace),
    Add(order::Add),
}

impl Disk {
    pub(super) fn run(self) -> ExitCode {
        let done = match self.command {
            Command::List(list) => list.run(),
            Command::Remove(remove) => remove.run(),
            Command::Return(give_back) => give_back.run(),
            Command::Replace(replace) => replace.run(),
            Command::Add(add) => add.run(),
        };
        match done {
            Ok(outcome) => outcome.into(),
            Err(reason) => {
                eprintln!("basalt disk: {reason}");
                Outcome::Unable.into()
            }
        }
    }
}
