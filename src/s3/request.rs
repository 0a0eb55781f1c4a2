//! From a request's head to a typed operation, before any of its body is read.
//!
//! Dispatch is by method, target and sub-resource, in that order of trust: a sub-resource that S3 knows
//! decides alone, so that a request for something unbuilt is refused and never taken for a plain
//! PUT or LIST. Headers that ask for something unbuilt are refused for every operation alike.

pub mod bodies;
mod multipart;
mod object;
mod subresource;
mod unbuilt;

#[cfg(test)]
mod tests;

use std::borrow::Cow;

use http::header::{HOST, HeaderName, HeaderValue};
use http::{HeaderMap, Method, Uri};

use super::addressing::{Addressing, Target};
use super::bucket_name::BucketName;
use super::error::{ErrorCode, Result, S3Error};
use super::list::{
    ListBucketsParameters, ListObjectsParameters, ListObjectsV2Parameters, ListUploadsParameters,
    ListVersionsParameters,
};
use super::object_key::ObjectKey;
use super::operation::{BucketOnly, List, Operation, UnsetConfigRead};
use super::query::Query;
use super::version_id::VersionId;
use subresource::{Found, Scope, SubResource, Verb};

/// The head of a request, raw as it arrived.
#[derive(Clone, Copy, Debug)]
pub struct RequestHead<'r> {
    pub method: &'r Method,
    /// Not decoded, not normalized.
    pub raw_path: &'r str,
    /// Without the question mark.
    pub raw_query: &'r str,
    /// The authority of an absolute-form URI, which stands in for Host.
    pub authority: Option<&'r str>,
    pub headers: &'r HeaderMap,
}

/// A request, understood.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed {
    pub operation: Operation,
    /// `x-amz-expected-bucket-owner`: whoever else owns the bucket, the answer is 403.
    pub expected_bucket_owner: Option<String>,
    /// `x-amz-source-expected-bucket-owner`, the same for the source of a copy.
    pub expected_source_bucket_owner: Option<String>,
}

impl Parsed {
    pub fn operation_name(&self) -> &'static str {
        self.operation.name()
    }

    pub fn bucket(&self) -> Option<&BucketName> {
        self.operation.bucket()
    }

    pub fn key(&self) -> Option<&ObjectKey> {
        self.operation.key()
    }
}

impl<'r> RequestHead<'r> {
    pub fn new(method: &'r Method, uri: &'r Uri, headers: &'r HeaderMap) -> Self {
        Self {
            method,
            raw_path: uri.path(),
            raw_query: uri.query().unwrap_or(""),
            authority: uri.authority().map(|authority| authority.as_str()),
            headers,
        }
    }

    /// The name that the client called this server by.
    pub fn host(&self) -> Option<&'r str> {
        self.authority.or_else(|| self.headers.get(HOST)?.to_str().ok())
    }

    /// The headers, and the `x-amz-*` parameters of the query that stand for headers: presigned URLs
    /// carry headers so, and what they ask for must not be overlooked. A header wins over a parameter.
    pub fn effective_headers(&self, query: &Query<'_>) -> Cow<'r, HeaderMap> {
        let mut headers = Cow::Borrowed(self.headers);
        for (name, value) in query.iter() {
            let Some(name) = header_in_query(name) else { continue };
            if self.headers.contains_key(&name) {
                continue;
            }
            if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
                headers.to_mut().append(name, value);
            }
        }
        headers
    }
}

/// Reads a request. Errors: the S3 error to answer with; nothing has happened then.
pub fn parse(head: &RequestHead<'_>, addressing: &Addressing) -> Result<Parsed> {
    let target = addressing.locate(head.raw_path, head.host())?;
    let query = Query::parse(head.raw_query)?;
    let headers = head.effective_headers(&query);
    let request = Request { method: head.method, query: &query, headers: &headers };
    unbuilt::refuse(&headers)?;
    let operation = match target {
        Target::Service => service_operation(&request)?,
        Target::Bucket(bucket) => bucket_operation(&request, bucket)?,
        Target::Object(bucket, key) => object::operation(&request, bucket, key)?,
    };
    Ok(Parsed {
        operation,
        expected_bucket_owner: request.header("x-amz-expected-bucket-owner").map(str::to_owned),
        expected_source_bucket_owner: request.header("x-amz-source-expected-bucket-owner").map(str::to_owned),
    })
}

/// What the builders of operations look at.
struct Request<'r> {
    method: &'r Method,
    query: &'r Query<'r>,
    headers: &'r HeaderMap,
}

impl Request<'_> {
    /// The first value of a header, if it is text.
    fn header(&self, name: &'static str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    fn verb(&self) -> Result<Verb> {
        Verb::of(self.method).ok_or_else(|| match *self.method {
            // Preflight requests come with CORS, which is not built.
            Method::OPTIONS => not_implemented("A preflight request needs a CORS configuration."),
            _ => subresource::method_not_allowed(self.method.as_str(), "OBJECT", &[]),
        })
    }

    /// The sub-resource that the query names, with the answer for it already refused if it is unbuilt.
    fn subresource(&self, scope: Scope) -> Result<Option<Found>> {
        subresource::find(self.query, scope, self.verb()?)
    }

    fn version_id(&self) -> Result<Option<VersionId>> {
        self.query.first("versionId").map(VersionId::parse).transpose()
    }

    /// Refuses a version where it would be overlooked.
    fn refuse_version_id(&self) -> Result<()> {
        match self.query.first("versionId") {
            None => Ok(()),
            Some(id) => Err(S3Error::invalid_argument(
                "This operation does not accept a version-id.",
                "versionId",
                id,
            )),
        }
    }
}

fn not_implemented(message: &'static str) -> S3Error {
    S3Error::new(ErrorCode::NotImplemented).message(message)
}

/// The header that a query parameter stands for. Those of the signature itself stay parameters.
fn header_in_query(name: &str) -> Option<HeaderName> {
    const OF_THE_SIGNATURE: [&str; 8] = [
        "x-amz-algorithm",
        "x-amz-credential",
        "x-amz-date",
        "x-amz-expires",
        "x-amz-signedheaders",
        "x-amz-signature",
        "x-amz-security-token",
        "x-amz-content-sha256",
    ];
    let is_header = name.len() > 6 && name.is_char_boundary(6) && name[..6].eq_ignore_ascii_case("x-amz-");
    if !is_header || OF_THE_SIGNATURE.iter().any(|own| name.eq_ignore_ascii_case(own)) {
        return None;
    }
    HeaderName::try_from(name).ok()
}

fn service_operation(request: &Request<'_>) -> Result<Operation> {
    request.subresource(Scope::Service)?;
    match request.verb()? {
        Verb::Get => Ok(Operation::ListBuckets(ListBucketsParameters::of_query(request.query)?)),
        verb => Err(subresource::method_not_allowed(verb.name(), "SERVICE", &[Verb::Get])),
    }
}

fn bucket_operation(request: &Request<'_>, bucket: BucketName) -> Result<Operation> {
    let verb = request.verb()?;
    let found = request.subresource(Scope::Bucket)?;
    request.refuse_version_id()?;
    let query = request.query;
    if let Some(found) = found {
        return match found {
            Found::Unset(config) => Ok(Operation::UnsetConfig(UnsetConfigRead {
                bucket,
                key: None,
                version_id: None,
                config,
                by_id: query.has("id"),
            })),
            Found::Built(SubResource::Location) => Ok(Operation::GetBucketLocation(BucketOnly { bucket })),
            Found::Built(SubResource::Uploads) => {
                let parameters = ListUploadsParameters::of_query(query)?;
                Ok(Operation::ListMultipartUploads(List { bucket, parameters }))
            }
            Found::Built(SubResource::Versions) => {
                let parameters = ListVersionsParameters::of_query(query)?;
                Ok(Operation::ListObjectVersions(List { bucket, parameters }))
            }
            Found::Built(SubResource::Delete) => Ok(Operation::DeleteObjects(BucketOnly { bucket })),
            Found::Built(SubResource::UploadId) => {
                unreachable!("the table has no such sub-resource of a bucket")
            }
        };
    }
    match verb {
        Verb::Get if query.first("list-type") == Some("2") => {
            let parameters = ListObjectsV2Parameters::of_query(query)?;
            Ok(Operation::ListObjectsV2(List { bucket, parameters }))
        }
        Verb::Get => {
            let parameters = ListObjectsParameters::of_query(query)?;
            Ok(Operation::ListObjects(List { bucket, parameters }))
        }
        Verb::Head => Ok(Operation::HeadBucket(BucketOnly { bucket })),
        Verb::Put => Ok(Operation::CreateBucket(BucketOnly { bucket })),
        Verb::Delete => Ok(Operation::DeleteBucket(BucketOnly { bucket })),
        Verb::Post => match request.header("content-type") {
            Some(kind) if kind.starts_with("multipart/form-data") => {
                Err(not_implemented("Uploads by POST forms are not implemented."))
            }
            _ => Err(ErrorCode::RequestIsNotMultiPartContent.into()),
        },
    }
}
