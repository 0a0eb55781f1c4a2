//! The server: S3 over HTTP in front of the engine. A library only so that tests can put their own handler behind the
//! HTTP layer; the binary is `basalt::cli::main`.

pub mod cli;
pub mod config;
pub mod http;
pub mod logging;
pub mod metrics;
pub mod s3;
pub mod server;
mod service;
