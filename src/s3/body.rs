//! Request bodies: the `aws-chunked` framing taken apart as bytes arrive.
//!
//! [`ChunkedDecoder`] is a state machine without I/O: it is given fragments of any size, cut
//! anywhere, and answers with ranges of the fragment that are object data, so payload is never copied.
//! Only framing lines, bounded in length, are buffered.
//!
//! **Data is provisional until [`ChunkedDecoder::finish`] succeeds.** In the signed modes a chunk's
//! signature can be checked only after its last byte, so data is handed out before it is proven; a
//! consumer may hash, encode and stage it, and must not make it visible before the end.
//!
//! Source: Amazon S3 API Reference, "Signature calculations for the authorization header:
//! Transferring payload in multiple chunks" and "… including trailing headers".

mod line;
mod trailer;

#[cfg(test)]
mod tests;

use std::ops::Range;

use http::{HeaderMap, HeaderName};
use sha2::{Digest, Sha256};

use super::auth::{ChunkSigner, PayloadMode};
use super::error::{ErrorCode, Result, S3Error};
use line::{ChunkHeader, LineBuffer};
use trailer::TrailerSection;

/// The smallest chunk that another chunk of data may follow, in bytes.
pub const CHUNK_LEN_MIN: u64 = 8 * 1024;
/// The longest chunk header line, in bytes with its line end: 16 digits of size and the signature need 99.
pub const CHUNK_LINE_LEN_MAX: usize = 256;
/// The longest trailer section, in bytes.
pub const TRAILER_LEN_MAX: usize = 4 * 1024;
/// The most trailing headers a request may announce.
pub const TRAILERS_MAX: usize = 16;

/// What one call of [`ChunkedDecoder::decode`] found.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Step {
    /// Bytes of the input that are done with; at least 1 for a non-empty input.
    pub consumed: usize,
    /// The part of the input that is object data; may be empty. Ends at or before `consumed`.
    pub data: Range<usize>,
    /// Whether `data` completes a chunk whose signature was checked and holds, and with it everything
    /// before it.
    pub verified: bool,
}

/// Decodes one body. Obtain by [`ChunkedDecoder::from_headers`]; feed with [`decode`](Self::decode)
/// until the body ends; then [`finish`](Self::finish).
#[derive(Debug)]
pub struct ChunkedDecoder {
    state: State,
    line: LineBuffer,
    /// Present in the signed modes.
    signing: Option<Signing>,
    trailer: Option<TrailerSection>,
    /// From `x-amz-decoded-content-length`.
    decoded_len: u64,
    received_len: u64,
    /// Chunks begun so far.
    chunk_count: u64,
    /// Size of the chunk before the current one.
    previous_chunk_len: Option<u64>,
}

#[derive(Debug)]
struct Signing {
    signer: Box<ChunkSigner>,
    data: Sha256,
    /// The signature in the current chunk's header.
    presented: [u8; 64],
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    ChunkHeader,
    /// Inside a chunk's data, with this many bytes to come; never 0.
    Data(u64),
    /// The line end after a chunk's data.
    DataEnd,
    /// The empty line after the last chunk, where no trailer follows.
    LastLine,
    Trailer,
    Complete,
    /// An error was reported; nothing after it counts.
    Failed,
}

impl ChunkedDecoder {
    /// The decoder that a request's body needs, or `None` if its payload mode is not chunked.
    /// `signer` comes from the request's identity.
    ///
    /// # Errors
    /// `MissingContentLength` without `x-amz-decoded-content-length`, `InvalidArgument` if that is no
    /// length, `InvalidRequest` or `MalformedTrailerError` for a bad `x-amz-trailer`.
    pub fn from_headers(
        payload: PayloadMode,
        signer: Option<Box<ChunkSigner>>,
        headers: &HeaderMap,
    ) -> Result<Option<Self>> {
        let has_trailer = match payload {
            PayloadMode::Unsigned | PayloadMode::Signed(_) => return Ok(None),
            PayloadMode::StreamingSigned { trailer } => trailer,
            PayloadMode::StreamingUnsignedTrailer => true,
        };
        let signer = match payload {
            PayloadMode::StreamingSigned { .. } => {
                Some(signer.expect("an identity in this mode carries its chunk signer"))
            }
            _ => None,
        };
        let announced = if has_trailer { Some(trailer::announced(headers)?) } else { None };
        Ok(Some(Self::new(decoded_content_length(headers)?, announced, signer)))
    }

    /// A decoder for `decoded_len` bytes of data. `trailers` are the announced trailing headers, `None`
    /// in a mode without a trailer section; without `signer` signatures are not allowed.
    pub fn new(
        decoded_len: u64,
        trailers: Option<Vec<HeaderName>>,
        signer: Option<Box<ChunkSigner>>,
    ) -> Self {
        let is_signed = signer.is_some();
        Self {
            state: State::ChunkHeader,
            line: LineBuffer::default(),
            signing: signer.map(|signer| Signing { signer, data: Sha256::new(), presented: [0; 64] }),
            trailer: trailers.map(|announced| TrailerSection::new(announced, is_signed)),
            decoded_len,
            received_len: 0,
            chunk_count: 0,
            previous_chunk_len: None,
        }
    }

    /// Object data the body must hold, in bytes.
    pub fn decoded_len(&self) -> u64 {
        self.decoded_len
    }

    /// Whether the body's last byte has been decoded and everything checked.
    pub fn is_complete(&self) -> bool {
        self.state == State::Complete
    }

    /// Decodes the start of `input` up to the end of the first piece of data in it. Call again with
    /// what is left until nothing is left.
    ///
    /// # Errors
    /// `SignatureDoesNotMatch`, `InvalidChunkSizeError`, `IncompleteBody` (sizes do not add up),
    /// `MalformedTrailerError`, `InvalidRequest` (bad framing). After an error the body is lost.
    pub fn decode(&mut self, input: &[u8]) -> Result<Step> {
        let step = self.advance(input);
        if step.is_err() {
            self.state = State::Failed;
        }
        step
    }

    /// Ends the body and gives its trailing headers, without the signature.
    ///
    /// # Errors
    /// `IncompleteBody` unless the body is complete.
    pub fn finish(self) -> Result<HeaderMap> {
        if !self.is_complete() {
            return Err(ErrorCode::IncompleteBody.into());
        }
        Ok(self.trailer.map(TrailerSection::into_headers).unwrap_or_default())
    }

    fn advance(&mut self, input: &[u8]) -> Result<Step> {
        let mut at = 0;
        while at < input.len() {
            let rest = &input[at..];
            at += match self.state {
                State::Data(remaining) => return self.take_data(input, at, remaining),
                State::ChunkHeader => self.take_chunk_header(rest)?,
                State::DataEnd => self.take_empty_line(rest, State::ChunkHeader)?,
                State::LastLine => self.take_empty_line(rest, State::Complete)?,
                State::Trailer => self.take_trailer_line(rest)?,
                State::Complete => {
                    return Err(S3Error::invalid_request("The body continues after its last chunk."));
                }
                State::Failed => return Err(ErrorCode::IncompleteBody.into()),
            };
        }
        Ok(Step { consumed: at, data: at..at, verified: false })
    }

    fn take_data(&mut self, input: &[u8], at: usize, remaining: u64) -> Result<Step> {
        let available = input.len() - at;
        let len = usize::try_from(remaining).map_or(available, |remaining| remaining.min(available));
        let data = at..at + len;
        if let Some(signing) = &mut self.signing {
            signing.data.update(&input[data.clone()]);
        }
        let left = remaining - len as u64;
        let mut verified = false;
        if left > 0 {
            self.state = State::Data(left);
        } else {
            verified = self.verify_chunk()?;
            self.state = State::DataEnd;
        }
        Ok(Step { consumed: data.end, data, verified })
    }

    fn take_chunk_header(&mut self, input: &[u8]) -> Result<usize> {
        let (consumed, line) = self.line.take(input, CHUNK_LINE_LEN_MAX)?;
        let Some(line) = line else { return Ok(consumed) };
        let header = ChunkHeader::parse(line)?;
        match (&mut self.signing, header.signature) {
            (Some(signing), Some(signature)) => signing.presented = signature,
            (None, None) => {}
            (Some(_), None) => {
                return Err(S3Error::invalid_request("A chunk of a signed body has no chunk-signature."));
            }
            (None, Some(_)) => {
                return Err(S3Error::invalid_request("A chunk of an unsigned body has a chunk-signature."));
            }
        }
        self.line.clear();
        self.begin_chunk(header.len)?;
        Ok(consumed)
    }

    fn begin_chunk(&mut self, len: u64) -> Result<()> {
        self.chunk_count += 1;
        if len == 0 {
            if self.received_len != self.decoded_len {
                return Err(ErrorCode::IncompleteBody.into());
            }
            self.verify_chunk()?;
            self.state = if self.trailer.is_some() { State::Trailer } else { State::LastLine };
            return Ok(());
        }
        if let Some(previous) = self.previous_chunk_len.filter(|previous| *previous < CHUNK_LEN_MIN) {
            return Err(S3Error::new(ErrorCode::InvalidChunkSizeError)
                .with("Chunk", self.chunk_count.to_string())
                .with("BadChunkSize", previous.to_string()));
        }
        if len > self.decoded_len - self.received_len {
            return Err(S3Error::new(ErrorCode::IncompleteBody)
                .message("The chunks hold more data than x-amz-decoded-content-length says"));
        }
        // Counted in advance: a body that ends inside the chunk is not complete anyway.
        self.received_len += len;
        self.previous_chunk_len = Some(len);
        self.state = State::Data(len);
        Ok(())
    }

    /// Whether there was a signature to check. It holds, or this is an error.
    fn verify_chunk(&mut self) -> Result<bool> {
        let Some(signing) = &mut self.signing else { return Ok(false) };
        let data = std::mem::take(&mut signing.data);
        signing.signer.verify_chunk(data, &signing.presented)?;
        Ok(true)
    }

    fn take_empty_line(&mut self, input: &[u8], next: State) -> Result<usize> {
        let (consumed, line) = self.line.take(input, "\r\n".len())?;
        if let Some(line) = line {
            if !line.is_empty() {
                return Err(line::bad_framing());
            }
            self.line.clear();
            self.state = next;
        }
        Ok(consumed)
    }

    fn take_trailer_line(&mut self, input: &[u8]) -> Result<usize> {
        let trailer = self.trailer.as_mut().expect("this state is entered only with a trailer section");
        let (consumed, line) = self.line.take(input, trailer.remaining_len())?;
        let Some(line) = line else { return Ok(consumed) };
        let is_end = trailer.push_line(line)?;
        self.line.clear();
        if is_end {
            let canonical_and_signature = trailer.check_complete()?;
            if let (Some(signing), Some((canonical, signature))) =
                (&mut self.signing, canonical_and_signature)
            {
                signing.signer.verify_trailer(&canonical, signature)?;
            }
            self.state = State::Complete;
        }
        Ok(consumed)
    }
}

/// Decodes a whole unsigned body at once and gives its data and trailers: the entry for fuzzing and
/// for tools that have the body in memory.
///
/// # Errors
/// Those of [`ChunkedDecoder::decode`] and [`ChunkedDecoder::finish`].
pub fn decode_whole(mut decoder: ChunkedDecoder, mut body: &[u8]) -> Result<(Vec<u8>, HeaderMap)> {
    let mut data = Vec::new();
    while !body.is_empty() {
        let step = decoder.decode(body)?;
        data.extend_from_slice(&body[step.data]);
        body = &body[step.consumed..];
    }
    Ok((data, decoder.finish()?))
}

fn decoded_content_length(headers: &HeaderMap) -> Result<u64> {
    const NAME: &str = "x-amz-decoded-content-length";
    let mut values = headers.get_all(NAME).iter();
    let Some(value) = values.next() else { return Err(ErrorCode::MissingContentLength.into()) };
    let text = String::from_utf8_lossy(value.as_bytes());
    let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|_| is_number && values.next().is_none()).ok_or_else(|| {
        S3Error::invalid_argument("The decoded content length is not valid", NAME, text.as_ref())
    })
}
