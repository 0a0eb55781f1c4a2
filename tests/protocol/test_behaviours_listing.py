"""Behaviours 1 to 7 and 27 that real clients break on: listings, their tokens and their XML."""

import re

from harness.checksums import checksum
from harness.raw import NAMESPACE
from harness.sigv4 import encode_key

XML_DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.000Z")
HTTP_DATE = re.compile(r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT")


def fill(raw, bucket, keys):
    for key in keys:
        answer = raw.put(f"/{bucket}/{encode_key(key)}", key.encode())
        assert answer.status == 200, (key, answer)


def keys_of(answer):
    return answer.texts("Contents/Key")


def test_01_v1_markers_and_v2_echoes(raw, bucket):
    fill(raw, bucket, ["a/1", "a/2", "b", "c", "d"])
    first = raw.get(f"/{bucket}", [("max-keys", "2")]).xml
    assert first.find("Marker") is not None and not first.findtext("Marker")
    assert first.findtext("IsTruncated") == "true" and first.find("NextMarker") is None
    folded = raw.get(f"/{bucket}", [("max-keys", "1"), ("delimiter", "/")]).xml
    assert folded.findtext("NextMarker") == "a/" and folded.findtext("CommonPrefixes/Prefix") == "a/"
    after = raw.get(f"/{bucket}", [("marker", "a/"), ("delimiter", "/")])
    assert keys_of(after) == ["b", "c", "d"] and after.xml.findtext("Marker") == "a/"
    for list_type in ("1", "3"):
        v1 = raw.get(f"/{bucket}", [("list-type", list_type)]).xml
        assert v1.find("Marker") is not None and v1.find("KeyCount") is None, list_type
    v2 = raw.get(f"/{bucket}", [("list-type", "2"), ("start-after", "a/1"), ("max-keys", "2")]).xml
    assert v2.findtext("KeyCount") == "2" and v2.findtext("StartAfter") == "a/1" and v2.find("Marker") is None
    token = v2.findtext("NextContinuationToken")
    rest = raw.get(f"/{bucket}", [("list-type", "2"), ("continuation-token", token)])
    assert rest.xml.findtext("ContinuationToken") == token and keys_of(rest) == ["c", "d"]
    assert rest.xml.find("NextContinuationToken") is None and rest.xml.findtext("IsTruncated") == "false"
    folded = raw.get(f"/{bucket}", [("list-type", "2"), ("delimiter", "/")]).xml
    assert folded.findtext("KeyCount") == "4", "a common prefix counts"


def test_02_tokens_are_opaque_and_lasting(raw, bucket, server):
    fill(raw, bucket, ["k+1 é", "k2", "k3", "k4"])
    first = raw.get(f"/{bucket}", [("list-type", "2"), ("max-keys", "1"), ("encoding-type", "url")]).xml
    token = first.findtext("NextContinuationToken")
    assert "%" not in token
    assert raw.call("DELETE", f"/{bucket}/{encode_key('k+1 é')}").status == 204
    if not server.external:
        server.restart()
    for start_after in ([], [("start-after", "k3")]):
        page = raw.get(f"/{bucket}", [("list-type", "2"), ("continuation-token", token), *start_after])
        assert keys_of(page) == ["k2", "k3", "k4"], "a token beats start-after"
    for garbage in ("garbage", "", "AAAA" * 600, token[:-1] + ("A" if token[-1] != "A" else "B")):
        answer = raw.get(f"/{bucket}", [("list-type", "2"), ("continuation-token", garbage)])
        assert (answer.status, answer.code) == (400, "InvalidArgument"), (garbage, answer)


def test_03_encoding_type_url(raw, bucket):
    fill(raw, bucket, ["a b/x+y", "a b/z", "new\nline", "é"])
    plain = [("prefix", "a b/"), ("encoding-type", "url")]
    page = raw.get(f"/{bucket}", plain).xml
    assert page.findtext("EncodingType") == "url" and page.findtext("Prefix") == "a+b/"
    assert [key.text for key in page.findall("Contents/Key")] == ["a+b/x%2By", "a+b/z"]
    folded = raw.get(f"/{bucket}", [("delimiter", " b"), ("encoding-type", "url"), ("marker", " +")]).xml
    assert folded.findtext("CommonPrefixes/Prefix") == "a+b"
    assert folded.findtext("Delimiter") == "+b" and folded.findtext("Marker") == "+%2B"
    assert [key.text for key in folded.findall("Contents/Key")] == ["new%0Aline", "%C3%A9"]
    truncated = raw.get(f"/{bucket}", [("delimiter", " b"), ("encoding-type", "url"), ("max-keys", "1")]).xml
    assert truncated.findtext("NextMarker") == "a+b"
    v2 = raw.get(f"/{bucket}", [("list-type", "2"), ("encoding-type", "url"), ("start-after", "a b/x+y")]).xml
    assert v2.findtext("StartAfter") == "a+b/x%2By"
    assert raw.get(f"/{bucket}", [("encoding-type", "base64")]).code == "InvalidArgument"
    raw_keys = raw.get(f"/{bucket}", [("prefix", "new")])
    assert keys_of(raw_keys) == ["new\nline"], "without encoding-type a newline survives as a character reference"


def test_04_bytewise_order_and_max_keys(raw, bucket):
    keys = ["A", "a", "a!", "a-", "a/", "a/b", "a0", "aa", "b", "z", "é", "ﬀ", "\U0001f600", "~"]
    fill(raw, bucket, keys)
    ordered = sorted(keys, key=lambda key: key.encode())
    assert keys_of(raw.get(f"/{bucket}")) == ordered
    paged, marker = [], ""
    while True:
        page = raw.get(f"/{bucket}", [("marker", marker), ("max-keys", "3")])
        paged += keys_of(page)
        if page.xml.findtext("IsTruncated") == "false":
            break
        marker = paged[-1]
    assert paged == ordered
    for list_type in ([], [("list-type", "2")]):
        assert raw.get(f"/{bucket}", [*list_type, ("max-keys", "5000")]).xml.findtext("MaxKeys") == "1000"
        none = raw.get(f"/{bucket}", [*list_type, ("max-keys", "0")]).xml
        assert none.findtext("IsTruncated") == "false" and none.find("Contents") is None and none.findtext("MaxKeys") == "0"
        for wrong in ("many", "-1", "1.5", "99999999999999999999"):
            answer = raw.get(f"/{bucket}", [*list_type, ("max-keys", wrong)])
            assert (answer.status, answer.code) == (400, "InvalidArgument"), wrong


def test_05_markers_of_parts_uploads_and_buckets(raw, bucket, s3):
    uploads = [(key, s3.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]) for key in ("u1", "u1", "u2", "v/3")]
    key, upload = uploads[0]
    for number in (1, 2, 5):
        s3.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=number, Body=b"x" * number)
    page = s3.list_parts(Bucket=bucket, Key=key, UploadId=upload, MaxParts=2)
    assert [part["PartNumber"] for part in page["Parts"]] == [1, 2] and page["IsTruncated"] and page["NextPartNumberMarker"] == 2
    page = s3.list_parts(Bucket=bucket, Key=key, UploadId=upload, PartNumberMarker=2)
    assert [(part["PartNumber"], part["Size"]) for part in page["Parts"]] == [(5, 5)] and not page["IsTruncated"]

    seen, markers = [], {}
    while True:
        page = s3.list_multipart_uploads(Bucket=bucket, MaxUploads=1, **markers)
        seen += [(upload["Key"], upload["UploadId"]) for upload in page["Uploads"]]
        if not page["IsTruncated"]:
            break
        markers = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}
    assert sorted(seen) == sorted(uploads) and [key for key, _ in seen] == ["u1", "u1", "u2", "v/3"]
    folded = s3.list_multipart_uploads(Bucket=bucket, Delimiter="/")
    assert [prefix["Prefix"] for prefix in folded["CommonPrefixes"]] == ["v/"] and len(folded["Uploads"]) == 3
    assert [u["Key"] for u in s3.list_multipart_uploads(Bucket=bucket, Prefix="u2")["Uploads"]] == ["u2"]

    names = [f"{bucket}-list-{n}" for n in range(3)]
    for name in names:
        s3.create_bucket(Bucket=name)
    seen, more = [], {}
    while True:
        page = s3.list_buckets(Prefix=f"{bucket}-list-", MaxBuckets=2, **more)
        assert len(page["Buckets"]) <= 2 and page["Prefix"] == f"{bucket}-list-"
        seen += [found["Name"] for found in page["Buckets"]]
        if "ContinuationToken" not in page:
            break
        more = {"ContinuationToken": page["ContinuationToken"]}
    assert seen == names
    assert raw.get("/", [("max-buckets", "0")]).code == "InvalidArgument"


def test_06_namespace_and_element_order(raw, bucket):
    fill(raw, bucket, ["a", "d/x"])
    for path, query in ((f"/{bucket}", []), (f"/{bucket}", [("list-type", "2")]), ("/", []), (f"/{bucket}", [("location", None)])):
        answer = raw.get(path, query)
        assert answer.status == 200 and answer.namespace == NAMESPACE, (path, query, answer)
        assert answer.body.startswith(b'<?xml version="1.0" encoding="UTF-8"?>')
        assert answer.headers["Content-Type"] == "application/xml"
    error = raw.get(f"/{bucket}/missing")
    assert error.namespace is None and error.xml.tag == "Error"
    assert {"Code", "Message", "RequestId", "HostId"} <= {element.tag for element in error.xml}
    assert error.xml.findtext("RequestId") == error.headers["x-amz-request-id"] and error.xml.findtext("Key") == "missing"
    page = raw.get(f"/{bucket}", [("delimiter", "/")]).xml
    wanted = ["Name", "Prefix", "Marker", "MaxKeys", "Delimiter", "IsTruncated", "Contents", "CommonPrefixes"]
    assert sorted(element.tag for element in page) == sorted(wanted)
    inside = [element.tag for element in page.find("Contents")]
    assert inside[:3] == ["Key", "LastModified", "ETag"] and inside.index("Size") < inside.index("StorageClass"), inside
    for namespace in ("", f' xmlns="{NAMESPACE}"'):
        body = f"<Delete{namespace}><Object><Key>a</Key></Object></Delete>".encode()
        answer = raw.call("POST", f"/{bucket}", [("delete", None)], {"content-md5": checksum("md5", body)}, body)
        assert answer.status == 200 and answer.texts("Deleted/Key") == ["a"] and answer.namespace == NAMESPACE, answer


def test_07_dates(raw, bucket):
    fill(raw, bucket, ["a"])
    assert XML_DATE.fullmatch(raw.get(f"/{bucket}").xml.findtext("Contents/LastModified"))
    assert all(XML_DATE.fullmatch(date) for date in raw.get("/").texts("Buckets/Bucket/CreationDate"))
    head = raw.call("HEAD", f"/{bucket}/a")
    modified = head.headers["Last-Modified"]
    assert HTTP_DATE.fullmatch(modified) and HTTP_DATE.fullmatch(head.headers["Date"])
    assert raw.get(f"/{bucket}/a", headers={"if-modified-since": modified}).status == 304
    assert raw.get(f"/{bucket}/a", headers={"if-unmodified-since": modified}).status == 200, "to the second, not below"


def test_27_files_and_folders_of_one_name(raw, bucket):
    keys = ["k", "k/", "k/x", "k//", "dir/"]
    for key in keys:
        assert raw.put(f"/{bucket}/{key}", b"" if key.endswith("/") else key.encode()).status == 200
    assert keys_of(raw.get(f"/{bucket}")) == sorted(keys)
    for key in keys:
        answer = raw.get(f"/{bucket}/{key}")
        assert (answer.status, answer.body) == (200, b"" if key.endswith("/") else key.encode()), key
    folded = raw.get(f"/{bucket}", [("delimiter", "/")])
    assert keys_of(folded) == ["k"] and folded.texts("CommonPrefixes/Prefix") == ["dir/", "k/"]
    assert keys_of(raw.get(f"/{bucket}", [("delimiter", "/"), ("prefix", "dir/")])) == ["dir/"]
    assert raw.call("DELETE", f"/{bucket}/k").status == 204
    assert raw.get(f"/{bucket}/k").status == 404 and raw.get(f"/{bucket}/k/x").status == 200
