//! GetObject and HeadObject.
//!
//! Both decide by the same facts and answer the same headers. A GET reads its first bytes before its 200 begins, so that
//! an object that cannot be read is an error and not a broken answer; it has its memory by then, too. Whatever fails later cuts the connection.

use std::ops::Range;
use std::rc::Rc;

use basalt_engine::body::ReadMemory;
use basalt_engine::value::Object;
use basalt_engine::{BodyReader, EngineError, ObjectReader};

use super::context::Context;
use super::failure::Result;
use super::stored;
use crate::http::{BodyAborted, Memory, Response, ResponseBody};
use crate::s3::error::{ErrorCode, S3Error};
use crate::s3::object_key::ObjectKey;
use crate::s3::operation::ReadObject;
use crate::s3::response::{PartExtent, Selection, select};
use crate::s3::version_id::VersionId;

pub(super) async fn get_object(context: &mut Context, read: ReadObject) -> Result<Response> {
    let reader = open(context, context.bucket().id, &read.key, read.version_id.as_ref()).await?;
    let part = part_of(&read, &reader).await?;
    let (mut response, selection) = decide(&read, reader.object(), part)?;
    let range = match selection {
        Selection::NotModified => return Ok(response),
        Selection::Whole => 0..reader.object().len,
        Selection::Partial { start, len } => start..start + len,
    };
    if !range.is_empty() {
        let memory = reader.admit(&range).await?;
        response.body = body(context, &reader, range, &memory).await?;
        let unsent_max = memory.unsent_max().map_or(u64::MAX, |len| len as u64);
        response.memory = Some(Memory { unsent_max, hold: Box::new(memory) });
    }
    Ok(response)
}

pub(super) async fn head_object(context: &mut Context, read: ReadObject) -> Result<Response> {
    let bucket = context.bucket().id;
    if read.part_number.is_some() {
        let reader = open(context, bucket, &read.key, read.version_id.as_ref()).await?;
        let part = part_of(&read, &reader).await?;
        return Ok(decide(&read, reader.object(), part)?.0);
    }
    refuse_named_version(&read.key, read.version_id.as_ref())?;
    let found = context.engine().lookup(bucket, read.key.as_str().as_bytes()).await?;
    let object = found.ok_or_else(|| no_such_key(&read.key))?;
    Ok(decide(&read, &object, None)?.0)
}

/// Opens the object, or says as S3 does that it is not there.
pub(super) async fn open(
    context: &Context,
    bucket: u64,
    key: &ObjectKey,
    version_id: Option<&VersionId>,
) -> Result<ObjectReader> {
    refuse_named_version(key, version_id)?;
    let found = context.engine().open(bucket, key.as_str().as_bytes()).await?;
    found.ok_or_else(|| no_such_key(key).into())
}

pub(super) fn no_such_key(key: &ObjectKey) -> S3Error {
    S3Error::new(ErrorCode::NoSuchKey).with("Key", key.as_str())
}

/// A bucket that was never versioned holds only `null` versions.
pub(super) fn refuse_named_version(key: &ObjectKey, version_id: Option<&VersionId>) -> Result<()> {
    match version_id {
        Some(id @ VersionId::Named(_)) => Err(id.not_found(key.as_str()).into()),
        Some(VersionId::Null) | None => Ok(()),
    }
}

/// The place of the part that was asked for, if the object was put in parts and has it.
async fn part_of(read: &ReadObject, reader: &ObjectReader) -> Result<Option<PartExtent>> {
    let Some(number) = read.part_number.filter(|_| reader.object().part_count > 0) else { return Ok(None) };
    let extent = reader.part_extent(number.get()).await?;
    Ok(extent.map(|range| PartExtent { start: range.start, len: range.end - range.start }))
}

fn decide(read: &ReadObject, object: &Object, part: Option<PartExtent>) -> Result<(Response, Selection)> {
    let metadata = stored::metadata(object);
    let facts = stored::facts(object, &metadata);
    let selection = select(read, &facts, |_| part)?;
    let mut response = Response::new(selection.status());
    response.headers = selection.headers(read, &facts);
    Ok((response, selection))
}

async fn body(
    context: &Context,
    reader: &ObjectReader,
    range: Range<u64>,
    memory: &Rc<ReadMemory>,
) -> Result<ResponseBody> {
    let len = range.end - range.start;
    let mut bytes = reader.read_in(range, memory).await?;
    let first = match bytes.next().await {
        Some(first) => first?,
        None => return Err(short().into()),
    };
    if first.len() as u64 == len {
        // It is in memory: nothing on the disks is needed any more.
        return Ok(ResponseBody::Whole(first.into()));
    }
    let asked = Rc::clone(&context.asked);
    Ok(ResponseBody::produce(Some(len), async move |mut writer| {
        writer.send(first).await;
        while let Some(piece) = next(&mut bytes).await {
            match piece {
                Ok(piece) => writer.send(piece).await,
                Err(error) => {
                    asked.log(&error, "the body of an answer was cut");
                    return Err(BodyAborted);
                }
            }
        }
        Ok(())
    }))
}

async fn next(bytes: &mut BodyReader) -> Option<std::result::Result<basalt_reactor::Slice, EngineError>> {
    bytes.next().await
}

fn short() -> EngineError {
    EngineError::Damaged("a body ended before its first byte".to_owned())
}
