"""The real binary as a child process: started, awaited, drained, killed and restarted.

BASALT_BIN names the binary (target/release/basalt by default), BASALT_TEST_CORES the number of cores it gets.
BASALT_TEST_ENDPOINT lets the suites talk to a server that already runs; then nothing is started or killed.
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

ACCESS_KEY = "basalt-test-access"
SECRET_KEY = "basalt-test-secret-0123456789abcdef"
ROOT = Path(__file__).resolve().parents[2]
READY_SECS_MAX = 60
EXIT_SECS_MAX = 60


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def binary():
    return os.environ.get("BASALT_BIN", str(ROOT / "target/release/basalt"))


class Server:
    """One deployment: its disks stay across restarts, its port too. `disks` are new directories, or paths that are there."""

    def __init__(self, *flags, disks=1, region=None, cores=None, log=None):
        self.external = os.environ.get("BASALT_TEST_ENDPOINT")
        self.region = region or "us-east-1"
        self.access_key, self.secret_key = ACCESS_KEY, SECRET_KEY
        self.process = None
        self.directory = Path(tempfile.mkdtemp(prefix="basalt-test-", dir=os.environ.get("BASALT_TEST_DIR")))
        self.disks = [self.directory / f"disk{n}" for n in range(disks)] if isinstance(disks, int) else list(disks)
        self.log = Path(log) if log else self.directory / "server.log"
        if self.external:
            self.port = int(self.external.rsplit(":", 1)[1])
            return
        for disk in self.disks:
            disk.mkdir(exist_ok=True)
        self.port = free_port()
        cores = cores or os.environ.get("BASALT_TEST_CORES", "2")
        self.command = [binary(), "server", *map(str, self.disks), "--listen", f"127.0.0.1:{self.port}"]
        self.command += ["--cores", cores] + (["--region", region] if region else []) + list(flags)

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.port}"

    def start(self, wait=True):
        if self.external:
            return self
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "BASALT_"))}
        environment |= {"BASALT_ROOT_ACCESS_KEY": ACCESS_KEY, "BASALT_ROOT_SECRET_KEY": SECRET_KEY}
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(self.command, env=environment, stdout=log, stderr=log)
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self):
        deadline = time.monotonic() + READY_SECS_MAX
        while True:
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with {self.process.returncode}:\n{self.log_tail()}")
            try:
                with urllib.request.urlopen(f"{self.endpoint}/-/ready", timeout=5) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                pass
            if time.monotonic() > deadline:
                raise AssertionError(f"not ready after {READY_SECS_MAX} s:\n{self.log_tail()}")
            time.sleep(0.01)

    def stop(self):
        """Drains by SIGTERM; a server that does not end with 0 fails the test."""
        if self.process:
            process, self.process = self.process, None
            process.send_signal(signal.SIGTERM)
            try:
                code = process.wait(EXIT_SECS_MAX)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise AssertionError(f"no exit within {EXIT_SECS_MAX} s of SIGTERM:\n{self.log_tail()}") from None
            assert code == 0, f"SIGTERM ended the server with {code}:\n{self.log_tail()}"

    def kill(self):
        """SIGKILL: nothing is flushed, nothing is said."""
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def restart(self):
        self.stop()
        return self.start()

    def is_alive(self):
        return self.external is not None or (self.process is not None and self.process.poll() is None)

    def log_tail(self, lines=40):
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def discard(self):
        try:
            self.stop()
        finally:
            self.kill()
            shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self):
        return self.start()

    def __exit__(self, failure, *_):
        if failure:
            self.kill()  # What the test found is the news, not how the server ends.
        self.discard()
