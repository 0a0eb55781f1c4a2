//! The S3 protocol, pure: requests become typed operations, results become XML. No I/O happens here.
#![expect(dead_code, unreachable_pub, reason = "wired up by the service layer")]

pub mod error;
