"""Disks that are file systems on devices of their own, and what befalls such disks while clients are at work.

Each of six may be unmounted, shut down, become read-only, fail, get stuck or be pulled: no client meets an error, the disk is
out, and when it is back it is rebuilt. A mount point without its disk is an empty directory that nothing is written to. A file
system that another program fills refuses writes, and nothing else.
"""

import contextlib
import json
import subprocess
import time
from pathlib import Path

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from harness.devices import Devices, why_not
from harness.server import Server, binary
from test_disk_storm import await_in_sync, check_offline, report
from test_kill_storm import SECS
from test_lost_disks import BUCKET, Load, check, client

DISK = 2
# Two looks at the disks, or the 10 s that a disk may take to answer; on a busy machine.
PATIENCE_SECS = 60


@pytest.fixture(scope="module", autouse=True)
def _can_be_had():
    reason = why_not(faulty=True)
    if reason:
        pytest.skip(reason)


def state(server, path):
    return next((disk for disk in report(server)["disks"] if disk["path"] == str(path)), None)


def await_out(server, place):
    deadline = time.monotonic() + PATIENCE_SECS
    while report(server)["disks"][place]["state"] != "out":
        assert time.monotonic() < deadline, f"{json.dumps(report(server), indent=1)}\n{server.log_tail(80)}"
        time.sleep(0.1)
    assert report(server)["disks"][place]["reason"], "it is not said why it is out"


def tell(server, *words):
    keys = ["--root-access-key", server.access_key, "--root-secret-key", server.secret_key, "--endpoint", server.endpoint]
    done = subprocess.run([binary(), "disk", *map(str, words), *keys], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@contextlib.contextmanager
def deployment(faulty=(), count=6):
    """Whatever hangs answers again before anybody waits for the server's end."""
    with Devices(count, faulty=faulty) as devices, Server(disks=devices.paths) as server:
        try:
            client(server).create_bucket(Bucket=BUCKET)
            yield devices, server
        finally:
            for device in devices.all:
                if device.process and device.process.poll() is None:
                    device.set_all("fail")


def await_let_go(server, number):
    """Until the server has closed all files of the file system `number`: before that, mounting brings back what failed."""
    descriptors = Path(f"/proc/{server.process.pid}/fd")
    deadline = time.monotonic() + PATIENCE_SECS
    while held := [f"{at.name}: {at.readlink()}" for at in descriptors.iterdir() if at.exists() and at.stat().st_dev == number]:
        assert time.monotonic() < deadline, f"the server holds files of a disk that is out: {held}\n{server.log_tail(80)}"
        time.sleep(0.1)


def mount_anew(server, device, place):
    number = device.path.stat().st_dev
    await_let_go(server, number)
    device.unmount()
    await_out(server, place)
    device.mount()


def await_reader(server):
    """A server that was started for reading alone is never ready."""
    deadline = time.monotonic() + PATIENCE_SECS
    while True:
        with contextlib.suppress(OSError):
            if report(server)["read_only"]:
                return
        assert time.monotonic() < deadline and server.is_alive(), server.log_tail()
        time.sleep(0.1)


def fail_everything(device):
    device.set_all("fail")


def fail_writes(device):
    device.tell("set", "writes", "fail")


def fail_flushes(device):
    device.tell("set", "syncs", "fail")


def get_stuck(device):
    device.set_all("hang")


def be_sound_again(server, device, place):
    """The file system has seen errors and may be read-only by now."""
    device.set_all("ok")
    mount_anew(server, device, place)


def answer_again(server, device, place):
    device.set_all("ok")
    tell(server, "return", place)


def plug_in(_server, device, _place):
    device.detach()
    device.attach()
    device.mount()


# What befalls the disk, and how it comes back.
FAULTS = {
    "unmounted": (False, lambda device: device.unmount(), lambda _server, device, _place: device.mount()),
    "shut down": (False, lambda device: device.shut_down(), mount_anew),
    "read-only": (False, lambda device: device.make_read_only(), mount_anew),
    "failing": (True, fail_everything, be_sound_again),
    "failing writes": (True, fail_writes, be_sound_again),
    "failing flushes": (True, fail_flushes, be_sound_again),
    "stuck": (True, get_stuck, answer_again),
    "pulled": (True, lambda device: device.pull(), plug_in),
}


# What is much like another one waits for a long run.
RARE = {"shut down", "failing writes", "failing flushes"} if SECS < 60 else set()


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault not in RARE])
def test_a_disk_fails_under_load_and_no_client_notices(fault):
    is_faulty, befall, come_back = FAULTS[fault]
    with deployment(faulty=[DISK] if is_faulty else ()) as (devices, server):
        device = devices[DISK]
        place = state(server, device.path)["disk"]
        with Load(server) as load:
            time.sleep(1.5)
            befall(device)
            await_out(server, place)
            assert report(server)["failures_tolerated"] == 1
            time.sleep(1)
            if fault == "unmounted":
                assert "not mounted?" in report(server)["disks"][place]["reason"]
                assert not list(device.path.iterdir()), "something was written to a mount point without its disk"
            come_back(server, device, place)
            await_in_sync(server, 2)
        assert not load.failures, f"{load.failures}\n{server.log_tail(80)}"
        check(server, load.written)
        server.stop()
        check_offline(server)


def test_a_mount_point_without_its_disk_is_left_alone():
    """Two disks are not mounted at a start; the others serve without them, and take them back when they are."""
    with deployment() as (devices, server):
        with Load(server) as load:
            time.sleep(2)
        written = dict(load.written)
        server.stop()
        gone = [devices[1], devices[4]]
        for device in gone:
            device.unmount()
        server.start()
        assert report(server)["failures_tolerated"] == 0
        said = server.log.read_text()
        for device in gone:
            assert any(str(device.path) in line and "not mounted?" in line for line in said.splitlines()), said[-3000:]
        with Load(server) as load:
            time.sleep(4)
        assert not load.failures, f"{load.failures}\n{server.log_tail(80)}"
        written |= load.written
        for _ in range(2):
            for device in gone:
                assert not list(device.path.iterdir()), "something was written to a mount point without its disk"
            server.kill()
            server.start()
        check(server, written)
        for device in gone:
            device.mount()
        await_in_sync(server, 2)
        check(server, written)
        # What is a new, empty file system is a disk, though, and takes the place.
        device = gone[0]
        server.stop()
        device.unmount()
        device.format()
        device.mount()
        server.start()
        await_in_sync(server, 2)
        check(server, written)
        server.stop()
        check_offline(server)


def test_more_full_file_systems_than_a_start_does_without_are_named():
    with deployment() as (devices, server):
        with Load(server) as load:
            time.sleep(2)
        written = dict(load.written)
        strangers = [devices[number].fill() for number in (1, 3, 4)]
        s3, refused = client(server), 0
        # What room there was in Basalt's own files is used up.
        for number in range(2000):
            try:
                s3.put_object(Bucket=BUCKET, Key=f"k{number}", Body=b"%d " % number * 20_000)
            except ClientError as error:
                assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 507, error
                refused += 1
                if refused == 5:
                    break
        assert refused == 5
        server.kill()
        server.start(wait=False)
        assert server.process.wait(60) != 0, "it started"
        assert "no room for what a start writes" in server.log_tail(3), server.log_tail()
        server.command.append("--start-read-only")
        server.start(wait=False)
        await_reader(server)
        check(server, written)
        server.stop()
        server.command.pop()
        for stranger in strangers:
            stranger.unlink()
        server.start()
        await_in_sync(server, 2)
        check(server, written)
        server.stop()
        check_offline(server)


def test_a_file_system_that_others_fill_refuses_writes_alone():
    """Reads and deletes go on, and no disk is taken out for it; a start does without that disk, and takes it back when it has room."""
    patient = Config(retries={"max_attempts": 0}, s3={"addressing_style": "path"}, read_timeout=120)
    with deployment() as (devices, server):
        s3 = boto3.client(
            "s3", endpoint_url=server.endpoint, region_name=server.region, config=patient,
            aws_access_key_id=server.access_key, aws_secret_access_key=server.secret_key,
        )
        bodies, refused = {f"before{number}": b"%d " % number * 700_000 for number in range(4)}, 0
        for key, body in bodies.items():
            s3.put_object(Bucket=BUCKET, Key=key, Body=body)
        stranger = devices[DISK].fill()
        for number in range(400):
            body = b"%d " % number * 700_000
            try:
                s3.put_object(Bucket=BUCKET, Key=f"k{number}", Body=body)
                bodies[f"k{number}"] = body
            except ClientError as error:
                assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 507, error
                refused += 1
                if refused == 5:
                    break
        assert refused == 5, f"{len(bodies)} bodies, and the disk is not full"
        assert all(disk["state"] == "in sync" for disk in report(server)["disks"]), report(server)
        for key, body in bodies.items():
            assert s3.get_object(Bucket=BUCKET, Key=key)["Body"].read() == body
        for key in list(bodies)[: len(bodies) // 2]:
            s3.delete_object(Bucket=BUCKET, Key=key)
            del bodies[key]
        for key, body in bodies.items():
            assert s3.get_object(Bucket=BUCKET, Key=key)["Body"].read() == body
        # A start writes to every disk that is there: it goes on without the one that has no room, until that has.
        server.kill()
        server.start()
        assert state(server, devices[DISK].path)["state"] == "out", report(server)
        assert "no room" in state(server, devices[DISK].path)["reason"], report(server)
        for number in range(20):
            s3.put_object(Bucket=BUCKET, Key=f"degraded{number}", Body=b"%d " % number * 700_000)
        server.kill()
        server.start()
        assert report(server)["failures_tolerated"] == 1
        stranger.unlink()
        await_in_sync(server, 2)
        for key, body in bodies.items():
            assert s3.get_object(Bucket=BUCKET, Key=key)["Body"].read() == body
        for number in range(20):
            s3.put_object(Bucket=BUCKET, Key=f"later{number}", Body=b"%d " % number * 700_000)
        server.stop()
        check_offline(server)
