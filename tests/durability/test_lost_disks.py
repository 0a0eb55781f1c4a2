"""Disks go while clients are at work, and come back: two of six, one for good and replaced by an empty directory.

No client meets an error and no byte is wrong; the set is rebuilt until any two others may go, which then they do, with a
SIGKILL and a start without them. Of two that are missing the one is replaced whose path the empty directory has, so that the
other may return.
"""

import hashlib
import json
import random
import shutil
import threading
import time
import urllib.request

import boto3
import pytest
from botocore.config import Config

from harness.server import Server

BUCKET = "lost-disks"
CLIENTS = 6
SIZES = [0, 100, 5000, 70_000, 300_000, 1_500_000]
# Looked at every two seconds; then a rebuild.
PATIENCE_SECS = 90


def client(server):
    config = Config(retries={"max_attempts": 0}, s3={"addressing_style": "path"})
    return boto3.client(
        "s3", endpoint_url=server.endpoint, region_name=server.region, config=config,
        aws_access_key_id=server.access_key, aws_secret_access_key=server.secret_key,
    )


def tolerated(server):
    with urllib.request.urlopen(f"{server.endpoint}/-/ready", timeout=5) as answer:
        return json.load(answer)["failures_tolerated"]


def await_tolerated(server, count):
    deadline = time.monotonic() + PATIENCE_SECS
    while tolerated(server) != count:
        assert time.monotonic() < deadline, f"{tolerated(server)} more failures tolerated, not {count}:\n{server.log_tail()}"
        time.sleep(0.1)


class Load:
    """Clients that write keys of their own, read them back, and expect every answer to be right."""

    def __init__(self, server):
        self.server, self.ends, self.failures, self.written = server, threading.Event(), [], {}
        self.threads = [threading.Thread(target=self.run, args=(number,)) for number in range(CLIENTS)]

    def run(self, number):
        draw, s3, own, turn = random.Random(number), client(self.server), {}, 0
        try:
            while not self.ends.is_set():
                key = f"{number}/{draw.randrange(20)}"
                if key in own and draw.random() < 0.5:
                    got = s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
                    assert hashlib.md5(got).hexdigest() == own[key], f"{key} holds other bytes"
                else:
                    body = f"{key} {turn} ".encode() + draw.randbytes(draw.choice(SIZES))
                    s3.put_object(Bucket=BUCKET, Key=key, Body=body)
                    own[key], turn = hashlib.md5(body).hexdigest(), turn + 1
        except Exception as error:  # noqa: BLE001 — whatever it is, a client noticed
            self.failures.append(f"client {number}: {error!r}")
        self.written |= own

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.ends.set()
        for thread in self.threads:
            thread.join()


def check(server, written):
    s3 = client(server)
    for key, digest in written.items():
        got = s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        assert hashlib.md5(got).hexdigest() == digest, f"{key} holds other bytes"


def test_two_of_six_disks_go_and_return_under_load():
    with Server(disks=6) as server:
        client(server).create_bucket(Bucket=BUCKET)
        away = server.directory / "away"
        with Load(server) as load:
            time.sleep(3)
            shutil.rmtree(server.disks[2])
            server.disks[4].rename(away)
            await_tolerated(server, 0)
            time.sleep(2)
            server.disks[2].mkdir()
            away.rename(server.disks[4])
            await_tolerated(server, 2)
        assert not load.failures, f"{load.failures}\n{server.log_tail()}"
        check(server, load.written)
        # What was rebuilt now has to stand in for two others. A missing directory would be made anew and rebuilt; a file in its
        # place is no disk.
        server.kill()
        gone, server.disks = server.disks[:2], server.disks[2:]
        for disk in gone:
            disk.rename(disk.with_suffix(".gone"))
            disk.write_text("no disk")
        server.start()
        assert tolerated(server) == 0
        check(server, load.written)
        client(server).put_object(Bucket=BUCKET, Key="degraded", Body=b"written without two disks")
        for disk in gone:
            disk.unlink()
            disk.with_suffix(".gone").rename(disk)
        await_tolerated(server, 2)
        check(server, load.written)


@pytest.mark.parametrize("is_running", [False, True], ids=["before a start", "while it serves"])
def test_an_empty_disk_takes_the_place_of_the_one_at_its_path(is_running):
    with Server(disks=6) as server:
        client(server).create_bucket(Bucket=BUCKET)
        with Load(server) as load:
            time.sleep(1)
        server.kill()
        returns, lost = server.disks[1], server.disks[4]
        aside = server.directory / "aside"
        returns.rename(aside)
        shutil.rmtree(lost)
        for disk in (returns, lost):
            disk.write_text("no disk")
        if is_running:
            server.start()
            assert tolerated(server) == 0
        lost.unlink()
        lost.mkdir()
        if not is_running:
            server.start()
        await_tolerated(server, 1)
        returns.unlink()
        aside.rename(returns)
        await_tolerated(server, 2)
        server.restart()
        assert tolerated(server) == 2
        check(server, load.written)
