//! DeleteObjects: up to a thousand keys in one request, each with an outcome of its own.

use std::collections::VecDeque;
use std::rc::Rc;

use basalt_engine::{Engine, EngineError};
use basalt_reactor::JoinHandle;

use super::admission::DOCUMENT_FACTOR;
use super::context::{Context, xml_response};
use super::document::Checksums;
use super::failure::{Failure, Result};
use super::precondition;
use crate::http::Response;
use crate::s3::conditions::WriteConditions;
use crate::s3::error::S3Error;
use crate::s3::operation::{BATCH_DOCUMENT_LEN_MAX, BucketOnly};
use crate::s3::request::bodies::{DeleteRequest, DeleteTarget};
use crate::s3::version_id::VersionId;
use crate::s3::xml::results::{begin_delete_result, end_delete_result, write_delete_entry};

/// Deletes of one request under way at a time: enough to fill the log batches of several shards, few enough that a
/// request does not push all others back.
const IN_FLIGHT_MAX: usize = 64;

pub(super) async fn delete_objects(context: &mut Context, _: BucketOnly) -> Result<Response> {
    let document = context.document(BATCH_DOCUMENT_LEN_MAX, Checksums::Required).await?;
    context.reserve_in_all(document.len() * DOCUMENT_FACTOR).await?;
    let request = DeleteRequest::parse_body(&document)?;
    drop(document);
    let (engine, bucket, asked) = (context.engine().clone(), context.bucket().id, Rc::clone(&context.asked));
    let mut out = String::new();
    begin_delete_result(&mut out);
    let mut under_way = VecDeque::with_capacity(IN_FLIGHT_MAX);
    let mut ended = request.entries.iter();
    let mut finish = |outcome: std::result::Result<(), Failure>| {
        let entry = ended.next().expect("each entry ends once");
        let outcome = outcome.map_err(|failure| failure.into_error(&asked));
        write_delete_entry(&mut out, entry, &outcome, request.quiet);
    };
    for entry in &request.entries {
        if under_way.len() == IN_FLIGHT_MAX
            && let Some(oldest) = under_way.pop_front()
        {
            finish(outcome_of(oldest).await);
        }
        under_way.push_back(match &entry.target {
            Ok(target) => Ok(engine.core().spawn(delete(engine.clone(), bucket, target.clone()))),
            Err(error) => Err(error.clone()),
        });
    }
    for oldest in under_way {
        finish(outcome_of(oldest).await);
    }
    end_delete_result(&mut out);
    Ok(xml_response(out))
}

type UnderWay = std::result::Result<JoinHandle<Result<()>>, S3Error>;

async fn outcome_of(under_way: UnderWay) -> Result<()> {
    under_way?.await.unwrap_or(Err(EngineError::Closed.into()))
}

async fn delete(engine: Engine, bucket: u64, target: DeleteTarget) -> Result<()> {
    if matches!(target.version_id, Some(VersionId::Named(_))) {
        return Ok(());
    }
    let conditions = WriteConditions { if_match: target.if_match, if_none_match: None };
    engine.delete(bucket, target.key.as_str().as_bytes(), precondition::guard(conditions)).await?;
    Ok(())
}
