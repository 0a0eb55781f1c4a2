"""Preconditions of reads and writes: the matrix of 304 and 412, as documented."""

import threading

import pytest

OTHER = '"00000000000000000000000000000000"'
OLD, FUTURE = "Sun, 01 Jan 2017 00:00:00 GMT", "Fri, 01 Jan 2100 00:00:00 GMT"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_reads(raw, bucket, method):
    etag = raw.put(f"/{bucket}/k", b"x").headers["ETag"]
    for headers, status in (
        ({"if-match": etag}, 200), ({"if-match": OTHER}, 412), ({"if-match": "*"}, 200), ({"if-match": f"{OTHER}, {etag}"}, 200),
        ({"if-none-match": etag}, 304), ({"if-none-match": OTHER}, 200), ({"if-none-match": "*"}, 304), ({"if-none-match": f"W/{etag}"}, 304),
        ({"if-modified-since": OLD}, 200), ({"if-unmodified-since": OLD}, 412), ({"if-unmodified-since": FUTURE}, 200),
        ({"if-modified-since": "not a date"}, 200),
        ({"if-match": etag, "if-unmodified-since": OLD}, 200), ({"if-match": OTHER, "if-unmodified-since": FUTURE}, 412),
        ({"if-none-match": etag, "if-modified-since": OLD}, 304), ({"if-none-match": OTHER, "if-modified-since": FUTURE}, 200),
        ({"if-match": etag, "if-none-match": etag}, 304),
    ):
        answer = raw.call(method, f"/{bucket}/k", headers=headers)
        assert answer.status == status, (headers, answer)
        if status == 304:
            assert answer.body == b"" and answer.headers["ETag"] == etag and answer.headers["Last-Modified"]
        if status == 412 and method == "GET":
            assert answer.code == "PreconditionFailed" and answer.xml.findtext("Condition")
    assert raw.call(method, f"/{bucket}/missing", headers={"if-none-match": "*"}).status == 404


def test_writes(raw, bucket):
    path = f"/{bucket}/k"
    missing = raw.put(path, b"1", {"if-match": OTHER})
    assert (missing.status, missing.code) == (404, "NoSuchKey"), "AWS: If-Match on what is not there is 404"
    first = raw.put(path, b"1", {"if-none-match": "*"})
    assert first.status == 200
    second = raw.put(path, b"2", {"if-none-match": "*"})
    assert (second.status, second.code) == (412, "PreconditionFailed")
    assert raw.put(path, b"2", {"if-match": OTHER}).status == 412
    assert raw.get(path).body == b"1"
    assert raw.put(path, b"2", {"if-match": first.headers["ETag"]}).status == 200
    assert raw.get(path).body == b"2"
    assert raw.call("DELETE", path, headers={"if-match": first.headers["ETag"]}).status == 412
    assert raw.get(path).status == 200
    assert raw.call("DELETE", path, headers={"if-match": "*"}).status == 204
    assert raw.get(path).status == 404


def test_complete(raw, bucket, s3):
    raw.put(f"/{bucket}/k", b"old")
    upload = s3.create_multipart_upload(Bucket=bucket, Key="k")["UploadId"]
    etag = s3.upload_part(Bucket=bucket, Key="k", UploadId=upload, PartNumber=1, Body=b"new")["ETag"]
    body = f"<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{etag}</ETag></Part></CompleteMultipartUpload>".encode()
    refused = raw.call("POST", f"/{bucket}/k", [("uploadId", upload)], {"if-none-match": "*"}, body)
    assert (refused.status, refused.code) == (412, "PreconditionFailed")
    assert raw.get(f"/{bucket}/k").body == b"old"
    current = raw.call("HEAD", f"/{bucket}/k").headers["ETag"]
    assert raw.call("POST", f"/{bucket}/k", [("uploadId", upload)], {"if-match": current}, body).status == 200
    assert raw.get(f"/{bucket}/k").body == b"new"


def test_one_of_many_creators_wins(raw, bucket):
    for round_number in range(5):
        answers = []
        path = f"/{bucket}/race-{round_number}"

        def create(number, path=path, answers=answers):
            answers.append((raw.put(path, b"%d" % number, {"if-none-match": "*"}).status, number))

        threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        winners = [number for status, number in answers if status == 200]
        assert len(winners) == 1 and {status for status, _ in answers} <= {200, 409, 412}, answers
        assert raw.get(path).body == b"%d" % winners[0]
