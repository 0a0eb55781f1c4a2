//! One signed request to a server's own endpoints, for tools that tell a running server what to do.

use std::sync::Arc;
use std::time::Duration;

use http::Method;

use crate::client::{Client, Failure, Request};
use crate::plan;
use crate::signer::Credentials;

/// Bytes of an answer that are taken.
const ANSWER_LEN_MAX: usize = 16 << 20;

/// Servers that accept any region accept this one.
const REGION: &str = "us-east-1";

/// A request without a body.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// Such as `http://127.0.0.1:9000`.
    pub endpoint: &'a str,
    /// Any certificate will do.
    pub insecure: bool,
    pub timeout: Duration,
    pub method: &'a Method,
    /// Begins with `/`, at least two parts, not encoded.
    pub path: &'a str,
    /// Not encoded, sorted by name.
    pub query: &'a [(&'a str, &'a str)],
}

impl Call<'_> {
    /// Sends it, signed by `credentials`, and gives the body of a 2xx answer.
    ///
    /// # Errors
    /// [`Failure`]; [`Failure::Connect`] also for an endpoint that makes no sense.
    pub fn send(&self, credentials: &Credentials) -> Result<Vec<u8>, Failure> {
        let refuse = |error: &dyn std::fmt::Display| Failure::Connect(error.to_string());
        let target =
            plan::target(self.endpoint, self.insecure, self.timeout).map_err(|error| refuse(&error))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(|error| refuse(&error))?;
        let mut client = Client::new(Arc::new(target), credentials.clone(), REGION, false);
        let (first, rest) = self.path.trim_start_matches('/').split_once('/').unwrap_or((self.path, ""));
        let mut request = Request::new(self.method.clone(), first, Some(rest));
        request.query = self.query;
        runtime.block_on(client.exchange_whole(request, ANSWER_LEN_MAX)).map(|(_, body)| body)
    }
}
