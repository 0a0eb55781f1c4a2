"""A kill storm in which disks go and come back: pulled, deleted, replaced by a file, returned stale, replaced by empty ones.

It goes on in rounds. In each, up to as many disks of every set as it can do without are taken away, while the server runs
or while it is dead, and given back in some way, while it runs or while it is dead, with SIGKILLs throughout; then the set
gets the time to be rebuilt, under the same load. Rounds go on until every disk was away. The history of each key is judged as
in any kill storm, a live server must not answer with an error for a disk that is not there, and at the end all is in sync,
`basalt check` finds nothing, and everything is compared once more without as many disks as may fail.

BASALT_STORM_SECS sets how long it lasts at least (20), BASALT_STORM_SEED its choices.
"""

import json
import os
import random
import shutil
import subprocess
import time
import urllib.request

import pytest

from harness.devices import Devices, patiently, why_not
from harness.server import Server, binary
from test_kill_storm import SECS, SEED, Storm

# The longest that one round's rebuild may take, with other things going on on the machine.
PATIENCE_SECS = 120
KILLS_PER_ROUND_MAX = 1

pytestmark = pytest.mark.skipif("BASALT_TEST_ENDPOINT" in os.environ, reason="needs a server of its own, to kill it")


def report(server):
    with urllib.request.urlopen(f"{server.endpoint}/-/disks", timeout=30) as answer:
        return json.load(answer)


def await_in_sync(server, tolerated):
    deadline = time.monotonic() + PATIENCE_SECS
    while True:
        seen = report(server)
        if seen["failures_tolerated"] == tolerated and all(disk["state"] == "in sync" for disk in seen["disks"]):
            return
        assert time.monotonic() < deadline, f"not in sync: {json.dumps(seen, indent=1)}\n{server.log_tail(80)}"
        time.sleep(0.1)


class Bay:
    """The place of one disk, and what became of the disk that was in it."""

    HOW = ("pull", "file", "delete")

    def __init__(self, path):
        self.path, self.aside = path, path.with_suffix(".aside")
        self.absences, self.is_away = 0, False

    @property
    def is_lost(self):
        return not self.aside.exists()

    def take(self, how):
        """`pull` and `file` leave the disk as it is, somewhere else; `delete` is the end of it."""
        if how == "delete":
            shutil.rmtree(self.path)
        else:
            self.path.rename(self.aside)
        # A start makes a directory that is missing, and that is an empty disk; what is no directory is no disk.
        if how == "file":
            self.path.write_text("no disk")
        self.absences, self.is_away = self.absences + 1, True

    def block(self):
        if self.is_away and not self.path.exists():
            self.path.write_text("no disk")

    def give_back(self, is_empty):
        self.path.unlink(missing_ok=True)
        if is_empty:
            shutil.rmtree(self.aside, ignore_errors=True)
            self.path.mkdir()
        else:
            self.aside.rename(self.path)
        self.is_away = False


class MountPoint:
    """The same where the disk is a file system of its own: what is left without it is an empty directory, and stays empty."""

    HOW = ("unmount",)
    is_lost = False

    def __init__(self, device):
        self.device, self.path = device, device.path
        self.absences, self.is_away = 0, False

    def take(self, _how):
        self.device.unmount()
        self.absences, self.is_away = self.absences + 1, True

    def block(self):
        assert not self.is_away or not list(self.path.iterdir()), "something was written to a mount point without its disk"

    def give_back(self, is_empty):
        self.block()
        if is_empty:
            # Not while the server has a file of it open.
            patiently(self.device.format)
        self.device.mount()
        self.is_away = False


class DiskStorm(Storm):
    """`width` disks, beside each other in the list, are a set that does without `parity` of them."""

    def __init__(self, server, seed, bays, width, parity):
        super().__init__(server, seed)
        self.bays = bays
        self.sets = [self.bays[start : start + width] for start in range(0, len(self.bays), width)]
        self.parity, self.rounds, self.taken = parity, 0, []

    def request(self, method, path, query=(), body=b""):
        answer, reached = super().request(method, path, query, body)
        if answer is not None and answer.status >= 500:
            self.complain(f"{method} {path}: {answer} with {[bay.path.name for bay in self.bays if bay.is_away]} away")
        return answer, reached

    def kill(self, draw, meanwhile=lambda: None):
        self.server.kill()
        self.kills += 1
        meanwhile()
        for bay in self.bays:
            bay.block()
        if draw.random() < 0.3:
            self.server.start(wait=False)
            time.sleep(draw.uniform(0.0, 0.3))
            self.server.kill()
        self.server.start()

    def now_or_while_dead(self, draw, change):
        if draw.random() < 0.5:
            change()
        else:
            self.kill(draw, change)

    def round(self, draw):
        going = []
        for bays in self.sets:
            # Those that were away least, in any order.
            going += sorted(draw.sample(bays, len(bays)), key=lambda bay: bay.absences)[: self.parity]
        for bay in going:
            how = draw.choice(bay.HOW)
            self.taken.append(f"{bay.path.name} {how}")
            self.now_or_while_dead(draw, lambda bay=bay, how=how: bay.take(how))
            time.sleep(draw.uniform(0.0, 1.0))
        for _ in range(draw.randrange(KILLS_PER_ROUND_MAX + 1)):
            self.kill(draw)
            time.sleep(draw.uniform(0.2, 0.8))
        for bay, is_empty in [(bay, draw.random() < 0.35 or bay.is_lost) for bay in draw.sample(going, len(going))]:
            self.now_or_while_dead(draw, lambda bay=bay, is_empty=is_empty: bay.give_back(is_empty))
            time.sleep(draw.uniform(0.0, 1.0))
        for _ in range(draw.randrange(KILLS_PER_ROUND_MAX + 1)):
            self.kill(draw)
            time.sleep(draw.uniform(0.2, 0.8))
        await_in_sync(self.server, self.parity)
        self.rounds += 1

    def disturb(self, draw, secs):
        deadline = time.monotonic() + secs
        while time.monotonic() < deadline or self.kills < 3 or not all(bay.absences for bay in self.bays):
            self.round(draw)


def check_offline(server):
    done = subprocess.run([binary(), "check", *map(str, server.disks)], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, f"exit code {done.returncode}: {done.stdout}{done.stderr}"


@pytest.mark.parametrize(
    ("disks", "width", "parity", "flags"),
    [(6, 6, 2, ()), (2, 2, 1, ("--start-degraded",)), (3, 3, 1, ()), (6, 3, 1, ("--erasure", "2+1"))],
    ids=["4+2", "mirror", "2+1", "two sets of 2+1"],
)
def test_disks_go_and_return_between_kills(disks, width, parity, flags):
    with Server(*flags, disks=disks) as server:
        storm = DiskStorm(server, SEED, [Bay(path) for path in server.disks], width, parity)
        storm.run(SECS if disks == width == 6 else SECS / 4)
        judge_and_take_others(storm, "file")


def judge_and_take_others(storm, how):
    print(f"{storm.kills} kills, {storm.rounds} rounds, {storm.taken}, {storm.counts}")
    storm.judge()
    storm.server.stop()
    check_offline(storm.server)
    draw = random.Random(f"{storm.seed} last")
    for bays in storm.sets:
        for bay in draw.sample(bays, storm.parity):
            bay.take(how)
    storm.server.start()
    assert report(storm.server)["failures_tolerated"] == 0
    storm.settle(draw)
    storm.judge()


def test_file_systems_are_unmounted_and_return_between_kills():
    reason = why_not()
    if reason:
        pytest.skip(reason)
    with Devices(6) as devices, Server(disks=devices.paths) as server:
        storm = DiskStorm(server, SEED, [MountPoint(device) for device in devices.all], 6, 2)
        storm.run(SECS)
        judge_and_take_others(storm, "unmount")
