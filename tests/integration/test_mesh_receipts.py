"""Three devices answer one question; afterwards each log holds both signatures for the work of each stage."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from p2pnode.events import receipt as receipts
from p2pnode.events.reader import LogReader
from p2pnode.events.receipt import Receipt
from p2pnode.events.receipt_file import export_receipts, merge, verify_receipts
from tests.kit.mesh import MeshOfProcesses, NodeProcess, mesh_of

DEMO = "p2pnode-demo"


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MeshOfProcesses]:
    with mesh_of(tmp_path_factory.mktemp("mesh"), "alpha", "beta", "gamma") as made:
        yield made


Kept = tuple[str, str, str]
"""A receipt, its provider's signature and its consumer's, in hexadecimal."""


def receipts_of(node: NodeProcess, kind: str, request_id: str, count: int) -> list[Kept]:
    """The receipts both signed, once they are there: they come after the answer."""
    found = node.until(
        f"{count} in {kind}",
        "/log/entries?limit=1000",
        lambda view: len(_signed(view["entries"], kind, request_id)) == count,
    )
    return _signed(found["entries"], kind, request_id)


def _signed(entries: list[dict[str, Any]], kind: str, request_id: str) -> list[Kept]:
    return [
        (kept[0], kept[1], kept[2])
        for entry in entries
        if entry["type"] == kind and entry["request_id"] == request_id
        for kept in entry["data"]["receipts"]
        if kept[2]
    ]


def read(kept: Kept) -> Receipt:
    return receipts.decode(bytes.fromhex(kept[0]))


def test_an_answers_work_is_signed_by_both_sides(mesh: MeshOfProcesses) -> None:
    alpha, beta, gamma = mesh.nodes
    devices = [node.name for node in mesh.nodes]
    alpha.api.post(
        "/plan", {"model": DEMO, "mode": "pipeline", "stages": 3, "devices": devices, "apply": True}
    )
    answer = alpha.infer(DEMO, "What is a mesh?", mode="pipeline")
    request_id = answer["request_id"]
    ours = {read(kept).provider: kept for kept in receipts_of(alpha, "ReceiptReceived", request_id, 2)}
    made = []
    for node in (beta, gamma):
        (theirs,) = receipts_of(node, "ReceiptGiven", request_id, 1)
        assert theirs == ours[node.peer_id]
        made.append(read(theirs))
    first, second = sorted(made, key=lambda receipt: receipt.layer_first)
    usage = answer["usage"]
    assert (
        first.position_end == second.position_end == usage["prompt_tokens"] + usage["completion_tokens"] - 1
    )
    assert first.layer_end == second.layer_first
    assert first.microunits == 0, "the LAN is free"
    assert first.output_commitment != first.input_commitment

    evidence: dict[str, Any] | None = None
    for node in mesh.nodes:
        node.api.post("/command/seal", {})
        exported = export_receipts(LogReader.of_folder(node.data), request_id)
        evidence = exported if evidence is None else merge(evidence, exported)
    verdict = verify_receipts(json.dumps(evidence))
    assert verdict["ok"], verdict["problems"]
    assert len(verdict["receipts"]) == 2


def test_a_request_leaves_at_most_eight_facts(mesh: MeshOfProcesses) -> None:
    alpha = mesh.nodes[0]
    answer = alpha.infer(DEMO, "Hello", mode="pipeline")
    receipts_of(alpha, "ReceiptReceived", answer["request_id"], 2)
    entries = alpha.api.get("/log/entries", {"limit": 1000})["entries"]
    mine = [entry["type"] for entry in entries if entry["request_id"] == answer["request_id"]]
    assert mine == ["RequestAccepted", "CreditHeld", "RequestFinished", "CreditSettled", "ReceiptReceived"]
