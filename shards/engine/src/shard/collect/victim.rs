//! Emptying one extent: what it says of its own content leads to the keys, and the index says which of them still name it.
//!
//! A log extent is walked batch by batch, a data extent by its directory chunks; no scan of the index is needed, however
//! large it is.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;

use super::Collector;
use super::small::{Packer, SmallObject};
use crate::body::directory::{Content, DirectoryEntry, Owner, current};
use crate::body::{BodyError, OnDamage, Places, Segment, StripedBody};
use crate::error::EngineError;
use crate::extent::{ExtentClass, ExtentId, Placement};
use crate::format::pack::{self, PACK_LEN_MAX};
use crate::format::record::Record;
use crate::format::root::LogPosition;
use crate::index::key::{self, VersionOrder};
use crate::log::replay::Replay;
use crate::log::{LOG_HEADER_LEN, LogExtent};
use crate::shard::Shard;
use crate::shard::space::Claim;
use crate::value::{self, Body, InlinePlace, Object};

/// What a victim's directory says of one segment.
pub(super) struct Described {
    pub(super) owner: Owner,
    /// Where in the owner's body the segment begins.
    pub(super) body_offset: u64,
}

/// An extent being emptied.
pub(super) struct Victim {
    pub(super) id: ExtentId,
    placement: Rc<Placement>,
    nonce: [u8; 16],
    /// By first block of a segment.
    pub(super) described: BTreeMap<u32, Described>,
}

impl Collector {
    /// Moves away what lives in `id`. What could not be moved stays.
    pub(super) async fn empty(&self, id: ExtentId) -> Result<(), EngineError> {
        let Some(_pin) = self.shard.pin_extents(vec![id]) else { return Ok(()) };
        let victim = {
            let extents = self.shard.space.extents.borrow();
            let Some(extent) = extents.get(id) else { return Ok(()) };
            let (placement, nonce) = (Rc::clone(&extent.placement), extent.nonce);
            Victim { id, placement, nonce, described: BTreeMap::new() }
        };
        if victim.placement.class == ExtentClass::Log {
            self.claim.set(Claim::Repacking);
            return self.empty_log(&victim).await;
        }
        self.claim.set(Claim::Collection);
        self.empty_data(victim).await
    }

    async fn empty_log(&self, victim: &Victim) -> Result<(), EngineError> {
        let log = LogExtent { placement: Rc::clone(&victim.placement), nonce: victim.nonce };
        let start = LogPosition { extent: victim.id, offset: LOG_HEADER_LEN, sequence: 0, previous: [0; 16] };
        let core = self.shard.core.clone();
        let mut walk = Replay::new(core, Rc::clone(&self.shard.files), self.shard.id, start, log);
        let mut packer = Packer::new(self);
        while let Some(batch) = walk.next_in_extent().await {
            let payload = batch.payload();
            let payload_start = u64::from(batch.offset) + batch.header.payload_offset() as u64;
            for record in &batch.records {
                let Record::Put { key, inline: Some(span), .. } = record else { continue };
                if span.len == 0 {
                    continue;
                }
                let Some(value) = self.shard.index.get(key).await? else { continue };
                let offset = payload_start + u64::from(span.offset);
                let here = InlinePlace { extent: victim.id, offset, len: span.len };
                if value::inline_place(&value) != Some(here) {
                    continue;
                }
                let start = span.offset as usize;
                let Some(bytes) = payload.get(start..start + span.len as usize) else { continue };
                match SmallObject::new(key, &value, bytes) {
                    Ok(object) => packer.add(object).await?,
                    Err(error) => pass_over_damage(victim.id, Err(error))?,
                }
            }
            self.rest().await;
        }
        packer.flush().await
    }

    async fn empty_data(&self, mut victim: Victim) -> Result<(), EngineError> {
        // One column knows it all, unless something of it is damaged.
        for column in 0..victim.placement.columns.len() {
            let directory = self.bodies.walk_column(&victim.placement, column).await;
            let chunks = current(directory.chunks);
            let entries = chunks.iter().flat_map(|chunk| &chunk.entries).collect::<Vec<_>>();
            self.rest().await;
            self.move_entries(&mut victim, &entries).await?;
            if self.live_len(victim.id) == 0 {
                break;
            }
        }
        Ok(())
    }

    async fn move_entries(
        &self,
        victim: &mut Victim,
        entries: &[&DirectoryEntry],
    ) -> Result<(), EngineError> {
        let mut packer = Packer::new(self);
        let mut keys = BTreeSet::new();
        for entry in entries {
            if entry.content == Content::Pack {
                self.take_from_pack(victim, entry, &mut packer).await?;
                self.rest().await;
                continue;
            }
            let owner = &entry.owner;
            let described = Described { owner: owner.clone(), body_offset: entry.body_offset };
            victim.described.insert(entry.block, described);
            // Parts belong to the object once their upload is complete.
            keys.insert(key::object(owner.bucket, &owner.name, VersionOrder::NULL));
            if let Some((upload, number)) = owner.part {
                keys.insert(key::part(owner.bucket, &owner.name, upload, number));
            }
        }
        packer.flush().await?;
        for key in keys {
            pass_over_damage(victim.id, self.move_body(victim, &key).await)?;
        }
        Ok(())
    }

    /// Hands the objects that still live in a pack to `packer`.
    async fn take_from_pack(
        &self,
        victim: &Victim,
        entry: &DirectoryEntry,
        packer: &mut Packer<'_>,
    ) -> Result<(), EngineError> {
        if entry.len > PACK_LEN_MAX as u64 {
            return Ok(());
        }
        let segments = vec![Segment { extent: victim.id, block: entry.block, len: entry.len }];
        let body = StripedBody { len: entry.len, segments, crcs: entry.data_crcs.clone() };
        // A pack that no object names may be anything by now: it is no damage that it cannot be read.
        let unheard: OnDamage = Rc::new(|_, _| {});
        let bytes = match self.read_all(Rc::new(body), 0..entry.len, victim.places(), unheard).await {
            Err(error) if is_damage(&error) => return Ok(()),
            read => read?,
        };
        let Ok(items) = pack::decode_list(&bytes) else { return Ok(()) };
        for item in items {
            let Some(value) = self.shard.index.get(&item.key).await? else { continue };
            if !is_packed_at(&value, victim.id, entry.block, item.offset)? {
                continue;
            }
            let start = item.offset as usize;
            let bytes = &bytes[start..start + item.len as usize];
            match SmallObject::new(&item.key, &value, bytes) {
                Ok(object) => packer.add(object).await?,
                Err(error) => pass_over_damage(victim.id, Err(error))?,
            }
        }
        Ok(())
    }

    /// Bytes `range` of a body, which are few.
    pub(super) async fn read_all(
        &self,
        body: Rc<StripedBody>,
        range: Range<u64>,
        places: Places,
        on_damage: OnDamage,
    ) -> Result<Vec<u8>, EngineError> {
        let len = range.end - range.start;
        let memory = self.bodies.admit_reader(len, body.len, 0).await.ok_or(EngineError::Busy)?;
        let mut reader = self.bodies.reader(body, range, places, on_damage, Some(memory))?;
        let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or(0));
        while let Some(slice) = reader.next().await {
            bytes.extend_from_slice(&slice?);
        }
        Ok(bytes)
    }
}

impl Victim {
    fn places(&self) -> Places {
        let placement = Rc::clone(&self.placement);
        Rc::new(move |extent| (extent == placement.id).then(|| Rc::clone(&placement)))
    }
}

/// Whether an object's value has its body at `offset` of the pack at `block` of `extent`.
fn is_packed_at(value: &[u8], extent: ExtentId, block: u32, offset: u32) -> Result<bool, EngineError> {
    let Body::Packed(packed) = value::decode::<Object>(value)?.body else { return Ok(false) };
    let is_here =
        packed.pack.segments.first().is_some_and(|first| first.extent == extent.0 && first.block == block);
    Ok(is_here && packed.offset == u64::from(offset))
}

fn is_damage(error: &EngineError) -> bool {
    matches!(
        error,
        EngineError::Body(BodyError::Lost { .. } | BodyError::Malformed { .. }) | EngineError::Damaged(_)
    )
}

/// What is damaged stays where it is, for repair; the rest is moved all the same.
fn pass_over_damage(victim: ExtentId, moved: Result<(), EngineError>) -> Result<(), EngineError> {
    match moved {
        Err(error) if is_damage(&error) => {
            tracing::warn!(extent = victim.0, %error, "collection leaves what it cannot read");
            Ok(())
        }
        other => other,
    }
}

impl Shard {
    /// Whether something still lives in the pack that `bytes` are, at `block` of `extent`.
    pub(in crate::shard) async fn is_pack_live(
        &self,
        bytes: &[u8],
        extent: ExtentId,
        block: u32,
    ) -> Result<bool, EngineError> {
        let items = pack::decode_list(bytes)
            .map_err(|error| EngineError::Damaged(format!("the list of a pack: {error}")))?;
        for item in items {
            if let Some(value) = self.index.get(&item.key).await?
                && is_packed_at(&value, extent, block, item.offset)?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub(super) fn class_of(&self, extent: ExtentId) -> Option<ExtentClass> {
        self.space.extents.borrow().get(extent).map(|extent| extent.placement.class)
    }
}
