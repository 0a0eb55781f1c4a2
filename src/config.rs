//! Configuration: what an operator wrote, turned once into a checked [`Config`] that the rest of the server trusts.
//!
//! A value comes from a flag, else the environment, else the file, else the default. Raw values ([`RawConfig`]) live
//! only in this module and the command line; behind [`Config::derive`] everything is resolved, bounded and asserted.

pub mod disks;
pub mod machine;
pub mod quantity;
mod raw;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use basalt_engine::SCRUB_DEADLINE_DEFAULT;

pub use self::quantity::Shape;
pub use self::raw::RawConfig;

use self::quantity::{Size, Span};
use crate::http::limits::Limits;
use crate::logging::LogFormat;

/// Where the server listens unless told otherwise: on this machine only, so that going public is a decision.
pub const LISTEN_DEFAULT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9000);
/// Most cores (and shards) one process runs.
pub const CORES_MAX: usize = 1024;
/// Below this, in bytes, a core cannot hold the buffers of its connections and its memtables.
pub const MEMORY_PER_CORE_MIN: u64 = 64 << 20;
/// The part of a core's memory that becomes its buffer arena; the rest holds memtables, caches and connections.
const ARENA_SHARE: u64 = 2;
/// A disk that is out for longer is hardly on its way back.
const SPARE_AFTER_DEFAULT: Duration = Duration::from_secs(60);
/// Arenas are made of blocks of this many bytes.
const ARENA_GRANULE: u64 = 1 << 20;
/// Connections over all cores unless told otherwise.
const CONNECTIONS_MAX_DEFAULT: usize = 8192;
/// AWS accepts access keys of this many characters; older tools insist on it.
const ACCESS_KEY_LEN: std::ops::RangeInclusive<usize> = 3..=128;
const SECRET_KEY_LEN: std::ops::RangeInclusive<usize> = 8..=128;

/// The server's configuration, complete and checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// In the order given, no duplicates, at least one; those for log and index alone come last.
    pub disks: Vec<PathBuf>,
    /// How many of them are for log and index alone.
    pub metadata_count: usize,
    pub listen: SocketAddr,
    /// The CPU of each core, in core order; at least one.
    pub cpus: Vec<usize>,
    /// Shards to format a new deployment with; `None` lets the engine choose.
    pub shards: Option<u16>,
    /// Bytes of memory each core may use in all.
    pub memory_per_core: u64,
    /// Bytes of each core's buffer arena, out of its memory.
    pub arena_len: usize,
    /// Shape to format a new deployment with; `None` lets the engine choose by the number of disks.
    pub erasure: Option<Shape>,
    /// Missing disks are lost for good, whatever they might hold.
    pub start_degraded: bool,
    /// Serve what can be read, and write nothing.
    pub start_read_only: bool,
    pub region: Option<String>,
    /// Disks that must be in sync for writes to be taken; `None` leaves it at the floor.
    pub write_quorum: Option<u8>,
    /// After how long a spare disk takes the place of one that is out.
    pub spare_after: Duration,
    /// Domains below which the first labels of a host name a bucket.
    pub domains: Vec<String>,
    pub tls: Option<TlsFiles>,
    /// Whether `/-/metrics` answers peers other than loopback.
    pub metrics_public: bool,
    pub http: Limits,
    /// How long in-flight requests may take after the first signal.
    pub drain_timeout: Duration,
    /// Within which everything at rest is verified.
    pub scrub_deadline: Duration,
    pub log: Log,
    pub root: Option<Credentials>,
}

/// PEM files of the certificate chain and its key; read again on SIGHUP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    pub format: LogFormat,
    /// Filter directives such as `info` or `basalt=debug,warn`.
    pub level: String,
    /// Whether every request is logged, or only those the server failed.
    pub access: bool,
}

/// An access key and its secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    pub access_key: String,
    pub secret_key: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("access_key", &self.access_key).finish_non_exhaustive()
    }
}

/// Why the configuration cannot be used; prints as a sentence for the operator.
#[derive(Debug)]
pub enum ConfigError {
    File {
        path: PathBuf,
        error: std::io::Error,
    },
    /// The message names line and key.
    Toml {
        path: PathBuf,
        error: Box<toml::de::Error>,
    },
    Disks(disks::DisksError),
    Cores {
        asked: usize,
    },
    Shards {
        asked: usize,
    },
    Memory {
        bytes: u64,
        cores: usize,
    },
    TlsHalf,
    CredentialsHalf,
    AccessKey,
    SecretKey,
    Region(String),
    Domain(String),
    Zero {
        name: &'static str,
    },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, error } => write!(f, "cannot read {}: {error}", path.display()),
            Self::Toml { path, error } => write!(f, "{}: {error}", path.display()),
            Self::Disks(error) => error.fmt(f),
            Self::Cores { asked } => write!(f, "--cores {asked} is not between 1 and {CORES_MAX}"),
            Self::Shards { asked } => write!(f, "--shards {asked} is not between 1 and {CORES_MAX}"),
            Self::Memory { bytes, cores } => write!(
                f,
                "{} MiB of memory are too little for {cores} cores; each needs {} MiB (see --memory, --cores)",
                bytes >> 20,
                MEMORY_PER_CORE_MIN >> 20
            ),
            Self::TlsHalf => write!(f, "--tls-cert and --tls-key go together"),
            Self::CredentialsHalf => {
                write!(f, "BASALT_ROOT_ACCESS_KEY and BASALT_ROOT_SECRET_KEY go together")
            }
            Self::AccessKey => write!(
                f,
                "the root access key must have {} to {} letters, digits or -_.",
                ACCESS_KEY_LEN.start(),
                ACCESS_KEY_LEN.end()
            ),
            Self::SecretKey => write!(
                f,
                "the root secret key must have {} to {} printable ASCII characters",
                SECRET_KEY_LEN.start(),
                SECRET_KEY_LEN.end()
            ),
            Self::Region(region) => write!(f, "{region:?} is not a region name (a-z, 0-9 and -)"),
            Self::Domain(domain) => write!(f, "{domain:?} is not a domain name"),
            Self::Zero { name } => write!(f, "{name} must not be zero"),
        }
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Completes flags and environment with the file they name, and checks the whole.
    ///
    /// # Errors
    /// [`ConfigError`] for the first thing that is wrong.
    pub fn load(flags: RawConfig) -> Result<Config, ConfigError> {
        let raw = match &flags.config {
            Some(path) => {
                let file = read_file(path)?;
                flags.or(file)
            }
            None => flags,
        };
        Config::derive(raw, &machine::cpus(), machine::memory())
    }

    /// `cpus` are those this process may use, `memory` the bytes the machine grants it.
    fn derive(raw: RawConfig, cpus: &[usize], memory: Option<u64>) -> Result<Config, ConfigError> {
        // Named together, so that none is named twice.
        let data_count = disks::expand(&raw.disks).map_err(ConfigError::Disks)?.len();
        let all = [raw.disks.as_slice(), raw.meta.as_slice()].concat();
        let disks = disks::expand(&all).map_err(ConfigError::Disks)?;
        let available = cpus.len().min(CORES_MAX);
        let cores = raw.cores.unwrap_or_else(|| default_cores(available));
        if cores == 0 || cores > CORES_MAX {
            return Err(ConfigError::Cores { asked: cores });
        }
        let shards = match raw.shards {
            None => None,
            Some(asked @ 1..=CORES_MAX) => u16::try_from(asked).ok(),
            Some(asked) => return Err(ConfigError::Shards { asked }),
        };
        let memory = raw.memory.map_or_else(|| default_memory(memory, cores), |Size(bytes)| bytes);
        let memory_per_core = memory / cores as u64;
        if memory_per_core < MEMORY_PER_CORE_MIN {
            return Err(ConfigError::Memory { bytes: memory, cores });
        }
        let arena_len = (memory_per_core / ARENA_SHARE).next_multiple_of(ARENA_GRANULE);
        let arena_len =
            usize::try_from(arena_len).map_err(|_| ConfigError::Memory { bytes: memory, cores })?;
        assert!((arena_len as u64) < memory_per_core, "the arena is a part of the core's memory");

        let tls = match (raw.tls_cert, raw.tls_key) {
            (Some(cert), Some(key)) => Some(TlsFiles { cert, key }),
            (None, None) => None,
            _ => return Err(ConfigError::TlsHalf),
        };
        if let Some(region) = raw.region.as_ref().filter(|region| !is_region(region)) {
            return Err(ConfigError::Region(region.clone()));
        }
        if let Some(domain) = raw.domains.iter().find(|domain| !is_domain(domain)) {
            return Err(ConfigError::Domain(domain.clone()));
        }
        let connections_max = raw.connections_max.unwrap_or(CONNECTIONS_MAX_DEFAULT);
        if connections_max == 0 {
            return Err(ConfigError::Zero { name: "--connections-max" });
        }
        let defaults = Limits::default();
        let http = Limits {
            connections_max: connections_max.div_ceil(cores),
            header_timeout: timeout("--header-timeout", raw.header_timeout, defaults.header_timeout)?,
            idle_timeout: timeout("--idle-timeout", raw.idle_timeout, defaults.idle_timeout)?,
            body_timeout: timeout("--body-timeout", raw.body_timeout, defaults.body_timeout)?,
            response_timeout: timeout("--response-timeout", raw.response_timeout, defaults.response_timeout)?,
        };
        Ok(Config {
            metadata_count: disks.len() - data_count,
            disks,
            listen: raw.listen.unwrap_or(LISTEN_DEFAULT),
            // More cores than CPUs share them.
            cpus: cpus.iter().copied().cycle().take(cores).collect(),
            shards,
            memory_per_core,
            arena_len,
            erasure: raw.erasure,
            start_degraded: raw.start_degraded.unwrap_or(false),
            start_read_only: raw.start_read_only.unwrap_or(false),
            write_quorum: match raw.write_quorum {
                Some(0) => return Err(ConfigError::Zero { name: "--write-quorum" }),
                count => count,
            },
            spare_after: raw.spare_after.map_or(SPARE_AFTER_DEFAULT, |Span(span)| span),
            region: raw.region,
            domains: raw.domains,
            tls,
            metrics_public: raw.metrics_public.unwrap_or(false),
            http,
            drain_timeout: raw.drain_timeout.map_or(Duration::from_secs(30), |Span(span)| span),
            scrub_deadline: match raw.scrub_days {
                None => SCRUB_DEADLINE_DEFAULT,
                Some(0) => return Err(ConfigError::Zero { name: "--scrub-days" }),
                Some(days) => Duration::from_secs(u64::from(days) * 86_400),
            },
            log: Log {
                format: raw.log_format.unwrap_or(LogFormat::Human),
                level: raw.log_level.unwrap_or_else(|| "info".to_owned()),
                access: raw.access_log.unwrap_or(false),
            },
            root: credentials(raw.root_access_key, raw.root_secret_key)?,
        })
    }

    /// Descriptors the server may come to need: connections, four files of each shard per disk and core, and a margin.
    #[must_use]
    pub fn files_needed(&self) -> u64 {
        let cores = self.cpus.len();
        let shards = self.shards.map_or(cores, usize::from);
        (self.http.connections_max * cores + self.disks.len() * cores * (4 * shards + 4) + 256) as u64
    }
}

fn read_file(path: &Path) -> Result<RawConfig, ConfigError> {
    let text =
        std::fs::read_to_string(path).map_err(|error| ConfigError::File { path: path.to_owned(), error })?;
    toml::from_str(&text).map_err(|error| ConfigError::Toml { path: path.to_owned(), error: Box::new(error) })
}

/// Every CPU this process may run on, or fewer where a control group grants less CPU time than that.
fn default_cores(available: usize) -> usize {
    let granted = std::thread::available_parallelism().map_or(available, std::num::NonZero::get);
    granted.clamp(1, available.max(1))
}

fn default_memory(machine: Option<u64>, cores: usize) -> u64 {
    let floor = MEMORY_PER_CORE_MIN * cores as u64;
    machine.map_or(floor, |bytes| (bytes / 4).max(floor))
}

fn timeout(name: &'static str, given: Option<Span>, default: Duration) -> Result<Duration, ConfigError> {
    match given {
        None => Ok(default),
        Some(Span(Duration::ZERO)) => Err(ConfigError::Zero { name }),
        Some(Span(span)) => Ok(span),
    }
}

fn credentials(access: Option<String>, secret: Option<String>) -> Result<Option<Credentials>, ConfigError> {
    let (access_key, secret_key) = match (access, secret) {
        (None, None) => return Ok(None),
        (Some(access), Some(secret)) => (access, secret),
        _ => return Err(ConfigError::CredentialsHalf),
    };
    let access_char = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !ACCESS_KEY_LEN.contains(&access_key.len()) || !access_key.chars().all(access_char) {
        return Err(ConfigError::AccessKey);
    }
    if !SECRET_KEY_LEN.contains(&secret_key.len()) || !secret_key.chars().all(|c| c.is_ascii_graphic()) {
        return Err(ConfigError::SecretKey);
    }
    Ok(Some(Credentials { access_key, secret_key }))
}

fn is_region(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn is_domain(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        raw: RawConfig,
    }

    fn flags(line: &str) -> RawConfig {
        Line::try_parse_from(std::iter::once("basalt").chain(line.split_whitespace())).expect(line).raw
    }

    fn derived(line: &str) -> Result<Config, ConfigError> {
        Config::derive(flags(line), &[0, 2, 4, 6], Some(16 << 30))
    }

    #[test]
    fn defaults_are_private_and_a_quarter_of_memory() {
        let config = derived("./data --cores 4").expect("valid");
        assert_eq!(config.listen.to_string(), "127.0.0.1:9000");
        assert_eq!(config.cpus, [0, 2, 4, 6]);
        assert_eq!(derived("./data --cores 6").expect("cores may share CPUs").cpus, [0, 2, 4, 6, 0, 2]);
        assert_eq!(config.memory_per_core, 1 << 30);
        assert_eq!(config.arena_len, 512 << 20);
        assert!(!config.metrics_public && config.root.is_none() && config.shards.is_none());
        assert_eq!(config.scrub_deadline, Duration::from_secs(30 * 86_400));
        assert_eq!(
            derived("d --scrub-days 7").expect("valid").scrub_deadline,
            Duration::from_secs(7 * 86_400)
        );
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let file: RawConfig = toml::from_str(
            "disks = ['/a', '/b']\nlisten = '0.0.0.0:80'\nmemory = '1GiB'\nidle-timeout = '7s'\n\
             domain = ['s3.example']\nmetrics-public = true",
        )
        .expect("valid");
        let raw = flags("--listen 127.0.0.1:1 --cores 1 --metrics-public=false").or(file);
        let config = Config::derive(raw, &[0], Some(8 << 30)).expect("valid");
        assert_eq!(config.disks, [PathBuf::from("/a"), PathBuf::from("/b")]);
        assert_eq!(config.listen.port(), 1);
        assert_eq!(config.memory_per_core, 1 << 30);
        assert_eq!(config.http.idle_timeout, Duration::from_secs(7));
        assert_eq!(config.http.header_timeout, Limits::default().header_timeout);
        assert_eq!(config.domains, ["s3.example"]);
        assert!(!config.metrics_public);
    }

    #[test]
    fn an_unknown_key_of_the_file_is_named_with_its_line() {
        let error = toml::from_str::<RawConfig>("cores = 2\nlisten_on = 'x'\n").expect_err("unknown key");
        let text = error.to_string();
        assert!(text.contains("line 2") && text.contains("listen_on"), "{text}");
        let error = toml::from_str::<RawConfig>("\n\nmemory = 'lots'\n").expect_err("not a size");
        let text = error.to_string();
        assert!(text.contains("line 3") && text.contains("lots"), "{text}");
    }

    #[test]
    fn impossible_values_are_refused_by_name() {
        for (line, wanted) in [
            ("", "no disks"),
            ("d --cores 0", "--cores 0"),
            ("d --cores 1025", "1 and 1024"),
            ("d --shards 0", "--shards 0"),
            ("d --cores 4 --memory 128MiB", "too little for 4 cores"),
            ("d --tls-cert a.pem", "--tls-key"),
            ("d --root-access-key abcdef", "go together"),
            ("d --root-access-key a/b/c --root-secret-key abcdefgh", "access key"),
            ("d --root-access-key abc --root-secret-key short", "secret key"),
            ("d --region EU_west", "region"),
            ("d --domain a..b", "domain"),
            ("d --idle-timeout 0s", "--idle-timeout must not be zero"),
            ("d --connections-max 0", "--connections-max must not be zero"),
            ("d --write-quorum 0", "--write-quorum must not be zero"),
            ("d --scrub-days 0", "--scrub-days must not be zero"),
        ] {
            let error = derived(line).expect_err(line).to_string();
            assert!(error.contains(wanted), "{line}: {error}");
        }
    }

    #[test]
    fn secrets_are_not_printed_by_debug() {
        let config = derived("d --root-access-key abc --root-secret-key topsecret").expect("valid");
        assert!(!format!("{config:?}").contains("topsecret"));
    }
}
