//! A run whose inputs have been checked: made once from the command line, believed everywhere else.

use std::fmt;
use std::net::ToSocketAddrs;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::args::{Command, LoadArgs};
use crate::client::{Target, Tls};
use crate::error::Error;
use crate::keyspace::OBJECTS_MAX;
use crate::observe::cpus;
use crate::signer::Credentials;
use crate::size::SizeDistribution;

const CONCURRENCY_MAX: usize = 65_536;
const THREADS_MAX: usize = 1_024;
/// The page size that S3 clamps to.
const LIST_PAGE_MAX: u32 = 1_000;
/// S3's limits of one PUT and of one part, and of the parts of an object.
const PUT_BYTES_MAX: u64 = 5 << 30;
const PART_BYTES_MIN: u64 = 5 << 20;
const PART_COUNT_MAX: u64 = 10_000;
/// A prefix leaves room for the number in a key of 1,024 bytes.
const PREFIX_LEN_MAX: usize = 1_000;
/// Pages in which a clean-up or check walks at most all objects of a run.
const DURATION_DEFAULT: Duration = Duration::from_secs(10);
const WARMUP_DEFAULT: Duration = Duration::from_secs(2);

/// What a workload does over and over, and what a report has a row for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    Get,
    Put,
    Range,
    Stat,
    List,
    Delete,
    /// A whole upload: create, parts, complete.
    Multipart,
}

impl Operation {
    pub const ALL: [Self; 7] =
        [Self::Get, Self::Put, Self::Range, Self::Stat, Self::List, Self::Delete, Self::Multipart];

    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Put => "put",
            Self::Range => "range",
            Self::Stat => "stat",
            Self::List => "list",
            Self::Delete => "delete",
            Self::Multipart => "multipart",
        }
    }

    /// Whether it changes objects; then each slot keeps to objects of its own.
    pub fn writes(self) -> bool {
        matches!(self, Self::Put | Self::Delete | Self::Multipart)
    }
}

/// Operations and their weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mix {
    weights: Vec<(Operation, u64)>,
    weight_sum: u64,
}

impl Mix {
    pub fn only(operation: Operation) -> Self {
        Self { weights: vec![(operation, 1)], weight_sum: 1 }
    }

    /// The operation that a random number selects.
    pub fn draw(&self, draw: u64) -> Operation {
        let mut ticket = draw % self.weight_sum;
        for (operation, weight) in &self.weights {
            if ticket < *weight {
                return *operation;
            }
            ticket -= weight;
        }
        unreachable!("a ticket below the sum of the weights falls into one of them")
    }

    pub fn has(&self, operation: Operation) -> bool {
        self.weights.iter().any(|(other, _)| *other == operation)
    }

    pub fn writes(&self) -> bool {
        self.weights.iter().any(|(operation, _)| operation.writes())
    }
}

impl FromStr for Mix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut weights = Vec::new();
        for item in text.split(',') {
            let (name, weight) =
                item.split_once('=').ok_or_else(|| format!("{item:?} is not NAME=WEIGHT"))?;
            let operation = Operation::ALL
                .into_iter()
                .find(|operation| operation.name() == name.trim())
                .ok_or_else(|| format!("unknown operation {name:?}"))?;
            let weight: u32 = weight.trim().parse().map_err(|_| format!("{weight:?} is not a weight"))?;
            if weights.iter().any(|(other, _)| *other == operation) {
                return Err(format!("{name} is there twice"));
            }
            if weight > 0 {
                weights.push((operation, u64::from(weight)));
            }
        }
        let weight_sum = weights.iter().map(|(_, weight)| weight).sum();
        if weight_sum == 0 { Err("all weights are 0".to_owned()) } else { Ok(Self { weights, weight_sum }) }
    }
}

impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (operation, weight)) in self.weights.iter().enumerate() {
            let comma = if n > 0 { "," } else { "" };
            write!(f, "{comma}{}={weight}", operation.name())?;
        }
        Ok(())
    }
}

/// The checksum that goes with an object's bytes, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ObjectChecksum {
    None,
    Crc32,
    Crc32c,
    Crc64nvme,
    Crc32Trailer,
    Crc32cTrailer,
    Crc64nvmeTrailer,
}

/// How the run's length is bounded: by time, by operations, or by whichever comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub warmup: Duration,
    pub duration: Option<Duration>,
    pub op_count: Option<u64>,
}

/// A checked run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub workload: &'static str,
    pub mix: Mix,
    pub target: Arc<Target>,
    pub credentials: Credentials,
    pub region: String,
    pub bucket: String,
    pub prefix: String,
    pub keep: bool,
    pub existing: bool,
    pub object_count: u64,
    pub sizes: SizeDistribution,
    pub folder_len: u64,
    pub range_sizes: SizeDistribution,
    pub list_page: u32,
    pub delimited: bool,
    pub part_size: u64,
    pub slot_count: usize,
    pub thread_count: usize,
    /// Empty: not pinned.
    pub client_cpus: Vec<usize>,
    pub bounds: Bounds,
    /// Operations per second over all slots.
    pub rate: Option<f64>,
    pub seed: u64,
    pub verify: bool,
    pub sign_payload: bool,
    pub checksum: ObjectChecksum,
    pub server_pid: Option<u32>,
    pub disk_devices: Vec<String>,
    pub json: Option<PathBuf>,
    pub quiet: bool,
    pub allow_errors: bool,
}

/// The inputs as a result states them: everything that two runs must have in common to be comparable, and
/// no secret.
#[derive(Clone, Debug, Serialize)]
pub struct Inputs {
    workload: &'static str,
    mix: String,
    endpoint: String,
    region: String,
    bucket: String,
    prefix: String,
    existing: bool,
    objects: u64,
    size: String,
    folder: u64,
    range_size: Option<String>,
    list_page: Option<u32>,
    delimiter: Option<&'static str>,
    part_size_bytes: Option<u64>,
    concurrency: usize,
    threads: usize,
    client_cpus: Vec<usize>,
    warmup_seconds: f64,
    duration_seconds: Option<f64>,
    ops: Option<u64>,
    rate_per_second: Option<f64>,
    seed: u64,
    verify: bool,
    sign_payload: bool,
    checksum: String,
    disk_devices: Vec<String>,
}

/// The options that only some workloads have.
struct Shape {
    workload: &'static str,
    mix: Mix,
    range_sizes: Option<SizeDistribution>,
    list_page: u32,
    delimiter: Option<String>,
    part_size: u64,
}

impl Plan {
    /// Checks a load command. `Compare` makes no plan and is the caller's to handle.
    pub fn new(command: &Command) -> Result<Option<Self>, Error> {
        let plain = |workload: &'static str, operation| Shape {
            workload,
            mix: Mix::only(operation),
            range_sizes: None,
            list_page: LIST_PAGE_MAX,
            delimiter: None,
            part_size: PART_BYTES_MIN,
        };
        let (load, shape) = match command {
            Command::Compare(_) => return Ok(None),
            Command::Put(load) => (load, plain("put", Operation::Put)),
            Command::Get(load) => (load, plain("get", Operation::Get)),
            Command::Stat(load) => (load, plain("stat", Operation::Stat)),
            Command::Delete(load) => (load, plain("delete", Operation::Delete)),
            Command::Range(args) => {
                let range_sizes = Some(args.range_size.clone());
                (&args.load, Shape { range_sizes, ..plain("range", Operation::Range) })
            }
            Command::List(args) => {
                let (list_page, delimiter) = (args.list_page, args.delimiter.clone());
                (&args.load, Shape { list_page, delimiter, ..plain("list", Operation::List) })
            }
            Command::Multipart(args) => {
                let part_size = args.part_size;
                (&args.load, Shape { part_size, ..plain("multipart", Operation::Multipart) })
            }
            Command::Mixed(args) => {
                let shape = Shape {
                    workload: "mixed",
                    mix: args.mix.clone(),
                    range_sizes: Some(args.range_size.clone()),
                    list_page: args.list_page,
                    delimiter: args.delimiter.clone(),
                    part_size: args.part_size,
                };
                (&args.load, shape)
            }
        };
        check_shape(load, &shape)?;
        Self::from_checked(load, shape).map(Some)
    }

    fn from_checked(load: &LoadArgs, shape: Shape) -> Result<Self, Error> {
        let client_cpus = match &load.pin_client {
            None => Vec::new(),
            Some(list) => {
                cpus::parse_list(list).map_err(|reason| Error::Argument { option: "--pin-client", reason })?
            }
        };
        let duration = match (load.duration, load.ops) {
            (None, None) => Some(DURATION_DEFAULT),
            (duration, _) => duration,
        };
        let warmup_default = if load.ops.is_some() { Duration::ZERO } else { WARMUP_DEFAULT };
        Ok(Self {
            workload: shape.workload,
            mix: shape.mix,
            target: Arc::new(target(&load.endpoint, load.insecure, load.timeout)?),
            credentials: credentials(load)?,
            region: load.region.clone(),
            bucket: load.bucket.clone(),
            prefix: load.prefix.clone(),
            keep: load.keep || load.existing,
            existing: load.existing,
            object_count: load.objects,
            sizes: load.size.clone(),
            folder_len: load.folder,
            range_sizes: shape.range_sizes.unwrap_or_else(|| load.size.clone()),
            list_page: shape.list_page,
            delimited: shape.delimiter.is_some(),
            part_size: shape.part_size,
            slot_count: load.concurrency,
            thread_count: load.threads,
            client_cpus,
            bounds: Bounds { warmup: load.warmup.unwrap_or(warmup_default), duration, op_count: load.ops },
            rate: load.rate,
            seed: load.seed,
            verify: !load.no_verify,
            sign_payload: load.sign_payload,
            checksum: load.checksum,
            server_pid: load.server_pid,
            disk_devices: load.disk_dev.clone(),
            json: load.json.clone(),
            quiet: load.quiet,
            allow_errors: load.allow_errors,
        })
    }

    /// Whether slots keep to objects of their own.
    pub fn partitioned(&self) -> bool {
        self.mix.writes()
    }

    /// Whether the objects are written before the load begins. A load that only writes makes its own.
    pub fn populates(&self) -> bool {
        !matches!(self.workload, "put" | "multipart")
    }

    pub fn inputs(&self) -> Inputs {
        let lists = self.mix.has(Operation::List);
        Inputs {
            workload: self.workload,
            mix: self.mix.to_string(),
            endpoint: self.target.url(),
            region: self.region.clone(),
            bucket: self.bucket.clone(),
            prefix: self.prefix.clone(),
            existing: self.existing,
            objects: self.object_count,
            size: self.sizes.to_string(),
            folder: self.folder_len,
            range_size: self.mix.has(Operation::Range).then(|| self.range_sizes.to_string()),
            list_page: lists.then_some(self.list_page),
            delimiter: (lists && self.delimited).then_some("/"),
            part_size_bytes: self.mix.has(Operation::Multipart).then_some(self.part_size),
            concurrency: self.slot_count,
            threads: self.thread_count,
            client_cpus: self.client_cpus.clone(),
            warmup_seconds: self.bounds.warmup.as_secs_f64(),
            duration_seconds: self.bounds.duration.map(|duration| duration.as_secs_f64()),
            ops: self.bounds.op_count,
            rate_per_second: self.rate,
            seed: self.seed,
            verify: self.verify,
            sign_payload: self.sign_payload,
            checksum: format!("{:?}", self.checksum),
            disk_devices: self.disk_devices.clone(),
        }
    }
}

fn check_shape(load: &LoadArgs, shape: &Shape) -> Result<(), Error> {
    let refuse = |option, reason: String| Err(Error::Argument { option, reason });
    if load.concurrency == 0 || load.concurrency > CONCURRENCY_MAX {
        return refuse("--concurrency", format!("between 1 and {CONCURRENCY_MAX}"));
    }
    if load.threads == 0 || load.threads > THREADS_MAX || load.threads > load.concurrency {
        return refuse("--threads", format!("between 1 and {THREADS_MAX}, and no more than --concurrency"));
    }
    if load.objects == 0 || load.objects > OBJECTS_MAX {
        return refuse("--objects", format!("between 1 and {OBJECTS_MAX}"));
    }
    if shape.mix.writes() && load.objects < load.concurrency as u64 {
        let reason = "a workload that writes needs an object for each of --concurrency".to_owned();
        return refuse("--objects", reason);
    }
    if load.folder == 0 || load.folder > OBJECTS_MAX {
        return refuse("--folder", format!("between 1 and {OBJECTS_MAX}"));
    }
    if shape.list_page == 0 || shape.list_page > LIST_PAGE_MAX {
        return refuse("--list-page", format!("between 1 and {LIST_PAGE_MAX}"));
    }
    if shape.delimiter.as_deref().is_some_and(|delimiter| delimiter != "/") {
        return refuse("--delimiter", "the keys of a run are divided by / alone".to_owned());
    }
    let plain_puts = shape.workload != "multipart";
    if plain_puts && load.size.max() > PUT_BYTES_MAX {
        return refuse("--size", "one PUT carries 5 GiB at most: use the multipart workload".to_owned());
    }
    if shape.mix.has(Operation::Multipart) {
        if !(PART_BYTES_MIN..=PUT_BYTES_MAX).contains(&shape.part_size) {
            return refuse("--part-size", "between 5 MiB and 5 GiB".to_owned());
        }
        if load.size.max().div_ceil(shape.part_size) > PART_COUNT_MAX {
            return refuse("--part-size", format!("the largest object has more than {PART_COUNT_MAX} parts"));
        }
    }
    if let Some(ranges) = &shape.range_sizes
        && shape.mix.has(Operation::Range)
        && (ranges.min() == 0 || load.size.min() == 0)
    {
        return refuse("--range-size", "an empty range cannot be asked for".to_owned());
    }
    if load.rate.is_some_and(|rate| !(rate.is_finite() && rate > 0.0)) {
        return refuse("--rate", "a positive number of operations per second".to_owned());
    }
    if load.duration.is_some_and(|duration| duration.is_zero()) || load.ops == Some(0) {
        return refuse("--duration", "an empty run measures nothing".to_owned());
    }
    if load.timeout.is_zero() {
        return refuse("--timeout", "no operation takes no time".to_owned());
    }
    let in_trailer = matches!(
        load.checksum,
        ObjectChecksum::Crc32Trailer | ObjectChecksum::Crc32cTrailer | ObjectChecksum::Crc64nvmeTrailer
    );
    if load.sign_payload && in_trailer {
        return refuse("--sign-payload", "not together with a trailing checksum".to_owned());
    }
    // Names that need no escaping in a URL or in XML: a benchmark is no place to test escapes.
    let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte));
    if load.prefix.len() > PREFIX_LEN_MAX || !plain(&load.prefix) || load.prefix.starts_with('/') {
        return refuse("--prefix", "letters, digits and -_./ without a leading slash".to_owned());
    }
    if shape.delimiter.is_some() && !(load.prefix.is_empty() || load.prefix.ends_with('/')) {
        return refuse("--prefix", "must end in / when --delimiter is given".to_owned());
    }
    if load.bucket.is_empty() || !plain(&load.bucket) || load.bucket.contains('/') {
        return refuse("--bucket", "a bucket name has letters, digits, dots and hyphens".to_owned());
    }
    if load.disk_dev.iter().any(|device| device.is_empty() || device.contains('/')) {
        return refuse("--disk-dev", "a name from /sys/block, such as vda".to_owned());
    }
    Ok(())
}

fn credentials(load: &LoadArgs) -> Result<Credentials, Error> {
    let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let missing = |option| Error::Argument {
        option,
        reason: "no value, and neither BASALT_ROOT_… nor AWS_… is set in the environment".to_owned(),
    };
    let access_key = load
        .access_key
        .clone()
        .or_else(|| variable("BASALT_ROOT_ACCESS_KEY"))
        .or_else(|| variable("AWS_ACCESS_KEY_ID"))
        .ok_or_else(|| missing("--access-key"))?;
    let secret_key = load
        .secret_key
        .as_ref()
        .map(|secret| secret.0.clone())
        .or_else(|| variable("BASALT_ROOT_SECRET_KEY"))
        .or_else(|| variable("AWS_SECRET_ACCESS_KEY"))
        .ok_or_else(|| missing("--secret-key"))?;
    // A session token belongs to the AWS_ pair, and to no other.
    let of_aws = variable("AWS_ACCESS_KEY_ID").is_some_and(|aws| aws == access_key);
    let session_token = if of_aws { variable("AWS_SESSION_TOKEN") } else { None };
    Ok(Credentials { access_key, secret_key, session_token })
}

pub(crate) fn target(endpoint: &str, insecure: bool, timeout: Duration) -> Result<Target, Error> {
    let refuse = |reason: String| Error::Argument { option: "--endpoint", reason };
    let uri: http::Uri = endpoint.parse().map_err(|_| refuse("not a URL".to_owned()))?;
    let secure = match uri.scheme_str() {
        Some("http") => false,
        Some("https") => true,
        _ => return Err(refuse("begins with http:// or https://".to_owned())),
    };
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return Err(refuse("a host and a port, no path".to_owned()));
    }
    let host = uri.host().ok_or_else(|| refuse("names no host".to_owned()))?;
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let bare_host = host.trim_start_matches('[').trim_end_matches(']');
    let address = (bare_host, port)
        .to_socket_addrs()
        .map_err(|source| Error::System { what: format!("cannot resolve {host}"), source })?
        .next()
        .ok_or_else(|| refuse(format!("{host} has no address")))?;
    let default_port = port == if secure { 443 } else { 80 };
    let authority = if default_port { host.to_owned() } else { format!("{host}:{port}") };
    let tls = secure.then(|| Tls::new(bare_host, insecure)).transpose().map_err(refuse)?;
    Ok(Target { address, authority, tls, timeout })
}

#[cfg(test)]
pub(crate) mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: crate::Args,
    }

    pub(crate) fn plan(line: &str) -> Result<Plan, Error> {
        let words = ["bench"].into_iter().chain(line.split_whitespace());
        let words = words.chain("--access-key a --secret-key s".split_whitespace());
        let line = Line::try_parse_from(words).unwrap();
        Plan::new(&line.args.command).map(Option::unwrap)
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        Line::command().debug_assert();
    }

    #[test]
    fn defaults() {
        let plan = plan("get").unwrap();
        assert_eq!((plan.workload, plan.object_count, plan.verify), ("get", 1_000, true));
        assert_eq!(plan.bounds.duration, Some(DURATION_DEFAULT));
        assert_eq!(plan.bounds.warmup, WARMUP_DEFAULT);
        assert_eq!(plan.target.authority, "127.0.0.1:9000");
        assert!(!plan.partitioned());
    }

    #[test]
    fn operations_alone_bound_a_run() {
        let plan = plan("put --ops 7 --no-verify --endpoint http://127.0.0.1").unwrap();
        assert_eq!(plan.bounds, Bounds { warmup: Duration::ZERO, duration: None, op_count: Some(7) });
        assert!(!plan.verify && plan.partitioned() && !plan.populates());
        assert_eq!(plan.target.authority, "127.0.0.1", "the default port is not in Host");
    }

    #[test]
    fn refused_combinations() {
        for (line, expected) in [
            ("get --concurrency 0", "--concurrency"),
            ("get --threads 17", "--threads"),
            ("put --objects 15", "--objects"),
            ("put --size 6GiB", "--size"),
            ("multipart --part-size 1MiB", "--part-size"),
            ("multipart --size 1TiB --part-size 5MiB", "--part-size"),
            ("range --range-size 0", "--range-size"),
            ("list --delimiter x", "--delimiter"),
            ("list --list-page 1001", "--list-page"),
            ("get --rate 0", "--rate"),
            ("get --ops 0", "--duration"),
            ("get --prefix /a", "--prefix"),
            ("get --prefix a&b", "--prefix"),
            ("get --bucket a/b", "--bucket"),
            ("get --endpoint 127.0.0.1:9000", "--endpoint"),
            ("get --endpoint http://127.0.0.1/path", "--endpoint"),
            ("get --pin-client x", "--pin-client"),
            ("get --disk-dev ../x", "--disk-dev"),
            ("put --sign-payload --checksum crc32-trailer", "--sign-payload"),
        ] {
            match plan(line) {
                Err(Error::Argument { option, .. }) => assert_eq!(option, expected, "{line}"),
                other => panic!("{line}: {other:?}"),
            }
        }
    }

    #[test]
    fn mixes() {
        let mix: Mix = "get=45,put=15,stat=30,delete=10".parse().unwrap();
        assert_eq!(mix.to_string(), "get=45,put=15,stat=30,delete=10");
        let drawn: Vec<Operation> = (0..100).map(|n| mix.draw(n)).collect();
        let count = |operation| drawn.iter().filter(|other| **other == operation).count();
        assert_eq!(count(Operation::Get), 45);
        assert_eq!(count(Operation::Delete), 10);
        assert!(mix.writes() && !mix.has(Operation::List));
        for text in ["", "get", "get=x", "got=1", "get=1,get=2", "get=0"] {
            assert!(text.parse::<Mix>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_inputs_of_a_result_hold_no_secret() {
        let words = "bench get --access-key AKID --secret-key hush".split_whitespace();
        let line = Line::try_parse_from(words).unwrap();
        let plan = Plan::new(&line.args.command).unwrap().unwrap();
        assert!(!serde_json::to_string(&plan.inputs()).unwrap().contains("hush"));
        assert!(!format!("{plan:?} {:?}", line.args).contains("hush"));
    }
}
