//! Which objects exist, what they hold and what they are called.
//!
//! Keys are `<prefix><folder>/<number>` with fixed widths, so their bytewise order is the order of their
//! numbers and every key of a LIST page can be turned back into an object. Three words per object hold its
//! generation, state and ETag: enough to verify every answer.
//!
//! In a workload that writes, each slot owns the objects whose number is its own modulo the number of slots,
//! and touches no others. So what a slot knows about its objects is exact at all times, with no lock and no
//! guess about the order of concurrent writes.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::content::Content;
use crate::size::SizeDistribution;

/// Objects of one run: 24 bytes of memory each.
pub(crate) const OBJECTS_MAX: u64 = 100_000_000;
const NUMBER_WIDTH: usize = 9;

/// An ETag: an MD5, and for an object of parts how many there were.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Etag {
    pub md5: [u8; 16],
    /// 0 for an object written by one PUT.
    pub part_count: u16,
}

impl Etag {
    /// Reads `"<32 hex digits>"` or `"<32 hex digits>-<parts>"`, with or without the quotes.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
        let (digits, part_count) = match text.split_once('-') {
            None => (text, 0),
            Some((digits, count)) => (digits, count.parse().ok().filter(|count| *count > 0)?),
        };
        let mut md5 = [0; 16];
        hex::decode_to_slice(digits, &mut md5).ok()?;
        Some(Self { md5, part_count })
    }
}

impl std::fmt::Display for Etag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "\"{}", hex::encode(self.md5))?;
        if self.part_count > 0 {
            write!(f, "-{}", self.part_count)?;
        }
        f.write_str("\"")
    }
}

/// What is known of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Never written, or its deletion was acknowledged.
    Absent,
    /// This generation was acknowledged last. No ETag when nothing was verified.
    Present { generation: u32, etag: Option<Etag> },
    /// A write or a deletion was begun and not acknowledged: either outcome is right.
    Unknown,
}

const STATE_ABSENT: u64 = 0;
const STATE_PRESENT: u64 = 1;
const STATE_UNKNOWN: u64 = 2;
const STATE_MASK: u64 = 3;
const ETAG_KNOWN: u64 = 4;
const PART_COUNT_SHIFT: u32 = 16;
const GENERATION_SHIFT: u32 = 32;

/// Bits 0–1 of `meta` are the state, bit 2 says that the ETag is known, bits 16–31 are the part count, bits
/// 32–63 the generation. Only the owner writes, and phases are separated by joined threads, so relaxed
/// atomics suffice.
#[derive(Debug, Default)]
struct Object {
    meta: AtomicU64,
    md5_low: AtomicU64,
    md5_high: AtomicU64,
}

/// The objects of one run.
#[derive(Debug)]
pub struct Keyspace {
    prefix: String,
    seed: u64,
    sizes: SizeDistribution,
    folder_len: u64,
    objects: Vec<Object>,
}

impl Keyspace {
    /// `object_count` objects, none of which exists, `folder_len` of them per folder.
    pub fn new(prefix: &str, seed: u64, sizes: SizeDistribution, object_count: u64, folder_len: u64) -> Self {
        assert!(object_count <= OBJECTS_MAX && folder_len > 0, "checked when the plan was made");
        let objects = (0..object_count).map(|_| Object::default()).collect();
        Self { prefix: prefix.to_owned(), seed, sizes, folder_len, objects }
    }

    pub fn object_count(&self) -> u64 {
        self.objects.len() as u64
    }

    /// Objects of the folder that holds `index` have the folder's number in common.
    pub fn folder_of(&self, index: u64) -> u64 {
        index / self.folder_len
    }

    /// The first object of a folder; it may lie beyond the last object.
    pub fn folder_start(&self, folder: u64) -> u64 {
        folder.saturating_mul(self.folder_len)
    }

    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The common prefix of a folder's keys.
    pub fn folder_prefix(&self, folder: u64) -> String {
        format!("{}{folder:0NUMBER_WIDTH$}/", self.prefix)
    }

    pub fn key(&self, index: u64) -> String {
        let (folder, number) = (index / self.folder_len, index % self.folder_len);
        format!("{}{folder:0NUMBER_WIDTH$}/{number:0NUMBER_WIDTH$}", self.prefix)
    }

    /// The object that a key names, or None when it names none of ours.
    pub fn parse_key(&self, key: &str) -> Option<u64> {
        let (folder, number) = key.strip_prefix(&self.prefix)?.split_once('/')?;
        let number = parse_number(number).filter(|number| *number < self.folder_len)?;
        let index = parse_number(folder)?.checked_mul(self.folder_len)?.checked_add(number)?;
        (index < self.object_count()).then_some(index)
    }

    /// The folder that a common prefix names, or None when it names none of ours.
    pub fn parse_folder_prefix(&self, common_prefix: &str) -> Option<u64> {
        let folder = parse_number(common_prefix.strip_prefix(&self.prefix)?.strip_suffix('/')?)?;
        (self.folder_start(folder) < self.object_count()).then_some(folder)
    }

    pub fn content(&self, index: u64, generation: u32) -> Content {
        Content::new(self.seed, index, generation)
    }

    /// Bytes of that generation of the object.
    pub fn size(&self, index: u64, generation: u32) -> u64 {
        self.sizes.draw(self.content(index, generation).identity())
    }

    pub fn presence(&self, index: u64) -> Presence {
        let object = &self.objects[index as usize];
        let meta = object.meta.load(Ordering::Relaxed);
        match meta & STATE_MASK {
            STATE_ABSENT => Presence::Absent,
            STATE_PRESENT => {
                let etag = (meta & ETAG_KNOWN != 0).then(|| {
                    let mut md5 = [0; 16];
                    md5[..8].copy_from_slice(&object.md5_low.load(Ordering::Relaxed).to_le_bytes());
                    md5[8..].copy_from_slice(&object.md5_high.load(Ordering::Relaxed).to_le_bytes());
                    Etag { md5, part_count: (meta >> PART_COUNT_SHIFT) as u16 }
                });
                Presence::Present { generation: (meta >> GENERATION_SHIFT) as u32, etag }
            }
            _ => Presence::Unknown,
        }
    }

    /// Called before a write is sent; the answer is the generation to write.
    pub fn begin_write(&self, index: u64) -> u32 {
        let meta = &self.objects[index as usize].meta;
        let generation = ((meta.load(Ordering::Relaxed) >> GENERATION_SHIFT) as u32).wrapping_add(1);
        meta.store(u64::from(generation) << GENERATION_SHIFT | STATE_UNKNOWN, Ordering::Relaxed);
        generation
    }

    /// Called when the write of `generation` was acknowledged.
    pub fn commit_write(&self, index: u64, generation: u32, etag: Option<Etag>) {
        let object = &self.objects[index as usize];
        let mut meta = u64::from(generation) << GENERATION_SHIFT | STATE_PRESENT;
        if let Some(etag) = etag {
            let (low, high) = etag.md5.split_at(8);
            let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("half of 16 bytes"));
            object.md5_low.store(word(low), Ordering::Relaxed);
            object.md5_high.store(word(high), Ordering::Relaxed);
            meta |= ETAG_KNOWN | u64::from(etag.part_count) << PART_COUNT_SHIFT;
        }
        object.meta.store(meta, Ordering::Relaxed);
    }

    /// Called before a deletion is sent.
    pub fn begin_delete(&self, index: u64) {
        let meta = &self.objects[index as usize].meta;
        meta.store(meta.load(Ordering::Relaxed) & !STATE_MASK | STATE_UNKNOWN, Ordering::Relaxed);
    }

    /// Called when the deletion was acknowledged.
    pub fn commit_delete(&self, index: u64) {
        let meta = &self.objects[index as usize].meta;
        meta.store(meta.load(Ordering::Relaxed) & !STATE_MASK | STATE_ABSENT, Ordering::Relaxed);
    }
}

fn parse_number(text: &str) -> Option<u64> {
    (text.len() == NUMBER_WIDTH && text.bytes().all(|byte| byte.is_ascii_digit()))
        .then(|| text.parse().ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn keyspace(object_count: u64) -> Keyspace {
        Keyspace::new("bench/", 1, "0-100".parse().unwrap(), object_count, 10)
    }

    #[test]
    fn keys_sort_like_their_numbers_and_parse_back() {
        let keyspace = keyspace(1_234);
        let keys: Vec<String> = (0..1_234).map(|index| keyspace.key(index)).collect();
        assert!(keys.is_sorted());
        for (index, key) in (0..).zip(&keys) {
            assert_eq!(keyspace.parse_key(key), Some(index));
            let folder = keyspace.folder_of(index);
            assert!(key.starts_with(&keyspace.folder_prefix(folder)));
            assert_eq!(keyspace.parse_folder_prefix(&keyspace.folder_prefix(folder)), Some(folder));
        }
    }

    #[test]
    fn foreign_keys_are_none_of_ours() {
        let keyspace = keyspace(15);
        for key in [
            "",
            "bench/",
            "other/000000000/000000001",
            "bench/000000000/",
            "bench/000000000/1",
            "bench/000000000/00000000x",
            "bench/000000000/000000010",
            "bench/000000001/000000005",
            "bench/+00000000/000000001",
        ] {
            assert_eq!(keyspace.parse_key(key), None, "{key}");
        }
        assert_eq!(keyspace.parse_folder_prefix("bench/000000002/"), None);
    }

    #[test]
    fn a_write_is_unknown_until_acknowledged_and_generations_never_repeat() {
        let keyspace = keyspace(3);
        let etag = Etag { md5: *b"0123456789abcdef", part_count: 10_000 };
        assert_eq!(keyspace.presence(1), Presence::Absent);
        assert_eq!(keyspace.begin_write(1), 1);
        assert_eq!(keyspace.presence(1), Presence::Unknown);
        keyspace.commit_write(1, 1, Some(etag));
        assert_eq!(keyspace.presence(1), Presence::Present { generation: 1, etag: Some(etag) });
        keyspace.begin_delete(1);
        assert_eq!(keyspace.presence(1), Presence::Unknown);
        keyspace.commit_delete(1);
        assert_eq!(keyspace.presence(1), Presence::Absent);
        assert_eq!(keyspace.begin_write(1), 2, "a deleted object does not come back with old bytes");
        keyspace.commit_write(1, 2, None);
        assert_eq!(keyspace.presence(1), Presence::Present { generation: 2, etag: None });
        assert_eq!(keyspace.presence(0), Presence::Absent);
    }

    #[test]
    fn etags() {
        let plain = "\"5d41402abc4b2a76b9719d911017c592\"";
        assert_eq!(Etag::parse(plain).unwrap().to_string(), plain);
        let parts = "\"5d41402abc4b2a76b9719d911017c592-17\"";
        assert_eq!(Etag::parse(parts).unwrap().to_string(), parts);
        assert_eq!(Etag::parse(plain.trim_matches('"')), Etag::parse(plain));
        for text in [
            "",
            "\"\"",
            "5d41",
            "\"5d41402abc4b2a76b9719d911017c592-0\"",
            "5d41402abc4b2a76b9719d911017c592-x",
        ] {
            assert_eq!(Etag::parse(text), None, "{text}");
        }
    }
}
