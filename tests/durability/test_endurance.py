"""What must not run out: space under overwrites, buffers under broken clients, memory under load."""

import os
import random
import subprocess
import threading

import pytest

from harness.raw import Raw
from harness.server import Server
from harness.sigv4 import UNSIGNED

MIB = 1 << 20
BUCKET = "endurance-bucket"

pytestmark = pytest.mark.skipif("BASALT_TEST_ENDPOINT" in os.environ, reason="needs a server of its own")


def used(server):
    """Bytes that the disks occupy."""
    return sum(int(subprocess.run(["du", "-s", "-B1", disk], capture_output=True, check=True, text=True).stdout.split()[0]) for disk in server.disks)


def resident(server):
    """Bytes of the process that are in memory."""
    with open(f"/proc/{server.process.pid}/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def unsigned_put(raw, path, body):
    return raw.call("PUT", path, body=body, payload_hash=UNSIGNED)


def test_overwrites_reuse_their_space():
    """Sixty times the same data, two gigabytes in all: the disks hold a few copies of it and what is being freed."""
    with Server(disks=1) as server:
        raw = Raw(server)
        raw.put(f"/{BUCKET}")
        bodies = {f"big{n}": random.Random(n).randbytes(8 * MIB) for n in range(4)}
        bodies |= {f"small{n}": random.Random(n).randbytes(20_000) for n in range(50)}
        written = 0
        for round_number in range(60):
            for key, body in bodies.items():
                assert unsigned_put(raw, f"/{BUCKET}/{key}", body).status == 200, (round_number, key)
                written += len(body)
        assert used(server) < written * 0.65, (written, used(server))
        server.restart()
        for key, body in bodies.items():
            assert raw.get(f"/{BUCKET}/{key}").body == body


def test_broken_clients_leak_nothing():
    """Uploads and downloads cut off in the middle, more of them than buffers or stripes could be leaked."""
    with Server("--memory", "512MiB", disks=4) as server:
        raw = Raw(server)
        raw.put(f"/{BUCKET}")
        body = random.Random(1).randbytes(24 * MIB)
        assert unsigned_put(raw, f"/{BUCKET}/k", body).status == 200

        def break_off(number):
            draw = random.Random(number)
            for _ in range(15):
                if draw.random() < 0.6:
                    head, _, _ = raw.head("PUT", f"/{BUCKET}/cut", headers={"content-length": str(len(body))}, payload_hash=UNSIGNED)
                    with raw.connect() as connection:
                        connection.send(head + body[: draw.randrange(len(body))])
                else:
                    head, _, _ = raw.head("GET", f"/{BUCKET}/k")
                    with raw.connect() as connection:
                        connection.send(head)
                        left = draw.randrange(len(body))
                        while left > 0:
                            left -= len(connection.socket.recv(min(left, 1 << 18))) or left

        sizes = []
        for _ in range(3):
            threads = [threading.Thread(target=break_off, args=(number,)) for number in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            for number in range(6):
                assert unsigned_put(raw, f"/{BUCKET}/after{number % 2}", body).status == 200
                assert raw.get(f"/{BUCKET}/k").body == body
            sizes.append(used(server))
        assert raw.get(f"/{BUCKET}/cut").status == 404
        # The first round opens extents; the others bring another 3 GiB of stripes that nobody keeps.
        assert sizes[2] < sizes[0] + 1536 * MIB, sizes


def test_memory_stays_in_its_envelope():
    """Many large uploads and slow readers at once, in little memory: slower or refused with 503, never more memory."""
    limit = 256 * MIB
    with Server("--memory", "256MiB") as server:
        raw = Raw(server)
        raw.put(f"/{BUCKET}")
        body = random.Random(1).randbytes(32 * MIB)
        statuses, peak, ends = [], [], threading.Event()

        def watch():
            while not ends.wait(0.05):
                peak.append(resident(server))

        def work(number):
            for turn in range(3):
                path = f"/{BUCKET}/k{number}"
                put = unsigned_put(raw, path, body)
                statuses.append(put.status)
                if put.status == 200:
                    got = raw.get(path)
                    statuses.append(got.status)
                    assert got.status != 200 or got.body == body, (number, turn)

        watcher = threading.Thread(target=watch)
        watcher.start()
        threads = [threading.Thread(target=work, args=(number,)) for number in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(300)
        ends.set()
        watcher.join()
        assert not any(thread.is_alive() for thread in threads), "requests hang"
        assert set(statuses) <= {200, 503} and statuses.count(200) > 24, statuses
        assert max(peak) < limit * 1.25, f"{max(peak) >> 20} MiB resident"


def test_the_same_disks_on_more_or_fewer_cores():
    """Shards are dealt to however many cores there are; the data does not care."""
    with Server("--shards", "4", disks=2, cores="1") as server:
        raw = Raw(server)
        raw.put(f"/{BUCKET}")
        keys = {f"k{n}": random.Random(n).randbytes(random.Random(n).choice([10, 5000, 300_000])) for n in range(60)}
        for key, body in keys.items():
            assert unsigned_put(raw, f"/{BUCKET}/{key}", body).status == 200
        for cores in ("2", "1"):
            server.command[server.command.index("--cores") + 1] = cores
            server.restart()
            assert raw.get(f"/{BUCKET}").texts("Contents/Key") == sorted(keys)
            for key, body in keys.items():
                assert raw.get(f"/{BUCKET}/{key}").body == body


def test_a_deleted_bucket_stays_deleted_through_kills():
    """Creation and deletion of buckets run over all shards; a kill in between leaves one or the other."""
    with Server() as server:
        raw = Raw(server)
        draw = random.Random(3)
        for number in range(12):
            name = f"churn-{number % 3}"
            stop = threading.Timer(draw.uniform(0.0, 0.03), server.kill)
            stop.start()
            try:
                answers = [raw.put(f"/{name}").status]
                answers.append(raw.put(f"/{name}/k", b"x").status)
                answers.append(raw.call("DELETE", f"/{name}/k").status)
                answers.append(raw.call("DELETE", f"/{name}").status)
            except Exception:  # noqa: BLE001 — the kill may end any of them in any way
                answers = None
            stop.join()
            server.start()
            status = raw.call("HEAD", f"/{name}").status
            assert status in (200, 404)
            assert answers is None or status == 404, answers
            assert (name in raw.get("/").texts("Buckets/Bucket/Name")) == (status == 200)
            if status == 200:
                raw.call("DELETE", f"/{name}/k")
                assert raw.call("DELETE", f"/{name}").status == 204
