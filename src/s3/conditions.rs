//! Preconditions: whether a request still means what its sender saw.
//!
//! Pure functions over entity tag and modification time, so that a read decides against the record it
//! serves and a write against the state its batch enters. Precedence for reads is RFC 9110's section
//! 13.2.2, which is also what the S3 documentation of GetObject describes: a tag beats a date. Dates
//! compare at second precision; a date that cannot be read is no condition.

use http::header::{IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_UNMODIFIED_SINCE};
use http::{HeaderMap, HeaderName};

use super::error::{ErrorCode, Result, S3Error};
use super::etag::ETag;
use super::time::Timestamp;

/// The most tags of one header; the HTTP layer bounds its bytes.
pub const TAGS_MAX: usize = 256;

/// The value of an If-Match or If-None-Match header.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum EntityTags {
    /// `*`: whatever exists.
    Any,
    List(Vec<ListedTag>),
}

/// One tag of a list that an object here can have; others can never match and are not kept.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ListedTag {
    pub etag: ETag,
    pub weak: bool,
}

/// Conditions of GetObject and HeadObject, or those on a copy's source.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ReadConditions {
    pub if_match: Option<EntityTags>,
    pub if_none_match: Option<EntityTags>,
    pub if_modified_since: Option<Timestamp>,
    pub if_unmodified_since: Option<Timestamp>,
}

/// Conditions of PutObject, CopyObject (on its target), CompleteMultipartUpload and DeleteObject.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct WriteConditions {
    pub if_match: Option<EntityTags>,
    pub if_none_match: Option<EntityTags>,
}

/// What a conditional read answers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ReadOutcome {
    Serve,
    /// 304, without a body.
    NotModified,
}

impl EntityTags {
    /// Reads a comma-separated list of quoted, weak or bare tags, or `*`. Errors: `InvalidArgument`
    /// past [`TAGS_MAX`] tags.
    pub fn parse(text: &str) -> Result<Self> {
        let mut list = Vec::new();
        // An entity tag of S3 holds no comma, so splitting cannot cut one that could match.
        for (index, item) in text.split(',').map(str::trim).enumerate() {
            if index == TAGS_MAX {
                return Err(S3Error::invalid_argument("Too many entity tags.", "If-Match", ""));
            }
            if matches!(item, "*" | "\"*\"") {
                return Ok(Self::Any);
            }
            let (bare, weak) = match item.strip_prefix("W/") {
                Some(rest) => (rest, true),
                None => (item, false),
            };
            list.extend(ETag::parse(bare).map(|etag| ListedTag { etag, weak }));
        }
        Ok(Self::List(list))
    }

    /// Strong comparison, as If-Match demands: a weak tag does not promise equal bytes.
    pub fn matches_strongly(&self, etag: ETag) -> bool {
        match self {
            Self::Any => true,
            Self::List(list) => list.iter().any(|tag| tag.etag == etag && !tag.weak),
        }
    }

    /// Weak comparison, as If-None-Match demands: caches that recompress weaken the tag.
    pub fn matches_weakly(&self, etag: ETag) -> bool {
        match self {
            Self::Any => true,
            Self::List(list) => list.iter().any(|tag| tag.etag == etag),
        }
    }
}

impl ReadConditions {
    /// The conditional headers of a GET or HEAD.
    pub fn of_read(headers: &HeaderMap) -> Result<Self> {
        Ok(Self {
            if_match: tags(headers, &IF_MATCH)?,
            if_none_match: tags(headers, &IF_NONE_MATCH)?,
            if_modified_since: date(headers, &IF_MODIFIED_SINCE),
            if_unmodified_since: date(headers, &IF_UNMODIFIED_SINCE),
        })
    }

    /// The `x-amz-copy-source-if-*` headers of CopyObject and UploadPartCopy.
    pub fn of_copy_source(headers: &HeaderMap) -> Result<Self> {
        let name = HeaderName::from_static;
        Ok(Self {
            if_match: tags(headers, &name("x-amz-copy-source-if-match"))?,
            if_none_match: tags(headers, &name("x-amz-copy-source-if-none-match"))?,
            if_modified_since: date(headers, &name("x-amz-copy-source-if-modified-since")),
            if_unmodified_since: date(headers, &name("x-amz-copy-source-if-unmodified-since")),
        })
    }

    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Decides a read of an existing object. Errors: `PreconditionFailed`.
    pub fn evaluate(&self, etag: ETag, last_modified: Timestamp) -> Result<ReadOutcome> {
        match (&self.if_match, self.if_unmodified_since) {
            (Some(tags), _) if !tags.matches_strongly(etag) => return Err(failed("If-Match")),
            (None, Some(date)) if last_modified > date => return Err(failed("If-Unmodified-Since")),
            _ => {}
        }
        match (&self.if_none_match, self.if_modified_since) {
            (Some(tags), _) if tags.matches_weakly(etag) => Ok(ReadOutcome::NotModified),
            (None, Some(date)) if last_modified <= date => Ok(ReadOutcome::NotModified),
            _ => Ok(ReadOutcome::Serve),
        }
    }

    /// Decides a copy from an existing source: what would be 304 on a read is 412 here.
    /// Errors: `PreconditionFailed`.
    pub fn evaluate_copy_source(&self, etag: ETag, last_modified: Timestamp) -> Result<()> {
        match self.evaluate(etag, last_modified) {
            Ok(ReadOutcome::Serve) => Ok(()),
            Ok(ReadOutcome::NotModified) if self.if_none_match.is_some() => {
                Err(failed("x-amz-copy-source-If-None-Match"))
            }
            Ok(ReadOutcome::NotModified) => Err(failed("x-amz-copy-source-If-Modified-Since")),
            Err(_) if self.if_match.is_some() => Err(failed("x-amz-copy-source-If-Match")),
            Err(_) => Err(failed("x-amz-copy-source-If-Unmodified-Since")),
        }
    }
}

impl WriteConditions {
    pub fn of_write(headers: &HeaderMap) -> Result<Self> {
        Ok(Self { if_match: tags(headers, &IF_MATCH)?, if_none_match: tags(headers, &IF_NONE_MATCH)? })
    }

    pub fn is_empty(&self) -> bool {
        self.if_match.is_none() && self.if_none_match.is_none()
    }

    /// Decides a write over the key's current object; `None` when there is none (or a delete marker).
    /// Errors: `PreconditionFailed`; `NoSuchKey` for If-Match on a missing object, as AWS answers.
    pub fn evaluate(&self, current: Option<ETag>) -> Result<()> {
        if let Some(tags) = &self.if_match {
            match current {
                None => return Err(ErrorCode::NoSuchKey.into()),
                Some(etag) if !tags.matches_strongly(etag) => return Err(failed("If-Match")),
                Some(_) => {}
            }
        }
        match (&self.if_none_match, current) {
            (Some(tags), Some(etag)) if tags.matches_weakly(etag) => Err(failed("If-None-Match")),
            _ => Ok(()),
        }
    }
}

/// The 412, naming the condition that did not hold.
pub fn failed(condition: &'static str) -> S3Error {
    S3Error::new(ErrorCode::PreconditionFailed).with("Condition", condition)
}

/// All lines of a list header are one list.
fn tags(headers: &HeaderMap, name: &HeaderName) -> Result<Option<EntityTags>> {
    let mut joined = String::new();
    let mut present = false;
    for value in headers.get_all(name) {
        if present {
            joined.push(',');
        }
        present = true;
        // Bytes beyond ASCII occur in no tag of ours; they stay as something that never matches.
        joined.push_str(&String::from_utf8_lossy(value.as_bytes()));
    }
    if present { EntityTags::parse(&joined).map(Some) } else { Ok(None) }
}

fn date(headers: &HeaderMap, name: &HeaderName) -> Option<Timestamp> {
    Timestamp::parse_http(headers.get(name)?.to_str().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MODIFIED: Timestamp = Timestamp::from_secs(1_000);

    fn etag() -> ETag {
        ETag::of_md5([1; 16])
    }

    fn list(etag: ETag) -> Option<EntityTags> {
        Some(EntityTags::parse(&etag.quoted()).expect("valid"))
    }

    fn other() -> Option<EntityTags> {
        list(ETag::of_md5([2; 16]))
    }

    fn at(secs: u64) -> Option<Timestamp> {
        Some(Timestamp::from_secs(secs))
    }

    fn read(conditions: ReadConditions) -> u16 {
        match conditions.evaluate(etag(), MODIFIED) {
            Ok(ReadOutcome::Serve) => 200,
            Ok(ReadOutcome::NotModified) => 304,
            Err(error) => error.status().as_u16(),
        }
    }

    #[test]
    fn reads_follow_the_documented_precedence() {
        let none = ReadConditions::default;
        assert_eq!(read(none()), 200);
        assert_eq!(read(ReadConditions { if_match: list(etag()), ..none() }), 200);
        assert_eq!(read(ReadConditions { if_match: other(), ..none() }), 412);
        assert_eq!(read(ReadConditions { if_none_match: list(etag()), ..none() }), 304);
        assert_eq!(read(ReadConditions { if_none_match: other(), ..none() }), 200);
        assert_eq!(read(ReadConditions { if_none_match: Some(EntityTags::Any), ..none() }), 304);
        // If-Match true and If-Unmodified-Since false: 200.
        assert_eq!(
            read(ReadConditions { if_match: list(etag()), if_unmodified_since: at(1), ..none() }),
            200
        );
        // If-None-Match false and If-Modified-Since true: 304.
        assert_eq!(
            read(ReadConditions { if_none_match: list(etag()), if_modified_since: at(1), ..none() }),
            304
        );
        // If-None-Match true beats If-Modified-Since false.
        assert_eq!(
            read(ReadConditions { if_none_match: other(), if_modified_since: at(2_000), ..none() }),
            200
        );
        // A failed If-Match is 412 even when If-None-Match would be 304.
        assert_eq!(read(ReadConditions { if_match: other(), if_none_match: list(etag()), ..none() }), 412);
    }

    #[test]
    fn behaviour_07_date_conditions_compare_whole_seconds() {
        let none = ReadConditions::default;
        assert_eq!(read(ReadConditions { if_modified_since: at(999), ..none() }), 200);
        assert_eq!(read(ReadConditions { if_modified_since: at(1_000), ..none() }), 304);
        assert_eq!(read(ReadConditions { if_unmodified_since: at(1_000), ..none() }), 200);
        assert_eq!(read(ReadConditions { if_unmodified_since: at(999), ..none() }), 412);
        let with_fraction = Timestamp::from_nanos(1_000_999_999_999);
        let unmodified = ReadConditions { if_unmodified_since: at(1_000), ..none() };
        assert_eq!(unmodified.evaluate(etag(), with_fraction), Ok(ReadOutcome::Serve));
    }

    #[test]
    fn a_copy_answers_412_where_a_read_answers_304() {
        let copy = |c: ReadConditions| c.evaluate_copy_source(etag(), MODIFIED).map_err(|e| e.status());
        let none = ReadConditions::default;
        assert!(copy(none()).is_ok());
        for conditions in [
            ReadConditions { if_none_match: list(etag()), ..none() },
            ReadConditions { if_modified_since: at(1_000), ..none() },
            ReadConditions { if_match: other(), ..none() },
            ReadConditions { if_unmodified_since: at(999), ..none() },
        ] {
            assert_eq!(copy(conditions), Err(http::StatusCode::PRECONDITION_FAILED));
        }
    }

    #[test]
    fn writes_check_the_current_object() {
        let code = |c: &WriteConditions, current| c.evaluate(current).map_err(|e| e.code());
        let if_match = WriteConditions { if_match: list(etag()), if_none_match: None };
        assert_eq!(code(&if_match, Some(etag())), Ok(()));
        assert_eq!(code(&if_match, Some(ETag::of_md5([2; 16]))), Err(ErrorCode::PreconditionFailed));
        assert_eq!(code(&if_match, None), Err(ErrorCode::NoSuchKey));
        let exists = WriteConditions { if_match: Some(EntityTags::Any), if_none_match: None };
        assert_eq!(code(&exists, Some(etag())), Ok(()));
        assert_eq!(code(&exists, None), Err(ErrorCode::NoSuchKey));
        let absent = WriteConditions { if_match: None, if_none_match: Some(EntityTags::Any) };
        assert_eq!(code(&absent, None), Ok(()));
        assert_eq!(code(&absent, Some(etag())), Err(ErrorCode::PreconditionFailed));
        let differs = WriteConditions { if_match: None, if_none_match: list(etag()) };
        assert_eq!(code(&differs, Some(etag())), Err(ErrorCode::PreconditionFailed));
        assert_eq!(code(&differs, Some(ETag::of_md5([2; 16]))), Ok(()));
    }

    #[test]
    fn behaviour_11_lists_weak_and_unquoted_tags_are_read() {
        let tag = etag();
        let listed = EntityTags::parse(&format!("\"x\", W/{} , {}", ETag::of_md5([3; 16]).quoted(), tag))
            .expect("valid");
        assert!(listed.matches_strongly(tag) && listed.matches_weakly(tag));
        let weak = ETag::of_md5([3; 16]);
        assert!(listed.matches_weakly(weak) && !listed.matches_strongly(weak));
        assert_eq!(EntityTags::parse("*").expect("valid"), EntityTags::Any);
        assert_eq!(EntityTags::parse("").expect("valid"), EntityTags::List(vec![]));
        assert!(EntityTags::parse(&",".repeat(TAGS_MAX)).is_err());
    }

    #[test]
    fn headers_become_conditions() {
        let mut headers = HeaderMap::new();
        headers.append(IF_MATCH, etag().header_value());
        headers.append(IF_MATCH, http::HeaderValue::from_static("\"other\""));
        headers.insert(IF_MODIFIED_SINCE, http::HeaderValue::from_static("not a date"));
        let conditions = ReadConditions::of_read(&headers).expect("valid");
        assert!(conditions.if_match.as_ref().is_some_and(|tags| tags.matches_strongly(etag())));
        assert_eq!(conditions.if_modified_since, None);
        assert!(ReadConditions::of_copy_source(&headers).expect("valid").is_empty());
        headers.insert("x-amz-copy-source-if-none-match", http::HeaderValue::from_static("*"));
        let source = ReadConditions::of_copy_source(&headers).expect("valid");
        assert_eq!(source.if_none_match, Some(EntityTags::Any));
    }

    proptest! {
        #[test]
        fn hostile_tag_lists_never_panic(text in "[W/\"*,a-f0-9 -]{0,200}|.{0,100}") {
            let _ = EntityTags::parse(&text);
        }
    }
}
