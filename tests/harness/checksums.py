"""The S3 checksum algorithms in plain Python, as an oracle beside the server's."""

import base64
import hashlib
import zlib


def _table(polynomial):
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (polynomial if byte & 1 else 0)
        table.append(byte)
    return table


_CRC32C = _table(0x82F63B78)
_CRC64NVME = _table(0x9A6C9329AC4BC9B5)


def _crc(table, width, data):
    crc = (1 << width) - 1
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return (crc ^ ((1 << width) - 1)).to_bytes(width // 8, "big")


def digest(algorithm, data):
    match algorithm:
        case "crc32":
            return zlib.crc32(data).to_bytes(4, "big")
        case "crc32c":
            return _crc(_CRC32C, 32, data)
        case "crc64nvme":
            return _crc(_CRC64NVME, 64, data)
        case "md5" | "sha1" | "sha256":
            return hashlib.new(algorithm, data).digest()
    raise ValueError(algorithm)


def checksum(algorithm, data):
    """Base64, as it stands in x-amz-checksum-* and Content-MD5."""
    return base64.b64encode(digest(algorithm, data)).decode()


assert digest("crc32c", b"123456789").hex() == "e3069283"
assert digest("crc64nvme", b"123456789").hex() == "ae8b14860a799888"
