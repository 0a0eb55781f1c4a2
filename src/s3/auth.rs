//! Authentication: AWS Signature Version 4, in the `Authorization` header or a presigned URL.
//!
//! [`authenticate`] is a pure function of the request's head, the credentials, the time and the
//! region policy. It answers who signed the request and how the body is protected; what that
//! identity may do, and whether an anonymous request may do anything, is decided elsewhere. The order
//! of checks is: shape of the claim, scope, time, required signed headers, key, signature; so that the
//! expensive part comes last and a clear mistake gets the clear error.

mod canonical;
mod chunk;
mod payload;
mod presented;
mod signing;
mod timestamp;

#[cfg(test)]
mod tests;

pub use chunk::ChunkSigner;
pub use payload::PayloadMode;
pub use presented::Place;
pub use signing::{SIGNING_KEYS_MAX, Secret, SigningKeys};

use http::{HeaderMap, Method};

use super::error::{ErrorCode, Result, S3Error};
use super::query::Query;
use canonical::{PathForm, canonical_request};
use presented::Presented;
use signing::{Scope, Signature, SigningKey, sha256_hex};

/// How far a request's time may be from the server's, in seconds, either way.
pub const CLOCK_SKEW_SECS_MAX: i64 = 15 * 60;

/// The services whose credential scope this endpoint accepts.
const SERVICES: [&str; 1] = ["s3"];

/// The parts of a request that a signature covers, as they arrived.
#[derive(Clone, Copy, Debug)]
pub struct RequestHead<'a> {
    pub method: &'a Method,
    /// Raw and percent-encoded, with the leading slash.
    pub path: &'a str,
    /// Parsed from the raw query by the one parser that operations use too, so that what was signed
    /// is what is carried out.
    pub query: &'a Query<'a>,
    /// Including `Host`, which a request in absolute form has from its target.
    pub headers: &'a HeaderMap,
}

/// Where secrets come from. Implemented by any `Fn(&str) -> Option<Secret>`.
pub trait Credentials {
    /// The secret of an access key, `None` if there is no such key or it is disabled.
    fn secret(&self, access_key: &str) -> Option<Secret>;
}

impl<F: Fn(&str) -> Option<Secret>> Credentials for F {
    fn secret(&self, access_key: &str) -> Option<Secret> {
        self(access_key)
    }
}

/// Which regions a credential scope may name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum RegionPolicy {
    /// Every region is accepted; `report` is what the server calls its own.
    Any {
        report: String,
    },
    Exactly(String),
}

impl RegionPolicy {
    /// The region this server says it is in.
    pub fn name(&self) -> &str {
        match self {
            Self::Any { report } => report,
            Self::Exactly(region) => region,
        }
    }
}

/// Who sent a request.
#[derive(Debug)]
pub enum Identity {
    /// No credentials of any kind were presented. The caller decides what that may do.
    Anonymous {
        payload: PayloadMode,
    },
    Signed(Signed),
}

/// A request whose signature holds.
#[derive(Debug)]
pub struct Signed {
    pub access_key: String,
    /// Region and service of the credential scope.
    pub region: String,
    pub service: String,
    pub place: Place,
    pub payload: PayloadMode,
    /// Present exactly for [`PayloadMode::StreamingSigned`]; moves into the body decoder.
    pub chunk_signer: Option<Box<ChunkSigner>>,
}

impl Identity {
    pub fn payload(&self) -> PayloadMode {
        match self {
            Self::Anonymous { payload } => *payload,
            Self::Signed(signed) => signed.payload,
        }
    }

    pub fn access_key(&self) -> Option<&str> {
        match self {
            Self::Anonymous { .. } => None,
            Self::Signed(signed) => Some(&signed.access_key),
        }
    }

    /// Takes the chunk signer for the body decoder.
    pub fn take_chunk_signer(&mut self) -> Option<Box<ChunkSigner>> {
        match self {
            Self::Anonymous { .. } => None,
            Self::Signed(signed) => signed.chunk_signer.take(),
        }
    }
}

/// Verifies the signature of a request head. `now_unix` is the server's time in seconds since the
/// Unix epoch.
///
/// # Errors
/// The code AWS documents: `AuthorizationHeaderMalformed`, `AuthorizationQueryParametersError`,
/// `InvalidArgument`, `InvalidRequest`, `RequestTimeTooSkewed`, `AccessDenied` (expired, or headers
/// left unsigned), `InvalidAccessKeyId`, `InvalidToken`, `SignatureDoesNotMatch`, `NotImplemented`.
pub fn authenticate(
    head: &RequestHead<'_>,
    credentials: &impl Credentials,
    now_unix: i64,
    region: &RegionPolicy,
    keys: &mut SigningKeys,
) -> Result<Identity> {
    let Some(claim) = Presented::parse(head)? else {
        return Ok(Identity::Anonymous { payload: PayloadMode::of_anonymous(head)? });
    };
    check_scope(&claim, region)?;
    let (payload, payload_hash) = PayloadMode::of_signed(head, claim.place)?;
    check_time(&claim, now_unix)?;
    check_required_headers(&claim, head.headers)?;
    let secret = credentials.secret(claim.access_key).ok_or_else(|| {
        S3Error::new(ErrorCode::InvalidAccessKeyId).with("AWSAccessKeyId", claim.access_key)
    })?;
    if let Some(token) = claim.session_token {
        // Only temporary credentials have tokens, and there are none yet.
        return Err(S3Error::new(ErrorCode::InvalidToken).with("Token-0", token));
    }

    let scope = claim.scope.to_string();
    let (key, is_new) = match keys.get(claim.access_key, claim.scope, &secret) {
        Some(key) => (key.clone(), false),
        None => (SigningKey::derive(&secret, claim.scope), true),
    };
    let check = |path_form| -> Result<Check> {
        let request = canonical_request(head, &claim.signed_headers, payload_hash, path_form)?;
        let string_to_sign =
            [presented::ALGORITHM, claim.timestamp.as_str(), &scope, &sha256_hex(&request)].join("\n");
        let signature = key.sign(string_to_sign.as_bytes());
        let holds = signature.matches(claim.signature.as_bytes());
        Ok(Check { request, string_to_sign, signature, holds })
    };
    let Check { request, string_to_sign, signature, mut holds } = check(PathForm::Encoded)?;
    let mut seed = signature;
    if !holds {
        // Either form names the same bytes, so accepting both loses nothing.
        let as_sent = check(PathForm::AsSent)?;
        (seed, holds) = (as_sent.signature, as_sent.holds);
    }
    if !holds {
        return Err(mismatch(claim.access_key, &string_to_sign, claim.signature)
            .with("CanonicalRequest", String::from_utf8_lossy(&request))
            .with("CanonicalRequestBytes", spaced_hex(&request)));
    }
    let chunk_signer = matches!(payload, PayloadMode::StreamingSigned { .. }).then(|| {
        Box::new(ChunkSigner {
            key: key.clone(),
            access_key: claim.access_key.to_owned(),
            timestamp: claim.timestamp.as_str().to_owned(),
            scope: scope.clone(),
            previous: seed,
        })
    });
    if is_new {
        keys.insert(claim.access_key, claim.scope, secret, key);
    }
    Ok(Identity::Signed(Signed {
        access_key: claim.access_key.to_owned(),
        region: claim.scope.region.to_owned(),
        service: claim.scope.service.to_owned(),
        place: claim.place,
        payload,
        chunk_signer,
    }))
}

/// One try at a signature.
struct Check {
    request: Vec<u8>,
    string_to_sign: String,
    signature: Signature,
    holds: bool,
}

fn check_scope(claim: &Presented<'_>, policy: &RegionPolicy) -> Result<()> {
    let Scope { region, service, .. } = claim.scope;
    if !SERVICES.contains(&service) {
        let detail = format!("incorrect service \"{service}\". This endpoint belongs to \"s3\".");
        return Err(presented::malformed(claim.place, &detail));
    }
    match policy {
        RegionPolicy::Exactly(own) if own != region => {
            let detail = format!("the region '{region}' is wrong; expecting '{own}'");
            Err(presented::malformed(claim.place, &detail).with("Region", own.as_str()))
        }
        _ => Ok(()),
    }
}

/// A header-signed request must be recent; a presigned one must have begun and not have ended.
fn check_time(claim: &Presented<'_>, now_unix: i64) -> Result<()> {
    let signed_at = claim.timestamp.unix();
    let server_time = || timestamp::iso8601(now_unix);
    let Some(expires_secs) = claim.expires_secs else {
        if now_unix.abs_diff(signed_at) > CLOCK_SKEW_SECS_MAX as u64 {
            return Err(S3Error::new(ErrorCode::RequestTimeTooSkewed)
                .with("RequestTime", claim.timestamp.as_str())
                .with("ServerTime", server_time())
                .with("MaxAllowedSkewMilliseconds", (CLOCK_SKEW_SECS_MAX * 1000).to_string()));
        }
        return Ok(());
    };
    let denied = |message: &'static str| {
        S3Error::new(ErrorCode::AccessDenied)
            .message(message)
            .with("X-Amz-Expires", expires_secs.to_string())
            .with("Expires", timestamp::iso8601(signed_at + expires_secs))
            .with("ServerTime", server_time())
    };
    if signed_at.saturating_sub(now_unix) > CLOCK_SKEW_SECS_MAX {
        return Err(denied("Request is not valid yet"));
    }
    if now_unix > signed_at + expires_secs {
        return Err(denied("Request has expired"));
    }
    Ok(())
}

/// `host` and every `x-amz-*` header must be signed: an unsigned one could have been added on the way.
fn check_required_headers(claim: &Presented<'_>, headers: &HeaderMap) -> Result<()> {
    let signed = |name: &str| claim.signed_headers.binary_search(&name).is_ok();
    let mut unsigned: Vec<&str> = headers
        .keys()
        .map(|name| name.as_str())
        .chain(std::iter::once("host"))
        .filter(|name| (*name == "host" || name.starts_with("x-amz-")) && !signed(name))
        .collect();
    if unsigned.is_empty() {
        return Ok(());
    }
    unsigned.sort_unstable();
    unsigned.dedup();
    Err(S3Error::new(ErrorCode::AccessDenied)
        .message("There were headers present in the request which were not signed")
        .with("HeadersNotSigned", unsigned.join(", ")))
}

/// `SignatureDoesNotMatch` with what a client author needs to find the difference. None of it is
/// secret: it is all derived from the request.
fn mismatch(access_key: &str, string_to_sign: &str, provided: &str) -> S3Error {
    S3Error::new(ErrorCode::SignatureDoesNotMatch)
        .with("AWSAccessKeyId", access_key)
        .with("StringToSign", string_to_sign)
        .with("SignatureProvided", provided)
        .with("StringToSignBytes", spaced_hex(string_to_sign.as_bytes()))
}

/// `41 57 53`, as AWS prints bytes in error documents.
fn spaced_hex(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() * 3);
    for (i, byte) in bytes.iter().enumerate() {
        if i > 0 {
            out.push(' ');
        }
        for digit in [byte >> 4, byte & 15] {
            out.push(char::from(b"0123456789abcdef"[usize::from(digit)]));
        }
    }
    out
}
