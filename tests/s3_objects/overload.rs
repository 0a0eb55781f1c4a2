//! More slow clients than there is memory for: some are told to slow down, all others are served, nothing hangs.

use std::io::Write;
use std::net::TcpStream;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::child::directory;
use crate::client::{Answer, read_answer};
use crate::{KIB, MIB, Server, content, cores, start_with};

/// The least memory that a core takes, in MiB.
const MEMORY_PER_CORE_MIB: usize = 64;
/// What the process takes beyond its envelope: the program itself, its threads, and what the allocator keeps.
const SLACK_MIB: usize = 48;
/// Longer than a request waits for memory.
const SETTLED: Duration = Duration::from_millis(1800);

fn small_server(name: &str) -> (Server, usize) {
    let envelope = MEMORY_PER_CORE_MIB * cores().parse::<usize>().unwrap();
    let server = start_with(&directory(name), &["--memory", &format!("{envelope}MiB")]);
    assert_eq!(server.client.call("PUT", "/bucket", &[], b"").status, 200);
    (server, envelope)
}

/// Whether something has arrived.
fn is_answered(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let answered = stream.peek(&mut [0]).is_ok();
    stream.set_nonblocking(false).unwrap();
    answered
}

/// Whether the answer is a success; otherwise it must be the one documented refusal.
fn is_served(answer: &Answer) -> bool {
    if answer.status == 200 {
        return true;
    }
    assert_eq!((answer.status, answer.code().as_str()), (503, "SlowDown"), "{answer:?}");
    assert_eq!(answer.header("retry-after"), "1");
    false
}

/// While others hold all memory, a request is answered soon, one way or the other.
fn nothing_hangs(server: &Server) {
    let started = Instant::now();
    let answers = [
        server.client.call("PUT", "/bucket/probe", &[], b"probe"),
        server.client.call("GET", "/bucket?list-type=2", &[], b""),
        server.client.call("GET", "/bucket/object", &[("range", "bytes=0-9")], b""),
    ];
    assert!(started.elapsed() < Duration::from_secs(6), "{:?}", started.elapsed());
    for answer in answers {
        let _either = answer.status == 206 || is_served(&answer);
    }
}

/// Afterwards everything is as before, and memory never grew beyond the envelope.
fn all_is_well_again(server: &Server, envelope: usize) {
    let body = content(3 * MIB);
    assert_eq!(server.client.call("PUT", "/bucket/after", &[], &body).status, 200);
    assert!(server.client.call("GET", "/bucket/after", &[], b"").body == body);
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.child.process.id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak_mib = peak.trim().trim_end_matches(" kB").parse::<usize>().unwrap() / KIB;
    println!("peak {peak_mib} MiB of {envelope}");
    assert!(peak_mib <= envelope + SLACK_MIB, "{peak_mib} MiB, {envelope} were granted");
}

#[test]
fn slow_uploads_beyond_memory_are_told_to_slow_down() {
    const UPLOADS: usize = 700;
    let (server, envelope) = small_server("overload-uploads");
    let body = content(256 * KIB);
    assert_eq!(server.client.call("PUT", "/bucket/object", &[], &body).status, 200);
    let mut uploads: Vec<TcpStream> = (0..UPLOADS)
        .map(|index| {
            let mut stream = server.client.begin("PUT", &format!("/bucket/slow-{index}"), body.len() as u64);
            stream.write_all(&body[..16 * KIB]).unwrap();
            stream
        })
        .collect();
    sleep(SETTLED);
    nothing_hangs(&server);
    // Whoever has no answer by now was admitted, and is served when the rest comes.
    let mut admitted = Vec::new();
    let mut refused = 0;
    for (index, mut stream) in uploads.drain(..).enumerate() {
        if is_answered(&stream) {
            assert!(!is_served(&read_answer(stream, "PUT")), "an answer before the body is a refusal");
            refused += 1;
        } else {
            stream.write_all(&body[16 * KIB..]).unwrap();
            admitted.push((index, stream));
        }
    }
    println!("{} admitted, {refused} refused", admitted.len());
    assert!(admitted.len() > UPLOADS / 8 && refused > 0);
    let mut last = 0;
    for (index, stream) in admitted {
        let answer = read_answer(stream, "PUT");
        assert_eq!(answer.status, 200, "{index}: {answer:?}");
        last = index;
    }
    assert!(server.client.call("GET", &format!("/bucket/slow-{last}"), &[], b"").body == body);
    all_is_well_again(&server, envelope);
}

#[test]
fn slow_downloads_beyond_memory_are_told_to_slow_down() {
    const DOWNLOADS: usize = 500;
    let (server, envelope) = small_server("overload-downloads");
    // Longer than what the kernel's buffers take.
    let body = content(9 * MIB);
    assert_eq!(server.client.call("PUT", "/bucket/object", &[], &body).status, 200);
    let downloads: Vec<TcpStream> =
        (0..DOWNLOADS).map(|_| server.client.begin("GET", "/bucket/object", 0)).collect();
    sleep(SETTLED);
    nothing_hangs(&server);
    let (mut served, mut refused) = (0, 0);
    for stream in downloads {
        let answer = read_answer(stream, "GET");
        if is_served(&answer) {
            assert!(answer.body == body, "another body");
            served += 1;
        } else {
            refused += 1;
        }
    }
    println!("{served} served, {refused} refused");
    assert!(served > DOWNLOADS / 8 && refused > 0);
    all_is_well_again(&server, envelope);
}

/// A page of a thousand long names is megabytes, more so once they are escaped.
#[test]
fn slow_listings_of_long_names_are_told_to_slow_down() {
    const LISTINGS: usize = 150;
    const NAMES: usize = 1000;
    let (server, envelope) = small_server("overload-listings");
    // Behind all others, and not on the page.
    assert_eq!(server.client.call("PUT", "/bucket/object", &[], &content(KIB)).status, 200);
    for index in 0..NAMES {
        let name = format!("/bucket/{}{index:04}", "%22".repeat(1020));
        assert_eq!(server.client.call("PUT", &name, &[], b"").status, 200);
    }
    let listings: Vec<TcpStream> =
        (0..LISTINGS).map(|_| server.client.begin("GET", "/bucket?list-type=2", 0)).collect();
    sleep(SETTLED);
    nothing_hangs(&server);
    let (mut served, mut refused) = (0, 0);
    for stream in listings {
        let answer = read_answer(stream, "GET");
        if is_served(&answer) {
            let shown = answer.body.windows(5).filter(|window| window == b"<Key>").count();
            assert_eq!(shown, NAMES);
            served += 1;
        } else {
            refused += 1;
        }
    }
    println!("{served} served, {refused} refused");
    assert!(served > 0 && refused > 0);
    all_is_well_again(&server, envelope);
}

/// Who announces the longest list of parts and does not send it holds its length, not what it would take once it is understood.
#[test]
fn slow_documents_do_not_take_all_memory() {
    const DOCUMENTS: usize = 4;
    let (server, envelope) = small_server("overload-documents");
    assert_eq!(server.client.call("PUT", "/bucket/object", &[], &content(KIB)).status, 200);
    let target = format!("/bucket/key?uploadId={}", "0".repeat(32));
    let documents: Vec<TcpStream> =
        (0..DOCUMENTS).map(|_| server.client.begin("POST", &target, 4 * MIB as u64)).collect();
    sleep(SETTLED);
    assert!(!documents.iter().any(is_answered));
    for index in 0..16 {
        let path = format!("/bucket/beside-{index}");
        assert_eq!(server.client.call("PUT", &path, &[], &content(256 * KIB)).status, 200);
    }
    drop(documents);
    all_is_well_again(&server, envelope);
}
