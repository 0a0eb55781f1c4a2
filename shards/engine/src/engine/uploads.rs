//! Multipart uploads by name: open, add parts, list, complete, abort.

use std::collections::BTreeMap;

use super::buckets::done;
use super::objects::{ObjectDraft, Page};
use super::write::{Content, assemble};
use super::{Engine, WrittenBody};
use crate::error::EngineError;
use crate::request::{Ask, Reply};
use crate::shard::list::{UploadItem, UploadQuery};
use crate::shard::mutate::{Guard, LeaseUse, PutDone};
use crate::shard::uploads::{
    CompleteUpload, Completion, ListedPart, PART_NUMBER_MAX, PartItem, PartsPage, PutPart,
};
use crate::value::{Checksum, Object, Part, Upload, UploadState, UploadedPart};

/// Parts asked for at once while a completion collects them.
const PARTS_PER_ASK: usize = 500;

/// Times that a completion is tried whose parts are moved under it.
const COMPLETION_COUNT_MAX: usize = 16;

impl Engine {
    /// Opens an upload for `name`; the answer is its id.
    ///
    /// # Errors
    /// [`EngineError::NoSuchBucket`], [`EngineError::NoSpace`].
    pub async fn create_upload(
        &self,
        bucket: u64,
        name: &[u8],
        attributes: Vec<(String, String)>,
        checksum_algorithm: u8,
        checksum_composite: bool,
    ) -> Result<[u8; 16], EngineError> {
        let upload = Box::new(Upload {
            initiated: 0,
            attributes,
            checksum_algorithm,
            checksum_composite,
            state: UploadState::Open,
            extensions: Vec::new(),
        });
        let ask = Ask::CreateUpload { bucket, name: name.to_vec(), upload };
        match self.ask(self.shard_of(bucket, name), ask).await? {
            Reply::Upload(id) => id,
            _ => Err(EngineError::Closed),
        }
    }

    /// Stores part `number` of an upload; the body must come from [`Engine::write_part`].
    ///
    /// # Errors
    /// [`EngineError::NoSuchUpload`].
    #[expect(clippy::too_many_arguments, reason = "each is a fact of the part; a struct would be named once")]
    pub async fn put_part(
        &self,
        bucket: u64,
        name: &[u8],
        upload: [u8; 16],
        number: u16,
        etag: [u8; 16],
        checksum: Option<Checksum>,
        body: WrittenBody,
    ) -> Result<PutDone, EngineError> {
        let shard = self.shard_of(bucket, name);
        assert_eq!(shard, body.shard, "a body was written for another name");
        assert!((1..=PART_NUMBER_MAX).contains(&number), "part number {number}");
        let Content::Striped { body: part_body, footprint, leases } = body.content else {
            panic!("a part's body never lives in the log");
        };
        let part = UploadedPart {
            uuid: [0; 16],
            modified: 0,
            len: body.len,
            etag,
            checksum,
            body: part_body,
            footprint,
            extensions: Vec::new(),
        };
        let leases = lease_uses(leases);
        let put = PutPart { bucket, name: name.to_vec(), upload, number, part, leases };
        match self.ask(shard, Ask::PutPart(Box::new(put))).await? {
            Reply::Put(result) => result,
            _ => Err(EngineError::Closed),
        }
    }

    /// Parts of an upload above number `after`, with the upload itself. A completed upload has no parts left to list, but
    /// says that it was completed.
    ///
    /// # Errors
    /// [`EngineError::NoSuchUpload`].
    pub async fn list_parts(
        &self,
        bucket: u64,
        name: &[u8],
        id: [u8; 16],
        after: u16,
        limit: usize,
    ) -> Result<PartsPage, EngineError> {
        let ask = Ask::ListParts { bucket, name: name.to_vec(), id, after, limit };
        match self.ask(self.shard_of(bucket, name), ask).await? {
            Reply::Parts(page) => page,
            _ => Err(EngineError::Closed),
        }
    }

    /// All parts of an upload, in order, with the upload itself.
    ///
    /// # Errors
    /// [`EngineError::NoSuchUpload`].
    pub async fn all_parts(
        &self,
        bucket: u64,
        name: &[u8],
        id: [u8; 16],
    ) -> Result<(Upload, Vec<PartItem>), EngineError> {
        let mut parts: Vec<PartItem> = Vec::new();
        loop {
            let after = parts.last().map_or(0, |part| part.number);
            let page = self.list_parts(bucket, name, id, after, PARTS_PER_ASK).await?;
            parts.extend(page.parts);
            if page.exhausted {
                return Ok((page.upload, parts));
            }
        }
    }

    /// Puts the object made of `parts` (as listed, in order) and closes the upload.
    ///
    /// # Errors
    /// [`EngineError::InvalidPart`] when a part was replaced since, [`EngineError::NoSuchUpload`],
    /// [`EngineError::Refused`].
    pub async fn complete_upload(
        &self,
        bucket: u64,
        name: &[u8],
        upload: [u8; 16],
        draft: ObjectDraft,
        parts: Vec<PartItem>,
        guard: Option<Guard>,
    ) -> Result<PutDone, EngineError> {
        let (mut parts, mut guard) = (parts, guard);
        for _ in 0..COMPLETION_COUNT_MAX {
            let listed = parts.iter().map(|item| (item.number, item.part.uuid)).collect::<Vec<_>>();
            match self.try_complete(bucket, name, upload, draft.clone(), parts, guard).await? {
                Completion::Done(done) => return Ok(done),
                Completion::Moved(unasked) => guard = unasked,
            }
            parts = self.listed_again(bucket, name, upload, &listed).await?;
        }
        Err(EngineError::Busy)
    }

    /// The parts `listed` as they lie now.
    async fn listed_again(
        &self,
        bucket: u64,
        name: &[u8],
        upload: [u8; 16],
        listed: &[(u16, [u8; 16])],
    ) -> Result<Vec<PartItem>, EngineError> {
        let (_, parts) = self.all_parts(bucket, name, upload).await?;
        let mut parts: BTreeMap<_, _> =
            parts.into_iter().map(|item| ((item.number, item.part.uuid), item)).collect();
        let again = listed
            .iter()
            .map(|named| parts.remove(named).ok_or(EngineError::InvalidPart { number: named.0 }));
        again.collect()
    }

    async fn try_complete(
        &self,
        bucket: u64,
        name: &[u8],
        upload: [u8; 16],
        draft: ObjectDraft,
        parts: Vec<PartItem>,
        guard: Option<Guard>,
    ) -> Result<Completion, EngineError> {
        let shard = self.shard_of(bucket, name);
        let bodies = &self.access(shard).bodies;
        let len = parts.iter().map(|item| item.part.len).sum();
        let part_count = u32::try_from(parts.len()).expect("at most 10,000 parts");
        let footprints = parts.iter().map(|item| item.part.footprint.clone()).collect::<Vec<_>>();
        let named = parts.iter().map(|item| ListedPart {
            number: item.number,
            uuid: item.part.uuid,
            footprint: item.part.footprint.clone(),
        });
        let named = named.collect();
        let taken = parts
            .into_iter()
            .map(|item| Part {
                number: item.number,
                len: item.part.len,
                checksum: item.part.checksum,
                body: item.part.body,
            })
            .collect();
        let assembling = assemble(bodies, bodies.owner(bucket, name), taken, &footprints);
        let assembled = self.inner.members.unless_lost(assembling).await?;
        let object = Object {
            uuid: [0; 16],
            modified: 0,
            len,
            etag: draft.etag,
            part_count,
            attributes: draft.attributes,
            checksum: draft.checksum,
            body: assembled.body,
            footprint: assembled.footprint,
            extensions: draft.extensions,
        };
        let complete = CompleteUpload {
            bucket,
            name: name.to_vec(),
            upload,
            guard,
            object,
            parts: named,
            blobs: assembled.blobs,
            leases: assembled.leases.map(lease_uses).unwrap_or_default(),
        };
        match self.ask(shard, Ask::CompleteUpload(Box::new(complete))).await? {
            Reply::Completed(result) => result,
            _ => Err(EngineError::Closed),
        }
    }

    /// Closes an upload and frees its parts.
    ///
    /// # Errors
    /// [`EngineError::NoSuchUpload`].
    pub async fn abort_upload(&self, bucket: u64, name: &[u8], id: [u8; 16]) -> Result<(), EngineError> {
        let ask = Ask::AbortUpload { bucket, name: name.to_vec(), id };
        done(self.ask(self.shard_of(bucket, name), ask).await?)
    }

    /// One page of a bucket's open uploads, by name and age.
    ///
    /// # Errors
    /// [`EngineError::Damaged`].
    pub async fn list_uploads(&self, query: &UploadQuery) -> Result<Page<UploadItem>, EngineError> {
        let engine = self.clone();
        let fetch = move |shard, query: UploadQuery| {
            let engine = engine.clone();
            async move {
                match engine.ask(shard, Ask::ListUploads(query)).await? {
                    Reply::Uploads(chunk) => chunk.map(|chunk| (chunk.items, chunk.exhausted)),
                    _ => Err(EngineError::Closed),
                }
            }
        };
        let at = |last: Option<&UploadItem>, limit| {
            let mut query = query.clone();
            query.limit = limit;
            if let Some(last) = last {
                query.start = last.resume();
            }
            query
        };
        let order = |a: &UploadItem, b: &UploadItem| a.order().cmp(&b.order());
        self.merge(query.limit, fetch, at, order).await
    }
}

/// The leases of a body, handed over to the record that names it.
pub(super) fn lease_uses(leases: crate::body::Leases) -> Vec<LeaseUse> {
    leases.keep().into_iter().map(|lease| LeaseUse { id: lease.id, blocks: lease.used_blocks }).collect()
}
