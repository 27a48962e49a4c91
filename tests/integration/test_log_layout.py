"""The record over HTTP in the layout of c2sp.org/tlog-tiles, read as a client reads it that knows nothing of us."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from p2pnode.endpoint import Endpoint
from p2pnode.events.merkle import leaf_hash, root_of, verify_consistency, verify_inclusion
from p2pnode.events.note import open_checkpoint, parse_verifier
from p2pnode.identity import load_or_create
from p2pnode.node.ledger import Ledger
from p2pnode.node.queries import LogQueries
from tests.kit.api_server import serving
from tests.kit.fake_node import FakeNode
from tests.kit.log_events import ManualClock, started

EVENTS = 700


class LogNode(FakeNode):
    """A true log behind the routes; nothing else is asked of it here."""

    queries: LogQueries
    key: str

    @asynccontextmanager
    async def recording(self, data: Path) -> AsyncIterator[None]:
        ledger = await Ledger.open(data, load_or_create(data), now_ms=ManualClock())
        self.queries = LogQueries(ledger, dict)
        self.key = str(ledger.log.keys.log_verifier)
        await ledger.log.append([started(str(number)) for number in range(EVENTS)])
        await ledger.log.seal()
        try:
            yield
        finally:
            await ledger.close()

    def log_query(self, name: str, arguments: Any) -> Any:
        return self.queries.ask(name, arguments)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, LogNode]]:
    node = LogNode()
    with serving(node, inside=node.recording(tmp_path_factory.mktemp("log"))) as url:
        yield url, node


def get(url: str, path: str) -> bytes:
    with urllib.request.urlopen(f"{url}/log/{path}", timeout=20) as answer:
        return bytes(answer.read())


def node_hash(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01" + left + right).digest()


def test_tiles_and_bundles_lead_to_the_signed_root(served: tuple[str, LogNode]) -> None:
    """Full tiles, partial tiles and the bundles of entries are of one tree, which is the checkpoint's."""
    url, node = served
    key = parse_verifier(node.key)
    checkpoint, _ = open_checkpoint(get(url, "checkpoint"), key)
    size = checkpoint.size
    assert size == EVENTS + 1
    full, rest = divmod(size, 256)
    names = [f"{number:03d}" for number in range(full)] + [f"{full:03d}.p/{rest}"]
    leaves: list[bytes] = []
    for name in names:
        tile, bundle = get(url, f"tile/0/{name}"), get(url, f"tile/entries/{name}")
        hashes = [tile[at : at + 32] for at in range(0, len(tile), 32)]
        entries, at = [], 0
        while at < len(bundle):
            length = int.from_bytes(bundle[at : at + 2], "big")
            entries.append(bundle[at + 2 : at + 2 + length])
            at += 2 + length
        assert [leaf_hash(entry) for entry in entries] == hashes
        leaves += hashes
    assert root_of(leaves) == checkpoint.root
    above = get(url, f"tile/1/000.p/{full}")
    for number in range(full):
        level = leaves[number * 256 : number * 256 + 256]
        while len(level) > 1:
            level = [node_hash(*level[pair : pair + 2]) for pair in range(0, len(level), 2)]
        assert above[number * 32 : number * 32 + 32] == level[0]


@pytest.mark.parametrize(
    "path",
    [
        "tile/0/002",
        "tile/0/003",
        "tile/0/2.p/1",
        "tile/0/x000/000",
        "tile/0/000.p/256",
        "tile/0/000.p/0",
        "tile/0/002.p/255",
        "tile/1/000",
        "tile/entries/002",
        "tile/entries/003.p/1",
        "tile/9/000",
    ],
)
def test_what_is_not_there_or_is_spelled_otherwise_is_not_found(
    served: tuple[str, LogNode], path: str
) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        get(served[0], path)
    with refused.value as answer:
        assert answer.code in (400, 404)


def test_proofs_blocks_and_entries_are_those_of_the_tree(served: tuple[str, LogNode]) -> None:
    url, _ = served
    host, port = url.removeprefix("http://").split(":")
    api = Endpoint(host, int(port))
    proof = api.get("/log/proof/inclusion", {"index": 300, "size": EVENTS + 1})
    hashes = [bytes.fromhex(one) for one in proof["proof"]]
    leaf, root = leaf_hash(bytes.fromhex(proof["entry"])), bytes.fromhex(proof["root"])
    assert verify_inclusion(leaf, 300, EVENTS + 1, hashes, root)
    assert not verify_inclusion(leaf, 301, EVENTS + 1, hashes, root)
    found = api.get("/log/proof/consistency", {"first": 300, "second": EVENTS + 1})
    roots = [bytes.fromhex(found[name]) for name in ("first_root", "second_root")]
    steps = [bytes.fromhex(one) for one in found["proof"]]
    assert verify_consistency(300, EVENTS + 1, steps, *roots)
    assert not verify_consistency(301, EVENTS + 1, steps, *roots)
    blocks = api.get("/log/blocks", {"limit": 1000})["blocks"]
    assert [block["header"]["first"] for block in blocks[1:]] == [b["header"]["end"] for b in blocks[:-1]]
    assert blocks[-1]["header"]["log_root"] == roots[1].hex()
    entries = api.get("/log/entries", {"first": 5, "limit": 3})["entries"]
    assert [entry["index"] for entry in entries] == [5, 6, 7]
