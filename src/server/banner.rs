//! What the operator sees when the server is up: where it is, how to get in, what it survives, one line to try.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use super::credentials::{Origin, RootCredentials};

/// `stored` is where new credentials were just put; only then are they shown.
pub(super) fn banner(
    address: SocketAddr,
    tls: bool,
    root: &RootCredentials,
    stored: Option<&Path>,
    redundancy: &str,
) -> String {
    let scheme = if tls { "https" } else { "http" };
    let mut out = format!("Basalt {}\n  endpoint     {scheme}://{address}\n", env!("CARGO_PKG_VERSION"));
    let mut line = |text: std::fmt::Arguments<'_>| {
        out.write_fmt(text).expect("a String takes everything");
        out.push('\n');
    };
    match (&root.origin, stored) {
        (Origin::Given, _) => line(format_args!("  credentials  as given (BASALT_ROOT_ACCESS_KEY)")),
        (Origin::Stored(path), _) => line(format_args!("  credentials  stored in {}", path.display())),
        (Origin::Generated, path) => {
            let path = path.unwrap_or(Path::new("nowhere"));
            line(format_args!("  credentials  new, stored in {}; shown this once:", path.display()));
            line(format_args!("                 access key  {}", root.credentials.access_key));
            line(format_args!("                 secret key  {}", root.credentials.secret_key));
        }
    }
    line(format_args!("  redundancy   {redundancy}"));
    let (access, secret) = match root.origin {
        Origin::Generated => (root.credentials.access_key.as_str(), root.credentials.secret_key.as_str()),
        Origin::Given | Origin::Stored(_) => ("…", "…"),
    };
    line(format_args!(
        "  try          AWS_ACCESS_KEY_ID={access} AWS_SECRET_ACCESS_KEY={secret} \\\n               \
         aws --endpoint-url {scheme}://{} s3 mb s3://first-bucket",
        reachable(address)
    ));
    out
}

/// An address a client on this machine can connect to, where the server listens on all of them.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Credentials;

    fn root(origin: Origin) -> RootCredentials {
        let credentials = Credentials { access_key: "ACCESS".to_owned(), secret_key: "hush-hush".to_owned() };
        RootCredentials { credentials, origin }
    }

    #[test]
    fn secrets_are_shown_only_when_new() {
        let address = "0.0.0.0:9000".parse().expect("valid");
        let new =
            banner(address, false, &root(Origin::Generated), Some(Path::new("d/root-credentials")), "none");
        assert!(new.contains("hush-hush") && new.contains("d/root-credentials"), "{new}");
        assert!(new.contains("http://0.0.0.0:9000") && new.contains("--endpoint-url http://127.0.0.1:9000"));
        for origin in [Origin::Given, Origin::Stored("d/root-credentials".into())] {
            let old = banner(address, true, &root(origin), None, "none");
            assert!(!old.contains("hush-hush") && old.contains("https://"), "{old}");
        }
    }
}
