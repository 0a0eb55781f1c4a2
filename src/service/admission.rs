//! What a request that is not about one body may take of the core's memory: the document it brings, the page it asks for.
//!
//! Bodies know better themselves what they need, and are admitted by the engine where they begin. Both are counted against
//! one budget, so that it is the envelope of everything clients can make the server hold.

use crate::s3::operation::{Body, Operation};

/// Bytes of memory per entry of a listing: the entry itself, and its part of the document.
const ENTRY_LEN: usize = 512;
/// How much more than its bytes a document takes once it is understood.
const DOCUMENT_FACTOR: usize = 4;
/// The same for the list of an upload's parts, which are looked up with all they are made of.
const PARTS_FACTOR: usize = 16;

/// Bytes to reserve before `operation` is carried out; `announced` is the length of its body where the client gave one. 0
/// for operations that hold next to nothing, or that reserve for themselves.
pub(super) fn memory_len(operation: &Operation, announced: Option<u64>) -> usize {
    let entries = match operation {
        Operation::ListObjects(list) => list.parameters.max_keys,
        Operation::ListObjectsV2(list) => list.parameters.max_keys,
        Operation::ListObjectVersions(list) => list.parameters.max_keys,
        Operation::ListMultipartUploads(list) => list.parameters.max_uploads,
        Operation::ListParts(list) => list.parameters.max_parts,
        _ => 0,
    };
    let document = match operation.body() {
        Body::Document { len_max } => {
            announced.and_then(|len| usize::try_from(len).ok()).map_or(len_max, |len| len.min(len_max))
        }
        Body::None | Body::Payload => 0,
    };
    let factor = match operation {
        Operation::CompleteMultipartUpload(_) => PARTS_FACTOR,
        _ => DOCUMENT_FACTOR,
    };
    entries as usize * ENTRY_LEN + document * factor
}
