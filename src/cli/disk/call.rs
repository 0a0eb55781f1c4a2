//! Talking to the server that runs on this machine: where it is, and with whose word.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use basalt_bench::{Call, Credentials};
use http::Method;
use serde_json::Value;

use crate::config::LISTEN_DEFAULT;
use crate::server::stored_credentials;

/// Longer than an epoch takes in which a disk does not answer.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Where the server is, and who asks.
#[derive(clap::Args, Clone)]
pub(super) struct Server {
    /// The running server [default: http://127.0.0.1:9000, or what BASALT_LISTEN says]
    #[arg(long, env = "BASALT_ENDPOINT", value_name = "URL")]
    endpoint: Option<String>,
    /// Accept any TLS certificate
    #[arg(long)]
    insecure: bool,
    /// Root access key [default: what is stored on the server's disks]
    #[arg(long, env = "BASALT_ROOT_ACCESS_KEY", value_name = "KEY")]
    root_access_key: Option<String>,
    /// Root secret key; better given by environment, since flags show in process lists
    #[arg(long, env = "BASALT_ROOT_SECRET_KEY", value_name = "SECRET", hide_env_values = true)]
    root_secret_key: Option<String>,
}

impl Server {
    fn endpoint(&self) -> String {
        if let Some(endpoint) = &self.endpoint {
            return endpoint.trim_end_matches('/').to_owned();
        }
        let listen = std::env::var("BASALT_LISTEN").ok().and_then(|address| address.parse().ok());
        let address: SocketAddr = listen.unwrap_or(LISTEN_DEFAULT);
        let ip = match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        format!("http://{}", SocketAddr::new(ip, address.port()))
    }

    fn given(&self) -> Option<Credentials> {
        let (access, secret) = (self.root_access_key.as_ref()?, self.root_secret_key.as_ref()?);
        Some(Credentials { access_key: access.clone(), secret_key: secret.clone(), session_token: None })
    }

    fn send(
        &self,
        method: &Method,
        path: &str,
        query: &[(&str, &str)],
        credentials: &Credentials,
    ) -> Result<Value, String> {
        let endpoint = self.endpoint();
        let call =
            Call { endpoint: &endpoint, insecure: self.insecure, timeout: TIMEOUT, method, path, query };
        let body = call.send(credentials).map_err(|error| format!("{endpoint}: {error}"))?;
        serde_json::from_slice(&body).map_err(|error| format!("{endpoint} is no Basalt server: {error}"))
    }

    /// What the server knows of its disks.
    pub(super) fn list(&self) -> Result<Value, String> {
        // On this machine nobody asks who looks.
        let nobody = || Credentials {
            access_key: "nobody".to_owned(),
            secret_key: "nobody".to_owned(),
            session_token: None,
        };
        self.send(&Method::GET, "/-/disks", &[], &self.given().unwrap_or_else(nobody))
    }

    /// Gives an order about a disk, with the root credentials: those given, else those stored on the server's disks.
    pub(super) fn order(&self, report: &Value, what: &str, query: &[(&str, &str)]) -> Result<(), String> {
        let credentials = self.given().or_else(|| stored(report)).ok_or(
            "no root credentials: give BASALT_ROOT_ACCESS_KEY and BASALT_ROOT_SECRET_KEY, or be somebody who may read \
             root-credentials on the disks",
        )?;
        self.send(&Method::POST, &format!("/-/disks/{what}"), query, &credentials).map(drop)
    }
}

fn stored(report: &Value) -> Option<Credentials> {
    let disks = report["disks"].as_array()?.iter().filter_map(|disk| disk["path"].as_str());
    let found = disks.filter_map(|path| stored_credentials(Path::new(path))).next()?;
    Some(Credentials { access_key: found.access_key, secret_key: found.secret_key, session_token: None })
}
