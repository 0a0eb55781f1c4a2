#!/usr/bin/env python3
"""GET with one of six disks slowed, beside the same with all disks sound.

Six ext4 file systems on loop devices, 4+2; the image of one of them is served over FUSE (tests/harness/fuse_image.py) and
answers each read, write and flush later by a delay that is switched on and off between runs of `basalt bench get` on the same objects.
So both sides of a ratio have the same devices, and only the delay differs. Wants root.

    bench/slow_disk.py [--size 256KiB] [--rounds 5] [--duration 15s] [--concurrency 4] [--delay 0.2] [--rate N]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from harness.devices import Devices  # noqa: E402
from harness.server import Server, binary  # noqa: E402

SLOW = 2
PERCENTILES = ["p50", "p90", "p99", "p999", "max"]


def get(server, options, *more):
    """One run; its operations per second and its latencies in microseconds."""
    command = [binary(), "bench", "get", "--endpoint", server.endpoint, "--size", options.size, "--objects", str(options.objects)]
    command += ["-c", str(options.concurrency), "--json", "-", "-q", "--keep", *more]
    command += ["--rate", str(options.rate)] if options.rate else []
    environment = os.environ | {"BASALT_ROOT_ACCESS_KEY": server.access_key, "BASALT_ROOT_SECRET_KEY": server.secret_key}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        sys.exit(f"exit code {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    report = json.loads(done.stdout)
    row = next(row for row in report["operations"] if row["name"] == "get")
    return row["ops_per_second"], row["latency_us"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="256KiB")
    parser.add_argument("--objects", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--duration", default="15s")
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--delay", type=float, default=0.2, help="seconds")
    parser.add_argument("--rate", type=int, help="requests per second at which they are due")
    options = parser.parse_args()
    with Devices(6, faulty=[SLOW]) as devices, Server(disks=devices.paths) as server:
        get(server, options, "--ops", "100")
        found = {"sound": [], "slow": []}
        for round_number in range(options.rounds):
            for state in ("sound", "slow") if round_number % 2 == 0 else ("slow", "sound"):
                delay = options.delay if state == "slow" else 0
                for what in ("read_delay", "write_delay", "sync_delay"):
                    devices[SLOW].tell("set", what, delay)
                time.sleep(1)
                rate, latency = get(server, options, "--existing", "--duration", options.duration)
                found[state].append((rate, latency))
                print(f"{state:5} {rate:7.0f}/s  " + "  ".join(f"{name} {latency[name] / 1000:.2f} ms" for name in PERCENTILES), flush=True)
        for what in ("read_delay", "write_delay", "sync_delay"):
            devices[SLOW].tell("set", what, 0)
        median = {state: [statistics.median(run[1][name] for run in runs) for name in PERCENTILES] for state, runs in found.items()}
        for name, sound, slow in zip(PERCENTILES, median["sound"], median["slow"]):
            print(f"{name:4}  sound {sound / 1000:.2f} ms  slow {slow / 1000:.2f} ms  ratio {slow / sound:.2f}")


if __name__ == "__main__":
    main()
