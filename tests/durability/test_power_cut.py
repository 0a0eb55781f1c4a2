"""Power is pulled while clients are at work: every disk at the same time, on real file systems.

Each disk is ext4 on a loop device on an image that knows what was flushed. At the cut it answers nothing any more, and each
sector written since its last flush keeps what it has or goes back to what it was. The server is killed, the file systems are
mounted anew, and the history of each key must have an order, as in a kill storm: what was acknowledged was on the medium.

BASALT_STORM_SECS sets how long each storm lasts (20), BASALT_STORM_SEED its choices.
"""

import os
import time

import pytest

from harness.devices import Devices, why_not
from harness.server import Server
from test_disk_storm import await_in_sync, check_offline
from test_kill_storm import SECS, SEED, Storm


class PowerStorm(Storm):
    def __init__(self, server, devices, seed):
        super().__init__(server, seed)
        self.devices, self.lost = devices, []

    def cut(self, draw):
        # One after the other, within a millisecond or so: no two power supplies die at the same instant.
        for device in draw.sample(self.devices.all, len(self.devices.all)):
            self.lost.append(device.tell("power-cut", draw.randrange(1 << 30)))
        self.server.kill()
        for device in self.devices.all:
            device.detach()
        for device in self.devices.all:
            device.attach()
            device.mount()
        self.kills += 1
        self.server.start()

    def disturb(self, draw, secs):
        deadline = time.monotonic() + secs
        while time.monotonic() < deadline or self.kills < 3:
            time.sleep(draw.uniform(0.5, 3.0))
            self.cut(draw)


@pytest.mark.skipif("BASALT_TEST_ENDPOINT" in os.environ, reason="needs a server of its own, to kill it")
@pytest.mark.parametrize("disks", [1, 6])
def test_what_was_acknowledged_survives_power_cuts(disks):
    reason = why_not(faulty=True)
    if reason:
        pytest.skip(reason)
    with Devices(disks, faulty=True) as devices, Server(disks=devices.paths) as server:
        storm = PowerStorm(server, devices, SEED)
        storm.run(SECS / 2)
        print(f"{disks} disks: {storm.kills} cuts, {storm.counts}, sectors lost {storm.lost}")
        storm.judge()
        # Disks that lost power a moment before the others were out for as long.
        await_in_sync(server, 2 if disks == 6 else 0)
        server.stop()
        check_offline(server)
