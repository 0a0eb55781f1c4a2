//! Every bound of the HTTP layer, by name: what a request may weigh and how long a peer may take.

use std::time::Duration;

/// Longest request target (path and query) in bytes. A key has at most 1,024 bytes, 3,072 percent-encoded; the rest
/// is room for a presigned query with a session token.
pub const URI_LEN_MAX: usize = 16 << 10;
/// Longest request head in bytes, request line included. AWS allows 8 KiB of headers beside the URI.
pub const HEAD_LEN_MAX: usize = 32 << 10;
/// The most header fields of a request; hyper's own default, which it keeps on the stack.
pub const HEADERS_MAX: usize = 100;
/// Largest read buffer, and bytes of response queued before a flush, per connection.
pub const BUFFER_LEN_MAX: usize = 256 << 10;
/// Most bytes taken from a socket by one read, so that the read buffer of an upload stays at about twice this.
pub const READ_LEN_MAX: usize = 64 << 10;
/// An unread body up to this length that has already arrived is discarded to keep its connection.
pub const DISCARD_LEN_MAX: u64 = 64 << 10;
/// Bytes discarded after an early refusal, so that the answer arrives before the connection is torn down.
pub const LINGER_LEN_MAX: u64 = 16 << 20;
/// How long discarding after an early refusal goes on.
pub const LINGER_TIME_MAX: Duration = Duration::from_secs(5);
/// Connections beyond the cap that are being told so at one time; further ones are just closed.
pub const REFUSALS_MAX: usize = 64;
/// Bytes an upload must bring, or a download take, per timeout interval.
pub const PROGRESS_LEN_MIN: u64 = 4 << 10;
/// How often a core looks after its connections: the resolution of all their timeouts.
pub const WATCH_INTERVAL: Duration = Duration::from_millis(250);

/// The bounds an operator can set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections of one core.
    pub connections_max: usize,
    /// From the first byte of a request head (or from the accept) to its last.
    pub header_timeout: Duration,
    /// Silence between two requests of a connection.
    pub idle_timeout: Duration,
    /// Interval in which an upload must bring [`PROGRESS_LEN_MIN`] bytes while the server waits for it.
    pub body_timeout: Duration,
    /// Interval in which a download must take [`PROGRESS_LEN_MIN`] bytes while the server has some to send.
    pub response_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections_max: 4096,
            header_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(120),
            body_timeout: Duration::from_secs(30),
            response_timeout: Duration::from_secs(60),
        }
    }
}
