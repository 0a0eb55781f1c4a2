//! Packs: small objects of many keys in one body, and the list that a lost index is rebuilt from.
//!
//! A pack that redundancy cannot restore as a whole may still hold most of its objects: each has checksums of its own.

use std::ops::Range;

use super::bodies::Collected;
use super::{CheckedShard, Checker, Owner, Structure};
use crate::body::StripedBody;
use crate::body::layout::BLOCK_CRC_LEN;
use crate::checksum::crc32c;
use crate::format::pack::{self, PackItem};
use crate::index::key::Key;
use crate::value::{self, Body, Object, Striped};

/// What is wrong with a pack whose bytes were read.
#[derive(Debug, Default, PartialEq, Eq)]
struct Flaws {
    /// Bytes of which nobody can say that they are right.
    lost: Vec<Range<u64>>,
    /// Why its list cannot be read.
    list: Option<String>,
    /// Objects that are not what the list says, though no byte of them is lost.
    contradicted: Vec<PackItem>,
}

impl Checker<'_> {
    /// Checks a pack, and says which runs of its bytes cannot be had.
    pub(super) async fn pack(&mut self, shard: &CheckedShard, pack: &Striped) -> Vec<Range<u64>> {
        let Some(found) = self.striped(shard, &StripedBody::from(pack), None, true).await else {
            return std::iter::once(0..pack.len).collect();
        };
        let (id, flaws) = (shard.files.shard, judge(&found));
        let place = pack.segments.first().map_or((0, 0), |first| (first.extent, first.block));
        let at = format!("of the pack at block {} of data extent {}", place.1, place.0);
        match flaws.list {
            Some(_) if !found.lost.is_empty() => {
                let why = "too few blocks of the pack are whole; what it holds is served, but no lost index could be rebuilt from it";
                self.lost(Structure::PackList, id, None, format!("the list {at} is lost"), why);
            }
            Some(reason) => {
                self.contradiction(Structure::PackList, id, None, format!("the list {at}: {reason}"));
            }
            None => {}
        }
        for item in flaws.contradicted {
            let owner = self.owner_of(&item.key);
            let reason = format!(
                "bytes {} to {} {at} are not what its list says",
                item.offset,
                item.offset + item.len
            );
            self.contradiction(Structure::PackList, id, owner.as_ref(), reason);
        }
        flaws.lost
    }

    fn owner_of(&self, key: &[u8]) -> Option<Owner> {
        let Ok(Key::Object { bucket, name, .. }) = Key::decode(key) else { return None };
        let of = self.buckets.get(&bucket).cloned();
        Some(Owner { bucket_id: bucket, bucket: of, key: name.into_owned(), part: None })
    }
}

/// Holds what was read of a pack against its list, and its objects against their own checksums.
fn judge(found: &Collected) -> Flaws {
    let items = match pack::decode_list(&found.bytes) {
        Ok(items) => items,
        Err(error) => {
            return Flaws {
                lost: found.lost.clone(),
                list: Some(error.to_string()),
                contradicted: Vec::new(),
            };
        }
    };
    let mut flaws = Flaws::default();
    let list_start = items.iter().map(|item| u64::from(item.offset) + u64::from(item.len)).max().unwrap_or(0);
    if found.lost.iter().any(|run| run.end > list_start) {
        // What an object's own checksum vouches for in spite of it is believed.
        flaws.list = Some("some of its bytes are lost".to_owned());
    }
    for item in items {
        let own = u64::from(item.offset)..u64::from(item.offset) + u64::from(item.len);
        if is_whole(&item, &found.bytes) {
            continue;
        }
        if found.lost.iter().any(|run| run.start < own.end && run.end > own.start) {
            flaws.lost.push(own);
        } else if flaws.list.is_none() {
            flaws.contradicted.push(item);
        }
    }
    flaws
}

/// Whether the object has the checksums that its value in the list names.
fn is_whole(item: &PackItem, pack: &[u8]) -> bool {
    let Ok(Body::Inline { crcs }) = value::decode::<Object>(&item.value).map(|object| object.body) else {
        return false;
    };
    let (start, len) = (item.offset as usize, item.len as usize);
    let Some(bytes) = pack.get(start..start + len) else { return false };
    bytes.chunks(BLOCK_CRC_LEN as usize).map(crc32c).eq(crcs)
}
