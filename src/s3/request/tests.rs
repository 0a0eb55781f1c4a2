//! Requests as clients send them, and what they mean.

use proptest::prelude::*;

use super::*;
use crate::s3::conditions::EntityTags;
use crate::s3::operation::{Body, CopiedMetadata};
use crate::s3::range::RangeSpec;
use crate::s3::unset::UnsetConfig;

fn request(method: &str, target: &str, headers: &[(&str, &str)]) -> Result<Parsed> {
    let method = Method::from_bytes(method.as_bytes()).expect("a method");
    let (raw_path, raw_query) = target.split_once('?').unwrap_or((target, ""));
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        let name = HeaderName::try_from(*name).expect("a header name");
        map.append(name, HeaderValue::from_bytes(value.as_bytes()).expect("a header value"));
    }
    let head = RequestHead { method: &method, raw_path, raw_query, authority: None, headers: &map };
    parse(&head, &Addressing::new(["s3.test"]))
}

fn name(method: &str, target: &str) -> &'static str {
    request(method, target, &[]).unwrap_or_else(|e| panic!("{method} {target}: {e}")).operation_name()
}

fn code(method: &str, target: &str, headers: &[(&str, &str)]) -> ErrorCode {
    match request(method, target, headers) {
        Ok(parsed) => panic!("{method} {target} was taken for {}", parsed.operation_name()),
        Err(error) => error.code(),
    }
}

#[test]
fn every_operation_of_stage_1_is_found() {
    for (method, target, expected) in [
        ("GET", "/", "ListBuckets"),
        ("GET", "/?x-id=ListBuckets", "ListBuckets"),
        ("PUT", "/bucket", "CreateBucket"),
        ("PUT", "/bucket/", "CreateBucket"),
        ("HEAD", "/bucket", "HeadBucket"),
        ("DELETE", "/bucket", "DeleteBucket"),
        ("GET", "/bucket?location", "GetBucketLocation"),
        ("GET", "/bucket", "ListObjects"),
        ("GET", "/bucket?list-type=2", "ListObjectsV2"),
        ("GET", "/bucket?versions", "ListObjectVersions"),
        ("GET", "/bucket?uploads", "ListMultipartUploads"),
        ("POST", "/bucket?delete", "DeleteObjects"),
        ("PUT", "/bucket/k?x-id=PutObject", "PutObject"),
        ("GET", "/bucket/k", "GetObject"),
        ("GET", "/bucket/k?partNumber=2", "GetObject"),
        ("HEAD", "/bucket/k", "HeadObject"),
        ("DELETE", "/bucket/k?versionId=null", "DeleteObject"),
        ("POST", "/bucket/k?uploads", "CreateMultipartUpload"),
        ("PUT", "/bucket/k?partNumber=1&uploadId=u", "UploadPart"),
        ("POST", "/bucket/k?uploadId=u", "CompleteMultipartUpload"),
        ("DELETE", "/bucket/k?uploadId=u", "AbortMultipartUpload"),
        ("GET", "/bucket/k?uploadId=u", "ListParts"),
        ("GET", "/bucket?versioning", "GetBucketVersioning"),
        ("GET", "/bucket/k?tagging", "GetObjectTagging"),
        ("GET", "/bucket/k?acl&versionId=null", "GetObjectAcl"),
    ] {
        assert_eq!(name(method, target), expected, "{method} {target}");
    }
    let copy = [("x-amz-copy-source", "/bucket/source")];
    let parsed = request("PUT", "/bucket/k", &copy).expect("valid");
    assert_eq!(parsed.operation_name(), "CopyObject");
    let parsed = request("PUT", "/bucket/k?partNumber=1&uploadId=u", &copy).expect("valid");
    assert_eq!(parsed.operation_name(), "UploadPartCopy");
}

#[test]
fn behaviour_01_a_list_type_other_than_2_is_version_1() {
    assert_eq!(name("GET", "/bucket?list-type=1"), "ListObjects");
    assert_eq!(name("GET", "/bucket?list-type=3"), "ListObjects");
}

#[test]
fn a_known_sub_resource_never_falls_through() {
    let plain = [
        "ListBuckets",
        "ListObjects",
        "CreateBucket",
        "HeadBucket",
        "DeleteBucket",
        "PutObject",
        "GetObject",
        "HeadObject",
        "DeleteObject",
    ];
    for sub in subresource::names() {
        for method in ["GET", "HEAD", "PUT", "POST", "DELETE"] {
            for target in [format!("/?{sub}"), format!("/bucket?{sub}"), format!("/bucket/k?prefix=x&{sub}=")]
            {
                if let Ok(parsed) = request(method, &target, &[]) {
                    assert!(!plain.contains(&parsed.operation_name()), "{method} {target}");
                }
            }
        }
    }
    assert_eq!(code("PUT", "/bucket/k?acl", &[]), ErrorCode::NotImplemented);
    assert_eq!(code("PUT", "/bucket?versioning", &[]), ErrorCode::NotImplemented);
    assert_eq!(code("GET", "/bucket/k?attributes", &[]), ErrorCode::NotImplemented);
    assert_eq!(code("PUT", "/bucket/k?policy", &[]), ErrorCode::MethodNotAllowed);
    assert_eq!(code("DELETE", "/bucket?acl", &[]), ErrorCode::MethodNotAllowed);
    assert_eq!(code("GET", "/bucket?acl&policy", &[]), ErrorCode::InvalidArgument);
}

#[test]
fn methods_that_a_target_does_not_have_are_405() {
    for (method, target) in [
        ("PUT", "/"),
        ("HEAD", "/"),
        ("POST", "/"),
        ("DELETE", "/"),
        ("POST", "/bucket/k"),
        ("PATCH", "/bucket/k"),
        ("HEAD", "/bucket/k?uploads"),
    ] {
        assert_eq!(code(method, target, &[]), ErrorCode::MethodNotAllowed, "{method} {target}");
    }
    let error = request("POST", "/bucket/k", &[]).expect_err("405");
    assert_eq!(error.headers()[0].1, "GET, HEAD, PUT, DELETE");
    assert_eq!(code("OPTIONS", "/bucket/k", &[]), ErrorCode::NotImplemented);
    assert_eq!(code("POST", "/bucket", &[]), ErrorCode::RequestIsNotMultiPartContent);
    let form = [("content-type", "multipart/form-data; boundary=x")];
    assert_eq!(code("POST", "/bucket", &form), ErrorCode::NotImplemented);
}

#[test]
fn headers_for_the_unbuilt_are_501_and_never_ignored() {
    for (header, value) in [
        ("x-amz-server-side-encryption", "AES256"),
        ("x-amz-server-side-encryption-customer-algorithm", "AES256"),
        ("x-amz-copy-source-server-side-encryption-customer-key", "k"),
        ("x-amz-grant-read", "id=x"),
        ("x-amz-tagging", "a=b"),
        ("x-amz-object-lock-mode", "GOVERNANCE"),
        ("x-amz-storage-class", "GLACIER"),
        ("x-amz-acl", "public-read"),
        ("x-amz-bucket-object-lock-enabled", "true"),
        ("x-amz-object-ownership", "ObjectWriter"),
        ("x-amz-write-offset-bytes", "5"),
    ] {
        assert_eq!(code("PUT", "/bucket/k", &[(header, value)]), ErrorCode::NotImplemented, "{header}");
        // A presigned URL carries headers as parameters.
        let target = format!("/bucket/k?{header}={value}&X-Amz-Signature=x");
        assert_eq!(code("PUT", &target, &[]), ErrorCode::NotImplemented, "{header} in the query");
    }
    for (header, value) in [
        ("x-amz-acl", "private"),
        ("x-amz-acl", "bucket-owner-full-control"),
        ("x-amz-storage-class", "STANDARD"),
        ("x-amz-bucket-object-lock-enabled", "false"),
        ("x-amz-object-ownership", "BucketOwnerEnforced"),
        ("x-amz-website-redirect-location", "/x"),
        ("x-amz-date", "20130524T000000Z"),
    ] {
        assert!(request("PUT", "/bucket/k", &[(header, value)]).is_ok(), "{header}: {value}");
    }
    assert_eq!(code("PUT", "/bucket/k", &[("x-amz-storage-class", "x")]), ErrorCode::InvalidStorageClass);
    assert_eq!(code("PUT", "/bucket/k", &[("x-amz-acl", "x")]), ErrorCode::InvalidArgument);
}

#[test]
fn headers_in_the_query_of_a_presigned_url_count() {
    let target = "/bucket/k?X-Amz-Algorithm=x&X-Amz-Signature=y&x-amz-meta-color=red%20&X-Amz-Meta-Size=L";
    let parsed = request("PUT", target, &[("x-amz-meta-size", "M")]).expect("valid");
    let Operation::PutObject(put) = parsed.operation else { panic!("a put") };
    let pairs = [("color", "red "), ("size", "M")].map(|(n, v)| (n.to_owned(), v.to_owned()));
    assert_eq!(put.metadata.user, pairs);
}

#[test]
fn behaviour_21_version_ids_are_read_where_they_mean_something() {
    let version = |target: &str| match request("GET", target, &[]).expect("valid").operation {
        Operation::GetObject(read) => read.version_id,
        _ => panic!("a get"),
    };
    assert_eq!(version("/bucket/k?versionId=null"), Some(VersionId::Null));
    assert_eq!(version("/bucket/k"), None);
    assert_eq!(code("GET", "/bucket/k?versionId=nope", &[]), ErrorCode::InvalidArgument);
    assert_eq!(code("GET", "/bucket/k?versionId=", &[]), ErrorCode::InvalidArgument);
    assert_eq!(code("PUT", "/bucket/k?versionId=null", &[]), ErrorCode::InvalidArgument);
    assert_eq!(code("DELETE", "/bucket?versionId=null", &[]), ErrorCode::InvalidArgument);
}

#[test]
fn parts_need_number_and_upload() {
    for target in ["/bucket/k?partNumber=1", "/bucket/k?uploadId=u", "/bucket/k?partNumber=0&uploadId=u"] {
        assert_eq!(code("PUT", target, &[]), ErrorCode::InvalidArgument, "{target}");
    }
    assert_eq!(code("PUT", "/bucket/k?partNumber=1&uploadId=", &[]), ErrorCode::NoSuchUpload);
}

#[test]
fn behaviour_18_and_19_reads_carry_range_or_part_number() {
    let read = |headers: &[(&str, &str)]| match request("GET", "/bucket/k", headers).expect("valid").operation
    {
        Operation::GetObject(read) => *read,
        _ => panic!("a get"),
    };
    let one = read(&[("range", "bytes=1-2"), ("if-range", "\"x\""), ("x-amz-checksum-mode", "ENABLED")]);
    assert_eq!(one.range.map(|r| r.spec), Some(RangeSpec::Between { first: 1, last: 2 }));
    assert_eq!((one.if_range.as_deref(), one.with_checksums), (Some("\"x\""), true));
    assert_eq!(read(&[("range", "bytes=1-2"), ("range", "bytes=3-4")]).range, None);
    assert_eq!(read(&[("range", "lines=1-2")]).range, None);
    let both = request("GET", "/bucket/k?partNumber=1", &[("range", "bytes=1-2")]);
    assert_eq!(both.expect_err("not both").code(), ErrorCode::InvalidRequest);
    assert_eq!(code("GET", "/bucket/k?partNumber=10001", &[]), ErrorCode::InvalidArgument);
}

#[test]
fn behaviour_16_a_self_copy_must_change_something() {
    let copy = |headers: &[(&str, &str)]| {
        let mut all = vec![("x-amz-copy-source", "/bucket/k")];
        all.extend(headers);
        request("PUT", "/bucket/k", &all)
    };
    assert_eq!(copy(&[]).expect_err("nothing changes").code(), ErrorCode::InvalidRequest);
    assert!(copy(&[("x-amz-metadata-directive", "REPLACE")]).is_ok());
    assert!(copy(&[("x-amz-website-redirect-location", "/x")]).is_ok());
    assert_eq!(
        copy(&[("x-amz-metadata-directive", "x")]).expect_err("unknown").code(),
        ErrorCode::InvalidArgument
    );
    let replaced = copy(&[("x-amz-metadata-directive", "REPLACE"), ("x-amz-meta-a", "b")]).expect("valid");
    let Operation::CopyObject(op) = replaced.operation else { panic!("a copy") };
    assert!(matches!(op.metadata, CopiedMetadata::Replaced(m) if m.user.len() == 1));
    let ranged = copy(&[("x-amz-metadata-directive", "REPLACE"), ("x-amz-copy-source-range", "bytes=0-1")]);
    assert_eq!(ranged.expect_err("only parts have ranges").code(), ErrorCode::InvalidArgument);
    let bytes: &[u8] = b"bucket/\xff";
    let mut headers = HeaderMap::new();
    headers.insert("x-amz-copy-source", HeaderValue::from_bytes(bytes).expect("opaque"));
    let head = RequestHead {
        method: &Method::PUT,
        raw_path: "/bucket/k",
        raw_query: "",
        authority: None,
        headers: &headers,
    };
    assert!(parse(&head, &Addressing::default()).is_err(), "an unreadable source is not a plain put");
}

#[test]
fn behaviour_28_expected_owners_reach_the_caller() {
    let headers = [
        ("x-amz-expected-bucket-owner", "111122223333"),
        ("x-amz-source-expected-bucket-owner", "444455556666"),
        ("x-amz-copy-source", "other/k"),
    ];
    let parsed = request("PUT", "/bucket/k", &headers).expect("valid");
    assert_eq!(parsed.expected_bucket_owner.as_deref(), Some("111122223333"));
    assert_eq!(parsed.expected_source_bucket_owner.as_deref(), Some("444455556666"));
}

#[test]
fn behaviour_29_multipart_asks_for_algorithm_type_and_size() {
    let create = |headers: &[(&str, &str)]| request("POST", "/bucket/k?uploads", headers);
    let parsed = create(&[("x-amz-checksum-algorithm", "crc32"), ("x-amz-checksum-type", "FULL_OBJECT")]);
    let Operation::CreateMultipartUpload(op) = parsed.expect("valid").operation else { panic!("a create") };
    assert_eq!(op.checksum.map(|c| c.checksum_type().name()), Some("FULL_OBJECT"));
    assert!(create(&[("x-amz-checksum-type", "FULL_OBJECT")]).is_err());

    let complete = |headers: &[(&str, &str)]| request("POST", "/bucket/k?uploadId=u", headers);
    let parsed = complete(&[("x-amz-mp-object-size", "15"), ("if-none-match", "*")]).expect("valid");
    let Operation::CompleteMultipartUpload(op) = parsed.operation else { panic!("a complete") };
    assert_eq!((op.object_size, op.conditions.if_none_match), (Some(15), Some(EntityTags::Any)));
    assert!(complete(&[("x-amz-mp-object-size", "-1")]).is_err());
}

#[test]
fn behaviour_30_the_body_of_an_operation_is_known_before_it_is_read() {
    let body = |method: &str, target: &str| request(method, target, &[]).expect(target).operation.body();
    assert_eq!(body("PUT", "/bucket/k"), Body::Payload);
    assert_eq!(body("PUT", "/bucket/k?partNumber=1&uploadId=u"), Body::Payload);
    assert!(matches!(body("POST", "/bucket?delete"), Body::Document { .. }));
    assert!(matches!(body("PUT", "/bucket"), Body::Document { .. }));
    assert_eq!(body("GET", "/bucket/k"), Body::None);
}

#[test]
fn behaviour_30_absolute_form_requests_are_addressed_by_their_uri() {
    let uri: Uri = "http://bucket.s3.test:9000/k?acl".parse().expect("a URI");
    let mut headers = HeaderMap::new();
    headers.insert(HOST, HeaderValue::from_static("elsewhere"));
    let head = RequestHead::new(&Method::GET, &uri, &headers);
    let parsed = parse(&head, &Addressing::new(["s3.test"])).expect("valid");
    assert_eq!(parsed.bucket().map(BucketName::as_str), Some("bucket"));
    assert_eq!(parsed.key().map(ObjectKey::as_str), Some("k"));
    assert!(
        matches!(parsed.operation, Operation::UnsetConfig(read) if read.config == UnsetConfig::ObjectAcl)
    );
}

proptest! {
    #[test]
    fn hostile_requests_never_panic(
        method in "GET|HEAD|PUT|POST|DELETE|OPTIONS|PATCH|[A-Z]{1,8}",
        path in "/bucket(/k)?|/[a-z%./0-9]{0,40}|.{0,40}",
        query in "(acl|uploads|uploadId=u|partNumber=1|versionId=null|list-type=2|delete|max-keys=1|[a-z-]{1,12}=[a-z%0-9]{0,8}|&){0,4}|.{0,40}",
        host in "bucket\\.s3\\.test(:[0-9]{1,5})?|.{0,20}",
        header in "x-amz-[a-z-]{1,20}|range|if-match|if-none-match|content-encoding",
        value in ".{0,40}",
    ) {
        let mut headers = HeaderMap::new();
        let name = HeaderName::try_from(header).expect("a header name");
        if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
            headers.insert(name, value);
        }
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        let head = RequestHead {
            method: &method, raw_path: &path, raw_query: &query, authority: Some(&host), headers: &headers,
        };
        let _ = parse(&head, &Addressing::new(["s3.test"]));
    }
}
