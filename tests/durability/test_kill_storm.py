"""Writers overwrite a few keys while the server is killed and restarted again and again.

Every answer, and every silence, becomes part of one history per key, and each history must be linearizable: nothing
acknowledged is lost, nothing deleted comes back, nothing is seen that was never written, and no read goes back in
time, across any number of SIGKILLs. LIST is a read of every key: a page must show each write that was acknowledged
before the request, also of keys that are being overwritten at that moment.

BASALT_STORM_SECS sets how long each storm lasts (20), BASALT_STORM_SEED its choices.
"""

import hashlib
import os
import random
import threading
import time

import pytest

from harness.raw import Raw
from harness.server import Server
from harness.sigv4 import UNSIGNED
from linearizability import ABSENT, Operation, violation

SECS = float(os.environ.get("BASALT_STORM_SECS", "20"))
SEED = int(os.environ.get("BASALT_STORM_SEED", "1"))
WRITERS, READERS, LISTERS = 8, 2, 2
KEPT = [f"kept/{number}" for number in range(8)]
DELETED = [f"deleted/{number}" for number in range(4)]
SIZES = [0, 1, 100, 4096, 5000, 70_000, 300_000, 1_500_000]
BUCKET = "storm-bucket"


class Storm:
    def __init__(self, server, seed):
        self.server, self.raw, self.seed = server, Raw(server), seed
        self.history = {key: [] for key in KEPT + DELETED}
        self.lock = threading.Lock()
        self.ends = threading.Event()
        self.failures, self.kills, self.counts = [], 0, {}

    def request(self, method, path, query=(), body=b""):
        """The answer, ABSENT of one, and whether the request reached the server at all."""
        head, _, _ = self.raw.head(method, path, query, body=body, payload_hash=UNSIGNED)
        try:
            connection = self.raw.connect()
        except OSError:
            return None, False
        with connection:
            try:
                connection.send(head + body)
                return connection.answer(method), True
            except Exception:  # noqa: BLE001 — a killed server ends an answer in many ways, all of them silence
                return None, True

    def record(self, key, start, end, is_write, value):
        with self.lock:
            self.history[key].append(Operation(start, end, is_write, value))
            kind = ("lost " if end == float("inf") else "") + ("write" if is_write else "read")
            self.counts[kind] = self.counts.get(kind, 0) + 1

    def complain(self, text):
        with self.lock:
            self.failures.append(text)

    def write(self, draw, key, number):
        delete = key in DELETED and draw.random() < 0.4
        # Unique by its first bytes, so that each value is written once; an empty body would not be.
        body = b"" if delete else (f"{key} {number} ".encode() + draw.randbytes(16) * (draw.choice(SIZES) // 16 + 1))
        value = ABSENT if delete else hashlib.md5(body).hexdigest()
        start = time.monotonic()
        answer, reached = self.request("DELETE" if delete else "PUT", f"/{BUCKET}/{key}", body=body)
        end = time.monotonic()
        if answer is not None and answer.status in (200, 204):
            self.record(key, start, end, True, value)
        elif answer is not None and answer.status < 500:
            self.complain(f"write of {key}: {answer}")
        elif reached:
            self.record(key, start, float("inf"), True, value)

    def read(self, draw, key):
        method = draw.choice(["GET", "HEAD"])
        start = time.monotonic()
        answer, _ = self.request(method, f"/{BUCKET}/{key}")
        end = time.monotonic()
        if answer is None or answer.status >= 500:
            return
        if answer.status == 404:
            self.record(key, start, end, False, ABSENT)
        elif answer.status == 200:
            etag = answer.headers["ETag"].strip('"')
            if method == "GET" and hashlib.md5(answer.body).hexdigest() != etag:
                self.complain(f"{key}: the body of {len(answer.body)} bytes is not what its ETag {etag} says")
            self.record(key, start, end, False, etag)
        else:
            self.complain(f"read of {key}: {answer}")

    def list(self, draw):
        size = draw.choice(["1000", "5"])
        start, query, found = time.monotonic(), [("list-type", "2"), ("max-keys", size)], {}
        ranges = []  # of keys, each with the times of the page that answers for it
        low = ""
        token = []
        while True:
            start = time.monotonic()
            answer, _ = self.request("GET", f"/{BUCKET}", query + token)
            end = time.monotonic()
            if answer is None or answer.status != 200:
                return
            page = answer.xml
            entries = {entry.findtext("Key"): entry.findtext("ETag").strip('"') for entry in page.findall("Contents")}
            if list(entries) != sorted(entries):
                self.complain(f"a page out of order: {list(entries)}")
            found |= entries
            truncated = page.findtext("IsTruncated") == "true"
            high = max(entries) if truncated and entries else "\U0010ffff"
            ranges.append((low, high, start, end))
            if not truncated:
                break
            low, token = high, [("continuation-token", page.findtext("NextContinuationToken"))]
        strangers = set(found) - set(self.history)
        if strangers:
            self.complain(f"LIST shows keys that nobody wrote: {strangers}")
        for key in self.history:
            _, _, start, end = next(page for page in ranges if page[0] < key <= page[1])
            self.record(key, start, end, False, found.get(key, ABSENT))

    def work(self, role, number):
        draw = random.Random(f"{self.seed} {role} {number}")
        turn = 0
        keys = list(self.history)
        while not self.ends.is_set():
            turn += 1
            if role == "writer":
                self.write(draw, draw.choice(keys), f"{number}.{turn}")
            elif role == "reader":
                self.read(draw, draw.choice(keys))
            else:
                self.list(draw)
            if not self.server.is_alive():
                time.sleep(0.02)

    def run(self, secs):
        assert self.raw.put(f"/{BUCKET}").status == 200
        draw = random.Random(f"{self.seed} keys")
        for number, key in enumerate(KEPT):
            self.write(draw, key, f"first.{number}")
        roles = [("writer", WRITERS), ("reader", READERS), ("lister", LISTERS)]
        threads = [threading.Thread(target=self.work, args=(role, n), daemon=True) for role, count in roles for n in range(count)]
        for thread in threads:
            thread.start()
        try:
            self.disturb(draw, secs)
        finally:
            self.ends.set()
            for thread in threads:
                thread.join(60)
        self.settle(draw)

    def disturb(self, draw, secs):
        deadline = time.monotonic() + secs
        while time.monotonic() < deadline:
            time.sleep(draw.uniform(0.2, 1.5))
            self.server.kill()
            self.kills += 1
            if draw.random() < 0.3:
                # Killed again on its way up: recovery itself is interrupted.
                self.server.start(wait=False)
                time.sleep(draw.uniform(0.0, 0.2))
                self.server.kill()
            self.server.start()

    def settle(self, draw):
        """At rest LIST and HEAD agree, and the last reads belong to the histories."""
        for key in self.history:
            self.read(draw, key)
        self.list(draw)
        listed = {entry.findtext("Key"): entry.findtext("ETag") for entry in self.raw.get(f"/{BUCKET}").xml.findall("Contents")}
        heads = {key: self.raw.call("HEAD", f"/{BUCKET}/{key}") for key in self.history}
        assert listed == {key: head.headers["ETag"] for key, head in heads.items() if head.status == 200}

    def judge(self):
        assert not self.failures, "\n".join(self.failures[:10])
        for key, history in self.history.items():
            wrong = violation(history)
            assert wrong is None, f"{key} (seed {self.seed}): no order explains\n" + "\n".join(map(str, wrong))
        assert self.kills >= 3 and self.counts.get("write", 0) > 50 and self.counts.get("read", 0) > 50, (self.kills, self.counts)


@pytest.mark.parametrize("disks", [1, 4])
def test_kill_storm(disks):
    if os.environ.get("BASALT_TEST_ENDPOINT"):
        pytest.skip("needs a server of its own, to kill it")
    with Server(disks=disks) as server:
        storm = Storm(server, SEED)
        storm.run(SECS)
        print(f"{disks} disks: {storm.kills} kills, {storm.counts}")
        storm.judge()


def test_overwrites_without_kills():
    """LIST under overwrites, with nothing else going on; a lister must never miss a key that exists throughout."""
    with Server() as server:
        storm = Storm(server, SEED + 1)
        server.kill = lambda: None
        server.start = lambda wait=True: server
        try:
            storm.run(min(SECS, 10))
        finally:
            del server.kill, server.start
        storm.kills = 3
        assert storm.counts.get("lost write", 0) == 0, storm.counts
        storm.judge()


def test_restart_keeps_everything():
    """Drained by SIGTERM under load: what was acknowledged is there, and nothing half done."""
    with Server() as server:
        raw = Raw(server)
        assert raw.put(f"/{BUCKET}").status == 200
        for number in range(200):
            assert raw.put(f"/{BUCKET}/k{number:03}", b"%d" % number * 1000).status == 200
        for _ in range(3):
            server.restart()
            assert len(raw.get(f"/{BUCKET}").texts("Contents/Key")) == 200
        for number in range(200):
            assert raw.get(f"/{BUCKET}/k{number:03}").body == b"%d" % number * 1000
