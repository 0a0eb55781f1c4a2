"""A real tree of files goes up and comes back the same, also when the server is killed on the way.

The tree is a part of the Rust toolchain (or of Python, where that is missing): thousands of small files and some large
ones. BASALT_TREE_MIB bounds it (60); tests/long takes all of it.
"""

import os
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from harness.server import Server

MIB_MAX = int(os.environ.get("BASALT_TREE_MIB", "60"))
ATTEMPTS_MAX = 12


def source_of_files():
    try:
        return Path(subprocess.run(["rustc", "--print", "sysroot"], capture_output=True, text=True, check=True).stdout.strip())
    except (OSError, subprocess.CalledProcessError):
        return Path(sys.prefix)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Copies files until the bound is met, small and large ones mixed by a fixed seed."""
    root, target = source_of_files(), tmp_path_factory.mktemp("tree")
    found = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    random.Random(1).shuffle(found)
    left = MIB_MAX << 20
    for path in found:
        size = path.stat().st_size
        if size > left:
            continue
        left -= size
        copy = target / path.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    assert sum(1 for path in target.rglob("*") if path.is_file()) > 20
    return target


def environment(server):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return clean | {
        "AWS_ACCESS_KEY_ID": server.access_key, "AWS_SECRET_ACCESS_KEY": server.secret_key, "AWS_DEFAULT_REGION": server.region,
        "AWS_ENDPOINT_URL": server.endpoint, "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/dev/null",
        "AWS_RETRY_MODE": "standard", "AWS_MAX_ATTEMPTS": "6",
    }


def sync(server, source, target, attempts=1):
    """`aws s3 sync`, as often as an operator would start it again."""
    program = shutil.which("aws")
    if not program:
        pytest.skip("aws is not installed")
    for attempt in range(1, attempts + 1):
        done = subprocess.run([program, "s3", "sync", str(source), str(target), "--no-progress", "--only-show-errors"], env=environment(server), capture_output=True, text=True, timeout=3600, check=False)
        if done.returncode == 0:
            return attempt
    raise AssertionError(f"{attempts} attempts, the last one: {done.stderr[-2000:]}\n{server.log_tail()}")


def make_bucket(server):
    subprocess.run([shutil.which("aws") or "aws", "s3", "mb", "s3://tree-bucket"], env=environment(server), check=True, capture_output=True)


def test_up_and_down(tree, tmp_path):
    with Server() as server:
        make_bucket(server)
        sync(server, tree, "s3://tree-bucket/tree")
        server.restart()
        sync(server, "s3://tree-bucket/tree", tmp_path / "back")
    subprocess.run(["diff", "-r", tree, tmp_path / "back"], check=True)


def test_up_and_down_through_kills(tree, tmp_path):
    ends = threading.Event()

    def kill_now_and_then(server):
        draw = random.Random(2)
        while not ends.wait(draw.uniform(2, 5)):
            server.kill()
            time.sleep(draw.uniform(0, 0.3))
            server.start()

    with Server() as server:
        make_bucket(server)
        killer = threading.Thread(target=kill_now_and_then, args=(server,), daemon=True)
        killer.start()
        try:
            sync(server, tree, "s3://tree-bucket/tree", ATTEMPTS_MAX)
            sync(server, "s3://tree-bucket/tree", tmp_path / "back", ATTEMPTS_MAX)
        finally:
            ends.set()
            killer.join(120)
        subprocess.run(["diff", "-r", tree, tmp_path / "back"], check=True)
