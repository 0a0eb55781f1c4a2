//! The command line of `basalt bench`, as clap parses it. What the values mean together is checked when the
//! plan is made.

use std::path::PathBuf;
use std::time::Duration;

use crate::duration::parse_duration;
use crate::plan::{Mix, ObjectChecksum};
use crate::size::{SizeDistribution, parse_size};

/// Load any S3 endpoint, verify every byte, and say what limited the result.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Clone, Debug, clap::Subcommand)]
pub enum Command {
    /// PUT whole objects; keys repeat after --objects, with new content.
    Put(LoadArgs),
    /// GET whole objects in random order.
    Get(LoadArgs),
    /// GET random byte ranges of objects.
    Range(RangeArgs),
    /// HEAD objects.
    Stat(LoadArgs),
    /// List pages of keys from random starting points.
    List(ListArgs),
    /// DELETE objects until none is left.
    Delete(LoadArgs),
    /// Write objects by multipart upload: create, parts, complete.
    Multipart(MultipartArgs),
    /// A weighted mix of the above.
    Mixed(MixedArgs),
    /// Print the ratios between two results that --json wrote.
    Compare(CompareArgs),
}

/// A secret that `Debug` does not show.
#[derive(Clone)]
pub struct SecretKey(pub(crate) String);

impl std::fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(secret)")
    }
}

impl From<&str> for SecretKey {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

/// What every workload takes.
#[derive(Clone, Debug, clap::Args)]
pub struct LoadArgs {
    /// Where the S3 API is: http://HOST:PORT or https://HOST[:PORT] (path style).
    #[arg(long, default_value = "http://127.0.0.1:9000")]
    pub endpoint: String,
    /// Access key. Else BASALT_ROOT_ACCESS_KEY, else AWS_ACCESS_KEY_ID.
    #[arg(long)]
    pub access_key: Option<String>,
    /// Secret key. Else BASALT_ROOT_SECRET_KEY, else AWS_SECRET_ACCESS_KEY: the environment is the better
    /// place, because other users see a command line.
    #[arg(long)]
    pub secret_key: Option<SecretKey>,
    /// Region of the signature.
    #[arg(long, env = "AWS_REGION", default_value = "us-east-1")]
    pub region: String,
    /// Bucket; created when missing, and then removed after the run.
    #[arg(long, default_value = "basalt-bench")]
    pub bucket: String,
    /// Prefix of all keys. Nothing else may be under it.
    #[arg(long, default_value = "bench/")]
    pub prefix: String,
    /// Keep bucket and objects after the run.
    #[arg(long)]
    pub keep: bool,
    /// Use the objects that an earlier run with the same seed, sizes, count and prefix kept. Implies --keep.
    #[arg(long)]
    pub existing: bool,

    /// Number of objects.
    #[arg(long, default_value_t = 1_000)]
    pub objects: u64,
    /// Object sizes: 4KiB, a uniform range 1MiB-8MiB, or a weighted list 4KiB:70,1MiB:30.
    #[arg(long, default_value = "1MiB")]
    pub size: SizeDistribution,
    /// Keys per folder (per common prefix).
    #[arg(long, default_value_t = 1_000)]
    pub folder: u64,

    /// Requests in flight, each on a connection of its own.
    #[arg(long, short = 'c', default_value_t = 16)]
    pub concurrency: usize,
    /// Threads of the load generator.
    #[arg(long, default_value_t = 1)]
    pub threads: usize,
    /// CPUs of the load generator's threads, such as 1 or 2-3,6.
    #[arg(long, value_name = "CPULIST")]
    pub pin_client: Option<String>,
    /// Length of the measured window (10s when neither it nor --ops is given).
    #[arg(long, value_parser = parse_duration)]
    pub duration: Option<Duration>,
    /// End after so many operations.
    #[arg(long)]
    pub ops: Option<u64>,
    /// Load before the measured window (2s, or none with --ops).
    #[arg(long, value_parser = parse_duration)]
    pub warmup: Option<Duration>,
    /// Operations per second at which requests are due, whether or not earlier ones were answered.
    /// Latency then counts from when a request was due (no coordinated omission).
    #[arg(long)]
    pub rate: Option<f64>,
    /// An operation that takes longer is an error.
    #[arg(long, value_parser = parse_duration, default_value = "60s")]
    pub timeout: Duration,
    /// Reproduces keys, sizes, bytes and the order of operations.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,

    /// Verify nothing (verification is on by default).
    #[arg(long, overrides_with = "verify")]
    pub no_verify: bool,
    /// Verify every byte, ETag and listed key.
    #[arg(long, overrides_with = "no_verify")]
    pub verify: bool,
    /// Sign a SHA-256 of each payload instead of sending UNSIGNED-PAYLOAD.
    #[arg(long)]
    pub sign_payload: bool,
    /// Send an object checksum as a header, or after the body as current SDKs do.
    #[arg(long, value_enum, default_value_t = ObjectChecksum::None)]
    pub checksum: ObjectChecksum,
    /// Accept any TLS certificate.
    #[arg(long)]
    pub insecure: bool,

    /// Process id of the server: its CPU per operation and per GiB, and its memory.
    #[arg(long, value_name = "PID")]
    pub server_pid: Option<u32>,
    /// Block devices under the server, such as vda or nvme0n1,nvme1n1: flushes and bytes per operation.
    #[arg(long, value_name = "DEVICE", value_delimiter = ',')]
    pub disk_dev: Vec<String>,
    /// Write inputs and results as JSON to a file, or to standard output with `-`.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// No progress bar, and no table when JSON goes to standard output.
    #[arg(long, short = 'q')]
    pub quiet: bool,
    /// Exit 0 even when requests failed. A failed verification still counts.
    #[arg(long)]
    pub allow_errors: bool,
}

#[derive(Clone, Debug, clap::Args)]
pub struct RangeArgs {
    #[command(flatten)]
    pub load: LoadArgs,
    /// Bytes of each range.
    #[arg(long, default_value = "64KiB")]
    pub range_size: SizeDistribution,
}

#[derive(Clone, Debug, clap::Args)]
pub struct ListArgs {
    #[command(flatten)]
    pub load: LoadArgs,
    /// Keys per page (max-keys).
    #[arg(long, default_value_t = 1_000)]
    pub list_page: u32,
    /// Delimiter: only `/` divides the keys of a run.
    #[arg(long)]
    pub delimiter: Option<String>,
}

#[derive(Clone, Debug, clap::Args)]
pub struct MultipartArgs {
    #[command(flatten)]
    pub load: LoadArgs,
    /// Bytes of each part but the last.
    #[arg(long, value_parser = parse_size, default_value = "8MiB")]
    pub part_size: u64,
}

#[derive(Clone, Debug, clap::Args)]
pub struct MixedArgs {
    #[command(flatten)]
    pub load: LoadArgs,
    /// Weights of get, put, range, stat, list, delete and multipart.
    #[arg(long, default_value = "get=45,put=15,stat=30,delete=10")]
    pub mix: Mix,
    /// Bytes of each range.
    #[arg(long, default_value = "64KiB")]
    pub range_size: SizeDistribution,
    /// Keys per page (max-keys).
    #[arg(long, default_value_t = 1_000)]
    pub list_page: u32,
    /// Delimiter: only `/` divides the keys of a run.
    #[arg(long)]
    pub delimiter: Option<String>,
    /// Bytes of each part but the last.
    #[arg(long, value_parser = parse_size, default_value = "8MiB")]
    pub part_size: u64,
}

#[derive(Clone, Debug, clap::Args)]
pub struct CompareArgs {
    /// The result to compare with.
    pub before: PathBuf,
    /// The result to judge.
    pub after: PathBuf,
}
