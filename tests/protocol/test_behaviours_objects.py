"""Behaviours 11 to 13, 18, 19, 25 and 29: what an object says about itself."""

import base64
import hashlib
import re
from email.header import decode_header

import pytest
from botocore.exceptions import ClientError

from harness.checksums import checksum
from harness.sigv4 import UNSIGNED, unsigned_chunked_body

MIB = 1 << 20
QUOTED = re.compile(r'"[0-9a-f]{32}(-\d+)?"')


def multipart(s3, bucket, key, parts, **create):
    upload = s3.create_multipart_upload(Bucket=bucket, Key=key, **create)["UploadId"]
    done = []
    for number, body in parts.items():
        done.append({"PartNumber": number, "ETag": s3.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=number, Body=body)["ETag"]})
    return upload, done


def test_11_etags_are_quoted(raw, bucket, s3):
    put = raw.put(f"/{bucket}/k", b"etag")
    etag = put.headers["ETag"]
    assert QUOTED.fullmatch(etag)
    assert raw.get(f"/{bucket}/k").headers["ETag"] == etag and raw.call("HEAD", f"/{bucket}/k").headers["ETag"] == etag
    assert raw.get(f"/{bucket}").xml.findtext("Contents/ETag") == etag
    copied = raw.put(f"/{bucket}/copy", headers={"x-amz-copy-source": f"{bucket}/k"})
    assert copied.xml.findtext("ETag") == etag
    bare = etag.strip('"')
    for form in (etag, bare):
        assert raw.get(f"/{bucket}/k", headers={"if-match": form}).status == 200
        assert raw.get(f"/{bucket}/k", headers={"if-none-match": form}).status == 304
    upload, parts = multipart(s3, bucket, "m", {1: b"x"})
    body = f"<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{parts[0]['ETag'].strip(chr(34))}</ETag></Part></CompleteMultipartUpload>"
    done = raw.call("POST", f"/{bucket}/m", [("uploadId", upload)], body=body.encode())
    assert done.status == 200 and QUOTED.fullmatch(done.xml.findtext("ETag")) and done.xml.findtext("ETag").endswith('-1"')


def test_12_aws_chunked_is_no_content_encoding(raw, bucket):
    body = unsigned_chunked_body([b"hello world"], ("x-amz-checksum-crc32", checksum("crc32", b"hello world")))
    for sent, kept in (("aws-chunked", None), ("gzip,aws-chunked", "gzip"), ("aws-chunked, gzip", "gzip")):
        headers = {
            "content-encoding": sent,
            "x-amz-decoded-content-length": "11",
            "x-amz-trailer": "x-amz-checksum-crc32",
        }
        answer = raw.put(f"/{bucket}/k", body, headers, payload_hash="STREAMING-UNSIGNED-PAYLOAD-TRAILER")
        assert answer.status == 200, answer
        got = raw.get(f"/{bucket}/k")
        assert got.body == b"hello world" and got.headers["Content-Encoding"] == kept, (sent, got)
        assert got.headers["Content-Length"] == "11"


def test_13_no_length(raw, bucket):
    answer = raw.put(f"/{bucket}/k", length=False)
    assert (answer.status, answer.code) == (411, "MissingContentLength"), answer
    head, _, _ = raw.head("PUT", f"/{bucket}/k", headers={"transfer-encoding": "chunked"}, length=False, payload_hash=UNSIGNED)
    answer = raw.exchange(head + b"5\r\nhello\r\n0\r\n\r\n")
    assert (answer.status, answer.code) in ((501, "NotImplemented"), (411, "MissingContentLength")), answer
    assert raw.get(f"/{bucket}/k").status == 404
    framed = unsigned_chunked_body([b"hello"], ("x-amz-checksum-crc32", checksum("crc32", b"hello")))
    headers = {
        "transfer-encoding": "chunked",
        "content-encoding": "aws-chunked",
        "x-amz-decoded-content-length": "5",
        "x-amz-trailer": "x-amz-checksum-crc32",
    }
    head, _, _ = raw.head("PUT", f"/{bucket}/k", headers=headers, length=False, payload_hash="STREAMING-UNSIGNED-PAYLOAD-TRAILER")
    answer = raw.exchange(head + b"%x\r\n" % len(framed) + framed + b"\r\n0\r\n\r\n")
    assert answer.status == 200, answer
    assert raw.get(f"/{bucket}/k").body == b"hello", "with the decoded length known, HTTP chunks are fine"


def test_18_part_number_reads(raw, bucket, s3):
    parts = {1: b"a" * (5 * MIB), 2: b"b" * (5 * MIB), 3: b"c" * 7}
    upload, done = multipart(s3, bucket, "m", parts)
    s3.complete_multipart_upload(Bucket=bucket, Key="m", UploadId=upload, MultipartUpload={"Parts": done})
    size, start = sum(map(len, parts.values())), 0
    for number, body in parts.items():
        for method in ("GET", "HEAD"):
            answer = raw.call(method, f"/{bucket}/m", [("partNumber", str(number))])
            assert answer.status == 206 and answer.headers["x-amz-mp-parts-count"] == "3", answer
            assert answer.headers["Content-Range"] == f"bytes {start}-{start + len(body) - 1}/{size}"
            assert answer.headers["Content-Length"] == str(len(body))
            assert method == "HEAD" or answer.body == body
        start += len(body)
    assert raw.get(f"/{bucket}/m", [("partNumber", "4")]).status == 416
    assert raw.get(f"/{bucket}/m", [("partNumber", "0")]).status == 400
    assert raw.get(f"/{bucket}/m", [("partNumber", "1")], {"range": "bytes=0-1"}).status == 400
    raw.put(f"/{bucket}/plain", b"plain")
    single = raw.get(f"/{bucket}/plain", [("partNumber", "1")])
    assert single.status == 206 and single.body == b"plain"
    assert raw.get(f"/{bucket}/plain", [("partNumber", "2")]).status == 416


def test_19_ranges(raw, bucket):
    body = bytes(range(256)) * 1024
    etag = raw.put(f"/{bucket}/k", body).headers["ETag"]
    size = len(body)

    def ranged(value, **more):
        return raw.get(f"/{bucket}/k", headers={"range": value} | more)

    for value, first, last in (
        ("bytes=0-0", 0, 0), ("bytes=1-9", 1, 9), ("bytes=100-", 100, size - 1), ("bytes=-1", size - 1, size - 1),
        (f"bytes=0-{size * 2}", 0, size - 1), (f"bytes=-{size * 2}", 0, size - 1), ("bytes=65535-65536", 65535, 65536),
    ):
        answer = ranged(value)
        assert answer.status == 206 and answer.body == body[first : last + 1], value
        assert answer.headers["Content-Range"] == f"bytes {first}-{last}/{size}" and answer.headers["Accept-Ranges"] == "bytes"
    for ignored in ("bytes=0-1,3-4", "bytes=a-b", "bytes=5-2", "octets=0-1", "bytes=", "bytes=-"):
        answer = ranged(ignored)
        assert answer.status == 200 and answer.body == body, ignored
    for beyond in (f"bytes={size}-", f"bytes={size}-{size + 1}", "bytes=-0"):
        answer = ranged(beyond)
        assert (answer.status, answer.code) == (416, "InvalidRange"), (beyond, answer)
        assert answer.headers["Content-Range"] == f"bytes */{size}"
    assert ranged("bytes=0-1", **{"if-range": etag}).status == 206
    assert ranged("bytes=0-1", **{"if-range": '"00000000000000000000000000000000"'}).status == 200
    raw.put(f"/{bucket}/empty", b"")
    assert raw.get(f"/{bucket}/empty", headers={"range": "bytes=0-0"}).status == 416


def test_25_metadata(raw, bucket, s3):
    headers = {
        "x-amz-meta-Mixed-Case": "  Value kept  ",
        "x-amz-meta-empty": "",
        "cache-control": "max-age=60",
        "content-disposition": 'attachment; filename="a b.txt"',
        "content-language": "de",
        "expires": "not a date, kept verbatim",
        "x-amz-website-redirect-location": "/elsewhere",
    }
    assert raw.put(f"/{bucket}/k", b"x", headers).status == 200
    for method in ("GET", "HEAD"):
        got = raw.call(method, f"/{bucket}/k").headers
        assert got["Content-Type"] == "binary/octet-stream" and got["x-amz-meta-mixed-case"] == "Value kept"
        assert "x-amz-meta-mixed-case" in got.keys(), "in lower case on the wire"
        for name in ("cache-control", "content-disposition", "content-language", "expires", "x-amz-website-redirect-location"):
            assert got[name] == headers[name], name
    head, _, _ = raw.head("PUT", f"/{bucket}/u", headers={"x-amz-meta-size": "größe"}, body=b"")
    answer = raw.exchange(head)
    assert answer.status == 200, answer
    value = raw.get(f"/{bucket}/u").headers["x-amz-meta-size"]
    assert re.fullmatch(r"=\?UTF-8\?[BbQq]\?\S+\?=", value), value
    decoded, charset = decode_header(value)[0]
    assert decoded.decode(charset) == "größe"
    fits = {"x-amz-meta-a": "v" * 2047}
    assert raw.put(f"/{bucket}/k", b"", fits).status == 200
    answer = raw.put(f"/{bucket}/k", b"", fits | {"x-amz-meta-b": "v"})
    assert (answer.status, answer.code) == (400, "MetadataTooLarge"), answer
    assert raw.get(f"/{bucket}/k", [("response-content-type", "text/x"), ("response-expires", "never")]).headers["Content-Type"] == "text/x"


def test_29_checksums_of_objects(raw, bucket, s3):
    body = b"checksums " * 1000
    mode = {"x-amz-checksum-mode": "ENABLED"}
    assert raw.put(f"/{bucket}/none", body).status == 200
    got = raw.get(f"/{bucket}/none", headers=mode)
    assert got.headers["x-amz-checksum-crc64nvme"] == checksum("crc64nvme", body)
    assert got.headers["x-amz-checksum-type"] == "FULL_OBJECT"
    assert raw.get(f"/{bucket}/none").headers["x-amz-checksum-crc64nvme"] is None, "only when asked for"
    for name in ("crc32", "crc32c", "crc64nvme", "sha1", "sha256"):
        header = f"x-amz-checksum-{name}"
        put = raw.put(f"/{bucket}/{name}", body, {header: checksum(name, body)})
        assert put.status == 200 and put.headers[header] == checksum(name, body), put
        assert raw.call("HEAD", f"/{bucket}/{name}", headers=mode).headers[header] == checksum(name, body)
        wrong = raw.put(f"/{bucket}/wrong", body, {header: checksum(name, b"other")})
        assert (wrong.status, wrong.code) == (400, "BadDigest"), (name, wrong)
        malformed = raw.put(f"/{bucket}/wrong", body, {header: "AAAA"})
        assert (malformed.status, malformed.code) == (400, "InvalidRequest"), (name, malformed)
    assert raw.get(f"/{bucket}/wrong").status == 404
    listed = s3.list_objects_v2(Bucket=bucket)["Contents"]
    assert {entry["Key"]: entry["ChecksumAlgorithm"] for entry in listed}["sha256"] == ["SHA256"]


def test_29_checksums_of_multipart_uploads(bucket, s3):
    created = s3.create_multipart_upload(Bucket=bucket, Key="m", ChecksumAlgorithm="SHA256")
    assert (created["ChecksumAlgorithm"], created["ChecksumType"]) == ("SHA256", "COMPOSITE")
    bodies = [b"p" * (5 * MIB), b"q" * 100]
    parts = []
    for number, body in enumerate(bodies, 1):
        part = s3.upload_part(Bucket=bucket, Key="m", UploadId=created["UploadId"], PartNumber=number, Body=body, ChecksumAlgorithm="SHA256")
        assert part["ChecksumSHA256"] == checksum("sha256", body)
        parts.append({"PartNumber": number, "ETag": part["ETag"], "ChecksumSHA256": part["ChecksumSHA256"]})
    done = s3.complete_multipart_upload(Bucket=bucket, Key="m", UploadId=created["UploadId"], MultipartUpload={"Parts": parts})
    digests = b"".join(hashlib.sha256(body).digest() for body in bodies)
    composite = base64.b64encode(hashlib.sha256(digests).digest()).decode() + "-2"
    assert (done["ChecksumSHA256"], done["ChecksumType"]) == (composite, "COMPOSITE")
    assert s3.head_object(Bucket=bucket, Key="m", ChecksumMode="ENABLED")["ChecksumSHA256"] == composite

    created = s3.create_multipart_upload(Bucket=bucket, Key="f", ChecksumAlgorithm="CRC32", ChecksumType="FULL_OBJECT")
    assert created["ChecksumType"] == "FULL_OBJECT"
    parts = []
    for number, body in enumerate(bodies, 1):
        part = s3.upload_part(Bucket=bucket, Key="f", UploadId=created["UploadId"], PartNumber=number, Body=body, ChecksumAlgorithm="CRC32")
        parts.append({"PartNumber": number, "ETag": part["ETag"], "ChecksumCRC32": part["ChecksumCRC32"]})
    size = sum(map(len, bodies))
    arguments = {"Bucket": bucket, "Key": "f", "UploadId": created["UploadId"], "MultipartUpload": {"Parts": parts}}
    with pytest.raises(ClientError, match="InvalidRequest"):
        s3.complete_multipart_upload(**arguments, MpuObjectSize=size + 1)
    with pytest.raises(ClientError, match="BadDigest"):
        s3.complete_multipart_upload(**arguments, ChecksumCRC32=checksum("crc32", b"other"), ChecksumType="FULL_OBJECT")
    done = s3.complete_multipart_upload(**arguments, MpuObjectSize=size)
    assert (done["ChecksumCRC32"], done["ChecksumType"]) == (checksum("crc32", b"".join(bodies)), "FULL_OBJECT")
