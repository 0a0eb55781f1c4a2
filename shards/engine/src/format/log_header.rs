//! The first block of a log extent: whose it is, and the nonce that its batches carry.
//!
//! Written when the extent is prepared, before any batch. Recovery takes the nonce from the manifest or the log; this
//! header is there for inspection and for rebuilding without either.

use super::codec::{DecodeError, Decoder, Encoder};
use super::frame::{self, FrameError};
use crate::extent::ExtentId;

const MAGIC: [u8; 8] = *b"BSLTLOGX";
const VERSION: u16 = 1;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogHeader {
    pub deployment: [u8; 16],
    pub shard: u16,
    pub extent: ExtentId,
    pub epoch: u64,
    pub nonce: [u8; 16],
}

impl LogHeader {
    /// One block.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Encoder::new();
        out.raw(&self.deployment);
        out.u16(self.shard);
        out.u64(self.extent.0);
        out.u64(self.epoch);
        out.raw(&self.nonce);
        frame::seal(MAGIC, VERSION, &out.finish())
    }

    /// # Errors
    /// [`FrameError`].
    pub fn decode(bytes: &[u8]) -> Result<LogHeader, FrameError> {
        let (_, payload) = frame::open(MAGIC, VERSION, bytes)?;
        let parse = || -> Result<LogHeader, DecodeError> {
            let mut from = Decoder::new(payload);
            let header = LogHeader {
                deployment: from.array("deployment")?,
                shard: from.u16("shard")?,
                extent: ExtentId(from.u64("extent")?),
                epoch: from.u64("epoch")?,
                nonce: from.array("nonce")?,
            };
            from.end()?;
            Ok(header)
        };
        Ok(parse()?)
    }
}
