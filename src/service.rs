//! What each S3 operation does: the protocol above the engine, one file per operation or small family.
//!
//! A request passes here in one order: who asks (signature), what is asked (the typed operation), whether the bucket is
//! there and whose it is; only then may its body be touched. So everything that can be refused is refused before a
//! client has sent its upload. Each core has one [`Service`]; nothing in it is shared between cores.

mod admission;
mod body_digest;
mod buckets;
mod context;
mod copy_object;
mod delete_object;
mod delete_objects;
mod document;
mod failure;
mod keep_alive;
mod listing;
mod multipart;
mod payload;
mod precondition;
mod put_object;
mod read_object;
mod stored;
mod unset;

use std::cell::RefCell;
use std::rc::Rc;

use basalt_engine::{Engine, LogPace};
use basalt_md5::Kernel;
use http::header::HOST;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use sha2::{Digest, Sha256};

use self::body_digest::BodyStreams;
use self::context::Context;
use self::failure::{Asked, Result};
use crate::config::Credentials;
use crate::http::{Memory, Note, Request, RequestId, Response, refuse};
use crate::s3::addressing::Addressing;
use crate::s3::auth::{self, Identity, RegionPolicy, Secret, SigningKeys, authenticate};
use crate::s3::error::{ErrorCode, S3Error};
use crate::s3::operation::Operation;
use crate::s3::query::Query;
use crate::s3::request::{Parsed, RequestHead, parse};
use crate::s3::unset::Owner;
use crate::s3::xml::results::REGION_CLASSIC;

/// The account that every bucket belongs to, as `x-amz-expected-bucket-owner` names it.
const ACCOUNT_ID: &str = "000000000000";
/// How the owner is called where documents show a name.
const OWNER_DISPLAY_NAME: &str = "basalt";

/// Failed requests that a core logs in a second, at most.
const FAILURES_PER_SECOND: u32 = 4;

const BUCKET_REGION: HeaderName = HeaderName::from_static("x-amz-bucket-region");

/// What a service is made of.
pub(crate) struct ServiceParts {
    pub(crate) engine: Engine,
    pub(crate) root: Credentials,
    /// `None` accepts every signing region and reports `us-east-1`.
    pub(crate) region: Option<String>,
    /// Domains below which the first labels of a host name a bucket.
    pub(crate) domains: Vec<String>,
}

/// One core's service.
pub(crate) struct Service {
    engine: Engine,
    /// The MD5s of all bodies that are under way on this core.
    md5: BodyStreams,
    root_access_key: String,
    root_secret: Secret,
    signing_keys: RefCell<SigningKeys>,
    region: RegionPolicy,
    region_header: HeaderValue,
    addressing: Addressing,
    owner: Owner,
    /// Of lines about what the engine could not do.
    failures_pace: Rc<LogPace>,
}

impl Service {
    pub(crate) fn new(parts: ServiceParts) -> Rc<Service> {
        let ServiceParts { engine, root, region, domains } = parts;
        let region = match region {
            None => RegionPolicy::Any { report: REGION_CLASSIC.to_owned() },
            Some(region) => RegionPolicy::Exactly(region),
        };
        // Canonical user ids have 64 hex digits; this one stays the same for the life of a deployment.
        let owner_id = hex::encode(Sha256::digest(engine.deployment().superblock.deployment));
        Rc::new(Service {
            region_header: HeaderValue::from_str(region.name())
                .expect("configured regions are a-z, 0-9 and -"),
            region,
            addressing: Addressing::new(domains),
            owner: Owner { id: owner_id, display_name: OWNER_DISPLAY_NAME.to_owned() },
            root_access_key: root.access_key,
            root_secret: Secret::new(root.secret_key),
            signing_keys: RefCell::default(),
            md5: BodyStreams::new(Kernel::detect()),
            failures_pace: Rc::new(LogPace::new(FAILURES_PER_SECOND)),
            engine,
        })
    }

    /// Answers one request. Dropped at any await, it leaves nothing half done: a body that was not committed gives its
    /// space back.
    pub(crate) async fn handle(self: Rc<Self>, request: Request) -> Response {
        let Request { head, body, id, host_id, tls, .. } = request;
        let (method, uri, mut headers) = (head.method, head.uri, head.headers);
        if let Some(authority) = uri.authority()
            && let Ok(host) = HeaderValue::from_str(authority.as_str())
        {
            // The target of a request in absolute form decides, whatever Host says (RFC 9112, section 3.2.2).
            headers.insert(HOST, host);
        }
        let mut note = Note::default();
        let outcome = match self.admit(&method, &uri, &headers, &mut note) {
            Err(error) => Err(error),
            Ok(admitted) => {
                let asked = self.asked(id, &note);
                let headers = admitted.headers.unwrap_or(headers);
                let mut context = Context {
                    service: Rc::clone(&self),
                    headers,
                    uri: uri.clone(),
                    identity: admitted.identity,
                    body,
                    asked: Rc::clone(&asked),
                    host_id: Rc::clone(&host_id),
                    tls,
                    bucket: None,
                    memory: Vec::new(),
                };
                carry_out(&mut context, admitted.operation)
                    .await
                    .map_err(|failure| failure.into_error(&asked))
            }
        };
        let mut response = outcome.unwrap_or_else(|error| refuse(&error, &method, uri.path(), id, &host_id));
        if method == Method::HEAD && (note.operation == "HeadBucket" || response.status.is_client_error()) {
            // A refused HEAD has no document that could name the right region.
            response.headers.insert(BUCKET_REGION, self.region_header.clone());
        }
        note.code = response.note.code;
        response.note = note;
        response
    }

    fn asked(&self, id: RequestId, note: &Note) -> Rc<Asked> {
        Rc::new(Asked {
            engine: self.engine.clone(),
            pace: Rc::clone(&self.failures_pace),
            id,
            operation: note.operation,
            bucket: note.bucket.clone(),
            key: note.key.clone(),
        })
    }

    /// Who asks for what, and whether they may.
    fn admit(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        note: &mut Note,
    ) -> crate::s3::error::Result<Admitted> {
        let head = RequestHead::new(method, uri, headers);
        let query = Query::parse(head.raw_query)?;
        let signed = auth::RequestHead { method, path: uri.path(), query: &query, headers };
        let secret_of =
            |access_key: &str| (access_key == self.root_access_key).then(|| self.root_secret.clone());
        let now = i64::try_from(self.engine.core().wall().unix_secs()).unwrap_or(i64::MAX);
        let mut keys = self.signing_keys.borrow_mut();
        let identity = authenticate(&signed, &secret_of, now, &self.region, &mut keys)?;
        drop(keys);
        note.access_key = identity.access_key().map(Box::from);
        let Parsed { operation, expected_bucket_owner, expected_source_bucket_owner } =
            parse(&head, &self.addressing)?;
        note.operation = operation.name();
        note.bucket = operation.bucket().map(|bucket| bucket.as_str().into());
        note.key = operation.key().map(|key| key.as_str().into());
        if matches!(identity, Identity::Anonymous { .. }) {
            return Err(refuse_anonymous(&operation));
        }
        for expected in [expected_bucket_owner, expected_source_bucket_owner].into_iter().flatten() {
            if expected != ACCOUNT_ID && expected != self.owner.id {
                return Err(ErrorCode::AccessDenied.into());
            }
        }
        let headers = match head.effective_headers(&query) {
            std::borrow::Cow::Borrowed(_) => None,
            std::borrow::Cow::Owned(headers) => Some(headers),
        };
        Ok(Admitted { identity, operation, headers })
    }
}

/// A request that may be carried out.
struct Admitted {
    identity: Identity,
    operation: Operation,
    /// The headers together with those that the query stands in for, where there are such.
    headers: Option<HeaderMap>,
}

/// Nobody may do anything without credentials.
fn refuse_anonymous(operation: &Operation) -> S3Error {
    match operation {
        Operation::GetObject(read) | Operation::HeadObject(read) if !read.overrides.is_empty() => {
            S3Error::invalid_request(
                "Request specific response headers cannot be used for anonymous GET requests.",
            )
        }
        _ => ErrorCode::AccessDenied.into(),
    }
}

/// Reserves what the operation may take of the core's memory, and carries it out.
async fn carry_out(context: &mut Context, operation: Operation) -> Result<Response> {
    match admission::memory_len(&operation, context.body.content_length()) {
        0 => {}
        len => context.reserve(len).await?,
    }
    let mut response = dispatch(context, operation).await?;
    if !context.memory.is_empty() {
        let memory = std::mem::take(&mut context.memory);
        response.memory = Some(Memory { unsent_max: u64::MAX, hold: Box::new(memory) });
    }
    Ok(response)
}

/// Finds the bucket and hands the operation to its function.
async fn dispatch(context: &mut Context, operation: Operation) -> Result<Response> {
    if !matches!(operation, Operation::ListBuckets(_) | Operation::CreateBucket(_))
        && let Some(name) = operation.bucket()
    {
        context.bucket = Some(context.service.bucket(name)?);
    }
    match operation {
        Operation::ListBuckets(parameters) => buckets::list_buckets(context, parameters).await,
        Operation::CreateBucket(operation) => buckets::create_bucket(context, operation).await,
        Operation::HeadBucket(operation) => buckets::head_bucket(context, operation).await,
        Operation::DeleteBucket(operation) => buckets::delete_bucket(context, operation).await,
        Operation::GetBucketLocation(operation) => buckets::get_location(context, operation).await,
        Operation::ListObjects(operation) => listing::list_objects_v1(context, operation).await,
        Operation::ListObjectsV2(operation) => listing::list_objects_v2(context, operation).await,
        Operation::ListObjectVersions(operation) => listing::list_versions(context, operation).await,
        Operation::ListMultipartUploads(operation) => multipart::list_uploads(context, operation).await,
        Operation::DeleteObjects(operation) => delete_objects::delete_objects(context, operation).await,
        Operation::PutObject(operation) => put_object::put_object(context, *operation).await,
        Operation::GetObject(operation) => read_object::get_object(context, *operation).await,
        Operation::HeadObject(operation) => read_object::head_object(context, *operation).await,
        Operation::DeleteObject(operation) => delete_object::delete_object(context, *operation).await,
        Operation::CopyObject(operation) => copy_object::copy_object(context, *operation).await,
        Operation::CreateMultipartUpload(operation) => multipart::create(context, *operation).await,
        Operation::UploadPart(operation) => multipart::upload_part(context, operation).await,
        Operation::UploadPartCopy(operation) => multipart::upload_part_copy(context, *operation).await,
        Operation::CompleteMultipartUpload(operation) => multipart::complete(context, *operation).await,
        Operation::AbortMultipartUpload(operation) => multipart::abort(context, operation).await,
        Operation::ListParts(operation) => multipart::list_parts(context, operation).await,
        Operation::UnsetConfig(operation) => unset::read_config(context, operation).await,
    }
}
