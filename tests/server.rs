//! The real binary as a child process: start-up, credentials, signals, TLS, exit codes.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod server {
    pub(crate) mod child;
}

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::server::child::{Child, directory, run_to_end};

fn get(child: &Child, path: &str) -> String {
    let mut stream = TcpStream::connect(child.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn one_command_serves_and_shows_new_credentials_once() {
    let dir = directory("once");
    let mut child = Child::start(&dir, &["./data"]);
    assert!(
        child.banner.contains("shown this once") && child.banner.contains("redundancy"),
        "{}",
        child.banner
    );
    assert!(get(&child, "/-/live").starts_with("HTTP/1.1 200 OK\r\n"));
    assert!(get(&child, "/-/metrics").contains("basalt_connections_accepted_total{core=\"0\"}"));
    let secret = child.banner.split_once("secret key  ").unwrap().1.lines().next().unwrap().to_owned();
    assert_eq!(secret.len(), 40);
    assert!(child.address.ip().is_loopback(), "going public is a decision");
    child.signal(Signal::TERM);
    assert_eq!(child.wait(), Some(0));

    let child = Child::start(&dir, &["./data"]);
    assert!(!child.banner.contains(&secret), "{}", child.banner);
    assert!(child.banner.contains("stored in ./data/root-credentials"), "{}", child.banner);
}

#[test]
fn every_core_accepts() {
    let dir = directory("cores");
    let child = Child::start(&dir, &["./data", "--cores", "2"]);
    for _ in 0..64 {
        assert!(get(&child, "/-/live").contains("200 OK"));
    }
    let metrics = get(&child, "/-/metrics");
    for core in 0..2 {
        let line = format!("basalt_connections_accepted_total{{core=\"{core}\"}} 0\n");
        assert!(!metrics.contains(&line), "core {core} got none of 65 connections");
    }
}

#[test]
fn the_first_signal_drains_and_the_second_ends() {
    let dir = directory("signals");
    let mut child = Child::start(&dir, &["./data", "--drain-timeout", "2s"]);
    // Half a request is in flight: it is waited for, but not longer than the limit.
    let mut held = TcpStream::connect(child.address).unwrap();
    held.write_all(b"GET /-/live HTTP/1.1\r\n").unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let started = Instant::now();
    child.signal(Signal::TERM);
    assert_eq!(child.wait(), Some(0));
    let took = started.elapsed();
    assert!(took > Duration::from_millis(1500) && took < Duration::from_secs(5), "{took:?}");

    let mut child = Child::start(&dir, &["./data"]);
    let mut held = TcpStream::connect(child.address).unwrap();
    held.write_all(b"GET /-/live HTTP/1.1\r\n").unwrap();
    std::thread::sleep(Duration::from_millis(100));
    child.signal(Signal::INT);
    std::thread::sleep(Duration::from_millis(600));
    held.write_all(b"host: h\r\n\r\n").unwrap();
    let mut answer = String::new();
    held.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("connection: close"), "{answer}");
    assert_eq!(child.wait(), Some(0), "nothing is left to wait for");

    let mut child = Child::start(&dir, &["./data"]);
    let mut held = TcpStream::connect(child.address).unwrap();
    held.write_all(b"GET /-/live HTTP/1.1\r\n").unwrap();
    std::thread::sleep(Duration::from_millis(100));
    child.signal(Signal::TERM);
    std::thread::sleep(Duration::from_millis(300));
    child.signal(Signal::TERM);
    assert_eq!(child.wait(), Some(7));
}

#[test]
fn a_service_manager_is_told() {
    let dir = directory("notify");
    let socket = dir.join("notify");
    let manager = UnixDatagram::bind(&socket).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut child = Child::start_with(&dir, &["./data"], |command| {
        command.env("NOTIFY_SOCKET", &socket);
    });
    let mut buf = [0; 64];
    let len = manager.recv(&mut buf).unwrap();
    assert_eq!(&buf[..len], b"READY=1");
    child.signal(Signal::TERM);
    let len = manager.recv(&mut buf).unwrap();
    assert_eq!(&buf[..len], b"STOPPING=1");
    assert_eq!(child.wait(), Some(0));
}

#[test]
fn a_start_that_cannot_succeed_says_why_with_its_own_code() {
    let dir = directory("refused");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    std::fs::write(dir.join("bad.toml"), "cores = 1\nlistem = 'x'\n").unwrap();
    std::fs::write(dir.join("file"), "").unwrap();
    for (arguments, code, wanted) in [
        (vec!["--no-such-flag"], 2, "--no-such-flag"),
        (vec![], 2, "no disks"),
        (vec!["./data", "--cores", "100000"], 2, "--cores"),
        (vec!["./data", "--config", "bad.toml"], 2, "line 2"),
        (vec!["./data", "--config", "none.toml"], 2, "none.toml"),
        (vec!["./data", "--log-level", "=="], 2, "--log-level"),
        (vec!["./data", "--listen", &taken], 4, "cannot listen on 127.0.0.1"),
        (vec!["./not/here"], 5, "./not/here"),
        (vec!["./file"], 5, "./file"),
        (vec!["./data", "--tls-cert", "file", "--tls-key", "file"], 6, "file"),
    ] {
        let (found, stderr) = run_to_end(&dir, &arguments);
        assert_eq!(found, Some(code), "{arguments:?}: {stderr}");
        assert!(stderr.contains(wanted), "{arguments:?}: {stderr}");
        assert!(!stderr.contains("panicked"), "{arguments:?}: {stderr}");
    }
}

#[test]
fn variables_and_file_configure_too() {
    let dir = directory("sources");
    std::fs::write(
        dir.join("basalt.toml"),
        "disks = ['./from-file']\nlog-format = 'json'\naccess-log = true\n",
    )
    .unwrap();
    let mut child = Child::start_with(&dir, &["--config", "basalt.toml"], |command| {
        command
            .env("BASALT_ROOT_ACCESS_KEY", "access-key-of-test")
            .env("BASALT_ROOT_SECRET_KEY", "hush-hush-hush");
    });
    assert!(child.banner.contains("as given"), "{}", child.banner);
    assert!(!child.banner.contains("hush-hush-hush"));
    assert!(dir.join("from-file").is_dir());
    assert!(!dir.join("from-file/root-credentials").exists(), "given credentials are not stored");
    get(&child, "/-/live");
    child.signal(Signal::TERM);
    assert_eq!(child.wait(), Some(0));
    let stderr = child.stderr();
    let access = stderr.lines().find(|line| line.contains("\"target\":\"access\"")).unwrap();
    let access: serde_json::Value = serde_json::from_str(access).unwrap();
    assert_eq!((&access["status"], &access["key"]), (&200.into(), &"/-/live".into()));
    for line in stderr.lines() {
        assert!(serde_json::from_str::<serde_json::Value>(line).is_ok(), "{line}");
    }
    assert!(!stderr.contains("hush-hush-hush"));
}

/// Fetches `path` over TLS, trusting `certificate` alone.
fn get_tls(child: &Child, certificate: &str, path: &str) -> std::io::Result<String> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(fixture(certificate)).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let session = rustls::ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
    let stream = TcpStream::connect(child.address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut stream = rustls::StreamOwned::new(session, stream);
    write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn fixture(name: &str) -> String {
    format!("{}/tests/fixtures/tls/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn tls_serves_and_a_new_certificate_is_taken_while_running() {
    let dir = directory("tls");
    let install = |name: &str| {
        std::fs::copy(fixture(&format!("{name}.pem")), dir.join("cert.pem")).unwrap();
        std::fs::copy(fixture(&format!("{name}.key")), dir.join("key.pem")).unwrap();
    };
    install("first");
    let mut child =
        Child::start(&dir, &["./data", "--tls-cert", "cert.pem", "--tls-key", "key.pem", "--cores", "1"]);
    assert!(child.banner.contains("https://"), "{}", child.banner);
    assert!(get_tls(&child, "first.pem", "/-/live").unwrap().contains("{\"live\":true}"));
    // Large enough for many records, with a clean end that rustls insists on.
    assert!(get_tls(&child, "first.pem", "/-/metrics").unwrap().ends_with("\n"));
    assert!(get_tls(&child, "second.pem", "/-/live").is_err(), "another issuer");

    install("second");
    child.signal(Signal::HUP);
    let deadline = Instant::now() + Duration::from_secs(5);
    while get_tls(&child, "second.pem", "/-/live").is_err() {
        assert!(Instant::now() < deadline, "the new certificate is never served");
        std::thread::sleep(Duration::from_millis(50));
    }
    std::fs::write(dir.join("key.pem"), "no key").unwrap();
    child.signal(Signal::HUP);
    std::thread::sleep(Duration::from_millis(200));
    assert!(get_tls(&child, "second.pem", "/-/live").is_ok(), "a bad file changes nothing");

    // Plain HTTP on a TLS port ends the connection and nothing else.
    let mut plain = TcpStream::connect(child.address).unwrap();
    plain.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let mut rest = Vec::new();
    let _reset = plain.read_to_end(&mut rest).is_err();
    assert!(!rest.starts_with(b"HTTP/"));
    assert!(
        get_tls(&child, "second.pem", "/-/metrics")
            .unwrap()
            .contains("basalt_tls_failures_total{core=\"0\"} ")
    );
    child.signal(Signal::TERM);
    assert_eq!(child.wait(), Some(0));
}
