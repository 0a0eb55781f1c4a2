//! XML bodies of requests: read whole, within their limit, and verified like any other body.

use http::HeaderMap;

use super::context::Context;
use super::failure::Result;
use super::payload::stopped;
use crate::s3::body::ChunkedDecoder;
use crate::s3::checksum::DEFAULT_ALGORITHM;
use crate::s3::checksum::requested::RequestedChecksums;
use crate::s3::error::ErrorCode;

/// What the checksum headers of a request with a document are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Checksums {
    /// The document, which must have one.
    Required,
    /// The document, if there are any.
    Optional,
    /// Not the document: they describe the object that the request makes.
    OfTheObject,
}

impl Context {
    /// Reads the request's document.
    ///
    /// # Errors
    /// `MaxMessageLengthExceeded` beyond `len_max` bytes; `InvalidRequest` for a missing checksum; those of a body that is not
    /// what was claimed.
    pub(super) async fn document(&mut self, len_max: usize, checksums: Checksums) -> Result<Vec<u8>> {
        let mode = self.identity.payload();
        let requested = match checksums {
            Checksums::OfTheObject => {
                RequestedChecksums::from_headers(&without_object_checksums(&self.headers), mode)?
            }
            _ => RequestedChecksums::from_headers(&self.headers, mode)?,
        };
        if checksums == Checksums::Required {
            requested.require_any()?;
        }
        let signer = self.identity.take_chunk_signer();
        let mut decoder = ChunkedDecoder::from_headers(mode, signer, &self.headers)?;
        let announced = decoder.as_ref().map(ChunkedDecoder::decoded_len).or(self.body.content_length());
        if announced.is_some_and(|len| len > len_max as u64) {
            return Err(ErrorCode::MaxMessageLengthExceeded.into());
        }
        let mut document = Vec::new();
        while let Some(piece) = self.body.next().await {
            let piece = piece.map_err(stopped)?;
            let mut rest = &piece[..];
            while !rest.is_empty() {
                let (data, consumed) = match &mut decoder {
                    None => (rest, rest.len()),
                    Some(decoder) => {
                        let step = decoder.decode(rest)?;
                        (&rest[step.data], step.consumed)
                    }
                };
                if document.len() + data.len() > len_max {
                    return Err(ErrorCode::MaxMessageLengthExceeded.into());
                }
                document.extend_from_slice(data);
                rest = &rest[consumed..];
            }
        }
        let trailers = decoder.map(ChunkedDecoder::finish).transpose()?.unwrap_or_default();
        let mut hasher = requested.hasher(DEFAULT_ALGORITHM);
        hasher.update(&document);
        requested.verify(&hasher.finish(), &trailers)?;
        Ok(document)
    }
}

fn without_object_checksums(headers: &HeaderMap) -> HeaderMap {
    let is_of_the_object =
        |name: &str| name.starts_with("x-amz-checksum-") || name == "x-amz-sdk-checksum-algorithm";
    headers
        .iter()
        .filter(|(name, _)| !is_of_the_object(name.as_str()))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}
