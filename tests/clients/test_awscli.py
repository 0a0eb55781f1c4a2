"""The AWS command line."""

import json
import os
import urllib.request

from conftest import digest, need, run


def aws(environment, *arguments):
    return run([need("aws"), *arguments], environment)


def test_copy_back_and_forth(environment, bucket, files, tmp_path):
    for name in ("small", "big", "empty"):
        aws(environment, "s3", "cp", files / name, f"s3://{bucket}/dir/{name}", "--no-progress")
        aws(environment, "s3", "cp", f"s3://{bucket}/dir/{name}", tmp_path / name, "--no-progress")
        assert digest(tmp_path / name) == digest(files / name)
    listing = aws(environment, "s3", "ls", "--recursive", f"s3://{bucket}").decode()
    assert [line.split()[2:] for line in listing.splitlines()] == [
        [str((files / name).stat().st_size), f"dir/{name}"] for name in ("big", "empty", "small")
    ]
    aws(environment, "s3", "cp", f"s3://{bucket}/dir/big", f"s3://{bucket}/copy of big", "--no-progress")
    aws(environment, "s3", "mv", f"s3://{bucket}/copy of big", tmp_path / "copy", "--no-progress")
    assert digest(tmp_path / "copy") == digest(files / "big")
    aws(environment, "s3", "rm", "--recursive", f"s3://{bucket}/dir")
    assert aws(environment, "s3", "ls", "--recursive", f"s3://{bucket}").decode().strip() == ""
    aws(environment, "s3", "rb", f"s3://{bucket}")


def test_sync_of_a_tree(environment, bucket, tmp_path):
    tree = tmp_path / "tree"
    for number in range(60):
        path = tree / f"folder {number % 5}" / f"ü{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([number]) * number * 1000)
        # LastModified has whole seconds: a file written in the second of its upload would count as newer.
        os.utime(path, (1_700_000_000, 1_700_000_000))
    aws(environment, "s3", "sync", tree, f"s3://{bucket}/tree", "--no-progress")
    aws(environment, "s3", "sync", f"s3://{bucket}/tree", tmp_path / "back", "--no-progress")
    run(["diff", "-r", tree, tmp_path / "back"], environment)
    assert aws(environment, "s3", "sync", tree, f"s3://{bucket}/tree", "--no-progress") == b"", "nothing is left to do"
    (tree / "folder 1" / "ü1.txt").unlink()
    aws(environment, "s3", "sync", tree, f"s3://{bucket}/tree", "--delete", "--no-progress")
    assert b"/\xc3\xbc1.txt" not in aws(environment, "s3", "ls", "--recursive", f"s3://{bucket}")


def test_api_commands(environment, bucket, files, tmp_path):
    api = lambda *arguments: aws(environment, "s3api", *arguments)  # noqa: E731
    put = json.loads(api("put-object", "--bucket", bucket, "--key", "k", "--body", files / "small", "--metadata", "a=1"))
    head = json.loads(api("head-object", "--bucket", bucket, "--key", "k"))
    assert head["ETag"] == put["ETag"] and head["Metadata"] == {"a": "1"} and head["ContentLength"] == 100_003
    api("get-object", "--bucket", bucket, "--key", "k", "--range", "bytes=100-199", tmp_path / "range")
    assert (tmp_path / "range").read_bytes() == (files / "small").read_bytes()[100:200]
    assert [found["Key"] for found in json.loads(api("list-objects-v2", "--bucket", bucket))["Contents"]] == ["k"]
    api("delete-objects", "--bucket", bucket, "--delete", json.dumps({"Objects": [{"Key": "k"}]}))
    assert "Contents" not in json.loads(api("list-objects-v2", "--bucket", bucket) or b"{}")


def test_presigned(environment, bucket, files):
    aws(environment, "s3", "cp", files / "small", f"s3://{bucket}/a b+c", "--no-progress")
    url = aws(environment, "s3", "presign", f"s3://{bucket}/a b+c").decode().strip()
    with urllib.request.urlopen(url) as answer:
        assert digest(answer.read()) == digest(files / "small")
