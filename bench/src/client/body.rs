//! What a request carries: nothing, a small document, or the computed bytes of an object.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use crc_fast::CrcAlgorithm;
use http_body::{Frame, SizeHint};
use sha2::{Digest as _, Sha256};

use crate::content::Content;
use crate::plan::ObjectChecksum;

/// Bytes computed at a time: large enough for one cheap system call, small enough to stay in the cache
/// between being computed and being sent.
const CHUNK_BYTES: usize = 64 << 10;

/// Which checksum goes with an object, and where.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Checksum {
    algorithm: CrcAlgorithm,
    header: &'static str,
    /// As `x-amz-checksum-algorithm` says it, and the element of CompleteMultipartUpload.
    pub name: &'static str,
    pub element: &'static str,
    in_trailer: bool,
}

impl Checksum {
    pub(crate) fn new(choice: ObjectChecksum) -> Option<Self> {
        let crc32 = Self {
            algorithm: CrcAlgorithm::Crc32IsoHdlc,
            header: "x-amz-checksum-crc32",
            name: "CRC32",
            element: "ChecksumCRC32",
            in_trailer: false,
        };
        let crc32c = Self {
            algorithm: CrcAlgorithm::Crc32Iscsi,
            header: "x-amz-checksum-crc32c",
            name: "CRC32C",
            element: "ChecksumCRC32C",
            in_trailer: false,
        };
        let crc64nvme = Self {
            algorithm: CrcAlgorithm::Crc64Nvme,
            header: "x-amz-checksum-crc64nvme",
            name: "CRC64NVME",
            element: "ChecksumCRC64NVME",
            in_trailer: false,
        };
        match choice {
            ObjectChecksum::None => None,
            ObjectChecksum::Crc32 => Some(crc32),
            ObjectChecksum::Crc32c => Some(crc32c),
            ObjectChecksum::Crc64nvme => Some(crc64nvme),
            ObjectChecksum::Crc32Trailer => Some(Self { in_trailer: true, ..crc32 }),
            ObjectChecksum::Crc32cTrailer => Some(Self { in_trailer: true, ..crc32c }),
            ObjectChecksum::Crc64nvmeTrailer => Some(Self { in_trailer: true, ..crc64nvme }),
        }
    }

    fn encode(self, crc: u64) -> String {
        match self.algorithm {
            CrcAlgorithm::Crc64Nvme => BASE64.encode(crc.to_be_bytes()),
            _ => BASE64.encode((crc as u32).to_be_bytes()),
        }
    }
}

/// What a request carries.
#[derive(Clone, Debug)]
pub(crate) enum Payload {
    Empty,
    Text(Bytes),
    /// `len` bytes of an object from `offset` on.
    Object {
        content: Content,
        offset: u64,
        len: u64,
        checksum: Option<Checksum>,
    },
}

impl Payload {
    pub(crate) fn has_trailer(&self) -> bool {
        matches!(self, Self::Object { checksum: Some(Checksum { in_trailer: true, .. }), .. })
    }

    /// Hex.
    pub(crate) fn sha256(&self) -> String {
        let mut hash = Sha256::new();
        self.for_each_chunk(|chunk| hash.update(chunk));
        hex::encode(hash.finalize())
    }

    /// The object's checksum in the form of a header value; None when it is to have none.
    pub(crate) fn checksum(&self) -> Option<String> {
        let Self::Object { checksum: Some(checksum), .. } = self else { return None };
        let mut digest = crc_fast::Digest::new(checksum.algorithm);
        self.for_each_chunk(|chunk| digest.update(chunk));
        Some(checksum.encode(digest.finalize()))
    }

    /// Headers that describe the payload.
    pub(crate) fn amz_headers(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Object { checksum: Some(checksum), len, .. } if checksum.in_trailer => vec![
                ("x-amz-decoded-content-length", len.to_string()),
                ("x-amz-sdk-checksum-algorithm", checksum.name.to_owned()),
                ("x-amz-trailer", checksum.header.to_owned()),
            ],
            Self::Object { checksum: Some(checksum), .. } => vec![
                (checksum.header, self.checksum().unwrap_or_default()),
                ("x-amz-sdk-checksum-algorithm", checksum.name.to_owned()),
            ],
            _ => Vec::new(),
        }
    }

    /// Hands out the payload in pieces, for hashing.
    pub(crate) fn for_each_chunk(&self, mut on_chunk: impl FnMut(&[u8])) {
        match self {
            Self::Empty => {}
            Self::Text(text) => on_chunk(text),
            Self::Object { content, offset, len, .. } => {
                let mut chunk = vec![0; CHUNK_BYTES.min(usize::try_from(*len).unwrap_or(CHUNK_BYTES))];
                let end = offset + len;
                let mut offset = *offset;
                while offset < end {
                    let count = (end - offset).min(CHUNK_BYTES as u64) as usize;
                    content.fill(offset, &mut chunk[..count]);
                    on_chunk(&chunk[..count]);
                    offset += count as u64;
                }
            }
        }
    }
}

/// A payload on its way.
pub(super) enum Body {
    Empty,
    Text(Bytes),
    Plain {
        content: Content,
        offset: u64,
        end: u64,
    },
    /// `aws-chunked`: chunks with their length before them, and the checksum after the last one.
    Trailer {
        content: Content,
        offset: u64,
        end: u64,
        checksum: Checksum,
        digest: Box<crc_fast::Digest>,
        /// Bytes still to come, framing included.
        encoded_len: u64,
    },
}

impl Body {
    pub(super) fn new(payload: &Payload) -> Self {
        match payload {
            Payload::Empty => Self::Empty,
            Payload::Text(text) => Self::Text(text.clone()),
            Payload::Object { content, offset, len, checksum: Some(checksum) } if checksum.in_trailer => {
                let crc = checksum.encode(0);
                Self::Trailer {
                    content: *content,
                    offset: *offset,
                    end: offset + len,
                    checksum: *checksum,
                    digest: Box::new(crc_fast::Digest::new(checksum.algorithm)),
                    encoded_len: chunks_len(*len) + trailer(checksum.header, &crc).len() as u64,
                }
            }
            Payload::Object { content, offset, len, .. } => {
                Self::Plain { content: *content, offset: *offset, end: offset + len }
            }
        }
    }

    fn remaining(&self) -> u64 {
        match self {
            Self::Empty => 0,
            Self::Text(text) => text.len() as u64,
            Self::Plain { offset, end, .. } => end - offset,
            Self::Trailer { encoded_len, .. } => *encoded_len,
        }
    }

    fn next_chunk(&mut self) -> Option<Bytes> {
        match self {
            Self::Empty => None,
            Self::Text(text) => Some(std::mem::take(text)).filter(|text| !text.is_empty()),
            Self::Plain { content, offset, end } => {
                let count = (*end - *offset).min(CHUNK_BYTES as u64) as usize;
                if count == 0 {
                    return None;
                }
                let mut chunk = vec![0; count];
                content.fill(*offset, &mut chunk);
                *offset += count as u64;
                Some(chunk.into())
            }
            Self::Trailer { encoded_len: 0, .. } => None,
            Self::Trailer { content, offset, end, checksum, digest, encoded_len } => {
                let count = (*end - *offset).min(CHUNK_BYTES as u64) as usize;
                let chunk = if count == 0 {
                    trailer(checksum.header, &checksum.encode(digest.finalize())).into_bytes()
                } else {
                    let mut chunk = format!("{count:x}\r\n").into_bytes();
                    let start = chunk.len();
                    chunk.resize(start + count, 0);
                    content.fill(*offset, &mut chunk[start..]);
                    digest.update(&chunk[start..]);
                    chunk.extend_from_slice(b"\r\n");
                    *offset += count as u64;
                    chunk
                };
                *encoded_len -= chunk.len() as u64;
                Some(chunk.into())
            }
        }
    }
}

/// Encoded bytes of all chunks that hold `len` bytes.
fn chunks_len(len: u64) -> u64 {
    let encoded = |count: u64| format!("{count:x}\r\n\r\n").len() as u64 + count;
    let (full, rest) = (len / CHUNK_BYTES as u64, len % CHUNK_BYTES as u64);
    full * encoded(CHUNK_BYTES as u64) + if rest > 0 { encoded(rest) } else { 0 }
}

fn trailer(header: &str, checksum: &str) -> String {
    format!("0\r\n{header}:{checksum}\r\n\r\n")
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.get_mut().next_chunk().map(|chunk| Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.remaining() == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(payload: &Payload) -> Vec<u8> {
        let mut body = Body::new(payload);
        let promised = body.remaining();
        let mut sent = Vec::new();
        while let Some(chunk) = body.next_chunk() {
            sent.extend_from_slice(&chunk);
        }
        assert_eq!(sent.len() as u64, promised, "Content-Length is exact");
        assert_eq!(body.remaining(), 0);
        sent
    }

    #[test]
    fn a_plain_object_is_its_content() {
        let content = Content::new(1, 2, 3);
        for len in [0, 1, 4096, CHUNK_BYTES as u64 + 1, 3 * CHUNK_BYTES as u64] {
            let payload = Payload::Object { content, offset: 5, len, checksum: None };
            let bytes = sent(&payload);
            assert_eq!(content.first_mismatch(5, &bytes), None);
            assert_eq!(payload.sha256(), hex::encode(Sha256::digest(&bytes)));
        }
    }

    #[test]
    fn a_trailer_follows_the_chunks() {
        let content = Content::new(1, 2, 3);
        let checksum = Checksum::new(ObjectChecksum::Crc32Trailer);
        let len = CHUNK_BYTES as u64 + 10;
        let payload = Payload::Object { content, offset: 0, len, checksum };
        let mut plain = vec![0; len as usize];
        content.fill(0, &mut plain);
        let mut expected = b"10000\r\n".to_vec();
        expected.extend_from_slice(&plain[..CHUNK_BYTES]);
        expected.extend_from_slice(b"\r\na\r\n");
        expected.extend_from_slice(&plain[CHUNK_BYTES..]);
        let crc = BASE64.encode(crc_fast::crc32_iso_hdlc(&plain).to_be_bytes());
        expected.extend_from_slice(format!("\r\n0\r\nx-amz-checksum-crc32:{crc}\r\n\r\n").as_bytes());
        assert_eq!(sent(&payload), expected);
        assert_eq!(sent(&Payload::Object { content, offset: 0, len: 0, checksum }).len(), 3 + 21 + 8 + 4);
    }

    #[test]
    fn checksums_are_those_of_the_catalogue() {
        // "123456789" in the CRC catalogue: the check values of CRC-32/ISO-HDLC, CRC-32/ISCSI, CRC-64/NVME.
        for (choice, encoded) in [
            (ObjectChecksum::Crc32, BASE64.encode(0xcbf4_3926_u32.to_be_bytes())),
            (ObjectChecksum::Crc32c, BASE64.encode(0xe306_9283_u32.to_be_bytes())),
            (ObjectChecksum::Crc64nvme, BASE64.encode(0xae8b_1486_0a79_9888_u64.to_be_bytes())),
        ] {
            let checksum = Checksum::new(choice).expect("a checksum");
            assert_eq!(checksum.encode(crc_fast::checksum(checksum.algorithm, b"123456789")), encoded);
        }
    }
}
