//! CRC32C (Castagnoli, RFC 3720 appendix B.4), the checksum of everything this engine puts on a disk.

use crc_fast::CrcAlgorithm;

/// CRC32C of `bytes`.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    u32::try_from(crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, bytes)).expect("a CRC32C has 32 bits")
}

#[cfg(test)]
mod tests {
    use super::crc32c;

    #[test]
    fn agrees_with_the_oracle_and_the_rfc() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        let bytes: Vec<u8> = (0..70_000u32).map(|i| ((i * 31) >> 3) as u8).collect();
        for len in [0, 1, 7, 64, 255, 4096, 65_536, 70_000] {
            assert_eq!(crc32c(&bytes[..len]), crc32c::crc32c(&bytes[..len]), "length {len}");
        }
    }
}
