"""Disks that are file systems of their own: loop devices on images, mounted, and taken away again whatever happens.

A faulty one stands on an image that fails, stalls or loses power when it is told so (fuse_image.py).
"""

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

IMAGE_BYTES = 1 << 30
BUSY_SECS_MAX = 30
# _IOR('X', 125, __u32) of ext4 and XFS: nothing is flushed, and everything fails from now on.
SHUTDOWN, WITHOUT_FLUSH = 0x8004587D, 2


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: exit code {done.returncode}: {done.stderr.strip()}")
    return done.stdout.strip()


def why_not(faulty=False):
    """Why there can be no such disks here; None if there can."""
    if os.geteuid() != 0:
        return "loop devices and mounts need root"
    missing = [name for name in ("losetup", "mkfs.ext4", "mount", "umount") if not shutil.which(name)]
    if missing:
        return f"not installed: {', '.join(missing)}"
    if not os.path.exists("/dev/loop-control"):
        return "this kernel has no loop devices"
    if faulty and not os.path.exists("/dev/fuse"):
        return "this kernel has no FUSE, on which faulty devices stand"
    try:
        with Devices(1, faulty=faulty):
            return None
    except OSError as error:
        return f"no loop device can be mounted: {error}"


class Device:
    """One image, the loop device on it, and where that is mounted."""

    def __init__(self, directory, number, faulty):
        self.image, self.path = directory / f"image{number}", directory / f"disk{number}"
        self.front = directory / f"front{number}" if faulty else self.image
        self.loop = self.process = None
        self.is_mounted = False
        with open(self.image, "wb") as image:
            image.truncate(IMAGE_BYTES)
        self.path.mkdir()
        if faulty:
            self.front.touch()

    @property
    def is_faulty(self):
        return self.front != self.image

    def attach(self):
        if self.is_faulty:
            program = Path(__file__).with_name("fuse_image.py")
            command = [sys.executable, str(program), str(self.image), str(self.front)]
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            if self.process.stdout.readline() != "ready\n":
                raise OSError("no image over FUSE")
        self.loop = run("losetup", "--find", "--show", "--direct-io=on", str(self.front))

    def format(self):
        run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", self.loop)

    def mount(self):
        run("mount", self.loop, str(self.path))
        self.is_mounted = True

    def unmount(self):
        """As an operator would who has seen that it is busy: the path leads to the empty directory at once."""
        run("umount", "-l", str(self.path))
        self.is_mounted = False

    def shut_down(self):
        """Everything on the file system fails from now on, until it is mounted anew."""
        directory = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(directory, SHUTDOWN, struct.pack("<I", WITHOUT_FLUSH))
        finally:
            os.close(directory)

    def make_read_only(self):
        """What ext4 does after an error: whoever writes is told that the file system is read-only."""
        run("mount", "-o", "remount,abort", str(self.path))

    def fill(self):
        """Another program takes all that is left."""
        stranger = self.path / "lost+found" / "stranger"
        space = os.statvfs(self.path)
        with open(stranger, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, space.f_bavail * space.f_frsize)
        return stranger

    def tell(self, *words):
        """A command to a faulty device; its answer."""
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def set_all(self, how):
        for what in ("reads", "writes", "syncs"):
            self.tell("set", what, how)

    def pull(self):
        """The device is gone: all that is under way fails, and all that comes."""
        self.process.kill()
        self.process.wait()

    def detach(self):
        """Nothing of it is left but the image."""
        if self.process:
            self.pull()
        if self.is_mounted:
            with contextlib.suppress(OSError):
                self.unmount()
        self.is_mounted = False
        if self.loop:
            patiently(run, "losetup", "-d", self.loop)
            self.loop = None
        if self.process:
            self.process.stdin.close()
            self.process.stdout.close()
            self.process = None
            patiently(run, "umount", str(self.front))


def patiently(action, *arguments):
    """What a process had open may be in use for some moments more."""
    deadline = time.monotonic() + BUSY_SECS_MAX
    while True:
        try:
            return action(*arguments)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


class Devices:
    """`count` disks in a directory of their own, all of them faulty, none, or those whose numbers are given."""

    def __init__(self, count, faulty=()):
        self.directory = Path(tempfile.mkdtemp(prefix="basalt-devices-", dir=os.environ.get("BASALT_TEST_DIR")))
        numbers = range(count) if faulty is True else faulty or ()
        self.all = [Device(self.directory, number, number in numbers) for number in range(count)]

    @property
    def paths(self):
        return [device.path for device in self.all]

    def __getitem__(self, number):
        return self.all[number]

    def __enter__(self):
        try:
            for device in self.all:
                device.attach()
                device.format()
                device.mount()
        except BaseException:
            self.discard()
            raise
        return self

    def discard(self):
        failures = []
        for device in self.all:
            try:
                device.detach()
            except OSError as error:
                failures.append(str(error))
        # Nothing is deleted through a mount that would not go.
        if failures:
            raise OSError("; ".join(failures))
        shutil.rmtree(self.directory)

    def __exit__(self, *_):
        self.discard()
