//! What a request that is not about one body may take of the core's memory: the document it brings, the page it asks for.
//!
//! Bodies know better themselves what they need, and are admitted by the engine where they begin. Both are counted against
//! one budget, so that it is the envelope of everything clients can make the server hold.
//!
//! How much a page of a listing takes shows when it is there: its names may be long, and longer still once they are escaped. So
//! a listing begins with room for usual names, and one that turns out to need more lets go of the page, reserves what it needs,
//! and looks again.

use crate::s3::operation::{Body, Operation};
use crate::s3::xml::writer::{SHOWN_PER_BYTE_MAX, shown_len_max};

/// Bytes of memory per entry of a listing, without its name: the entry itself, and its part of the document.
pub(super) const ENTRY_LEN: usize = 512;
/// Room for a name of an entry, as stored and as shown, before it is known.
const NAME_LEN_USUAL: usize = 512;
/// Bytes of memory per part of an upload that is listed: most of it says where the part lies.
pub(super) const PART_LEN: usize = 4096;
/// How much more than its bytes a document takes once it is understood. It is reserved when the document is there: a client that
/// announces a long one and does not send it holds no more than that.
pub(super) const DOCUMENT_FACTOR: usize = 4;
/// The same for the list of an upload's parts, which are looked up with all they are made of.
pub(super) const PARTS_FACTOR: usize = 16;

/// Bytes to reserve before `operation` is carried out; `announced` is the length of its body where the client gave one. 0
/// for operations that hold next to nothing, or that reserve for themselves.
pub(super) fn memory_len(operation: &Operation, announced: Option<u64>) -> usize {
    let (entries, entry_len) = match operation {
        Operation::ListObjects(list) => (list.parameters.max_keys, ENTRY_LEN + NAME_LEN_USUAL),
        Operation::ListObjectsV2(list) => (list.parameters.max_keys, ENTRY_LEN + NAME_LEN_USUAL),
        Operation::ListObjectVersions(list) => (list.parameters.max_keys, ENTRY_LEN + NAME_LEN_USUAL),
        Operation::ListMultipartUploads(list) => (list.parameters.max_uploads, ENTRY_LEN + NAME_LEN_USUAL),
        Operation::ListParts(list) => (list.parameters.max_parts, PART_LEN),
        _ => (0, 0),
    };
    let document = match operation.body() {
        Body::Document { len_max } => {
            announced.and_then(|len| usize::try_from(len).ok()).map_or(len_max, |len| len.min(len_max))
        }
        Body::None | Body::Payload => 0,
    };
    entries as usize * entry_len + document
}

/// Bytes of memory that a page of entries with these names takes at most, with its document.
pub(super) fn page_len<'n>(
    names: impl Iterator<Item = &'n [u8]> + Clone,
    url_encoded: bool,
    held: usize,
) -> usize {
    // Most pages fit in what is held even if every byte of a name had to be escaped: no need to look at each.
    let longest: usize = names.clone().map(|name| ENTRY_LEN + name.len() * (1 + SHOWN_PER_BYTE_MAX)).sum();
    if longest <= held {
        return longest;
    }
    names.map(|name| ENTRY_LEN + name.len() + shown_len_max(name, url_encoded)).sum()
}
