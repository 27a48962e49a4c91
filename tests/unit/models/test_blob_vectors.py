"""The vectors of specs/04-blobs.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from p2pnode.errors import P2PNodeError
from p2pnode.models import blob, cid, shard_table
from p2pnode.models.manifest import Manifest
from p2pnode.models.manifest_codec import decode

CASES = json.loads((Path(__file__).parents[3] / "specs/vectors/blobs.json").read_text())


def _manifest(given: dict[str, str]) -> Any:
    found: Manifest = decode(bytes.fromhex(given["manifest"]))
    data = bytes.fromhex(given["file"])
    for chunk in found.chunks:
        assert cid.digest(data[chunk.offset : chunk.offset + chunk.size]) == chunk.digest
    return {
        "cid": found.content_id,
        "chunks": [[c.file, c.offset, c.size, c.digest.hex()] for c in found.chunks],
        "holes": [[h.first, h.end] for h in found.files[0].omissions],
    }


def _request(given: dict[str, str]) -> Any:
    data = bytes.fromhex(given["frame"])
    kind, size = blob.request_head(data[:5])
    assert size == len(data) - 5
    match blob.decode_request(kind, data[5:]):
        case blob.GetManifest(digest, name):
            return ["manifest", digest.hex(), name]
        case blob.GetHave(digest):
            return ["have", digest.hex()]
        case blob.GetTiles(model, table):
            return ["tiles", model.hex(), table.hex()]
        case blob.GetChunks(digest) as request:
            return ["chunks", digest.hex(), request.indexes()]


def _table(given: dict[str, str]) -> Any:
    found = shard_table.decode(bytes.fromhex(given["table"]), decode(bytes.fromhex(given["manifest"])))
    data, out = bytes.fromhex(given["file"]), []
    for number in range(len(found.chunks)):
        tile = found.chunks[number]
        rows = tile.places(tile.grid.offset + tile.at, tile.grid.line_bytes)
        assert cid.digest(*(data[offset : offset + size] for offset, size in rows)) == tile.digest
        out.append([tile.grid.tensor, tile.line, tile.lines, tile.at, tile.width, tile.digest.hex()])
    return {"cid": found.content_id, "tiles": out}


def _run(given: dict[str, str]) -> Any:
    if given["kind"] == "cid":
        return cid.to_digest(given["text"]).hex()
    if given["kind"] == "table":
        return _table(given)
    return _manifest(given) if given["kind"] == "manifest" else _request(given)


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_vector(case: dict[str, Any]) -> None:
    if case["expect"] == "ok":
        assert _run(case["input"]) == case["output"]
        return
    with pytest.raises(P2PNodeError) as caught:
        _run(case["input"])
    assert caught.value.code == case["expect"]


def test_more_are_invalid_than_valid() -> None:
    assert sum(case["expect"] != "ok" for case in CASES) > len(CASES) / 2
