//! Every parser of what a client sends, as a function that no input may make panic.
//!
//! Where two ways to the same answer exist they are compared: a body in one piece or byte by byte, a value and its own
//! text.

use basalt::s3::addressing::Addressing;
use basalt::s3::auth::{RegionPolicy, RequestHead, Secret, SigningKeys, authenticate};
use basalt::s3::body::{ChunkedDecoder, decode_whole};
use basalt::s3::bucket_name::BucketName;
use basalt::s3::checksum::{Algorithm, Checksum};
use basalt::s3::conditions::{EntityTags, ReadConditions, WriteConditions};
use basalt::s3::copy_source::CopySource;
use basalt::s3::etag::ETag;
use basalt::s3::list::token::ContinuationToken;
use basalt::s3::metadata::ObjectMetadata;
use basalt::s3::object_key::ObjectKey;
use basalt::s3::query::Query;
use basalt::s3::range::{CopySourceRange, RangeSpec};
use basalt::s3::request::bodies::{CompleteRequest, CreateBucketConfiguration, DeleteRequest};
use basalt::s3::request::{self, parse};
use basalt::s3::time::Timestamp;
use basalt::s3::version_id::VersionId;
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::Target;

pub(crate) const TARGETS: &[Target] = &[
    Target { name: "request", run: request, seeds: request_seeds },
    Target { name: "authorization", run: authorization, seeds: request_seeds },
    Target { name: "aws_chunked", run: aws_chunked, seeds: aws_chunked_seeds },
    Target {
        name: "query",
        run: query,
        seeds: || texts(&["", "list-type=2&prefix=a%20b&x", "a=1&a=2&%C3%A9=+"]),
    },
    Target {
        name: "path",
        run: path,
        seeds: || texts(&["/", "/bucket", "/bucket/a%2Fb//../%C3%A9", "/bucket/%FF"]),
    },
    Target {
        name: "range",
        run: range,
        seeds: || texts(&["bytes=0-1", "bytes=-5", "bytes=7-", "bytes=0-1,3-4"]),
    },
    Target { name: "conditions", run: conditions, seeds: conditions_seeds },
    Target { name: "http_date", run: http_date, seeds: http_date_seeds },
    Target { name: "list_token", run: list_token, seeds: list_token_seeds },
    Target {
        name: "copy_source",
        run: copy_source,
        seeds: || texts(&["/bucket/k%20e?versionId=null", "bucket/k", "/b"]),
    },
    Target {
        name: "names",
        run: names,
        seeds: || texts(&["bucket-name", "null", "CRC64NVME", "xn--a", "rL0Y20zC+Fzt72VPzMSk2A=="]),
    },
    Target { name: "metadata", run: metadata, seeds: request_seeds },
    Target { name: "delete_xml", run: delete_xml, seeds: delete_xml_seeds },
    Target { name: "complete_xml", run: complete_xml, seeds: complete_xml_seeds },
    Target { name: "create_xml", run: create_xml, seeds: create_xml_seeds },
];

/// A size that ranges are resolved against.
const SIZE: u64 = 10_000;

fn texts(samples: &[&str]) -> Vec<Vec<u8>> {
    samples.iter().map(|sample| sample.as_bytes().to_vec()).collect()
}

/// Reads `data` as a request head: method, target, then `name: value` lines.
fn head_of(data: &[u8]) -> Option<(Method, String, String, HeaderMap)> {
    let mut lines = data.split(|byte| *byte == b'\n');
    let first = std::str::from_utf8(lines.next()?).ok()?;
    let (method, target) = first.split_once(' ')?;
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut headers = HeaderMap::new();
    for line in lines.take(200) {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let name = HeaderName::from_bytes(line[..colon].trim_ascii()).ok()?;
        headers.append(name, HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?);
    }
    Some((Method::from_bytes(method.as_bytes()).ok()?, path.to_owned(), query.to_owned(), headers))
}

fn request(data: &[u8]) {
    let Some((method, path, query, headers)) = head_of(data) else { return };
    let head = request::RequestHead {
        method: &method,
        raw_path: &path,
        raw_query: &query,
        authority: None,
        headers: &headers,
    };
    match parse(&head, &Addressing::new(["s3.example.test"])) {
        Ok(parsed) => assert!(!parsed.operation_name().is_empty()),
        Err(error) => {
            let xml = error.to_xml(&path, "request", "host");
            assert!(xml.ends_with("</Error>") && error.status().as_u16() >= 300);
        }
    }
}

fn authorization(data: &[u8]) {
    let Some((method, path, query, headers)) = head_of(data) else { return };
    let Ok(query) = Query::parse(&query) else { return };
    let head = RequestHead { method: &method, path: &path, query: &query, headers: &headers };
    let secret = |_: &str| Some(Secret::new("secret"));
    let region = RegionPolicy::Any { report: "us-east-1".into() };
    if let Ok(identity) = authenticate(&head, &secret, 1_369_353_600, &region, &mut SigningKeys::default()) {
        assert!(identity.access_key().is_none(), "nobody signs by chance");
    }
}

/// The first byte chooses the lengths of the pieces; the answer must not depend on them.
fn aws_chunked(data: &[u8]) {
    let Some((&step, body)) = data.split_first() else { return };
    let decoder =
        || ChunkedDecoder::new(11, Some(vec![HeaderName::from_static("x-amz-checksum-crc32")]), None);
    let whole = decode_whole(decoder(), body);
    let mut pieces = Vec::new();
    let mut by_piece = decoder();
    let outcome = body.chunks(usize::from(step % 16) + 1).try_for_each(|piece| {
        let mut rest = piece;
        while !rest.is_empty() {
            let step = by_piece.decode(rest)?;
            assert!(step.consumed > 0 && step.consumed <= rest.len());
            pieces.extend_from_slice(&rest[step.data]);
            rest = &rest[step.consumed..];
        }
        Ok(())
    });
    let outcome = outcome.and_then(|()| by_piece.finish());
    match (whole, outcome) {
        (Ok((bytes, trailers)), Ok(others)) => {
            assert_eq!(bytes, pieces);
            assert_eq!(trailers, others);
            assert_eq!(bytes.len(), 11);
        }
        (Err(_), Err(_)) => {}
        (whole, outcome) => panic!("{whole:?} in one piece, {outcome:?} in several"),
    }
}

fn query(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(query) = Query::parse(text) else { return };
    for (name, _) in query.iter() {
        assert!(query.has(name) && query.first(name).is_some());
    }
}

fn path(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for host in [None, Some("bucket.s3.example.test:9000"), Some("s3.example.test")] {
        let _ = Addressing::new(["s3.example.test"]).locate(text, host);
    }
}

fn range(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Some(range) = RangeSpec::parse(text) {
        for size in [0, 1, SIZE, u64::MAX] {
            let _ = range.resolve(size);
        }
    }
    if let Ok(range) = CopySourceRange::parse(text)
        && let Ok((start, len)) = range.resolve(SIZE)
    {
        assert!(len > 0 && start + len <= SIZE);
    }
}

fn conditions(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let etag = ETag::of_md5([7; 16]);
    if let Ok(tags) = EntityTags::parse(text) {
        assert!(tags.matches_weakly(etag) || !tags.matches_strongly(etag));
    }
    if let Some(parsed) = ETag::parse(text) {
        assert_eq!(ETag::parse(&parsed.quoted()), Some(parsed));
    }
    let Ok(value) = HeaderValue::from_str(text) else { return };
    let mut headers = HeaderMap::new();
    for name in ["if-match", "if-none-match", "if-modified-since", "if-unmodified-since"] {
        headers.insert(name, value.clone());
        if let Ok(read) = ReadConditions::of_read(&headers) {
            let _ =
                read.evaluate(etag, Timestamp::parse_http("Sun, 06 Nov 1994 08:49:37 GMT").expect("a date"));
        }
        let _ = WriteConditions::of_write(&headers);
    }
}

fn http_date(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Some(time) = Timestamp::parse_http(text) {
        assert_eq!(Timestamp::parse_http(&time.imf_fixdate()), Some(time));
    }
}

fn list_token(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(token) = ContinuationToken::decode(text) {
        assert_eq!(token.encode(), text);
    }
    let token = ContinuationToken::AfterKey(text.chars().take(200).collect());
    assert_eq!(ContinuationToken::decode(&token.encode()).ok(), Some(token));
}

fn copy_source(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = CopySource::parse(text);
}

fn names(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(name) = BucketName::parse(text) {
        assert!((3..=63).contains(&name.as_str().len()));
    }
    if let Ok(key) = ObjectKey::parse(text) {
        assert!((1..=1024).contains(&key.as_str().len()));
    }
    let _ = VersionId::parse(text);
    for algorithm in (0..8).filter_map(Algorithm::from_id) {
        if let Some(checksum) = Checksum::from_base64(algorithm, text) {
            assert_eq!(checksum.to_base64(), text);
        }
    }
}

fn metadata(data: &[u8]) {
    let Some((_, _, _, headers)) = head_of(data) else { return };
    if let Ok(metadata) = ObjectMetadata::of_request(&headers) {
        let pairs: Vec<(String, String)> =
            metadata.to_pairs().map(|(name, value)| (name.into_owned(), value.to_owned())).collect();
        let back =
            ObjectMetadata::from_pairs(pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        assert_eq!(back, metadata);
    }
}

fn delete_xml(data: &[u8]) {
    if let Ok(request) = DeleteRequest::parse_body(data) {
        assert!((1..=1000).contains(&request.entries.len()));
    }
}

fn complete_xml(data: &[u8]) {
    if let Ok(request) = CompleteRequest::parse_body(data) {
        assert!(request.parts.windows(2).all(|pair| pair[0].number.get() < pair[1].number.get()));
    }
}

fn create_xml(data: &[u8]) {
    let _ = CreateBucketConfiguration::parse_body(data);
}

fn request_seeds() -> Vec<Vec<u8>> {
    let authorization = "authorization: AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,\
        SignedHeaders=host;range;x-amz-content-sha256;x-amz-date,\
        Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41";
    let signed = format!(
        "host: b.s3.example.test\nx-amz-date: 20130524T000000Z\nx-amz-content-sha256: UNSIGNED-PAYLOAD\n{authorization}"
    );
    texts(&[
        &format!("GET /b/k?partNumber=2&response-content-type=a\nrange: bytes=0-9\n{signed}"),
        &format!(
            "PUT /b/k\ncontent-length: 5\nx-amz-meta-a: 1\nx-amz-checksum-crc32: AAAAAA==\nif-none-match: *\n{signed}"
        ),
        "PUT /b/k?uploadId=abc&partNumber=7\nx-amz-copy-source: /b/k\nx-amz-copy-source-range: bytes=0-9",
        "GET /b?list-type=2&max-keys=7&prefix=a&delimiter=%2F&continuation-token=x&encoding-type=url",
        "POST /b?delete\ncontent-md5: rL0Y20zC+Fzt72VPzMSk2A==",
        "POST /b/k?uploads\nx-amz-checksum-algorithm: SHA256\ncontent-type: text/plain\nexpires: never",
        "GET /b/k?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=A%2F20130524%2Fus-east-1%2Fs3%2Faws4_request&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host&X-Amz-Signature=aa\nhost: h",
        "DELETE /b/k?versionId=null\nif-match: \"0123456789abcdef0123456789abcdef\"",
        "PUT /b\nx-amz-acl: private",
        "GET /b?versions&key-marker=a&version-id-marker=null",
    ])
}

fn aws_chunked_seeds() -> Vec<Vec<u8>> {
    texts(&[
        "\u{1}5\r\nhello\r\n6\r\n world\r\n0\r\nx-amz-checksum-crc32:DUoRhQ==\r\n\r\n",
        "\u{7}b\r\nhello world\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n",
    ])
}

fn conditions_seeds() -> Vec<Vec<u8>> {
    texts(&[
        "*",
        "\"07070707070707070707070707070707\"",
        "W/\"a\", \"0123456789abcdef0123456789abcdef-3\"",
        "Sun, 06 Nov 1994 08:49:37 GMT",
    ])
}

fn http_date_seeds() -> Vec<Vec<u8>> {
    texts(&[
        "Sun, 06 Nov 1994 08:49:37 GMT",
        "Sunday, 06-Nov-94 08:49:37 GMT",
        "Sun Nov  6 08:49:37 1994",
        "1994-11-06T08:49:37Z",
    ])
}

fn list_token_seeds() -> Vec<Vec<u8>> {
    let key = ContinuationToken::AfterKey("a key".into()).encode();
    texts(&[&key, &ContinuationToken::AfterPrefix("a/".into()).encode()])
}

fn delete_xml_seeds() -> Vec<Vec<u8>> {
    texts(&[
        "<Delete xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Quiet>true</Quiet><Object><Key>a&amp;b</Key><VersionId>null</VersionId></Object></Delete>",
        "<Delete><Object><Key><![CDATA[x]]></Key></Object><Object><Key>&#233;</Key></Object></Delete>",
    ])
}

fn complete_xml_seeds() -> Vec<Vec<u8>> {
    texts(&[
        "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>\"0123456789abcdef0123456789abcdef\"</ETag></Part><Part><ETag>0123456789abcdef0123456789abcdef</ETag><PartNumber>2</PartNumber><ChecksumCRC32>AAAAAA==</ChecksumCRC32></Part></CompleteMultipartUpload>",
    ])
}

fn create_xml_seeds() -> Vec<Vec<u8>> {
    texts(&[
        "<CreateBucketConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><LocationConstraint>eu-west-1</LocationConstraint></CreateBucketConfiguration>",
        "",
    ])
}
