//! Metadata from request headers, through storage, to response headers.

use proptest::prelude::*;

use super::*;

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in pairs {
        let name = HeaderName::try_from(*name).expect("a header name");
        map.append(name, HeaderValue::from_bytes(value.as_bytes()).expect("a header value"));
    }
    map
}

fn parse(pairs: &[(&str, &str)]) -> ObjectMetadata {
    ObjectMetadata::of_request(&headers(pairs)).expect("valid metadata")
}

fn answer(metadata: &ObjectMetadata, query: &str) -> HeaderMap {
    let query = Query::parse(query).expect("valid query");
    let mut out = HeaderMap::new();
    metadata.write_headers(&ResponseOverrides::of_query(&query).expect("valid"), &mut out);
    out
}

#[test]
fn behaviour_12_aws_chunked_is_removed_from_content_encoding() {
    let encoding = |value: &str| parse(&[("content-encoding", value)]).content_encoding;
    assert_eq!(encoding("aws-chunked"), None);
    assert_eq!(encoding("aws-chunked,gzip").as_deref(), Some("gzip"));
    assert_eq!(encoding("gzip, AWS-Chunked , br").as_deref(), Some("gzip,br"));
    assert_eq!(encoding("gzip, br").as_deref(), Some("gzip, br"));
    assert_eq!(encoding(""), None);
    let two = parse(&[("content-encoding", "aws-chunked"), ("content-encoding", "gzip")]);
    assert_eq!(two.content_encoding.as_deref(), Some("gzip"));
    assert!(!answer(&parse(&[("content-encoding", "aws-chunked")]), "").contains_key(CONTENT_ENCODING));
}

#[test]
fn behaviour_25_names_are_lower_case_and_values_beyond_ascii_are_encoded_words() {
    let metadata = parse(&[
        ("X-Amz-Meta-Color", "red"),
        ("x-amz-meta-raw", "café"),
        ("x-amz-meta-word", "=?UTF-8?Q?caf=C3=A9?="),
        ("x-amz-meta-twice", "a"),
        ("x-amz-meta-twice", "b"),
    ]);
    let expected = [("color", "red"), ("raw", "café"), ("twice", "a,b"), ("word", "café")];
    assert_eq!(metadata.user, expected.map(|(n, v)| (n.to_owned(), v.to_owned())));
    let out = answer(&metadata, "");
    assert_eq!(out["x-amz-meta-raw"], "=?UTF-8?B?Y2Fmw6k=?=");
    assert_eq!(out["x-amz-meta-word"], "=?UTF-8?B?Y2Fmw6k=?=");
    assert_eq!(out["x-amz-meta-twice"], "a,b");
}

#[test]
fn behaviour_25_bytes_that_are_no_utf_8_are_read_as_iso_8859_1() {
    let mut map = HeaderMap::new();
    map.insert("x-amz-meta-a", HeaderValue::from_bytes(b"caf\xe9").expect("opaque bytes are allowed"));
    assert_eq!(ObjectMetadata::of_request(&map).expect("valid").user[0].1, "café");
}

#[test]
fn behaviour_25_user_metadata_hold_2048_bytes() {
    assert!(ObjectMetadata::of_request(&headers(&[("x-amz-meta-a", &"v".repeat(2047))])).is_ok());
    let error = ObjectMetadata::of_request(&headers(&[("x-amz-meta-a", &"v".repeat(2048))]))
        .expect_err("one byte too many");
    assert_eq!(error.code(), ErrorCode::MetadataTooLarge);
    assert_eq!(error.field("Size"), Some("2049"));
    let error = ObjectMetadata::of_request(&headers(&[("cache-control", &"v".repeat(8193))]));
    assert_eq!(error.expect_err("too long").code(), ErrorCode::MetadataTooLarge);
}

#[test]
fn behaviour_25_default_type_is_binary_and_expires_is_verbatim() {
    assert_eq!(answer(&parse(&[]), "")[CONTENT_TYPE], "binary/octet-stream");
    assert_eq!(answer(&parse(&[("content-type", "")]), "")[CONTENT_TYPE], "binary/octet-stream");
    let metadata = parse(&[("content-type", "text/x"), ("expires", "next week")]);
    let out = answer(&metadata, "");
    assert_eq!(out[CONTENT_TYPE], "text/x");
    assert_eq!(out[EXPIRES], "next week");
}

#[test]
fn overrides_replace_stored_headers_and_cannot_inject_new_ones() {
    let metadata = parse(&[("content-type", "text/x"), ("cache-control", "no-store")]);
    let out = answer(&metadata, "response-content-type=image/png&response-expires=never&response-x=1");
    assert_eq!(out[CONTENT_TYPE], "image/png");
    assert_eq!(out[CACHE_CONTROL], "no-store");
    assert_eq!(out[EXPIRES], "never");
    let query = Query::parse("response-content-type=a%0d%0aSet-Cookie:x").expect("decodes");
    let error = ResponseOverrides::of_query(&query).expect_err("a line break is no header value");
    assert_eq!(error.code(), ErrorCode::InvalidArgument);
}

#[test]
fn the_website_redirect_is_checked_and_returned() {
    let out = answer(&parse(&[("x-amz-website-redirect-location", "/elsewhere")]), "");
    assert_eq!(out["x-amz-website-redirect-location"], "/elsewhere");
    let bad = headers(&[("x-amz-website-redirect-location", "ftp://x")]);
    assert!(ObjectMetadata::of_request(&bad).is_err());
}

#[test]
fn an_empty_user_name_is_refused() {
    assert!(ObjectMetadata::of_request(&headers(&[("x-amz-meta-", "x")])).is_err());
}

proptest! {
    #[test]
    fn metadata_survive_storage_and_headers(
        kind in proptest::option::of("[a-z]{1,8}/[a-z]{1,8}"),
        values in proptest::collection::btree_map("[a-z0-9-]{1,12}", "\\PC{0,20}|[ -~]{0,20}", 0..6),
    ) {
        let user: Vec<(String, String)> = values.into_iter().collect();
        let metadata = ObjectMetadata { content_type: kind, user, ..Default::default() };
        let pairs: Vec<(String, String)> =
            metadata.to_pairs().map(|(n, v)| (n.into_owned(), v.to_owned())).collect();
        let stored = ObjectMetadata::from_pairs(pairs.iter().map(|(n, v)| (n.as_str(), v.as_str())));
        prop_assert_eq!(&stored, &metadata);
        let sent = answer(&stored, "");
        let read = ObjectMetadata::of_request(&sent).expect("our own headers");
        prop_assert_eq!(read.user, metadata.user);
    }
}
