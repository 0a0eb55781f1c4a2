//! What the index keeps of an object, a part, an upload and a bucket.
//!
//! A value is a fixed little-endian head, then an rkyv archive that is validated before it is believed. The head
//! holds the only fields that change after a record was formed: where an inline body came to lie in the log. Extensions
//! are typed sections that a reader keeps although it does not know them, so that an older Basalt rewriting a value
//! loses nothing a newer one wrote.

use std::rc::Rc;

use rkyv::rancor::Error as ArchiveError;
use rkyv::{Archive, Deserialize, Serialize};

use crate::body::{PackedBody, Segment, StripedBody};
use crate::extent::ExtentId;
use crate::format::part_list::{self, PartSpan};
use crate::format::record::LiveDelta;
use crate::shard::scrub::progress::Progress;

/// Bytes in front of the archive: version u8, kind u8, reserved u16, inline length u32, inline extent u64,
/// inline offset u64.
pub const VALUE_HEAD_LEN: usize = 24;

const VERSION: u8 = 1;

/// Most values are shorter: encoding them allocates once.
const ENCODED_LEN_USUAL: usize = 512;

/// Longest body that lives in the log, bytes. It bounds the log's share of a write and how much a message carries.
pub const INLINE_LEN_MAX: usize = 64 << 10;

/// Extents whose live bytes a value can name; beyond that a body is too scattered to be written.
pub const FOOTPRINT_COUNT_MAX: usize = 4096;

/// Why a value's bytes are not a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueError {
    Truncated {
        len: usize,
    },
    NewerVersion {
        got: u8,
        known: u8,
    },
    WrongKind {
        got: u8,
        expected: u8,
    },
    Archive(String),
    /// The list of an object's parts.
    Parts(String),
}

impl std::fmt::Display for ValueError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ValueError::Truncated { len } => write!(f, "value of {len} bytes is too short"),
            ValueError::NewerVersion { got, known } => {
                write!(f, "value version {got} is newer than the {known} this Basalt knows")
            }
            ValueError::WrongKind { got, expected } => write!(f, "value kind is {got}, expected {expected}"),
            ValueError::Archive(error) => write!(f, "value archive: {error}"),
            ValueError::Parts(error) => write!(f, "list of parts: {error}"),
        }
    }
}

impl std::error::Error for ValueError {}

/// The extension of an object whose parts were merged into one body: the list of them ([`part_list`]).
pub const PARTS_EXTENSION: u32 = 1;

/// The extension of such an object that says where a copy of its value lies beside its body: an encoded [`Striped`].
pub const RECORD_EXTENSION: u32 = 2;

/// A section of a value that only newer versions may understand.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Extension {
    pub id: u32,
    pub bytes: Vec<u8>,
}

/// A checksum the client sent or asked for, or the one computed in its absence.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Checksum {
    /// The caller's number for the algorithm.
    pub algorithm: u8,
    /// A checksum of the parts' checksums instead of the bytes.
    pub composite: bool,
    pub value: Vec<u8>,
}

/// [`Segment`] as archived.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentValue {
    pub extent: u64,
    pub block: u32,
    pub len: u64,
}

/// [`StripedBody`] as archived.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Striped {
    pub len: u64,
    pub segments: Vec<SegmentValue>,
    pub crcs: Vec<u32>,
}

/// Where the bytes of an object or part are.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// In the log, at the place the value's head names. One CRC32C per 64 KiB block.
    Inline { crcs: Vec<u32> },
    /// In data extents.
    Striped(Striped),
    /// In data extents; segments and CRCs are too many for a value and lie in a blob: an archived [`Striped`].
    Spilled { map: Striped },
    /// In the bodies of these parts, in order.
    Parts(Vec<Part>),
    /// The same; the parts are too many for a value and lie in a blob: an archived `Vec<Part>`.
    SpilledParts { map: Striped },
    /// In a pack, where collection put it. Boxed, so that no other body's archive is longer for it.
    Packed(Box<Packed>),
}

/// The place of a small object in a pack, a striped body that many of them share.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Packed {
    pub pack: Striped,
    /// Of the object's first byte in the pack.
    pub offset: u64,
    /// One CRC32C per 64 KiB block of the object itself.
    pub crcs: Vec<u32>,
}

/// A part of a completed multipart upload.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Part {
    pub number: u16,
    pub len: u64,
    pub checksum: Option<Checksum>,
    /// [`Body::Striped`] or [`Body::Spilled`]: parts never live in the log.
    pub body: PartBody,
}

/// Where a part's bytes are; a subset of [`Body`], so that nothing nests.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub enum PartBody {
    Striped(Striped),
    Spilled { map: Striped },
}

/// Live bytes in one extent.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    pub extent: u64,
    pub bytes: u64,
    /// First column block behind them.
    pub end_block: u32,
}

/// What an object is.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Object {
    pub uuid: [u8; 16],
    /// Nanoseconds since the Unix epoch, by the shard's hybrid clock.
    pub modified: u64,
    pub len: u64,
    /// MD5 of the body, or of the parts' MD5s.
    pub etag: [u8; 16],
    /// Parts of a multipart upload; 0 for an object put at once.
    pub part_count: u32,
    /// The caller's metadata, opaque here.
    pub attributes: Vec<(String, String)>,
    pub checksum: Option<Checksum>,
    pub body: Body,
    /// Everything of this object in data extents, blobs included.
    pub footprint: Vec<Footprint>,
    pub extensions: Vec<Extension>,
}

impl Object {
    /// The parts of an object whose parts were merged into one body; `None` of any other.
    ///
    /// # Errors
    /// [`ValueError::Parts`].
    pub fn merged_parts(&self) -> Result<Option<Vec<PartSpan>>, ValueError> {
        let listed = self.extensions.iter().find(|extension| extension.id == PARTS_EXTENSION);
        let Some(listed) = listed else { return Ok(None) };
        let parts = part_list::decode(&listed.bytes).map_err(|error| ValueError::Parts(error.to_string()))?;
        let len: u64 = parts.iter().map(|part| part.len).sum();
        if (len, parts.len()) != (self.len, self.part_count as usize) {
            let (count, expected) = (parts.len(), self.part_count);
            let reason = format!("{count} parts of {len} bytes, not {expected} of {}", self.len);
            return Err(ValueError::Parts(reason));
        }
        Ok(Some(parts))
    }

    /// Where a copy of this value lies in data extents, for the day on which the index is lost: objects whose parts were merged have
    /// one, for nothing else there says where parts begin.
    ///
    /// # Errors
    /// [`ValueError`].
    pub fn record_place(&self) -> Result<Option<Striped>, ValueError> {
        let placed = self.extensions.iter().find(|extension| extension.id == RECORD_EXTENSION);
        placed.map(|extension| decode(&extension.bytes)).transpose()
    }

    pub(crate) fn set_record_place(&mut self, place: Option<&Striped>) {
        self.extensions.retain(|extension| extension.id != RECORD_EXTENSION);
        self.extensions.extend(place.map(|place| Extension { id: RECORD_EXTENSION, bytes: encode(place) }));
    }

    /// The value as that copy has it: without what follows from where its bytes lie.
    pub(crate) fn record(&self) -> Object {
        let mut record =
            Object { body: Body::Inline { crcs: Vec::new() }, footprint: Vec::new(), ..self.clone() };
        record.set_record_place(None);
        record
    }
}

/// The body uuid that directories have of the copy of a value, when the body beside it has `body`.
pub(crate) fn record_uuid(body: [u8; 16]) -> [u8; 16] {
    body.map(|byte| !byte)
}

/// A part of an upload that is still open.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct UploadedPart {
    pub uuid: [u8; 16],
    pub modified: u64,
    pub len: u64,
    pub etag: [u8; 16],
    pub checksum: Option<Checksum>,
    pub body: PartBody,
    pub footprint: Vec<Footprint>,
    pub extensions: Vec<Extension>,
}

/// A multipart upload.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Upload {
    pub initiated: u64,
    pub attributes: Vec<(String, String)>,
    /// The caller's number for the checksum algorithm, 0 for none, and whether it covers the parts' checksums.
    pub checksum_algorithm: u8,
    pub checksum_composite: bool,
    pub state: UploadState,
    pub extensions: Vec<Extension>,
}

#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub enum UploadState {
    Open,
    /// Completed as this object; kept for a while so that a repeated completion gets the same answer. `listed` has one
    /// bit per part number that the object took over.
    Completed {
        object: [u8; 16],
        at: u64,
        listed: Vec<u8>,
    },
    Aborted,
}

/// A bucket.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    pub id: u64,
    pub name: String,
    pub created: u64,
    pub deleting: bool,
    /// The caller's configuration documents by name, opaque here.
    pub settings: Vec<(String, Vec<u8>)>,
    pub extensions: Vec<Extension>,
}

/// Where an inline body lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InlinePlace {
    pub extent: ExtentId,
    /// From the start of the extent, bytes.
    pub offset: u64,
    pub len: u32,
}

/// Kinds of values, the second byte of the head.
pub trait Value: Sized {
    const KIND: u8;

    /// Appends the archive to `head`.
    fn archive(&self, head: Vec<u8>) -> Vec<u8>;

    /// # Errors
    /// [`ValueError::Archive`].
    fn unarchive(bytes: &[u8]) -> Result<Self, ValueError>;
}

macro_rules! value {
    ($type:ty, $kind:literal) => {
        impl Value for $type {
            const KIND: u8 = $kind;

            fn archive(&self, head: Vec<u8>) -> Vec<u8> {
                rkyv::api::high::to_bytes_in::<_, ArchiveError>(self, head)
                    .expect("these types serialize into memory without fail")
            }

            fn unarchive(bytes: &[u8]) -> Result<Self, ValueError> {
                rkyv::from_bytes::<Self, ArchiveError>(bytes)
                    .map_err(|error| ValueError::Archive(error.to_string()))
            }
        }
    };
}

value!(Object, 1);
value!(UploadedPart, 2);
value!(Upload, 3);
value!(Bucket, 4);
value!(Striped, 5);
value!(Vec<Part>, 6);
value!(Progress, 7);

/// The bytes of `value`, with an empty inline place.
#[must_use]
pub fn encode<T: Value>(value: &T) -> Vec<u8> {
    let mut head = Vec::with_capacity(ENCODED_LEN_USUAL);
    head.resize(VALUE_HEAD_LEN, 0);
    head[0] = VERSION;
    head[1] = T::KIND;
    // References inside an archive are relative, so the head in front of it does not move them.
    value.archive(head)
}

/// # Errors
/// [`ValueError`]; whatever the bytes are, nothing panics.
pub fn decode<T: Value>(bytes: &[u8]) -> Result<T, ValueError> {
    T::unarchive(body_of::<T>(bytes)?)
}

fn body_of<T: Value>(bytes: &[u8]) -> Result<&[u8], ValueError> {
    let Some((head, archive)) = bytes.split_first_chunk::<VALUE_HEAD_LEN>() else {
        return Err(ValueError::Truncated { len: bytes.len() });
    };
    if head[0] != VERSION {
        return Err(ValueError::NewerVersion { got: head[0], known: VERSION });
    }
    if head[1] != T::KIND {
        return Err(ValueError::WrongKind { got: head[1], expected: T::KIND });
    }
    Ok(archive)
}

/// An object as LIST needs it, read from its archive without building the whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectSummary {
    pub modified: u64,
    pub len: u64,
    pub etag: [u8; 16],
    pub part_count: u32,
    /// Algorithm and whether it is composite.
    pub checksum: Option<(u8, bool)>,
}

/// # Errors
/// [`ValueError`].
pub fn summarize(bytes: &[u8]) -> Result<ObjectSummary, ValueError> {
    let archive = body_of::<Object>(bytes)?;
    let object = rkyv::access::<ArchivedObject, ArchiveError>(archive)
        .map_err(|error| ValueError::Archive(error.to_string()))?;
    Ok(ObjectSummary {
        modified: object.modified.to_native(),
        len: object.len.to_native(),
        etag: object.etag,
        part_count: object.part_count.to_native(),
        checksum: object.checksum.as_ref().map(|checksum| (checksum.algorithm, checksum.composite)),
    })
}

/// The inline place in a value's head, if its body is inline.
#[must_use]
pub fn inline_place(value: &[u8]) -> Option<InlinePlace> {
    let head = value.first_chunk::<VALUE_HEAD_LEN>()?;
    let place = InlinePlace {
        len: u32::from_le_bytes([head[4], head[5], head[6], head[7]]),
        extent: ExtentId(u64::from_le_bytes(head[8..16].try_into().ok()?)),
        offset: u64::from_le_bytes(head[16..24].try_into().ok()?),
    };
    (place.extent.0 != 0).then_some(place)
}

/// Writes `place` into a value's head.
///
/// # Panics
/// If `value` has no head.
pub fn set_inline_place(value: &mut [u8], place: InlinePlace) {
    value[4..8].copy_from_slice(&place.len.to_le_bytes());
    value[8..16].copy_from_slice(&place.extent.0.to_le_bytes());
    value[16..24].copy_from_slice(&place.offset.to_le_bytes());
}

impl From<&StripedBody> for Striped {
    fn from(body: &StripedBody) -> Striped {
        Striped {
            len: body.len,
            segments: body
                .segments
                .iter()
                .map(|segment| SegmentValue {
                    extent: segment.extent.0,
                    block: segment.block,
                    len: segment.len,
                })
                .collect(),
            crcs: body.crcs.clone(),
        }
    }
}

impl From<&Striped> for StripedBody {
    fn from(body: &Striped) -> StripedBody {
        StripedBody {
            len: body.len,
            segments: body
                .segments
                .iter()
                .map(|segment| Segment {
                    extent: ExtentId(segment.extent),
                    block: segment.block,
                    len: segment.len,
                })
                .collect(),
            crcs: body.crcs.clone(),
        }
    }
}

impl Packed {
    /// The body of an object of `len` bytes, for reading.
    pub(crate) fn body(&self, len: u32) -> PackedBody {
        let pack = Rc::new(StripedBody::from(&self.pack));
        PackedBody { pack, offset: self.offset, len, crcs: self.crcs.clone() }
    }
}

/// What taking this footprint into use, or out of it, changes in the extents.
pub(crate) fn deltas_of(footprint: &[Footprint], live: bool) -> impl Iterator<Item = LiveDelta> + '_ {
    footprint.iter().map(move |print| {
        let bytes = i64::try_from(print.bytes).expect("no extent holds 8 EiB");
        LiveDelta {
            extent: ExtentId(print.extent),
            bytes: if live { bytes } else { -bytes },
            end_block: if live { print.end_block } else { 0 },
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn object() -> Object {
        Object {
            uuid: [1; 16],
            modified: 1_700_000_000_000_000_000,
            len: 5,
            etag: [2; 16],
            part_count: 0,
            attributes: vec![("content-type".into(), "text/plain".into())],
            checksum: Some(Checksum { algorithm: 3, composite: false, value: vec![1, 2, 3, 4] }),
            body: Body::Inline { crcs: vec![7] },
            footprint: vec![],
            extensions: vec![Extension { id: 99, bytes: vec![1] }],
        }
    }

    #[test]
    fn round_trips_with_its_inline_place_and_unknown_extensions() {
        let mut bytes = encode(&object());
        assert_eq!(inline_place(&bytes), None);
        let place = InlinePlace { extent: ExtentId(4), offset: 8321, len: 5 };
        set_inline_place(&mut bytes, place);
        assert_eq!(inline_place(&bytes), Some(place));
        assert_eq!(decode::<Object>(&bytes), Ok(object()));
        let summary = summarize(&bytes).expect("valid");
        assert_eq!((summary.len, summary.checksum), (5, Some((3, false))));
    }

    #[test]
    fn the_copy_beside_a_body_says_nothing_of_places() {
        let place =
            Striped { len: 9, segments: vec![SegmentValue { extent: 1, block: 2, len: 9 }], crcs: vec![3] };
        let mut placed = object();
        placed.set_record_place(Some(&place));
        placed.set_record_place(Some(&place));
        assert_eq!(placed.extensions.len(), 2, "it has one place");
        assert_eq!(placed.record_place(), Ok(Some(place)));
        let record = placed.record();
        assert_eq!((record.record_place(), record.extensions), (Ok(None), object().extensions));
        assert_eq!((record.footprint, record.body), (Vec::new(), Body::Inline { crcs: Vec::new() }));
        assert_eq!(record_uuid(record_uuid([7; 16])), [7; 16]);
    }

    #[test]
    fn mutated_values_never_panic() {
        let bytes = encode(&object());
        for len in 0..bytes.len() {
            let _ = decode::<Object>(&bytes[..len]);
            let _ = summarize(&bytes[..len]);
        }
        for at in 0..bytes.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut hostile = bytes.clone();
                hostile[at] = value;
                let _ = decode::<Object>(&hostile);
                let _ = summarize(&hostile);
            }
        }
        assert!(matches!(decode::<Bucket>(&bytes), Err(ValueError::WrongKind { .. })));
    }
}
