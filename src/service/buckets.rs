//! Buckets: list, create, head, delete, and where they are.
//!
//! Every core knows every bucket, so all of this but creation and deletion is answered from memory.

use std::rc::Rc;

use basalt_engine::EngineError;
use basalt_engine::buckets::BUCKET_COUNT_MAX;
use basalt_engine::value::Bucket;
use http::StatusCode;
use http::header::{HeaderName, HeaderValue, LOCATION};

use super::Service;
use super::admission::{DOCUMENT_FACTOR, ENTRY_LEN};
use super::context::{Context, xml_response};
use super::document::Checksums;
use super::failure::{Failure, Result};
use crate::http::Response;
use crate::s3::auth::RegionPolicy;
use crate::s3::bucket_name::BucketName;
use crate::s3::error::{ErrorCode, S3Error};
use crate::s3::list::{ListBucketsParameters, ListStart};
use crate::s3::operation::{BUCKET_DOCUMENT_LEN_MAX, BucketOnly};
use crate::s3::request::bodies::CreateBucketConfiguration;
use crate::s3::time::Timestamp;
use crate::s3::xml::listing::{BucketEntry, write_list_buckets};
use crate::s3::xml::results::{REGION_CLASSIC, write_location};

const ACCESS_POINT_ALIAS: HeaderName = HeaderName::from_static("x-amz-access-point-alias");

/// The name that the European region had before there were several.
const REGION_EUROPE_LEGACY: (&str, &str) = ("EU", "eu-west-1");

pub(super) async fn list_buckets(
    context: &mut Context,
    parameters: ListBucketsParameters,
) -> Result<Response> {
    let count_max = parameters.max_buckets.map_or(BUCKET_COUNT_MAX, |len| len as usize);
    context.reserve(context.engine().buckets().len().min(count_max) * ENTRY_LEN).await?;
    let service = &context.service;
    let is_elsewhere = parameters.bucket_region.as_deref().is_some_and(|region| region != service.region());
    let all = if is_elsewhere { Vec::new() } else { context.engine().all_buckets()? };
    let (page, truncated) = page_of(&all, &parameters);
    let entries: Vec<_> = page
        .iter()
        .map(|bucket| BucketEntry {
            name: &bucket.name,
            created: Timestamp::from_nanos(bucket.created),
            region: service.region(),
        })
        .collect();
    let mut document = String::new();
    write_list_buckets(&mut document, &parameters, &entries, truncated, service.owner());
    Ok(xml_response(document))
}

/// The buckets of one page, and whether more follow. `all` is in order of names.
fn page_of<'b>(all: &'b [Rc<Bucket>], parameters: &ListBucketsParameters) -> (Vec<&'b Bucket>, bool) {
    let prefix = parameters.prefix.as_deref().unwrap_or_default();
    let after_start = |name: &str| match &parameters.start {
        ListStart::Beginning => true,
        ListStart::AfterKey(key) => name > key.as_str(),
        ListStart::AfterPrefix(prefix) => name > prefix.as_str() && !name.starts_with(prefix),
    };
    let len_max = parameters.max_buckets.map_or(BUCKET_COUNT_MAX, |len| len as usize);
    let mut found = all.iter().map(Rc::as_ref).filter(|b| b.name.starts_with(prefix) && after_start(&b.name));
    let page: Vec<&Bucket> = found.by_ref().take(len_max).collect();
    let truncated = found.next().is_some();
    (page, truncated)
}

pub(super) async fn create_bucket(context: &mut Context, operation: BucketOnly) -> Result<Response> {
    let document = context.document(BUCKET_DOCUMENT_LEN_MAX, Checksums::Optional).await?;
    context.reserve_in_all(document.len() * DOCUMENT_FACTOR).await?;
    let wanted = CreateBucketConfiguration::parse_body(&document)?.location_constraint;
    let service = &context.service;
    let configured = match &service.region {
        RegionPolicy::Exactly(region) => Some(region.as_str()),
        RegionPolicy::Any { .. } => None,
    };
    check_location(wanted.as_deref(), configured)?;
    let (engine, name) = (context.engine(), operation.bucket.as_str());
    if engine.buckets().get(name).is_some() {
        return again(service, &operation.bucket);
    }
    if engine.buckets().len() >= BUCKET_COUNT_MAX {
        return Err(ErrorCode::TooManyBuckets.into());
    }
    match engine.create_bucket(name, Vec::new()).await {
        Ok(_) => Ok(created(name)),
        Err(EngineError::BucketExists) => again(service, &operation.bucket),
        Err(error) => Err(error.into()),
    }
}

/// Whether this server is where a client wants its bucket. A server without a region takes every wish; one with a region
/// has nowhere else to put a bucket, so no wish means here.
fn check_location(wanted: Option<&str>, region: Option<&str>) -> std::result::Result<(), S3Error> {
    let (Some(wanted), Some(region)) = (wanted, region) else { return Ok(()) };
    if wanted == REGION_CLASSIC && region == REGION_CLASSIC {
        // It predates location constraints and is asked for by leaving them out.
        return Err(S3Error::new(ErrorCode::InvalidLocationConstraint).with("LocationConstraint", wanted));
    }
    if wanted == region || (wanted, region) == REGION_EUROPE_LEGACY {
        return Ok(());
    }
    Err(S3Error::new(ErrorCode::IllegalLocationConstraintException).message(format!(
        "The {wanted} location constraint is incompatible for the region specific endpoint this request was sent to."
    )))
}

/// Creating one's own bucket again: nothing happens in the oldest region, and it is an error in all others.
fn again(service: &Service, bucket: &BucketName) -> Result<Response> {
    if service.region() == REGION_CLASSIC {
        return Ok(created(bucket.as_str()));
    }
    Err(S3Error::new(ErrorCode::BucketAlreadyOwnedByYou).with("BucketName", bucket.as_str()).into())
}

fn created(name: &str) -> Response {
    let mut response = Response::new(StatusCode::OK);
    let location = HeaderValue::from_str(&format!("/{name}")).expect("a bucket's name is printable ASCII");
    response.headers.insert(LOCATION, location);
    response
}

/// The region is said in a header that every answer to HeadBucket has, refusals too.
pub(super) async fn head_bucket(_: &mut Context, _: BucketOnly) -> Result<Response> {
    let mut response = Response::new(StatusCode::OK);
    response.headers.insert(ACCESS_POINT_ALIAS, HeaderValue::from_static("false"));
    Ok(response)
}

/// Open uploads do not keep a bucket; they end with it.
pub(super) async fn delete_bucket(context: &mut Context, operation: BucketOnly) -> Result<Response> {
    let name = operation.bucket.as_str();
    context.engine().delete_bucket(name).await.map_err(|error| match error {
        EngineError::BucketNotEmpty => {
            S3Error::new(ErrorCode::BucketNotEmpty).with("BucketName", name).into()
        }
        EngineError::NoSuchBucket => S3Error::new(ErrorCode::NoSuchBucket).with("BucketName", name).into(),
        error => Failure::from(error),
    })?;
    Ok(Response::new(StatusCode::NO_CONTENT))
}

pub(super) async fn get_location(context: &mut Context, _: BucketOnly) -> Result<Response> {
    let mut document = String::new();
    write_location(&mut document, context.service.region());
    Ok(xml_response(document))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buckets(names: &[&str]) -> Vec<Rc<Bucket>> {
        let bucket = |name: &&str| {
            Rc::new(Bucket {
                id: 1,
                name: (*name).to_owned(),
                created: 0,
                deleting: false,
                settings: Vec::new(),
                extensions: Vec::new(),
            })
        };
        names.iter().map(bucket).collect()
    }

    #[test]
    fn behaviour_05_pages_of_buckets_join_up() {
        let all = buckets(&["apple", "logs", "logs-1", "logs-2", "logs-3", "zoo"]);
        for len in 1..=7 {
            let mut names = Vec::new();
            let mut start = ListStart::Beginning;
            loop {
                let parameters = ListBucketsParameters {
                    prefix: Some("logs".to_owned()),
                    start,
                    max_buckets: Some(len),
                    bucket_region: None,
                };
                let (page, truncated) = page_of(&all, &parameters);
                assert!(page.len() <= len as usize && (!truncated || page.len() == len as usize));
                names.extend(page.iter().map(|bucket| bucket.name.clone()));
                if !truncated {
                    break;
                }
                start = ListStart::AfterKey(names.last().expect("a truncated page has entries").clone());
            }
            assert_eq!(names, ["logs", "logs-1", "logs-2", "logs-3"], "pages of {len}");
        }
    }

    #[test]
    fn a_client_that_does_not_page_gets_every_bucket() {
        let all = buckets(&["a", "b", "c"]);
        let (page, truncated) = page_of(&all, &ListBucketsParameters::default());
        assert_eq!((page.len(), truncated), (3, false));
    }

    #[test]
    fn a_location_elsewhere_is_refused() {
        let code = |wanted, region| check_location(wanted, region).map_err(|error| error.code());
        for (wanted, region) in [
            (None, None),
            (Some("eu-west-1"), None),
            (Some("us-east-1"), None),
            (None, Some("us-east-1")),
            (None, Some("eu-west-1")),
            (Some("eu-west-1"), Some("eu-west-1")),
            (Some("EU"), Some("eu-west-1")),
        ] {
            assert_eq!(code(wanted, region), Ok(()), "{wanted:?} at {region:?}");
        }
        let illegal = Err(ErrorCode::IllegalLocationConstraintException);
        assert_eq!(code(Some("eu-west-1"), Some("us-east-1")), illegal);
        assert_eq!(code(Some("us-east-1"), Some("eu-west-1")), illegal);
        assert_eq!(code(Some("EU"), Some("eu-north-1")), illegal);
        assert_eq!(code(Some("us-east-1"), Some("us-east-1")), Err(ErrorCode::InvalidLocationConstraint));
    }
}
