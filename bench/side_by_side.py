#!/usr/bin/env python3
"""Server CPU per operation: Basalt, and nginx serving the same bytes with directio, turn by turn in one run.

    cargo build --release && bench/side_by_side.py [--rounds 3] [--seconds 5] [--json FILE] [row…]

The server is pinned to CPU 0 and has one core, the load to CPU 1. Each figure is the median of the rounds. nginx answers objects
from files and lets Basalt answer listings, which the load generator asks for before it starts. Needs nginx.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from harness.raw import Raw  # noqa: E402
from harness.server import ACCESS_KEY, SECRET_KEY, Server, binary, free_port  # noqa: E402

BUCKET = "side-by-side"
# Row: workload and flags, objects to prepare (size, count) for those that read, the aim of the design in µs of server CPU.
ROWS = {
    "get-4k": ("get -c 64", ("4KiB", 20_000), 15, True),
    "head": ("stat -c 64", ("4KiB", 20_000), 8, True),
    "get-1m": ("get -c 16", ("1MiB", 400), None, True),
    "range-64k": ("range --range-size 64KiB -c 16", ("64MiB", 12), 40, True),
    "range-8m": ("range --range-size 8MiB -c 8", ("64MiB", 12), None, True),
    "put-4k": ("put --size 4KiB --objects 200000 -c 64", None, 35, False),
    "put-8m": ("put --size 8MiB --objects 64 -c 8", None, None, False),
    "put-8m-16": ("put --size 8MiB --objects 64 -c 16", None, None, False),
    "put-8m-1": ("put --size 8MiB --objects 16 -c 1", None, None, False),
    "list-1000": ("list --list-page 1000 -c 8", ("4KiB", 20_000), 500, False),
    "delete": ("delete --size 4KiB --objects 150000 -c 64", None, 25, False),
}

NGINX = """
daemon off; master_process off; pid {home}/nginx.pid; error_log {home}/error.log;
events {{ worker_connections 1024; }}
http {{
    access_log off; default_type application/octet-stream; keepalive_requests 100000000;
    client_body_temp_path {home}/t1; proxy_temp_path {home}/t2; fastcgi_temp_path {home}/t3; uwsgi_temp_path {home}/t4; scgi_temp_path {home}/t5;
    sendfile off; directio 4k; output_buffers 2 512k; tcp_nodelay on;
    server {{
        listen 127.0.0.1:{port}; root {home}/files;
        location = /{bucket} {{ proxy_pass http://127.0.0.1:{basalt}; proxy_set_header Host $http_host; }}
    }}
}}
"""


class Nginx:
    """One process of nginx on CPU 0."""

    def __init__(self, home, basalt):
        self.home, self.port = home, free_port()
        config = home / "nginx.conf"
        config.write_text(NGINX.format(home=home, port=self.port, bucket=BUCKET, basalt=basalt.port))
        self.process = subprocess.Popen(["taskset", "-c", "0", shutil.which("nginx") or "/usr/sbin/nginx", "-c", str(config), "-e", str(home / "error.log")])
        for _ in range(100):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=5)
            except urllib.error.HTTPError:
                return
            except OSError:
                time.sleep(0.05)
        raise SystemExit((home / "error.log").read_text())

    def stop(self):
        self.process.terminate()
        self.process.wait()


def bench(server, flags, seconds, *more):
    """One run of the load generator against `server`; its JSON."""
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        command = [binary(), "bench", *flags.split(), "--endpoint", f"http://127.0.0.1:{server.port}", "--bucket", BUCKET,
                   "--server-pid", str(server.process.pid), "--pin-client", "1", "--json", out.name, "--quiet", "--warmup", "1s", "--duration", f"{seconds}s", *more]
        environment = os.environ | {"BASALT_ROOT_ACCESS_KEY": ACCESS_KEY, "BASALT_ROOT_SECRET_KEY": SECRET_KEY}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        return json.load(open(out.name, encoding="utf-8"))


def prepare(basalt, files, sets):
    """Writes each set of objects once, and the same bytes as files for nginx."""
    raw = Raw(basalt)
    raw.put(f"/{BUCKET}")
    for size, count in sets:
        bench(basalt, f"get -c 8 --size {size} --objects {count} --prefix {size}/ --keep --no-verify", 1)
        token = None
        while True:
            query = [("list-type", "2"), ("prefix", f"{size}/")] + ([("continuation-token", token)] if token else [])
            page = raw.get(f"/{BUCKET}", query)
            for key in page.texts("Contents/Key"):
                target = files / BUCKET / key
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(raw.get(f"/{BUCKET}/{key}").body)
            token = next(iter(page.texts("NextContinuationToken")), None)
            if not token:
                break
    subprocess.run(["sync"], check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--device", help="block device under the directory, for flushes per operation")
    parser.add_argument("--json", type=Path)
    parser.add_argument("row", nargs="*", choices=[[], *ROWS], help="only these")
    options = parser.parse_args()
    rows = {name: ROWS[name] for name in options.row or ROWS}
    results = {}
    with Server(cores="1") as basalt, tempfile.TemporaryDirectory(dir=basalt.directory) as home:
        basalt.stop()
        basalt.command = ["taskset", "-c", "0", *basalt.command]
        basalt.start()
        prepare(basalt, Path(home) / "files", sorted({objects for _, objects, _, _ in rows.values() if objects}))
        nginx = Nginx(Path(home), basalt)
        try:
            for name, (flags, objects, aim, compared) in rows.items():
                figures = {"basalt": [], "nginx": []}
                for number in range(options.rounds):
                    existing = f" --size {objects[0]} --objects {objects[1]} --prefix {objects[0]}/ --existing --no-verify" if objects else f" --prefix run-{name}-{number}/"
                    for side, server in [("basalt", basalt)] + ([("nginx", nginx)] if compared else []):
                        device = ["--disk-dev", options.device] if options.device else []
                        result = bench(server, flags + existing, options.seconds, *device)
                        total = result["total"]
                        flushed = sum(disk["flushes_per_op"] or 0 for disk in result["disks"] or [])
                        figures[side].append((result["server"]["cpu_us_per_op"], total["ops_per_second"], flushed))
                row = {"aim_us": aim}
                for side, runs in figures.items():
                    if runs:
                        row[side] = {"cpu_us": statistics.median(run[0] for run in runs), "ops_per_second": statistics.median(run[1] for run in runs),
                                     "flushes_per_op": statistics.median(run[2] for run in runs), "runs_us": [round(run[0], 1) for run in runs]}
                results[name] = row
                mine, other = row["basalt"], row.get("nginx")
                ratio = f"{mine['cpu_us'] / other['cpu_us']:6.2f} of nginx's {other['cpu_us']:9.1f}" if other else ""
                print(f"{name:10} {mine['cpu_us']:9.1f} µs  aim {aim or '-':>4}  {mine['ops_per_second']:9.0f}/s  flushes/op {mine['flushes_per_op']:.3f}  {ratio}", flush=True)
        finally:
            nginx.stop()
    if options.json:
        options.json.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
