//! The configuration as it was written: one struct that the command line, the environment and the file all fill.
//!
//! Sharing the struct is what keeps the three in step: a flag cannot exist without its variable and its key.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;

use super::quantity::{Shape, Size, Span};
use crate::logging::LogFormat;

/// Unchecked configuration; whatever is absent falls to the next source.
#[derive(clap::Args, Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct RawConfig {
    /// Directories to store objects in, one per disk; {1...4} expands. `./data` is enough to begin with
    #[arg(value_name = "DISK", env = "BASALT_DISKS", value_delimiter = ',')]
    pub disks: Vec<String>,

    /// TOML file with the same names as the flags; flags and environment win over it
    #[arg(long, env = "BASALT_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,

    /// Address to serve S3 on [default: 127.0.0.1:9000]
    #[arg(long, env = "BASALT_LISTEN", value_name = "ADDR:PORT")]
    pub listen: Option<SocketAddr>,

    /// Cores to run, one pinned thread each; more than CPUs share them [default: all CPUs this process may use]
    #[arg(long, env = "BASALT_CORES", value_name = "N")]
    pub cores: Option<usize>,

    /// Shards of a new deployment, fixed when it is formatted [default: the number of cores; of sets on hard disks]
    #[arg(long, env = "BASALT_SHARDS", value_name = "N")]
    pub shards: Option<usize>,

    /// Memory to use in all [default: a quarter of the machine's or the control group's]
    #[arg(long, env = "BASALT_MEMORY", value_name = "SIZE")]
    pub memory: Option<Size>,

    /// Data and parity columns of a new deployment, such as 4+2; several sets when there are more disks [default: by
    /// their number]
    #[arg(long, env = "BASALT_ERASURE", value_name = "K+M")]
    pub erasure: Option<Shape>,

    /// Directories for log and index, apart from the data: one per disk, as many as parity columns and one more
    #[arg(long, env = "BASALT_META", value_name = "DISK", value_delimiter = ',')]
    pub meta: Vec<String>,

    /// Start although the missing disks might hold newer data: they are lost for good
    #[arg(long, env = "BASALT_START_DEGRADED", num_args = 0..=1, default_missing_value = "true",
          require_equals = true, value_name = "BOOL")]
    pub start_degraded: Option<bool>,

    /// Serve what the disks that are there have, however many are missing, and write nothing to any of them
    #[arg(long, env = "BASALT_START_READ_ONLY", num_args = 0..=1, default_missing_value = "true",
          require_equals = true, value_name = "BOOL")]
    pub start_read_only: Option<bool>,

    /// Disks of a set that must hold all they should for writes to be taken; below, they get 503 [default: as few as it takes]
    #[arg(long, env = "BASALT_WRITE_QUORUM", value_name = "N")]
    pub write_quorum: Option<u8>,

    /// Time after which a spare disk takes the place of one that is out; 0s is at once [default: 60s]
    #[arg(long, env = "BASALT_SPARE_AFTER", value_name = "TIME")]
    pub spare_after: Option<Span>,

    /// Region to report and to insist on in signatures [default: report us-east-1, accept any]
    #[arg(long, env = "BASALT_REGION", value_name = "NAME")]
    pub region: Option<String>,

    /// Domain below which host names name buckets (virtual-hosted style); repeatable
    #[arg(long = "domain", env = "BASALT_DOMAIN", value_name = "DOMAIN", value_delimiter = ',')]
    #[serde(rename = "domain")]
    pub domains: Vec<String>,

    /// Certificate chain in PEM; serves HTTPS. Read again on SIGHUP
    #[arg(long, env = "BASALT_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,

    /// Private key of the certificate in PEM
    #[arg(long, env = "BASALT_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,

    /// Root access key; wins over the stored one without changing it
    #[arg(long, env = "BASALT_ROOT_ACCESS_KEY", value_name = "KEY")]
    pub root_access_key: Option<String>,

    /// Root secret key; better given by environment or file, since flags show in process lists
    #[arg(long, env = "BASALT_ROOT_SECRET_KEY", value_name = "SECRET", hide_env_values = true)]
    pub root_secret_key: Option<String>,

    /// Let peers other than this machine read /-/metrics
    #[arg(long, env = "BASALT_METRICS_PUBLIC", num_args = 0..=1, default_missing_value = "true",
          require_equals = true, value_name = "BOOL")]
    pub metrics_public: Option<bool>,

    /// How log lines look [default: human]
    #[arg(long, env = "BASALT_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,

    /// What to log: error, warn, info, debug, trace, or directives such as basalt=debug,warn [default: info]
    #[arg(long, env = "BASALT_LOG_LEVEL", value_name = "LEVEL")]
    pub log_level: Option<String>,

    /// Log every request; without it, only those the server itself failed
    #[arg(long, env = "BASALT_ACCESS_LOG", num_args = 0..=1, default_missing_value = "true",
          require_equals = true, value_name = "BOOL")]
    pub access_log: Option<bool>,

    /// Connections over all cores; beyond it, clients are told to slow down [default: 8192]
    #[arg(long, env = "BASALT_CONNECTIONS_MAX", value_name = "N")]
    pub connections_max: Option<usize>,

    /// Time for a request's head to arrive in full [default: 30s]
    #[arg(long, env = "BASALT_HEADER_TIMEOUT", value_name = "TIME")]
    pub header_timeout: Option<Span>,

    /// Time a kept-alive connection may be silent [default: 2m]
    #[arg(long, env = "BASALT_IDLE_TIMEOUT", value_name = "TIME")]
    pub idle_timeout: Option<Span>,

    /// Interval in which an upload must bring a minimum of bytes [default: 30s]
    #[arg(long, env = "BASALT_BODY_TIMEOUT", value_name = "TIME")]
    pub body_timeout: Option<Span>,

    /// Interval in which a download must take a minimum of bytes [default: 60s]
    #[arg(long, env = "BASALT_RESPONSE_TIMEOUT", value_name = "TIME")]
    pub response_timeout: Option<Span>,

    /// Time for requests in flight to finish after SIGTERM [default: 30s]
    #[arg(long, env = "BASALT_DRAIN_TIMEOUT", value_name = "TIME")]
    pub drain_timeout: Option<Span>,

    /// Days within which everything on the disks is verified, over and over [default: 30]
    #[arg(long, env = "BASALT_SCRUB_DAYS", value_name = "DAYS")]
    pub scrub_days: Option<u16>,
}

impl RawConfig {
    /// Takes from `other` what is absent here.
    #[must_use]
    pub fn or(self, other: RawConfig) -> RawConfig {
        RawConfig {
            disks: if self.disks.is_empty() { other.disks } else { self.disks },
            config: self.config.or(other.config),
            listen: self.listen.or(other.listen),
            cores: self.cores.or(other.cores),
            shards: self.shards.or(other.shards),
            memory: self.memory.or(other.memory),
            erasure: self.erasure.or(other.erasure),
            meta: if self.meta.is_empty() { other.meta } else { self.meta },
            start_degraded: self.start_degraded.or(other.start_degraded),
            start_read_only: self.start_read_only.or(other.start_read_only),
            write_quorum: self.write_quorum.or(other.write_quorum),
            spare_after: self.spare_after.or(other.spare_after),
            region: self.region.or(other.region),
            domains: if self.domains.is_empty() { other.domains } else { self.domains },
            tls_cert: self.tls_cert.or(other.tls_cert),
            tls_key: self.tls_key.or(other.tls_key),
            root_access_key: self.root_access_key.or(other.root_access_key),
            root_secret_key: self.root_secret_key.or(other.root_secret_key),
            metrics_public: self.metrics_public.or(other.metrics_public),
            log_format: self.log_format.or(other.log_format),
            log_level: self.log_level.or(other.log_level),
            access_log: self.access_log.or(other.access_log),
            connections_max: self.connections_max.or(other.connections_max),
            header_timeout: self.header_timeout.or(other.header_timeout),
            idle_timeout: self.idle_timeout.or(other.idle_timeout),
            body_timeout: self.body_timeout.or(other.body_timeout),
            response_timeout: self.response_timeout.or(other.response_timeout),
            drain_timeout: self.drain_timeout.or(other.drain_timeout),
            scrub_days: self.scrub_days.or(other.scrub_days),
        }
    }
}
