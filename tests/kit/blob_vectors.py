"""Writes specs/vectors/blobs.json: `python -m tests.kit.blob_vectors`. The tests read the file, not this."""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path
from typing import Any

import msgpack

from p2pnode.models import blob, cid, shard_table
from p2pnode.models.importer import read_manifest
from tests.kit.gguf_files import gguf, matrices, toy

TARGET = Path("specs/vectors/blobs.json")


def _manifest(data: bytes) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        path.write_bytes(data)
        return read_manifest([path])


def _case(name: str, comment: str, expect: str, given: Any, output: Any = None) -> dict[str, Any]:
    return {"name": name, "comment": comment, "expect": expect, "input": given, "output": output}


def _ids() -> list[dict[str, Any]]:
    good = cid.of(b"abc")
    bad = {
        "upper case": good.upper(),
        "one short": good[:-1],
        "base58": "z" + good[1:],
        "other hash": "bafkreif2pall7dybz7vecqka3zo24irdwabwdi4wc55jznaq75q7eaavvu",
        "digit 1 is not base32": good[:10] + "1" + good[11:],
        "padding bits set": good[:-1] + chr(ord(good[-1]) + 1),
    }
    cases = [
        _case(
            "cid of abc",
            "BLAKE3-256 as CIDv1",
            "ok",
            {"kind": "cid", "text": good},
            cid.to_digest(good).hex(),
        )
    ]
    return cases + [
        _case(f"cid {name}", "one text form only", "bad_model_file", {"kind": "cid", "text": text})
        for name, text in bad.items()
    ]


def _manifests() -> list[dict[str, Any]]:
    small = gguf({"general.architecture": "llama"}, [("t", bytes(range(64)))])
    cases = []
    for name, data in (("smallest", small), ("with vocabulary", toy(layers=1, floats=40, vocabulary=500))):
        made = _manifest(data)
        output = {
            "cid": made.content_id,
            "chunks": [[c.file, c.offset, c.size, c.digest.hex()] for c in made.chunks],
            "holes": [[h.first, h.end] for h in made.files[0].omissions],
        }
        given = {"kind": "manifest", "manifest": made.encoded.hex(), "file": data.hex()}
        cases.append(_case(f"manifest {name}", "file, its manifest and its chunks", "ok", given, output))
    size, header_size, holes, kept, digests = msgpack.unpackb(_manifest(small).encoded)[2][0]

    def packed(*entry: Any, version: int = 1, chunk: int = 2**20) -> bytes:
        return bytes(msgpack.packb([version, chunk, [list(entry)]]))

    bad = {
        "empty": b"",
        "version 2": packed(size, header_size, holes, kept, digests, version=2),
        "chunks of 4096": packed(size, header_size, holes, kept, digests, chunk=4096),
        "no files": msgpack.packb([1, 2**20, []]),
        "trailing byte": _manifest(small).encoded + b"\0",
        "wide integer": _manifest(small).encoded.replace(b"\x93\x01\xce", b"\x93\xcc\x01\xce", 1),
        "a map": msgpack.packb({"version": 1}),
        "missing digest": packed(size, header_size, holes, kept, digests[:-32]),
        "file too small": packed(size - 1, header_size, holes, kept, digests),
        "header too short": packed(size, header_size, holes, kept[:-1], digests),
        "hole in no array": packed(size, header_size, [[24, 36, 40]], kept[:36] + kept[40:], digests),
        "hole past the header": packed(size, header_size, [[100, 112, 500]], kept, digests),
        "no GGUF": packed(size, header_size, holes, b"XXXX" + kept[4:], digests),
    }
    return cases + [
        _case(
            f"manifest {name}",
            "not canonical, or not possible",
            "bad_model_file",
            {"kind": "manifest", "manifest": data.hex()},
        )
        for name, data in bad.items()
    ]


def _tables() -> list[dict[str, Any]]:
    """A model of two cut tensors: rows of 64 floats in two tiles, and 40 rows of 8 floats in two."""
    rng = random.Random(4)
    shapes = [("blk.0.ffn_down.weight", (64, 3), 0), ("blk.0.ffn_up.weight", (8, 40), 0)]
    data = matrices(shapes, rng.randbytes)
    found = _manifest(data)
    grids = shard_table.grids_of(found)
    digests = [
        grid.digests([data[grid.offset : grid.offset + grid.lines * grid.line_bytes]]) for grid in grids
    ]
    table = shard_table.build(found, b"".join(digests))
    given = {"kind": "table", "manifest": found.encoded.hex(), "file": data.hex()}
    output = {
        "cid": table.content_id,
        "tiles": [
            [tile.grid.tensor, tile.line, tile.lines, tile.at, tile.width, tile.digest.hex()]
            for tile in (table.chunks[number] for number in range(len(table.chunks)))
        ],
    }
    model, all_digests = cid.to_digest(found.content_id), b"".join(digests)
    bad = {
        "empty": b"",
        "version 2": msgpack.packb([2, model, all_digests]),
        "of another model": msgpack.packb([1, model[::-1], all_digests]),
        "missing digest": msgpack.packb([1, model, all_digests[:-32]]),
        "half a digest more": msgpack.packb([1, model, all_digests + bytes(16)]),
        "trailing byte": table.encoded + b"\0",
        "wide length": table.encoded.replace(b"\xc4\x80", b"\xc5\x00\x80", 1),
        "digests in a list": msgpack.packb([1, model, digests]),
        "a map": msgpack.packb({"version": 1}),
    }
    cases = [
        _case("table of two tensors", "its tiles", "ok", {**given, "table": table.encoded.hex()}, output)
    ]
    return cases + [
        _case(
            f"table {name}",
            "one form only",
            "bad_model_file",
            {**given, "table": bytes(made).hex()},
        )
        for name, made in bad.items()
    ]


def _requests() -> list[dict[str, Any]]:
    digest = bytes(range(32))
    good: dict[str, tuple[blob.Request, Any]] = {
        "manifest by digest": (blob.GetManifest(digest), ["manifest", digest.hex(), ""]),
        "manifest by name": (blob.GetManifest(name="toy"), ["manifest", "", "toy"]),
        "have": (blob.GetHave(digest), ["have", digest.hex()]),
        "tiles": (blob.GetTiles(digest, digest[::-1]), ["tiles", digest.hex(), digest[::-1].hex()]),
        "chunks": (blob.GetChunks(digest, ((0, 3), (7, 1))), ["chunks", digest.hex(), [0, 1, 2, 7]]),
    }
    bad = {
        "unknown kind": blob.frame(9),
        "too long": b"\x03\x00\x01\x00\x01",
        "digest and name": blob.frame(1, msgpack.packb([digest, "toy"])),
        "short digest": blob.frame(2, msgpack.packb([digest[1:]])),
        "no runs": blob.frame(3, msgpack.packb([digest, []])),
        "empty run": blob.frame(3, msgpack.packb([digest, [[4, 0]]])),
        "overlapping runs": blob.frame(3, msgpack.packb([digest, [[0, 3], [2, 1]]])),
        "negative": blob.frame(3, msgpack.packb([digest, [[-1, 1]]])),
        "too many chunks": blob.frame(3, msgpack.packb([digest, [[0, 1025]]])),
        "no msgpack": blob.frame(2, b"\xc1"),
        "tiles of no table": blob.frame(4, msgpack.packb([digest])),
        "tiles, short digest": blob.frame(4, msgpack.packb([digest, digest[1:]])),
        "tiles with runs": blob.frame(4, msgpack.packb([digest, digest, [[0, 1]]])),
    }
    cases = [
        _case(
            f"request {name}",
            "a whole frame",
            "ok",
            {"kind": "request", "frame": blob.encode_request(made).hex()},
            output,
        )
        for name, (made, output) in good.items()
    ]
    return cases + [
        _case(
            f"request {name}",
            "resets the stream",
            "protocol_remote",
            {"kind": "request", "frame": data.hex()},
        )
        for name, data in bad.items()
    ]


def main() -> None:
    cases = _ids() + _manifests() + _tables() + _requests()
    TARGET.write_text(json.dumps(cases, indent=1) + "\n")


if __name__ == "__main__":
    main()
