//! All digests of a body in one pass.
//!
//! Each piece is fed to every digest while it is in the cache, a block at a time, so a body is read
//! from memory once however many digests are wanted.

use basalt_md5::Md5;
use crc_fast::CrcAlgorithm;
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::{Algorithm, Checksum};

/// Bytes fed to one digest before the next one has its turn: half of a usual first-level data cache.
const BLOCK_LEN: usize = 16 * 1024;

/// Any set of digests over one stream of bytes.
#[derive(Clone, Default)]
pub struct Hasher {
    md5: Option<Md5>,
    sha1: Option<Sha1>,
    /// Serves both the SHA256 checksum and the signed payload hash.
    sha256: Option<Sha256>,
    crcs: Vec<(Algorithm, crc_fast::Digest)>,
}

/// The digests of a whole stream.
#[derive(Clone, Debug, Default)]
pub struct Digests {
    /// The ETag of an object uploaded whole.
    pub md5: Option<[u8; 16]>,
    /// The payload hash of SigV4.
    pub sha256: Option<[u8; 32]>,
    checksums: Vec<Checksum>,
}

impl Hasher {
    /// A hasher that computes nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    #[must_use]
    pub fn md5(mut self) -> Self {
        self.md5.get_or_insert_default();
        self
    }

    /// Leaves the MD5 to somebody who computes it for many bodies together, and who then sets [`Digests::md5`].
    #[must_use]
    pub fn without_md5(mut self) -> Self {
        self.md5 = None;
        self
    }

    #[must_use]
    pub fn payload_sha256(mut self) -> Self {
        self.sha256.get_or_insert_default();
        self
    }

    #[must_use]
    pub fn checksum(mut self, algorithm: Algorithm) -> Self {
        match (algorithm, crc_algorithm(algorithm)) {
            (_, Some(crc)) => {
                if !self.crcs.iter().any(|(present, _)| *present == algorithm) {
                    self.crcs.push((algorithm, crc_fast::Digest::new(crc)));
                }
            }
            (Algorithm::Sha1, None) => {
                self.sha1.get_or_insert_default();
            }
            (_, None) => {
                self.sha256.get_or_insert_default();
            }
        }
        self
    }

    pub fn update(&mut self, data: &[u8]) {
        for block in data.chunks(BLOCK_LEN) {
            if let Some(md5) = &mut self.md5 {
                md5.update(block);
            }
            if let Some(sha1) = &mut self.sha1 {
                sha1.update(block);
            }
            if let Some(sha256) = &mut self.sha256 {
                sha256.update(block);
            }
            for (_, crc) in &mut self.crcs {
                crc.update(block);
            }
        }
    }

    pub fn finish(self) -> Digests {
        let sha256: Option<[u8; 32]> = self.sha256.map(|hash| hash.finalize().into());
        let mut checksums: Vec<Checksum> =
            self.crcs.iter().map(|(algorithm, crc)| Checksum::from_crc(*algorithm, crc.finalize())).collect();
        let hash = |algorithm, value: &[u8]| {
            Checksum::from_bytes(algorithm, value).expect("a hash has its algorithm's length")
        };
        checksums.extend(self.sha1.map(|state| hash(Algorithm::Sha1, &state.finalize())));
        checksums.extend(sha256.map(|value| hash(Algorithm::Sha256, &value)));
        Digests { md5: self.md5.map(Md5::finalize), sha256, checksums }
    }
}

impl Digests {
    /// The checksum by this algorithm, if it was computed.
    pub fn checksum(&self, algorithm: Algorithm) -> Option<Checksum> {
        self.checksums.iter().copied().find(|checksum| checksum.algorithm() == algorithm)
    }
}

/// The CRC's parameters; `None` for hashes.
pub(super) fn crc_algorithm(algorithm: Algorithm) -> Option<CrcAlgorithm> {
    match algorithm {
        Algorithm::Crc32 => Some(CrcAlgorithm::Crc32IsoHdlc),
        Algorithm::Crc32c => Some(CrcAlgorithm::Crc32Iscsi),
        Algorithm::Crc64Nvme => Some(CrcAlgorithm::Crc64Nvme),
        Algorithm::Sha1 | Algorithm::Sha256 => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn everything() -> Hasher {
        let hasher = Hasher::new().md5().payload_sha256();
        Algorithm::ALL.into_iter().fold(hasher, Hasher::checksum)
    }

    #[test]
    fn published_check_values() {
        let mut hasher = everything();
        hasher.update(b"123456789");
        let digests = hasher.finish();
        let hex_of = |algorithm| hex::encode(digests.checksum(algorithm).expect("computed").as_bytes());
        assert_eq!(hex_of(Algorithm::Crc32), "cbf43926");
        assert_eq!(hex_of(Algorithm::Crc32c), "e3069283");
        assert_eq!(hex_of(Algorithm::Crc64Nvme), "ae8b14860a799888");
        assert_eq!(hex_of(Algorithm::Sha1), "f7c3bc1d808e04732adf679965ccc34ca7ae3441");
        let sha256 = "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225";
        assert_eq!(hex_of(Algorithm::Sha256), sha256);
        assert_eq!(digests.sha256.map(hex::encode).as_deref(), Some(sha256));
        assert_eq!(digests.md5.map(hex::encode).as_deref(), Some("25f9e794323b453885f5181f1b624d0b"));
    }

    #[test]
    fn only_what_was_asked_for() {
        let digests = Hasher::new().checksum(Algorithm::Crc32).finish();
        assert!(digests.md5.is_none() && digests.sha256.is_none());
        let present: Vec<_> = Algorithm::ALL.into_iter().filter(|a| digests.checksum(*a).is_some()).collect();
        assert_eq!(present, [Algorithm::Crc32]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn pieces_do_not_matter(data in prop::collection::vec(any::<u8>(), 0..50_000), cut in 1usize..20_000) {
            let mut whole = everything();
            whole.update(&data);
            let whole = whole.finish();
            let mut pieces = everything();
            data.chunks(cut).for_each(|piece| pieces.update(piece));
            let pieces = pieces.finish();
            prop_assert_eq!(whole.md5, pieces.md5);
            for algorithm in Algorithm::ALL {
                prop_assert_eq!(whole.checksum(algorithm), pieces.checksum(algorithm));
            }
        }
    }
}
