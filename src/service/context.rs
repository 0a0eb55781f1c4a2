//! One request on its way through the service: what its operation may ask for.

use std::rc::Rc;

use basalt_engine::body::budget::Permit;
use basalt_engine::value::Bucket;
use basalt_engine::{Engine, EngineError};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, StatusCode, Uri};

use super::Service;
use super::failure::{Asked, Result};
use crate::http::{BodyStream, Response};
use crate::s3::auth::Identity;
use crate::s3::bucket_name::BucketName;
use crate::s3::error::{ErrorCode, S3Error};
use crate::s3::unset::Owner;

/// What an operation gets beside its own input.
pub(super) struct Context {
    pub(super) service: Rc<Service>,
    /// With the headers that stood in the query of a presigned URL.
    pub(super) headers: HeaderMap,
    pub(super) uri: Uri,
    pub(super) identity: Identity,
    /// Polling it answers `100 Continue`: everything that can be refused without it comes first.
    pub(super) body: BodyStream,
    pub(super) asked: Rc<Asked>,
    pub(super) host_id: Rc<str>,
    /// Whether the request came over TLS.
    pub(super) tls: bool,
    /// The operation's bucket, found before the operation runs.
    pub(super) bucket: Option<Rc<Bucket>>,
    /// What the request holds of the core's memory; the answer keeps it until it has been sent.
    pub(super) memory: Vec<Permit>,
}

impl Context {
    pub(super) fn engine(&self) -> &Engine {
        &self.service.engine
    }

    /// The bucket the operation is about.
    ///
    /// # Panics
    /// In an operation that is about no existing bucket.
    pub(super) fn bucket(&self) -> &Bucket {
        self.bucket.as_ref().expect("dispatch finds the bucket of every operation that has one")
    }

    /// Bytes of memory that the request holds.
    pub(super) fn memory_len(&self) -> usize {
        self.memory.iter().map(Permit::len).sum()
    }

    /// Whether the request holds `len` bytes of memory, or all there is. If so, what exceeds them goes back.
    pub(super) fn settle_for(&self, len: usize) -> bool {
        let [memory] = &self.memory[..] else { return false };
        let is_enough = memory.len() >= len || memory.is_whole_budget();
        if is_enough {
            memory.shrink(len);
        }
        is_enough
    }

    /// Exchanges what the request holds for `len` bytes of memory. What needs them must not be held yet.
    ///
    /// # Errors
    /// `SlowDown` when they cannot be had in time.
    pub(super) async fn reserve(&mut self, len: usize) -> Result<()> {
        // Whoever waits in line holds nothing that others wait for.
        self.memory.clear();
        let memory = self.engine().admit(len).await?;
        self.memory.push(memory);
        Ok(())
    }

    /// Reserves what is missing of `len` bytes of memory, and keeps what the request holds meanwhile because it is in use. Several
    /// requests may wait for each other here; then some are told so when their time is over, and the others get on.
    ///
    /// # Errors
    /// `SlowDown` when they cannot be had in time.
    pub(super) async fn reserve_in_all(&mut self, len: usize) -> Result<()> {
        let missing = len.min(self.engine().memory().capacity).saturating_sub(self.memory_len());
        if missing > 0 {
            let memory = self.engine().admit(missing).await?;
            self.memory.push(memory);
        }
        Ok(())
    }
}

impl Service {
    /// The bucket called `name`.
    ///
    /// # Errors
    /// `NoSuchBucket`; `ServiceUnavailable` when nobody can say whether there is one.
    pub(super) fn bucket(&self, name: &BucketName) -> Result<Rc<Bucket>> {
        self.engine.bucket(name.as_str()).map_err(|error| match error {
            EngineError::NoSuchBucket => {
                S3Error::new(ErrorCode::NoSuchBucket).with("BucketName", name.as_str()).into()
            }
            other => other.into(),
        })
    }

    /// Who owns every bucket and object.
    pub(super) fn owner(&self) -> &Owner {
        &self.owner
    }

    /// The region this server says it is in.
    pub(super) fn region(&self) -> &str {
        self.region.name()
    }
}

/// A 200 with a document.
pub(super) fn xml_response(document: String) -> Response {
    let mut response = Response::new(StatusCode::OK).with_body(document.into());
    response.headers.insert(CONTENT_TYPE, XML);
    response
}

/// The content type of every document.
pub(super) const XML: HeaderValue = HeaderValue::from_static("application/xml");
