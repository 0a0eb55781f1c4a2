"""One server for the whole suite, one fresh bucket for each test."""

import itertools
import os

import boto3
import botocore.config
import pytest

from harness.raw import Raw
from harness.server import Server

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def server():
    with Server() as running:
        yield running


@pytest.fixture(scope="session")
def european():
    """A server whose region is set."""
    if os.environ.get("BASALT_TEST_ENDPOINT"):
        pytest.skip("needs a server of its own, with --region")
    with Server(region="eu-west-1") as running:
        yield running


@pytest.fixture
def raw(server):
    yield Raw(server)
    assert server.is_alive(), server.log_tail()


@pytest.fixture
def bucket(raw):
    name = f"test-bucket-{os.getpid()}-{next(_numbers)}"
    answer = raw.call("PUT", f"/{name}")
    assert answer.status == 200, answer
    return name


def client(server, **config):
    return boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        region_name=server.region,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        config=botocore.config.Config(retries={"max_attempts": 0}, s3={"addressing_style": "path"}, **config),
    )


@pytest.fixture(scope="session")
def s3(server):
    """boto3 with its defaults, except that a failure shows at once."""
    return client(server)
