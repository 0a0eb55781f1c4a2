"""Multipart uploads beyond the documented behaviours: twins, leftovers, conditions, and checksums nobody asked for."""

import threading

import pytest
from botocore.exceptions import ClientError

from harness.checksums import checksum

MIB = 1 << 20


def complete_body(parts):
    listed = "".join(f"<Part><PartNumber>{n}</PartNumber><ETag>{etag}</ETag></Part>" for n, etag in parts)
    return f"<CompleteMultipartUpload>{listed}</CompleteMultipartUpload>".encode()


def begin(s3, bucket, key, bodies, **create):
    upload = s3.create_multipart_upload(Bucket=bucket, Key=key, **create)["UploadId"]
    parts = [
        (number, s3.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=number, Body=body)["ETag"])
        for number, body in bodies.items()
    ]
    return upload, parts


def test_an_upload_without_a_chosen_checksum(raw, bucket, s3):
    """boto3 protects each part by CRC32 although the upload was created without an algorithm."""
    bodies = [b"p" * (5 * MIB), b"last"]
    upload, parts = begin(s3, bucket, "m", dict(enumerate(bodies, 1)))
    assert "ChecksumAlgorithm" not in s3.list_parts(Bucket=bucket, Key="m", UploadId=upload)
    done = raw.call("POST", f"/{bucket}/m", [("uploadId", upload)], body=complete_body(parts))
    crc64 = checksum("crc64nvme", b"".join(bodies))
    assert done.xml.findtext("ChecksumCRC64NVME") == crc64 and done.xml.findtext("ChecksumType") == "FULL_OBJECT"
    got = raw.get(f"/{bucket}/m", headers={"x-amz-checksum-mode": "ENABLED"})
    assert got.body == b"".join(bodies) and got.headers["x-amz-checksum-crc64nvme"] == crc64


def test_an_upload_of_one_algorithm_takes_no_other(raw, bucket, s3):
    upload = s3.create_multipart_upload(Bucket=bucket, Key="m", ChecksumAlgorithm="SHA256")["UploadId"]
    query = [("uploadId", upload), ("partNumber", "1")]
    answer = raw.call("PUT", f"/{bucket}/m", query, {"x-amz-checksum-crc32": checksum("crc32", b"x")}, b"x")
    assert (answer.status, answer.code) == (400, "InvalidRequest"), answer
    # Without one, the part gets the upload's algorithm; completing a composite must list it all the same.
    part = raw.call("PUT", f"/{bucket}/m", query, body=b"x")
    assert part.headers["x-amz-checksum-sha256"] == checksum("sha256", b"x")
    bare = raw.call("POST", f"/{bucket}/m", [("uploadId", upload)], body=complete_body([(1, part.headers["ETag"])]))
    assert (bare.status, bare.code) == (400, "InvalidRequest"), bare
    listed = s3.list_parts(Bucket=bucket, Key="m", UploadId=upload)
    assert listed["Parts"][0]["ChecksumSHA256"] == checksum("sha256", b"x") and listed["ChecksumType"] == "COMPOSITE"
    entry = {"PartNumber": 1, "ETag": part.headers["ETag"], "ChecksumSHA256": checksum("sha256", b"other")}
    with pytest.raises(ClientError, match="InvalidPart"):
        s3.complete_multipart_upload(Bucket=bucket, Key="m", UploadId=upload, MultipartUpload={"Parts": [entry]})
    entry["ChecksumSHA256"] = checksum("sha256", b"x")
    s3.complete_multipart_upload(Bucket=bucket, Key="m", UploadId=upload, MultipartUpload={"Parts": [entry]})


def test_what_the_request_says_of_the_object_is_checked(raw, bucket, s3):
    upload, parts = begin(s3, bucket, "m", {1: b"12345"})
    query, body = [("uploadId", upload)], complete_body(parts)
    for headers, code in (
        ({"x-amz-mp-object-size": "6"}, "InvalidRequest"),
        ({"x-amz-checksum-type": "COMPOSITE"}, "InvalidRequest"),
        ({"x-amz-checksum-crc64nvme": checksum("crc64nvme", b"other")}, "BadDigest"),
    ):
        answer = raw.call("POST", f"/{bucket}/m", query, headers, body)
        assert (answer.status, answer.code) == (400, code), (headers, answer)
    good = {"x-amz-mp-object-size": "5", "x-amz-checksum-crc64nvme": checksum("crc64nvme", b"12345")}
    assert raw.call("POST", f"/{bucket}/m", query, good, body).status == 200


def test_twins_complete_once_and_hear_the_same(raw, bucket, s3):
    for round_number in range(5):
        key = f"m{round_number}"
        upload, parts = begin(s3, bucket, key, {1: b"x" * (5 * MIB), 2: b"y"})
        answers = []

        def complete(key=key, upload=upload, parts=parts, answers=answers):
            answers.append(raw.call("POST", f"/{bucket}/{key}", [("uploadId", upload)], body=complete_body(parts)))

        threads = [threading.Thread(target=complete) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {answer.status for answer in answers} == {200}, answers
        assert len({answer.xml.findtext("ETag") for answer in answers}) == 1


def test_a_repeat_hears_the_same_only_of_its_own_object(raw, bucket, s3):
    upload, parts = begin(s3, bucket, "m", {1: b"x" * (5 * MIB), 2: b"y"})
    path, query = f"/{bucket}/m", [("uploadId", upload)]
    conditions = {"if-none-match": "*"}
    first = raw.call("POST", path, query, conditions, complete_body(parts))
    again = raw.call("POST", path, query, conditions, complete_body(parts))
    assert first.status == again.status == 200 and first.xml.findtext("ETag") == again.xml.findtext("ETag")
    other = raw.call("POST", path, query, body=complete_body(parts[:1]))
    assert (other.status, other.code) == (400, "InvalidPart")
    assert raw.put(path, b"overwritten").status == 200
    late = raw.call("POST", path, query, body=complete_body(parts))
    assert (late.status, late.code) == (404, "NoSuchUpload")
    assert raw.get(path).body == b"overwritten"


def test_a_refused_upload_part_is_refused_before_its_body(raw, bucket):
    for query in ([("uploadId", "nonsense"), ("partNumber", "1")], [("uploadId", "0" * 32), ("partNumber", "1")]):
        answer = raw.call("PUT", f"/{bucket}/m", query, body=b"x" * 100)
        assert (answer.status, answer.code) == (404, "NoSuchUpload"), answer


def test_many_parts_and_their_pages(s3, bucket):
    upload = s3.create_multipart_upload(Bucket=bucket, Key="m")["UploadId"]
    numbers = [1, 2, 3, 100, 1000, 5000, 9999, 10000]
    for number in numbers:
        s3.upload_part(Bucket=bucket, Key="m", UploadId=upload, PartNumber=number, Body=b"%d" % number)
    for size in (1, 3, 7, 8, 1000):
        pages = s3.get_paginator("list_parts").paginate(
            Bucket=bucket, Key="m", UploadId=upload, PaginationConfig={"PageSize": size}
        )
        listed = [page.get("Parts", []) for page in pages]
        assert all(len(page) <= size for page in listed)
        assert [part["PartNumber"] for page in listed for part in page] == numbers
    empty = s3.list_parts(Bucket=bucket, Key="m", UploadId=upload, MaxParts=0)
    assert not empty["IsTruncated"] and "Parts" not in empty
    s3.abort_multipart_upload(Bucket=bucket, Key="m", UploadId=upload)


def test_uploads_page_through_common_prefixes(raw, s3, bucket):
    names = [f"{folder}/{n}" for folder in "abc" for n in range(3)] + ["top", "top", "zed"]
    for name in names:
        s3.create_multipart_upload(Bucket=bucket, Key=name)
    for size in (1, 2, 3, 100):
        found, markers = [], {}
        while True:
            page = s3.list_multipart_uploads(Bucket=bucket, Delimiter="/", MaxUploads=size, **markers)
            entries = [upload["Key"] for upload in page.get("Uploads", [])]
            entries += [prefix["Prefix"] for prefix in page.get("CommonPrefixes", [])]
            assert len(entries) <= size
            found += entries
            if not page["IsTruncated"]:
                break
            markers = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}
        assert sorted(found) == ["a/", "b/", "c/", "top", "top", "zed"], size
    wrong = raw.get(f"/{bucket}", [("uploads", None), ("key-marker", "top"), ("upload-id-marker", "x")])
    assert (wrong.status, wrong.code) == (400, "InvalidArgument")


def test_a_copied_part_obeys_its_source(raw, bucket, s3):
    put = raw.put(f"/{bucket}/source", b"0123456789")
    upload = s3.create_multipart_upload(Bucket=bucket, Key="m", ChecksumAlgorithm="CRC32C")["UploadId"]
    query = [("uploadId", upload), ("partNumber", "1")]
    source = {"x-amz-copy-source": f"/{bucket}/source"}
    for more, status, code in (
        ({"x-amz-copy-source-if-none-match": put.headers["ETag"]}, 412, "PreconditionFailed"),
        ({"x-amz-copy-source": f"/{bucket}/missing"}, 404, "NoSuchKey"),
        ({"x-amz-copy-source": "/no-such-bucket-zzz/k"}, 404, "NoSuchBucket"),
        ({"x-amz-copy-source": f"/{bucket}/source?versionId={'v' * 32}"}, 404, "NoSuchVersion"),
    ):
        answer = raw.call("PUT", f"/{bucket}/m", query, source | more)
        assert (answer.status, answer.code) == (status, code), (more, answer)
    lost = raw.call("PUT", f"/{bucket}/m", [("uploadId", "0" * 32), ("partNumber", "1")], source)
    assert (lost.status, lost.code) == (404, "NoSuchUpload")
    copied = raw.call("PUT", f"/{bucket}/m", query, source | {"x-amz-copy-source-range": "bytes=2-5"})
    assert copied.status == 200 and copied.xml.tag == "CopyPartResult"
    assert copied.xml.findtext("ChecksumCRC32C") == checksum("crc32c", b"2345")
