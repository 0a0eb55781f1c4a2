//! Signature Version 4 keys: secrets, the keys derived from them, and a bounded cache of those.
//!
//! Deriving a signing key costs four HMACs, as much as all the rest of verifying a request, and its
//! result changes once a day per key and region, so verified keys are kept. Only a request whose
//! signature held adds an entry: a stranger who knows an access key cannot churn the cache.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// A secret access key. Wiped when dropped; `Debug` does not show it.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    pub fn new(secret: impl Into<String>) -> Self {
        Self(Zeroizing::new(secret.into()))
    }

    fn same_as(&self, other: &Self) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// The credential scope: where and when a signature is good.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Scope<'a> {
    /// `YYYYMMDD`.
    pub date: &'a str,
    pub region: &'a str,
    pub service: &'a str,
}

/// The last component of every credential scope.
pub const SCOPE_TERMINATOR: &str = "aws4_request";

impl fmt::Display for Scope<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}/{SCOPE_TERMINATOR}", self.date, self.region, self.service)
    }
}

/// A derived signing key as a keyed HMAC state, so that signing starts with the key already absorbed.
#[derive(Clone)]
pub struct SigningKey(Hmac<Sha256>);

impl SigningKey {
    pub fn derive(secret: &Secret, scope: Scope<'_>) -> Self {
        let initial = Zeroizing::new(format!("AWS4{}", secret.0.as_str()));
        let date_key = Self::keyed(initial.as_bytes()).mac(scope.date.as_bytes());
        let region_key = Self::keyed(&*date_key).mac(scope.region.as_bytes());
        let service_key = Self::keyed(&*region_key).mac(scope.service.as_bytes());
        Self::keyed(&*Self::keyed(&*service_key).mac(SCOPE_TERMINATOR.as_bytes()))
    }

    /// The signature of `string_to_sign` as 64 lower-case hexadecimal digits.
    pub fn sign(&self, string_to_sign: &[u8]) -> Signature {
        Signature::from_bytes(&self.mac(string_to_sign))
    }

    fn keyed(key: &[u8]) -> Self {
        Self(Hmac::new_from_slice(key).expect("HMAC takes keys of any length"))
    }

    fn mac(&self, message: &[u8]) -> Zeroizing<[u8; 32]> {
        let mut mac = self.0.clone();
        mac.update(message);
        Zeroizing::new(mac.finalize().into_bytes().into())
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(..)")
    }
}

/// A computed signature in its wire form.
#[derive(Clone, Copy, Debug)]
pub struct Signature([u8; 64]);

impl Signature {
    fn from_bytes(bytes: &[u8; 32]) -> Self {
        Self(hex_digits(bytes))
    }

    /// Constant-time in the content; the length of a signature is no secret.
    pub fn matches(&self, presented: &[u8]) -> bool {
        self.0.ct_eq(presented).into()
    }

    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("hexadecimal digits are ASCII")
    }
}

/// Lower-case hexadecimal SHA-256.
pub fn sha256_hex(data: &[u8]) -> String {
    let digits = hex_digits(&Sha256::digest(data).into());
    String::from_utf8(digits.to_vec()).expect("hexadecimal digits are ASCII")
}

/// By table and into place: this runs several times for every request.
fn hex_digits(bytes: &[u8; 32]) -> [u8; 64] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = [0; 64];
    for (pair, byte) in text.chunks_exact_mut(2).zip(bytes) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
    text
}

/// Cached keys in total: enough for a thousand users with a few regions each to keep theirs hot.
pub const SIGNING_KEYS_MAX: usize = SETS * WAYS;
const SETS: usize = 256;
const WAYS: usize = 8;
/// The longest name of a region whose key is kept, in bytes. A server that takes every region takes names as long as a head,
/// and thousands of those would be memory that nobody counts.
const REGION_LEN_MAX: usize = 64;

/// Derived signing keys by access key and scope: set-associative, least recently used out first.
/// An entry holds the secret it came from, so a replaced secret never authenticates again.
#[derive(Debug)]
pub struct SigningKeys {
    /// Most recently used first within a set.
    sets: Vec<Vec<CachedKey>>,
}

#[derive(Debug)]
struct CachedKey {
    access_key: String,
    date: String,
    region: String,
    service: String,
    secret: Secret,
    key: SigningKey,
}

impl CachedKey {
    fn is_for(&self, access_key: &str, scope: Scope<'_>) -> bool {
        let own = Scope { date: &self.date, region: &self.region, service: &self.service };
        self.access_key == access_key && own == scope
    }
}

impl Default for SigningKeys {
    fn default() -> Self {
        Self { sets: std::iter::repeat_with(Vec::new).take(SETS).collect() }
    }
}

impl SigningKeys {
    /// The key derived from this secret, if it is cached.
    pub(super) fn get(&mut self, access_key: &str, scope: Scope<'_>, secret: &Secret) -> Option<&SigningKey> {
        let set = &mut self.sets[set_index(access_key, scope)];
        let way = set.iter().position(|cached| cached.is_for(access_key, scope))?;
        if !set[way].secret.same_as(secret) {
            set.remove(way);
            return None;
        }
        set[..=way].rotate_right(1);
        Some(&set[0].key)
    }

    /// Keeps a key that has just verified a signature, unless its region is called like no region.
    pub(super) fn insert(&mut self, access_key: &str, scope: Scope<'_>, secret: Secret, key: SigningKey) {
        if scope.region.len() > REGION_LEN_MAX {
            return;
        }
        let set = &mut self.sets[set_index(access_key, scope)];
        set.truncate(WAYS - 1);
        set.insert(
            0,
            CachedKey {
                access_key: access_key.to_owned(),
                date: scope.date.to_owned(),
                region: scope.region.to_owned(),
                service: scope.service.to_owned(),
                secret,
                key,
            },
        );
    }

    pub fn len(&self) -> usize {
        self.sets.iter().map(Vec::len).sum()
    }
}

/// FNV-1a. Collisions cost only key derivations, and only holders of valid keys can cause any.
fn set_index(access_key: &str, scope: Scope<'_>) -> usize {
    let parts = [access_key, scope.date, scope.region, scope.service];
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([b'/']));
    let hash =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3));
    (hash >> 32) as usize % SETS
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCOPE: Scope<'static> = Scope { date: "20130524", region: "us-east-1", service: "s3" };

    #[test]
    fn cache_is_bounded_and_keeps_what_is_used() {
        let mut keys = SigningKeys::default();
        let secret = Secret::new("secret");
        for i in 0..2 * SIGNING_KEYS_MAX {
            let name = format!("key-{i}");
            if i == 0 {
                keys.insert("hot", SCOPE, secret.clone(), SigningKey::derive(&secret, SCOPE));
            }
            let key = keys.get("hot", SCOPE, &secret).expect("it is used all the time").clone();
            keys.insert(&name, SCOPE, secret.clone(), key);
        }
        assert!(keys.len() <= SIGNING_KEYS_MAX);
        assert!(keys.get("key-0", SCOPE, &secret).is_none());
    }

    #[test]
    fn keys_of_regions_with_endless_names_are_not_kept() {
        let mut keys = SigningKeys::default();
        let secret = Secret::new("secret");
        for (len, kept) in [(REGION_LEN_MAX, 1), (REGION_LEN_MAX + 1, 1), (20_000, 1)] {
            let region = "r".repeat(len);
            let scope = Scope { region: &region, ..SCOPE };
            keys.insert("k", scope, secret.clone(), SigningKey::derive(&secret, scope));
            assert_eq!(keys.len(), kept, "{len}");
        }
    }

    #[test]
    fn a_replaced_secret_is_never_answered_from_the_cache() {
        let mut keys = SigningKeys::default();
        let (old, new) = (Secret::new("old"), Secret::new("new"));
        keys.insert("k", SCOPE, old.clone(), SigningKey::derive(&old, SCOPE));
        assert!(keys.get("k", SCOPE, &old).is_some());
        assert!(keys.get("k", SCOPE, &new).is_none());
        assert_eq!(keys.len(), 0);
    }

    #[test]
    fn secrets_do_not_show() {
        assert_eq!(format!("{:?}", Secret::new("hush")), "Secret(..)");
        assert!(!format!("{:?}", SigningKey::derive(&Secret::new("hush"), SCOPE)).contains("hush"));
    }
}
