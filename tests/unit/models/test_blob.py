"""Blob messages: what is written reads back, and everything else is refused before memory is spent."""

from __future__ import annotations

import struct

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode import limits
from p2pnode.errors import RemoteProtocolError
from p2pnode.models import blob

DIGEST = bytes(range(32))


def _decode(data: bytes) -> blob.Request:
    kind, size = blob.request_head(data[:5])
    assert len(data) == 5 + size
    return blob.decode_request(kind, data[5:])


@given(st.sets(st.integers(0, 5000), min_size=1, max_size=200))
def test_chunk_requests_read_back(indexes: set[int]) -> None:
    request = blob.GetChunks(DIGEST, blob.runs_of(sorted(indexes)))
    assert _decode(blob.encode_request(request)) == request
    assert request.indexes() == sorted(indexes)
    assert request.chunk_count == len(indexes)


@pytest.mark.parametrize(
    "request_",
    [
        blob.GetManifest(DIGEST),
        blob.GetManifest(name="toy"),
        blob.GetHave(DIGEST),
        blob.GetTiles(DIGEST, bytes(32)),
    ],
)
def test_other_requests_read_back(request_: blob.Request) -> None:
    assert _decode(blob.encode_request(request_)) == request_


BAD_REQUESTS = {
    "no msgpack": (1, b"\xc1"),
    "a map": (1, msgpack.packb({"a": 1})),
    "neither digest nor name": (1, msgpack.packb([b"", ""])),
    "both": (1, msgpack.packb([DIGEST, "toy"])),
    "short digest": (1, msgpack.packb([DIGEST[:-1], ""])),
    "long name": (1, msgpack.packb([b"", "n" * 201])),
    "have without digest": (2, msgpack.packb([b""])),
    "have of text": (2, msgpack.packb(["x" * 32])),
    "no runs": (3, msgpack.packb([DIGEST, []])),
    "runs no list": (3, msgpack.packb([DIGEST, 5])),
    "empty run": (3, msgpack.packb([DIGEST, [[0, 0]]])),
    "negative": (3, msgpack.packb([DIGEST, [[-1, 2]]])),
    "overlap": (3, msgpack.packb([DIGEST, [[0, 5], [4, 1]]])),
    "descending": (3, msgpack.packb([DIGEST, [[5, 1], [0, 1]]])),
    "huge run": (3, msgpack.packb([DIGEST, [[0, 2**40]]])),
    "many runs": (3, msgpack.packb([DIGEST, [[2 * i, 1] for i in range(limits.BLOB_RUNS_MAX + 1)]])),
    "many chunks": (3, msgpack.packb([DIGEST, [[0, 1024], [2000, 1]]])),
    "digest of wrong length": (3, msgpack.packb([b"x", [[0, 1]]])),
    "tiles of no table": (4, msgpack.packb([DIGEST, b""])),
    "tiles of no model": (4, msgpack.packb([DIGEST])),
    "tiles of text": (4, msgpack.packb([DIGEST, "x" * 32])),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_bad_requests_are_refused(name: str) -> None:
    with pytest.raises(RemoteProtocolError):
        blob.decode_request(*BAD_REQUESTS[name])


@pytest.mark.parametrize(("kind", "size"), [(0, 0), (5, 0), (0x83, 10), (1, 65_537), (3, 2**32 - 1)])
def test_bad_request_heads_are_refused(kind: int, size: int) -> None:
    with pytest.raises(RemoteProtocolError):
        blob.request_head(struct.pack(">BI", kind, size))


@pytest.mark.parametrize(
    ("kind", "size"),
    [(1, 0), (0, 0), (0x83, 2**20 + 5), (0x8E, 1), (0x81, 2**26 + 1), (0x8F, 4097), (0x82, 2**20)],
)
def test_bad_reply_heads_are_refused(kind: int, size: int) -> None:
    with pytest.raises(RemoteProtocolError):
        blob.reply_head(struct.pack(">BI", kind, size))


def test_chunks_read_back() -> None:
    frame = blob.chunk_head(7, 3) + b"abc"
    assert blob.reply_head(frame[:5]) == (blob.CHUNK, 7)
    index, data = blob.decode_chunk(frame[5:])
    assert (index, bytes(data)) == (7, b"abc")
    with pytest.raises(RemoteProtocolError):
        blob.decode_chunk(b"abc")


def test_errors_read_back() -> None:
    frame = blob.encode_error("model_not_found", "no such model")
    assert blob.decode_error(frame[5:]) == ("model_not_found", "no such model")
    for bad in (b"\xc1", msgpack.packb([1, 2]), msgpack.packb(["x" * 65, ""])):
        with pytest.raises(RemoteProtocolError):
            blob.decode_error(bad)


@given(st.integers(0, 255), st.binary(max_size=100))
def test_garbage_never_does_more_than_be_refused(kind: int, payload: bytes) -> None:
    try:
        blob.decode_request(kind, payload)
    except RemoteProtocolError:
        return
