"""Listings against a model: every page of every listing is what sorting and folding the keys by hand gives."""

import os
import random

import pytest

from harness.raw import Raw
from harness.sigv4 import encode_key

ALPHABET = ["a", "b", "/", "-", "é", "\U0001f600", "+"]


def folded(keys, prefix, delimiter):
    """Names of a listing in order: keys, and the common prefixes that stand for several."""
    names = []
    for key in sorted(keys, key=str.encode):
        cut = key.find(delimiter, len(prefix)) if delimiter else -1
        name = key if cut < 0 else key[: cut + len(delimiter)]
        if key.startswith(prefix) and name not in names[-1:]:
            names.append(name)
    return names


@pytest.fixture(scope="module")
def keys():
    source = random.Random(20260)
    return {"".join(source.choices(ALPHABET, k=source.randint(1, 7))) for _ in range(150)}


@pytest.fixture(scope="module")
def filled(server, keys):
    raw = Raw(server)
    bucket = f"listing-model-{os.getpid()}"
    assert raw.put(f"/{bucket}").status == 200
    for key in keys:
        assert raw.put(f"/{bucket}/{encode_key(key)}", b"").status == 200
    return bucket


def page_names(answer):
    return sorted(answer.texts("Contents/Key") + answer.texts("CommonPrefixes/Prefix"), key=str.encode)


@pytest.mark.parametrize("delimiter", ["", "/", "-", "a/"])
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_pages_join_up(raw, filled, keys, delimiter, size):
    for prefix in ("", "a", "a/", "é"):
        wanted = folded(keys, prefix, delimiter)
        query = [("prefix", prefix), ("delimiter", delimiter), ("max-keys", str(size))]
        for version in ("v1", "v2", "versions"):
            names, more = [], []
            while True:
                kind = {"v1": [], "v2": [("list-type", "2")], "versions": [("versions", None)]}[version]
                answer = raw.get(f"/{filled}", [*kind, *query, *more])
                assert answer.status == 200, answer
                if version == "versions":
                    page = sorted(answer.texts("Version/Key") + answer.texts("CommonPrefixes/Prefix"), key=str.encode)
                else:
                    page = page_names(answer)
                assert len(page) <= size and (answer.xml.findtext("IsTruncated") == "false" or len(page) == size)
                names += page
                if answer.xml.findtext("IsTruncated") == "false":
                    break
                if version == "v2":
                    more = [("continuation-token", answer.xml.findtext("NextContinuationToken"))]
                elif version == "versions":
                    found = answer.xml.findtext("NextVersionIdMarker")
                    more = [("key-marker", answer.xml.findtext("NextKeyMarker"))] + ([("version-id-marker", found)] if found else [])
                else:
                    more = [("marker", answer.xml.findtext("NextMarker") or page[-1])]
            assert names == wanted, (prefix, version)


def test_starting_anywhere(raw, filled, keys):
    for after in ["a", "a/", "b-", "é", "zz", *sorted(keys)[::10]]:
        answer = raw.get(f"/{filled}", [("list-type", "2"), ("start-after", after)])
        wanted = [key for key in folded(keys, "", "") if key.encode() > after.encode()]
        assert page_names(answer) == wanted, after
