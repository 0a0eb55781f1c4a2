"""Bodies as clients send them: streamed with signed chunks or trailers, and all the ways they can be wrong.

Whatever is refused must leave nothing behind.
"""

import pytest

from harness.checksums import checksum
from harness.sigv4 import UNSIGNED, unsigned_chunked_body

SIGNED = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
SIGNED_TRAILER = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"
UNSIGNED_TRAILER = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
CHUNKS = [b"a" * 65536, b"b" * 65536, b"c" * 100]
WHOLE = b"".join(CHUNKS)


@pytest.fixture(autouse=True)
def old_value(raw, bucket):
    """Every refused upload must leave the object that was there before."""
    assert raw.put(f"/{bucket}/k", b"before").status == 200


def streamed(raw, bucket, mode, chunks=CHUNKS, decoded=None, trailer=None, corrupt=None, change=lambda body: body, announce=True, headers=None):
    decoded = sum(map(len, chunks)) if decoded is None else decoded
    headers = {"content-encoding": "aws-chunked", "x-amz-decoded-content-length": str(decoded)} | (headers or {})
    if trailer and announce:
        headers["x-amz-trailer"] = trailer[0]
    path = f"/{bucket}/k"
    # The length of the body does not depend on the seed signature, so a first pass gives it.
    signed = mode != UNSIGNED_TRAILER

    def body(seed, date):
        if signed:
            return change(raw.signer.chunked_body(chunks, seed, date, trailer if mode == SIGNED_TRAILER else None, corrupt))
        return change(unsigned_chunked_body(chunks, trailer))

    headers["content-length"] = str(len(body("0" * 64, "20260101T000000Z")))
    head, seed, date = raw.head("PUT", path, headers=headers, payload_hash=mode)
    return raw.exchange(head + body(seed, date), "PUT")


def stored(raw, bucket):
    return raw.get(f"/{bucket}/k").body


def test_signed_chunks(raw, bucket):
    assert streamed(raw, bucket, SIGNED).status == 200
    assert stored(raw, bucket) == WHOLE


@pytest.mark.parametrize("corrupt", [0, 1, 2, 3])
def test_a_corrupted_chunk_signature_commits_nothing(raw, bucket, corrupt):
    answer = streamed(raw, bucket, SIGNED, corrupt=corrupt)
    assert (answer.status, answer.code) == (403, "SignatureDoesNotMatch")
    assert stored(raw, bucket) == b"before"


def test_a_changed_byte_in_a_signed_chunk_commits_nothing(raw, bucket):
    answer = streamed(raw, bucket, SIGNED, change=lambda body: body.replace(b"bbbb", b"bbxb", 1))
    assert (answer.status, answer.code) == (403, "SignatureDoesNotMatch")
    assert stored(raw, bucket) == b"before"


@pytest.mark.parametrize("name", ["crc32", "crc32c", "crc64nvme", "sha1", "sha256"])
@pytest.mark.parametrize("mode", [SIGNED_TRAILER, UNSIGNED_TRAILER])
def test_trailers(raw, bucket, mode, name):
    header = f"x-amz-checksum-{name}"
    answer = streamed(raw, bucket, mode, trailer=(header, checksum(name, b"other")))
    assert (answer.status, answer.code) == (400, "BadDigest"), answer
    assert stored(raw, bucket) == b"before"
    answer = streamed(raw, bucket, mode, trailer=(header, checksum(name, WHOLE)))
    assert answer.status == 200 and answer.headers[header] == checksum(name, WHOLE), answer
    got = raw.get(f"/{bucket}/k", headers={"x-amz-checksum-mode": "ENABLED"})
    assert got.body == WHOLE and got.headers[header] == checksum(name, WHOLE)


def test_a_wrong_trailer_signature_commits_nothing(raw, bucket):
    trailer = ("x-amz-checksum-crc32", checksum("crc32", WHOLE))

    def change(body):
        start = body.index(b"x-amz-trailer-signature:") + len(b"x-amz-trailer-signature:")
        return body[:start] + b"0" * 64 + body[start + 64 :]

    answer = streamed(raw, bucket, SIGNED_TRAILER, trailer=trailer, change=change)
    assert (answer.status, answer.code) == (403, "SignatureDoesNotMatch"), answer
    assert stored(raw, bucket) == b"before"


@pytest.mark.parametrize(
    "what",
    ["no trailer", "not announced", "malformed value", "decoded too long", "decoded too short", "no decoded length", "bad size", "huge size", "negative size", "no last chunk", "no line end", "bytes after the end"],
)
def test_broken_framing_commits_nothing(raw, bucket, what):
    good = ("x-amz-checksum-crc32", checksum("crc32", WHOLE))
    options = {"trailer": good}
    match what:
        case "no trailer":
            options["change"] = lambda body: body[: body.index(b"x-amz-checksum")] + b"\r\n"
        case "not announced":
            options["announce"] = False
        case "malformed value":
            options["trailer"] = ("x-amz-checksum-crc32", "!!!!")
        case "decoded too long":
            options["decoded"] = len(WHOLE) + 1
        case "decoded too short":
            options["decoded"] = len(WHOLE) - 1
        case "no decoded length":
            options["headers"] = {"x-amz-decoded-content-length": ""}
        case "bad size":
            options["change"] = lambda body: body.replace(b"10000\r\n", b"1000g\r\n", 1)
        case "huge size":
            options["change"] = lambda body: b"ffffffffffffffffff\r\n" + body
        case "negative size":
            options["change"] = lambda body: b"-1\r\n" + body
        case "no last chunk":
            options["change"] = lambda body: body[: body.index(b"0\r\nx-amz")]
        case "no line end":
            options["change"] = lambda body: body.replace(b"\r\n10000", b"xx10000", 1)
        case "bytes after the end":
            options["change"] = lambda body: body + b"5\r\nhello\r\n"
    answer = streamed(raw, bucket, UNSIGNED_TRAILER, **options)
    assert 400 <= answer.status < 500, (what, answer)
    assert stored(raw, bucket) == b"before"


def test_content_md5(raw, bucket):
    answer = raw.put(f"/{bucket}/k", b"x", {"content-md5": checksum("md5", b"y")})
    assert (answer.status, answer.code) == (400, "BadDigest")
    answer = raw.put(f"/{bucket}/k", b"x", {"content-md5": "not base64"})
    assert (answer.status, answer.code) == (400, "InvalidDigest")
    assert stored(raw, bucket) == b"before"
    assert raw.put(f"/{bucket}/k", b"x", {"content-md5": checksum("md5", b"x")}).status == 200


@pytest.mark.parametrize("sent", [0, 1, 4096, 3 << 20])
def test_truncated_bodies_commit_nothing(raw, bucket, sent):
    head, _, _ = raw.head("PUT", f"/{bucket}/k", headers={"content-length": str(4 << 20)}, payload_hash=UNSIGNED)
    with raw.connect() as connection:
        connection.send(head + b"\0" * sent)
    assert stored(raw, bucket) == b"before"


def test_bytes_beyond_content_length_are_the_next_request(raw, bucket):
    head, _, _ = raw.head("PUT", f"/{bucket}/k", headers={"content-length": "3"}, payload_hash=UNSIGNED)
    with raw.connect() as connection:
        connection.send(head + b"abcdef")
        assert connection.answer("PUT").status == 200
    assert stored(raw, bucket) == b"abc"


@pytest.mark.parametrize("lines", ["content-length: 3\r\ncontent-length: 4", "content-length: -1", "content-length: +3", "content-length: 3, 4", "content-length: 99999999999999999999"])
def test_lying_lengths(raw, bucket, lines):
    head, _, _ = raw.head("PUT", f"/{bucket}/k", headers={"content-length": "3"}, payload_hash=UNSIGNED)
    answer = raw.exchange(head.replace(b"content-length: 3", lines.encode()) + b"abc", "PUT")
    assert 400 <= answer.status < 500, answer
    assert stored(raw, bucket) == b"before"


def test_both_lengths_at_once(raw, bucket):
    headers = {"content-length": "3", "transfer-encoding": "chunked"}
    head, _, _ = raw.head("PUT", f"/{bucket}/k", headers=headers, payload_hash=UNSIGNED)
    answer = raw.exchange(head + b"3\r\nabc\r\n0\r\n\r\n", "PUT")
    assert answer.status >= 400, "request smuggling starts like this"
    assert stored(raw, bucket) == b"before"
