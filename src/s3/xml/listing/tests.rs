//! Listings, element by element.

use super::*;
use crate::s3::query::Query;
use crate::s3::xml::reader::Document;
use crate::s3::xml::writer::DECLARATION;

const XMLNS: &str = "xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"";
const DATE: &str = "<LastModified>1970-01-01T00:00:00.000Z</LastModified>";
const TAG: &str = "<ETag>&quot;01010101010101010101010101010101&quot;</ETag>";

fn owner() -> Owner {
    Owner { id: "0af".to_owned(), display_name: "me".to_owned() }
}

fn entry(key: &str) -> ObjectEntry<'_> {
    ObjectEntry {
        key,
        last_modified: Timestamp::from_secs(0),
        etag: ETag::of_md5([1; 16]),
        size: 5,
        checksum: Some((Algorithm::Crc32, ChecksumType::FullObject)),
    }
}

fn query(raw: &str) -> Query<'_> {
    Query::parse(raw).expect("valid query")
}

fn v1(raw: &str, page: &Page<'_>) -> String {
    let mut out = String::new();
    let parameters = ListObjectsParameters::of_query(&query(raw)).expect("valid");
    write_list_objects(&mut out, "bucket", &parameters, page, &owner());
    out
}

fn v2(raw: &str, page: &Page<'_>) -> String {
    let mut out = String::new();
    let parameters = ListObjectsV2Parameters::of_query(&query(raw)).expect("valid");
    write_list_objects_v2(&mut out, "bucket", &parameters, page, &owner());
    out
}

const EMPTY: Page<'static> = Page { entries: &[], common_prefixes: &[], truncated: false };

#[test]
fn behaviour_01_v1_has_marker_always_and_next_marker_with_a_delimiter_only() {
    let entries = [entry("a"), entry("b")];
    let page = Page { entries: &entries, common_prefixes: &["c/"], truncated: true };
    let with = v1("delimiter=/&max-keys=3", &page);
    assert!(with.contains("<Marker></Marker><NextMarker>c/</NextMarker><MaxKeys>3</MaxKeys>"), "{with}");
    let without = v1("marker=0", &Page { common_prefixes: &[], ..page });
    assert!(without.contains("<Marker>0</Marker><MaxKeys>1000</MaxKeys><IsTruncated>true</IsTruncated>"));
    assert!(!without.contains("NextMarker"));
    assert!(!v1("delimiter=/", &Page { truncated: false, ..page }).contains("NextMarker"));
}

#[test]
fn behaviour_06_v1_elements_come_in_the_documented_order() {
    let entries = [entry("a&b")];
    let page = Page { entries: &entries, common_prefixes: &["c/"], truncated: false };
    assert_eq!(
        v1("delimiter=/&prefix=", &page),
        format!(
            "{DECLARATION}<ListBucketResult {XMLNS}><Name>bucket</Name><Prefix></Prefix><Marker></Marker>\
             <MaxKeys>1000</MaxKeys><Delimiter>/</Delimiter><IsTruncated>false</IsTruncated>\
             <Contents><Key>a&amp;b</Key>{DATE}{TAG}<ChecksumAlgorithm>CRC32</ChecksumAlgorithm>\
             <ChecksumType>FULL_OBJECT</ChecksumType><Size>5</Size>\
             <Owner><ID>0af</ID><DisplayName>me</DisplayName></Owner><StorageClass>STANDARD</StorageClass>\
             </Contents><CommonPrefixes><Prefix>c/</Prefix></CommonPrefixes></ListBucketResult>"
        )
    );
}

#[test]
fn behaviour_01_v2_counts_keys_and_echoes_token_and_start_after() {
    let token = ContinuationToken::AfterKey("0".to_owned()).encode();
    let entries = [entry("a")];
    let page = Page { entries: &entries, common_prefixes: &["b/"], truncated: true };
    let next = ContinuationToken::AfterPrefix("b/".to_owned()).encode();
    let out = v2(&format!("start-after=%20&continuation-token={token}&delimiter=/"), &page);
    assert!(
        out.contains(&format!(
            "<StartAfter> </StartAfter><ContinuationToken>{token}</ContinuationToken>\
             <NextContinuationToken>{next}</NextContinuationToken><KeyCount>2</KeyCount>"
        )),
        "{out}"
    );
    assert!(!out.contains("<Owner>"));
    assert!(v2("fetch-owner=true", &page).contains("<Owner><ID>0af</ID>"));
    let last = v2("", &Page { truncated: false, ..page });
    assert!(!last.contains("NextContinuationToken") && !last.contains("StartAfter"));
}

#[test]
fn behaviour_02_the_next_token_names_the_greater_of_key_and_prefix() {
    let entries = [entry("z")];
    let page = Page { entries: &entries, common_prefixes: &["b/"], truncated: true };
    let next = ContinuationToken::AfterKey("z".to_owned()).encode();
    assert!(v2("delimiter=/", &page).contains(&next));
}

#[test]
fn behaviour_03_url_encoding_covers_all_names_but_not_tokens() {
    let entries = [entry("p +/k")];
    let page = Page { entries: &entries, common_prefixes: &["p +/q/"], truncated: true };
    let raw = "encoding-type=url&prefix=p%20%2B/&delimiter=/&start-after=a%20b";
    let out = v2(raw, &page);
    for part in [
        "<Prefix>p+%2B/</Prefix>",
        "<StartAfter>a+b</StartAfter>",
        "<EncodingType>url</EncodingType>",
        "<Key>p+%2B/k</Key>",
        "<CommonPrefixes><Prefix>p+%2B/q/</Prefix></CommonPrefixes>",
    ] {
        assert!(out.contains(part), "{part} in {out}");
    }
    let out = v1("encoding-type=url&marker=%26&delimiter=%20", &page);
    for part in ["<Marker>%26</Marker>", "<NextMarker>p+%2B/q/</NextMarker>", "<Delimiter>+</Delimiter>"] {
        assert!(out.contains(part), "{part} in {out}");
    }
}

#[test]
fn behaviour_04_zero_keys_answer_untruncated_and_empty() {
    let out = v2("max-keys=0", &EMPTY);
    assert!(out.contains("<KeyCount>0</KeyCount><MaxKeys>0</MaxKeys><IsTruncated>false</IsTruncated>"));
}

#[test]
fn never_versioned_objects_are_their_latest_version_null() {
    let entries = [entry("a")];
    let page = Page { entries: &entries, common_prefixes: &[], truncated: true };
    let mut out = String::new();
    let parameters = ListVersionsParameters::of_query(&query("max-keys=1")).expect("valid");
    write_list_null_versions(&mut out, "bucket", &parameters, &page, &owner());
    assert!(out.contains(
        "<KeyMarker></KeyMarker><VersionIdMarker></VersionIdMarker><NextKeyMarker>a</NextKeyMarker>\
         <NextVersionIdMarker>null</NextVersionIdMarker><MaxKeys>1</MaxKeys><IsTruncated>true</IsTruncated>\
         <Version><Key>a</Key><VersionId>null</VersionId><IsLatest>true</IsLatest>"
    ));
}

#[test]
fn behaviour_05_buckets_parts_and_uploads_say_where_the_next_page_starts() {
    let mut out = String::new();
    let parameters = ListBucketsParameters::of_query(&query("max-buckets=1&prefix=b")).expect("valid");
    let buckets = [BucketEntry { name: "b1", created: Timestamp::from_secs(0), region: "us-east-1" }];
    write_list_buckets(&mut out, &parameters, &buckets, true, &owner());
    let token = ContinuationToken::AfterKey("b1".to_owned()).encode();
    assert_eq!(
        out,
        format!(
            "{DECLARATION}<ListAllMyBucketsResult {XMLNS}><Owner><ID>0af</ID><DisplayName>me</DisplayName></Owner>\
             <Buckets><Bucket><Name>b1</Name><CreationDate>1970-01-01T00:00:00.000Z</CreationDate>\
             <BucketRegion>us-east-1</BucketRegion></Bucket></Buckets>\
             <ContinuationToken>{token}</ContinuationToken><Prefix>b</Prefix></ListAllMyBucketsResult>"
        )
    );

    let mut out = String::new();
    let parameters =
        ListPartsParameters::of_query(&query("part-number-marker=1&max-parts=1")).expect("valid");
    let owner = owner();
    let upload = UploadFacts { bucket: "b", key: "k", upload_id: "u", owner: &owner, checksum: None };
    let parts = [PartEntry {
        number: 2,
        last_modified: Timestamp::from_secs(0),
        etag: ETag::of_md5([1; 16]),
        size: 9,
        checksum: Some((Algorithm::Crc32, "AAAAAA==".to_owned())),
    }];
    write_list_parts(&mut out, &upload, &parameters, &parts, true);
    assert!(out.contains(&format!(
        "<PartNumberMarker>1</PartNumberMarker><NextPartNumberMarker>2</NextPartNumberMarker>\
         <MaxParts>1</MaxParts><IsTruncated>true</IsTruncated><Part><PartNumber>2</PartNumber>{DATE}{TAG}\
         <Size>9</Size><ChecksumCRC32>AAAAAA==</ChecksumCRC32></Part>"
    )));

    let mut out = String::new();
    let parameters = ListUploadsParameters::of_query(&query("delimiter=/&max-uploads=2")).expect("valid");
    let uploads =
        [UploadEntry { key: "a", upload_id: "u1", initiated: Timestamp::from_secs(0), checksum: None }];
    write_list_uploads(&mut out, "b", &parameters, &uploads, &["c/"], true, &owner);
    assert!(out.contains("<NextKeyMarker>c/</NextKeyMarker><NextUploadIdMarker></NextUploadIdMarker>"));
    let mut out = String::new();
    write_list_uploads(&mut out, "b", &parameters, &uploads, &[], true, &owner);
    assert!(out.contains("<NextKeyMarker>a</NextKeyMarker><NextUploadIdMarker>u1</NextUploadIdMarker>"));
}

#[test]
fn keys_of_every_kind_leave_a_readable_document() {
    let keys = ["\r\n\t", "a\u{1}b", "<&>\"'", "🦀 é", "]]>", "\u{fffe}"];
    let entries: Vec<ObjectEntry<'_>> = keys.iter().map(|key| entry(key)).collect();
    let out = v2("", &Page { entries: &entries, common_prefixes: &[], truncated: false });
    let mut document = Document::new(out.as_bytes(), 100_000).expect("UTF-8");
    document.root("ListBucketResult").expect("the root");
    let mut seen = Vec::new();
    while let Some(element) = document.child().expect("well-formed") {
        if element != "Contents" {
            document.text().expect("a value");
            continue;
        }
        while let Some(field) = document.child().expect("well-formed") {
            let text = document.text().expect("a value");
            if field == "Key" {
                seen.push(text);
            }
        }
    }
    document.finish().expect("nothing follows");
    assert_eq!(seen, keys);
}
