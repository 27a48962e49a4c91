"""`/p2pnode/log/1`: a member reads and checks another's record; a log that lies is found out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from p2pnode import limits
from p2pnode.errors import BadCheckpoint, CorruptRecord, LogError, NotFound, RemoteProtocolError
from p2pnode.events.merkle import leaf_hash, verify_consistency, verify_inclusion
from p2pnode.node.log_sharing import LOG, verify_log
from p2pnode.transport import messages
from p2pnode.transport.port import Connection
from p2pnode.units import PeerId
from tests.kit.net import quic, running
from tests.kit.node_here import become_member, node_here


async def ask(connection: Connection, method: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    stream = await connection.open_stream(LOG)
    await messages.send_message(stream, messages.Call(method=method, arguments=dict(arguments)))
    answer = await messages.receive_message(stream)
    if isinstance(answer, messages.Refused):
        raise messages.refusal_error(answer)
    assert isinstance(answer, messages.Answer)
    return answer.data


async def test_a_member_checks_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    member = quic("auditor")
    async with running(member), node_here(tmp_path) as node:
        connection = await become_member(member, node)
        monkeypatch.setattr(limits, "LOG_SHARE_ENTRIES_MAX", 3)
        await node.ledger.log.seal()

        async def of_node(method: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
            return await ask(connection, method, arguments)

        report = await verify_log(node.me, of_node)
        size = report["size"]
        assert report["ok"]
        assert size == node.ledger.log.size
        entry = (await of_node("entries", {"first": 2}))["entries"][0]
        proof = (await of_node("inclusion", {"index": 2, "size": size}))["proof"]
        root = bytes.fromhex(report["root"])
        assert verify_inclusion(leaf_hash(entry), 2, size, proof, root)
        proof = (await of_node("consistency", {"first": 2, "second": size}))["proof"]
        assert verify_consistency(2, size, proof, node.ledger.log.root(2), root)
        hashes = (await of_node("tile", {"level": 0, "index": 0}))["hashes"]
        assert hashes[64:96] == leaf_hash(entry)

        with pytest.raises(BadCheckpoint):
            await verify_log(PeerId(member.peer_id), of_node)
        for change in ("forged", "dropped", "noise"):

            async def lying(method: str, arguments: Mapping[str, Any], how: str = change) -> dict[str, Any]:
                answer = await of_node(method, arguments)
                if method == "entries" and arguments["first"] == 3:
                    bodies = answer["entries"]
                    answer["entries"] = {
                        "forged": [bodies[-1], *bodies[1:]],
                        "dropped": bodies[1:] + bodies[:1],
                        "noise": [b"\xc1" * 9, *bodies[1:]],
                    }[how]
                return answer

            with pytest.raises((CorruptRecord, LogError)):
                await verify_log(node.me, lying)


async def test_questions_that_cannot_be(tmp_path: Path) -> None:
    member = quic("auditor")
    async with running(member), node_here(tmp_path) as node:
        connection = await become_member(member, node)
        for method, arguments in (
            ("drop", {}),
            ("entries", {}),
            ("entries", {"first": -1}),
            ("entries", {"first": 2**60}),
            ("entries", {"first": True}),
            ("entries", {"first": "0"}),
            ("tile", {"level": 9, "index": 0}),
            ("tile", {"level": 0, "index": 2**41}),
            ("inclusion", {"index": 5, "size": 10**9}),
            ("inclusion", {"index": 9, "size": 5}),
            ("consistency", {"first": 9, "second": 5}),
        ):
            with pytest.raises((RemoteProtocolError, NotFound)):
                await ask(connection, method, arguments)
        assert (await ask(connection, "tile", {"level": 3, "index": 2**40}))["hashes"] == b""
