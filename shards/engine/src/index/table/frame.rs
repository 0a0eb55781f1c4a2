//! The envelope of everything in a table extent: magic, version, length, place and checksum.
//!
//! A frame names the extent and the offset it was written for and its checksum covers both, so a block that the device
//! wrote to or read from the wrong place, or that an earlier owner of the slot left behind, is as detectable as rot.
//!
//! ```text
//! 0  magic "BSLT" and kind, 8 bytes      16 format version u16      24 extent id u64
//! 8  crc32c u32 of bytes 12..32+length   18 reserved u16, zero      32 payload
//! 12 payload length u32                  20 offset u32, in 4 KiB blocks
//! ```

use crate::checksum::crc32c;
use crate::extent::ExtentId;

/// Bytes before the payload.
pub(crate) const FRAME_HEAD_LEN: usize = 32;

/// The only format version so far.
const VERSION: u16 = 1;

/// Which structure a frame holds; the last four bytes of its magic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FrameKind {
    Header,
    Data,
    Filter,
    Directory,
}

impl FrameKind {
    fn magic(self) -> [u8; 8] {
        *match self {
            FrameKind::Header => b"BSLTTABL",
            FrameKind::Data => b"BSLTTDAT",
            FrameKind::Filter => b"BSLTTFLT",
            FrameKind::Directory => b"BSLTTDIR",
        }
    }
}

/// Where a frame belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FramePlace {
    pub(crate) kind: FrameKind,
    pub(crate) extent: ExtentId,
    /// Offset in the extent, in 4 KiB blocks.
    pub(crate) block: u32,
}

/// What is wrong with bytes that should be a certain frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No frame of this kind begins here; the eight bytes found.
    Magic([u8; 8]),
    /// The payload length in the head exceeds what was read.
    Length(u32),
    Checksum {
        expected: u32,
        got: u32,
    },
    /// Intact, but written by a format this program does not know.
    Version(u16),
    /// Intact, but it belongs to this extent and offset in 4 KiB blocks.
    Place {
        extent: ExtentId,
        block: u32,
    },
    /// Intact, but its payload is not what this kind of frame holds.
    Malformed(&'static str),
}

impl std::fmt::Display for Fault {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Fault::Magic(found) => write!(out, "no magic but {}", found.escape_ascii()),
            Fault::Length(len) => write!(out, "impossible payload length {len}"),
            Fault::Checksum { expected, got } => {
                write!(out, "checksum {got:08x}, expected {expected:08x}")
            }
            Fault::Version(version) => write!(out, "unknown format version {version}"),
            Fault::Place { extent, block } => {
                write!(out, "belongs to extent {} at block {block}", extent.0)
            }
            Fault::Malformed(what) => write!(out, "malformed: {what}"),
        }
    }
}

/// Fills in the head of `frame`, whose payload begins at [`FRAME_HEAD_LEN`] and ends with `frame`.
pub(crate) fn seal(frame: &mut [u8], place: FramePlace) {
    let payload_len = u32::try_from(frame.len() - FRAME_HEAD_LEN).expect("frames are far below 4 GiB");
    frame[..8].copy_from_slice(&place.kind.magic());
    frame[12..16].copy_from_slice(&payload_len.to_le_bytes());
    frame[16..18].copy_from_slice(&VERSION.to_le_bytes());
    frame[18..20].fill(0);
    frame[20..24].copy_from_slice(&place.block.to_le_bytes());
    frame[24..32].copy_from_slice(&place.extent.0.to_le_bytes());
    let crc = crc32c(&frame[12..]);
    frame[8..12].copy_from_slice(&crc.to_le_bytes());
}

/// The payload of the frame at the start of `bytes`.
///
/// # Errors
/// The first [`Fault`] found.
pub(crate) fn open(bytes: &[u8], place: FramePlace) -> Result<&[u8], Fault> {
    let (head, rest) = bytes.split_first_chunk::<FRAME_HEAD_LEN>().ok_or(Fault::Length(0))?;
    let field = |offset: usize| {
        u32::from_le_bytes([head[offset], head[offset + 1], head[offset + 2], head[offset + 3]])
    };
    if head[..8] != place.kind.magic() {
        let mut found = [0; 8];
        found.copy_from_slice(&head[..8]);
        return Err(Fault::Magic(found));
    }
    let payload_len = field(12);
    let payload = rest.get(..payload_len as usize).ok_or(Fault::Length(payload_len))?;
    let (expected, got) = (field(8), crc32c(&bytes[12..FRAME_HEAD_LEN + payload.len()]));
    if expected != got {
        return Err(Fault::Checksum { expected, got });
    }
    let version = u16::from_le_bytes([head[16], head[17]]);
    if version != VERSION {
        return Err(Fault::Version(version));
    }
    let extent = ExtentId(u64::from(field(24)) | u64::from(field(28)) << 32);
    let block = field(20);
    if (extent, block) != (place.extent, place.block) {
        return Err(Fault::Place { extent, block });
    }
    Ok(payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: FramePlace = FramePlace { kind: FrameKind::Data, extent: ExtentId(0x0102), block: 3 };

    fn sealed() -> Vec<u8> {
        let mut frame = vec![0; FRAME_HEAD_LEN];
        frame.extend_from_slice(b"payload");
        seal(&mut frame, PLACE);
        frame
    }

    #[test]
    fn golden_bytes() {
        let golden = "42534c54544441545faa441607000000010000000300000002010000000000007061796c6f6164";
        let hex: String = sealed().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, golden);
    }

    #[test]
    fn every_changed_bit_is_noticed() {
        let frame = sealed();
        assert_eq!(open(&frame, PLACE), Ok(b"payload".as_slice()));
        for bit in 0..frame.len() * 8 {
            let mut changed = frame.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(open(&changed, PLACE).is_err(), "bit {bit}");
        }
        for len in 0..frame.len() {
            assert!(open(&frame[..len], PLACE).is_err(), "length {len}");
        }
    }

    #[test]
    fn an_intact_frame_of_another_place_is_refused() {
        let frame = sealed();
        let elsewhere = FramePlace { block: 4, ..PLACE };
        assert_eq!(open(&frame, elsewhere), Err(Fault::Place { extent: PLACE.extent, block: 3 }));
        let other = FramePlace { extent: ExtentId(1), ..PLACE };
        assert_eq!(open(&frame, other), Err(Fault::Place { extent: PLACE.extent, block: 3 }));
        let kind = FramePlace { kind: FrameKind::Filter, ..PLACE };
        assert_eq!(open(&frame, kind), Err(Fault::Magic(*b"BSLTTDAT")));
    }
}
