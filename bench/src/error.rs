//! Why a run could not be made. Errors of single requests are counted, not raised; see [`Failure`].

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::client::Failure;

/// What ends a benchmark before it has a result.
#[derive(Debug)]
pub enum Error {
    /// Options that make no sense, alone or together.
    Argument { option: &'static str, reason: String },
    /// A file could not be read or written.
    File { path: PathBuf, source: io::Error },
    /// A result file that is no result.
    Result { path: PathBuf, source: serde_json::Error },
    /// Something of the operating system that was asked for: an affinity, a thread, a file in /proc.
    System { what: String, source: io::Error },
    /// A request without which the run makes no sense.
    Request { what: String, failure: Failure },
    /// Keys under the prefix that this run did not write.
    PrefixInUse { bucket: String, prefix: String, key: String },
    /// `--existing`, and the objects are not those of the inputs.
    NotTheObjects { reason: String },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Argument { option, reason } => write!(f, "{option}: {reason}"),
            Self::File { path, source } => write!(f, "{}: {source}", path.display()),
            Self::Result { path, source } => write!(f, "{} is no benchmark result: {source}", path.display()),
            Self::System { what, source } => write!(f, "{what}: {source}"),
            Self::Request { what, failure } => write!(f, "{what}: {failure}"),
            Self::PrefixInUse { bucket, prefix, key } => write!(
                f,
                "bucket {bucket} already holds {key:?} under the prefix {prefix:?}: choose another --prefix, \
                 or use the objects of an earlier run with --existing"
            ),
            Self::NotTheObjects { reason } => {
                write!(
                    f,
                    "the existing objects are not those of --seed, --size, --objects and --prefix: {reason}"
                )
            }
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::File { source, .. } | Self::System { source, .. } => Some(source),
            Self::Result { source, .. } => Some(source),
            Self::Request { failure, .. } => Some(failure),
            Self::Argument { .. } | Self::PrefixInUse { .. } | Self::NotTheObjects { .. } => None,
        }
    }
}
