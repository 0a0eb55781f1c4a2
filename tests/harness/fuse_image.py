"""An image of a disk whose reads and writes fail, stall, are delayed, or are lost by a power cut, when it is told so.

The kernel's own devices for this (device-mapper's error, delay and flakey targets) are not in every kernel; FUSE and loop
devices nearly always are. So a file is served over FUSE, straight from the kernel's protocol, and a loop device stands on it:
what is above it, a file system among others, sees a block device. A flush of the loop device arrives here as FSYNC.

Run as a program: `fuse_image.py IMAGE MOUNTPOINT`, where MOUNTPOINT is an empty file. Commands come by standard input, a line
each, and each is answered by a line:

    set NAME VALUE    reads=ok|fail|hang, writes=…, syncs=…; read_delay, write_delay, sync_delay in seconds
    power-cut SEED    nothing is answered but by errors from now on; of what was written since the last flush, each sector
                      keeps what it has or goes back to any earlier state since then
    counts            reads, writes and syncs so far

At the end of the input it goes away, and every request with it.
"""

import ctypes
import errno
import os
import random
import stat
import struct
import sys
import threading
import time

THREADS = 48
WRITE_BYTES_MAX = 1 << 18
SECTOR = 512
IN_HEADER = struct.Struct("<IIQQIIIHH")
OUT_HEADER = struct.Struct("<IiQ")
INIT_OUT = struct.Struct("<IIIIHHIIHHII24x")
TRANSFER = struct.Struct("<QQIIQII")
ATTRIBUTES = struct.Struct("<QIIQQQQQQIIIIIIIIII")
SETATTR, GETATTR, FORGET, OPEN, READ, WRITE, STATFS, RELEASE, FSYNC = 4, 3, 2, 14, 15, 16, 17, 18, 20
FLUSH, INIT, INTERRUPT, DESTROY, BATCH_FORGET = 25, 26, 36, 38, 42
# Reads ahead, writes of more than a page, and asynchronous direct I/O.
INIT_FLAGS = 1 << 0 | 1 << 5 | 1 << 15
MAX_PAGES = 1 << 22
# Past the page cache, several writes at a time.
OPEN_FLAGS = 1 << 0 | 1 << 6
WITHOUT_ANSWER = {FORGET, BATCH_FORGET, INTERRUPT}


class Fault(Exception):
    def __init__(self, code):
        super().__init__(code)
        self.code = code


class Image:
    """The medium and its volatile cache: what an unflushed sector held before, oldest first."""

    def __init__(self, path):
        self.file = os.open(path, os.O_RDWR)
        self.length = os.fstat(self.file).st_size
        self.lock = threading.Lock()
        self.unflushed, self.is_dead = {}, False
        self.rules = {"reads": "ok", "writes": "ok", "syncs": "ok", "read_delay": 0.0, "write_delay": 0.0, "sync_delay": 0.0}
        self.counts = {"reads": 0, "writes": 0, "syncs": 0}
        self.changed = threading.Condition()

    def meet(self, kind):
        """Waits as long as the rules say, or fails."""
        self.counts[kind] += 1
        delay = self.rules[kind[:-1] + "_delay"]
        if delay:
            time.sleep(delay)
        with self.changed:
            while self.rules[kind] == "hang" and not self.is_dead:
                self.changed.wait()
        if self.is_dead or self.rules[kind] == "fail":
            raise Fault(errno.EIO)

    def set(self, name, value):
        with self.changed:
            self.rules[name] = float(value) if name.endswith("_delay") else value
            self.changed.notify_all()

    def read(self, offset, length):
        self.meet("reads")
        return os.pread(self.file, length, offset)

    def write(self, offset, data):
        self.meet("writes")
        with self.lock:
            if self.is_dead:
                raise Fault(errno.EIO)
            before = os.pread(self.file, len(data), offset).ljust(len(data), b"\0")
            for at in range(0, len(data), SECTOR):
                self.unflushed.setdefault((offset + at) // SECTOR, []).append(before[at : at + SECTOR])
            os.pwrite(self.file, data, offset)

    def sync(self):
        self.meet("syncs")
        with self.lock:
            if self.is_dead:
                raise Fault(errno.EIO)
            self.unflushed.clear()

    def cut_power(self, seed):
        draw = random.Random(seed)
        with self.lock, self.changed:
            self.is_dead = True
            lost = 0
            for sector, states in self.unflushed.items():
                if draw.random() < 0.5:
                    os.pwrite(self.file, draw.choice(states), sector * SECTOR)
                    lost += 1
            count = len(self.unflushed)
            self.unflushed.clear()
            self.changed.notify_all()
        return f"{lost} of {count}"


class Server:
    def __init__(self, image, mountpoint):
        self.image = image
        self.channel = os.open("/dev/fuse", os.O_RDWR)
        libc = ctypes.CDLL(None, use_errno=True)
        options = f"fd={self.channel},rootmode={stat.S_IFREG | 0o600:o},user_id=0,group_id=0,allow_other,max_read={WRITE_BYTES_MAX}"
        if libc.mount(b"basalt-test-image", mountpoint.encode(), b"fuse", 0, options.encode()):
            raise OSError(ctypes.get_errno(), "mount")

    def attributes(self):
        now = int(time.time())
        length = self.image.length
        return ATTRIBUTES.pack(3600, 0, 0, 1, length, length // 512, now, now, now, 0, 0, 0, stat.S_IFREG | 0o600, 1, 0, 0, 0, 4096, 0)

    def answer(self, opcode, body):
        if opcode == INIT:
            _, minor, readahead, offered = struct.unpack_from("<IIII", body)
            flags = offered & (INIT_FLAGS | MAX_PAGES)
            return INIT_OUT.pack(7, min(minor, 31), readahead, flags, 1024, 1024, WRITE_BYTES_MAX, 1, WRITE_BYTES_MAX // 4096, 0, 0, 0)
        if opcode in (GETATTR, SETATTR):
            return self.attributes()
        if opcode == OPEN:
            return struct.pack("<QIi", 0, OPEN_FLAGS, 0)
        if opcode == READ:
            _, offset, length, *_ = TRANSFER.unpack_from(body)
            return self.image.read(offset, length)
        if opcode == WRITE:
            _, offset, length, *_ = TRANSFER.unpack_from(body)
            self.image.write(offset, bytes(body[TRANSFER.size : TRANSFER.size + length]))
            return struct.pack("<II", length, 0)
        if opcode == FSYNC:
            self.image.sync()
            return b""
        if opcode == STATFS:
            return struct.pack("<QQQQQIIII24x", 0, 0, 0, 1, 0, 4096, 255, 4096, 0)
        if opcode in (RELEASE, FLUSH, DESTROY):
            return b""
        raise Fault(errno.ENOSYS)

    def serve(self):
        buffer = bytearray(WRITE_BYTES_MAX + 65536)
        while True:
            try:
                length = os.readv(self.channel, [buffer])
            except InterruptedError:
                continue
            except OSError as error:
                if error.errno in (errno.ENODEV, errno.EBADF):
                    return
                continue
            _, opcode, unique, *_ = IN_HEADER.unpack_from(buffer)
            if opcode in WITHOUT_ANSWER:
                continue
            try:
                code, body = 0, self.answer(opcode, memoryview(buffer)[IN_HEADER.size : length])
            except Fault as fault:
                code, body = -fault.code, b""
            except OSError as error:
                code, body = -error.errno, b""
            try:
                os.writev(self.channel, [OUT_HEADER.pack(OUT_HEADER.size + len(body), code, unique), body])
            except OSError:
                pass  # It was interrupted, or the mount is gone.


def main():
    image = Image(sys.argv[1])
    server = Server(image, sys.argv[2])
    for _ in range(THREADS):
        threading.Thread(target=server.serve, daemon=True).start()
    print("ready", flush=True)
    for line in sys.stdin:
        command, *arguments = line.split()
        if command == "set":
            image.set(*arguments)
            print("done", flush=True)
        elif command == "power-cut":
            print(image.cut_power(*arguments), flush=True)
        elif command == "counts":
            print(*image.counts.values(), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
