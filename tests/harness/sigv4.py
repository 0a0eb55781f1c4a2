"""AWS Signature Version 4 for S3, written from its documentation and independent of botocore's and the server's.

Everything that a test wants to get wrong on purpose is a parameter.
"""

import datetime
import hashlib
import hmac
from urllib.parse import quote

UNSIGNED = "UNSIGNED-PAYLOAD"
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()


def encode(text, safe="-_.~"):
    return quote(text, safe=safe)


def encode_key(key):
    """A key as it stands in a path: every byte but the unreserved and the slash is escaped."""
    return quote(key, safe="-_.~/")


def canonical_query(pairs):
    return "&".join(f"{name}={value}" for name, value in sorted((encode(n), encode(v or "")) for n, v in pairs))


def timestamp(offset_secs=0):
    now = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=offset_secs)
    return now.strftime("%Y%m%dT%H%M%SZ")


class Signer:
    def __init__(self, access_key, secret_key, region="us-east-1", service="s3"):
        self.access_key, self.secret_key, self.region, self.service = access_key, secret_key, region, service

    def scope(self, date):
        return f"{date[:8]}/{self.region}/{self.service}/aws4_request"

    def key(self, date):
        key = ("AWS4" + self.secret_key).encode()
        for part in (date[:8], self.region, self.service, "aws4_request"):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        return key

    def signature(self, date, string_to_sign):
        return hmac.new(self.key(date), string_to_sign.encode(), hashlib.sha256).hexdigest()

    def string_to_sign(self, date, canonical):
        digest = hashlib.sha256(canonical.encode("utf-8", "surrogateescape")).hexdigest()
        return f"AWS4-HMAC-SHA256\n{date}\n{self.scope(date)}\n{digest}"

    @staticmethod
    def canonical(method, path, pairs, headers, signed, payload_hash):
        lines = "".join(f"{name}:{' '.join(headers[name].split())}\n" for name in signed)
        return f"{method}\n{path}\n{canonical_query(pairs)}\n{lines}\n{';'.join(signed)}\n{payload_hash}"

    def sign(self, method, path, pairs, headers, payload_hash, date=None, leave_unsigned=()):
        """The headers with x-amz-date, x-amz-content-sha256 and Authorization. Names come out in lower case."""
        headers = {name.lower(): value for name, value in headers.items()}
        date = date or timestamp()
        headers.setdefault("x-amz-date", date)
        headers.setdefault("x-amz-content-sha256", payload_hash)
        unsigned = {"connection", "expect", "user-agent", "transfer-encoding", *leave_unsigned}
        signed = sorted(name for name in headers if name not in unsigned)
        canonical = self.canonical(method, path, pairs, headers, signed, payload_hash)
        signature = self.signature(date, self.string_to_sign(date, canonical))
        headers["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={self.access_key}/{self.scope(date)}, "
            f"SignedHeaders={';'.join(signed)}, Signature={signature}"
        )
        return headers, signature, date

    def presign(self, method, path, host, pairs=(), expires=300, headers=None, date=None):
        """The query pairs of a presigned URL, signature included."""
        headers = {"host": host} | {name.lower(): value for name, value in (headers or {}).items()}
        date = date or timestamp()
        signed = sorted(headers)
        pairs = list(pairs) + [
            ("X-Amz-Algorithm", "AWS4-HMAC-SHA256"),
            ("X-Amz-Credential", f"{self.access_key}/{self.scope(date)}"),
            ("X-Amz-Date", date),
            ("X-Amz-Expires", str(expires)),
            ("X-Amz-SignedHeaders", ";".join(signed)),
        ]
        canonical = self.canonical(method, path, pairs, headers, signed, UNSIGNED)
        return pairs + [("X-Amz-Signature", self.signature(date, self.string_to_sign(date, canonical)))]

    def chunked_body(self, chunks, seed, date, trailer=None, corrupt=None):
        """An aws-chunked body whose chunks (the empty last one is added) are signed in a chain from `seed`.

        `trailer` is the signed trailing header as (name, value); `corrupt` the index of a chunk whose signature is
        replaced by a wrong one.
        """
        body, previous = b"", seed
        for index, chunk in enumerate([*chunks, b""]):
            text = "\n".join(
                ["AWS4-HMAC-SHA256-PAYLOAD", date, self.scope(date), previous, EMPTY_SHA256, hashlib.sha256(chunk).hexdigest()]
            )
            previous = self.signature(date, text)
            shown = previous if index != corrupt else "0" * 64
            body += f"{len(chunk):x};chunk-signature={shown}\r\n".encode() + chunk
            if chunk or not trailer:
                body += b"\r\n"
        if trailer:
            line = f"{trailer[0]}:{trailer[1]}\n"
            text = "\n".join(
                ["AWS4-HMAC-SHA256-TRAILER", date, self.scope(date), previous, hashlib.sha256(line.encode()).hexdigest()]
            )
            body += f"{trailer[0]}:{trailer[1]}\r\nx-amz-trailer-signature:{self.signature(date, text)}\r\n\r\n".encode()
        return body


def unsigned_chunked_body(chunks, trailer=None):
    """An aws-chunked body without signatures, as SDKs send it by default."""
    body = b"".join(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n" for chunk in chunks) + b"0\r\n"
    if trailer:
        body += f"{trailer[0]}:{trailer[1]}\r\n".encode()
    return body + b"\r\n"
