//! A log batch: header, records, payload; the unit of durability.
//!
//! One batch is one write per replica, and the next starts only when it is durable everywhere: a valid batch proves all
//! before it. The payload (bodies of small objects) can imitate anything but the nonce, which is drawn anew whenever a
//! log extent comes into use. Header, records and payload have checksums of their own, so that a torn batch is told
//! from a rotten payload.

use basalt_reactor::disk::BLOCK_LEN;
use siphasher::sip128::{Hasher128, SipHasher13};
use std::hash::Hasher;

use super::codec::{DecodeError, Decoder, Encoder};
use super::record::Record;
use crate::checksum::crc32c;
use crate::extent::ExtentId;

pub const BATCH_HEADER_LEN: usize = 128;

/// Longest batch on disk, bytes, header and padding included.
pub const BATCH_LEN_MAX: usize = 1 << 20;

/// Records one batch may hold.
pub const RECORD_COUNT_MAX: usize = 16_384;

const MAGIC: [u8; 8] = *b"BSLTBTCH";
const VERSION: u16 = 1;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    pub shard: u16,
    pub extent: ExtentId,
    pub nonce: [u8; 16],
    pub epoch: u64,
    /// Dense: one more than the batch before.
    pub sequence: u64,
    /// Hash of the previous batch's header.
    pub previous: [u8; 16],
    /// The shard's hybrid clock when the batch was closed, nanoseconds.
    pub clock: u64,
    pub record_count: u32,
    pub records_len: u32,
    pub payload_len: u32,
    pub records_crc: u32,
    pub payload_crc: u32,
}

/// Why bytes are not a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BatchError {
    /// No batch header of this version starts here.
    NoHeader,
    /// A header is there, but it or its lengths do not hold.
    BadHeader {
        expected: u32,
        got: u32,
    },
    BadLength {
        records_len: u32,
        payload_len: u32,
    },
    BadRecords {
        expected: u32,
        got: u32,
    },
    BadPayload {
        expected: u32,
        got: u32,
    },
    Record(DecodeError),
}

impl std::fmt::Display for BatchError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            BatchError::NoHeader => write!(f, "no batch starts there"),
            BatchError::BadHeader { expected, got } => {
                write!(f, "header checksum is {got:08x}, expected {expected:08x}")
            }
            BatchError::BadLength { records_len, payload_len } => {
                write!(f, "lengths {records_len} and {payload_len} do not fit")
            }
            BatchError::BadRecords { expected, got } => {
                write!(f, "records checksum is {got:08x}, expected {expected:08x}")
            }
            BatchError::BadPayload { expected, got } => {
                write!(f, "payload checksum is {got:08x}, expected {expected:08x}")
            }
            BatchError::Record(error) => write!(f, "record {error}"),
        }
    }
}

impl std::error::Error for BatchError {}

impl BatchHeader {
    /// Bytes from the start of the batch to its payload.
    #[must_use]
    pub fn payload_offset(&self) -> usize {
        BATCH_HEADER_LEN + self.records_len as usize
    }

    /// Bytes the batch takes on disk, whole blocks.
    #[must_use]
    pub fn disk_len(&self) -> usize {
        (self.payload_offset() + self.payload_len as usize).next_multiple_of(BLOCK_LEN)
    }

    /// What the next batch names as its predecessor.
    #[must_use]
    pub fn hash(&self) -> [u8; 16] {
        let mut hasher = SipHasher13::new();
        hasher.write(&self.encode());
        hasher.finish128().as_bytes()
    }

    /// The header's bytes, checksum last.
    ///
    /// # Panics
    /// Never: the fields have fixed lengths.
    #[must_use]
    pub fn encode(&self) -> [u8; BATCH_HEADER_LEN] {
        let mut out = Encoder::new();
        out.raw(&MAGIC);
        out.u16(VERSION);
        out.u16(self.shard);
        out.u32(self.record_count);
        out.u64(self.extent.0);
        out.raw(&self.nonce);
        out.u64(self.epoch);
        out.u64(self.sequence);
        out.raw(&self.previous);
        out.u64(self.clock);
        out.u32(self.records_len);
        out.u32(self.payload_len);
        out.u32(self.records_crc);
        out.u32(self.payload_crc);
        out.raw(&[0; 28]);
        let mut bytes = out.finish();
        let crc = crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes.try_into().expect("the fields above are 124 bytes")
    }

    /// # Errors
    /// [`BatchError::NoHeader`], [`BatchError::BadHeader`], [`BatchError::BadLength`].
    pub fn decode(bytes: &[u8]) -> Result<BatchHeader, BatchError> {
        let header = bytes.first_chunk::<BATCH_HEADER_LEN>().ok_or(BatchError::NoHeader)?;
        if header[..8] != MAGIC || header[8..10] != VERSION.to_le_bytes() {
            return Err(BatchError::NoHeader);
        }
        let expected = u32::from_le_bytes([header[124], header[125], header[126], header[127]]);
        let got = crc32c(&header[..124]);
        if got != expected {
            return Err(BatchError::BadHeader { expected, got });
        }
        let parse = || -> Result<BatchHeader, DecodeError> {
            let mut from = Decoder::new(&header[10..]);
            let shard = from.u16("shard")?;
            let record_count = from.u32("record count")?;
            Ok(BatchHeader {
                shard,
                record_count,
                extent: ExtentId(from.u64("extent")?),
                nonce: from.array("nonce")?,
                epoch: from.u64("epoch")?,
                sequence: from.u64("sequence")?,
                previous: from.array("previous")?,
                clock: from.u64("clock")?,
                records_len: from.u32("records length")?,
                payload_len: from.u32("payload length")?,
                records_crc: from.u32("records checksum")?,
                payload_crc: from.u32("payload checksum")?,
            })
        };
        let header = parse().map_err(BatchError::Record)?;
        let len = BATCH_HEADER_LEN as u64 + u64::from(header.records_len) + u64::from(header.payload_len);
        if len > BATCH_LEN_MAX as u64 || header.record_count as usize > RECORD_COUNT_MAX {
            return Err(BatchError::BadLength {
                records_len: header.records_len,
                payload_len: header.payload_len,
            });
        }
        Ok(header)
    }

    /// Checks records and payload of the batch that starts `bytes`, whose header this is, and decodes the records.
    ///
    /// # Errors
    /// [`BatchError`].
    pub fn decode_records(&self, bytes: &[u8]) -> Result<Vec<Record>, BatchError> {
        let short = BatchError::BadLength { records_len: self.records_len, payload_len: self.payload_len };
        let start = self.payload_offset();
        let records = bytes.get(BATCH_HEADER_LEN..start).ok_or(short.clone())?;
        let payload = bytes.get(start..start + self.payload_len as usize).ok_or(short)?;
        let got = crc32c(records);
        if got != self.records_crc {
            return Err(BatchError::BadRecords { expected: self.records_crc, got });
        }
        let got = crc32c(payload);
        if got != self.payload_crc {
            return Err(BatchError::BadPayload { expected: self.payload_crc, got });
        }
        let mut from = Decoder::new(records);
        let decoded = (0..self.record_count)
            .map(|_| {
                let record = Record::decode(&mut from)?;
                if let Record::Put { inline: Some(span), .. } = &record
                    && u64::from(span.offset) + u64::from(span.len) > u64::from(self.payload_len)
                {
                    return Err(DecodeError::Invalid { field: "inline offset", got: span.offset.into() });
                }
                Ok(record)
            })
            .collect::<Result<Vec<_>, DecodeError>>()
            .map_err(BatchError::Record)?;
        from.end().map_err(BatchError::Record)?;
        Ok(decoded)
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::samples;
    use super::*;

    fn encoded() -> (BatchHeader, Vec<u8>) {
        let mut out = Encoder::new();
        let records = samples();
        for record in &records {
            record.encode(&mut out);
        }
        let records_bytes = out.finish();
        let payload = b"hello".to_vec();
        let header = BatchHeader {
            shard: 2,
            extent: ExtentId(11),
            nonce: [3; 16],
            epoch: 5,
            sequence: 42,
            previous: [6; 16],
            clock: 99,
            record_count: records.len() as u32,
            records_len: records_bytes.len() as u32,
            payload_len: payload.len() as u32,
            records_crc: crc32c(&records_bytes),
            payload_crc: crc32c(&payload),
        };
        let mut bytes = header.encode().to_vec();
        bytes.extend(records_bytes);
        bytes.extend(payload);
        bytes.resize(header.disk_len(), 0);
        (header, bytes)
    }

    #[test]
    fn round_trips() {
        let (header, bytes) = encoded();
        assert_eq!(BatchHeader::decode(&bytes), Ok(header.clone()));
        assert_eq!(header.decode_records(&bytes), Ok(samples()));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let (header, bytes) = encoded();
        let len = header.payload_offset() + header.payload_len as usize;
        for bit in 0..len * 8 {
            let mut rotten = bytes.clone();
            rotten[bit / 8] ^= 1 << (bit % 8);
            let noticed = match BatchHeader::decode(&rotten) {
                Ok(header) => header.decode_records(&rotten).is_err(),
                Err(_) => true,
            };
            assert!(noticed, "bit {bit}");
        }
    }

    #[test]
    fn an_inline_span_beyond_the_payload_is_refused() {
        let (mut header, bytes) = encoded();
        header.payload_len = 2;
        header.payload_crc = crc32c(b"he");
        assert!(matches!(header.decode_records(&bytes), Err(BatchError::Record(_))));
    }
}
