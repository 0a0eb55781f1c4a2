//! One shard's share of a listing: its names in order, common prefixes collapsed where they arise.

use super::Shard;
use crate::error::EngineError;
use crate::index::key::{self, Family, Key};
use crate::value::{self, ObjectSummary, Upload, UploadState};

/// Where a listing goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListStart {
    /// At the first name with the prefix.
    First,
    /// At the first name above this one.
    After(Vec<u8>),
    /// At the first name above all that begin with this.
    AfterPrefix(Vec<u8>),
}

#[derive(Clone, Debug)]
pub struct ListQuery {
    pub bucket: u64,
    pub prefix: Vec<u8>,
    /// Empty for none.
    pub delimiter: Vec<u8>,
    pub start: ListStart,
    pub limit: usize,
}

/// One line of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListItem {
    Object {
        name: Vec<u8>,
        summary: ObjectSummary,
    },
    /// All names that begin with this, up to and including the delimiter.
    Prefix(Vec<u8>),
}

impl ListItem {
    /// What listings are ordered by.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        match self {
            ListItem::Object { name, .. } | ListItem::Prefix(name) => name,
        }
    }

    /// Where a listing goes on that ended with this item.
    #[must_use]
    pub fn resume(&self) -> ListStart {
        match self {
            ListItem::Object { name, .. } => ListStart::After(name.clone()),
            ListItem::Prefix(prefix) => ListStart::AfterPrefix(prefix.clone()),
        }
    }
}

/// Items in order; `exhausted` when nothing follows.
#[derive(Clone, Debug, Default)]
pub struct ListChunk {
    pub items: Vec<ListItem>,
    pub exhausted: bool,
}

/// Where a listing of uploads goes on: above this name, or above this upload of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UploadStart {
    First,
    After(Vec<u8>),
    AfterUpload(Vec<u8>, [u8; 16]),
    AfterPrefix(Vec<u8>),
}

#[derive(Clone, Debug)]
pub struct UploadQuery {
    pub bucket: u64,
    pub prefix: Vec<u8>,
    pub delimiter: Vec<u8>,
    pub start: UploadStart,
    pub limit: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UploadItem {
    Upload { name: Vec<u8>, id: [u8; 16], upload: Upload },
    Prefix(Vec<u8>),
}

impl UploadItem {
    /// What listings are ordered by: the name, then the upload's id, which grows with its age.
    #[must_use]
    pub fn order(&self) -> (&[u8], [u8; 16]) {
        match self {
            UploadItem::Upload { name, id, .. } => (name, *id),
            UploadItem::Prefix(name) => (name, [0; 16]),
        }
    }

    /// Where a listing goes on that ended with this item.
    #[must_use]
    pub fn resume(&self) -> UploadStart {
        match self {
            UploadItem::Upload { name, id, .. } => UploadStart::AfterUpload(name.clone(), *id),
            UploadItem::Prefix(prefix) => UploadStart::AfterPrefix(prefix.clone()),
        }
    }
}

#[derive(Clone, Debug, Default)]
pub struct UploadChunk {
    pub items: Vec<UploadItem>,
    pub exhausted: bool,
}

/// The common prefix `name` falls under, if the delimiter follows the prefix in it.
fn common_prefix<'a>(name: &'a [u8], prefix: &[u8], delimiter: &[u8]) -> Option<&'a [u8]> {
    if delimiter.is_empty() {
        return None;
    }
    let rest = &name[prefix.len()..];
    let at = rest.windows(delimiter.len()).position(|window| window == delimiter)?;
    Some(&name[..prefix.len() + at + delimiter.len()])
}

impl Shard {
    /// Up to `limit` items of `query` that this shard owns.
    ///
    /// # Errors
    /// [`EngineError::Damaged`].
    pub(crate) async fn list(&self, query: &ListQuery) -> Result<ListChunk, EngineError> {
        let family = Family::Object;
        let first = key::start_of_prefix(family, query.bucket, &query.prefix);
        let from = match &query.start {
            ListStart::First => first.clone(),
            ListStart::After(name) => key::end_of_name(family, query.bucket, name).max(first),
            ListStart::AfterPrefix(prefix) => key::end_of_prefix(family, query.bucket, prefix).max(first),
        };
        let end = key::end_of_prefix(family, query.bucket, &query.prefix);
        let mut items = Vec::with_capacity(query.limit.min(1024));
        if from >= end {
            return Ok(ListChunk { items, exhausted: true });
        }
        let mut cursor = self.index.cursor(&from, Some(&end));
        while items.len() < query.limit {
            let prefix = {
                let Some((key, value)) = cursor.next().await? else {
                    return Ok(ListChunk { items, exhausted: true });
                };
                let Ok(Key::Object { name, .. }) = Key::decode(key) else {
                    return Err(EngineError::Damaged("an index key does not decode".to_owned()));
                };
                match common_prefix(&name, &query.prefix, &query.delimiter) {
                    None => {
                        let summary = value::summarize(value)?;
                        items.push(ListItem::Object { name: name.into_owned(), summary });
                        None
                    }
                    Some(prefix) => Some(prefix.to_vec()),
                }
            };
            if let Some(prefix) = prefix {
                // The rest of the prefix is skipped, not walked.
                cursor.seek(&key::end_of_prefix(family, query.bucket, &prefix));
                items.push(ListItem::Prefix(prefix));
            }
        }
        Ok(ListChunk { items, exhausted: false })
    }

    /// Up to `limit` open uploads of `query` that this shard owns.
    ///
    /// # Errors
    /// [`EngineError::Damaged`].
    pub(crate) async fn list_uploads(&self, query: &UploadQuery) -> Result<UploadChunk, EngineError> {
        let family = Family::Upload;
        let first = key::start_of_prefix(family, query.bucket, &query.prefix);
        let from = match &query.start {
            UploadStart::First => first.clone(),
            UploadStart::After(name) => key::end_of_name(family, query.bucket, name).max(first),
            UploadStart::AfterPrefix(prefix) => key::end_of_prefix(family, query.bucket, prefix).max(first),
            UploadStart::AfterUpload(name, id) => {
                let mut after = key::upload(query.bucket, name, *id);
                after.push(0);
                after.max(first)
            }
        };
        let end = key::end_of_prefix(family, query.bucket, &query.prefix);
        let mut items = Vec::new();
        if from >= end {
            return Ok(UploadChunk { items, exhausted: true });
        }
        let mut cursor = self.index.cursor(&from, Some(&end));
        while items.len() < query.limit {
            let prefix = {
                let Some((key, value)) = cursor.next().await? else {
                    return Ok(UploadChunk { items, exhausted: true });
                };
                let Ok(Key::Upload { name, upload: id, .. }) = Key::decode(key) else {
                    return Err(EngineError::Damaged("an index key does not decode".to_owned()));
                };
                // A listing shows none of the attributes, which are most of an upload.
                let upload = Upload { attributes: Vec::new(), ..value::decode::<Upload>(value)? };
                if upload.state != UploadState::Open {
                    None
                } else if let Some(prefix) = common_prefix(&name, &query.prefix, &query.delimiter) {
                    Some(prefix.to_vec())
                } else {
                    items.push(UploadItem::Upload { name: name.into_owned(), id, upload });
                    None
                }
            };
            if let Some(prefix) = prefix {
                cursor.seek(&key::end_of_prefix(family, query.bucket, &prefix));
                items.push(UploadItem::Prefix(prefix));
            }
        }
        Ok(UploadChunk { items, exhausted: false })
    }

    /// Whether `bucket` has any object here.
    ///
    /// # Errors
    /// [`EngineError::Damaged`].
    pub(crate) async fn has_objects(&self, bucket: u64) -> Result<bool, EngineError> {
        let from = key::start_of_prefix(Family::Object, bucket, b"");
        let end = key::end_of_prefix(Family::Object, bucket, b"");
        Ok(self.index.cursor(&from, Some(&end)).next().await?.is_some())
    }
}
