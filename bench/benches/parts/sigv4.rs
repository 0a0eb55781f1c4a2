//! Verifying AWS Signature Version 4: the examples of the Amazon S3 API Reference, whose signatures AWS publishes.

use std::hint::black_box;

use basalt::s3::auth::{Identity, RegionPolicy, RequestHead, Secret, SigningKeys, authenticate};
use basalt::s3::query::Query;
use criterion::{BatchSize, Criterion};
use http::{HeaderMap, Method};

const ACCESS_KEY: &str = "AKIAIOSFODNN7EXAMPLE";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
/// 2013-05-24T00:00:00Z, the time of every example.
const NOW: i64 = 1_369_353_600;
const HOST: &str = "examplebucket.s3.amazonaws.com";

/// GET of an object with a `Range`, signed in its header.
const HEADERS: [(&str, &str); 5] = [
    ("host", HOST),
    ("range", "bytes=0-9"),
    ("x-amz-content-sha256", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
    ("x-amz-date", "20130524T000000Z"),
    (
        "authorization",
        "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,\
         SignedHeaders=host;range;x-amz-content-sha256;x-amz-date,\
         Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
    ),
];

/// The same as a presigned URL.
const PRESIGNED: &str = "X-Amz-Algorithm=AWS4-HMAC-SHA256\
     &X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request\
     &X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host\
     &X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404";

fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
    let fields = fields.iter().map(|(name, value)| {
        let name = http::HeaderName::from_static(name);
        (name, http::HeaderValue::from_static(value))
    });
    fields.collect()
}

/// Parses the query too: the server does that once per request, for the signature and the operation alike.
fn verify(headers: &HeaderMap, query: &str, keys: &mut SigningKeys) -> bool {
    let credentials = |access_key: &str| (access_key == ACCESS_KEY).then(|| Secret::new(SECRET));
    let query = Query::parse(query).expect("a valid query");
    let head = RequestHead { method: &Method::GET, path: "/test.txt", query: &query, headers };
    let region = RegionPolicy::Any { report: String::new() };
    matches!(authenticate(&head, &credentials, NOW, &region, keys), Ok(Identity::Signed(_)))
}

pub(crate) fn run(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("sigv4");
    let (signed, bare) = (headers(&HEADERS), headers(&[("host", HOST)]));
    let requests = [("header", &signed, ""), ("presigned URL", &bare, PRESIGNED)];
    for (place, headers, query) in requests {
        let mut keys = SigningKeys::default();
        assert!(verify(headers, query, &mut keys), "AWS's own signature in a {place} holds");
        group.bench_function(format!("{place}, cached key"), |bencher| {
            bencher.iter(|| verify(black_box(headers), query, &mut keys));
        });
    }
    group.bench_function("header, key to be derived", |bencher| {
        let derive = |keys: &mut SigningKeys| verify(black_box(&signed), "", keys);
        bencher.iter_batched_ref(SigningKeys::default, derive, BatchSize::SmallInput);
    });
    group.finish();
}
