//! Load generator for any S3 endpoint.
//!
//! It verifies every byte, because a benchmark of wrong answers measures nothing; it says what limited the
//! result, because a figure without that invites the wrong conclusion; and it is light, because it often
//! shares the machine with the server it measures.
//!
//! A run goes: `plan` (checked inputs) → `prepare` (bucket, objects) → `load` (the measured window) →
//! `prepare` again (final check, clean-up) → `report`.

mod args;
mod call;
mod client;
mod compare;
mod content;
mod duration;
mod error;
mod fleet;
mod keyspace;
mod limit;
mod listing;
mod load;
mod observe;
mod plan;
mod prepare;
mod progress;
mod report;
mod signer;
mod size;
mod slot;
mod tally;

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

pub use crate::args::{
    Args, Command, CompareArgs, ListArgs, LoadArgs, MixedArgs, MultipartArgs, RangeArgs, SecretKey,
};
pub use crate::call::Call;
pub use crate::client::Failure;
pub use crate::error::Error;
use crate::keyspace::Keyspace;
use crate::plan::Plan;
pub use crate::report::{EXIT_FAILED_REQUESTS, EXIT_FAILED_VERIFICATION, Report};
pub use crate::signer::Credentials;

/// Runs `basalt bench`. The exit code is 0, [`EXIT_FAILED_REQUESTS`] or [`EXIT_FAILED_VERIFICATION`]; an error
/// means that there is no result.
pub fn run(args: Args) -> Result<ExitCode, Error> {
    let plan = match (&args.command, Plan::new(&args.command)?) {
        (Command::Compare(compare), _) => {
            print(&compare::run(compare)?)?;
            return Ok(ExitCode::SUCCESS);
        }
        (_, Some(plan)) => Arc::new(plan),
        (_, None) => unreachable!("every load command makes a plan"),
    };
    let report = measure(&plan)?;
    let json_to_stdout = plan.json.as_deref() == Some(Path::new("-"));
    if let Some(path) = &plan.json {
        let mut json = serde_json::to_string_pretty(&report)
            .map_err(|source| Error::Result { path: path.clone(), source })?;
        json.push('\n');
        if json_to_stdout {
            print(&json)?;
        } else {
            std::fs::write(path, json).map_err(|source| Error::File { path: path.clone(), source })?;
        }
    }
    if !json_to_stdout {
        print(&report.table())?;
    } else if !plan.quiet {
        eprint!("{}", report.table());
    }
    Ok(ExitCode::from(report.exit_code(plan.allow_errors)))
}

/// Runs a load command and gives its result, without printing it.
pub fn measure_command(command: &Command) -> Result<Option<Report>, Error> {
    Plan::new(command)?.map(|plan| measure(&Arc::new(plan))).transpose()
}

fn measure(plan: &Arc<Plan>) -> Result<Report, Error> {
    if !plan.client_cpus.is_empty() {
        // This thread too: one that may run beside the server would count as sharing its CPUs.
        fleet::pin(&plan.client_cpus)?;
    }
    let keyspace = Arc::new(Keyspace::new(
        &plan.prefix,
        plan.seed,
        plan.sizes.clone(),
        plan.object_count,
        plan.folder_len,
    ));
    let bucket = prepare::open_bucket(plan, &keyspace)?;
    let outcome = load_and_check(plan, &keyspace, bucket.server.clone());
    if !plan.keep {
        // Also after an error: nothing is left behind that this run made.
        let left = prepare::clean_up(plan, &keyspace, &bucket);
        if outcome.is_ok() {
            for what in left? {
                eprintln!("not removed: {what}");
            }
        }
    }
    outcome
}

fn load_and_check(
    plan: &Arc<Plan>,
    keyspace: &Arc<Keyspace>,
    server_software: Option<String>,
) -> Result<Report, Error> {
    let prepared =
        if plan.populates() && !plan.existing { Some(prepare::populate(plan, keyspace)?) } else { None };
    let mut measured = load::run(plan, keyspace)?;
    let mut verification = std::mem::take(&mut measured.tally.verification);
    if plan.verify {
        if plan.partitioned() {
            let checked = prepare::check_listing(plan, keyspace)?;
            for (code, (count, example)) in checked.failures {
                measured.tally.failures.entry(code).or_insert((0, example)).0 += count;
            }
            verification.merge(checked.verification);
        }
        verification.merge(prepared.map(|tally| tally.verification).unwrap_or_default());
        let run = Duration::from_secs_f64(measured.usage.seconds);
        prepare::check_etags(plan, keyspace, &mut verification, run);
    }
    Ok(Report::new(plan, &measured, &verification, server_software))
}

fn print(text: &str) -> Result<(), Error> {
    std::io::stdout()
        .lock()
        .write_all(text.as_bytes())
        .map_err(|source| Error::System { what: "standard output".to_owned(), source })
}
