"""The record in the panel: verified by the browser itself, and what it does not believe."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from p2pnode.events.fraud import fraud_from_trees, parse_fraud_file
from tests.kit.log_trees import Tree
from tests.kit.pictures import picture
from tests.kit.recorded_node import RecordedNode

pytestmark = pytest.mark.slow


def test_audit(page: Page, url: str) -> None:
    """The checkpoint and an entry are verified in the browser; the path is drawn; time travel works."""
    page.goto(f"{url}/#/audit")
    expect(
        page.get_by_text(re.compile("identity, keys and signature verified in this browser"))
    ).to_be_visible()
    page.get_by_role("link", name="3", exact=True).click()
    expect(page.get_by_role("heading", name=re.compile("✓ Entry 3"))).to_be_visible()
    expect(page.locator(".path li")).to_have_count(5)
    picture(page, "audit")
    page.get_by_label(re.compile("^As it was at size")).fill("4")
    expect(page.locator("tbody tr")).to_have_count(4)
    page.get_by_label("Contains").fill("nothing like this")
    expect(page.locator("tbody tr")).to_have_count(0)


def test_witnesses(page: Page, url: str, node: RecordedNode) -> None:
    """Who cosigned is checked in the browser; a forged line, a fraud and a doubt are seen."""
    page.goto(f"{url}/#/audit")
    expect(page.get_by_text("Nobody has cosigned this log yet")).to_be_visible()

    def do(work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, node.loop).result(10)

    witness = do(node.cosign(2))
    do(node.ledger.log.seal())
    do(node.cosign(2))
    page.reload()
    row = page.get_by_role("article", name="Witnesses").get_by_role("row").nth(1)
    expect(row).to_contain_text("✓ signature")
    picture(page, "witnesses")

    def forged(name: str, arguments: Mapping[str, Any], answer: Any) -> Any:
        if name == "witnesses":
            note, last = answer["checkpoint"].rstrip("\n").rsplit(" ", 1)
            line = bytearray(base64.b64decode(last))
            line[-1] ^= 1
            return {**answer, "checkpoint": f"{note} {base64.b64encode(line).decode()}\n"}
        return answer

    honest, node.forge = node.forge, forged
    page.reload()
    expect(row).to_contain_text("is false")
    node.forge = honest
    honest_tree, forked_tree = Tree(40), Tree(40, fork_at=10)
    proof = fraud_from_trees(honest_tree.signed(20), forked_tree.signed(37), honest_tree, forked_tree)
    assert do(node.ledger.log.convict(proof))
    node.doubts.append(
        {"peer": witness.peer, "origin": "p2pnode/x", "sizes": [3, 9], "why": "no tree", "time_ms": 0}
    )
    page.reload()
    expect(page.get_by_role("alert")).to_contain_text("signed two histories of its log")
    expect(page.get_by_text("do not fit together")).to_be_visible()
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save the proof").click()
    assert parse_fraud_file(saved.value.path().read_text()) == proof


def test_rotated_keys(page: Page, url: str, node: RecordedNode) -> None:
    """The browser follows the log to its new keys, and still proves what the old ones sealed."""
    page.goto(f"{url}/#/audit")
    expect(page.get_by_text(re.compile("verified in this browser"))).to_be_visible()
    for _ in range(2):
        asyncio.run_coroutine_threadsafe(node.ledger.log.rotate_keys(), node.loop).result(10)
    page.goto(f"{url}/#/audit/3")
    page.reload()
    expect(page.get_by_text("It contains everything this browser saw before")).to_be_visible()
    expect(page.get_by_role("heading", name=re.compile("✓ Entry 3"))).to_be_visible()


def test_forged_record(page: Page, url: str, node: RecordedNode) -> None:
    """A changed entry is caught by the browser, not by the node."""

    def forged(name: str, arguments: Mapping[str, Any], answer: Any) -> Any:
        if name == "event" and arguments.get("index") == 3:
            return {**answer, "entry": answer["entry"][:-2] + "00"}
        return answer

    node.forge = forged
    page.goto(f"{url}/#/audit/3")
    expect(page.get_by_role("alert")).to_contain_text("another root")


def test_rollback(page: Page, url: str, tmp_path: Path) -> None:
    """A log that is shorter than what this browser saw is an alarm."""
    page.goto(f"{url}/#/audit")
    expect(page.get_by_text(re.compile("verified in this browser"))).to_be_visible()
    page.evaluate(
        "for (const key of Object.keys(localStorage)) if (key.startsWith('p2pnode.checkpoint.'))"
        " localStorage.setItem(key, JSON.stringify({...JSON.parse(localStorage.getItem(key)), size: 9999}))"
    )
    page.reload()
    expect(page.get_by_role("alert")).to_contain_text("had 9999 entries before")
