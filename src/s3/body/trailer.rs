//! The trailer section: headers after the last chunk, announced in `x-amz-trailer`.
//!
//! Only checksums may trail, and exactly the announced ones must: a trailer that nobody announced
//! was not covered by the request's signature, and one that is missing would let a body pass unchecked.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::{TRAILER_LEN_MAX, TRAILERS_MAX};
use crate::s3::error::{ErrorCode, Result, S3Error};

const SIGNATURE: &[u8] = b"x-amz-trailer-signature";

/// The names in `x-amz-trailer`.
///
/// # Errors
/// `MalformedTrailerError` if none are announced, `InvalidRequest` for one that is not a checksum.
pub(super) fn announced(headers: &HeaderMap) -> Result<Vec<HeaderName>> {
    let unsupported =
        || S3Error::invalid_request("The value specified in the x-amz-trailer header is not supported");
    let mut names = Vec::new();
    for value in headers.get_all("x-amz-trailer") {
        for name in value.as_bytes().split(|b| *b == b',').map(<[u8]>::trim_ascii) {
            let name = HeaderName::from_bytes(name).map_err(|_| unsupported())?;
            if !name.as_str().starts_with("x-amz-checksum-") || names.contains(&name) {
                return Err(unsupported());
            }
            names.push(name);
            if names.len() > TRAILERS_MAX {
                return Err(unsupported());
            }
        }
    }
    if names.is_empty() { Err(ErrorCode::MalformedTrailerError.into()) } else { Ok(names) }
}

/// The section as far as it has been read.
#[derive(Debug)]
pub(super) struct TrailerSection {
    announced: Vec<HeaderName>,
    is_signed: bool,
    received: HeaderMap,
    signature: Option<Vec<u8>>,
    len: usize,
}

impl TrailerSection {
    pub(super) fn new(announced: Vec<HeaderName>, is_signed: bool) -> Self {
        Self { announced, is_signed, received: HeaderMap::new(), signature: None, len: 0 }
    }

    /// Bytes that the section may still grow by.
    pub(super) fn remaining_len(&self) -> usize {
        TRAILER_LEN_MAX - self.len.min(TRAILER_LEN_MAX)
    }

    /// Adds a line, given without its end. Answers whether it was the one that ends the section.
    ///
    /// AWS's own examples end a trailing header with LF and then CRLF, which reads as an empty line; in
    /// a signed section an empty line therefore ends it only after the signature.
    pub(super) fn push_line(&mut self, line: &[u8]) -> Result<bool> {
        self.len += line.len() + "\r\n".len();
        if line.is_empty() {
            return Ok(!self.is_signed || self.signature.is_some());
        }
        let colon = line.iter().position(|b| *b == b':').ok_or_else(malformed)?;
        let (name, value) = (line[..colon].trim_ascii(), line[colon + 1..].trim_ascii());
        if self.signature.is_some() {
            return Err(malformed());
        }
        if self.is_signed && name.eq_ignore_ascii_case(SIGNATURE) {
            self.signature = Some(value.to_vec());
            return Ok(false);
        }
        let name = HeaderName::from_bytes(name).map_err(|_| malformed())?;
        let value = HeaderValue::from_bytes(value).map_err(|_| malformed())?;
        if !self.announced.contains(&name) || self.received.insert(name, value).is_some() {
            return Err(malformed());
        }
        Ok(false)
    }

    /// Checks that everything announced came. In a signed section, gives the canonical form of the
    /// headers (`name:value\n`, sorted by name) and the signature it must have.
    pub(super) fn check_complete(&self) -> Result<Option<(Vec<u8>, &[u8])>> {
        if self.received.len() != self.announced.len() {
            return Err(malformed());
        }
        let Some(signature) = &self.signature else { return Ok(None) };
        let mut headers: Vec<(&str, &[u8])> =
            self.received.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        headers.sort_unstable();
        let lines = headers.iter().map(|(name, value)| [name.as_bytes(), b":", value, b"\n"].concat());
        Ok(Some((lines.collect::<Vec<_>>().concat(), signature)))
    }

    pub(super) fn into_headers(self) -> HeaderMap {
        self.received
    }
}

fn malformed() -> S3Error {
    ErrorCode::MalformedTrailerError.into()
}
