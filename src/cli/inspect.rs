//! `basalt inspect`: any structure on disk, for a human or as JSON.

mod json;
mod text;

use std::io::Write as _;
use std::process::ExitCode;

use basalt_engine::extent::ExtentId;
use basalt_engine::offline::inspect::{Item, ObjectName, Query, What, inspect};
use clap::ValueEnum;

use super::offline::{self, Outcome};

/// Print any structure on disk, decoded, or why it cannot be read; reads only, takes no lock
///
/// Works on one disk or all disks of a set, damaged ones too. Beside a running server it may see structures in the middle of a change.
#[derive(clap::Args)]
pub(super) struct Inspect {
    /// Disk directories: one, some or all of a set; {1...6} is a range
    #[arg(value_name = "DISK", required = true)]
    disks: Vec<String>,
    /// Kinds of structures, separated by commas [default: superblock,root]
    #[arg(long, value_name = "KIND", value_enum, value_delimiter = ',')]
    what: Vec<Kind>,
    /// Every version, upload and part of an object: its value, and where its extents lie
    #[arg(long, value_name = "BUCKET/KEY")]
    object: Option<String>,
    /// Only this shard
    #[arg(long, value_name = "N")]
    shard: Option<u16>,
    /// Only this extent (extents, log, table, directory, pack)
    #[arg(long, value_name = "ID")]
    extent: Option<u64>,
    /// With tables: every entry of the index, decoded; with packs: values too
    #[arg(long)]
    entries: bool,
    /// Print JSON, one structure per line
    #[arg(long)]
    json: bool,
}

/// What can be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Both copies on each disk: who a disk is, how the set is laid out
    Superblock,
    /// Both copies on each disk: where a shard's last checkpoint lies
    Root,
    /// What the newest root names: extents and index tables at the last checkpoint
    Manifest,
    /// The extent table as the log leaves it
    Extents,
    /// Headers of log extents, batches and their records
    Log,
    /// Index tables: header and every frame
    Table,
    /// Directory chunks of data extents
    Directory,
    /// Packs of small objects: the list of each, with --entries their values too
    Pack,
}

impl From<Kind> for What {
    fn from(kind: Kind) -> What {
        match kind {
            Kind::Superblock => What::Superblock,
            Kind::Root => What::Root,
            Kind::Manifest => What::Manifest,
            Kind::Extents => What::Extents,
            Kind::Log => What::Log,
            Kind::Table => What::Table,
            Kind::Directory => What::Directory,
            Kind::Pack => What::Pack,
        }
    }
}

impl Inspect {
    pub(super) fn run(self) -> ExitCode {
        let query = match self.query() {
            Ok(query) => query,
            Err(reason) => return fail(&reason),
        };
        let json = self.json;
        let looked = offline::run(&self.disks, move |core, paths| async move {
            let mut broken = false;
            let mut damaged = false;
            let mut show = |item: Item| {
                let value = json::of(&item);
                damaged |= value.get("defect").is_some() || value.get("defects").is_some();
                let line = if json { format!("{value}\n") } else { text::of(&value) };
                // Who reads may have seen enough.
                broken = broken || std::io::stdout().write_all(line.as_bytes()).is_err();
            };
            inspect(&core, &paths, &query, &mut show).await.map(|()| damaged)
        });
        match looked {
            Ok(Ok(false)) => Outcome::Clean.into(),
            Ok(Ok(true)) => Outcome::Faults.into(),
            Ok(Err(error)) => fail(&error.to_string()),
            Err(reason) => fail(&reason),
        }
    }

    fn query(&self) -> Result<Query, String> {
        let object = match &self.object {
            None => None,
            Some(name) => {
                let (bucket, key) = name
                    .split_once('/')
                    .filter(|(bucket, key)| !bucket.is_empty() && !key.is_empty())
                    .ok_or_else(|| format!("--object {name}; write BUCKET/KEY"))?;
                Some(ObjectName { bucket: bucket.into(), key: key.into() })
            }
        };
        let mut what =
            self.what.iter().map(|&kind| What::from(kind)).collect::<std::collections::BTreeSet<_>>();
        if what.is_empty() && object.is_none() {
            what.extend([What::Superblock, What::Root]);
        }
        let extent = self.extent.map(ExtentId);
        Ok(Query { what, object, shard: self.shard, extent, entries: self.entries })
    }
}

fn fail(reason: &str) -> ExitCode {
    eprintln!("basalt inspect: {reason}");
    Outcome::Unable.into()
}
