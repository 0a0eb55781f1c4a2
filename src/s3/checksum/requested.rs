//! The checksums a request claims for its body, and their verification.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderMap, HeaderName};

use super::hasher::{Digests, Hasher};
use super::{Algorithm, Checksum, SINGLE};
use crate::s3::auth::PayloadMode;
use crate::s3::error::{ErrorCode, Result, S3Error};

/// Everything a request says its body must hash to.
#[derive(Clone, Debug, PartialEq)]
pub struct RequestedChecksums {
    content_md5: Option<[u8; 16]>,
    payload_sha256: Option<[u8; 32]>,
    claim: Option<Claim>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Claim {
    Header(Checksum),
    /// The value follows the body.
    Trailer(Algorithm),
}

impl RequestedChecksums {
    /// # Errors
    /// `InvalidDigest` for a malformed Content-MD5; `InvalidRequest` for a malformed, unknown or second
    /// checksum, for a trailer that the payload mode has no room for, and for an
    /// `x-amz-sdk-checksum-algorithm` that the request does not follow.
    pub fn from_headers(headers: &HeaderMap, payload: PayloadMode) -> Result<Self> {
        let in_header = checksum_header(headers)?;
        let in_trailer = announced_trailer(headers, payload)?;
        let claim = match (in_header, in_trailer) {
            (Some(_), Some(_)) => return Err(S3Error::invalid_request(SINGLE)),
            (Some(checksum), None) => Some(Claim::Header(checksum)),
            (None, trailer) => trailer.map(Claim::Trailer),
        };
        let payload_sha256 = match payload {
            PayloadMode::Signed(digest) => Some(digest),
            _ => None,
        };
        let requested = Self { content_md5: content_md5(headers)?, payload_sha256, claim };
        requested.check_sdk_algorithm(headers)?;
        Ok(requested)
    }

    /// The algorithm of the client's checksum, in header or trailer.
    pub fn algorithm(&self) -> Option<Algorithm> {
        self.claim.map(|claim| match claim {
            Claim::Header(checksum) => checksum.algorithm(),
            Claim::Trailer(algorithm) => algorithm,
        })
    }

    /// For operations whose body must be protected, such as DeleteObjects.
    ///
    /// # Errors
    /// `InvalidRequest` if there is neither a Content-MD5 nor a checksum.
    pub fn require_any(&self) -> Result<()> {
        if self.content_md5.is_some() || self.claim.is_some() {
            return Ok(());
        }
        Err(S3Error::invalid_request(
            "Missing required header for this request: Content-MD5 OR x-amz-checksum-*",
        ))
    }

    /// A hasher for everything that [`verify`](Self::verify) needs: the client's algorithm, or `default`
    /// where it named none. MD5 is always computed: it is the ETag.
    pub fn hasher(&self, default: Algorithm) -> Hasher {
        let hasher = Hasher::new().md5().checksum(self.algorithm().unwrap_or(default));
        if self.payload_sha256.is_some() { hasher.payload_sha256() } else { hasher }
    }

    /// Verifies the digests of the body that [`hasher`](Self::hasher) computed; `trailers` are those
    /// of the body decoder. Gives the client's checksum, `None` where it sent none.
    ///
    /// # Errors
    /// `XAmzContentSHA256Mismatch` or `BadDigest` if the body is not what was claimed, `InvalidRequest` or
    /// `MalformedTrailerError` for a trailer that is malformed or missing.
    pub fn verify(&self, digests: &Digests, trailers: &HeaderMap) -> Result<Option<Checksum>> {
        if let Some(expected) = self.payload_sha256 {
            let computed = digests.sha256.expect("the hasher computes what was requested");
            if computed != expected {
                return Err(S3Error::new(ErrorCode::XAmzContentSHA256Mismatch)
                    .with("ClientComputedContentSHA256", hex::encode(expected))
                    .with("S3ComputedContentSHA256", hex::encode(computed)));
            }
        }
        if let Some(expected) = self.content_md5 {
            let computed = digests.md5.expect("the hasher always computes the MD5");
            if computed != expected {
                return Err(S3Error::new(ErrorCode::BadDigest)
                    .with("ExpectedDigest", BASE64_STANDARD.encode(expected))
                    .with("CalculatedDigest", BASE64_STANDARD.encode(computed)));
            }
        }
        let expected = match self.claim {
            None => return Ok(None),
            Some(Claim::Header(checksum)) => checksum,
            Some(Claim::Trailer(algorithm)) => trailing_checksum(algorithm, trailers)?,
        };
        let computed =
            digests.checksum(expected.algorithm()).expect("the hasher computes what was requested");
        if computed != expected {
            return Err(checksum_mismatch(expected.algorithm()));
        }
        Ok(Some(expected))
    }

    /// An SDK that names an algorithm must also use it.
    fn check_sdk_algorithm(&self, headers: &HeaderMap) -> Result<()> {
        let Some(value) = headers.get("x-amz-sdk-checksum-algorithm") else { return Ok(()) };
        let stated = value.to_str().ok().and_then(Algorithm::parse);
        match (stated, self.algorithm()) {
            (Some(stated), Some(used)) if stated == used => Ok(()),
            (Some(_), None) => Err(S3Error::invalid_request(
                "x-amz-sdk-checksum-algorithm specified, but no corresponding x-amz-checksum-* or \
                 x-amz-trailer headers were found.",
            )),
            _ => Err(S3Error::invalid_request("Value for x-amz-sdk-checksum-algorithm header is invalid.")),
        }
    }
}

/// The object is not what its client computed.
pub(super) fn checksum_mismatch(algorithm: Algorithm) -> S3Error {
    let name = algorithm.name();
    S3Error::new(ErrorCode::BadDigest)
        .message(format!("The {name} you specified did not match the calculated checksum."))
}

pub(super) fn invalid_value(name: &HeaderName) -> S3Error {
    S3Error::invalid_request(format!("Value for {name} header is invalid."))
}

/// Headers that begin like checksums and are none.
const NOT_VALUES: [&str; 3] = ["x-amz-checksum-algorithm", "x-amz-checksum-mode", "x-amz-checksum-type"];

/// The one header that carries a checksum, and its text.
pub(super) fn single_checksum_header(headers: &HeaderMap) -> Result<Option<(Algorithm, &str)>> {
    let mut found = None;
    for (name, value) in headers {
        if !name.as_str().starts_with("x-amz-checksum-") || NOT_VALUES.contains(&name.as_str()) {
            continue;
        }
        let algorithm = Algorithm::from_header_name(name).ok_or_else(|| {
            S3Error::invalid_request("The algorithm type you specified in x-amz-checksum- header is invalid.")
        })?;
        let text = value.to_str().map_err(|_| invalid_value(name))?;
        if found.replace((algorithm, text)).is_some() {
            return Err(S3Error::invalid_request(SINGLE));
        }
    }
    Ok(found)
}

fn checksum_header(headers: &HeaderMap) -> Result<Option<Checksum>> {
    let Some((algorithm, text)) = single_checksum_header(headers)? else { return Ok(None) };
    let checksum = Checksum::from_base64(algorithm, text.trim());
    checksum.map(Some).ok_or_else(|| invalid_value(&algorithm.header_name()))
}

fn announced_trailer(headers: &HeaderMap, payload: PayloadMode) -> Result<Option<Algorithm>> {
    let mut announced = None;
    let values = headers.get_all("x-amz-trailer").iter();
    for name in values.flat_map(|value| value.as_bytes().split(|b| *b == b',')).map(<[u8]>::trim_ascii) {
        let name = HeaderName::from_bytes(name).ok();
        let algorithm = name.as_ref().and_then(Algorithm::from_header_name).ok_or_else(|| {
            S3Error::invalid_request("The value specified in the x-amz-trailer header is not supported")
        })?;
        if announced.replace(algorithm).is_some() {
            return Err(S3Error::invalid_request(SINGLE));
        }
    }
    let has_trailer = matches!(
        payload,
        PayloadMode::StreamingUnsignedTrailer | PayloadMode::StreamingSigned { trailer: true }
    );
    if announced.is_some() && !has_trailer {
        return Err(S3Error::invalid_request(
            "The x-amz-trailer header needs an x-amz-content-sha256 that ends in -TRAILER.",
        ));
    }
    Ok(announced)
}

fn trailing_checksum(algorithm: Algorithm, trailers: &HeaderMap) -> Result<Checksum> {
    let name = algorithm.header_name();
    let value = trailers.get(&name).ok_or(ErrorCode::MalformedTrailerError)?;
    let checksum = value.to_str().ok().and_then(|text| Checksum::from_base64(algorithm, text));
    checksum.ok_or_else(|| S3Error::invalid_request(format!("Value for {name} trailing header is invalid.")))
}

fn content_md5(headers: &HeaderMap) -> Result<Option<[u8; 16]>> {
    let mut values = headers.get_all("content-md5").iter();
    let Some(value) = values.next() else { return Ok(None) };
    let digest = BASE64_STANDARD.decode(value.as_bytes().trim_ascii()).ok().and_then(|d| d.try_into().ok());
    match (digest, values.next()) {
        (Some(digest), None) => Ok(Some(digest)),
        _ => Err(S3Error::new(ErrorCode::InvalidDigest)
            .with("Content-MD5", String::from_utf8_lossy(value.as_bytes()))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::DEFAULT_ALGORITHM;
    use super::*;
    use http::HeaderValue;

    /// Checksums of `hello world`, by independent tools.
    const BODY: &[u8] = b"hello world";
    const CRC32: (&str, &str) = ("x-amz-checksum-crc32", "DUoRhQ==");
    const CRC32C: (&str, &str) = ("x-amz-checksum-crc32c", "yZRlqg==");
    const SHA1: (&str, &str) = ("x-amz-checksum-sha1", "Kq5sNclPz7QV2+lfQIuc6R7oRu0=");
    const SHA256: (&str, &str) = ("x-amz-checksum-sha256", "uU0nuZNNPgilLlLX2n2r+sSE7+N6U4DukIj3rOLvzek=");
    const MD5: (&str, &str) = ("content-md5", "XrY7u+Ae7tCTyyK7j1rNww==");
    const TRAILER: (&str, &str) = ("x-amz-trailer", "x-amz-checksum-crc32");

    fn map(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse::<HeaderValue>().expect("a header value"));
        }
        headers
    }

    fn requested(pairs: &[(&'static str, &str)], payload: PayloadMode) -> Result<RequestedChecksums> {
        RequestedChecksums::from_headers(&map(pairs), payload)
    }

    fn verify(
        pairs: &[(&'static str, &str)],
        payload: PayloadMode,
        trailers: &[(&'static str, &str)],
    ) -> Result<Option<Checksum>> {
        let requested = requested(pairs, payload)?;
        let mut hasher = requested.hasher(DEFAULT_ALGORITHM);
        hasher.update(BODY);
        requested.verify(&hasher.finish(), &map(trailers))
    }

    fn code(result: Result<Option<Checksum>>) -> ErrorCode {
        result.expect_err("the request must be refused").code()
    }

    #[test]
    fn right_checksums_pass_and_wrong_ones_do_not() {
        for (name, value) in [CRC32, CRC32C, SHA1, SHA256] {
            let checksum = verify(&[(name, value), MD5], PayloadMode::Unsigned, &[]).expect("right");
            let checksum = checksum.expect("the client's own");
            assert_eq!(
                (checksum.algorithm().header_name().as_str(), checksum.to_base64()),
                (name, value.into())
            );
            let wrong = Checksum::from_bytes(checksum.algorithm(), &vec![1; checksum.algorithm().len()]);
            let wrong = wrong.expect("the right length").to_base64();
            let error = verify(&[(name, &wrong)], PayloadMode::Unsigned, &[]).expect_err("wrong");
            assert_eq!(error.code(), ErrorCode::BadDigest);
            let algorithm = checksum.algorithm().name();
            assert_eq!(
                error.text(),
                format!("The {algorithm} you specified did not match the calculated checksum.")
            );
        }
        assert_eq!(verify(&[MD5], PayloadMode::Unsigned, &[]), Ok(None));
        let wrong_md5 = verify(&[("content-md5", "AAAAAAAAAAAAAAAAAAAAAA==")], PayloadMode::Unsigned, &[]);
        let error = wrong_md5.expect_err("wrong");
        assert_eq!(error.code(), ErrorCode::BadDigest);
        assert_eq!(error.field("CalculatedDigest"), Some(MD5.1));
    }

    #[test]
    fn behaviour_29_without_a_checksum_crc64nvme_is_computed() {
        let requested = requested(&[], PayloadMode::Unsigned).expect("nothing to refuse");
        assert_eq!(requested.algorithm(), None);
        let mut hasher = requested.hasher(DEFAULT_ALGORITHM);
        hasher.update(b"123456789");
        let digests = hasher.finish();
        assert_eq!(requested.verify(&digests, &HeaderMap::new()), Ok(None));
        let checksum = digests.checksum(Algorithm::Crc64Nvme).expect("computed");
        assert_eq!(hex::encode(checksum.as_bytes()), "ae8b14860a799888");
        assert!(digests.md5.is_some());
    }

    #[test]
    fn the_signed_payload_hash_is_held() {
        let digest = Checksum::from_base64(Algorithm::Sha256, SHA256.1).expect("valid");
        let mut digest: [u8; 32] = digest.as_bytes().try_into().expect("32 bytes");
        assert_eq!(verify(&[], PayloadMode::Signed(digest), &[]), Ok(None));
        digest[0] ^= 1;
        let error = verify(&[], PayloadMode::Signed(digest), &[]).expect_err("wrong");
        assert_eq!(error.code(), ErrorCode::XAmzContentSHA256Mismatch);
        assert_eq!(error.field("ClientComputedContentSHA256"), Some(hex::encode(digest).as_str()));
    }

    #[test]
    fn trailers_are_verified_like_headers() {
        let mode = PayloadMode::StreamingUnsignedTrailer;
        assert!(verify(&[TRAILER], mode, &[CRC32]).expect("right").is_some());
        assert_eq!(
            code(verify(&[TRAILER], mode, &[("x-amz-checksum-crc32", "AAAAAA==")])),
            ErrorCode::BadDigest
        );
        assert_eq!(
            code(verify(&[TRAILER], mode, &[("x-amz-checksum-crc32", "A")])),
            ErrorCode::InvalidRequest
        );
        assert_eq!(code(verify(&[TRAILER], mode, &[])), ErrorCode::MalformedTrailerError);
        assert_eq!(code(verify(&[TRAILER], PayloadMode::Unsigned, &[CRC32])), ErrorCode::InvalidRequest);
        for bad in ["x-amz-checksum-md4", "x-amz-meta-a", "", "x-amz-checksum-crc32,x-amz-checksum-sha1"] {
            assert_eq!(
                code(verify(&[("x-amz-trailer", bad)], mode, &[])),
                ErrorCode::InvalidRequest,
                "{bad}"
            );
        }
    }

    #[test]
    fn only_one_checksum() {
        let mode = PayloadMode::StreamingUnsignedTrailer;
        for pairs in [[CRC32, CRC32C], [CRC32, CRC32], [CRC32C, TRAILER]] {
            let error = requested(&pairs, mode).expect_err("two checksums");
            assert_eq!((error.code(), error.text()), (ErrorCode::InvalidRequest, SINGLE));
        }
        let others = [("x-amz-checksum-mode", "ENABLED"), ("x-amz-checksum-type", "COMPOSITE"), CRC32];
        assert!(requested(&others, mode).is_ok());
    }

    #[test]
    fn malformed_values() {
        for bad in ["", "x", "AAAAAA=", "AAAAAAAAAAA=", "AAAAAAAAAAAAAAAAAAAAAA"] {
            let md5 = requested(&[("content-md5", bad)], PayloadMode::Unsigned).expect_err(bad);
            assert_eq!(md5.code(), ErrorCode::InvalidDigest);
            let crc = requested(&[("x-amz-checksum-crc32", bad)], PayloadMode::Unsigned).expect_err(bad);
            assert_eq!(crc.code(), ErrorCode::InvalidRequest);
            assert_eq!(crc.text(), "Value for x-amz-checksum-crc32 header is invalid.");
        }
        assert_eq!(code(verify(&[MD5, MD5], PayloadMode::Unsigned, &[])), ErrorCode::InvalidDigest);
        let unknown = ("x-amz-checksum-md4", "AAAA");
        assert_eq!(code(verify(&[unknown], PayloadMode::Unsigned, &[])), ErrorCode::InvalidRequest);
    }

    #[test]
    fn the_sdk_header_binds_the_sdk() {
        let sdk = |value| ("x-amz-sdk-checksum-algorithm", value);
        assert!(requested(&[sdk("CRC32"), CRC32], PayloadMode::Unsigned).is_ok());
        assert!(requested(&[sdk("crc32"), TRAILER], PayloadMode::StreamingUnsignedTrailer).is_ok());
        for pairs in [vec![sdk("CRC32")], vec![sdk("SHA1"), CRC32], vec![sdk("X"), CRC32], vec![sdk("X")]] {
            assert_eq!(code(verify(&pairs, PayloadMode::Unsigned, &[])), ErrorCode::InvalidRequest);
        }
    }

    #[test]
    fn behaviour_14_some_operations_need_one() {
        let requires = |pairs: &[(&'static str, &str)]| {
            requested(pairs, PayloadMode::Unsigned).expect("well-formed").require_any()
        };
        assert!(requires(&[MD5]).is_ok() && requires(&[CRC32]).is_ok());
        assert_eq!(requires(&[]).expect_err("none").code(), ErrorCode::InvalidRequest);
    }
}
