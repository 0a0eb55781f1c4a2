"""Behaviours 16 and 17: copies, and the completion of multipart uploads."""

import pytest
from botocore.exceptions import ClientError

from harness.raw import NAMESPACE
from harness.sigv4 import encode_key

MIB = 1 << 20


def complete_body(parts):
    listed = "".join(f"<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>" for number, etag in parts)
    return f'<CompleteMultipartUpload xmlns="{NAMESPACE}">{listed}</CompleteMultipartUpload>'.encode()


def begin(s3, bucket, key, bodies):
    upload = s3.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    return upload, [
        (number, s3.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=number, Body=body)["ETag"])
        for number, body in bodies.items()
    ]


def test_16_copy(raw, bucket, s3):
    key = "dir/a b+c é?.txt"
    body = b"copy me" * 1000
    put = raw.put(f"/{bucket}/{encode_key(key)}", body, {"x-amz-meta-a": "1", "content-type": "text/plain"})
    escaped = encode_key(key)
    for form in (f"/{bucket}/{escaped}", f"{bucket}/{escaped}", f"/{bucket}/{escaped.replace('/', '%2F')}", f"{bucket}/{escaped}?versionId=null"):
        answer = raw.put(f"/{bucket}/copy", headers={"x-amz-copy-source": form})
        assert answer.status == 200 and answer.xml.tag == "CopyObjectResult", (form, answer)
        assert answer.xml.findtext("ETag") == put.headers["ETag"] and answer.namespace == NAMESPACE
        got = raw.get(f"/{bucket}/copy")
        assert got.body == body and got.headers["x-amz-meta-a"] == "1" and got.headers["Content-Type"] == "text/plain"
    source = {"x-amz-copy-source": f"/{bucket}/{escaped}"}
    replaced = raw.put(f"/{bucket}/copy", headers=source | {"x-amz-metadata-directive": "REPLACE", "x-amz-meta-b": "2"})
    assert replaced.status == 200
    got = raw.get(f"/{bucket}/copy").headers
    assert got["x-amz-meta-b"] == "2" and got["x-amz-meta-a"] is None and got["Content-Type"] == "binary/octet-stream"

    onto_itself = raw.put(f"/{bucket}/{escaped}", headers=source)
    assert (onto_itself.status, onto_itself.code) == (400, "InvalidRequest")
    assert raw.put(f"/{bucket}/{escaped}", headers=source | {"x-amz-metadata-directive": "REPLACE"}).status == 200
    for wrong, code in ((f"/{bucket}/missing", "NoSuchKey"), ("/no-such-bucket-at-all/k", "NoSuchBucket"), ("/", "InvalidArgument"), ("nokey", "InvalidArgument")):
        answer = raw.put(f"/{bucket}/copy", headers={"x-amz-copy-source": wrong})
        assert answer.code == code, (wrong, answer)
    answer = raw.put(f"/{bucket}/copy", headers=source | {"x-amz-metadata-directive": "MERGE"})
    assert (answer.status, answer.code) == (400, "InvalidArgument")


def test_16_copy_conditions(raw, bucket):
    put = raw.put(f"/{bucket}/k", b"x")
    etag, date = put.headers["ETag"], raw.call("HEAD", f"/{bucket}/k").headers["Last-Modified"]
    old, other = "Sun, 01 Jan 2017 00:00:00 GMT", '"00000000000000000000000000000000"'
    prefix = "x-amz-copy-source-if-"
    for conditions, status in (
        ({"match": etag}, 200), ({"match": other}, 412), ({"none-match": etag}, 412), ({"none-match": other}, 200),
        ({"modified-since": old}, 200), ({"modified-since": date}, 412), ({"unmodified-since": date}, 200), ({"unmodified-since": old}, 412),
        ({"match": etag, "unmodified-since": old}, 200), ({"none-match": etag, "modified-since": old}, 412),
    ):
        headers = {"x-amz-copy-source": f"/{bucket}/k"} | {prefix + name: value for name, value in conditions.items()}
        answer = raw.put(f"/{bucket}/copy", headers=headers)
        assert answer.status == status, (conditions, answer)


def test_17_complete_validates_before_it_answers(raw, bucket, s3):
    small, big = b"s", b"b" * (5 * MIB)
    upload, parts = begin(s3, bucket, "m", {1: small, 2: big, 4: b"last"})
    path, query = f"/{bucket}/m", [("uploadId", upload)]
    for body, status, code in (
        (complete_body(parts), 400, "EntityTooSmall"),
        (complete_body([parts[2], parts[1]]), 400, "InvalidPartOrder"),
        (complete_body([parts[1], parts[1]]), 400, "InvalidPartOrder"),
        (complete_body([(3, parts[1][1])]), 400, "InvalidPart"),
        (complete_body([(2, '"00000000000000000000000000000000"')]), 400, "InvalidPart"),
        (complete_body([]), 400, "MalformedXML"),
        (b"<CompleteMultipartUpload><Part>", 400, "MalformedXML"),
        (b"", 400, None),
        (complete_body([(0, parts[1][1])]), 400, None),
        (complete_body([(10001, parts[1][1])]), 400, None),
    ):
        answer = raw.call("POST", path, query, body=body)
        assert answer.status == status and (code is None or answer.code == code), (body[:200], answer)
    assert raw.get(path).status == 404, "nothing of it shows"
    done = raw.call("POST", path, query, body=complete_body(parts[1:]))
    assert done.status == 200 and done.body.startswith(b"<?xml"), done
    root = done.xml
    assert root.tag == "CompleteMultipartUploadResult" and root.findtext("Bucket") == bucket and root.findtext("Key") == "m"
    assert root.findtext("Location") and root.findtext("ETag").endswith('-2"')
    got = raw.get(path)
    assert got.body == big + b"last" and got.headers["ETag"] == root.findtext("ETag")
    again = raw.call("POST", path, query, body=complete_body(parts[1:]))
    assert again.status == 200 and again.xml.findtext("ETag") == root.findtext("ETag"), "a repeat answers the same"
    with pytest.raises(ClientError, match="NoSuchUpload"):
        s3.list_parts(Bucket=bucket, Key="m", UploadId=upload)
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=bucket)
    unknown = raw.call("POST", path, [("uploadId", "unknown")], body=complete_body(parts[1:]))
    assert (unknown.status, unknown.code) == (404, "NoSuchUpload")


def test_17_upload_part_copy(raw, bucket, s3):
    body = bytes(range(256)) * (6 * MIB // 256)
    raw.put(f"/{bucket}/source", body)
    upload = s3.create_multipart_upload(Bucket=bucket, Key="m")["UploadId"]
    whole = s3.upload_part_copy(Bucket=bucket, Key="m", UploadId=upload, PartNumber=1, CopySource=f"{bucket}/source")
    ranged = s3.upload_part_copy(Bucket=bucket, Key="m", UploadId=upload, PartNumber=2, CopySource=f"{bucket}/source", CopySourceRange="bytes=5-104")
    parts = [(1, whole["CopyPartResult"]["ETag"]), (2, ranged["CopyPartResult"]["ETag"])]
    for wrong in ("bytes=0-99999999", "bytes=5-", "bytes=-5", "0-5", "bytes=9-5"):
        headers = {"x-amz-copy-source": f"{bucket}/source", "x-amz-copy-source-range": wrong}
        answer = raw.call("PUT", f"/{bucket}/m", [("uploadId", upload), ("partNumber", "3")], headers)
        assert answer.status in (400, 416) and answer.code in ("InvalidArgument", "InvalidRange"), (wrong, answer)
    assert raw.call("POST", f"/{bucket}/m", [("uploadId", upload)], body=complete_body(parts)).status == 200
    assert raw.get(f"/{bucket}/m").body == body + body[5:105]


def test_17_parts_may_be_sent_again_and_aborted(raw, bucket, s3):
    upload, _ = begin(s3, bucket, "m", {1: b"old"})
    etag = s3.upload_part(Bucket=bucket, Key="m", UploadId=upload, PartNumber=1, Body=b"new")["ETag"]
    assert [part["Size"] for part in s3.list_parts(Bucket=bucket, Key="m", UploadId=upload)["Parts"]] == [3]
    assert raw.call("POST", f"/{bucket}/m", [("uploadId", upload)], body=complete_body([(1, etag)])).status == 200
    assert raw.get(f"/{bucket}/m").body == b"new"
    upload, parts = begin(s3, bucket, "gone", {1: b"x"})
    path, query = f"/{bucket}/gone", [("uploadId", upload)]
    assert raw.call("DELETE", path, query).status == 204
    for answer in (
        raw.call("DELETE", path, query), raw.get(path, query), raw.call("POST", path, query, body=complete_body(parts)),
        raw.call("PUT", path, [*query, ("partNumber", "1")], body=b"x"),
    ):
        assert (answer.status, answer.code) == (404, "NoSuchUpload"), answer
    upload, _ = begin(s3, bucket, "m", {})
    for number in ("0", "10001", "-1", "x", ""):
        answer = raw.call("PUT", f"/{bucket}/m", [("uploadId", upload), ("partNumber", number)], body=b"x")
        assert (answer.status, answer.code) == (400, "InvalidArgument"), (number, answer)
    assert raw.call("PUT", f"/{bucket}/m", [("uploadId", upload), ("partNumber", "10000")], body=b"x").status == 200
