//! The bytes of an object or part as they arrive: taken out of their framing, hashed, and handed to the engine.
//!
//! One pass over each piece while it is in the cache: framing, digests, the engine's copy into its stripes. Only the MD5 may lag
//! behind, within its bounds ([`super::body_digest`]); otherwise a body takes no memory but what the engine reserves for it, and a
//! slow engine slows the client.

use std::rc::Rc;

use basalt_engine::BodyWriter;
use http::HeaderMap;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};

use super::Service;
use super::body_digest::BodyDigest;
use super::context::Context;
use super::failure::Result;
use crate::http::{BodyError, BodyStream};
use crate::s3::body::ChunkedDecoder;
use crate::s3::checksum::requested::RequestedChecksums;
use crate::s3::checksum::{Algorithm, Checksum};
use crate::s3::error::{ErrorCode, S3Error};

/// The longest body of one PutObject or UploadPart, in bytes.
pub(super) const PAYLOAD_LEN_MAX: u64 = 5 << 30;

/// A payload that may be received: its headers are in order.
pub(super) struct Payload {
    service: Rc<Service>,
    /// Bytes of the object, without framing.
    len: u64,
    decoder: Option<ChunkedDecoder>,
    requested: RequestedChecksums,
    also: Option<Algorithm>,
}

/// The digests of a payload that arrived whole and is what its client said it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Received {
    pub(super) md5: [u8; 16],
    /// The client's, or by the default algorithm where it sent none.
    pub(super) checksum: Checksum,
    /// By the algorithm given to [`Payload::also`].
    pub(super) also: Option<Checksum>,
}

impl Payload {
    /// What the headers announce, before a byte of the body is asked for.
    ///
    /// # Errors
    /// `MissingContentLength`, `EntityTooLarge`, `NotImplemented` for a plain chunked body, and those of checksum and framing
    /// headers.
    pub(super) fn announced(context: &mut Context) -> Result<Payload> {
        let mode = context.identity.payload();
        let requested = RequestedChecksums::from_headers(&context.headers, mode)?;
        let signer = context.identity.take_chunk_signer();
        let decoder = ChunkedDecoder::from_headers(mode, signer, &context.headers)?;
        let len = match &decoder {
            Some(decoder) => decoder.decoded_len(),
            None => plain_len(&context.headers, &context.body)?,
        };
        if len > PAYLOAD_LEN_MAX {
            return Err(S3Error::new(ErrorCode::EntityTooLarge)
                .with("ProposedSize", len.to_string())
                .with("MaxSizeAllowed", PAYLOAD_LEN_MAX.to_string())
                .into());
        }
        Ok(Payload { service: Rc::clone(&context.service), len, decoder, requested, also: None })
    }

    /// Bytes of the object.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// The algorithm of the client's checksum, if it sends one.
    pub(super) fn algorithm(&self) -> Option<Algorithm> {
        self.requested.algorithm()
    }

    /// Computes a checksum by `algorithm` too, whatever the client sends.
    pub(super) fn also(self, algorithm: Algorithm) -> Payload {
        Payload { also: Some(algorithm), ..self }
    }

    /// Moves the whole body into `writer` and verifies everything that was claimed of it.
    ///
    /// # Errors
    /// `IncompleteBody`, `RequestTimeout`, a digest or signature that does not match, or the engine's. The writer must then
    /// be dropped.
    pub(super) async fn receive(
        mut self,
        body: &mut BodyStream,
        default: Algorithm,
        writer: &mut BodyWriter,
    ) -> Result<Received> {
        let algorithm = self.requested.algorithm().unwrap_or(default);
        let mut hasher = self.requested.hasher(default);
        if let Some(also) = self.also {
            hasher = hasher.checksum(also);
        }
        let mut digest = BodyDigest::new(&self.service, self.len, hasher);
        let mut received = 0u64;
        while let Some(piece) = body.next().await {
            let piece = piece.map_err(stopped)?;
            let mut rest = &piece[..];
            while !rest.is_empty() {
                let (data, consumed) = match &mut self.decoder {
                    None => (rest, rest.len()),
                    Some(decoder) => {
                        let step = decoder.decode(rest)?;
                        (&rest[step.data], step.consumed)
                    }
                };
                if !data.is_empty() {
                    received += data.len() as u64;
                    digest.update(piece.slice_ref(data));
                    writer.write(data).await?;
                }
                rest = &rest[consumed..];
            }
        }
        let trailers = match self.decoder {
            Some(decoder) => decoder.finish()?,
            None if received != self.len => return Err(ErrorCode::IncompleteBody.into()),
            None => HeaderMap::new(),
        };
        let digests = digest.finish().await;
        self.requested.verify(&digests, &trailers)?;
        Ok(Received {
            md5: digests.md5.expect("the hasher always computes the MD5"),
            checksum: digests.checksum(algorithm).expect("the hasher computes what was requested"),
            also: self.also.and_then(|also| digests.checksum(also)),
        })
    }
}

/// The S3 error for a body that stopped.
pub(super) fn stopped(error: BodyError) -> S3Error {
    S3Error::new(match error {
        BodyError::Incomplete => ErrorCode::IncompleteBody,
        BodyError::TooSlow => ErrorCode::RequestTimeout,
    })
}

/// The length of a body that is sent as it is. HTTP chunks alone do not say it in advance, and S3 does not take them.
fn plain_len(headers: &HeaderMap, body: &BodyStream) -> Result<u64> {
    if headers.contains_key(TRANSFER_ENCODING) {
        return Err(S3Error::new(ErrorCode::NotImplemented)
            .with("Header", TRANSFER_ENCODING.as_str())
            .into());
    }
    if !headers.contains_key(CONTENT_LENGTH) {
        return Err(ErrorCode::MissingContentLength.into());
    }
    body.content_length().ok_or_else(|| ErrorCode::MissingContentLength.into())
}
