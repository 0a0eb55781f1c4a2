//! The XML bodies of requests: CreateBucket, DeleteObjects, CompleteMultipartUpload.
//!
//! Each reads bytes into a value that cannot be wrong. Elements that the schema does not have are
//! refused, not skipped: an unknown element asks for something, and it would not happen.

use crate::s3::checksum::{Algorithm, Checksum};
use crate::s3::conditions::EntityTags;
use crate::s3::error::{ErrorCode, Result, S3Error};
use crate::s3::etag::ETag;
use crate::s3::object_key::ObjectKey;
use crate::s3::operation::{BATCH_DOCUMENT_LEN_MAX, BUCKET_DOCUMENT_LEN_MAX, PART_NUMBER_MAX, PartNumber};
use crate::s3::version_id::VersionId;
use crate::s3::xml::reader::{Document, malformed};

/// The most keys of one DeleteObjects.
pub const DELETE_KEYS_MAX: usize = 1000;

/// The body of CreateBucket.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct CreateBucketConfiguration {
    /// The region asked for; `None` without a body, without the element, or with an empty one.
    pub location_constraint: Option<String>,
}

/// The body of DeleteObjects.
#[derive(Clone, Debug, PartialEq)]
pub struct DeleteRequest {
    /// Answer only with what failed.
    pub quiet: bool,
    /// 1 to 1000, in the order given.
    pub entries: Vec<DeleteEntry>,
}

/// One object of a DeleteObjects. An entry that names no object fails alone.
#[derive(Clone, Debug, PartialEq)]
pub struct DeleteEntry {
    /// As given, for the answer.
    pub key: String,
    /// As given, for the answer.
    pub version_id: Option<String>,
    pub target: Result<DeleteTarget>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DeleteTarget {
    pub key: ObjectKey,
    pub version_id: Option<VersionId>,
    pub if_match: Option<EntityTags>,
}

/// The body of CompleteMultipartUpload: 1 to 10,000 parts with strictly ascending numbers.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CompleteRequest {
    pub parts: Vec<CompletedPart>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CompletedPart {
    pub number: PartNumber,
    pub etag: ETag,
    /// At most one per algorithm.
    pub checksums: Vec<Checksum>,
}

impl CreateBucketConfiguration {
    /// An empty body is a configuration without wishes. Errors: `MalformedXML`, `NotImplemented`.
    pub fn parse_body(bytes: &[u8]) -> Result<Self> {
        let mut configuration = Self::default();
        if bytes.is_empty() {
            return Ok(configuration);
        }
        let mut document = Document::new(bytes, BUCKET_DOCUMENT_LEN_MAX)?;
        document.root("CreateBucketConfiguration")?;
        while let Some(name) = document.child()? {
            match name.as_str() {
                "LocationConstraint" => {
                    let region = document.text()?.trim().to_owned();
                    configuration.location_constraint = (!region.is_empty()).then_some(region);
                }
                "Location" | "Bucket" | "Tags" => {
                    return Err(S3Error::new(ErrorCode::NotImplemented)
                        .message("An element of the bucket configuration is not implemented.")
                        .with("Element", name));
                }
                _ => return Err(malformed()),
            }
        }
        document.finish()?;
        Ok(configuration)
    }
}

impl DeleteRequest {
    /// Errors: `MalformedXML`.
    pub fn parse_body(bytes: &[u8]) -> Result<Self> {
        let mut document = Document::new(bytes, BATCH_DOCUMENT_LEN_MAX)?;
        let mut request = Self { quiet: false, entries: Vec::new() };
        document.root("Delete")?;
        while let Some(name) = document.child()? {
            match name.as_str() {
                "Quiet" => request.quiet = boolean(&document.text()?)?,
                "Object" if request.entries.len() == DELETE_KEYS_MAX => return Err(malformed()),
                "Object" => request.entries.push(delete_entry(&mut document)?),
                _ => return Err(malformed()),
            }
        }
        document.finish()?;
        if request.entries.is_empty() { Err(malformed()) } else { Ok(request) }
    }
}

fn delete_entry(document: &mut Document<'_>) -> Result<DeleteEntry> {
    let mut key = None;
    let mut version_id = None;
    let mut etag = None;
    let mut unbuilt = false;
    while let Some(name) = document.child()? {
        let text = document.text()?;
        let slot = match name.as_str() {
            "Key" => &mut key,
            "VersionId" => &mut version_id,
            "ETag" => &mut etag,
            // Conditions of directory buckets.
            "LastModifiedTime" | "Size" => {
                unbuilt = true;
                continue;
            }
            _ => return Err(malformed()),
        };
        if slot.replace(text).is_some() {
            return Err(malformed());
        }
    }
    let key = key.ok_or_else(malformed)?;
    let target = if unbuilt {
        Err(ErrorCode::NotImplemented.into())
    } else {
        delete_target(&key, version_id.as_deref(), etag.as_deref())
    };
    Ok(DeleteEntry { key, version_id, target })
}

fn delete_target(key: &str, version_id: Option<&str>, etag: Option<&str>) -> Result<DeleteTarget> {
    Ok(DeleteTarget {
        key: ObjectKey::parse(key)?,
        version_id: version_id.map(VersionId::parse).transpose()?,
        if_match: etag.map(EntityTags::parse).transpose()?,
    })
}

impl CompleteRequest {
    /// Errors: `MalformedXML`, `InvalidPartOrder`, `InvalidArgument` for a part number out of range,
    /// `InvalidPart` for a tag that no part can have.
    pub fn parse_body(bytes: &[u8]) -> Result<Self> {
        let mut document = Document::new(bytes, BATCH_DOCUMENT_LEN_MAX)?;
        let mut parts: Vec<CompletedPart> = Vec::new();
        document.root("CompleteMultipartUpload")?;
        while let Some(name) = document.child()? {
            if name != "Part" || parts.len() == usize::from(PART_NUMBER_MAX) {
                return Err(malformed());
            }
            parts.push(completed_part(&mut document)?);
        }
        document.finish()?;
        if parts.is_empty() {
            return Err(malformed());
        }
        if !parts.is_sorted_by(|a, b| a.number < b.number) {
            return Err(ErrorCode::InvalidPartOrder.into());
        }
        Ok(Self { parts })
    }
}

fn completed_part(document: &mut Document<'_>) -> Result<CompletedPart> {
    let mut number = None;
    let mut etag = None;
    let mut checksums: Vec<Checksum> = Vec::new();
    while let Some(name) = document.child()? {
        let text = document.text()?;
        let repeated = match name.as_str() {
            "PartNumber" => number.replace(text).is_some(),
            "ETag" => etag.replace(text).is_some(),
            _ => {
                let checksum = part_checksum(&name, &text)?;
                let repeated = checksums.iter().any(|c| c.algorithm() == checksum.algorithm());
                checksums.push(checksum);
                repeated
            }
        };
        if repeated {
            return Err(malformed());
        }
    }
    let (number, etag) = number.zip(etag).ok_or_else(malformed)?;
    let number = PartNumber::parse(number.trim())?;
    let etag = ETag::parse(&etag).ok_or_else(|| {
        S3Error::new(ErrorCode::InvalidPart)
            .with("PartNumber", number.get().to_string())
            .with("ETag", etag.clone())
    })?;
    Ok(CompletedPart { number, etag, checksums })
}

fn part_checksum(element: &str, text: &str) -> Result<Checksum> {
    let algorithm = Algorithm::ALL
        .into_iter()
        .find(|algorithm| algorithm.element_name() == element)
        .ok_or_else(malformed)?;
    Checksum::from_base64(algorithm, text.trim()).ok_or_else(|| {
        S3Error::new(ErrorCode::InvalidPart).message(format!("The value of {element} is invalid."))
    })
}

fn boolean(text: &str) -> Result<bool> {
    match text.trim() {
        "true" | "1" | "True" | "TRUE" => Ok(true),
        "false" | "0" | "False" | "FALSE" => Ok(false),
        _ => Err(malformed()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::s3::xml::writer::push_escaped;

    const TAG: &str = "d41d8cd98f00b204e9800998ecf8427e";

    fn part(number: &str) -> String {
        format!("<Part><PartNumber>{number}</PartNumber><ETag>{TAG}</ETag></Part>")
    }

    fn complete(parts: &str) -> Result<CompleteRequest> {
        let body = format!("<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>");
        CompleteRequest::parse_body(body.as_bytes())
    }

    fn code<T: std::fmt::Debug>(result: Result<T>) -> ErrorCode {
        result.expect_err("refused").code()
    }

    #[test]
    fn behaviour_06_bodies_are_read_with_or_without_the_namespace() {
        for attribute in ["", " xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\""] {
            let body =
                format!("<Delete{attribute}><Quiet>true</Quiet><Object><Key>a</Key></Object></Delete>");
            let request = DeleteRequest::parse_body(body.as_bytes()).expect("valid");
            assert!(request.quiet);
            assert_eq!(request.entries[0].key, "a");
        }
    }

    #[test]
    fn a_delete_names_1_to_1000_objects() {
        let objects = |n: usize| format!("<Delete>{}</Delete>", "<Object><Key>k</Key></Object>".repeat(n));
        assert_eq!(DeleteRequest::parse_body(objects(1000).as_bytes()).expect("valid").entries.len(), 1000);
        for n in [0, 1001] {
            assert_eq!(code(DeleteRequest::parse_body(objects(n).as_bytes())), ErrorCode::MalformedXML);
        }
        for body in [
            "",
            "<Delete><Object></Object></Delete>",
            "<Delete><Object><Key>a</Key><X/></Object></Delete>",
            "<Delete><Object><Key>a</Key><Key>b</Key></Object></Delete>",
            "<Delete><Quiet>maybe</Quiet></Delete>",
        ] {
            assert_eq!(code(DeleteRequest::parse_body(body.as_bytes())), ErrorCode::MalformedXML, "{body}");
        }
    }

    #[test]
    fn an_entry_that_names_no_object_fails_alone() {
        let body = format!(
            "<Delete><Object><Key>a</Key><VersionId>null</VersionId><ETag>\"{TAG}\"</ETag></Object>\
             <Object><Key>{}</Key></Object><Object><Key>b</Key><VersionId>x</VersionId></Object>\
             <Object><Key>c</Key><Size>1</Size></Object></Delete>",
            "k".repeat(1025)
        );
        let request = DeleteRequest::parse_body(body.as_bytes()).expect("well-formed");
        let target = request.entries[0].target.clone().expect("valid");
        assert_eq!(target.version_id, Some(VersionId::Null));
        assert!(target.if_match.is_some_and(|tags| tags.matches_strongly(ETag::parse(TAG).expect("valid"))));
        let codes: Vec<ErrorCode> =
            request.entries[1..].iter().map(|entry| code(entry.target.clone())).collect();
        let expected = [ErrorCode::KeyTooLongError, ErrorCode::InvalidArgument, ErrorCode::NotImplemented];
        assert_eq!(codes, expected);
    }

    #[test]
    fn behaviour_17_parts_are_validated_before_anything_is_answered() {
        let request = complete(&(part("1") + &part("3") + &part("10000"))).expect("ascending");
        assert_eq!(request.parts.iter().map(|p| p.number.get()).collect::<Vec<_>>(), [1, 3, 10_000]);
        assert_eq!(code(complete(&(part("2") + &part("1")))), ErrorCode::InvalidPartOrder);
        assert_eq!(code(complete(&(part("2") + &part("2")))), ErrorCode::InvalidPartOrder);
        assert_eq!(code(complete(&part("0"))), ErrorCode::InvalidArgument);
        assert_eq!(code(complete(&part("10001"))), ErrorCode::InvalidArgument);
        assert_eq!(code(complete("")), ErrorCode::MalformedXML);
        assert_eq!(code(complete("<Part><PartNumber>1</PartNumber></Part>")), ErrorCode::MalformedXML);
        let bad_tag = "<Part><PartNumber>1</PartNumber><ETag>nope</ETag></Part>";
        assert_eq!(code(complete(bad_tag)), ErrorCode::InvalidPart);
        let all: String = (1..=10_000).map(|n| part(&n.to_string())).collect();
        assert_eq!(complete(&all).expect("as many as there can be").parts.len(), 10_000);
    }

    #[test]
    fn parts_may_carry_checksums() {
        let with = |checksums: &str| {
            complete(&format!("<Part><ETag>{TAG}</ETag>{checksums}<PartNumber>1</PartNumber></Part>"))
        };
        let request = with("<ChecksumCRC32>AAAAAA==</ChecksumCRC32>").expect("valid");
        assert_eq!(
            request.parts[0].checksums,
            Vec::from_iter(Checksum::from_base64(Algorithm::Crc32, "AAAAAA=="))
        );
        assert_eq!(code(with("<ChecksumCRC32>AAAA</ChecksumCRC32>")), ErrorCode::InvalidPart);
        assert_eq!(code(with("<ChecksumFOO>x</ChecksumFOO>")), ErrorCode::MalformedXML);
        assert_eq!(code(with(&"<ChecksumCRC32>AAAAAA==</ChecksumCRC32>".repeat(2))), ErrorCode::MalformedXML);
    }

    #[test]
    fn a_bucket_configuration_may_be_missing() {
        let parse = |body: &str| {
            CreateBucketConfiguration::parse_body(body.as_bytes()).map(|c| c.location_constraint)
        };
        let with = |inner: &str| format!("<CreateBucketConfiguration>{inner}</CreateBucketConfiguration>");
        assert_eq!(parse(""), Ok(None));
        assert_eq!(parse(&with("")), Ok(None));
        assert_eq!(parse(&with("<LocationConstraint/>")), Ok(None));
        let region = with("<LocationConstraint>eu-west-1</LocationConstraint>");
        assert_eq!(parse(&region), Ok(Some("eu-west-1".to_owned())));
        assert_eq!(code(parse(&with("<Tags></Tags>"))), ErrorCode::NotImplemented);
        assert_eq!(code(parse(&with("<X/>"))), ErrorCode::MalformedXML);
        assert_eq!(code(parse("<Other/>")), ErrorCode::MalformedXML);
    }

    proptest! {
        #[test]
        fn every_key_survives_a_delete_body(key in "\\PC{1,60}|[\\x01-\\x7f]{1,60}") {
            let mut body = String::from("<Delete><Object><Key>");
            push_escaped(&mut body, &key);
            body.push_str("</Key></Object></Delete>");
            let request = DeleteRequest::parse_body(body.as_bytes()).expect("valid");
            prop_assert_eq!(&request.entries[0].key, &key);
        }

        #[test]
        fn hostile_bodies_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100), inner in "[<>/A-Za-z&;]{0,60}") {
            let _ = DeleteRequest::parse_body(&bytes);
            let _ = DeleteRequest::parse_body(format!("<Delete>{inner}</Delete>").as_bytes());
            let _ = complete(&inner);
            let _ = CreateBucketConfiguration::parse_body(inner.as_bytes());
        }
    }
}
