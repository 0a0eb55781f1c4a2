"""The MinIO SDK, pyarrow's S3 file system and DuckDB's httpfs."""

import datetime
import glob
import io
import os
import urllib.request

import pytest

from conftest import digest


def test_minio_sdk(server, bucket, files, tmp_path):
    minio = pytest.importorskip("minio")
    from minio.commonconfig import ComposeSource, CopySource
    from minio.deleteobjects import DeleteObject

    client = minio.Minio(f"127.0.0.1:{server.port}", server.access_key, server.secret_key, secure=False)
    for name in ("small", "big", "empty"):
        client.fput_object(bucket, f"dir/{name}", str(files / name), metadata={"name": name})
        client.fget_object(bucket, f"dir/{name}", str(tmp_path / name))
        assert digest(tmp_path / name) == digest(files / name)
        found = client.stat_object(bucket, f"dir/{name}")
        assert found.size == (files / name).stat().st_size and found.metadata["x-amz-meta-name"] == name
    answer = client.get_object(bucket, "dir/small", offset=7, length=100)
    assert answer.read() == (files / "small").read_bytes()[7:107]
    answer.close()
    client.put_object(bucket, "unknown length", io.BytesIO((files / "big").read_bytes()), -1, part_size=10 << 20)
    client.copy_object(bucket, "copy", CopySource(bucket, "dir/small"))
    client.compose_object(bucket, "composed", [ComposeSource(bucket, "dir/big"), ComposeSource(bucket, "dir/small")])
    answer = client.get_object(bucket, "composed")
    assert digest(answer.read()) == digest((files / "big").read_bytes() + (files / "small").read_bytes())
    answer.close()
    url = client.presigned_get_object(bucket, "copy", expires=datetime.timedelta(minutes=1))
    with urllib.request.urlopen(url) as fetched:
        assert digest(fetched.read()) == digest(files / "small")
    names = [entry.object_name for entry in client.list_objects(bucket, recursive=True)]
    assert names == ["composed", "copy", "dir/big", "dir/empty", "dir/small", "unknown length"]
    assert sorted(entry.object_name for entry in client.list_objects(bucket)) == ["composed", "copy", "dir/", "unknown length"]
    assert list(client.remove_objects(bucket, [DeleteObject(name) for name in names])) == []
    client.remove_bucket(bucket)


def test_pyarrow(server, bucket, files):
    pytest.importorskip("pyarrow")
    import pyarrow
    import pyarrow.parquet as parquet
    from pyarrow import fs

    files3 = fs.S3FileSystem(access_key=server.access_key, secret_key=server.secret_key, endpoint_override=f"127.0.0.1:{server.port}", scheme="http", region=server.region)
    for name in ("small", "big", "empty"):
        with files3.open_output_stream(f"{bucket}/dir/{name}") as stream:
            stream.write((files / name).read_bytes())
        with files3.open_input_stream(f"{bucket}/dir/{name}") as stream:
            assert digest(stream.read()) == digest(files / name)
    with files3.open_input_file(f"{bucket}/dir/big") as file:
        file.seek(70 << 20)
        assert file.read(1000) == (files / "big").read_bytes()[70 << 20 :][:1000]
    found = files3.get_file_info(fs.FileSelector(f"{bucket}", recursive=True))
    assert {info.path: info.size for info in found if info.type == fs.FileType.File} == {f"{bucket}/dir/{name}": (files / name).stat().st_size for name in ("small", "big", "empty")}
    table = pyarrow.table({"n": list(range(100_000)), "text": [f"row {n}" for n in range(100_000)]})
    parquet.write_table(table, f"{bucket}/table.parquet", filesystem=files3)
    assert parquet.read_table(f"{bucket}/table.parquet", filesystem=files3, columns=["n"])["n"].to_pylist()[-1] == 99_999
    files3.copy_file(f"{bucket}/dir/small", f"{bucket}/copy")
    files3.move(f"{bucket}/copy", f"{bucket}/moved")
    files3.delete_dir(f"{bucket}/dir")
    left = files3.get_file_info(fs.FileSelector(bucket, recursive=True))
    assert sorted(info.base_name for info in left if info.type == fs.FileType.File) == ["moved", "table.parquet"]


def test_duckdb(server, bucket):
    duckdb = pytest.importorskip("duckdb")
    package = pytest.importorskip("duckdb_extension_httpfs", reason="DuckDB's httpfs extension is not on PyPI for this platform")
    extension = glob.glob(os.path.join(os.path.dirname(package.__file__), "**", "*.duckdb_extension"), recursive=True)
    database = duckdb.connect()
    database.execute(f"LOAD '{extension[0]}'")
    database.execute(
        f"CREATE SECRET (TYPE s3, KEY_ID '{server.access_key}', SECRET '{server.secret_key}', REGION '{server.region}',"
        f" ENDPOINT '127.0.0.1:{server.port}', URL_STYLE 'path', USE_SSL false)"
    )
    database.execute(f"COPY (SELECT range AS n, 'row ' || range AS text FROM range(1000000)) TO 's3://{bucket}/t/rows.parquet'")
    database.execute(f"COPY (SELECT range AS n FROM range(1000)) TO 's3://{bucket}/t/rows.csv' (HEADER)")
    assert database.execute(f"SELECT count(*), sum(n) FROM 's3://{bucket}/t/*.parquet'").fetchone() == (1_000_000, 499_999_500_000)
    assert database.execute(f"SELECT text FROM 's3://{bucket}/t/rows.parquet' WHERE n = 777777").fetchone() == ("row 777777",)
    assert database.execute(f"SELECT sum(n) FROM read_csv('s3://{bucket}/t/rows.csv')").fetchone() == (499_500,)
    assert len(database.execute(f"SELECT file FROM glob('s3://{bucket}/**')").fetchall()) == 2
