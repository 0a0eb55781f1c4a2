//! The HTTP layer against raw sockets: what slow, broken and hostile peers can do, with a stand-in for the service.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod http {
    pub(crate) mod harness;
}

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use basalt::http::limits::{Limits, WATCH_INTERVAL};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::http::harness::{Client, Server, limits};

#[test]
fn every_answer_carries_the_usual_headers() {
    let server = Server::start(limits());
    let mut client = Client::connect(&server);
    client.send("GET /hello HTTP/1.1\r\nhost: h\r\n\r\n");
    let first = client.answer();
    assert_eq!((first.status, first.body.as_slice()), (200, &b"hello"[..]));
    assert_eq!(first.header("server"), Some("Basalt"));
    assert!(first.header("date").is_some_and(|date| date.ends_with(" GMT")));
    let id = first.header("x-amz-request-id").unwrap().to_owned();
    assert!(id.len() == 16 && id.bytes().all(|b| b.is_ascii_hexdigit()), "{id}");
    assert_eq!(first.header("x-amz-id-2"), Some("test-host"));
    client.send("GET /hello HTTP/1.1\r\nhost: h\r\n\r\n");
    assert_ne!(client.answer().header("x-amz-request-id"), Some(id.as_str()));
}

#[test]
fn fifty_pipelined_requests_get_fifty_answers_in_order() {
    let server = Server::start(limits());
    let mut client = Client::connect(&server);
    let mut all = String::new();
    for index in 0..50 {
        let body = format!("body {index}");
        all.push_str(&format!(
            "PUT /echo HTTP/1.1\r\nhost: h\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        ));
    }
    client.send(&all);
    for index in 0..50 {
        let answer = client.answer();
        assert_eq!((answer.status, answer.text()), (200, format!("body {index}")));
    }
    assert!(client.is_open());
}

#[test]
fn large_bodies_go_both_ways() {
    let server = Server::start(limits());
    let mut client = Client::connect(&server);
    let body: Vec<u8> = (0..3_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    client.send(&format!("PUT /echo HTTP/1.1\r\nhost: h\r\ncontent-length: {}\r\n\r\n", body.len()));
    client.send_bytes(&body);
    assert!(client.answer().body == body);
    client.send("GET /slices/7000000 HTTP/1.1\r\nhost: h\r\n\r\n");
    let answer = client.answer();
    assert_eq!(answer.header("content-length"), Some("7000000"));
    assert!(answer.body.iter().enumerate().all(|(index, byte)| *byte == (index / 65_536) as u8));
    assert_eq!(answer.body.len(), 7_000_000);
}

/// A connection over TLS that trusts the server's certificate alone.
fn connect_tls(server: &Server) -> rustls::StreamOwned<rustls::ClientConnection, TcpStream> {
    let mut roots = rustls::RootCertStore::empty();
    let certificate = format!("{}/tests/fixtures/tls/first.pem", env!("CARGO_MANIFEST_DIR"));
    roots.add(CertificateDer::from_pem_file(certificate).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let session = rustls::ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
    let stream = TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    rustls::StreamOwned::new(session, stream)
}

#[test]
fn large_bodies_go_both_ways_over_tls() {
    let server = Server::start_with(limits(), Some("first"));
    let mut stream = connect_tls(&server);
    let body: Vec<u8> = (0..3_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    write!(stream, "PUT /echo HTTP/1.1\r\nhost: h\r\ncontent-length: {}\r\n\r\n", body.len()).unwrap();
    stream.write_all(&body).unwrap();
    write!(stream, "GET /slices/7000000 HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").unwrap();
    let mut all = Vec::new();
    // A missing close_notify would be an error here.
    stream.read_to_end(&mut all).unwrap();
    let head_end = |bytes: &[u8]| bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
    let rest = all.split_off(head_end(&all));
    assert!(rest[..body.len()] == body);
    let rest = &rest[body.len()..];
    let slices = &rest[head_end(rest)..];
    assert_eq!(slices.len(), 7_000_000);
    assert!(slices.iter().enumerate().all(|(index, byte)| *byte == (index / 65_536) as u8));
}

#[test]
fn arena_slices_are_sent_without_copying() {
    let server = Server::start(limits());
    let mut client = Client::connect(&server);
    client.send("GET /slices/4194304 HTTP/1.1\r\nhost: h\r\n\r\n");
    assert_eq!(client.answer().body.len(), 4 << 20);
    // Response heads are copied; bodies are not.
    let copied = payload_copied(&mut client);
    assert!(copied < 4096, "{copied} bytes copied");
    // Bytes from elsewhere are, and the counter says so.
    client.send(&format!(
        "PUT /echo HTTP/1.1\r\nhost: h\r\ncontent-length: 300000\r\n\r\n{}",
        "x".repeat(300_000)
    ));
    assert_eq!(client.answer().body.len(), 300_000);
    let copied = payload_copied(&mut client);
    assert!(copied >= 300_000, "{copied} bytes copied");
}

fn payload_copied(client: &mut Client) -> u64 {
    // The ring's counters are sampled by the watch.
    std::thread::sleep(2 * WATCH_INTERVAL);
    client.send("GET /-/metrics HTTP/1.1\r\nhost: h\r\n\r\n");
    let metrics = client.answer().text();
    let line = metrics.lines().find(|line| line.starts_with("basalt_payload_copied_bytes_total{")).unwrap();
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn a_body_of_unknown_length_is_sent_as_it_grows() {
    let server = Server::start(limits());
    let mut client = Client::connect(&server);
    client.send("GET /whitespace HTTP/1.1\r\nhost: h\r\n\r\n");
    let answer = client.answer();
    assert_eq!(answer.header("transfer-encoding"), Some("chunked"));
    assert_eq!(answer.text(), "   done");
    assert!(client.is_open());
    // HTTP/1.0 knows no chunks: the end of the connection is the end of the body.
    client.send("GET /whitespace HTTP/1.0\r\n\r\n");
    let rest = client.rest();
    assert!(rest.ends_with("\r\n\r\n   done"), "{rest}");
}

#[test]
fn head_has_the_length_and_no_body() {
    let server = Server::start(limits());
    let mut client = Client::connect(&server);
    client.send("HEAD /hello HTTP/1.1\r\nhost: h\r\n\r\nGET /hello HTTP/1.1\r\nhost: h\r\n\r\n");
    let head = client.answer_to_head();
    assert_eq!(head.header("content-length"), Some("5"));
    assert_eq!(client.answer().text(), "hello");
}

#[test]
fn an_early_refusal_of_an_upload_arrives_and_its_body_is_never_a_request() {
    let server = Server::start(limits());
    for upload_len in [200_000, 1 << 20, 8 << 20] {
        let mut client = Client::connect(&server);
        client.send(&format!("PUT /refuse HTTP/1.1\r\nhost: h\r\ncontent-length: {upload_len}\r\n\r\n"));
        let smuggled = b"GET /hello HTTP/1.1\r\nhost: h\r\n\r\n";
        let body: Vec<u8> = smuggled.iter().copied().cycle().take(upload_len).collect();
        // Everything is sent before anything is read: a reset would now destroy the answer.
        client.send_bytes(&body);
        let answer = client.answer();
        assert_eq!(answer.status, 403, "{upload_len}");
        assert_eq!(answer.header("connection"), Some("close"));
        assert_eq!(client.rest(), "", "nothing follows the refusal of {upload_len} bytes");
    }
}

#[test]
fn a_small_refused_upload_keeps_its_connection() {
    let server = Server::start(limits());
    let mut client = Client::connect(&server);
    for _ in 0..3 {
        client.send("PUT /refuse HTTP/1.1\r\nhost: h\r\ncontent-length: 10\r\n\r\n0123456789");
        let answer = client.answer();
        assert_eq!((answer.status, answer.header("connection")), (403, None));
    }
    client.send("GET /hello HTTP/1.1\r\nhost: h\r\n\r\n");
    assert_eq!(client.answer().text(), "hello");
}

#[test]
fn a_client_that_expects_100_is_told_to_continue_or_refused_before_it_sends() {
    let server = Server::start(limits());
    let mut client = Client::connect(&server);
    client.send("PUT /echo HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n");
    assert_eq!(client.answer_to_head().status, 100);
    client.send("12345");
    assert_eq!(client.answer().text(), "12345");
    client.send("PUT /refuse HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n");
    let refusal = client.answer();
    assert_eq!((refusal.status, refusal.header("connection")), (403, Some("close")));
    assert_eq!(client.rest(), "");
}

#[test]
fn http_1_0_and_absolute_form_work() {
    let server = Server::start(limits());
    let mut client = Client::connect(&server);
    client.send("GET /hello HTTP/1.0\r\n\r\n");
    let rest = client.rest();
    assert!(rest.starts_with("HTTP/1.0 200 OK\r\n") && rest.ends_with("hello"), "{rest}");
    let mut client = Client::connect(&server);
    client.send("GET /hello HTTP/1.0\r\nconnection: keep-alive\r\n\r\n");
    assert_eq!(client.answer().text(), "hello");
    client.send("GET http://s3.example:80/hello HTTP/1.1\r\nhost: other\r\n\r\n");
    assert_eq!(client.answer().text(), "hello");
}

#[test]
fn a_request_with_two_hosts_is_refused() {
    let server = Server::start(limits());
    for second in ["h", "other"] {
        let mut client = Client::connect(&server);
        client.send(&format!("GET /hello HTTP/1.1\r\nhost: h\r\nhost: {second}\r\n\r\n"));
        let answer = client.answer();
        assert_eq!(answer.status, 400, "{}", answer.text());
        assert!(answer.text().contains("<Code>BadRequest</Code>"), "{}", answer.text());
    }
}

#[test]
fn ambiguous_framing_is_refused_or_ends_the_connection() {
    let server = Server::start(limits());
    for (what, request) in [
        (
            "two lengths",
            "PUT /echo HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n12345",
        ),
        ("a list of lengths", "PUT /echo HTTP/1.1\r\nhost: h\r\ncontent-length: 5, 6\r\n\r\n12345"),
        ("a signed length", "PUT /echo HTTP/1.1\r\nhost: h\r\ncontent-length: +5\r\n\r\n12345"),
        ("a negative length", "PUT /echo HTTP/1.1\r\nhost: h\r\ncontent-length: -1\r\n\r\n"),
        (
            "a coding that is not chunked last",
            "PUT /echo HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked, gzip\r\n\r\n",
        ),
        ("an unknown coding", "PUT /echo HTTP/1.1\r\nhost: h\r\ntransfer-encoding: xchunked\r\n\r\n"),
        ("chunked in 1.0", "PUT /echo HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
        ("a folded header", "GET /hello HTTP/1.1\r\nhost: h\r\nx-a: b\r\n c\r\n\r\n"),
        ("a space before the colon", "PUT /echo HTTP/1.1\r\nhost: h\r\ncontent-length : 5\r\n\r\n12345"),
        ("a bare CR", "GET /hello HTTP/1.1\r\nhost: h\r\nx: a\rb\r\n\r\n"),
        ("no method", "\x01\x02\x03 / HTTP/1.1\r\n\r\n"),
        ("another version", "GET / HTTP/3.7\r\n\r\n"),
    ] {
        let mut client = Client::connect(&server);
        client.send(request);
        let answer = client.answer();
        assert_eq!(answer.status, 400, "{what}");
        assert_eq!(answer.header("connection"), Some("close"), "{what}");
        assert!(answer.text().contains("<Code>BadRequest</Code>"), "{what}: {}", answer.text());
        assert_eq!(answer.header("x-amz-request-id").map(str::len), Some(16), "{what}");
        assert_eq!(client.rest(), "", "{what}");
    }
    // Chunked wins over a length (RFC 9112, 6.3), and nothing after it is believed.
    let mut client = Client::connect(&server);
    client.send(
        "PUT /echo HTTP/1.1\r\nhost: h\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n\
         3\r\nabc\r\n0\r\n\r\nGET /hello HTTP/1.1\r\nhost: h\r\n\r\n",
    );
    let answer = client.answer();
    assert_eq!((answer.status, answer.text().as_str()), (200, "abc"));
    assert_eq!(client.rest(), "");
}

#[test]
fn malformed_chunks_end_the_body_with_an_error() {
    let server = Server::start(limits());
    for chunks in ["zz\r\nabc\r\n0\r\n\r\n", "3\r\nabcX\r\n0\r\n\r\n", "ffffffffffffffffff\r\nabc\r\n"] {
        let mut client = Client::connect(&server);
        client.send("PUT /echo HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n");
        client.send(chunks);
        let answer = client.answer();
        assert_eq!((answer.status, answer.text().as_str()), (400, "Incomplete"), "{chunks:?}");
        assert_eq!(answer.header("connection"), Some("close"), "{chunks:?}");
    }
}

#[test]
fn oversized_heads_are_refused_in_words() {
    let server = Server::start(limits());
    let mut client = Client::connect(&server);
    client.send(&format!("GET /{} HTTP/1.1\r\nhost: h\r\n\r\n", "a".repeat(20_000)));
    let answer = client.answer();
    assert_eq!(answer.status, 400);
    assert!(answer.text().contains("<Code>InvalidURI</Code>"), "{}", answer.text());

    let mut client = Client::connect(&server);
    client.send(&format!("GET /hello HTTP/1.1\r\nhost: h\r\nx-a: {}\r\n\r\n", "a".repeat(60_000)));
    let answer = client.answer();
    assert_eq!(answer.status, 400);
    assert!(answer.text().contains("<Code>RequestHeaderSectionTooLarge</Code>"), "{}", answer.text());

    let mut client = Client::connect(&server);
    let many: String = (0..200).map(|n| format!("x-{n}: 1\r\n")).collect();
    client.send(&format!("GET /hello HTTP/1.1\r\nhost: h\r\n{many}\r\n"));
    assert!(client.answer().text().contains("<Code>RequestHeaderSectionTooLarge</Code>"));
    let mut client = Client::connect(&server);
    client.send(&format!("GET /{} HTTP/1.1\r\nhost: h\r\n\r\n", "a".repeat(10_000)));
    assert_eq!(client.answer().status, 404, "a long but possible key passes");
}

#[test]
fn a_head_that_never_ends_is_answered_and_closed() {
    let server = Server::start(Limits { header_timeout: Duration::from_millis(500), ..limits() });
    let mut silent = Client::connect(&server);
    let mut slow = Client::connect(&server);
    let started = Instant::now();
    slow.send("GET /hello HTTP/1.1\r\n");
    while started.elapsed() < Duration::from_millis(1500) {
        // A byte from time to time buys no time. Writes fail once the server has given up.
        if slow.stream.write_all(b"x: y\r\n").is_err() {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let answer = slow.answer();
    assert_eq!(answer.status, 400);
    assert!(answer.text().contains("<Code>RequestTimeout</Code>"));
    silent.rest();
    assert!(started.elapsed() < Duration::from_secs(4));
}

#[test]
fn an_idle_connection_is_closed_in_silence() {
    let server = Server::start(Limits { idle_timeout: Duration::from_millis(500), ..limits() });
    let mut client = Client::connect(&server);
    client.send("GET /hello HTTP/1.1\r\nhost: h\r\n\r\n");
    assert_eq!(client.answer().text(), "hello");
    let started = Instant::now();
    assert_eq!(client.rest(), "");
    let idle = started.elapsed();
    assert!(idle > Duration::from_millis(300) && idle < Duration::from_secs(3), "{idle:?}");
}

#[test]
fn a_trickling_upload_is_given_up_and_a_slow_handler_is_not() {
    let server = Server::start(Limits { body_timeout: Duration::from_millis(700), ..limits() });
    let mut client = Client::connect(&server);
    client.send("PUT /echo HTTP/1.1\r\nhost: h\r\ncontent-length: 100000\r\n\r\n");
    let started = Instant::now();
    let mut sender = client.stream.try_clone().unwrap();
    let trickle = std::thread::spawn(move || {
        for _ in 0..40 {
            if sender.write_all(b"x").is_err() {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    let answer = client.answer();
    assert_eq!((answer.status, answer.text().as_str()), (400, "TooSlow"));
    assert_eq!(answer.header("connection"), Some("close"));
    assert!(started.elapsed() < Duration::from_secs(3));
    trickle.join().unwrap();
    let mut client = Client::connect(&server);
    client.send("GET /sleep/2000 HTTP/1.1\r\nhost: h\r\n\r\n");
    assert_eq!(client.answer().text(), "slept");
}

#[test]
fn a_truncated_upload_is_an_error_for_the_handler_and_an_answer_for_the_client() {
    let server = Server::start(limits());
    let mut client = Client::connect(&server);
    client.send("PUT /echo HTTP/1.1\r\nhost: h\r\ncontent-length: 100\r\n\r\nonly this");
    client.stream.shutdown(Shutdown::Write).unwrap();
    let answer = client.answer();
    assert_eq!((answer.status, answer.text().as_str()), (400, "Incomplete"));
    // A client that has said everything and closed its side still gets its answer.
    let mut client = Client::connect(&server);
    client.send("GET /sleep/300 HTTP/1.1\r\nhost: h\r\n\r\n");
    client.stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.answer().text(), "slept");
}

#[test]
fn a_reader_that_stalls_is_cut_and_frees_its_buffers() {
    let server = Server::start(Limits { response_timeout: Duration::from_millis(700), ..limits() });
    let mut stalled = Client::connect(&server);
    stalled.send("GET /slices/200000000 HTTP/1.1\r\nhost: h\r\n\r\n");
    std::thread::sleep(Duration::from_secs(2));
    let mut client = Client::connect(&server);
    client.send("GET /-/metrics HTTP/1.1\r\nhost: h\r\n\r\n");
    let metrics = client.answer().text();
    assert!(metrics.contains("basalt_response_timeouts_total{core=\"0\"} 1\n"));
    assert!(metrics.contains("basalt_connections_open{core=\"0\"} 1\n"));
    let mut sink = Vec::new();
    // Whatever was on its way arrives, then the end: never the whole body.
    let _reset = stalled.stream.read_to_end(&mut sink).is_err();
    assert!(sink.len() < 200_000_000);
}

#[test]
fn a_response_that_cannot_be_completed_is_visibly_cut() {
    let server = Server::start(limits());
    let mut client = Client::connect(&server);
    client.send("GET /abort HTTP/1.1\r\nhost: h\r\n\r\n");
    let rest = client.rest();
    assert!(rest.contains("content-length: 100") && rest.ends_with("\r\n\r\npart"), "{rest}");
}

#[test]
fn connections_beyond_the_cap_are_told_to_slow_down_over_tls_too() {
    let server = Server::start_with(Limits { connections_max: 2, ..limits() }, Some("first"));
    let request = "GET /hello HTTP/1.1\r\nhost: h\r\n\r\n";
    let mut held: Vec<_> = (0..2).map(|_| connect_tls(&server)).collect();
    for stream in &mut held {
        stream.write_all(request.as_bytes()).unwrap();
        let mut status = [0; "HTTP/1.1 200".len()];
        stream.read_exact(&mut status).unwrap();
        assert_eq!(&status, b"HTTP/1.1 200");
    }
    let mut refused = connect_tls(&server);
    refused.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    // A missing close_notify would be an error here.
    refused.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("<Code>SlowDown</Code>"), "{answer}");
}

#[test]
fn connections_beyond_the_cap_are_told_to_slow_down() {
    let server = Server::start(Limits { connections_max: 3, ..limits() });
    let mut held: Vec<Client> = (0..3).map(|_| Client::connect(&server)).collect();
    for client in &mut held {
        client.send("GET /hello HTTP/1.1\r\nhost: h\r\n\r\n");
        assert_eq!(client.answer().status, 200);
    }
    let mut refused = Client::connect(&server);
    refused.send("GET /hello HTTP/1.1\r\nhost: h\r\n\r\n");
    let answer = refused.answer();
    assert_eq!((answer.status, answer.header("connection")), (503, Some("close")));
    assert!(answer.text().contains("<Code>SlowDown</Code>"));
    assert_eq!(refused.rest(), "");
    drop(held.pop());
    let deadline = Instant::now() + Duration::from_secs(3);
    loop {
        let mut client = Client::connect(&server);
        client.send("GET /hello HTTP/1.1\r\nhost: h\r\n\r\n");
        if client.answer().status == 200 {
            break;
        }
        assert!(Instant::now() < deadline, "a freed place is given to the next client");
    }
}

#[test]
fn health_and_metrics_are_answered_before_the_service() {
    let server = Server::start(limits());
    let mut client = Client::connect(&server);
    for (path, wanted) in [
        ("/-/live", "{\"live\":true}"),
        ("/-/ready", "{\"ready\":true}"),
        ("/minio/health/live", "{\"live\":true}"),
        ("/minio/health/cluster", "{\"ready\":true}"),
    ] {
        client.send(&format!("GET {path} HTTP/1.1\r\nhost: h\r\n\r\n"));
        let answer = client.answer();
        assert_eq!((answer.status, answer.text().as_str()), (200, wanted), "{path}");
    }
    client.send("GET /-/metrics HTTP/1.1\r\nhost: h\r\n\r\n");
    let metrics = client.answer().text();
    assert!(metrics.contains("basalt_connections_open{core=\"0\"} 1\n"), "{metrics}");
    assert!(metrics.contains("basalt_request_duration_seconds_count{operation=\"-live\"} 2\n"), "{metrics}");
}

#[test]
fn draining_finishes_what_is_in_flight_and_closes_the_rest() {
    let server = Server::start(limits());
    let mut idle = Client::connect(&server);
    idle.send("GET /hello HTTP/1.1\r\nhost: h\r\n\r\n");
    assert_eq!(idle.answer().status, 200);
    let mut busy = Client::connect(&server);
    busy.send("GET /sleep/1200 HTTP/1.1\r\nhost: h\r\n\r\n");
    std::thread::sleep(Duration::from_millis(200));
    server.stop();
    assert_eq!(idle.rest(), "");
    let answer = busy.answer();
    assert_eq!((answer.text().as_str(), answer.header("connection")), ("slept", Some("close")));
    assert_eq!(busy.rest(), "");
    assert!(TcpStream::connect(server.address).is_err(), "nobody accepts any more");
}
