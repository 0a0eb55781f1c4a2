//! Object checksums: the algorithms, their values, and everything a client may ask about them.
//!
//! Every object has one checksum, the client's or our own CRC64NVME, computed in the pass that also
//! makes the ETag, verified before anything commits, and stored. Source: Amazon S3 User Guide,
//! "Checking object integrity for data uploads in Amazon S3".

pub mod hasher;
pub mod multipart;
pub mod requested;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderMap, HeaderName};

use super::error::{Result, S3Error};

/// A checksum algorithm of the S3 API. The discriminants are stored; they never change.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(u8)]
pub enum Algorithm {
    Crc32 = 1,
    Crc32c = 2,
    Crc64Nvme = 3,
    Sha1 = 4,
    Sha256 = 5,
}

/// What an object gets when its client sends no checksum.
pub const DEFAULT_ALGORITHM: Algorithm = Algorithm::Crc64Nvme;

/// Why each request's algorithm has to be one: AWS's sentence.
const SINGLE: &str = "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed.";

impl Algorithm {
    pub const ALL: [Self; 5] = [Self::Crc32, Self::Crc32c, Self::Crc64Nvme, Self::Sha1, Self::Sha256];

    /// The name in headers and XML values, for example `CRC64NVME`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Crc32 => "CRC32",
            Self::Crc32c => "CRC32C",
            Self::Crc64Nvme => "CRC64NVME",
            Self::Sha1 => "SHA1",
            Self::Sha256 => "SHA256",
        }
    }

    /// The name in any case, as AWS accepts it.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name().eq_ignore_ascii_case(name))
    }

    /// The algorithm with this discriminant.
    pub fn from_id(id: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| *algorithm as u8 == id)
    }

    /// The request, response and trailer header that carries a value.
    pub fn header_name(self) -> HeaderName {
        HeaderName::from_static(match self {
            Self::Crc32 => "x-amz-checksum-crc32",
            Self::Crc32c => "x-amz-checksum-crc32c",
            Self::Crc64Nvme => "x-amz-checksum-crc64nvme",
            Self::Sha1 => "x-amz-checksum-sha1",
            Self::Sha256 => "x-amz-checksum-sha256",
        })
    }

    /// The algorithm whose values this header carries.
    pub fn from_header_name(name: &HeaderName) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.header_name() == *name)
    }

    /// The XML element that carries a value.
    pub fn element_name(self) -> &'static str {
        match self {
            Self::Crc32 => "ChecksumCRC32",
            Self::Crc32c => "ChecksumCRC32C",
            Self::Crc64Nvme => "ChecksumCRC64NVME",
            Self::Sha1 => "ChecksumSHA1",
            Self::Sha256 => "ChecksumSHA256",
        }
    }

    /// Length of a value in bytes.
    pub fn len(self) -> usize {
        match self {
            Self::Crc32 | Self::Crc32c => 4,
            Self::Crc64Nvme => 8,
            Self::Sha1 => 20,
            Self::Sha256 => 32,
        }
    }

    /// The algorithm that `x-amz-checksum-algorithm` asks for, where an operation takes that header.
    ///
    /// # Errors
    /// `InvalidRequest` if it names no algorithm or is given twice.
    pub fn from_algorithm_header(headers: &HeaderMap) -> Result<Option<Self>> {
        let mut values = headers.get_all("x-amz-checksum-algorithm").iter();
        let Some(value) = values.next() else { return Ok(None) };
        let algorithm = value.to_str().ok().and_then(Self::parse).filter(|_| values.next().is_none());
        algorithm.map(Some).ok_or_else(|| {
            S3Error::invalid_request(
                "Checksum algorithm provided is unsupported. Please try again with any of the valid types: \
                 [CRC32, CRC32C, CRC64NVME, SHA1, SHA256]",
            )
        })
    }
}

/// A checksum's value with its algorithm.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub struct Checksum {
    algorithm: Algorithm,
    /// The first `algorithm.len()` bytes, CRCs big-endian; the rest is zero.
    bytes: [u8; 32],
}

impl Checksum {
    /// `None` if the length is not the algorithm's.
    pub fn from_bytes(algorithm: Algorithm, value: &[u8]) -> Option<Self> {
        if value.len() != algorithm.len() {
            return None;
        }
        let mut bytes = [0; 32];
        bytes[..value.len()].copy_from_slice(value);
        Some(Self { algorithm, bytes })
    }

    /// Reads the wire form. `None` if it is not base64 of the algorithm's length.
    pub fn from_base64(algorithm: Algorithm, text: &str) -> Option<Self> {
        Self::from_bytes(algorithm, &BASE64_STANDARD.decode(text).ok()?)
    }

    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.algorithm.len()]
    }

    /// The wire form.
    pub fn to_base64(self) -> String {
        BASE64_STANDARD.encode(self.as_bytes())
    }

    /// A CRC as the number it is; `None` for hashes.
    fn as_crc(&self) -> Option<u64> {
        let is_crc = hasher::crc_algorithm(self.algorithm).is_some();
        is_crc.then(|| self.as_bytes().iter().fold(0, |n, b| n << 8 | u64::from(*b)))
    }

    /// The CRC `value` of an algorithm that is one.
    fn from_crc(algorithm: Algorithm, value: u64) -> Self {
        let bytes = value.to_be_bytes();
        Self::from_bytes(algorithm, &bytes[bytes.len() - algorithm.len()..])
            .expect("a CRC is 4 or 8 bytes long")
    }
}

impl std::fmt::Debug for Checksum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.to_base64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_consistent() {
        for algorithm in Algorithm::ALL {
            assert_eq!(Algorithm::parse(&algorithm.name().to_lowercase()), Some(algorithm));
            assert_eq!(Algorithm::from_id(algorithm as u8), Some(algorithm));
            assert_eq!(Algorithm::from_header_name(&algorithm.header_name()), Some(algorithm));
            let suffix = algorithm.header_name().as_str().replace("x-amz-checksum-", "");
            assert_eq!(suffix.to_uppercase(), algorithm.name());
            assert_eq!(algorithm.element_name(), format!("Checksum{}", algorithm.name()));
        }
        assert_eq!(Algorithm::parse("CRC"), None);
        assert_eq!(Algorithm::from_id(0), None);
    }

    #[test]
    fn values_have_the_length_of_their_algorithm() {
        for algorithm in Algorithm::ALL {
            let value = vec![7; algorithm.len()];
            let checksum = Checksum::from_bytes(algorithm, &value).expect("the right length");
            assert_eq!(checksum.as_bytes(), value);
            assert_eq!(Checksum::from_base64(algorithm, &checksum.to_base64()), Some(checksum));
            assert_eq!(Checksum::from_bytes(algorithm, &value[1..]), None);
            assert_eq!(Checksum::from_bytes(algorithm, &[0; 33]), None);
        }
        for bad in ["", "AAAA", "AAAAAA", "AAAAAA=", "AAAAAA==\n", "!!!!!!==", "AAAAAB=="] {
            assert_eq!(Checksum::from_base64(Algorithm::Crc32, bad), None, "{bad}");
        }
    }

    #[test]
    fn the_algorithm_header() {
        let parse = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("x-amz-checksum-algorithm", http::HeaderValue::from_static(value));
            Algorithm::from_algorithm_header(&headers)
        };
        assert_eq!(parse("SHA256"), Ok(Some(Algorithm::Sha256)));
        assert!(parse("MD4").is_err() && parse("").is_err());
        assert_eq!(Algorithm::from_algorithm_header(&HeaderMap::new()), Ok(None));
    }
}
