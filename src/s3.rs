//! The S3 protocol, pure: requests become typed operations, results become XML. No I/O happens here.
