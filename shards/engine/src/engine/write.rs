//! Bodies as the connection's core writes them: before they have a name, small ones in memory, larger ones on the disks.

use std::rc::Rc;

use basalt_reactor::disk::BLOCK_LEN;

use super::Engine;
use crate::blob::{Blob, FootprintSum, are_spilled, describe, write_blob};
use crate::body::budget::Permit;
use crate::body::directory::{self, Owner};
use crate::body::layout::BLOCK_CRC_LEN;
use crate::body::{Bodies, Leases, Writer};
use crate::checksum::crc32c;
use crate::error::EngineError;
use crate::value::{Body, Footprint, INLINE_LEN_MAX, Part, PartBody, Striped};

/// Bytes of a body that its sender's connection holds before the writer takes them: what one receive and the read buffer
/// above it bring.
const RECEIVE_LEN: usize = 64 << 10;

/// A body being received for one name. Small ones stay in memory until their commit; larger ones go to the disks as
/// they come. Dropping it gives everything back.
pub struct BodyWriter {
    bodies: Rc<Bodies>,
    owner: Owner,
    shard: u16,
    len: u64,
    /// Bytes up to which the body stays inline.
    inline_max: usize,
    inline: Vec<u8>,
    striped: Option<Writer>,
    expected: Option<u64>,
    /// What the body was admitted with.
    memory: Option<Permit>,
}

/// A body that is complete, and durable unless it travels with its record.
pub struct WrittenBody {
    pub(super) shard: u16,
    pub(super) len: u64,
    pub(super) content: Content,
    /// Kept until the record is durable: an inline body is in memory until then.
    pub(super) memory: Option<Permit>,
}

pub(super) enum Content {
    Inline { bytes: Vec<u8>, crcs: Vec<u32> },
    Striped { body: PartBody, footprint: Vec<Footprint>, leases: Leases },
}

impl WrittenBody {
    /// Bytes of the body.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl From<PartBody> for Body {
    fn from(body: PartBody) -> Body {
        match body {
            PartBody::Striped(striped) => Body::Striped(striped),
            PartBody::Spilled { map } => Body::Spilled { map },
        }
    }
}

impl Engine {
    /// Starts a body for the object `name`, of `expected` bytes if that is known.
    #[must_use]
    pub fn write(&self, bucket: u64, name: &[u8], expected: Option<u64>) -> BodyWriter {
        let slot_share = self.inner.deployment.superblock.geometry.log_slot_len / 8;
        let inline_max = INLINE_LEN_MAX.min(usize::try_from(slot_share).unwrap_or(usize::MAX));
        self.body_writer(bucket, name, expected, inline_max)
    }

    /// Starts a body that goes to data extents whatever its size: a part of an upload, which
    /// [`BodyWriter::for_part`] names.
    #[must_use]
    pub fn write_part(&self, bucket: u64, name: &[u8], expected: Option<u64>) -> BodyWriter {
        self.body_writer(bucket, name, expected, 0)
    }

    fn body_writer(&self, bucket: u64, name: &[u8], expected: Option<u64>, inline_max: usize) -> BodyWriter {
        let shard = self.shard_of(bucket, name);
        let bodies = Rc::clone(&self.access(shard).bodies);
        let owner = bodies.owner(bucket, name);
        let (inline, striped, memory) = (Vec::new(), None, None);
        BodyWriter { bodies, owner, shard, len: 0, inline_max, inline, striped, expected, memory }
    }
}

impl BodyWriter {
    /// Says which part of which upload the body is, for the extents' directories; before its first byte.
    #[must_use]
    pub fn for_part(mut self, upload: [u8; 16], number: u16) -> BodyWriter {
        debug_assert!(self.striped.is_none(), "the owner is written with the first segment");
        self.owner.part = Some((upload, number));
        self
    }

    /// Reserves the memory that the body needs until it is committed. A body that was admitted can be finished, whatever
    /// others do; one that was not may wait for memory with its first byte.
    ///
    /// # Errors
    /// [`EngineError::Busy`] when memory is spent and stays so for a while; [`EngineError::DisksFail`],
    /// [`EngineError::Degraded`] when no writes are taken.
    pub async fn admit(mut self) -> Result<BodyWriter, EngineError> {
        self.bodies.members().take_writes()?;
        self.memory = Some(self.bodies.admit(self.memory_len()).await.ok_or(EngineError::Busy)?);
        Ok(self)
    }

    /// Takes over memory that was reserved together with other.
    pub(super) fn admitted(&mut self, memory: Permit) {
        self.memory = Some(memory);
    }

    /// Bytes that the body takes until it is committed.
    pub(super) fn memory_len(&self) -> usize {
        match self.expected.and_then(|len| usize::try_from(len).ok()) {
            Some(len) if len <= self.inline_max => 2 * len.next_multiple_of(BLOCK_LEN),
            _ => self.bodies.writer_len(self.expected, self.owner.name.len()) + RECEIVE_LEN,
        }
    }

    /// Takes the next bytes. Waiting here is the backpressure the sender feels.
    ///
    /// # Errors
    /// [`EngineError::NoSpace`], [`EngineError::Body`], [`EngineError::DisksFail`]; the writer is then of no further use.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), EngineError> {
        self.len += bytes.len() as u64;
        if self.striped.is_none() {
            let large = self.expected.is_some_and(|expected| expected > self.inline_max as u64);
            if !large && self.inline.len() + bytes.len() <= self.inline_max {
                let expected = self.expected.and_then(|len| usize::try_from(len).ok()).unwrap_or(0);
                self.inline.reserve_exact(expected.saturating_sub(self.inline.len()));
                self.inline.extend_from_slice(bytes);
                return Ok(());
            }
        }
        let members = Rc::clone(self.bodies.members());
        members.unless_lost(self.write_striped(bytes)).await
    }

    async fn write_striped(&mut self, bytes: &[u8]) -> Result<(), EngineError> {
        if self.striped.is_none() {
            let writer = self.bodies.writer(directory::Content::Payload, self.owner.clone());
            let mut writer = writer.in_memory(self.memory.take());
            if let Some(expected) = self.expected {
                writer.expect(expected);
            }
            writer.write(&std::mem::take(&mut self.inline)).await?;
            self.striped = Some(writer);
        }
        let writer = self.striped.as_mut().expect("it was made just now");
        Ok(writer.write(bytes).await?)
    }

    /// Ends the body. Striped bytes are durable when this returns.
    ///
    /// # Errors
    /// As [`BodyWriter::write`].
    pub async fn finish(self) -> Result<WrittenBody, EngineError> {
        let members = Rc::clone(self.bodies.members());
        members.unless_lost(self.finish_unbounded()).await
    }

    /// As [`BodyWriter::finish`], however long disks take to answer.
    async fn finish_unbounded(self) -> Result<WrittenBody, EngineError> {
        let Some(writer) = self.striped else {
            if self.inline_max > 0 {
                let crcs =
                    self.inline.chunks(usize::try_from(BLOCK_CRC_LEN).expect("64 KiB")).map(crc32c).collect();
                let content = Content::Inline { bytes: self.inline, crcs };
                return Ok(WrittenBody { shard: self.shard, len: self.len, content, memory: self.memory });
            }
            // A part without a byte: nothing lies anywhere.
            let writer = self.bodies.writer(directory::Content::Payload, self.owner);
            let written = writer.finish().await?;
            let body = PartBody::Striped(Striped::from(&written.body));
            let content = Content::Striped { body, footprint: Vec::new(), leases: written.leases };
            return Ok(WrittenBody { shard: self.shard, len: 0, content, memory: self.memory });
        };
        let (written, memory) = writer.finish_and_keep().await?;
        let mut footprint = FootprintSum::default();
        footprint.add(&written);
        let mut leases = written.leases;
        let striped = Striped::from(&written.body);
        let (body, memory) =
            describe(&self.bodies, self.owner, memory, &mut footprint, &mut leases, striped).await?;
        let footprint = footprint.finish()?;
        let content = Content::Striped { body, footprint, leases };
        Ok(WrittenBody { shard: self.shard, len: self.len, content, memory })
    }
}

/// The body of an object made of parts, and the blob it needed, if any.
pub(super) struct Assembled {
    pub(super) body: Body,
    pub(super) footprint: Vec<Footprint>,
    /// What the blob adds to the live bytes.
    pub(super) blobs: Vec<Footprint>,
    pub(super) leases: Option<Leases>,
}

/// Forms the body of a completed upload from its parts and their footprints.
pub(super) async fn assemble(
    bodies: &Rc<Bodies>,
    owner: Owner,
    parts: Vec<Part>,
    footprints: &[Vec<Footprint>],
) -> Result<Assembled, EngineError> {
    let mut total = FootprintSum::default();
    for prints in footprints {
        total.merge(prints);
    }
    if !are_spilled(&parts) {
        let footprint = total.finish()?;
        return Ok(Assembled { body: Body::Parts(parts), footprint, blobs: Vec::new(), leases: None });
    }
    let memory = bodies.admit(bodies.writer_len(None, owner.name.len())).await.ok_or(EngineError::Busy)?;
    let mut blob = FootprintSum::default();
    let Blob { map, leases, .. } = write_blob(bodies, owner, Some(memory), &mut blob, &parts).await?;
    let blobs = blob.finish()?;
    total.merge(&blobs);
    Ok(Assembled {
        body: Body::SpilledParts { map },
        footprint: total.finish()?,
        blobs,
        leases: Some(leases),
    })
}
