"""boto3 with its default settings: CRC32 trailers, transfer manager, retries."""

import io
import urllib.request

import pytest
from botocore.exceptions import ClientError

from conftest import digest


def test_transfers(s3, bucket, files, tmp_path):
    for name in ("small", "big", "empty"):
        s3.upload_file(str(files / name), bucket, name, ExtraArgs={"Metadata": {"name": name}})
        s3.download_file(bucket, name, str(tmp_path / name))
        assert digest(tmp_path / name) == digest(files / name)
        head = s3.head_object(Bucket=bucket, Key=name, ChecksumMode="ENABLED")
        assert head["Metadata"] == {"name": name} and any(field.startswith("Checksum") for field in head)
    assert s3.head_object(Bucket=bucket, Key="big")["ETag"].endswith('-10"'), "nine parts of 8 MiB and a rest"
    s3.copy({"Bucket": bucket, "Key": "big"}, bucket, "copy")
    stream = io.BytesIO()
    s3.download_fileobj(bucket, "copy", stream)
    assert digest(stream.getvalue()) == digest(files / "big")


def test_ranges_and_lists(s3, bucket, files):
    body = (files / "small").read_bytes()
    for number in range(25):
        s3.put_object(Bucket=bucket, Key=f"n/{number:02}", Body=body[number:])
    part = s3.get_object(Bucket=bucket, Key="n/03", Range="bytes=10-19")
    assert part["Body"].read() == body[13:23] and part["ContentRange"] == "bytes 10-19/100000"
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix="n/", PaginationConfig={"PageSize": 7})
    assert [entry["Key"] for page in pages for entry in page["Contents"]] == [f"n/{number:02}" for number in range(25)]
    s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": f"n/{number:02}"} for number in range(25)]})
    assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 0


def test_conditional_writes(s3, bucket):
    s3.put_object(Bucket=bucket, Key="lock", Body=b"1", IfNoneMatch="*")
    with pytest.raises(ClientError, match="PreconditionFailed"):
        s3.put_object(Bucket=bucket, Key="lock", Body=b"2", IfNoneMatch="*")


def test_presigned(presigner, bucket, files):
    body = (files / "small").read_bytes()
    url = presigner.generate_presigned_url("put_object", Params={"Bucket": bucket, "Key": "p q"}, ExpiresIn=60)
    with urllib.request.urlopen(urllib.request.Request(url, data=body, method="PUT", headers={"content-type": ""})) as answer:
        assert answer.status == 200
    url = presigner.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "p q", "ResponseContentType": "text/x"}, ExpiresIn=60)
    with urllib.request.urlopen(url) as answer:
        assert digest(answer.read()) == digest(body) and answer.headers["Content-Type"] == "text/x"
