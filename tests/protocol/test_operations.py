"""Each operation of the first stage: its good case and its documented errors."""

import hashlib
import os

import pytest
from botocore.exceptions import ClientError

from harness.checksums import checksum
from harness.raw import NAMESPACE, Raw
from harness.server import Server


def refusal(call, **arguments):
    with pytest.raises(ClientError) as raised:
        call(**arguments)
    return raised.value.response["ResponseMetadata"]["HTTPStatusCode"], raised.value.response["Error"]["Code"]


def test_every_answer_carries_its_identity(raw, bucket):
    for answer in (raw.get("/"), raw.get(f"/{bucket}"), raw.get(f"/{bucket}/missing"), raw.call("HEAD", f"/{bucket}/missing"), raw.put(f"/{bucket}/k")):
        for name in ("x-amz-request-id", "x-amz-id-2", "Date", "Server"):
            assert answer.headers[name], (name, answer)


def test_list_buckets(raw, bucket, s3):
    names = [found["Name"] for found in s3.list_buckets()["Buckets"]]
    assert bucket in names and names == sorted(names)
    assert raw.get("/").xml.findtext("Owner/ID")


@pytest.mark.parametrize("name", ["ab", "A-Upper", "under_score", "-start", "end-", "a..b", "192.168.1.1", "x" * 64, "a.-b", "xn--a", "a-s3alias"])
def test_bad_bucket_names(raw, name):
    answer = raw.put(f"/{name}")
    assert (answer.status, answer.code) == (400, "InvalidBucketName"), answer


def test_head_and_delete_bucket(raw, bucket, s3):
    assert raw.call("HEAD", f"/{bucket}").status == 200
    missing = raw.call("HEAD", "/no-such-bucket-0")
    assert missing.status == 404 and missing.body == b""
    raw.put(f"/{bucket}/k", b"x")
    assert refusal(s3.delete_bucket, Bucket=bucket) == (409, "BucketNotEmpty")
    raw.call("DELETE", f"/{bucket}/k")
    assert raw.call("DELETE", f"/{bucket}").status == 204
    assert refusal(s3.delete_bucket, Bucket=bucket) == (404, "NoSuchBucket")
    assert raw.call("HEAD", f"/{bucket}").status == 404
    assert raw.put(f"/{bucket}").status == 200, "the name is free again"
    assert raw.get(f"/{bucket}").texts("Contents/Key") == []


def test_an_open_upload_does_not_show_in_a_bucket_made_again(raw, bucket, s3):
    s3.create_multipart_upload(Bucket=bucket, Key="open")
    deleted = raw.call("DELETE", f"/{bucket}")
    assert deleted.status == 204, deleted
    assert raw.put(f"/{bucket}").status == 200
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=bucket)


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 65535, 65536, 131072, 1 << 20, (1 << 20) + 1, 5_000_001, 20 << 20])
def test_objects_of_every_size(raw, bucket, size):
    body = bytes((n * 31 + size) & 0xFF for n in range(251)) * (size // 251 + 1)
    body = body[:size]
    put = raw.put(f"/{bucket}/k", body)
    assert put.status == 200 and put.headers["ETag"] == f'"{hashlib.md5(body).hexdigest()}"'
    got = raw.get(f"/{bucket}/k")
    assert got.body == body and got.headers["Content-Length"] == str(size)
    head = raw.call("HEAD", f"/{bucket}/k")
    assert head.headers["Content-Length"] == str(size) and head.body == b"" and head.headers["Accept-Ranges"] == "bytes"
    if size > 2:
        middle = size // 2
        part = raw.get(f"/{bucket}/k", headers={"range": f"bytes={middle}-{min(size - 1, middle + 70000)}"})
        assert part.status == 206 and part.body == body[middle : middle + 70001]


def test_overwrite_and_delete(raw, bucket):
    for body in (b"first", b"", b"third" * 100_000):
        assert raw.put(f"/{bucket}/k", body).status == 200
        assert raw.get(f"/{bucket}/k").body == body
        assert raw.get(f"/{bucket}").texts("Contents/Size") == [str(len(body))]
    assert raw.call("DELETE", f"/{bucket}/k").status == 204
    answer = raw.get(f"/{bucket}/k")
    assert (answer.status, answer.code) == (404, "NoSuchKey")
    head = raw.call("HEAD", f"/{bucket}/k")
    assert head.status == 404 and head.body == b""
    assert raw.get(f"/{bucket}").texts("Contents/Key") == []


def test_operations_on_a_missing_bucket(raw):
    for method, path, query in (
        ("GET", "", ()), ("GET", "", [("location", None)]), ("GET", "", [("uploads", None)]), ("GET", "", [("versions", None)]),
        ("GET", "/k", ()), ("PUT", "/k", ()), ("DELETE", "/k", ()), ("POST", "/k", [("uploads", None)]),
    ):
        answer = raw.call(method, f"/no-such-bucket-1{path}", query)
        assert (answer.status, answer.code) == (404, "NoSuchBucket"), (method, path, query, answer)
        assert answer.xml.findtext("BucketName") == "no-such-bucket-1"


def test_delete_objects(raw, bucket, s3):
    keys = [f"k{n}" for n in range(20)] + ["a&b<c>", "é", "line\nbreak"]
    for key in keys:
        s3.put_object(Bucket=bucket, Key=key, Body=b"x")
    result = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key} for key in keys[:3] + keys[-3:]]})
    assert {entry["Key"] for entry in result["Deleted"]} == set(keys[:3] + keys[-3:])
    quiet = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key} for key in keys[3:6]], "Quiet": True})
    assert "Deleted" not in quiet and "Errors" not in quiet
    assert [entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket)["Contents"]] == sorted(keys[6:20])
    result = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": keys[6], "VersionId": "null"}]})
    assert [entry["Key"] for entry in result["Deleted"]] == [keys[6]]
    too_many = "".join(f"<Object><Key>{n}</Key></Object>" for n in range(1001))
    for body in (f"<Delete>{too_many}</Delete>", "<Delete></Delete>", "<Delete><Object></Object></Delete>", "<Delete>", "<Other/>", "", "no xml"):
        data = body.encode()
        answer = raw.call("POST", f"/{bucket}", [("delete", None)], {"content-md5": checksum("md5", data)}, data)
        assert answer.status == 400 and answer.code in ("MalformedXML", "MissingRequestBodyError", "UserKeyMustBeSpecified"), (body[:60], answer)


def test_list_objects_pages_through_common_prefixes(s3, bucket):
    keys = [f"{folder}/{n}" for folder in "abcde" for n in range(5)] + ["top1", "top2"]
    for key in keys:
        s3.put_object(Bucket=bucket, Key=key, Body=b"")
    for size in (1, 2, 3, 100):
        names, pages = [], s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Delimiter="/", PaginationConfig={"PageSize": size})
        for page in pages:
            assert page["KeyCount"] <= size
            names += [prefix["Prefix"] for prefix in page.get("CommonPrefixes", [])] + [entry["Key"] for entry in page.get("Contents", [])]
        assert sorted(names) == ["a/", "b/", "c/", "d/", "e/", "top1", "top2"]
    pages = s3.get_paginator("list_objects").paginate(Bucket=bucket, PaginationConfig={"PageSize": 4})
    assert [entry["Key"] for page in pages for entry in page["Contents"]] == keys
    owner = s3.list_objects_v2(Bucket=bucket, FetchOwner=True, MaxKeys=1)["Contents"][0]["Owner"]
    assert owner["ID"] and "Owner" not in s3.list_objects_v2(Bucket=bucket, MaxKeys=1)["Contents"][0]
    assert s3.list_objects(Bucket=bucket, MaxKeys=1)["Contents"][0]["Owner"]["ID"] == owner["ID"]


def test_list_object_versions_empties_a_bucket(s3, bucket):
    for key in ("a", "b/c", "d"):
        s3.put_object(Bucket=bucket, Key=key, Body=b"")
    pages = s3.get_paginator("list_object_versions").paginate(Bucket=bucket, PaginationConfig={"PageSize": 2})
    versions = [(entry["Key"], entry["VersionId"]) for page in pages for entry in page["Versions"]]
    assert versions == [("a", "null"), ("b/c", "null"), ("d", "null")]
    s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key, "VersionId": version} for key, version in versions]})
    s3.delete_bucket(Bucket=bucket)


def test_configuration_that_was_never_set(s3, bucket):
    assert "Status" not in s3.get_bucket_versioning(Bucket=bucket)
    assert "LoggingEnabled" not in s3.get_bucket_logging(Bucket=bucket)
    s3.get_bucket_notification_configuration(Bucket=bucket)
    acl = s3.get_bucket_acl(Bucket=bucket)
    assert [grant["Permission"] for grant in acl["Grants"]] == ["FULL_CONTROL"] and acl["Grants"][0]["Grantee"]["ID"] == acl["Owner"]["ID"]
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    assert s3.get_object_acl(Bucket=bucket, Key="k")["Grants"][0]["Permission"] == "FULL_CONTROL"
    for call, code in (
        (s3.get_bucket_policy, "NoSuchBucketPolicy"),
        (s3.get_bucket_cors, "NoSuchCORSConfiguration"),
        (s3.get_bucket_lifecycle_configuration, "NoSuchLifecycleConfiguration"),
        (s3.get_bucket_tagging, "NoSuchTagSet"),
        (s3.get_bucket_website, "NoSuchWebsiteConfiguration"),
        (s3.get_bucket_replication, "ReplicationConfigurationNotFoundError"),
        (s3.get_object_lock_configuration, "ObjectLockConfigurationNotFoundError"),
        (s3.get_public_access_block, "NoSuchPublicAccessBlockConfiguration"),
    ):
        assert refusal(call, Bucket=bucket) == (404, code), code


def test_what_is_not_built_says_so_and_changes_nothing(raw, bucket):
    raw.put(f"/{bucket}/k", b"kept")
    for sub in ("acl", "tagging", "retention", "legal-hold", "torrent", "restore", "select"):
        for method in ("PUT", "POST"):
            answer = raw.call(method, f"/{bucket}/k", [(sub, None)], body=b"<x/>")
            assert answer.status in (400, 405, 501), (sub, method, answer)
    for sub in ("policy", "cors", "lifecycle", "replication", "website", "encryption", "inventory", "accelerate"):
        answer = raw.call("PUT", f"/{bucket}", [(sub, None)], body=b"<x/>")
        assert answer.status in (400, 501), (sub, answer)
    for name, value in (
        ("x-amz-server-side-encryption", "AES256"), ("x-amz-acl", "public-read"), ("x-amz-tagging", "a=b"), ("x-amz-grant-read", "id=1"),
        ("x-amz-storage-class", "GLACIER"), ("x-amz-object-lock-mode", "GOVERNANCE"),
    ):
        answer = raw.put(f"/{bucket}/k", b"lost", {name: value})
        assert (answer.status, answer.code) == (501, "NotImplemented"), (name, answer)
    for acl in ("private", "bucket-owner-full-control"):
        assert raw.put(f"/{bucket}/other", b"x", {"x-amz-acl": acl}).status == 200
    assert raw.put(f"/{bucket}/other", b"x", {"x-amz-storage-class": "STANDARD"}).status == 200
    assert raw.get(f"/{bucket}/k").body == b"kept" and raw.call("HEAD", f"/{bucket}").status == 200


def test_virtual_hosts(raw):
    if os.environ.get("BASALT_TEST_ENDPOINT"):
        pytest.skip("needs a server of its own, with --domain")
    with Server("--domain", "s3.example.test") as server:
        at = Raw(server)
        assert at.put("/virtual-bucket").status == 200
        at.host = f"virtual-bucket.s3.example.test:{server.port}"
        assert at.put("/dir/k", b"virtual").status == 200
        assert at.get("/dir/k").body == b"virtual" and at.get("/").texts("Contents/Key") == ["dir/k"]
        for key in ("/-/live", "/-/other", "/minio/health/live"):
            assert at.put(key, key.encode()).status == 200 and at.get(key).body == key.encode()
            assert at.call("DELETE", key).status == 204 and at.get(key, anonymous=True).status == 403
        at.host = f"s3.example.test:{server.port}"
        assert at.get("/virtual-bucket/dir/k").body == b"virtual" and at.get("/").xml.tag == "ListAllMyBucketsResult"


def test_namespaces_of_every_list(raw, bucket):
    for query in ([("uploads", None)], [("versions", None)], [("versioning", None)], [("acl", None)]):
        answer = raw.get(f"/{bucket}", query)
        assert answer.status == 200 and answer.namespace == NAMESPACE, (query, answer)
