//! Whole runs against a small S3 in memory: every workload at once right and verified, and every lie found.

mod fake_s3;

use std::net::SocketAddr;
use std::process::ExitCode;

use basalt_bench::{Args, EXIT_FAILED_REQUESTS, EXIT_FAILED_VERIFICATION, Error, Report};
use clap::Parser as _;

use crate::fake_s3::{FakeS3, Lie};

#[derive(clap::Parser)]
struct Line {
    #[command(flatten)]
    args: Args,
}

fn args(address: SocketAddr, line: &str) -> Args {
    let endpoint = format!("http://{address}");
    let words = ["bench"].into_iter().chain(line.split_whitespace());
    let rest = ["--endpoint", &endpoint, "--access-key", "test", "--secret-key", "secret", "--quiet"];
    Line::try_parse_from(words.chain(rest)).unwrap_or_else(|error| panic!("{line}: {error}")).args
}

fn measure(address: SocketAddr, line: &str) -> Report {
    let result = basalt_bench::measure_command(&args(address, line).command);
    result.unwrap_or_else(|error| panic!("{line}: {error}")).expect("a load command")
}

/// Runs against an honest server and expects a result without a blemish and a server without remains.
fn right(line: &str) -> Report {
    let (fake, address) = FakeS3::start(Lie::None);
    let report = measure(address, line);
    assert_eq!(report.exit_code(false), 0, "{line}\n{}", report.table());
    assert!(report.total.count > 0 && report.verification.faults == 0, "{line}\n{}", report.table());
    assert_eq!(report.server_software.as_deref(), Some("FakeS3"));
    assert!(!report.limited_by.is_empty());
    assert!(fake.contents().is_empty(), "{line}: {:?}", fake.contents());
    report
}

/// Runs against a lying server and expects to be told; the answer is the evidence.
fn wrong(lie: Lie, line: &str) -> String {
    let (_, address) = FakeS3::start(lie);
    let report = measure(address, line);
    assert_eq!(report.exit_code(true), EXIT_FAILED_VERIFICATION, "{lie:?} {line}\n{}", report.table());
    assert!(report.table().contains("WRONG ANSWERS"));
    report.verification.examples.join("\n")
}

#[test]
fn put() {
    let report = right("put --ops 100 --objects 40 --size 0-300000 -c 8 --threads 2");
    assert_eq!(report.total.count, 100);
    assert_eq!(report.verification.etags_verified, 100);
    assert_eq!(report.verification.listed_verified, 40);
}

#[test]
fn get() {
    let report = right("get --ops 100 --objects 20 --size 1KiB:1,100KiB-200KiB:1 -c 4");
    assert_eq!(report.total.count, 100);
    assert_eq!(report.verification.bytes_verified, report.total.bytes);
    assert!(report.verification.etags_verified >= 120, "each GET's, and each PUT's before");
}

#[test]
fn range() {
    let report = right("range --ops 100 --objects 5 --size 1MiB --range-size 1-70000 -c 4");
    assert_eq!(report.verification.bytes_verified, report.total.bytes);
}

#[test]
fn stat() {
    assert_eq!(right("stat --ops 50 --objects 10 --size 100 -c 4").total.count, 50);
}

#[test]
fn list() {
    let report = right("list --ops 50 --objects 250 --folder 10 --size 0 --list-page 20 -c 4");
    assert!(report.verification.listed_verified > 400, "{}", report.verification.listed_verified);
    let report = right("list --ops 50 --objects 250 --folder 10 --size 0 --list-page 7 --delimiter / -c 4");
    assert!(report.verification.listed_verified > 100);
}

#[test]
fn delete() {
    let report = right("delete --objects 60 --size 10 -c 8 --duration 30s --warmup 0s");
    assert_eq!(report.total.count, 60);
    assert!(report.exhausted, "the run ended with the objects, not with the time");
}

#[test]
fn multipart() {
    let report = right("multipart --ops 6 --objects 4 --size 11MiB --part-size 5MiB -c 2");
    let row = |name: &str| report.operations.iter().find(|row| row.name == name).expect("a row");
    assert_eq!(row("multipart").throughput.count, 6);
    assert_eq!(row("· part").throughput.count, 18);
    assert_eq!(report.total.count, 6, "steps are no operations");
    assert_eq!(report.verification.etags_verified, 6);
}

#[test]
fn mixed() {
    let mix = "--mix get=30,put=20,range=20,stat=10,delete=10,list=10";
    let report = right(&format!("mixed {mix} --ops 600 --objects 60 --size 1-20000 -c 6 --threads 2"));
    assert_eq!(report.operations.len(), 6);
    assert!(report.verification.bytes_verified > 0 && report.verification.listed_verified > 0);
}

#[test]
fn for_a_time_at_a_rate() {
    let report = right("get --duration 500ms --warmup 100ms --rate 200 --objects 10 --size 100 -c 4");
    let rate = report.total.ops_per_second;
    assert!((100.0..=240.0).contains(&rate), "{rate} operations per second at --rate 200");
}

#[test]
fn signed_payloads_and_checksums() {
    for option in ["--sign-payload", "--checksum crc32", "--checksum crc32-trailer"] {
        right(&format!("put --ops 10 --objects 10 --size 100000-200000 -c 2 {option}"));
    }
}

#[test]
fn the_process_is_observed() {
    let report =
        right(&format!("get --ops 200 --objects 10 --size 100000 --server-pid {}", std::process::id()));
    let server = report.server.as_ref().expect("asked for");
    assert!(server.cpus_allowed > 0 && server.rss_bytes_max.is_some_and(|bytes| bytes > 0));
    assert!(report.table().contains("µs CPU per operation"));
}

#[test]
fn a_seed_reproduces_a_run() {
    let line = "get --ops 50 --objects 20 --size 1-9999 -c 1 --seed 7";
    assert_eq!(right(line).total.bytes, right(line).total.bytes);
}

#[test]
fn lies_are_found() {
    let get = "get --ops 20 --objects 8 --size 5000 -c 2";
    assert!(wrong(Lie::FlipBit, get).contains("byte 4999 is"));
    assert!(wrong(Lie::ServeOther, get).contains("these bytes are of bench/"));
    assert!(
        wrong(Lie::ShiftRange, "range --ops 20 --objects 8 --size 5000 --range-size 100 -c 2")
            .contains("byte")
    );
    assert!(
        wrong(Lie::WrongLength, "stat --ops 20 --objects 8 --size 10 -c 2").contains("Content-Length is 11")
    );
    assert!(wrong(Lie::OmitListed, "list --ops 5 --objects 20 --size 0 -c 1").contains("not listed"));
    let stale = "mixed --mix get=1,put=1 --ops 100 --objects 4 --size 5000 -c 2";
    assert!(wrong(Lie::ServeStale, stale).contains("these bytes are of generation"));
}

#[test]
fn lies_about_writes_are_found() {
    let put = "put --ops 30 --objects 30 --size 5000 -c 2";
    assert!(wrong(Lie::WrongEtag, put).contains("ETag is"));
    assert!(wrong(Lie::ForgetPuts, put).contains("exists and is not listed"));
    assert!(
        wrong(Lie::KeepDeleted, "delete --objects 20 --size 10 -c 2").contains("was deleted and is listed")
    );
    let multipart = "multipart --ops 2 --objects 2 --size 11MiB --part-size 5MiB -c 1";
    assert!(wrong(Lie::ReverseParts, multipart).contains("ETag is"));
    let lost = wrong(Lie::ForgetPuts, "stat --ops 40 --objects 40 --size 10 -c 1");
    assert!(lost.contains("acknowledged, and now HTTP 404"), "{lost}");
}

#[test]
fn without_verification_lies_pass() {
    let (_, address) = FakeS3::start(Lie::FlipBit);
    let report = measure(address, "get --ops 20 --objects 8 --size 5000 -c 2 --no-verify");
    assert_eq!(report.exit_code(false), 0);
    assert!(report.table().contains("nothing was verified"));
}

#[test]
fn refusals_are_counted_by_code() {
    let (_, address) = FakeS3::start(Lie::Refuse);
    let line = "put --ops 100 --objects 50 --size 100 -c 4";
    let report = measure(address, line);
    assert_eq!(report.failures[0].code, "SlowDown");
    assert!((15..=25).contains(&report.failures[0].count), "{}", report.failures[0].count);
    assert_eq!(report.total.count + report.total.failures, 100);
    assert_eq!(report.verification.faults, 0, "an error is not a wrong answer\n{}", report.table());
    assert_eq!(report.exit_code(false), EXIT_FAILED_REQUESTS);
    assert_eq!(report.exit_code(true), 0);
}

#[test]
fn a_server_that_hangs_up_is_reached_again() {
    let (_, address) = FakeS3::start(Lie::HangUp);
    let report = measure(address, "mixed --ops 100 --objects 10 --size 5000 -c 2");
    assert_eq!((report.exit_code(false), report.total.count), (0, 100), "{}", report.table());
}

#[test]
fn tls() {
    let (fake, address) = FakeS3::start_tls();
    let endpoint = format!("https://localhost:{}", address.port());
    let secure = |line: &str| {
        let words = ["bench"].into_iter().chain(line.split_whitespace());
        let rest = ["--endpoint", &endpoint, "--access-key", "test", "--secret-key", "secret", "--quiet"];
        let line = Line::try_parse_from(words.chain(rest)).expect("a valid line");
        basalt_bench::measure_command(&line.args.command)
    };
    let report = secure("get --insecure --ops 20 --objects 5 --size 300000 -c 2");
    let report = report.expect("a result").expect("a load command");
    assert_eq!(report.exit_code(false), 0, "{}", report.table());
    assert!(fake.contents().is_empty());
    let refused = secure("get --ops 1 --objects 1 -c 1");
    assert!(matches!(refused, Err(Error::Request { .. } | Error::Argument { .. })), "{refused:?}");
}

#[test]
fn kept_objects_can_be_used_again() {
    let (fake, address) = FakeS3::start(Lie::None);
    let objects = "--objects 20 --size 1000-2000 -c 2 --ops 20";
    measure(address, &format!("get --keep {objects}"));
    assert_eq!(fake.contents()["basalt-bench"].len(), 20);
    let report = measure(address, &format!("get --existing {objects}"));
    assert_eq!(report.exit_code(false), 0, "{}", report.table());
    assert_eq!(fake.contents()["basalt-bench"].len(), 20, "--existing removes nothing");
    let other = args(address, &format!("get --existing --seed 2 {objects}"));
    let result = basalt_bench::measure_command(&other.command);
    assert!(matches!(result, Err(Error::NotTheObjects { .. })), "{result:?}");
}

#[test]
fn what_others_wrote_is_left_alone() {
    let (fake, address) = FakeS3::start(Lie::None);
    fake.plant("basalt-bench", "bench/precious");
    let line = args(address, "put --ops 5 --size 1 -c 1");
    let result = basalt_bench::measure_command(&line.command);
    assert!(matches!(&result, Err(Error::PrefixInUse { key, .. }) if key == "bench/precious"), "{result:?}");
    measure(address, "put --ops 5 --size 1 -c 1 --prefix other/");
    assert_eq!(fake.contents()["basalt-bench"], ["bench/precious"], "the bucket was not ours to remove");
}

#[test]
fn no_server_is_no_result() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("a bound socket");
    drop(listener);
    let result = basalt_bench::measure_command(&args(address, "get --ops 1 -c 1").command);
    assert!(matches!(result, Err(Error::Request { .. })), "{result:?}");
}

#[test]
fn json_results_compare() {
    let (_, address) = FakeS3::start(Lie::None);
    let path = std::env::temp_dir().join(format!("basalt-bench-{}.json", std::process::id()));
    let line = format!("get --ops 10 --objects 4 --size 10 -c 1 --json {}", path.display());
    assert_eq!(basalt_bench::run(args(address, &line)).expect("a result"), ExitCode::SUCCESS);
    let compare =
        Line::try_parse_from(["bench".as_ref(), "compare".as_ref(), path.as_os_str(), path.as_os_str()]);
    let compared = basalt_bench::run(compare.expect("a valid line").args);
    std::fs::remove_file(&path).expect("written by the run");
    assert_eq!(compared.expect("two results"), ExitCode::SUCCESS);
}
