//! Objects through the real binary: put, read, copied, deleted, and still there after a kill.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[expect(dead_code, reason = "the server's own tests use all of it")]
#[path = "server/child.rs"]
mod child;
#[path = "s3_objects/client.rs"]
mod client;
#[path = "s3_objects/lost_index.rs"]
mod lost_index;
#[path = "s3_objects/metrics.rs"]
mod metrics;
#[path = "s3_objects/overload.rs"]
mod overload;

use rustix::process::Signal;

use crate::child::{Child, directory};
use crate::client::{ACCESS_KEY, Client, SECRET_KEY};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

struct Server {
    child: Child,
    client: Client,
}

fn start(dir: &std::path::Path) -> Server {
    start_with(dir, &[])
}

fn start_with(dir: &std::path::Path, more: &[&str]) -> Server {
    start_on(dir, &["disk"], more)
}

fn start_on(dir: &std::path::Path, disks: &[&str], more: &[&str]) -> Server {
    let keys = ["--root-access-key", ACCESS_KEY, "--root-secret-key", SECRET_KEY];
    let arguments = [disks, &["--cores", cores()], &keys, more].concat();
    let child = Child::start(dir, &arguments);
    let client = Client::new(child.address);
    Server { child, client }
}

/// Two where the machine has them, so that requests cross cores.
fn cores() -> &'static str {
    if std::thread::available_parallelism().is_ok_and(|count| count.get() > 1) { "2" } else { "1" }
}

fn with_bucket(name: &str) -> Server {
    let server = start(&directory(name));
    assert_eq!(server.client.call("PUT", "/bucket", &[], b"").status, 200);
    server
}

/// Bytes that repeat nowhere near a block's length.
fn content(len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

#[test]
fn objects_of_every_size_come_back_whole_and_in_part() {
    let server = with_bucket("objects-sizes");
    let client = &server.client;
    for len in [0, 1, 5, 4096, 64 * KIB, 64 * KIB + 1, MIB, 9 * MIB + 12_345] {
        let body = content(len);
        let target = format!("/bucket/of-{len}");
        let put = client.call("PUT", &target, &[("content-type", "text/x")], &body);
        assert_eq!(put.status, 200, "{len}: {put:?}");
        let got = client.call("GET", &target, &[("x-amz-checksum-mode", "ENABLED")], b"");
        assert_eq!((got.status, got.header("etag")), (200, put.header("etag")), "{len}");
        assert!(got.body == body, "{len}: another body");
        assert_eq!(got.header("content-type"), "text/x");
        let checksum = "x-amz-checksum-crc64nvme";
        assert!(!got.header(checksum).is_empty() && got.header(checksum) == put.header(checksum));
        let head = client.call("HEAD", &target, &[], b"");
        assert_eq!((head.status, head.header("content-length")), (200, len.to_string().as_str()));
        if len > 4 {
            let (first, last) = (len / 3, len - 2);
            let range = format!("bytes={first}-{last}");
            let part = client.call("GET", &target, &[("range", &range)], b"");
            assert_eq!(part.status, 206, "{len}");
            assert!(part.body == body[first..=last], "{len}: another range");
        }
    }
}

#[test]
fn what_is_refused_changes_nothing() {
    let server = with_bucket("objects-refused");
    let client = &server.client;
    let put = client.call("PUT", "/bucket/k", &[], b"before");
    let etag = put.header("etag");
    for (headers, body, status, code) in [
        (&[("if-none-match", "*")][..], &b"x"[..], 412, "PreconditionFailed"),
        (&[("if-match", "\"00000000000000000000000000000000\"")], b"x", 412, "PreconditionFailed"),
        (&[("content-md5", "AAAAAAAAAAAAAAAAAAAAAA==")], b"x", 400, "BadDigest"),
        (&[("x-amz-checksum-crc32", "AAAAAA==")], b"x", 400, "BadDigest"),
        (&[("x-amz-server-side-encryption", "AES256")], b"x", 501, "NotImplemented"),
        (&[("x-amz-expected-bucket-owner", "111122223333")], b"x", 403, "AccessDenied"),
    ] {
        let answer = client.call("PUT", "/bucket/k", headers, body);
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{headers:?}");
    }
    client.truncated("/bucket/k", 4 * MIB as u64, &content(2 * MIB));
    let too_long = client.expecting("/bucket/k", (5 << 30) + 1);
    assert_eq!((too_long.status, too_long.code().as_str()), (400, "EntityTooLarge"));
    let nowhere = client.expecting("/no-such-bucket/k", 5);
    assert_eq!((nowhere.status, nowhere.code().as_str()), (404, "NoSuchBucket"));
    assert_eq!(client.expecting("/bucket/k", 5).status, 100);
    let got = client.call("GET", "/bucket/k", &[("if-match", etag)], b"");
    assert_eq!((got.status, got.body.as_slice()), (200, &b"before"[..]));
    assert_eq!(client.call("GET", "/bucket/k", &[("if-none-match", etag)], b"").status, 304);
    assert_eq!(client.call("PUT", "/bucket/k", &[("if-match", etag)], b"after").status, 200);
    assert_eq!(client.call("GET", "/bucket/k", &[], b"").body, b"after");
}

#[test]
fn deletes_one_by_one_and_in_batches() {
    let server = with_bucket("objects-deletes");
    let client = &server.client;
    let etag = client.call("PUT", "/bucket/one", &[], b"1").header("etag").to_owned();
    let stale = [("if-match", "\"00000000000000000000000000000000\"")];
    assert_eq!(client.call("DELETE", "/bucket/one", &stale, b"").status, 412);
    assert_eq!(client.call("DELETE", "/bucket/one", &[("if-match", &etag)], b"").status, 204);
    assert_eq!(client.call("DELETE", "/bucket/one", &[], b"").status, 204, "nothing is left to delete");
    assert_eq!(client.call("GET", "/bucket/one", &[], b"").code(), "NoSuchKey");

    let keys: Vec<String> = (0..200).map(|number| format!("many-{number:03}")).collect();
    for key in &keys {
        assert_eq!(client.call("PUT", &format!("/bucket/{key}"), &[], key.as_bytes()).status, 200);
    }
    let mut document = String::from("<Delete>");
    for key in keys.iter().chain([&"k".repeat(1025), &"missing".to_owned()]) {
        document.push_str(&format!("<Object><Key>{key}</Key></Object>"));
    }
    document.push_str("</Delete>");
    let bare = client.call("POST", "/bucket?delete=", &[], document.as_bytes());
    assert_eq!((bare.status, bare.code().as_str()), (400, "InvalidRequest"), "it needs a checksum");
    let digest = {
        use base64::Engine as _;
        use sha2::Digest as _;
        base64::engine::general_purpose::STANDARD.encode(sha2::Sha256::digest(document.as_bytes()))
    };
    let sum = [("x-amz-checksum-sha256", digest.as_str())];
    let answer = client.call("POST", "/bucket?delete=", &sum, document.as_bytes());
    assert_eq!(answer.status, 200, "{answer:?}");
    let text = String::from_utf8(answer.body.clone()).unwrap();
    assert_eq!(text.matches("<Deleted>").count(), 201, "a missing key counts as deleted");
    assert_eq!(answer.code(), "KeyTooLongError", "one bad key fails alone");
    for key in &keys {
        assert_eq!(client.call("HEAD", &format!("/bucket/{key}"), &[], b"").status, 404);
    }
}

#[test]
fn copies_are_objects_of_their_own() {
    let server = with_bucket("objects-copies");
    let client = &server.client;
    let body = content(3 * MIB + 17);
    let put = client.call("PUT", "/bucket/a", &[("x-amz-meta-a", "1")], &body);
    let source = ("x-amz-copy-source", "/bucket/a");
    // Several names, so that some copy goes to another shard.
    for number in 0..8 {
        let target = format!("/bucket/copy-{number}");
        let copied = client.call("PUT", &target, &[source], b"");
        assert_eq!(copied.status, 200, "{copied:?}");
        assert_eq!(copied.element("ETag").replace("&quot;", "\""), put.header("etag"));
        let got = client.call("GET", &target, &[], b"");
        assert!(got.body == body && got.header("x-amz-meta-a") == "1");
    }
    let replaced = [source, ("x-amz-metadata-directive", "REPLACE"), ("x-amz-meta-b", "2")];
    assert_eq!(
        client.call("PUT", "/bucket/a", &replaced, b"").status,
        200,
        "onto itself, with other metadata"
    );
    let head = client.call("HEAD", "/bucket/a", &[], b"");
    assert_eq!((head.header("x-amz-meta-a"), head.header("x-amz-meta-b")), ("", "2"));
    assert_eq!(client.call("PUT", "/bucket/a", &[source], b"").code(), "InvalidRequest");
    let guarded = [source, ("if-none-match", "*")];
    assert_eq!(client.call("PUT", "/bucket/copy-0", &guarded, b"").status, 412);
    let changed = [source, ("x-amz-copy-source-if-match", "\"00000000000000000000000000000000\"")];
    assert_eq!(client.call("PUT", "/bucket/copy-0", &changed, b"").status, 412);
    let missing = [("x-amz-copy-source", "bucket/missing")];
    assert_eq!(client.call("PUT", "/bucket/copy-0", &missing, b"").code(), "NoSuchKey");
    assert!(client.call("GET", "/bucket/copy-0", &[], b"").body == body);
}

#[test]
fn an_acknowledged_object_survives_a_kill() {
    let dir = directory("objects-kill");
    let (small, large) = (content(100), content(2 * MIB));
    {
        let server = start(&dir);
        assert_eq!(server.client.call("PUT", "/bucket", &[], b"").status, 200);
        assert_eq!(server.client.call("PUT", "/bucket/small", &[], &small).status, 200);
        assert_eq!(server.client.call("PUT", "/bucket/large", &[], &large).status, 200);
        // Dropping the child is SIGKILL.
    }
    let server = start(&dir);
    assert!(server.client.call("GET", "/bucket/small", &[], b"").body == small);
    assert!(server.client.call("GET", "/bucket/large", &[], b"").body == large);
}

/// Log batches that the start of `server` replayed, over all cores.
fn replayed(server: &Server) -> u64 {
    let stderr = server.child.stderr();
    let lines: Vec<&str> = stderr.lines().filter(|line| line.contains("log replayed")).collect();
    assert_eq!(lines.len(), cores().parse::<usize>().unwrap(), "{stderr}");
    let batches = |line: &&str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        line["batches"].as_u64().unwrap()
    };
    lines.iter().map(batches).sum()
}

#[test]
fn a_clean_stop_leaves_nothing_to_replay() {
    let dir = directory("objects-clean-stop");
    let json = ["--log-format", "json"];
    let mut server = start_with(&dir, &json);
    assert_eq!(server.client.call("PUT", "/bucket", &[], b"").status, 200);
    for index in 0..20 {
        let body = content(index * 20 * KIB);
        assert_eq!(server.client.call("PUT", &format!("/bucket/{index}"), &[], &body).status, 200);
    }
    server.child.signal(Signal::TERM);
    assert_eq!(server.child.wait(), Some(0));

    let server = start_with(&dir, &json);
    assert_eq!(replayed(&server), 0);
    for index in 0..20 {
        assert!(
            server.client.call("GET", &format!("/bucket/{index}"), &[], b"").body
                == content(index * 20 * KIB)
        );
    }
    assert_eq!(server.client.call("PUT", "/bucket/after", &[], b"x").status, 200);
    // Killed, not stopped.
    drop(server);
    let server = start_with(&dir, &json);
    assert!(replayed(&server) > 0);
    assert_eq!(server.client.call("GET", "/bucket/after", &[], b"").body, b"x");
}
