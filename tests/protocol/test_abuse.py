"""Requests nobody sends by accident. Each gets a documented error, and the server stays up.

The `raw` fixture checks after every test that the process is alive.
"""

import base64
from urllib.parse import unquote_plus

import pytest

from harness.checksums import checksum
from harness.raw import Raw
from harness.sigv4 import UNSIGNED, Signer, encode_key

KEYS = [
    "//", "a//b", "/leading", "trailing/", ".", "..", "../../etc/passwd", "a/./b", "a/../b", "a+b", "a b", " ", "%41", "%", "a%2Fb",
    "new\nline", "carriage\rreturn", "tab\t", "😀/🎉", "ünïcode", "e\u0301", "a&b=c;d?e#f", "<xml>&amp;", '"quoted"', "back\\slash",
    "\u200b", "\ufeff", "k" * 1024, "é" * 512, "\x01\x1f", "~-_.!*'()",
]


@pytest.mark.parametrize("key", KEYS, ids=lambda key: ascii(key)[:30])
def test_keys_survive(raw, bucket, s3, key):
    path = f"/{bucket}/{encode_key(key)}"
    assert raw.put(path, key.encode()).status == 200
    assert raw.get(path).body == key.encode()
    url = raw.get(f"/{bucket}", [("encoding-type", "url")])
    assert [unquote_plus(text) for text in url.texts("Contents/Key")] == [key]
    copied = raw.put(f"/{bucket}/copy", headers={"x-amz-copy-source": encode_key(f"{bucket}/{key}")})
    assert copied.status == 200, copied
    assert raw.call("DELETE", f"/{bucket}/copy").status == 204
    if "\x01" not in key:
        s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key}]})
    else:
        raw.call("DELETE", path)
    assert raw.get(f"/{bucket}").texts("Contents/Key") == []


@pytest.mark.parametrize("path", ["%FF%FE", "%C3%28", "a%00b", "k" * 1025, "%e2%82"])
def test_keys_that_are_no_keys(raw, bucket, path):
    answer = raw.put(f"/{bucket}/{path}", b"x")
    assert answer.status == 400 or (path == "a%00b" and answer.status == 200), answer
    if len(path) > 1024:
        assert answer.code == "KeyTooLongError"


@pytest.mark.parametrize("path", ["%zz", "%4", "%"])
def test_escapes_that_are_no_escapes(raw, bucket, path):
    assert raw.get(f"/{bucket}/{path}").status in (400, 403, 404)


BOMB = '<?xml version="1.0"?><!DOCTYPE b [<!ENTITY a "aaaaaaaaaa">' + "".join(
    f'<!ENTITY {chr(98 + n)} "{("&" + chr(97 + n) + ";") * 10}">' for n in range(9)
) + "]><Delete><Object><Key>&j;</Key></Object></Delete>"
DOCUMENTS = {
    "bomb": BOMB,
    "external": '<!DOCTYPE d [<!ENTITY e SYSTEM "file:///etc/passwd">]><Delete><Object><Key>&e;</Key></Object></Delete>',
    "deep": "<Delete>" + "<a>" * 100_000 + "</a>" * 100_000 + "</Delete>",
    "unclosed": "<Delete><Object><Key>a</Key>",
    "huge key": f"<Delete><Object><Key>{'k' * 100_000}</Key></Object></Delete>",
    "not xml": "\x00\x01\x02",
    "utf-16": "<Delete/>",
    "other root": "<CompleteMultipartUpload/>",
    "twice": "<Delete/><Delete/>",
    "unknown entity": "<Delete><Object><Key>&nope;</Key></Object></Delete>",
    "too big": "<Delete>" + " " * (5 << 20) + "</Delete>",
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents(raw, bucket, name):
    body = DOCUMENTS[name].encode("utf-16" if name == "utf-16" else "utf-8")
    answer = raw.call("POST", f"/{bucket}", [("delete", None)], {"content-md5": checksum("md5", body)}, body)
    key_error = name == "huge key" and answer.status == 200 and answer.texts("Error/Code") == ["KeyTooLongError"]
    assert answer.status == 400 or key_error, answer
    assert b"root:" not in answer.body and len(answer.body) < 300_000


def test_invalid_utf8_in_documents(raw, bucket):
    body = b"<Delete><Object><Key>\xff\xfe</Key></Object></Delete>"
    answer = raw.call("POST", f"/{bucket}", [("delete", None)], {"content-md5": checksum("md5", body)}, body)
    assert (answer.status, answer.code) == (400, "MalformedXML")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\r\n\r\n", b"GARBAGE\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\nno colon\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 5000 + b"\r\n", b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 200_000 + b"\r\n\r\n", b"GET / HTTP/1.1\r\nhost: \xff\r\n\r\n", b"\x00" * 1000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n", b"CONNECT a:1 HTTP/1.1\r\nhost: x\r\n\r\n", b"TRACE / HTTP/1.1\r\nhost: x\r\n\r\n",
    ],
    ids=lambda data: ascii(data[:24]),
)
def test_what_is_hardly_http(raw, request_bytes):
    with raw.connect() as connection:
        connection.socket.settimeout(5)
        try:
            connection.send(request_bytes)
            connection.socket.shutdown(1)
            answer = connection.socket.recv(65536)
        except (ConnectionResetError, BrokenPipeError):
            answer = b""
    assert answer == b"" or answer.split(b" ", 2)[1].startswith((b"4", b"5")), answer[:200]


def test_refusals_are_no_larger_than_what_they_refuse(raw, bucket):
    """Whoever knows an access key can ask for the evidence of a wrong signature, as often as there are connections."""
    stranger = Raw(raw.server, Signer(raw.server.access_key, "wrong", raw.server.region))
    answer = stranger.get(f"/{bucket}/k", headers={"x-amz-meta-a": '"' * 25_000})
    assert (answer.status, answer.code) == (403, "SignatureDoesNotMatch"), answer
    assert len(answer.body) < 50_000
    assert stranger.get(f"/{bucket}/k").xml.findtext("CanonicalRequest").startswith("GET\n")


def test_duplicated_headers(raw, bucket):
    raw.put(f"/{bucket}/k", b"x")
    head, _, _ = raw.head("GET", f"/{bucket}/k")
    lines = head.split(b"\r\n")
    for name in (b"authorization", b"x-amz-date", b"host", b"x-amz-content-sha256"):
        line = next(line for line in lines if line.startswith(name))
        doubled = head.replace(line, line + b"\r\n" + name + b": other", 1)
        answer = raw.exchange(doubled)
        assert answer.status in (400, 403), (name, answer)


@pytest.mark.parametrize(
    "query",
    [
        [("partNumber", "99999999999999999999"), ("uploadId", "x")], [("partNumber", "1")], [("uploadId", "x")], [("uploadId", "")],
        [("uploadId", "../../x"), ("partNumber", "1")], [("uploadId", "é" * 2000), ("partNumber", "1")],
    ],
    ids=str,
)
def test_part_queries(raw, bucket, query):
    answer = raw.call("PUT", f"/{bucket}/k", query, body=b"x")
    assert 400 <= answer.status < 500, answer
    assert raw.get(f"/{bucket}/k").status == 404


@pytest.mark.parametrize("method", ["PATCH", "OPTIONS", "FOO", "get", "TRACE", "POST"])
def test_methods(raw, bucket, method):
    answer = raw.call(method, f"/{bucket}/k")
    assert 400 <= answer.status <= 501, answer


@pytest.mark.parametrize("length", [1024, 1025, 1026, 1027])
@pytest.mark.parametrize("kind", [0, 1])
def test_forged_continuation_tokens(raw, bucket, kind, length):
    """The checksum of a token is no secret: whoever can compute it can name any position, but none longer than a key."""
    position = b"k" * length
    crc = base64.b64decode(checksum("crc32c", bytes([1, kind]) + position))
    token = base64.urlsafe_b64encode(bytes([1, kind]) + crc[::-1] + position).rstrip(b"=").decode()
    answer = raw.get(f"/{bucket}", [("list-type", "2"), ("continuation-token", token)])
    assert answer.status == (200 if length == 1024 else 400), answer


def test_queries_that_contradict(raw, bucket):
    raw.put(f"/{bucket}/k", b"kept")
    for query in ([("acl", None), ("tagging", None)], [("uploads", None), ("delete", None)], [("prefix", "a"), ("prefix", "b")]):
        for method in ("GET", "PUT", "DELETE"):
            assert raw.call(method, f"/{bucket}/k", query).status < 502
    assert raw.call("HEAD", f"/{bucket}").status == 200


def test_long_queries_and_many_headers(raw, bucket):
    answer = raw.get(f"/{bucket}", [("prefix", "p" * 6000)])
    assert answer.status in (200, 400, 414, 431), answer
    answer = raw.get(f"/{bucket}", [(f"x{n}", "") for n in range(2000)])
    assert answer.status in (200, 400, 414, 431), answer


def test_slow_and_silent_connections_do_not_block_others(raw, bucket):
    silent = [raw.connect() for _ in range(50)]
    half = [raw.connect() for _ in range(20)]
    head, _, _ = raw.head("PUT", f"/{bucket}/slow", headers={"content-length": "1000000"}, payload_hash=UNSIGNED)
    for connection in half:
        connection.send(head + b"x" * 1000)
    for n in range(20):
        assert raw.put(f"/{bucket}/k{n}", b"x").status == 200
    for connection in silent + half:
        connection.close()
    assert len(raw.get(f"/{bucket}").texts("Contents/Key")) == 20


def test_internal_endpoints_are_no_bucket(raw):
    for path, status in (("/-/live", 200), ("/-/ready", 200), ("/-/nothing", 404)):
        assert Raw.call(raw, "GET", path, anonymous=True).status == status, path
    metrics = raw.get("/-/metrics", anonymous=True)
    assert metrics.status == 200 and b"# TYPE" in metrics.body
