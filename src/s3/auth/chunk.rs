//! Signatures of a streamed body: each chunk signs its data and the signature before it.
//!
//! The chain starts with the request's own signature, so chunks cannot be dropped, reordered or
//! taken from another request. Source: Amazon S3 API Reference, "Signature calculations for the
//! authorization header: Transferring payload in multiple chunks" and "… for trailing headers".

use sha2::{Digest, Sha256};

use super::mismatch;
use super::signing::{Signature, SigningKey, sha256_hex};
use crate::s3::error::Result;

/// SHA-256 of nothing: the place where a chunk could sign headers of its own.
const EMPTY_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// Verifies the chain of one body. Signatures must be presented in the order of the body.
#[derive(Debug)]
pub struct ChunkSigner {
    pub(super) key: SigningKey,
    pub(super) access_key: String,
    /// Basic-form text of the request's timestamp.
    pub(super) timestamp: String,
    pub(super) scope: String,
    pub(super) previous: Signature,
}

impl ChunkSigner {
    /// Verifies the signature of a chunk, whose data has been hashed by the caller.
    ///
    /// # Errors
    /// `SignatureDoesNotMatch`.
    pub fn verify_chunk(&mut self, data: Sha256, presented: &[u8]) -> Result<()> {
        let tail = format!("{EMPTY_SHA256}\n{}", hex::encode(data.finalize()));
        self.verify("AWS4-HMAC-SHA256-PAYLOAD", &tail, presented)
    }

    /// Verifies the signature of the trailing headers, given as `name:value\n` lines sorted by name.
    ///
    /// # Errors
    /// `SignatureDoesNotMatch`.
    pub fn verify_trailer(&mut self, canonical_trailer: &[u8], presented: &[u8]) -> Result<()> {
        self.verify("AWS4-HMAC-SHA256-TRAILER", &sha256_hex(canonical_trailer), presented)
    }

    fn verify(&mut self, kind: &str, tail: &str, presented: &[u8]) -> Result<()> {
        let previous = self.previous.as_str();
        let string_to_sign = format!("{kind}\n{}\n{}\n{previous}\n{tail}", self.timestamp, self.scope);
        let signature = self.key.sign(string_to_sign.as_bytes());
        if !signature.matches(presented) {
            return Err(mismatch(&self.access_key, &string_to_sign, &String::from_utf8_lossy(presented)));
        }
        self.previous = signature;
        Ok(())
    }
}
