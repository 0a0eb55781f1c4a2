//! Logging: tracing events and access lines, human or JSON, on stderr.
//!
//! A core must never wait for a slow terminal or a full pipe, so every line goes through one bounded queue to a
//! writer thread; when the queue is full the line is dropped and counted. Access lines do not pass through tracing:
//! at these request rates its formatting would be the most expensive part of a request (see [`access`]).

pub mod access;
mod json;
mod writer;

use serde::Deserialize;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

pub use self::writer::{LogQueue, LogWriter};

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people: one aligned line.
    Human,
    /// For machines: one JSON object per line.
    Json,
}

/// A log level or directive that was not understood.
#[derive(Debug)]
pub struct BadLevel(String);

impl std::fmt::Display for BadLevel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "--log-level: {}", self.0)
    }
}

impl std::error::Error for BadLevel {}

/// Starts the writer thread and installs the process's subscriber. Keep the [`LogWriter`] until the end: dropping it
/// writes out what is queued.
///
/// # Errors
/// [`BadLevel`] when the directives do not parse.
///
/// # Panics
/// If the writer thread cannot be started.
pub fn start(format: LogFormat, level: &str) -> Result<LogWriter, BadLevel> {
    let filter = EnvFilter::builder().parse(level).map_err(|error| BadLevel(error.to_string()))?;
    let writer = LogWriter::start(std::io::stderr());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer.queue());
    // A second call (tests that start two servers in one process) keeps the first subscriber.
    let _already_set = match format {
        LogFormat::Human => builder.with_ansi(false).try_init().is_err(),
        LogFormat::Json => builder.json().flatten_event(true).try_init().is_err(),
    };
    Ok(writer)
}

impl<'a> MakeWriter<'a> for LogQueue {
    type Writer = LogQueue;

    fn make_writer(&'a self) -> LogQueue {
        self.clone()
    }
}
