//! Lines of the `aws-chunked` framing: collected across fragments, bounded, and taken apart.

use crate::s3::error::{Result, S3Error};

/// Collects one line at a time. A line ends with LF; one CR before it is not part of the line.
#[derive(Debug, Default)]
pub(super) struct LineBuffer(Vec<u8>);

impl LineBuffer {
    /// Takes input up to the end of the line. Answers how much was taken, and the line without its end
    /// once it is there; the caller then clears the buffer. `len_max` counts the line end.
    ///
    /// # Errors
    /// `InvalidRequest` for a longer line.
    pub(super) fn take(&mut self, input: &[u8], len_max: usize) -> Result<(usize, Option<&[u8]>)> {
        let room = len_max - self.0.len().min(len_max);
        let window = &input[..input.len().min(room)];
        let end = window.iter().position(|b| *b == b'\n');
        let taken = end.map_or(window.len(), |end| end + 1);
        self.0.extend_from_slice(&window[..taken]);
        if end.is_none() {
            return if self.0.len() < len_max { Ok((taken, None)) } else { Err(bad_framing()) };
        }
        let line = &self.0[..self.0.len() - 1];
        Ok((taken, Some(line.strip_suffix(b"\r").unwrap_or(line))))
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// `SIZE` or `SIZE;chunk-signature=SIGNATURE`, the size in hexadecimal.
#[derive(Debug)]
pub(super) struct ChunkHeader {
    pub(super) len: u64,
    pub(super) signature: Option<[u8; 64]>,
}

impl ChunkHeader {
    /// # Errors
    /// `InvalidRequest` for a size that is not 1 to 16 hexadecimal digits, for any extension but a
    /// signature, and for a signature that is not 64 characters long.
    pub(super) fn parse(line: &[u8]) -> Result<Self> {
        let (size, extension) = match line.iter().position(|b| *b == b';') {
            Some(at) => (&line[..at], Some(&line[at + 1..])),
            None => (line, None),
        };
        let signature = match extension {
            None => None,
            Some(extension) => {
                let signature = extension.strip_prefix(b"chunk-signature=").ok_or_else(bad_framing)?;
                Some(signature.try_into().map_err(|_| bad_framing())?)
            }
        };
        Ok(Self { len: parse_hex(size).ok_or_else(bad_framing)?, signature })
    }
}

fn parse_hex(text: &[u8]) -> Option<u64> {
    if !(1..=16).contains(&text.len()) {
        return None;
    }
    text.iter().try_fold(0, |n: u64, b| Some(n << 4 | u64::from(char::from(*b).to_digit(16)?)))
}

pub(super) fn bad_framing() -> S3Error {
    S3Error::invalid_request("The aws-chunked encoding of the body is not well-formed.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunk_headers() {
        let header = ChunkHeader::parse(b"10000").expect("a size alone");
        assert_eq!((header.len, header.signature), (65_536, None));
        let signed = [b"fF;chunk-signature=".as_slice(), &[b'a'; 64]].concat();
        let header = ChunkHeader::parse(&signed).expect("size and signature");
        assert_eq!((header.len, header.signature), (255, Some([b'a'; 64])));
        assert_eq!(ChunkHeader::parse(b"ffffffffffffffff").expect("16 digits").len, u64::MAX);
        for bad in [
            "",
            ";",
            "+1",
            "-1",
            "0x1",
            "1 ",
            " 1",
            "g",
            "00000000000000001",
            "1;",
            "1;x=y",
            "1;chunk-signature=",
            "1;chunk-signature=abc",
        ] {
            assert!(ChunkHeader::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn lines_are_bounded_wherever_they_are_cut() {
        for cut in 0..=6 {
            let mut buffer = LineBuffer::default();
            let (text, len_max) = (b"abcd\r\n", 6);
            let (taken, line) = buffer.take(&text[..cut], len_max).expect("short enough");
            if let Some(line) = line {
                assert_eq!((taken, line), (6, b"abcd".as_slice()));
                continue;
            }
            assert_eq!(taken, cut);
            let (_, line) = buffer.take(&text[cut..], len_max).expect("short enough");
            assert_eq!(line, Some(b"abcd".as_slice()));
            assert!(LineBuffer::default().take(text, 5).is_err());
        }
        assert!(LineBuffer::default().take(b"x", 0).is_err());
    }
}
