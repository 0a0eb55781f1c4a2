//! The frame around every structure that is not a log batch: magic, version, length, checksum.
//!
//! One frame for superblocks, roots, manifests and log extent headers means one place that tells "never written"
//! from "damaged" from "written by a newer Basalt".

use basalt_reactor::disk::BLOCK_LEN;

use super::codec::DecodeError;
use crate::checksum::crc32c;

/// Bytes in front of the payload: magic 8, version u16, reserved u16, payload length u32, CRC32C u32, reserved u32.
pub const FRAME_HEADER_LEN: usize = 24;

const CRC_OFFSET: usize = 16;

/// Why bytes are not the frame that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// All zeros: nothing was ever written here.
    Empty,
    /// Something else lies here.
    BadMagic {
        got: [u8; 8],
    },
    /// Written by a Basalt that is newer than this one.
    NewerVersion {
        got: u16,
        known: u16,
    },
    /// The length in the header is beyond the bytes at hand.
    BadLength {
        got: u32,
        max: usize,
    },
    BadChecksum {
        expected: u32,
        got: u32,
    },
    /// The frame is whole, but its payload is not what its version says.
    Payload(DecodeError),
}

impl std::fmt::Display for FrameError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            FrameError::Empty => write!(f, "nothing was ever written there"),
            FrameError::BadMagic { got } => write!(f, "unknown magic {:?}", String::from_utf8_lossy(got)),
            FrameError::NewerVersion { got, known } => {
                write!(f, "format version {got} is newer than the {known} this Basalt knows")
            }
            FrameError::BadLength { got, max } => write!(f, "length {got} exceeds the {max} bytes at hand"),
            FrameError::BadChecksum { expected, got } => {
                write!(f, "checksum is {got:08x}, expected {expected:08x}")
            }
            FrameError::Payload(error) => write!(f, "payload {error}"),
        }
    }
}

impl std::error::Error for FrameError {}

impl From<DecodeError> for FrameError {
    fn from(error: DecodeError) -> FrameError {
        FrameError::Payload(error)
    }
}

/// Frames `payload`, padded with zeros to whole blocks.
///
/// # Panics
/// If `payload` is 4 GiB or longer.
#[must_use]
pub fn seal(magic: [u8; 8], version: u16, payload: &[u8]) -> Vec<u8> {
    let len = FRAME_HEADER_LEN + payload.len();
    let mut bytes = Vec::with_capacity(len.next_multiple_of(BLOCK_LEN));
    bytes.extend_from_slice(&magic);
    bytes.extend_from_slice(&version.to_le_bytes());
    bytes.extend_from_slice(&[0; 2]);
    bytes.extend_from_slice(&u32::try_from(payload.len()).expect("frames stay below 4 GiB").to_le_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(payload);
    let crc = crc32c(&bytes);
    bytes[CRC_OFFSET..CRC_OFFSET + 4].copy_from_slice(&crc.to_le_bytes());
    bytes.resize(len.next_multiple_of(BLOCK_LEN), 0);
    bytes
}

/// The version and payload of the frame at the start of `bytes`.
///
/// # Errors
/// [`FrameError`], with the evidence.
pub fn open(magic: [u8; 8], version_known: u16, bytes: &[u8]) -> Result<(u16, &[u8]), FrameError> {
    let Some(header) = bytes.first_chunk::<FRAME_HEADER_LEN>() else {
        return Err(FrameError::BadLength { got: 0, max: bytes.len() });
    };
    if header.iter().all(|&byte| byte == 0) {
        return Err(FrameError::Empty);
    }
    if header[..8] != magic {
        let mut got = [0; 8];
        got.copy_from_slice(&header[..8]);
        return Err(FrameError::BadMagic { got });
    }
    let field = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let len = field(12);
    let payload = (bytes.len() - FRAME_HEADER_LEN >= len as usize)
        .then(|| &bytes[FRAME_HEADER_LEN..FRAME_HEADER_LEN + len as usize])
        .ok_or(FrameError::BadLength { got: len, max: bytes.len() - FRAME_HEADER_LEN })?;
    let expected = field(CRC_OFFSET);
    let mut unsealed = bytes[..FRAME_HEADER_LEN + payload.len()].to_vec();
    unsealed[CRC_OFFSET..CRC_OFFSET + 4].fill(0);
    let got = crc32c(&unsealed);
    if got != expected {
        return Err(FrameError::BadChecksum { expected, got });
    }
    // The version is judged only once the checksum vouches for it.
    let version = u16::from_le_bytes([header[8], header[9]]);
    if version > version_known {
        return Err(FrameError::NewerVersion { got: version, known: version_known });
    }
    Ok((version, payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAGIC: [u8; 8] = *b"BSLTTEST";

    #[test]
    fn round_trips_and_pads_to_blocks() {
        let bytes = seal(MAGIC, 3, b"payload");
        assert_eq!(bytes.len(), BLOCK_LEN);
        assert_eq!(open(MAGIC, 3, &bytes), Ok((3, b"payload".as_slice())));
    }

    #[test]
    fn every_flipped_bit_of_header_and_payload_is_noticed() {
        let sealed = seal(MAGIC, 1, &[7; 40]);
        for bit in 0..(FRAME_HEADER_LEN + 40) * 8 {
            let mut bytes = sealed.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(open(MAGIC, 1, &bytes).is_err(), "bit {bit} went unnoticed");
        }
    }

    #[test]
    fn tells_empty_foreign_and_newer_apart() {
        assert_eq!(open(MAGIC, 1, &[0; 4096]), Err(FrameError::Empty));
        assert!(matches!(open(*b"OTHERONE", 1, &seal(MAGIC, 1, b"x")), Err(FrameError::BadMagic { .. })));
        assert_eq!(open(MAGIC, 1, &seal(MAGIC, 2, b"x")), Err(FrameError::NewerVersion { got: 2, known: 1 }));
        assert!(matches!(
            open(MAGIC, 1, &seal(MAGIC, 1, &[1; 8000])[..4096]),
            Err(FrameError::BadLength { .. })
        ));
        assert!(matches!(open(MAGIC, 1, b"short"), Err(FrameError::BadLength { .. })));
    }
}
