//! The signatures AWS publishes, and every way a claim can be wrong.

use http::HeaderValue;
use proptest::prelude::*;

use super::*;

/// The credentials of every example in the Amazon S3 API Reference.
const ACCESS_KEY: &str = "AKIAIOSFODNN7EXAMPLE";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
/// 2013-05-24T00:00:00Z, the time of every example.
const NOW: i64 = 1_369_353_600;
const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
const SCOPE: &str = "20130524/us-east-1/s3/aws4_request";

fn example_credentials(access_key: &str) -> Option<Secret> {
    (access_key == ACCESS_KEY).then(|| Secret::new(SECRET))
}

fn any_region() -> RegionPolicy {
    RegionPolicy::Any { report: "us-east-1".into() }
}

/// A request under test: the examples with pieces replaced.
#[derive(Clone)]
struct Request {
    method: Method,
    path: String,
    query: String,
    headers: HeaderMap,
}

impl Request {
    fn new(method: Method, target: &str, headers: &[(&'static str, &str)]) -> Self {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().expect("a header value"));
        }
        Self { method, path: path.into(), query: query.into(), headers: map }
    }

    fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.insert(name, value.parse().expect("a header value"));
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.headers.remove(name);
        self
    }

    fn replace_query(mut self, from: &str, to: &str) -> Self {
        assert!(self.query.contains(from), "{from} is in the query");
        self.query = self.query.replacen(from, to, 1);
        self
    }

    /// Signs the request as a client would, over the given headers.
    fn sign(self, signed_headers: &[&str], scope: Scope<'_>) -> Self {
        self.sign_in_form(signed_headers, scope, PathForm::Encoded)
    }

    fn sign_in_form(self, signed_headers: &[&str], scope: Scope<'_>, form: PathForm) -> Self {
        let payload_hash = self.headers["x-amz-content-sha256"].to_str().expect("ASCII").to_owned();
        let date = self.headers["x-amz-date"].to_str().expect("ASCII").to_owned();
        let query = Query::parse(&self.query).expect("a valid query");
        let request =
            canonical_request(&self.head(&query), signed_headers, &payload_hash, form).expect("a valid path");
        let string_to_sign = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", sha256_hex(&request));
        let signature =
            signing::SigningKey::derive(&Secret::new(SECRET), scope).sign(string_to_sign.as_bytes());
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/{scope},SignedHeaders={},Signature={}",
            signed_headers.join(";"),
            signature.as_str()
        );
        self.with("authorization", &authorization)
    }

    fn head<'a>(&'a self, query: &'a Query<'a>) -> RequestHead<'a> {
        RequestHead { method: &self.method, path: &self.path, query, headers: &self.headers }
    }

    fn check_at(&self, now: i64, region: &RegionPolicy) -> Result<Identity> {
        let query = Query::parse(&self.query)?;
        authenticate(&self.head(&query), &example_credentials, now, region, &mut SigningKeys::default())
    }

    fn check(&self) -> Result<Identity> {
        self.check_at(NOW, &any_region())
    }

    fn refusal(&self) -> S3Error {
        self.check().expect_err("the request must be refused")
    }
}

fn authorization(signed_headers: &str, signature: &str) -> String {
    format!(
        "AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/{SCOPE},SignedHeaders={signed_headers},Signature={signature}"
    )
}

fn example(target: &str, extra: &[(&'static str, &str)], signed: &str, signature: &str) -> Request {
    let mut request = Request::new(
        Method::GET,
        target,
        &[
            ("host", "examplebucket.s3.amazonaws.com"),
            ("x-amz-content-sha256", EMPTY),
            ("x-amz-date", "20130524T000000Z"),
            ("authorization", &authorization(signed, signature)),
        ],
    );
    for (name, value) in extra {
        request = request.with(name, value);
    }
    request
}

fn get_object() -> Request {
    example(
        "/test.txt",
        &[("range", "bytes=0-9")],
        "host;range;x-amz-content-sha256;x-amz-date",
        "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
    )
}

fn presigned() -> Request {
    Request::new(
        Method::GET,
        "/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2F\
         us-east-1%2Fs3%2Faws4_request&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&\
         X-Amz-SignedHeaders=host&\
         X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404",
        &[("host", "examplebucket.s3.amazonaws.com")],
    )
}

#[test]
fn published_get_object() {
    let identity = get_object().check().expect("the published signature");
    assert_eq!(identity.access_key(), Some(ACCESS_KEY));
    let Identity::Signed(signed) = identity else { panic!("the request is signed") };
    assert_eq!((signed.region.as_str(), signed.service.as_str()), ("us-east-1", "s3"));
    assert!(matches!(signed.payload, PayloadMode::Signed(digest) if hex::encode(digest) == EMPTY));
    assert!(signed.chunk_signer.is_none());
}

#[test]
fn published_put_object() {
    let hash = "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072";
    let mut request = example(
        "/test%24file.text",
        &[
            ("date", "Fri, 24 May 2013 00:00:00 GMT"),
            ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
            ("x-amz-content-sha256", hash),
        ],
        "date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class",
        "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
    );
    request.method = Method::PUT;
    request.check().expect("the published signature");
    // The same object spelt differently in the URL has the same canonical form.
    request.path = "/test$file.text".into();
    request.check().expect("the path is decoded once and encoded once");
}

#[test]
fn published_bucket_requests() {
    let signed = "host;x-amz-content-sha256;x-amz-date";
    let lifecycle = "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543";
    example("/?lifecycle", &[], signed, lifecycle).check().expect("the published signature");
    example("/?lifecycle=", &[], signed, lifecycle).check().expect("an empty value is an empty value");
    let list = "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7";
    example("/?max-keys=2&prefix=J", &[], signed, list).check().expect("the published signature");
    example("/?prefix=J&max-keys=2", &[], signed, list).check().expect("order does not matter");
}

#[test]
fn behaviour_24_a_path_may_be_signed_as_it_was_sent() {
    let scope = Scope { date: "20130524", region: "us-east-1", service: "s3" };
    let signed = ["host", "x-amz-content-sha256", "x-amz-date"];
    for path in ["/b/%7Ea", "/b/a%2Fb", "/b/a!b"] {
        let mut request = get_object();
        request.path = path.to_owned();
        for form in [PathForm::Encoded, PathForm::AsSent] {
            request.clone().sign_in_form(&signed, scope, form).check().expect(path);
        }
        let mut other = request.sign_in_form(&signed, scope, PathForm::AsSent);
        other.path = "/b/other".to_owned();
        assert!(other.check().is_err(), "{path}: a signature is good for its own path only");
    }
}

#[test]
fn published_presigned_url() {
    let identity = presigned().check().expect("the published signature");
    assert_eq!(identity.payload(), PayloadMode::Unsigned);
    presigned().check_at(NOW + 86_400, &any_region()).expect("the last second counts");
    presigned().check_at(NOW - CLOCK_SKEW_SECS_MAX, &any_region()).expect("a client's clock may be ahead");
}

#[test]
fn anonymous_is_told_apart() {
    let request = Request::new(Method::GET, "/b/k", &[("host", "h")]);
    assert!(matches!(request.check(), Ok(Identity::Anonymous { payload: PayloadMode::Unsigned })));
    let request = request.with("x-amz-content-sha256", "STREAMING-UNSIGNED-PAYLOAD-TRAILER");
    assert_eq!(request.check().expect("anonymous").payload(), PayloadMode::StreamingUnsignedTrailer);
    let request = request.with("x-amz-content-sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD");
    assert_eq!(request.refusal().code(), ErrorCode::AccessDenied);
}

#[test]
fn behaviour_23_a_wrong_signature_shows_what_was_expected() {
    let error = get_object().with("range", "bytes=0-8").refusal();
    assert_eq!(error.code(), ErrorCode::SignatureDoesNotMatch);
    assert_eq!(error.field("AWSAccessKeyId"), Some(ACCESS_KEY));
    let canonical = error.field("CanonicalRequest").expect("it is shown");
    assert!(
        canonical.starts_with("GET\n/test.txt\n\nhost:examplebucket.s3.amazonaws.com\nrange:bytes=0-8\n")
    );
    let string_to_sign = error.field("StringToSign").expect("it is shown");
    assert!(string_to_sign.starts_with("AWS4-HMAC-SHA256\n20130524T000000Z\n20130524/us-east-1/s3/"));
    assert!(error.field("StringToSignBytes").expect("shown").starts_with("41 57 53 34 2d 48"));
    assert!(error.field("CanonicalRequestBytes").expect("shown").starts_with("47 45 54 0a 2f"));
    assert!(error.field("SignatureProvided").expect("shown").starts_with("f0e8bdb8"));
}

#[test]
fn every_covered_part_is_covered() {
    let mut other_method = get_object();
    other_method.method = Method::DELETE;
    let mut other_path = get_object();
    other_path.path = "/test.txt2".into();
    let mut other_query = get_object();
    other_query.query = "acl".into();
    let changed = [
        other_method,
        other_path,
        other_query,
        get_object().with("host", "examplebucket.s3.amazonaws.com:80"),
        get_object().with("x-amz-content-sha256", "UNSIGNED-PAYLOAD"),
        get_object().with("x-amz-date", "20130524T000001Z"),
        presigned().replace_query("X-Amz-Expires=86400", "X-Amz-Expires=86401"),
        presigned().replace_query("us-east-1", "us-east-2"),
        presigned().replace_query("X-Amz-Expires", "versionId=x&X-Amz-Expires"),
    ];
    for request in changed {
        assert_eq!(request.refusal().code(), ErrorCode::SignatureDoesNotMatch);
    }
    let short =
        get_object().with("authorization", &authorization("host;x-amz-content-sha256;x-amz-date", "f0"));
    assert_eq!(short.refusal().code(), ErrorCode::SignatureDoesNotMatch);
}

#[test]
fn unsigned_amz_headers_and_host_are_refused() {
    for request in [get_object(), presigned()] {
        let error = request.with("x-amz-acl", "public-read").with("x-amz-meta-a", "1").refusal();
        assert_eq!(error.code(), ErrorCode::AccessDenied);
        assert_eq!(error.text(), "There were headers present in the request which were not signed");
        assert_eq!(error.field("HeadersNotSigned"), Some("x-amz-acl, x-amz-meta-a"));
    }
    let error = get_object().with("authorization", &authorization("x-amz-content-sha256;x-amz-date", "f0"));
    assert_eq!(error.refusal().field("HeadersNotSigned"), Some("host"));
    let scope = Scope { date: "20130524", region: "us-east-1", service: "s3" };
    let unsigned_session = get_object().with("x-amz-security-token", "t");
    assert_eq!(unsigned_session.refusal().field("HeadersNotSigned"), Some("x-amz-security-token"));
    let session =
        unsigned_session.sign(&["host", "x-amz-content-sha256", "x-amz-date", "x-amz-security-token"], scope);
    assert_eq!(session.refusal().code(), ErrorCode::InvalidToken);
}

#[test]
fn time_is_held_to_a_quarter_of_an_hour() {
    let limit = CLOCK_SKEW_SECS_MAX;
    for now in [NOW - limit, NOW + limit] {
        get_object().check_at(now, &any_region()).expect("within the allowed skew");
    }
    for now in [NOW - limit - 1, NOW + limit + 1, i64::MIN, i64::MAX] {
        let error = get_object().check_at(now, &any_region()).expect_err("outside the allowed skew");
        assert_eq!(error.code(), ErrorCode::RequestTimeTooSkewed);
        assert_eq!(error.field("RequestTime"), Some("20130524T000000Z"));
        assert_eq!(error.field("MaxAllowedSkewMilliseconds"), Some("900000"));
        assert!(error.field("ServerTime").is_some());
    }
    let no_date = get_object().without("x-amz-date");
    for request in
        [no_date.clone(), no_date.with("date", "yesterday"), get_object().with("x-amz-date", "now")]
    {
        let error = request.refusal();
        assert_eq!(error.code(), ErrorCode::AccessDenied);
        assert_eq!(error.text(), "AWS authentication requires a valid Date or x-amz-date header");
    }
}

#[test]
fn behaviour_22_presigned_expiry() {
    let error = presigned().check_at(NOW + 86_401, &any_region()).expect_err("it has expired");
    assert_eq!((error.code(), error.text()), (ErrorCode::AccessDenied, "Request has expired"));
    assert_eq!(error.field("Expires"), Some("2013-05-25T00:00:00Z"));
    assert_eq!(error.field("ServerTime"), Some("2013-05-25T00:00:01Z"));
    assert_eq!(error.field("X-Amz-Expires"), Some("86400"));
    let early = presigned().check_at(NOW - 901, &any_region()).expect_err("it is not valid yet");
    assert_eq!((early.code(), early.text()), (ErrorCode::AccessDenied, "Request is not valid yet"));
    for bad in ["0", "-1", "604801", "a", "", "99999999999999999999"] {
        let error = presigned().replace_query("Expires=86400", &format!("Expires={bad}")).refusal();
        assert_eq!(error.code(), ErrorCode::AuthorizationQueryParametersError, "{bad}");
    }
}

#[test]
fn behaviour_08_regions() {
    let own = RegionPolicy::Exactly("eu-north-1".into());
    let error = get_object().check_at(NOW, &own).expect_err("another region");
    assert_eq!(error.code(), ErrorCode::AuthorizationHeaderMalformed);
    assert_eq!(
        error.text(),
        "The authorization header is malformed; the region 'us-east-1' is wrong; expecting 'eu-north-1'"
    );
    assert_eq!(error.field("Region"), Some("eu-north-1"));
    let error = presigned().check_at(NOW, &own).expect_err("another region");
    assert_eq!(error.code(), ErrorCode::AuthorizationQueryParametersError);
    assert_eq!(error.field("Region"), Some("eu-north-1"));
    get_object().check_at(NOW, &RegionPolicy::Exactly("us-east-1".into())).expect("our region");
    let scope = Scope { date: "20130524", region: "mars-1", service: "s3" };
    let elsewhere = get_object().sign(&["host", "x-amz-content-sha256", "x-amz-date"], scope);
    elsewhere.check().expect("any region is accepted when none is configured");
}

#[test]
fn malformed_authorization_headers() {
    let good = authorization("host;x-amz-content-sha256;x-amz-date", "00");
    for (from, to, expected) in [
        (SCOPE, "20130524/us-east-1/s3", "the Credential is mal-formed"),
        (SCOPE, "20130524//s3/aws4_request", "the Credential is mal-formed"),
        (SCOPE, "2013052/us-east-1/s3/aws4_request", "incorrect date format \"2013052\""),
        (SCOPE, "20130525/us-east-1/s3/aws4_request", "Invalid credential date \"20130525\""),
        (SCOPE, "20130524/us-east-1/s3/aws4", "incorrect terminal \"aws4\""),
        (SCOPE, "20130524/us-east-1/ec2/aws4_request", "incorrect service \"ec2\""),
        (",Signature=00", "", "requires three components"),
        ("Signature=00", "Signature=", "requires three components"),
        ("Signature=00", "Signature=00,Signature=01", "requires three components"),
        ("Signature=00", "Signature=00,Extra=1", "requires three components"),
        ("host;", "host;host;", "the SignedHeaders are mal-formed"),
        ("host;", "Host;", "the SignedHeaders are mal-formed"),
        ("host;", "host;;", "the SignedHeaders are mal-formed"),
    ] {
        assert!(good.contains(from));
        let error = get_object().with("authorization", &good.replace(from, to)).refusal();
        assert_eq!(error.code(), ErrorCode::AuthorizationHeaderMalformed, "{to}");
        assert!(error.text().contains(expected), "{}: {expected}", error.text());
    }
    let bare = get_object().with("authorization", "AWS4-HMAC-SHA256").refusal();
    assert_eq!(bare.code(), ErrorCode::AuthorizationHeaderMalformed);
}

#[test]
fn other_mechanisms_are_named() {
    for sigv2 in
        ["AWS AKIAIOSFODNN7EXAMPLE:bWq2s1WEIj+Ydj0vQ697zp+IXMU=", "AWS4-ECDSA-P256-SHA256 Credential=x"]
    {
        let error = get_object().with("authorization", sigv2).refusal();
        assert_eq!(error.code(), ErrorCode::InvalidRequest);
        assert!(error.text().contains("Please use AWS4-HMAC-SHA256"));
    }
    let error = Request::new(Method::GET, "/b?AWSAccessKeyId=x&Signature=y&Expires=1", &[]).refusal();
    assert_eq!(error.code(), ErrorCode::InvalidRequest);
    for other in ["Bearer token", "Basic dTpw", "", "é"] {
        let mut request = get_object();
        request.headers.insert("authorization", HeaderValue::from_bytes(other.as_bytes()).expect("opaque"));
        let error = request.refusal();
        assert_eq!(error.code(), ErrorCode::InvalidArgument, "{other}");
        assert_eq!(error.text(), "Unsupported Authorization Type");
    }
}

#[test]
fn contradictory_claims_are_refused() {
    let both = presigned().with("authorization", &authorization("host", "00"));
    let error = both.refusal();
    assert_eq!(error.code(), ErrorCode::InvalidArgument);
    assert!(error.text().starts_with("Only one auth mechanism allowed"));
    let mut twice = get_object();
    twice.headers.append("authorization", HeaderValue::from_static("AWS4-HMAC-SHA256 x"));
    assert_eq!(twice.refusal().code(), ErrorCode::InvalidArgument);
}

#[test]
fn malformed_presigned_urls() {
    for name in [
        "X-Amz-Algorithm",
        "X-Amz-Credential",
        "X-Amz-Date",
        "X-Amz-Expires",
        "X-Amz-SignedHeaders",
        "X-Amz-Signature",
    ] {
        let missing = presigned().replace_query(name, "X-Other").refusal();
        assert_eq!(missing.code(), ErrorCode::AuthorizationQueryParametersError);
        assert!(missing.text().starts_with("Query-string authentication version 4 requires"), "{name}");
        let doubled = presigned().replace_query(name, &format!("{name}=1&{name}")).refusal();
        assert_eq!(doubled.code(), ErrorCode::AuthorizationQueryParametersError);
        assert!(doubled.text().contains("only once"), "{name}");
    }
    for (from, to) in [
        ("AWS4-HMAC-SHA256", "AWS4-HMAC-SHA1"),
        ("Date=20130524T000000Z", "Date=20130524"),
        ("%2Faws4_request", ""),
        ("us-east-1", "us%0Aeast"),
        ("SignedHeaders=host", "SignedHeaders=host%0Ax"),
        ("SignedHeaders=host", "SignedHeaders="),
    ] {
        let error = presigned().replace_query(from, to).refusal();
        assert_eq!(error.code(), ErrorCode::AuthorizationQueryParametersError, "{to}");
    }
    let asymmetric = presigned().replace_query("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256");
    assert_eq!(asymmetric.refusal().code(), ErrorCode::InvalidRequest);
}

#[test]
fn unknown_keys() {
    let error = get_object()
        .with(
            "authorization",
            &authorization("host;x-amz-content-sha256;x-amz-date", "0").replace("AKIA", "AKIB"),
        )
        .refusal();
    assert_eq!(error.code(), ErrorCode::InvalidAccessKeyId);
    assert_eq!(error.field("AWSAccessKeyId"), Some("AKIBIOSFODNN7EXAMPLE"));
}

#[test]
fn payload_modes() {
    let error = get_object().without("x-amz-content-sha256").refusal();
    assert_eq!(error.code(), ErrorCode::InvalidRequest);
    assert_eq!(error.text(), "Missing required header for this request: x-amz-content-sha256");
    for bad in ["", "abc", "UNSIGNED", &EMPTY[1..], &format!("{EMPTY}00")] {
        let error = get_object().with("x-amz-content-sha256", bad).refusal();
        assert_eq!(error.code(), ErrorCode::InvalidArgument, "{bad}");
    }
    let ecdsa = get_object().with("x-amz-content-sha256", "STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD");
    assert_eq!(ecdsa.refusal().code(), ErrorCode::NotImplemented);
    let scope = Scope { date: "20130524", region: "us-east-1", service: "s3" };
    for (text, mode) in [
        ("UNSIGNED-PAYLOAD", PayloadMode::Unsigned),
        ("STREAMING-UNSIGNED-PAYLOAD-TRAILER", PayloadMode::StreamingUnsignedTrailer),
        ("STREAMING-AWS4-HMAC-SHA256-PAYLOAD", PayloadMode::StreamingSigned { trailer: false }),
        ("STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER", PayloadMode::StreamingSigned { trailer: true }),
    ] {
        let request = get_object()
            .with("x-amz-content-sha256", text)
            .sign(&["host", "x-amz-content-sha256", "x-amz-date"], scope);
        let mut identity = request.check().expect(text);
        assert_eq!(identity.payload(), mode);
        assert_eq!(identity.take_chunk_signer().is_some(), text.contains("HMAC"), "{text}");
    }
}

#[test]
fn the_cache_answers_like_a_fresh_derivation_and_only_learns_from_good_signatures() {
    let mut keys = SigningKeys::default();
    let bad = get_object().with("range", "bytes=1-1");
    for (request, len) in [(bad.clone(), 0), (get_object(), 1), (get_object(), 1), (bad, 1), (presigned(), 1)]
    {
        let query = Query::parse(&request.query).expect("a valid query");
        let cached =
            authenticate(&request.head(&query), &example_credentials, NOW, &any_region(), &mut keys).is_ok();
        assert_eq!(cached, request.check().is_ok());
        assert_eq!(keys.len(), len);
    }
}

proptest! {
    /// No byte of the header can change without the request being refused, and none makes a panic.
    #[test]
    fn hostile_headers_never_panic_or_pass(at in 0usize..240, byte in 0x20u8..0x7f) {
        let mut request = get_object();
        let mut text = request.headers["authorization"].as_bytes().to_vec();
        let at = at % text.len();
        prop_assume!(text[at] != byte);
        text[at] = byte;
        request.headers.insert("authorization", HeaderValue::from_bytes(&text).expect("printable"));
        prop_assert!(request.check().is_err());
    }

    #[test]
    fn hostile_requests_never_panic(
        path in "/[%0-9a-fé/ ]{0,40}",
        query in "(X-Amz-(Algorithm|Credential|Date|Expires|SignedHeaders|Signature|Security-Token)=[%0-9a-zA-Z/;-]{0,30}&){0,8}",
        header in "(AWS4-HMAC-SHA256 |AWS )?[A-Za-z=,;/0-9 ]{0,80}",
        with_header: bool,
    ) {
        let mut request = Request::new(Method::GET, "/", &[("host", "h")]);
        request.path = path;
        request.query = query;
        if with_header {
            request = request.with("authorization", &header);
        }
        let _ = request.check();
    }

    /// What a client signs by the documented rules verifies, whatever the key and query contain.
    #[test]
    fn signed_requests_verify(key in "\\PC{1,20}", value in "\\PC{0,20}", meta in "[ -~]{0,20}") {
        use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode as encode};
        let target = format!("/b/{}?prefix={}", encode(&key, NON_ALPHANUMERIC), encode(&value, NON_ALPHANUMERIC));
        let scope = Scope { date: "20130524", region: "us-east-1", service: "s3" };
        let request = Request::new(Method::GET, &target, &[
            ("host", "h:9000"), ("x-amz-content-sha256", EMPTY), ("x-amz-date", "20130524T000000Z"),
            ("x-amz-meta-x", &meta),
        ]).sign(&["host", "x-amz-content-sha256", "x-amz-date", "x-amz-meta-x"], scope);
        prop_assert!(request.check().is_ok());
    }
}
