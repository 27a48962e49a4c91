"""A receipt taken out of two real logs proves itself without either node, and nothing changed in it does."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from p2pnode.commands import AcceptReceipts, Command
from p2pnode.decide import StageWork, decide, draft_receipts
from p2pnode.errors import NotFound
from p2pnode.events import receipt as receipts
from p2pnode.events.receipt_file import export_receipts, merge, verify_receipts
from p2pnode.events.store import SqliteLog
from p2pnode.identity import Identity
from p2pnode.projections import MeshFold, MeshState
from tests.kit.receipts import HASH, Channel, public
from tests.kit.story import NOW_MS

WORK = StageWork(
    request_id="r1",
    model="bafkmodel",
    layers=(4, 8),
    positions=(0, 10),
    layer_tokens=40,
    request_layer_tokens=80,
    microunits=500_000,
    request_microunits=1_000_000,
    input_commitment=HASH,
    output_commitment=HASH,
)
Log = SqliteLog[MeshState]
Document = dict[str, Any]


def open_log(folder: Path, seed: int) -> Log:
    identity = Identity.from_seed(bytes([seed]) * 32)
    return SqliteLog.open(
        folder, identity, fold=MeshFold(), now_ms=lambda: NOW_MS, rng=lambda count: bytes([seed]) * count
    )


async def do(log: Log, command: Command) -> None:
    await log.submit(lambda state: decide(state, command, NOW_MS))


async def exchange(provider: Log, consumer: Log, *works: StageWork) -> None:
    """Receipts of one question, signed by both, in both logs."""
    between, signed = await given(provider, consumer, *works)
    await do(consumer, between.accept(*signed))
    await do(provider, between.give(*signed))
    assert public(provider.keys) != public(consumer.keys)


async def given(provider: Log, consumer: Log, *works: StageWork) -> tuple[Channel, list[receipts.Signed]]:
    between = Channel(consumer.keys, provider.keys)
    note, peer = provider.checkpoint() or "", consumer.keys.peer
    drafts = await provider.query(lambda state: draft_receipts(state, peer, works or (WORK,), note, NOW_MS))
    signed = [
        receipts.Signed(
            raw,
            receipts.sign(raw, provider.keys.receipt),
            receipts.countersign(raw, consumer.keys.receipt),
        )
        for raw in map(receipts.encode, drafts)
    ]
    await do(provider, between.give(*signed, agreed=False))
    return between, signed


async def exported(log: Log, what: str = "r1") -> Document:
    await log.seal()
    return export_receipts(log.reader, what)


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Document:
    """Both sides' halves of the receipt of request r1."""
    return asyncio.run(both_halves(tmp_path_factory.mktemp("logs")))


async def both_halves(folder: Path) -> Document:
    provider, consumer = open_log(folder / "p", 1), open_log(folder / "c", 2)
    await exchange(provider, consumer, replace(WORK, request_id="r0"))
    await exchange(provider, consumer)
    made = merge(await exported(provider), await exported(consumer))
    await provider.close()
    await consumer.close()
    return made


async def three_sides(folder: Path) -> Document:
    """Two providers, one of which has two stages; the consumer records all in one fact."""
    first, second, consumer = (open_log(folder / name, n) for n, name in enumerate("pqc", 1))
    parts = [replace(WORK, layer_tokens=20, microunits=250_000, layers=(n, n + 4)) for n in (0, 8)]
    sides = [await given(first, consumer, *parts), await given(second, consumer)]
    offers = [between.offer(one) for between, signed in sides for one in signed]
    await do(consumer, AcceptReceipts(offers=tuple(offers), consumer_key=public(consumer.keys)))
    for provider, (between, signed) in zip((first, second), sides, strict=True):
        await do(provider, between.give(*signed))
    made = merge(merge(await exported(first), await exported(second)), await exported(consumer))
    for log in (first, second, consumer):
        await log.close()
    return made


async def test_receipts_of_several_devices_in_one_fact_are_proved_one_by_one(tmp_path: Path) -> None:
    document = await three_sides(tmp_path)
    assert document == vector("three devices")["input"]
    assert len(document["evidence"][2]["events"]) == 1
    verdict = verify_receipts(json.dumps(document))
    assert verdict["ok"], verdict["problems"]
    assert [receipt["proved"] for receipt in verdict["receipts"]] == [True] * 3


def test_both_halves_prove_the_receipt(document: Document) -> None:
    verdict = verify_receipts(json.dumps(document))
    assert verdict["ok"], verdict["problems"]
    (receipt,) = verdict["receipts"]
    assert (receipt["sequence"], receipt["layers"], receipt["microunits"]) == (2, [4, 8], 500_000)
    assert len(receipt["logged_by"]) == 2


async def test_one_half_is_not_enough(tmp_path: Path) -> None:
    provider, consumer = open_log(tmp_path / "p", 1), open_log(tmp_path / "c", 2)
    await exchange(provider, consumer)
    for log in (provider, consumer):
        verdict = verify_receipts(json.dumps(await exported(log)))
        assert not verdict["ok"]
        assert "missing" in verdict["problems"][0]
        with pytest.raises(NotFound):
            export_receipts(log.reader, "another request")
        await log.close()


VECTORS = json.loads(
    (Path(__file__).parents[2] / "specs/vectors/receipt_files.json").read_text(encoding="utf-8")
)


def vector(name: str) -> Document:
    found: Document = next(v for v in VECTORS if v["name"] == name)
    return found


@pytest.mark.parametrize("case", VECTORS, ids=lambda v: v["name"])
def test_vectors(case: Document) -> None:
    """Each file of specs/09-billing.md is proof of its receipts, or of nothing."""
    verdict = verify_receipts(json.dumps(case["input"]))
    assert verdict["ok"] == (case["expect"] == "ok")
    if verdict["ok"]:
        assert verdict["receipts"] == case["output"]


def test_the_vectors_come_from_real_logs(document: Document) -> None:
    assert document == vector("both halves")["input"]


def _flip(text: str, at: int) -> str:
    return text[:at] + ("0" if text[at] != "0" else "1") + text[at + 1 :]


def _tamper_entry(kind: str, side: int, at: int) -> Callable[[Document], None]:
    def tamper(document: Document) -> None:
        piece = document["evidence"][side][kind][0]
        piece["entry"] = _flip(piece["entry"], at % len(piece["entry"]))

    return tamper


def _tamper_proof(kind: str, side: int, line: int) -> Callable[[Document], None]:
    def tamper(document: Document) -> None:
        piece = document["evidence"][side][kind][0]
        lines = piece["proof"].split("\n")
        lines[line] = lines[line][:-2] + ("A" if lines[line][-2] != "A" else "B") + lines[line][-1]
        piece["proof"] = "\n".join(lines)

    return tamper


def _swap_keys(document: Document) -> None:
    first, second = document["evidence"]
    first["bindings"], second["bindings"] = second["bindings"], first["bindings"]


def _claim_another_peer(document: Document) -> None:
    document["evidence"][0]["peer"] = document["evidence"][1]["peer"]


def _drop_keys(document: Document) -> None:
    document["evidence"][0]["bindings"] = []


def _drop_receipts(document: Document) -> None:
    for evidence in document["evidence"]:
        evidence["events"] = []


def _keys_as_receipt(document: Document) -> None:
    document["evidence"][0]["events"] = document["evidence"][0]["bindings"]


def _another_format(document: Document) -> None:
    document["format"] = "something else"


def _too_many(document: Document) -> None:
    document["evidence"] = document["evidence"] * 40


def _no_list(document: Document) -> None:
    document["evidence"] = {"a": 1}


def _not_hex(document: Document) -> None:
    document["evidence"][0]["events"][0]["entry"] = "zz"


@pytest.mark.parametrize(
    "tamper",
    [
        *(
            _tamper_entry(kind, side, at)
            for kind in ("bindings", "events")
            for side in (0, 1)
            for at in (5, 99, -3)
        ),
        *(
            _tamper_proof(kind, side, line)
            for kind in ("bindings", "events")
            for side in (0, 1)
            for line in (2, -2)
        ),
        _swap_keys,
        _claim_another_peer,
        _drop_keys,
        _drop_receipts,
        _keys_as_receipt,
        _another_format,
        _too_many,
        _no_list,
        _not_hex,
    ],
)
def test_whatever_is_changed_is_noticed(document: Document, tamper: Callable[[Document], None]) -> None:
    changed = copy.deepcopy(document)
    tamper(changed)
    assert changed != document
    verdict = verify_receipts(json.dumps(changed))
    assert not verdict["ok"]
    assert verdict["problems"]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "null", '{"format": 1}', "[" * 5000, "x" * 9_000_000], ids=range(7)
)
def test_other_files_are_no_receipts(text: str) -> None:
    assert not verify_receipts(text)["ok"]
