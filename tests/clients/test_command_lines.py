"""s3cmd, rclone, restic and curl."""

import json
import urllib.request

import pytest

from conftest import digest, need, run


@pytest.fixture
def s3cmd(server, environment, tmp_path):
    program = need("s3cmd")
    config = tmp_path / "s3cfg"
    config.write_text(
        f"[default]\naccess_key = {server.access_key}\nsecret_key = {server.secret_key}\nhost_base = 127.0.0.1:{server.port}\n"
        f"host_bucket = 127.0.0.1:{server.port}\nuse_https = False\nbucket_location = {server.region}\nmultipart_chunk_size_mb = 15\n"
    )
    return lambda *arguments: run([program, "-c", config, *arguments], environment)


def test_s3cmd(s3cmd, bucket, files, tmp_path):
    for name in ("small", "big", "empty"):
        s3cmd("put", files / name, f"s3://{bucket}/dir/{name}", "--no-progress")
        s3cmd("get", f"s3://{bucket}/dir/{name}", tmp_path / name, "--no-progress")
        assert digest(tmp_path / name) == digest(files / name)
    assert [line.split()[-1] for line in s3cmd("ls", "-r", f"s3://{bucket}").decode().splitlines()] == [f"s3://{bucket}/dir/{name}" for name in ("big", "empty", "small")]
    s3cmd("cp", f"s3://{bucket}/dir/small", f"s3://{bucket}/copy")
    s3cmd("get", f"s3://{bucket}/copy", tmp_path / "copy", "--no-progress")
    assert digest(tmp_path / "copy") == digest(files / "small")
    assert b"100003" in s3cmd("info", f"s3://{bucket}/copy")
    s3cmd("sync", f"{files}/", f"s3://{bucket}/sync/", "--no-progress")
    s3cmd("del", "-r", "-f", f"s3://{bucket}/dir")
    assert b"/dir/" not in s3cmd("ls", "-r", f"s3://{bucket}")
    s3cmd("rb", "-r", "-f", f"s3://{bucket}")


@pytest.fixture
def rclone(server, environment):
    program = need("rclone")
    remote = {
        "TYPE": "s3", "PROVIDER": "Other", "ENDPOINT": server.endpoint, "REGION": server.region,
        "ACCESS_KEY_ID": server.access_key, "SECRET_ACCESS_KEY": server.secret_key, "FORCE_PATH_STYLE": "true",
    }
    settings = environment | {f"RCLONE_CONFIG_B_{name}": value for name, value in remote.items()} | {"RCLONE_CONFIG": "/dev/null"}
    return lambda *arguments: run([program, "--retries=1", "--low-level-retries=1", *arguments], settings)


def test_rclone(rclone, bucket, files, tmp_path):
    rclone("copy", files, f"b:{bucket}/dir", "--s3-upload-cutoff=16M", "--s3-chunk-size=8M")
    rclone("check", files, f"b:{bucket}/dir", "--download")
    rclone("copy", f"b:{bucket}/dir", tmp_path / "back", "--multi-thread-cutoff=16M", "--multi-thread-streams=4")
    for name in ("small", "big", "empty"):
        assert digest(tmp_path / "back" / name) == digest(files / name)
    listing = json.loads(rclone("lsjson", "-R", f"b:{bucket}"))
    assert {entry["Path"]: entry["Size"] for entry in listing if not entry["IsDir"]}["dir/small"] == 100_003
    assert rclone("cat", f"b:{bucket}/dir/small", "--offset=1000", "--count=500") == (files / "small").read_bytes()[1000:1500]
    rclone("copyto", f"b:{bucket}/dir/big", f"b:{bucket}/copy")
    rclone("moveto", f"b:{bucket}/copy", f"b:{bucket}/moved ü+")
    assert rclone("sync", files, f"b:{bucket}/dir", "-v") == b""
    rclone("purge", f"b:{bucket}/dir")
    assert [entry["Path"] for entry in json.loads(rclone("lsjson", "-R", f"b:{bucket}"))] == ["moved ü+"]


def test_restic(server, environment, bucket, files, tmp_path):
    program = need("restic")
    settings = environment | {"RESTIC_REPOSITORY": f"s3:{server.endpoint}/{bucket}/repository", "RESTIC_PASSWORD": "secret", "RESTIC_CACHE_DIR": str(tmp_path / "cache")}
    restic = lambda *arguments: run([program, *arguments], settings)  # noqa: E731
    restic("init")
    restic("backup", files)
    (tmp_path / "more").write_bytes(b"more" * 10_000)
    restic("backup", files, tmp_path / "more")
    restic("check", "--read-data")
    restic("restore", "latest", "--target", tmp_path / "back")
    for name in ("small", "big", "empty"):
        assert digest(tmp_path / "back" / str(files).lstrip("/") / name) == digest(files / name)
    restic("forget", "--keep-last", "1", "--prune")
    restic("check", "--read-data")


def test_curl(server, environment, bucket, files, tmp_path):
    curl = [need("curl"), "-sS", "--fail-with-body", "--aws-sigv4", f"aws:amz:{server.region}:s3", "--user", f"{server.access_key}:{server.secret_key}"]
    url = f"{server.endpoint}/{bucket}"
    unsigned = ["-H", "x-amz-content-sha256: UNSIGNED-PAYLOAD"]
    for name in ("small", "big"):
        run([*curl, *unsigned, "-T", files / name, f"{url}/{name}"], environment)
        run([*curl, *unsigned, "-o", tmp_path / name, f"{url}/{name}"], environment)
        assert digest(tmp_path / name) == digest(files / name)
    assert run([*curl, *unsigned, "-r", "5-14", f"{url}/small"], environment) == (files / "small").read_bytes()[5:15]
    assert b"<Key>small</Key>" in run([*curl, *unsigned, f"{url}?list-type=2"], environment)
    run([*curl, *unsigned, "-X", "PUT", "-H", f"x-amz-copy-source: /{bucket}/small", f"{url}/copy"], environment)
    assert digest(run([*curl, *unsigned, f"{url}/copy"], environment)) == digest(files / "small")
    run([*curl, *unsigned, "-X", "DELETE", f"{url}/copy"], environment)
    missing = run([*curl[:2], *curl[3:], *unsigned, "-o", "/dev/null", "-w", "%{http_code}", f"{url}/copy"], environment)
    assert missing == b"404"


def test_presigned_by_one_and_fetched_by_another(presigner, environment, bucket, files):
    presigner.upload_file(str(files / "small"), bucket, "p/ä &=?#")
    url = presigner.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "p/ä &=?#"})
    assert digest(run([need("curl"), "-sSf", url], environment)) == digest(files / "small")
    with urllib.request.urlopen(url) as answer:
        assert digest(answer.read()) == digest(files / "small")
