//! Index keys: byte strings whose order is the order of what they name.
//!
//! `[family u8][bucket id u64 BE][name, escaped][0x00 0x01][suffix]`. In the name 0x00 becomes 0x00 0xFF, so the
//! terminator 0x00 0x01 sorts below every continuation and a name sorts before all names it is a prefix of. The suffix
//! has one length per family. Hence one `memcmp` orders by family, bucket, name, and within a name by version, upload or
//! part, and every prefix of a name is a prefix of its key: a LIST is a range scan, a delimiter is a seek.

use std::borrow::Cow;

/// Longest object name or bucket name, in bytes (S3 allows 1,024 for objects).
pub const NAME_LEN_MAX: usize = 1024;

/// Longest index key in bytes: a name of 1,024 zero bytes doubles, and later families get some room.
pub const KEY_LEN_MAX: usize = 2200;

/// Longest value of an index entry in bytes; what is larger spills to a blob of its own.
pub const VALUE_LEN_MAX: usize = 64 * 1024;

/// Length of the family and the bucket id before the name.
const HEAD_LEN: usize = 9;
const TERMINATOR: [u8; 2] = [0x00, 0x01];
const ESCAPED_ZERO: [u8; 2] = [0x00, 0xff];

const _: () = assert!(HEAD_LEN + 2 * NAME_LEN_MAX + TERMINATOR.len() + 18 <= KEY_LEN_MAX);

/// What an index entry describes; the first byte of its key. The numbers are on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Family {
    /// One version of an object; suffix: its [`VersionOrder`].
    Object = 1,
    /// A multipart upload in progress; suffix: upload id.
    Upload = 2,
    /// A part of an upload; suffix: upload id and part number.
    Part = 3,
    /// A bucket by its name, under bucket id 0; no suffix.
    Bucket = 4,
    /// Reserved for spilled values by id; no suffix.
    Blob = 5,
    /// What a shard's work in the background keeps for itself, by name, under bucket id 0; no suffix.
    Background = 6,
}

impl Family {
    fn of(byte: u8) -> Option<Family> {
        Some(match byte {
            1 => Family::Object,
            2 => Family::Upload,
            3 => Family::Part,
            4 => Family::Bucket,
            5 => Family::Blob,
            6 => Family::Background,
            _ => return None,
        })
    }

    /// Length of the suffix of every key of this family, in bytes.
    #[must_use]
    pub const fn suffix_len(self) -> usize {
        match self {
            Family::Object | Family::Upload => 16,
            Family::Part => 18,
            Family::Bucket | Family::Blob | Family::Background => 0,
        }
    }
}

/// Orders the versions of one object, newest first: the inverted hybrid time, then a tie-break. All zeros is the fixed
/// slot of the null version, which therefore comes first whatever its age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VersionOrder(pub [u8; 16]);

impl VersionOrder {
    /// The null version's slot.
    pub const NULL: VersionOrder = VersionOrder([0; 16]);

    /// The order of a version made at `hybrid_time`, which is never `u64::MAX`.
    ///
    /// # Panics
    /// If `hybrid_time` is `u64::MAX`, whose inverse is the null version's.
    #[must_use]
    pub fn new(hybrid_time: u64, tie_break: [u8; 8]) -> VersionOrder {
        assert!(hybrid_time != u64::MAX, "the last instant belongs to the null version");
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&(!hybrid_time).to_be_bytes());
        bytes[8..].copy_from_slice(&tie_break);
        VersionOrder(bytes)
    }

    #[must_use]
    pub fn is_null(self) -> bool {
        self == VersionOrder::NULL
    }

    /// The hybrid time it was made at; `None` for the null version, whose time is in its record.
    #[must_use]
    pub fn hybrid_time(self) -> Option<u64> {
        let (inverted, _) = self.0.split_first_chunk::<8>()?;
        (!self.is_null()).then_some(!u64::from_be_bytes(*inverted))
    }
}

/// A key taken apart. Names are unescaped; they borrow from the key unless they hold a zero byte.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key<'a> {
    Object { bucket: u64, name: Cow<'a, [u8]>, version: VersionOrder },
    Upload { bucket: u64, name: Cow<'a, [u8]>, upload: [u8; 16] },
    Part { bucket: u64, name: Cow<'a, [u8]>, upload: [u8; 16], part: u16 },
    Bucket { name: Cow<'a, [u8]> },
    Blob { bucket: u64, name: Cow<'a, [u8]> },
    Background { name: Cow<'a, [u8]> },
}

/// Why bytes are not an index key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyError {
    /// Shorter than its family's shortest key, or longer than [`KEY_LEN_MAX`].
    Length(usize),
    UnknownFamily(u8),
    /// A zero byte of the name is not escaped, at this offset in the key.
    Escape(usize),
    /// The terminator is not where the family's suffix begins.
    Terminator,
    NameLength(usize),
    /// The key of a bucket, or of a shard's own, names a bucket id.
    BucketId(u64),
}

impl std::fmt::Display for KeyError {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            KeyError::Length(len) => write!(out, "{len} bytes are no index key"),
            KeyError::UnknownFamily(byte) => write!(out, "unknown key family {byte}"),
            KeyError::Escape(offset) => write!(out, "unescaped zero at {offset} of an index key"),
            KeyError::Terminator => write!(out, "index key without its terminator"),
            KeyError::NameLength(len) => write!(out, "name of {len} bytes in an index key"),
            KeyError::BucketId(id) => write!(out, "a key that belongs to no bucket, under bucket id {id}"),
        }
    }
}

impl std::error::Error for KeyError {}

impl Key<'_> {
    /// The bytes of this key.
    ///
    /// # Panics
    /// If the name is longer than [`NAME_LEN_MAX`]: names are checked where a request is parsed.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Key::Object { bucket, name, version } => object(*bucket, name, *version),
            Key::Upload { bucket, name, upload } => self::upload(*bucket, name, *upload),
            Key::Part { bucket, name, upload, part } => self::part(*bucket, name, *upload, *part),
            Key::Bucket { name } => self::bucket(name),
            Key::Blob { bucket, name } => start_of_name(Family::Blob, *bucket, name),
            Key::Background { name } => start_of_name(Family::Background, 0, name),
        }
    }

    /// Takes a key apart.
    ///
    /// # Errors
    /// [`KeyError`] for bytes that [`Key::encode`] never makes.
    pub fn decode(bytes: &[u8]) -> Result<Key<'_>, KeyError> {
        let (&first, rest) = bytes.split_first().ok_or(KeyError::Length(0))?;
        let family = Family::of(first).ok_or(KeyError::UnknownFamily(first))?;
        if bytes.len() > KEY_LEN_MAX {
            return Err(KeyError::Length(bytes.len()));
        }
        let (bucket, rest) = rest.split_first_chunk::<8>().ok_or(KeyError::Length(bytes.len()))?;
        let bucket = u64::from_be_bytes(*bucket);
        let name_end = rest.len().checked_sub(family.suffix_len() + TERMINATOR.len());
        let (name, rest) = rest.split_at(name_end.ok_or(KeyError::Length(bytes.len()))?);
        let (terminator, suffix) = rest.split_at(TERMINATOR.len());
        if terminator != TERMINATOR {
            return Err(KeyError::Terminator);
        }
        let name = unescape(name)?;
        if name.len() > NAME_LEN_MAX {
            return Err(KeyError::NameLength(name.len()));
        }
        let upload = || {
            let (upload, part) = suffix.split_first_chunk::<16>().ok_or(KeyError::Length(bytes.len()))?;
            Ok((*upload, part))
        };
        Ok(match family {
            Family::Object => Key::Object { bucket, name, version: VersionOrder(upload()?.0) },
            Family::Upload => Key::Upload { bucket, name, upload: upload()?.0 },
            Family::Part => {
                let (upload, part) = upload()?;
                let part = part.try_into().map_err(|_| KeyError::Length(bytes.len()))?;
                Key::Part { bucket, name, upload, part: u16::from_be_bytes(part) }
            }
            Family::Bucket | Family::Background if bucket != 0 => return Err(KeyError::BucketId(bucket)),
            Family::Bucket => Key::Bucket { name },
            Family::Blob => Key::Blob { bucket, name },
            Family::Background => Key::Background { name },
        })
    }
}

/// Key of the record of how far scrub has come.
#[must_use]
pub fn scrub() -> Vec<u8> {
    start_of_name(Family::Background, 0, b"scrub")
}

/// Key of one version of an object.
#[must_use]
pub fn object(bucket: u64, name: &[u8], version: VersionOrder) -> Vec<u8> {
    let mut key = start_of_name(Family::Object, bucket, name);
    key.extend_from_slice(&version.0);
    key
}

/// Key of a multipart upload.
#[must_use]
pub fn upload(bucket: u64, name: &[u8], upload: [u8; 16]) -> Vec<u8> {
    let mut key = start_of_name(Family::Upload, bucket, name);
    key.extend_from_slice(&upload);
    key
}

/// Key of a part of a multipart upload.
#[must_use]
pub fn part(bucket: u64, name: &[u8], upload: [u8; 16], part: u16) -> Vec<u8> {
    let mut key = start_of_name(Family::Part, bucket, name);
    key.extend_from_slice(&upload);
    key.extend_from_slice(&part.to_be_bytes());
    key
}

/// Key of a bucket's record.
#[must_use]
pub fn bucket(name: &[u8]) -> Vec<u8> {
    start_of_name(Family::Bucket, 0, name)
}

/// Inclusive start of all keys of `family` in `bucket` whose names begin with `name_prefix` (which may be empty).
///
/// # Panics
/// As [`Key::encode`].
#[must_use]
pub fn start_of_prefix(family: Family, bucket: u64, name_prefix: &[u8]) -> Vec<u8> {
    assert!(name_prefix.len() <= NAME_LEN_MAX, "a name of {} bytes", name_prefix.len());
    // Room for a terminator and the longest suffix, so that the caller's next append never reallocates.
    let mut key = Vec::with_capacity(HEAD_LEN + name_prefix.len() + 24);
    key.push(family as u8);
    key.extend_from_slice(&bucket.to_be_bytes());
    escape(name_prefix, &mut key);
    key
}

/// Exclusive end of all keys of `family` in `bucket` whose names begin with `name_prefix`; also where a scan goes on
/// after it has reported `name_prefix` as a CommonPrefix.
#[must_use]
pub fn end_of_prefix(family: Family, bucket: u64, name_prefix: &[u8]) -> Vec<u8> {
    successor(&start_of_prefix(family, bucket, name_prefix)).expect("a family byte is below 0xFF")
}

/// Inclusive start of all keys of exactly this name: its versions, uploads or parts.
#[must_use]
pub fn start_of_name(family: Family, bucket: u64, name: &[u8]) -> Vec<u8> {
    let mut key = start_of_prefix(family, bucket, name);
    key.extend_from_slice(&TERMINATOR);
    key
}

/// Exclusive end of all keys of exactly this name; where a scan that starts after a name begins.
#[must_use]
pub fn end_of_name(family: Family, bucket: u64, name: &[u8]) -> Vec<u8> {
    successor(&start_of_name(family, bucket, name)).expect("the terminator ends below 0xFF")
}

/// The smallest byte string above every string that begins with `bytes`; `None` when there is none.
#[must_use]
pub fn successor(bytes: &[u8]) -> Option<Vec<u8>> {
    let last = bytes.iter().rposition(|&byte| byte != 0xff)?;
    let mut next = bytes[..=last].to_vec();
    next[last] += 1;
    Some(next)
}

/// The part of `key` that a table's filter knows. Versions of one object share it, so that one filter answers both for
/// an exact version and for "any version of this name".
pub(crate) fn filter_part(key: &[u8]) -> &[u8] {
    match key.first() {
        Some(&family)
            if family == Family::Object as u8 && key.len() > HEAD_LEN + Family::Object.suffix_len() =>
        {
            &key[..key.len() - Family::Object.suffix_len()]
        }
        _ => key,
    }
}

fn escape(name: &[u8], out: &mut Vec<u8>) {
    let mut pieces = name.split(|&byte| byte == 0);
    out.extend_from_slice(pieces.next().unwrap_or_default());
    for piece in pieces {
        out.extend_from_slice(&ESCAPED_ZERO);
        out.extend_from_slice(piece);
    }
}

fn unescape(escaped: &[u8]) -> Result<Cow<'_, [u8]>, KeyError> {
    if !escaped.contains(&0) {
        return Ok(Cow::Borrowed(escaped));
    }
    let mut name = Vec::with_capacity(escaped.len());
    let mut bytes = escaped.iter().enumerate();
    while let Some((offset, &byte)) = bytes.next() {
        name.push(byte);
        if byte == 0 && bytes.next().is_none_or(|(_, &escape)| escape != ESCAPED_ZERO[1]) {
            return Err(KeyError::Escape(HEAD_LEN + offset));
        }
    }
    Ok(Cow::Owned(name))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Names over an alphabet in which escaping and terminating bytes are common.
    fn name() -> impl Strategy<Value = Cow<'static, [u8]>> {
        proptest::collection::vec(prop_oneof![Just(0_u8), Just(1), Just(0xff), Just(b'a'), any::<u8>()], 0..6)
            .prop_map(Cow::Owned)
    }

    fn key() -> impl Strategy<Value = Key<'static>> {
        let bucket = || prop_oneof![0..3_u64, any::<u64>()];
        prop_oneof![
            (bucket(), name(), any::<[u8; 16]>()).prop_map(|(bucket, name, version)| Key::Object {
                bucket,
                name,
                version: VersionOrder(version)
            }),
            (bucket(), name(), any::<[u8; 16]>()).prop_map(|(bucket, name, upload)| Key::Upload {
                bucket,
                name,
                upload
            }),
            (bucket(), name(), any::<[u8; 16]>(), any::<u16>())
                .prop_map(|(bucket, name, upload, part)| Key::Part { bucket, name, upload, part }),
            name().prop_map(|name| Key::Bucket { name }),
            (bucket(), name()).prop_map(|(bucket, name)| Key::Blob { bucket, name }),
            name().prop_map(|name| Key::Background { name }),
        ]
    }

    proptest! {
        /// `Key` derives its order from (family, bucket, name, suffix) in this sequence of fields.
        #[test]
        fn encoded_order_is_the_order_of_the_parts(a in key(), b in key()) {
            prop_assert_eq!(a.encode().cmp(&b.encode()), a.cmp(&b));
        }

        #[test]
        fn decodes_what_it_encodes(key in key()) {
            let bytes = key.encode();
            prop_assert_eq!(Key::decode(&bytes), Ok(key));
        }

        #[test]
        fn hostile_bytes_never_panic_and_only_canonical_ones_decode(mut bytes in proptest::collection::vec(any::<u8>(), 0..48), family in 0..7_u8) {
            if let Some(first) = bytes.first_mut() {
                *first = family;
            }
            if let Ok(key) = Key::decode(&bytes) {
                prop_assert_eq!(key.encode(), bytes);
            }
        }

        #[test]
        fn prefix_bounds_hold_exactly_the_names_with_the_prefix(prefix in name(), other in name(), version in any::<[u8; 16]>()) {
            let key = object(7, &other, VersionOrder(version));
            let inside = start_of_prefix(Family::Object, 7, &prefix) <= key && key < end_of_prefix(Family::Object, 7, &prefix);
            prop_assert_eq!(inside, other.starts_with(&prefix));
            let exact = start_of_name(Family::Object, 7, &prefix) <= key && key < end_of_name(Family::Object, 7, &prefix);
            prop_assert_eq!(exact, other == prefix);
        }
    }

    #[test]
    fn newest_versions_come_first_after_the_null_version() {
        let old = VersionOrder::new(1_000, [9; 8]);
        let new = VersionOrder::new(1_001, [0; 8]);
        assert!(VersionOrder::NULL < new && new < old);
        assert_eq!((new.hybrid_time(), VersionOrder::NULL.hybrid_time()), (Some(1_001), None));
    }

    #[test]
    fn golden_bytes() {
        let key = object(0x0102, b"a\0b", VersionOrder::new(5, *b"tiebreak"));
        assert_eq!(
            key,
            b"\x01\0\0\0\0\0\0\x01\x02a\0\xffb\0\x01\xff\xff\xff\xff\xff\xff\xff\xfatiebreak".as_slice()
        );
        assert_eq!(
            part(1, b"k", [7; 16], 0x0a0b)[9..],
            *b"k\0\x01\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x0a\x0b"
        );
        assert_eq!(bucket(b"logs"), b"\x04\0\0\0\0\0\0\0\0logs\0\x01");
    }

    #[test]
    fn filter_part_is_shared_by_versions_only() {
        let null = object(1, b"k", VersionOrder::NULL);
        let version = object(1, b"k", VersionOrder::new(3, [1; 8]));
        assert_eq!(filter_part(&null), filter_part(&version));
        assert_eq!(filter_part(&null), start_of_name(Family::Object, 1, b"k"));
        let upload = upload(1, b"k", [3; 16]);
        assert_eq!(filter_part(&upload), upload);
        assert_eq!(filter_part(b"\x01short"), b"\x01short");
    }

    #[test]
    fn refuses_by_name() {
        let long = object(1, &[b'x'; NAME_LEN_MAX], VersionOrder::NULL);
        assert!(Key::decode(&long).is_ok());
        let mut longer = long.clone();
        longer.insert(20, b'x');
        assert_eq!(Key::decode(&longer), Err(KeyError::NameLength(1025)));
        assert_eq!(Key::decode(&[9; 40]), Err(KeyError::UnknownFamily(9)));
        assert_eq!(Key::decode(&long[..long.len() - 1]), Err(KeyError::Terminator));
        let mut unescaped = bucket(b"abc");
        unescaped[10] = 0;
        assert_eq!(Key::decode(&unescaped), Err(KeyError::Escape(10)));
        let mut numbered = bucket(b"abc");
        numbered[8] = 1;
        assert_eq!(Key::decode(&numbered), Err(KeyError::BucketId(1)));
        assert_eq!(successor(&[0xff, 0xff]), None);
        assert_eq!(successor(&[1, 0xff]), Some(vec![2]));
    }
}
