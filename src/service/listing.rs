//! Listings of a bucket: ListObjects in both versions, and ListObjectVersions while nothing is versioned.
//!
//! The shards keep names in bytewise order and fold common prefixes themselves; what is left here is to turn
//! parameters into a query and a page into XML without copying a name.

use basalt_engine::value::ObjectSummary;
use basalt_engine::{ListItem, ListQuery, ListStart, Page};

use super::context::{Context, xml_response};
use super::failure::Result;
use super::{admission, stored};
use crate::http::Response;
use crate::s3::checksum::Algorithm;
use crate::s3::checksum::multipart::ChecksumType;
use crate::s3::list::{self, ListObjectsParameters, ListObjectsV2Parameters, ListVersionsParameters};
use crate::s3::operation::List;
use crate::s3::time::Timestamp;
use crate::s3::xml::listing::{
    ObjectEntry, Page as XmlPage, write_list_null_versions, write_list_objects, write_list_objects_v2,
};

pub(super) async fn list_objects_v1(
    context: &mut Context,
    operation: List<ListObjectsParameters>,
) -> Result<Response> {
    let List { bucket, parameters } = operation;
    let wanted = Wanted {
        prefix: &parameters.prefix,
        delimiter: parameters.delimiter.as_deref(),
        start: &parameters.start,
        len_max: parameters.max_keys,
        url_encoded: parameters.url_encoded,
    };
    let found = fetch(context, &wanted).await?;
    let mut document = String::new();
    Split::of(&found)?.with_page(|page| {
        write_list_objects(&mut document, bucket.as_str(), &parameters, page, context.service.owner());
    });
    Ok(xml_response(document))
}

pub(super) async fn list_objects_v2(
    context: &mut Context,
    operation: List<ListObjectsV2Parameters>,
) -> Result<Response> {
    let List { bucket, parameters } = operation;
    let wanted = Wanted {
        prefix: &parameters.prefix,
        delimiter: parameters.delimiter.as_deref(),
        start: &parameters.start,
        len_max: parameters.max_keys,
        url_encoded: parameters.url_encoded,
    };
    let found = fetch(context, &wanted).await?;
    let mut document = String::new();
    Split::of(&found)?.with_page(|page| {
        write_list_objects_v2(&mut document, bucket.as_str(), &parameters, page, context.service.owner());
    });
    Ok(xml_response(document))
}

/// ListObjectVersions of a bucket that was never versioned.
pub(super) async fn list_versions(
    context: &mut Context,
    operation: List<ListVersionsParameters>,
) -> Result<Response> {
    let List { bucket, parameters } = operation;
    let wanted = Wanted {
        prefix: &parameters.prefix,
        delimiter: parameters.delimiter.as_deref(),
        start: &parameters.start,
        len_max: parameters.max_keys,
        url_encoded: parameters.url_encoded,
    };
    let found = fetch(context, &wanted).await?;
    let mut document = String::new();
    Split::of(&found)?.with_page(|page| {
        write_list_null_versions(&mut document, bucket.as_str(), &parameters, page, context.service.owner());
    });
    Ok(xml_response(document))
}

/// What all three listings ask for.
struct Wanted<'w> {
    prefix: &'w str,
    delimiter: Option<&'w str>,
    start: &'w list::ListStart,
    len_max: u32,
    url_encoded: bool,
}

/// The page, in memory that was reserved for it and its document.
async fn fetch(context: &mut Context, wanted: &Wanted<'_>) -> Result<Page<ListItem>> {
    let query = ListQuery {
        bucket: context.bucket().id,
        prefix: wanted.prefix.as_bytes().to_vec(),
        delimiter: wanted.delimiter.unwrap_or_default().as_bytes().to_vec(),
        start: start_of(wanted.start),
        limit: wanted.len_max as usize,
    };
    loop {
        let page = context.engine().list(&query).await?;
        let names = page.items.iter().map(ListItem::name);
        let len = admission::page_len(names, wanted.url_encoded, context.memory_len());
        if context.settle_for(len) {
            return Ok(page);
        }
        drop(page);
        context.reserve(len).await?;
    }
}

fn start_of(start: &list::ListStart) -> ListStart {
    match start {
        list::ListStart::Beginning => ListStart::First,
        list::ListStart::AfterKey(key) => ListStart::After(key.as_bytes().to_vec()),
        list::ListStart::AfterPrefix(prefix) => ListStart::AfterPrefix(prefix.as_bytes().to_vec()),
    }
}

/// A page taken apart: S3 lists objects first, then common prefixes.
struct Split<'f> {
    entries: Vec<ObjectEntry<'f>>,
    common_prefixes: Vec<&'f str>,
    truncated: bool,
}

impl<'f> Split<'f> {
    fn of(found: &'f Page<ListItem>) -> Result<Split<'f>> {
        let mut split = Split {
            entries: Vec::with_capacity(found.items.len()),
            common_prefixes: Vec::new(),
            truncated: found.truncated,
        };
        for item in &found.items {
            match item {
                ListItem::Object { name, summary } => {
                    split.entries.push(entry_of(stored::text(name)?, summary));
                }
                ListItem::Prefix(prefix) => split.common_prefixes.push(stored::text(prefix)?),
            }
        }
        Ok(split)
    }

    fn with_page(&self, write: impl FnOnce(&XmlPage<'_>)) {
        write(&XmlPage {
            entries: &self.entries,
            common_prefixes: &self.common_prefixes,
            truncated: self.truncated,
        });
    }
}

fn entry_of<'n>(key: &'n str, summary: &ObjectSummary) -> ObjectEntry<'n> {
    let checksum = summary.checksum.and_then(|(algorithm, composite)| {
        let kind = if composite { ChecksumType::Composite } else { ChecksumType::FullObject };
        Algorithm::from_id(algorithm).map(|algorithm| (algorithm, kind))
    });
    ObjectEntry {
        key,
        last_modified: Timestamp::from_nanos(summary.modified),
        etag: stored::etag_of(summary.etag, summary.part_count),
        size: summary.len,
        checksum,
    }
}
