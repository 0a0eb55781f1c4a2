//! ListParts and ListMultipartUploads.

use basalt_engine::value::UploadState;
use basalt_engine::{PartItem, UploadItem, UploadQuery, UploadStart};

use super::{UploadChecksum, UploadId, failure, no_such_upload, part_checksum};
use crate::http::Response;
use crate::s3::error::S3Error;
use crate::s3::etag::ETag;
use crate::s3::list::{self, ListUploadsParameters};
use crate::s3::operation::{List, ListParts};
use crate::s3::time::Timestamp;
use crate::s3::xml::listing::{PartEntry, UploadEntry, UploadFacts, write_list_parts, write_list_uploads};
use crate::service::context::{Context, xml_response};
use crate::service::{admission, failure, stored};

pub(in crate::service) async fn list_parts(
    context: &mut Context,
    operation: ListParts,
) -> failure::Result<Response> {
    let ListParts { key, upload_id, parameters, .. } = &operation;
    let (key, id) = (key.as_str(), UploadId::parse(upload_id)?);
    let after = u16::try_from(parameters.part_number_marker).unwrap_or(u16::MAX);
    let len_max = parameters.max_parts as usize;
    // One more than asked for tells whether the page is the last.
    let (engine, bucket) = (context.engine(), context.bucket().id);
    let found = engine.list_parts(bucket, key.as_bytes(), id.0, after, len_max + 1).await;
    let found = found.map_err(|error| failure(error, upload_id))?;
    if found.upload.state != UploadState::Open {
        return Err(no_such_upload(upload_id).into());
    }
    context.settle_for(found.parts.len() * admission::PART_LEN);
    let checksum = UploadChecksum::of(&found.upload)?;
    let entries: Vec<_> = found
        .parts
        .iter()
        .take(len_max)
        .map(|item| part_entry(item, checksum))
        .collect::<failure::Result<_>>()?;
    // A page without room shows nothing and, as everywhere in S3, nothing behind it.
    let truncated = len_max > 0 && found.parts.len() > len_max;
    let facts = UploadFacts {
        bucket: operation.bucket.as_str(),
        key,
        upload_id,
        owner: context.service.owner(),
        checksum: checksum.shown(),
    };
    let mut document = String::new();
    write_list_parts(&mut document, &facts, parameters, &entries, truncated);
    Ok(xml_response(document))
}

fn part_entry(item: &PartItem, checksum: UploadChecksum) -> failure::Result<PartEntry> {
    let shown = match checksum.shown() {
        Some((algorithm, _)) => Some((algorithm, part_checksum(item, algorithm)?.to_base64())),
        None => None,
    };
    Ok(PartEntry {
        number: item.number,
        last_modified: Timestamp::from_nanos(item.part.modified),
        etag: ETag::of_md5(item.part.etag),
        size: item.part.len,
        checksum: shown,
    })
}

pub(in crate::service) async fn list_uploads(
    context: &mut Context,
    operation: List<ListUploadsParameters>,
) -> failure::Result<Response> {
    let List { bucket, parameters } = operation;
    let query = UploadQuery {
        bucket: context.bucket().id,
        prefix: parameters.prefix.as_bytes().to_vec(),
        delimiter: parameters.delimiter.as_deref().unwrap_or_default().as_bytes().to_vec(),
        start: start_of(&parameters.start)?,
        limit: parameters.max_uploads as usize,
    };
    let found = loop {
        let page = context.engine().list_uploads(&query).await?;
        let names = page.items.iter().map(|item| item.order().0);
        let len = admission::page_len(names, parameters.url_encoded, context.memory_len());
        if context.settle_for(len) {
            break page;
        }
        drop(page);
        context.reserve(len).await?;
    };
    // Entries borrow the text of their ids.
    let ids: Vec<String> = found
        .items
        .iter()
        .filter_map(|item| match item {
            UploadItem::Upload { id, .. } => Some(UploadId(*id).text()),
            UploadItem::Prefix(_) => None,
        })
        .collect();
    let mut ids = ids.iter();
    let (mut uploads, mut prefixes) = (Vec::new(), Vec::new());
    for item in &found.items {
        match item {
            UploadItem::Upload { name, upload, .. } => uploads.push(UploadEntry {
                key: stored::text(name)?,
                upload_id: ids.next().expect("one was made for each upload"),
                initiated: Timestamp::from_nanos(upload.initiated),
                checksum: UploadChecksum::of(upload)?.shown(),
            }),
            UploadItem::Prefix(prefix) => prefixes.push(stored::text(prefix)?),
        }
    }
    let mut document = String::new();
    let (name, owner) = (bucket.as_str(), context.service.owner());
    write_list_uploads(&mut document, name, &parameters, &uploads, &prefixes, found.truncated, owner);
    Ok(xml_response(document))
}

/// # Errors
/// `InvalidArgument` for an upload id that no upload has.
fn start_of(start: &list::UploadStart) -> Result<UploadStart, S3Error> {
    Ok(match start {
        list::UploadStart::Beginning => UploadStart::First,
        list::UploadStart::AfterKey(key) => UploadStart::After(key.as_bytes().to_vec()),
        list::UploadStart::AfterPrefix(prefix) => UploadStart::AfterPrefix(prefix.as_bytes().to_vec()),
        list::UploadStart::AfterUpload { key, upload_id } => {
            let id = UploadId::read(upload_id).ok_or_else(|| {
                S3Error::invalid_argument("Invalid uploadId marker", "upload-id-marker", upload_id)
            })?;
            UploadStart::AfterUpload(key.as_bytes().to_vec(), id.0)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::s3::error::ErrorCode;

    #[test]
    fn behaviour_05_a_marker_is_an_upload_id_or_refused() {
        let after = |upload_id: &str| {
            let (key, upload_id) = ("k".to_owned(), upload_id.to_owned());
            start_of(&list::UploadStart::AfterUpload { key, upload_id }).map_err(|error| error.code())
        };
        let id = UploadId([0xab; 16]);
        assert_eq!(after(&id.text()), Ok(UploadStart::AfterUpload(b"k".to_vec(), id.0)));
        for garbage in ["x", "abab", &id.text().to_uppercase(), &"é".repeat(16)] {
            assert_eq!(after(garbage), Err(ErrorCode::InvalidArgument), "{garbage}");
        }
    }
}
