//! What the engine keeps of an object, in the protocol's terms and back.

use basalt_engine::EngineError;
use basalt_engine::value::{Checksum as StoredChecksum, Object};

use super::failure::Result;
use crate::s3::checksum::multipart::ObjectChecksum;
use crate::s3::checksum::{Algorithm, Checksum};
use crate::s3::etag::ETag;
use crate::s3::metadata::ObjectMetadata;
use crate::s3::response::ObjectFacts;
use crate::s3::time::Timestamp;

pub(super) fn etag(object: &Object) -> ETag {
    etag_of(object.etag, object.part_count)
}

pub(super) fn etag_of(md5: [u8; 16], part_count: u32) -> ETag {
    // An upload has at most 10,000 parts.
    ETag::from_raw(md5, u16::try_from(part_count).unwrap_or(u16::MAX))
}

/// A stored name; every name came in as UTF-8, and common prefixes end where a delimiter of UTF-8 ends.
pub(super) fn text(name: &[u8]) -> Result<&str> {
    std::str::from_utf8(name).map_err(|error| EngineError::Damaged(format!("a stored name: {error}")).into())
}

pub(super) fn modified(object: &Object) -> Timestamp {
    Timestamp::from_nanos(object.modified)
}

pub(super) fn metadata(object: &Object) -> ObjectMetadata {
    ObjectMetadata::from_pairs(object.attributes.iter().map(|(name, value)| (name.as_str(), value.as_str())))
}

pub(super) fn attributes(metadata: &ObjectMetadata) -> Vec<(String, String)> {
    metadata.to_pairs().map(|(name, value)| (name.into_owned(), value.to_owned())).collect()
}

/// `None` where none was stored, or one by an algorithm of a later version.
pub(super) fn checksum(object: &Object) -> Option<ObjectChecksum> {
    let stored = object.checksum.as_ref()?;
    let value = part_checksum(stored)?;
    Some(if stored.composite {
        ObjectChecksum::composite(value, object.part_count)
    } else {
        ObjectChecksum::full(value)
    })
}

/// The value alone, as a part has it.
pub(super) fn part_checksum(stored: &StoredChecksum) -> Option<Checksum> {
    Checksum::from_bytes(Algorithm::from_id(stored.algorithm)?, &stored.value)
}

pub(super) fn to_stored(checksum: ObjectChecksum) -> StoredChecksum {
    StoredChecksum {
        algorithm: checksum.value().algorithm() as u8,
        composite: checksum.composite_of().is_some(),
        value: checksum.value().as_bytes().to_vec(),
    }
}

/// What a read decides by and shows.
pub(super) fn facts<'o>(object: &Object, metadata: &'o ObjectMetadata) -> ObjectFacts<'o> {
    ObjectFacts {
        size: object.len,
        etag: etag(object),
        last_modified: modified(object),
        checksum: checksum(object),
        metadata,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use basalt_engine::value::Body;

    use super::*;

    pub(in crate::service) fn object() -> Object {
        Object {
            uuid: [1; 16],
            modified: 784_111_777_123_456_789,
            len: 5,
            etag: [2; 16],
            part_count: 0,
            attributes: Vec::new(),
            checksum: None,
            body: Body::Inline { crcs: vec![7] },
            footprint: Vec::new(),
            extensions: Vec::new(),
        }
    }

    #[test]
    fn metadata_and_checksums_survive_being_stored() {
        let metadata = ObjectMetadata {
            content_type: Some("text/x".to_owned()),
            user: vec![("a".to_owned(), "größe".to_owned())],
            ..Default::default()
        };
        let crc32 = Checksum::from_base64(Algorithm::Crc32, "AAAAAA==").expect("valid");
        for kept in [ObjectChecksum::full(crc32), ObjectChecksum::composite(crc32, 3)] {
            let object = Object {
                attributes: attributes(&metadata),
                checksum: Some(to_stored(kept)),
                part_count: 3,
                ..object()
            };
            assert_eq!(super::metadata(&object), metadata);
            assert_eq!(checksum(&object), Some(kept));
        }
        assert_eq!(modified(&object()).iso8601(), "1994-11-06T08:49:37.000Z");
        let unknown = StoredChecksum { algorithm: 99, composite: false, value: vec![1] };
        assert_eq!(checksum(&Object { checksum: Some(unknown), ..object() }), None);
    }
}
