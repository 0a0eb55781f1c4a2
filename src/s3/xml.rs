//! S3's XML: writing results, reading request bodies.
//!
//! Results are appended to a `String` in the documented order of elements; nothing builds a tree,
//! because a LIST page of a thousand keys should cost little more than copying its keys. Request
//! bodies are read by a pull parser with hard limits on size, depth and kinds of markup.

pub mod listing;
pub mod reader;
pub mod results;
pub mod writer;

/// The namespace of every result; request bodies may leave it out, and `<Error>` has none.
pub const NAMESPACE: &str = "http://s3.amazonaws.com/doc/2006-03-01/";
