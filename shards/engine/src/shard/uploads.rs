//! Multipart uploads: their records, their parts, and what becomes of both.
//!
//! Completing puts the object and closes the upload in one batch; parts it lists change owner without a byte moving.
//! Part records are then swept away in small batches, after a crash too, because the closed upload says so: listed
//! parts by dropping their record, the others by freeing their stripes as well.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use super::Shard;
use super::commit::Change;
use super::mutate::{Guard, LeaseGuard, LeaseUse, PutDone, deltas_of_death};
use crate::error::EngineError;
use crate::format::record::Record;
use crate::index::key::{self, Family, Key, VersionOrder};
use crate::value::{self, Object, Upload, UploadState, UploadedPart};

/// Highest part number.
pub const PART_NUMBER_MAX: u16 = 10_000;

/// Part records dropped in one batch.
const SWEEP_BATCH: usize = 100;

/// Bytes of records dropped in one change; far below any batch limit.
const CHANGE_LEN_MAX: usize = 32 << 10;

/// How long a completed upload answers a repeated completion.
const COMPLETED_KEPT: Duration = Duration::from_secs(3600);

/// How often closed uploads are looked for.
const JANITOR_PERIOD: Duration = Duration::from_secs(60);

/// A part to store. The shard fills in uuid and time.
pub struct PutPart {
    pub bucket: u64,
    pub name: Vec<u8>,
    pub upload: [u8; 16],
    pub number: u16,
    pub part: UploadedPart,
    pub leases: Vec<LeaseUse>,
}

/// A completion whose object was formed from the parts as they were listed.
pub struct CompleteUpload {
    pub bucket: u64,
    pub name: Vec<u8>,
    pub upload: [u8; 16],
    pub guard: Option<Guard>,
    pub object: Object,
    /// The parts the object takes over, in order.
    pub parts: Vec<ListedPart>,
    /// Live bytes that are new: blobs written for the object itself.
    pub blobs: Vec<value::Footprint>,
    pub leases: Vec<LeaseUse>,
}

/// A part as it was listed.
pub struct ListedPart {
    pub number: u16,
    pub uuid: [u8; 16],
    /// Where it lay; elsewhere now if collection has moved it.
    pub footprint: Vec<value::Footprint>,
}

/// How a completion ended.
pub enum Completion {
    Done(PutDone),
    /// Some part lies elsewhere than when it was listed: nothing has changed, and the guard was not asked. To be listed and
    /// tried again.
    Moved(Option<Guard>),
}

/// One part of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartItem {
    pub number: u16,
    pub part: UploadedPart,
}

/// What is known of an upload that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartsPage {
    pub upload: Upload,
    pub parts: Vec<PartItem>,
    pub exhausted: bool,
}

impl Shard {
    /// Opens an upload; its id orders by age and names no shard.
    ///
    /// # Errors
    /// [`EngineError`].
    pub(crate) async fn create_upload(
        self: &Rc<Self>,
        bucket: u64,
        name: &[u8],
        mut upload: Upload,
    ) -> Result<[u8; 16], EngineError> {
        let _under_way = self.enter(bucket).await?;
        self.admit_growth().await?;
        upload.initiated = self.tick();
        let mut id = [0; 16];
        self.core.fill_random(&mut id[8..]);
        id[..8].copy_from_slice(&upload.initiated.to_be_bytes());
        let key = key::upload(bucket, name, id);
        self.commit_one(key, value::encode(&upload)).await?;
        Ok(id)
    }

    async fn commit_one(&self, key: Vec<u8>, value: Vec<u8>) -> Result<(), EngineError> {
        let records = vec![Record::Put { key, value, inline: None, deltas: Vec::new() }];
        self.commit(Change { records, payload: Vec::new() }).await
    }

    /// The upload's record, whatever its state.
    ///
    /// # Errors
    /// [`EngineError::NoSuchUpload`].
    pub(crate) async fn upload(&self, bucket: u64, name: &[u8], id: [u8; 16]) -> Result<Upload, EngineError> {
        let value = self.index.get(&key::upload(bucket, name, id)).await?.ok_or(EngineError::NoSuchUpload)?;
        Ok(value::decode::<Upload>(&value)?)
    }

    async fn open_upload(&self, bucket: u64, name: &[u8], id: [u8; 16]) -> Result<Upload, EngineError> {
        let upload = self.upload(bucket, name, id).await?;
        if upload.state == UploadState::Open { Ok(upload) } else { Err(EngineError::NoSuchUpload) }
    }

    /// Stores a part, replacing an earlier one of the same number.
    ///
    /// # Errors
    /// [`EngineError::NoSuchUpload`] and the like; the part's leases are returned then.
    pub(crate) async fn put_part(self: &Rc<Self>, request: PutPart) -> Result<PutDone, EngineError> {
        let leases = LeaseGuard::new(self, request.leases);
        let _under_way = self.enter(request.bucket).await?;
        self.admit_growth().await?;
        let _lock = self.locks.lock(&key::upload(request.bucket, &request.name, request.upload)).await;
        self.open_upload(request.bucket, &request.name, request.upload).await?;
        let key = key::part(request.bucket, &request.name, request.upload, request.number);
        let mut part = request.part;
        part.modified = self.tick();
        self.core.fill_random(&mut part.uuid);
        let done = PutDone { uuid: part.uuid, modified: part.modified };
        let mut deltas = value::deltas_of(&part.footprint, true).collect::<Vec<_>>();
        if let Some(old) = self.index.get(&key).await? {
            deltas.extend(value::deltas_of(&value::decode::<UploadedPart>(&old)?.footprint, false));
        }
        let record = Record::Put { key, value: value::encode(&part), inline: None, deltas };
        self.commit(Change { records: vec![record], payload: Vec::new() }).await?;
        leases.committed();
        Ok(done)
    }

    /// Parts of an open upload above number `after`, in order.
    ///
    /// # Errors
    /// [`EngineError::NoSuchUpload`].
    pub(crate) async fn list_parts(
        &self,
        bucket: u64,
        name: &[u8],
        id: [u8; 16],
        after: u16,
        limit: usize,
    ) -> Result<PartsPage, EngineError> {
        let upload = self.upload(bucket, name, id).await?;
        if upload.state == UploadState::Aborted {
            return Err(EngineError::NoSuchUpload);
        }
        let mut parts = Vec::new();
        let from = key::part(bucket, name, id, after.saturating_add(1));
        let mut end = key::part(bucket, name, id, u16::MAX);
        end.push(0);
        let mut cursor = self.index.cursor(&from, Some(&end));
        while parts.len() < limit {
            let Some((key, value)) = cursor.next().await? else {
                return Ok(PartsPage { upload, parts, exhausted: true });
            };
            let Ok(Key::Part { part: number, .. }) = Key::decode(key) else {
                return Err(EngineError::Damaged("an index key does not decode".to_owned()));
            };
            parts.push(PartItem { number, part: value::decode(value)? });
        }
        Ok(PartsPage { upload, parts, exhausted: false })
    }

    /// Puts the object an upload was for and closes the upload.
    ///
    /// # Errors
    /// [`EngineError::InvalidPart`] when a part was replaced since it was listed, [`EngineError::NoSuchUpload`].
    pub(crate) async fn complete_upload(
        self: &Rc<Self>,
        request: CompleteUpload,
    ) -> Result<Completion, EngineError> {
        let leases = LeaseGuard::new(self, request.leases);
        let _under_way = self.enter(request.bucket).await?;
        self.wait_for_index().await?;
        let object_key = key::object(request.bucket, &request.name, VersionOrder::NULL);
        let upload_key = key::upload(request.bucket, &request.name, request.upload);
        // Always the object's lock first: nobody takes the two in the other order.
        let _object_lock = self.locks.lock(&object_key).await;
        let _upload_lock = self.locks.lock(&upload_key).await;
        let mut upload = self.open_upload(request.bucket, &request.name, request.upload).await?;
        let mut is_moved = false;
        for (index, &ListedPart { number, uuid, ref footprint }) in request.parts.iter().enumerate() {
            // A part taken twice would be freed twice.
            if index > 0 && request.parts[index - 1].number >= number {
                return Err(EngineError::InvalidPart { number });
            }
            let part =
                self.index.get(&key::part(request.bucket, &request.name, request.upload, number)).await?;
            let part = part.map(|value| value::decode::<UploadedPart>(&value)).transpose()?;
            let part = part.filter(|part| part.uuid == uuid).ok_or(EngineError::InvalidPart { number })?;
            // Extents are never named twice: what lies in the same ones has not moved.
            is_moved |= part.footprint != *footprint;
        }
        if is_moved {
            return Ok(Completion::Moved(request.guard));
        }
        let old = self.current(&object_key).await?;
        if let Some(guard) = request.guard {
            guard(old.as_ref().map(|(object, _)| object)).map_err(EngineError::Refused)?;
        }
        let mut object = request.object;
        object.modified = self.tick();
        self.core.fill_random(&mut object.uuid);
        let done = PutDone { uuid: object.uuid, modified: object.modified };
        let mut deltas = value::deltas_of(&request.blobs, true).collect::<Vec<_>>();
        if let Some((object, value)) = &old {
            deltas.extend(deltas_of_death(&object.footprint, value));
        }
        let mut listed = vec![0; usize::from(PART_NUMBER_MAX) / 8 + 1];
        for part in &request.parts {
            listed[usize::from(part.number / 8)] |= 1 << (part.number % 8);
        }
        upload.state = UploadState::Completed { object: object.uuid, at: object.modified, listed };
        let records = vec![
            Record::Put { key: object_key.clone(), value: value::encode(&object), inline: None, deltas },
            Record::Put { key: upload_key, value: value::encode(&upload), inline: None, deltas: Vec::new() },
        ];
        self.commit(Change { records, payload: Vec::new() }).await?;
        leases.committed();
        self.propose_merge(&object_key, &object);
        self.sweep_later(request.bucket, request.name, request.upload);
        Ok(Completion::Done(done))
    }

    /// Closes an upload and frees its parts.
    ///
    /// # Errors
    /// [`EngineError::NoSuchUpload`] when it is not open.
    pub(crate) async fn abort_upload(
        self: &Rc<Self>,
        bucket: u64,
        name: &[u8],
        id: [u8; 16],
    ) -> Result<(), EngineError> {
        let _under_way = self.enter(bucket).await?;
        let upload_key = key::upload(bucket, name, id);
        {
            let _lock = self.locks.lock(&upload_key).await;
            let mut upload = self.open_upload(bucket, name, id).await?;
            upload.state = UploadState::Aborted;
            self.commit_one(upload_key, value::encode(&upload)).await?;
        }
        self.sweep_later(bucket, name.to_vec(), id);
        Ok(())
    }

    fn sweep_later(self: &Rc<Self>, bucket: u64, name: Vec<u8>, id: [u8; 16]) {
        let shard = Rc::clone(self);
        self.core.spawn(async move {
            if let Err(error) = shard.sweep(bucket, &name, id).await {
                tracing::debug!(shard = shard.id, %error, "parts of a closed upload stay until the next sweep");
            }
        });
    }

    /// Drops the part records of a closed upload, then the record of an aborted or long completed one.
    async fn sweep(self: &Rc<Self>, bucket: u64, name: &[u8], id: [u8; 16]) -> Result<(), EngineError> {
        let upload_key = key::upload(bucket, name, id);
        let _lock = self.locks.lock(&upload_key).await;
        let Some(value) = self.index.get(&upload_key).await? else { return Ok(()) };
        let (listed, keep_until) = match value::decode::<Upload>(&value)?.state {
            UploadState::Open => return Ok(()),
            UploadState::Aborted => (Vec::new(), 0),
            UploadState::Completed { listed, at, .. } => {
                (listed, at.saturating_add(u64::try_from(COMPLETED_KEPT.as_nanos()).unwrap_or(u64::MAX)))
            }
        };
        self.drop_parts(bucket, name, id, &listed).await?;
        if self.core.wall().0 >= keep_until {
            let records = vec![Record::Delete { key: upload_key, deltas: Vec::new() }];
            self.commit(Change { records, payload: Vec::new() }).await?;
        }
        Ok(())
    }

    async fn drop_parts(
        &self,
        bucket: u64,
        name: &[u8],
        id: [u8; 16],
        listed: &[u8],
    ) -> Result<(), EngineError> {
        loop {
            let from = key::part(bucket, name, id, 0);
            let mut end = key::part(bucket, name, id, u16::MAX);
            end.push(0);
            let mut cursor = self.index.cursor(&from, Some(&end));
            let mut records = Vec::new();
            while records.len() < SWEEP_BATCH
                && let Some((key, value)) = cursor.next().await?
            {
                let Ok(Key::Part { part: number, .. }) = Key::decode(key) else {
                    return Err(EngineError::Damaged("an index key does not decode".to_owned()));
                };
                let taken =
                    listed.get(usize::from(number / 8)).is_some_and(|byte| byte >> (number % 8) & 1 == 1);
                let deltas = if taken {
                    Vec::new()
                } else {
                    value::deltas_of(&value::decode::<UploadedPart>(value)?.footprint, false).collect()
                };
                records.push(Record::Delete { key: key.to_vec(), deltas });
            }
            drop(cursor);
            if records.is_empty() {
                return Ok(());
            }
            self.commit_all(records).await?;
        }
    }

    /// Commits independent records, as many per batch as fit.
    async fn commit_all(&self, records: Vec<Record>) -> Result<(), EngineError> {
        let mut change = Change::default();
        let mut len = 0;
        for record in records {
            let record_len = record.len_max();
            if len + record_len > CHANGE_LEN_MAX && !change.records.is_empty() {
                self.commit(std::mem::take(&mut change)).await?;
                len = 0;
            }
            len += record_len;
            change.records.push(record);
        }
        if change.records.is_empty() { Ok(()) } else { self.commit(change).await }
    }

    /// Sweeps closed uploads, and every upload of buckets that are gone: what a crash or a failure left behind.
    pub(crate) async fn run_janitor(self: Rc<Self>) {
        if let Err(error) = self.propose_completed().await {
            tracing::debug!(shard = self.id, %error, "objects completed before the start are not proposed for merging");
        }
        loop {
            if self.check_healthy().is_err() {
                return;
            }
            match self.closed_uploads().await {
                Ok(closed) => {
                    for (bucket, name, id) in closed {
                        if let Err(error) = self.sweep(bucket, &name, id).await {
                            tracing::debug!(shard = self.id, %error, "sweep put off");
                        }
                    }
                }
                Err(error) => tracing::warn!(shard = self.id, %error, "uploads cannot be listed"),
            }
            self.core.sleep(JANITOR_PERIOD).await;
        }
    }

    /// Proposes what was completed shortly before the start for merging: a crash may have come before it.
    async fn propose_completed(&self) -> Result<(), EngineError> {
        /// Objects proposed at most: in the order of their names.
        const COUNT_MAX: usize = 256;
        let (from, end) = (vec![Family::Upload as u8], vec![Family::Upload as u8 + 1]);
        let mut cursor = self.index.cursor(&from, Some(&end));
        let mut completed = BTreeSet::new();
        while completed.len() < COUNT_MAX
            && let Some((key, value)) = cursor.next().await?
        {
            let UploadState::Completed { .. } = value::decode::<Upload>(value)?.state else { continue };
            if let Ok(Key::Upload { bucket, name, .. }) = Key::decode(key) {
                completed.insert(key::object(bucket, &name, VersionOrder::NULL));
            }
        }
        drop(cursor);
        for key in completed {
            if let Some(value) = self.index.get(&key).await? {
                self.propose_merge(&key, &value::decode(&value)?);
            }
        }
        Ok(())
    }

    async fn closed_uploads(&self) -> Result<Vec<(u64, Vec<u8>, [u8; 16])>, EngineError> {
        /// Uploads one round takes on.
        const ROUND_MAX: usize = 1000;
        let (from, end) = (vec![Family::Upload as u8], vec![Family::Upload as u8 + 1]);
        let mut cursor = self.index.cursor(&from, Some(&end));
        let mut closed = Vec::new();
        let mut orphans = BTreeSet::new();
        let now = self.core.wall().0;
        while closed.len() + orphans.len() < ROUND_MAX
            && let Some((key, value)) = cursor.next().await?
        {
            let Ok(Key::Upload { bucket, name, upload: id }) = Key::decode(key) else {
                return Err(EngineError::Damaged("an index key does not decode".to_owned()));
            };
            let gone = self.buckets.by_id(bucket).is_none();
            match value::decode::<Upload>(value)?.state {
                UploadState::Open if gone => {
                    orphans.insert((bucket, name.into_owned(), id));
                }
                UploadState::Open => {}
                UploadState::Aborted => closed.push((bucket, name.into_owned(), id)),
                UploadState::Completed { at, .. } => {
                    let age = Duration::from_nanos(now.saturating_sub(at));
                    if gone || age >= COMPLETED_KEPT {
                        closed.push((bucket, name.into_owned(), id));
                    }
                }
            }
        }
        drop(cursor);
        for (bucket, name, id) in orphans {
            let key = key::upload(bucket, &name, id);
            let _lock = self.locks.lock(&key).await;
            if let Some(value) = self.index.get(&key).await? {
                let mut upload = value::decode::<Upload>(&value)?;
                if upload.state == UploadState::Open {
                    upload.state = UploadState::Aborted;
                    self.commit_one(key, value::encode(&upload)).await?;
                    closed.push((bucket, name, id));
                }
            }
        }
        Ok(closed)
    }
}
