"""Real clients against the real binary: one server, a bucket and two files for each test.

A client that is not installed is a skip by name, never a silent pass.
"""

import hashlib
import itertools
import os
import random
import shutil
import subprocess

import boto3
import botocore.config
import pytest

from harness.server import Server

MIB = 1 << 20
_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def server():
    with Server() as running:
        yield running


@pytest.fixture
def bucket(server, s3):
    name = f"client-bucket-{os.getpid()}-{next(_numbers)}"
    s3.create_bucket(Bucket=name)
    yield name
    assert server.is_alive(), server.log_tail()


@pytest.fixture(scope="session")
def environment(server):
    """What every AWS-like client reads; nothing of the caller's own configuration."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "S3", "RCLONE", "RESTIC"))}
    home = server.directory / "home"
    home.mkdir(exist_ok=True)
    # For us-east-1 the AWS tools still presign with Signature Version 2 unless told otherwise.
    (home / "config").write_text("[default]\ns3 =\n    signature_version = s3v4\n")
    return clean | {
        "HOME": str(home),
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
        "AWS_DEFAULT_REGION": server.region,
        "AWS_ENDPOINT_URL": server.endpoint,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(home / "config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(home / "none"),
    }


@pytest.fixture(scope="session")
def s3(server):
    """boto3 exactly as it comes: its own retries, checksums and transfer settings."""
    return boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        region_name=server.region,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
    )


@pytest.fixture(scope="session")
def presigner(server):
    """boto3 told to presign with Signature Version 4, which it does by default in every region but us-east-1."""
    return boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        region_name=server.region,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        config=botocore.config.Config(signature_version="s3v4"),
    )


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """`small` (100 KB), `big` (72 MiB: several parts for every client) and `empty`, of reproducible content."""
    folder = tmp_path_factory.mktemp("files")
    source = random.Random(20_260)
    for name, size in (("small", 100_003), ("big", 72 * MIB + 11), ("empty", 0)):
        (folder / name).write_bytes(source.randbytes(size))
    return folder


def digest(data_or_path):
    data = data_or_path if isinstance(data_or_path, bytes) else data_or_path.read_bytes()
    return hashlib.sha256(data).hexdigest()


def need(program):
    found = shutil.which(program)
    if not found:
        pytest.skip(f"{program} is not installed")
    return found


def run(command, environment, timeout=300, **options):
    """Runs a client and gives its standard output; a failure shows everything it said."""
    done = subprocess.run([str(part) for part in command], env=environment, capture_output=True, timeout=timeout, check=False, **options)
    assert done.returncode == 0, f"{command} ended with {done.returncode}\n{done.stdout[-3000:].decode(errors='replace')}\n{done.stderr[-3000:].decode(errors='replace')}"
    return done.stdout
