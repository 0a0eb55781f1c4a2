//! Listing parameters, and paging against a naive model.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::s3::error::ErrorCode;

fn query(raw: &str) -> Query<'_> {
    Query::parse(raw).expect("valid query")
}

fn v1(raw: &str) -> ListObjectsParameters {
    ListObjectsParameters::of_query(&query(raw)).expect(raw)
}

fn v2(raw: &str) -> ListObjectsV2Parameters {
    ListObjectsV2Parameters::of_query(&query(raw)).expect(raw)
}

fn after_key(key: &str) -> ListStart {
    ListStart::AfterKey(key.to_owned())
}

#[test]
fn behaviour_04_max_keys_is_clamped_zero_is_zero_and_a_non_number_is_400() {
    assert_eq!(v1("").max_keys, 1000);
    assert_eq!(v1("max-keys=").max_keys, 1000);
    assert_eq!(v1("max-keys=5000").max_keys, 1000);
    assert_eq!(v1("max-keys=2147483647").max_keys, 1000);
    assert_eq!(v2("max-keys=0").max_keys, 0);
    for raw in ["max-keys=x", "max-keys=-1", "max-keys=1.5", "max-keys=2147483648", "max-keys=%2B1"] {
        let error = ListObjectsV2Parameters::of_query(&query(raw)).expect_err(raw);
        assert_eq!(error.code(), ErrorCode::InvalidArgument, "{raw}");
    }
}

#[test]
fn behaviour_01_a_marker_that_is_a_common_prefix_continues_after_it() {
    assert_eq!(v1("marker=a/b&delimiter=/").start, after_key("a/b"));
    assert_eq!(v1("marker=a/&delimiter=/").start, ListStart::AfterPrefix("a/".to_owned()));
    assert_eq!(v1("marker=a/").start, after_key("a/"));
    assert_eq!(v1("marker=a/b/&delimiter=/").start, after_key("a/b/"));
    assert_eq!(v1("marker=a/b/&delimiter=/&prefix=a/").start, ListStart::AfterPrefix("a/b/".to_owned()));
    assert_eq!(v1("").marker, "");
}

#[test]
fn behaviour_02_a_token_beats_start_after_and_both_are_echoed() {
    let token = ContinuationToken::AfterPrefix("p/".to_owned()).encode();
    let raw = format!("start-after=z&continuation-token={token}");
    let parameters = v2(&raw);
    assert_eq!(parameters.start, ListStart::AfterPrefix("p/".to_owned()));
    assert_eq!(parameters.start_after.as_deref(), Some("z"));
    assert_eq!(parameters.continuation_token, Some(token));
    assert_eq!(v2("start-after=a/&delimiter=/").start, after_key("a/"));
    for raw in ["continuation-token=", "continuation-token=x"] {
        assert!(ListObjectsV2Parameters::of_query(&query(raw)).is_err(), "{raw}");
    }
}

#[test]
fn behaviour_05_markers_of_parts_uploads_and_buckets() {
    let parts = |raw: &str| ListPartsParameters::of_query(&query(raw));
    assert_eq!(parts("part-number-marker=7&max-parts=2").expect("valid").part_number_marker, 7);
    assert!(parts("part-number-marker=x").is_err());
    assert!(parts("max-parts=-1").is_err());
    assert_eq!(parts("").expect("valid").max_parts, 1000);

    let uploads = |raw: &str| ListUploadsParameters::of_query(&query(raw)).expect(raw);
    assert_eq!(uploads("upload-id-marker=u").start, UploadStart::Beginning);
    assert_eq!(uploads("key-marker=k").start, UploadStart::AfterKey("k".to_owned()));
    let both = uploads("key-marker=k&upload-id-marker=u&max-uploads=3");
    assert_eq!(both.start, UploadStart::AfterUpload { key: "k".to_owned(), upload_id: "u".to_owned() });
    assert_eq!(both.max_uploads, 3);

    let buckets = |raw: &str| ListBucketsParameters::of_query(&query(raw));
    let token = ContinuationToken::AfterKey("bucket-1".to_owned()).encode();
    let raw = format!("prefix=b&max-buckets=10&continuation-token={token}");
    let page = buckets(&raw).expect("valid");
    assert_eq!((page.max_buckets, page.start), (Some(10), after_key("bucket-1")));
    assert_eq!(buckets("").expect("valid").max_buckets, None);
    for raw in ["max-buckets=0", "max-buckets=10001", "max-buckets=x", "continuation-token=x"] {
        assert!(buckets(raw).is_err(), "{raw}");
    }
}

#[test]
fn version_markers_come_in_pairs() {
    let versions = |raw: &str| ListVersionsParameters::of_query(&query(raw));
    assert_eq!(versions("key-marker=k&version-id-marker=null").expect("valid").start, after_key("k"));
    assert_eq!(versions("key-marker=k").expect("valid").start, after_key("k"));
    assert!(versions("version-id-marker=null").is_err());
    assert!(versions("key-marker=k&version-id-marker=x").is_err());
}

#[test]
fn encoding_type_is_url_or_nothing() {
    assert!(v2("encoding-type=url").url_encoded);
    assert!(!v2("").url_encoded);
    assert!(ListObjectsV2Parameters::of_query(&query("encoding-type=base64")).is_err());
    assert_eq!(v2("delimiter=").delimiter, None);
    let long = format!("prefix={}", "a".repeat(1025));
    let error = ListObjectsV2Parameters::of_query(&query(&long)).expect_err("too long");
    assert_eq!(error.code(), ErrorCode::KeyTooLongError);
}

/// Everything a full listing shows, keys and common prefixes, computed without paging.
fn naive(keys: &BTreeSet<String>, prefix: &str, delimiter: &str) -> BTreeSet<String> {
    keys.iter()
        .filter(|key| key.starts_with(prefix))
        .map(|key| common_prefix(key, prefix, delimiter).unwrap_or(key).to_owned())
        .collect()
}

/// One page as an engine serves it: the first `len` entries from `start`.
fn page(
    keys: &BTreeSet<String>,
    prefix: &str,
    delimiter: &str,
    start: &ListStart,
    len: usize,
) -> Vec<String> {
    let mut entries: Vec<String> = keys
        .iter()
        .filter(|key| key.starts_with(prefix))
        .filter(|key| match start {
            ListStart::Beginning => true,
            ListStart::AfterKey(after) => *key > after,
            ListStart::AfterPrefix(after) => *key > after && !key.starts_with(after.as_str()),
        })
        .map(|key| common_prefix(key, prefix, delimiter).unwrap_or(key).to_owned())
        .collect();
    entries.dedup();
    entries.truncate(len);
    entries
}

proptest! {
    #[test]
    fn paging_by_token_or_marker_shows_everything_once(
        keys in proptest::collection::btree_set("[ab/]{1,5}", 0..30),
        prefix in "[ab/]{0,2}",
        len in 1..4usize,
    ) {
        let expected: Vec<String> = naive(&keys, &prefix, "/").into_iter().collect();
        for by_token in [true, false] {
            let mut seen: Vec<String> = Vec::new();
            let mut start = ListStart::Beginning;
            loop {
                let entries = page(&keys, &prefix, "/", &start, len);
                let Some(last) = entries.last() else { break };
                start = if by_token {
                    let is_prefix = common_prefix(last, &prefix, "/").is_some();
                    let token = match is_prefix {
                        true => ContinuationToken::AfterPrefix(last.clone()),
                        false => ContinuationToken::AfterKey(last.clone()),
                    };
                    ContinuationToken::decode(&token.encode()).expect("our own token").into()
                } else {
                    after_marker(last, &prefix, Some("/"))
                };
                seen.extend(entries);
            }
            prop_assert_eq!(&seen, &expected);
        }
    }
}
