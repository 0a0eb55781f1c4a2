//! Access lines: one per request, formatted by hand and handed to the log queue in bunches.
//!
//! Each core fills a buffer of its own and sends it when it is long enough or at the next watch tick, so a line costs
//! a few hundred nanoseconds and no wake-up of the writer thread.

use std::cell::RefCell;
use std::fmt::Write;
use std::net::SocketAddr;
use std::time::Duration;

use super::json::push_string;
use super::{LogFormat, LogQueue};
use crate::http::RequestId;

/// Bytes of lines a core collects before it hands them over.
const BUFFER_LEN: usize = 16 << 10;
/// Longest text shown of any one field, in bytes.
const FIELD_LEN_MAX: usize = 1024;

/// One core's access log.
pub struct AccessLog {
    queue: LogQueue,
    format: LogFormat,
    /// All requests, or only those answered with a 5xx status or not at all.
    all: bool,
    buffer: RefCell<String>,
}

/// What is known of a request when it is over.
#[derive(Clone, Debug)]
pub struct AccessLine<'a> {
    /// Seconds since the Unix epoch when the request's head had arrived, with nanoseconds.
    pub time: Duration,
    pub id: RequestId,
    pub client: SocketAddr,
    pub access_key: Option<&'a str>,
    pub method: &'a str,
    pub operation: &'a str,
    pub bucket: Option<&'a str>,
    /// The object key; without a bucket, the path of the request.
    pub key: Option<&'a str>,
    /// Zero when the connection ended before there was an answer.
    pub status: u16,
    pub code: Option<&'a str>,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub first_byte: Option<Duration>,
    pub total: Duration,
    /// Whether the whole answer was handed to the kernel.
    pub complete: bool,
}

impl AccessLog {
    pub fn new(queue: LogQueue, format: LogFormat, all: bool) -> AccessLog {
        AccessLog { queue, format, all, buffer: RefCell::new(String::new()) }
    }

    /// Whether a request that ended with `status` gets a line.
    pub fn wants(&self, status: u16) -> bool {
        self.all || status >= 500
    }

    pub fn write(&self, line: &AccessLine<'_>) {
        let mut buffer = self.buffer.borrow_mut();
        match self.format {
            LogFormat::Human => push_human(&mut buffer, line),
            LogFormat::Json => push_json(&mut buffer, line),
        }
        buffer.push('\n');
        if buffer.len() >= BUFFER_LEN {
            self.queue.send(std::mem::take(&mut *buffer).into_bytes());
        }
    }

    /// Hands over what has collected. Called from time to time, and at the end.
    pub fn flush(&self) {
        let mut buffer = self.buffer.borrow_mut();
        if !buffer.is_empty() {
            self.queue.send(std::mem::take(&mut *buffer).into_bytes());
        }
    }
}

fn push_human(out: &mut String, line: &AccessLine<'_>) {
    push_time(out, line.time);
    write_all(
        out,
        format_args!("  INFO access: {} {} {} ", line.id, line.client, line.access_key.unwrap_or("-")),
    );
    push_shown(out, line.method);
    write_all(out, format_args!(" {} ", line.operation));
    if let Some(bucket) = line.bucket {
        push_shown(out, bucket);
        out.push('/');
    }
    push_shown(out, line.key.unwrap_or(""));
    write_all(
        out,
        format_args!(
            " {} {} in={} out={} first_ms={:.3} total_ms={:.3}",
            line.status,
            line.code.unwrap_or("-"),
            line.bytes_in,
            line.bytes_out,
            millis(line.first_byte.unwrap_or(line.total)),
            millis(line.total)
        ),
    );
    if !line.complete {
        out.push_str(" aborted");
    }
}

fn push_json(out: &mut String, line: &AccessLine<'_>) {
    out.push_str("{\"timestamp\":\"");
    push_time(out, line.time);
    write_all(
        out,
        format_args!(
            "\",\"level\":\"INFO\",\"target\":\"access\",\"id\":\"{}\",\"client\":\"{}\"",
            line.id, line.client
        ),
    );
    push_field(out, "access_key", line.access_key);
    push_field(out, "method", Some(line.method));
    push_field(out, "operation", Some(line.operation));
    push_field(out, "bucket", line.bucket);
    push_field(out, "key", line.key);
    push_field(out, "code", line.code);
    write_all(
        out,
        format_args!(
            ",\"status\":{},\"bytes_in\":{},\"bytes_out\":{},\"first_byte_ms\":{:.3},\"total_ms\":{:.3},\
             \"complete\":{}}}",
            line.status,
            line.bytes_in,
            line.bytes_out,
            millis(line.first_byte.unwrap_or(line.total)),
            millis(line.total),
            line.complete
        ),
    );
}

fn push_field(out: &mut String, name: &str, value: Option<&str>) {
    if let Some(value) = value {
        write_all(out, format_args!(",\"{name}\":"));
        push_string(out, clipped(value));
    }
}

/// Text from outside in a line for people: whatever could break the line or its columns is escaped.
fn push_shown(out: &mut String, text: &str) {
    for c in clipped(text).chars() {
        if c.is_control() || c == ' ' || c == '\\' {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
}

fn clipped(text: &str) -> &str {
    &text[..text.floor_char_boundary(FIELD_LEN_MAX)]
}

fn push_time(out: &mut String, since_epoch: Duration) {
    let secs = i64::try_from(since_epoch.as_secs()).unwrap_or(i64::MAX);
    let time = time::OffsetDateTime::from_unix_timestamp(secs).unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    let (date, clock) = (time.date(), time.time());
    write_all(
        out,
        format_args!(
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}Z",
            date.year(),
            u8::from(date.month()),
            date.day(),
            clock.hour(),
            clock.minute(),
            clock.second(),
            since_epoch.subsec_micros()
        ),
    );
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn write_all(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("a String takes everything");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line() -> AccessLine<'static> {
        AccessLine {
            time: Duration::new(1_700_000_000, 5_000),
            id: RequestId::from_u64(0xab),
            client: "127.0.0.1:5000".parse().expect("valid"),
            access_key: Some("AKIA"),
            method: "PUT",
            operation: "PutObject",
            bucket: Some("b"),
            key: Some("a b\n\"c\""),
            status: 503,
            code: Some("SlowDown"),
            bytes_in: 10,
            bytes_out: 20,
            first_byte: Some(Duration::from_micros(1500)),
            total: Duration::from_millis(2),
            complete: true,
        }
    }

    #[test]
    fn a_json_line_is_one_object_whatever_the_key_holds() {
        let mut out = String::new();
        push_json(&mut out, &line());
        let value: serde_json::Value = serde_json::from_str(&out).expect("one object");
        assert_eq!(value["timestamp"], "2023-11-14T22:13:20.000005Z");
        assert_eq!(value["id"], "00000000000000AB");
        assert_eq!(value["key"], "a b\n\"c\"");
        assert_eq!(value["first_byte_ms"], 1.5);
        assert_eq!(value["status"], 503);
    }

    #[test]
    fn a_human_line_is_one_line_with_stable_columns() {
        let mut out = String::new();
        push_human(&mut out, &line());
        assert_eq!(
            out,
            "2023-11-14T22:13:20.000005Z  INFO access: 00000000000000AB 127.0.0.1:5000 AKIA PUT PutObject \
             b/a\\u{20}b\\u{a}\"c\" 503 SlowDown in=10 out=20 first_ms=1.500 total_ms=2.000"
        );
    }

    #[test]
    fn long_fields_are_clipped_between_characters() {
        let long = "é".repeat(FIELD_LEN_MAX);
        assert_eq!(clipped(&long).len(), FIELD_LEN_MAX);
        assert_eq!(clipped(&format!("a{long}")).len(), FIELD_LEN_MAX - 1);
    }
}
