//! Going through what is left of the log, from its oldest batch to its newest, into the new index.
//!
//! Objects and buckets go there as they are met, so that the last record of a key stays. Uploads and their parts are kept apart: which of
//! them are still open shows at the end alone.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher;

use siphasher::sip::SipHasher13;

use super::history::{BatchAt, ReadBatch};
use super::{RebuildError, Work};
use crate::body::directory::Content;
use crate::extent::ExtentId;
use crate::format::record::{InlineSpan, LiveDelta, Record};
use crate::index::key::Key;
use crate::value::{self, Bucket, InlinePlace, Object, Upload, UploadState, UploadedPart};

/// Bucket and name of an object.
pub(super) type Name = (u64, Vec<u8>);

/// Name and id of an upload.
pub(super) type UploadName = (Name, [u8; 16]);

/// The last record of an object that the log has.
#[derive(Clone, Debug)]
pub(super) struct Verdict {
    pub(super) sequence: u64,
    /// When it was made, nanoseconds since the Unix epoch.
    pub(super) time: u64,
    /// What it put in data extents. A later record may have moved that, and be in a gap of the log.
    pub(super) put: Option<Box<Object>>,
}

/// What the log says of an upload.
#[derive(Default)]
pub(super) struct UploadFound {
    pub(super) record: Option<Upload>,
    /// Number of the batch with its last record.
    pub(super) sequence: u64,
    /// Completed or aborted: parts are the object's, or nobody's.
    pub(super) over: bool,
    /// Its record was dropped, so it is over in one of the two ways.
    pub(super) dropped: bool,
    pub(super) parts: BTreeMap<u16, UploadedPart>,
    /// Parts whose blocks were given back.
    pub(super) dead: BTreeSet<u16>,
}

#[derive(Default)]
pub(super) struct Replayed {
    /// Names that some body belongs to, and what the log says of them.
    pub(super) verdicts: BTreeMap<Name, Verdict>,
    pub(super) uploads: BTreeMap<UploadName, UploadFound>,
    /// Hashes of the keys whose last record is in the unbroken end of the log.
    certain: BTreeSet<u64>,
    /// The use of each log extent that inline bodies lie in, by its place in the history.
    pub(super) logs: BTreeMap<ExtentId, usize>,
    /// Buckets of which the log knows that they were deleted.
    pub(super) gone: BTreeSet<u64>,
    /// Ids of buckets by name, as far as replayed.
    buckets: BTreeMap<Vec<u8>, u64>,
    pub(super) extent_max: u64,
}

impl Replayed {
    pub(super) fn is_certain(&self, key: &[u8]) -> bool {
        self.certain.contains(&hash_of(key))
    }
}

fn hash_of(key: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new();
    hasher.write(key);
    hasher.finish()
}

impl Work<'_> {
    pub(super) async fn replay(&mut self) -> Result<(), RebuildError> {
        let mut names: BTreeSet<Name> =
            self.survey.bodies.iter().map(|body| (body.owner.bucket, body.owner.name.clone())).collect();
        for body in self.survey.bodies.iter().filter(|body| body.content == Content::Pack) {
            let listed = self.objects_of_pack(body).await.unwrap_or_default();
            names.extend(listed.into_iter().map(|packed| packed.name));
        }
        let recycled: Vec<bool> = self
            .history
            .uses
            .iter()
            .map(|log| self.history.is_recycled(log) || !self.alive(log.id))
            .collect();
        for at in 0..self.history.batches.len() {
            let batch = &self.history.batches[at];
            let read = self.history.batch(&self.set.core, &self.shard.files, batch).await;
            // It was whole a moment ago: a medium that fails now is better replaced first.
            let read = read.ok_or_else(|| {
                RebuildError::Device(format!(
                    "batch {} of the log cannot be read a second time",
                    batch.sequence
                ))
            })?;
            let batch = batch.clone();
            for record in &read.records {
                self.apply(&batch, &read, record, recycled[batch.of], &names);
            }
            self.flush_if_full().await?;
        }
        Ok(())
    }

    fn apply(
        &mut self,
        at: &BatchAt,
        batch: &ReadBatch,
        record: &Record,
        recycled: bool,
        names: &BTreeSet<Name>,
    ) {
        let replayed = &mut self.replayed;
        let (key, value) = match record {
            Record::Put { key, value, inline, deltas } => {
                replayed.note_extents(deltas);
                (key, Some((value, *inline)))
            }
            Record::Delete { key, deltas } => {
                replayed.note_extents(deltas);
                (key, None)
            }
            Record::ExtentOpened { placement, .. } => {
                replayed.extent_max = replayed.extent_max.max(placement.id.0);
                return;
            }
            Record::ExtentSealed { .. } => return,
        };
        // A key of a later version is nothing that this one could serve.
        let Ok(decoded) = Key::decode(key) else { return };
        if at.sequence >= self.history.tail {
            replayed.certain.insert(hash_of(key));
        }
        match decoded {
            Key::Upload { bucket, name, upload } => {
                let found = replayed.uploads.entry(((bucket, name.into_owned()), upload)).or_default();
                found.note(at.sequence, value.map(|(value, _)| value));
            }
            Key::Part { bucket, name, upload, part } => {
                let found = replayed.uploads.entry(((bucket, name.into_owned()), upload)).or_default();
                match value {
                    Some((value, _)) if !found.over => {
                        let decoded = value::decode::<UploadedPart>(value).ok();
                        found.parts.extend(decoded.map(|decoded| (part, decoded)));
                        found.dead.remove(&part);
                    }
                    Some(_) => {}
                    // Without deltas it went over to the object.
                    None if matches!(record, Record::Delete { deltas, .. } if deltas.is_empty()) => {}
                    None => {
                        found.parts.remove(&part);
                        found.dead.insert(part);
                    }
                }
            }
            Key::Bucket { name } => {
                match value {
                    Some((value, _)) => {
                        let id = value::decode::<Bucket>(value).map(|bucket| bucket.id);
                        replayed.buckets.extend(id.ok().map(|id| (name.into_owned(), id)));
                    }
                    None => replayed.gone.extend(replayed.buckets.remove(name.as_ref())),
                }
                self.put_or_delete(key, value.map(|(value, _)| value.clone()));
            }
            Key::Object { bucket, name, .. } => {
                let name = (bucket, name.into_owned());
                if names.contains(&name) {
                    let modified = value.and_then(|(value, _)| value::decode::<Object>(value).ok());
                    let time = modified.as_ref().map_or(batch.header.clock, |object| object.modified);
                    let put = modified.filter(|object| !object.footprint.is_empty()).map(Box::new);
                    replayed.verdicts.insert(name, Verdict { sequence: at.sequence, time, put });
                }
                let value = value.and_then(|(value, inline)| match inline {
                    None => Some(value.clone()),
                    // Its extent was given to others, so nothing in it was live: it was deleted or replaced.
                    Some(span) if span.len > 0 && recycled => None,
                    Some(span) => replayed.place(at, batch, value, span),
                });
                self.put_or_delete(key, value);
            }
            // How far jobs in the background have come: they begin anew.
            Key::Blob { .. } | Key::Background { .. } => {}
        }
    }

    fn put_or_delete(&self, key: &[u8], value: Option<Vec<u8>>) {
        match value {
            Some(value) => self.index.put(key, &value),
            None => self.index.delete(key),
        }
    }
}

impl Replayed {
    fn note_extents(&mut self, deltas: &[LiveDelta]) {
        self.extent_max = deltas.iter().map(|delta| delta.extent.0).fold(self.extent_max, u64::max);
    }

    /// `value` with the place of its inline body. `None` where two uses of one extent claim to hold such bodies, which no
    /// log does: the later one is not believed.
    fn place(&mut self, at: &BatchAt, batch: &ReadBatch, value: &[u8], span: InlineSpan) -> Option<Vec<u8>> {
        let extent = batch.header.extent;
        if value.len() < value::VALUE_HEAD_LEN {
            return None;
        }
        if span.len > 0 && *self.logs.entry(extent).or_insert(at.of) != at.of {
            return None;
        }
        let mut value = value.to_vec();
        let offset = batch.payload_offset + u64::from(span.offset);
        value::set_inline_place(&mut value, InlinePlace { extent, offset, len: span.len });
        Some(value)
    }
}

impl UploadFound {
    fn note(&mut self, sequence: u64, value: Option<&Vec<u8>>) {
        self.sequence = sequence;
        match value.map(|value| value::decode::<Upload>(value)) {
            None => self.dropped = true,
            Some(Ok(upload)) => {
                if upload.state != UploadState::Open {
                    self.over = true;
                    self.parts.clear();
                }
                self.record = Some(upload);
            }
            Some(Err(_)) => {}
        }
    }
}
