"""Behaviours 8 to 10, 14, 15 and 28: regions, buckets and what must accompany a request."""

from harness.checksums import checksum
from harness.raw import Raw
from harness.sigv4 import Signer


def test_08_wrong_region(raw, bucket, european):
    at_home = Raw(european)
    assert at_home.put("/european-bucket-1").status == 200
    abroad = Raw(european, Signer(european.access_key, european.secret_key, "us-west-2"))
    answer = abroad.get("/european-bucket-1")
    assert (answer.status, answer.code) == (400, "AuthorizationHeaderMalformed")
    assert answer.xml.findtext("Region") == "eu-west-1"
    assert at_home.call("HEAD", "/european-bucket-1").headers["x-amz-bucket-region"] == "eu-west-1"
    head = abroad.call("HEAD", "/european-bucket-1")
    assert head.status == 400 and head.headers["x-amz-bucket-region"] == "eu-west-1" and head.body == b""
    anywhere = Raw(raw.server, Signer(raw.server.access_key, raw.server.secret_key, "ap-south-1"))
    answer = anywhere.call("HEAD", f"/{bucket}")
    assert answer.status == 200 and answer.headers["x-amz-bucket-region"] == "us-east-1"


def test_09_location(raw, bucket, european):
    answer = raw.get(f"/{bucket}", [("location", None)]).xml
    assert answer.tag == "LocationConstraint" and not answer.text and len(answer) == 0
    Raw(european).put("/european-bucket-2")
    assert Raw(european).get("/european-bucket-2", [("location", None)]).xml.text == "eu-west-1"


def test_10_creating_ones_own_bucket_again(raw, bucket, european):
    again = raw.put(f"/{bucket}")
    assert again.status == 200 and again.headers["Location"] == f"/{bucket}"
    abroad = Raw(european)
    assert abroad.put("/european-bucket-3").status == 200
    answer = abroad.put("/european-bucket-3")
    assert (answer.status, answer.code) == (409, "BucketAlreadyOwnedByYou")
    assert answer.xml.findtext("BucketName") == "european-bucket-3"
    body = b"<CreateBucketConfiguration><LocationConstraint>us-west-1</LocationConstraint></CreateBucketConfiguration>"
    refused = abroad.put("/european-bucket-4", body)
    assert (refused.status, refused.code) == (400, "IllegalLocationConstraintException"), refused


def test_14_delete_objects_needs_a_checksum(raw, bucket):
    body = b"<Delete><Object><Key>missing</Key></Object></Delete>"
    answer = raw.call("POST", f"/{bucket}", [("delete", None)], body=body)
    assert (answer.status, answer.code) == (400, "InvalidRequest"), answer
    for name in ("md5", "crc32", "crc32c", "crc64nvme", "sha1", "sha256"):
        header = "content-md5" if name == "md5" else f"x-amz-checksum-{name}"
        good = raw.call("POST", f"/{bucket}", [("delete", None)], {header: checksum(name, body)}, body)
        assert good.status == 200, (name, good)
        bad = raw.call("POST", f"/{bucket}", [("delete", None)], {header: checksum(name, b"other")}, body)
        assert (bad.status, bad.code) == (400, "BadDigest"), (name, bad)


def test_15_deleting_what_is_not_there(raw, bucket, s3):
    assert raw.call("DELETE", f"/{bucket}/missing").status == 204
    deleted = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "missing"}]})
    assert [entry["Key"] for entry in deleted["Deleted"]] == ["missing"] and "Errors" not in deleted
    answer = raw.call("DELETE", "/no-such-bucket-here/missing")
    assert (answer.status, answer.code) == (404, "NoSuchBucket")


def test_28_expected_bucket_owner(raw, bucket):
    raw.put(f"/{bucket}/k", b"mine")
    stranger = {"x-amz-expected-bucket-owner": "111122223333"}
    for method, path in (("GET", f"/{bucket}/k"), ("GET", f"/{bucket}"), ("PUT", f"/{bucket}/k"), ("DELETE", f"/{bucket}/k")):
        answer = raw.call(method, path, headers=stranger)
        assert (answer.status, answer.code) == (403, "AccessDenied"), (method, path, answer)
    assert raw.get(f"/{bucket}/k").body == b"mine"
    source = {"x-amz-copy-source": f"/{bucket}/k", "x-amz-source-expected-bucket-owner": "111122223333"}
    assert raw.put(f"/{bucket}/copy", headers=source).status == 403
