"""nginx as a cache in front: 1 MiB slices, revalidation by 304, ranges, and an origin that restarts.

The objects stay private. The client's presigned query goes through to the origin, and the cache key leaves it out, so
that whoever may read an object by any valid URL shares one cached copy. The Host that was signed is the origin's.
"""

import os
import subprocess
import time
import urllib.request

import pytest

from conftest import digest, need
from harness.server import free_port

# A copy is good for one second, which nginx counts in whole ones.
STALE_SECS = 2.2

CONFIGURATION = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log warn;
events {{ worker_connections 256; }}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    proxy_cache_path {folder}/cache levels=1:2 keys_zone=objects:10m inactive=1h use_temp_path=off;
    server {{
        listen 127.0.0.1:{port};
        location = /nginx-runs {{ return 204; }}
        location / {{
            slice 1m;
            proxy_cache objects;
            proxy_cache_key $uri$slice_range;
            proxy_set_header Range $slice_range;
            proxy_set_header Host 127.0.0.1:{origin};
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_cache_valid 200 206 1s;
            proxy_cache_revalidate on;
            proxy_cache_use_stale error timeout updating;
            add_header X-Cache $upstream_cache_status always;
            proxy_pass http://127.0.0.1:{origin};
        }}
    }}
}}
"""


@pytest.fixture
def nginx(server, tmp_path):
    program = need("nginx")
    port = free_port()
    tmp_path.chmod(0o777)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(folder.stat().st_mode | 0o055)
    configuration = tmp_path / "nginx.conf"
    configuration.write_text(("user root;\n" if os.getuid() == 0 else "") + CONFIGURATION.format(folder=tmp_path, port=port, origin=server.port))
    process = subprocess.Popen([program, "-c", str(configuration), "-p", str(tmp_path), "-e", str(tmp_path / "error.log")])
    deadline = time.monotonic() + 20
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/nginx-runs", timeout=1)
            break
        except OSError:
            assert time.monotonic() < deadline and process.poll() is None, (tmp_path / "error.log").read_text()
            time.sleep(0.05)
    yield port
    process.terminate()
    process.wait(20)


def fetch(server, nginx, presigner, bucket, key, first=None, last=None):
    """One read through the cache by a fresh presigned URL: body and cache status."""
    url = presigner.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": key})
    request = urllib.request.Request(url.replace(f":{server.port}/", f":{nginx}/"))
    if first is not None:
        request.add_header("Range", f"bytes={first}-{last}")
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.status == (200 if first is None else 206)
        return answer.read(), answer.headers["X-Cache"]


def test_cache_of_slices(server, nginx, presigner, bucket, files):
    body = (files / "big").read_bytes()[: (20 << 20) + 12_345]
    presigner.put_object(Bucket=bucket, Key="dir/a b", Body=body)
    got, status = fetch(server, nginx, presigner, bucket, "dir/a b")
    assert digest(got) == digest(body) and status == "MISS"
    got, status = fetch(server, nginx, presigner, bucket, "dir/a b", 5_000_000, 9_000_000)
    assert got == body[5_000_000:9_000_001] and status in ("HIT", "EXPIRED", "REVALIDATED")
    time.sleep(STALE_SECS)
    got, status = fetch(server, nginx, presigner, bucket, "dir/a b")
    assert digest(got) == digest(body) and status == "REVALIDATED", "the origin answered 304"


def test_a_changed_object_is_fetched_anew(server, nginx, presigner, bucket):
    presigner.put_object(Bucket=bucket, Key="k", Body=b"1" * 3_000_000)
    assert fetch(server, nginx, presigner, bucket, "k")[0] == b"1" * 3_000_000
    presigner.put_object(Bucket=bucket, Key="k", Body=b"2" * 1000)
    time.sleep(STALE_SECS)
    assert fetch(server, nginx, presigner, bucket, "k", 0, 999)[0] == b"2" * 1000


def test_the_origin_restarts(server, nginx, presigner, bucket):
    if server.external:
        pytest.skip("needs a server of its own, to restart it")
    body = b"kept" * 1_000_000
    presigner.put_object(Bucket=bucket, Key="k", Body=body)
    assert fetch(server, nginx, presigner, bucket, "k")[0] == body
    server.kill()
    time.sleep(STALE_SECS)
    got, status = fetch(server, nginx, presigner, bucket, "k")
    assert got == body and status == "STALE", "the cache stands in while the origin is away"
    server.start()
    time.sleep(STALE_SECS)
    got, status = fetch(server, nginx, presigner, bucket, "k")
    assert got == body and status in ("REVALIDATED", "HIT", "EXPIRED", "MISS")
