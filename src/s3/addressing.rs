//! Addressing: which bucket and key a request names, in path style or virtual-hosted style.
//!
//! The raw path is split first and decoded afterwards, once, so that an encoded slash belongs to the
//! name it stands in. Nothing is normalized: every byte after the bucket's slash is the key. A host is
//! a bucket only below a configured domain; any other host is just the name this server is called by.

use super::bucket_name::BucketName;
use super::error::{ErrorCode, Result, S3Error};
use super::object_key::ObjectKey;
use super::percent::decode_path;

/// The domains below which the first labels of a host name a bucket (`--domain`).
#[derive(Clone, Debug, Default)]
pub struct Addressing {
    /// Lower case, without port, the most specific (longest) first.
    domains: Vec<String>,
}

/// What a request is about.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Target {
    Service,
    Bucket(BucketName),
    Object(BucketName, ObjectKey),
}

impl Addressing {
    pub fn new<S: AsRef<str>>(domains: impl IntoIterator<Item = S>) -> Self {
        let mut domains: Vec<String> = domains
            .into_iter()
            .map(|d| without_port(d.as_ref().trim_matches('.')).to_ascii_lowercase())
            .filter(|d| !d.is_empty())
            .collect();
        domains.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        domains.dedup();
        Self { domains }
    }

    /// Resolves a request. `raw_path` is the path as it was on the request line, undecoded and without
    /// the query; `host` is the authority of an absolute-form URI or else the Host header.
    ///
    /// Errors: `InvalidURI`, `InvalidBucketName`, `KeyTooLongError`.
    pub fn locate(&self, raw_path: &str, host: Option<&str>) -> Result<Target> {
        // An absolute-form URI may leave the path out; it then means the root.
        let path = if raw_path.is_empty() { "/" } else { raw_path };
        let Some(path) = path.strip_prefix('/') else {
            return Err(S3Error::new(ErrorCode::InvalidURI).with("URI", raw_path));
        };
        if let Some(bucket) = host.and_then(|host| self.bucket_of_host(host)) {
            return target(&bucket, path);
        }
        if path.is_empty() {
            return Ok(Target::Service);
        }
        let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
        target(&decode_path(bucket)?, key)
    }

    /// Whether `host` names a bucket, so that the whole path is a key.
    pub fn names_bucket(&self, host: &str) -> bool {
        self.bucket_of_host(host).is_some()
    }

    /// The labels in front of a configured domain, in lower case as host names are compared.
    fn bucket_of_host(&self, host: &str) -> Option<String> {
        if self.domains.is_empty() {
            return None;
        }
        let host = without_port(host).trim_end_matches('.').to_ascii_lowercase();
        for domain in &self.domains {
            if host == *domain {
                return None;
            }
            if let Some(bucket) = host.strip_suffix(domain.as_str()).and_then(|rest| rest.strip_suffix('.')) {
                return Some(bucket.to_owned());
            }
        }
        None
    }
}

impl Target {
    pub fn bucket(&self) -> Option<&BucketName> {
        match self {
            Self::Service => None,
            Self::Bucket(bucket) | Self::Object(bucket, _) => Some(bucket),
        }
    }

    pub fn key(&self) -> Option<&ObjectKey> {
        match self {
            Self::Object(_, key) => Some(key),
            Self::Service | Self::Bucket(_) => None,
        }
    }
}

fn target(bucket: &str, raw_key: &str) -> Result<Target> {
    let bucket = BucketName::parse(bucket)?;
    if raw_key.is_empty() {
        return Ok(Target::Bucket(bucket));
    }
    let key = ObjectKey::parse(decode_path(raw_key)?)?;
    Ok(Target::Object(bucket, key))
}

/// Drops `:port`, but not a part of a bracketed IPv6 address.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.ends_with(':') => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
    use proptest::prelude::*;

    fn path_style(path: &str) -> Target {
        Addressing::default().locate(path, Some("localhost:9000")).expect(path)
    }

    fn object(bucket: &str, key: &str) -> Target {
        Target::Object(BucketName::parse(bucket).expect("valid"), ObjectKey::parse(key).expect("valid"))
    }

    fn bucket(name: &str) -> Target {
        Target::Bucket(BucketName::parse(name).expect("valid"))
    }

    #[test]
    fn path_style_splits_before_it_decodes() {
        assert_eq!(path_style("/"), Target::Service);
        assert_eq!(path_style(""), Target::Service);
        assert_eq!(path_style("/bucket"), bucket("bucket"));
        assert_eq!(path_style("/bucket/"), bucket("bucket"));
        assert_eq!(path_style("/bucket/k"), object("bucket", "k"));
        assert_eq!(path_style("/bucket/a%2Fb"), object("bucket", "a/b"));
    }

    #[test]
    fn odd_keys_survive() {
        for (path, key) in [
            ("/bucket//k", "/k"),
            ("/bucket//", "/"),
            ("/bucket/a//b", "a//b"),
            ("/bucket/./..", "./.."),
            ("/bucket/../bucket2/k", "../bucket2/k"),
            ("/bucket/a+b", "a+b"),
            ("/bucket/a%20b%0Ac", "a b\nc"),
            ("/bucket/%F0%9F%A6%80", "🦀"),
            ("/bucket/🦀", "🦀"),
            ("/bucket/%2e%2e", ".."),
            ("/bucket/a%252Fb", "a%2Fb"),
            ("/bucket/%00", "\0"),
        ] {
            assert_eq!(path_style(path), object("bucket", key), "{path}");
        }
    }

    #[test]
    fn behaviour_27_keys_with_and_without_trailing_slash_coexist() {
        assert_eq!(path_style("/bucket/k"), object("bucket", "k"));
        assert_eq!(path_style("/bucket/k/"), object("bucket", "k/"));
        assert_eq!(path_style("/bucket/k/x"), object("bucket", "k/x"));
    }

    #[test]
    fn unreadable_paths_are_refused() {
        let codes = |path: &str| Addressing::default().locate(path, None).expect_err(path).code();
        assert_eq!(codes("/bucket/%zz"), ErrorCode::InvalidURI);
        assert_eq!(codes("/bucket/%ff"), ErrorCode::InvalidURI);
        assert_eq!(codes("*"), ErrorCode::InvalidURI);
        assert_eq!(codes("//k"), ErrorCode::InvalidBucketName);
        assert_eq!(codes("/Bucket/k"), ErrorCode::InvalidBucketName);
        assert_eq!(codes("/bucket%2Fk"), ErrorCode::InvalidBucketName);
        assert_eq!(codes(&format!("/bucket/{}", "a".repeat(1025))), ErrorCode::KeyTooLongError);
    }

    #[test]
    fn virtual_hosted_style_works_below_configured_domains_only() {
        let addressing = Addressing::new(["S3.example.com:9000", "example.com"]);
        let at = |host: &str, path: &str| addressing.locate(path, Some(host)).expect(host);
        assert_eq!(at("bucket.s3.example.com", "/k"), object("bucket", "k"));
        assert_eq!(at("BUCKET.S3.Example.com:9000", "/k"), object("bucket", "k"));
        assert_eq!(at("my.bucket.s3.example.com.", "/"), bucket("my.bucket"));
        assert_eq!(at("bucket.example.com", "//a"), object("bucket", "/a"));
        assert_eq!(at("s3.example.com", "/bucket/k"), object("bucket", "k"));
        assert_eq!(at("example.com", "/"), Target::Service);
        assert_eq!(at("10.0.0.1:9000", "/bucket/k"), object("bucket", "k"));
        assert_eq!(at("[::1]:9000", "/bucket/k"), object("bucket", "k"));
        assert_eq!(at("notexample.com", "/bucket/k"), object("bucket", "k"));
        assert!(addressing.locate("/k", Some("a_b.example.com")).is_err());
    }

    #[test]
    fn behaviour_30_a_missing_host_means_path_style() {
        let addressing = Addressing::new(["s3.example.com"]);
        assert_eq!(addressing.locate("/bucket/k", None).expect("valid"), object("bucket", "k"));
    }

    /// What clients encode in a path: everything but the unreserved characters and the slash.
    const ENCODED: &AsciiSet =
        &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'%').add(b'<').add(b'>').add(b'?').add(b'+').add(b'`');

    proptest! {
        #[test]
        fn every_key_survives_the_path(key in "\\PC{1,80}|[\\x00-\\x7f]{1,80}|[./+ %]{1,20}") {
            let path = format!("/bucket/{}", utf8_percent_encode(&key, ENCODED));
            prop_assert_eq!(path_style(&path), object("bucket", &key));
        }

        #[test]
        fn hostile_paths_and_hosts_never_panic(path in ".{0,100}", host in ".{0,100}") {
            let _ = Addressing::new(["example.com"]).locate(&path, Some(&host));
        }
    }
}
