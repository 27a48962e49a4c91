"""The fake node with a true record behind it: real log, real proofs, real bookings."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from p2pnode import commands as c
from p2pnode.events.keys import LogKeys
from p2pnode.events.note import cosign_note, parse_checkpoint, parse_note
from p2pnode.events.witness_view import witness_view
from p2pnode.facade import JsonObject
from p2pnode.identity import load_or_create
from p2pnode.node.ledger import Ledger
from p2pnode.node.queries import LogQueries
from tests.kit.fake_node import FakeNode
from tests.kit.log_events import node_identity


class RecordedNode(FakeNode):
    ledger: Ledger
    queries: LogQueries
    loop: asyncio.AbstractEventLoop

    @asynccontextmanager
    async def recording(self, data: Path) -> AsyncIterator[None]:
        """Open a log with a dozen facts, sealed; close it at the end."""
        self.ledger = await Ledger.open(
            data, load_or_create(data), now_ms=lambda: time.time_ns() // 1_000_000
        )
        self.loop = asyncio.get_running_loop()
        self.witnesses: dict[str, LogKeys] = {}
        self.doubts: list[dict[str, Any]] = []
        self.queries = LogQueries(self.ledger, self._witnesses)
        await self.ledger.do(c.StartNode(version="0.1.0", platform="test", device_name="studio"))
        for number in range(12):
            await self.ledger.do(c.ChangeSetting(key="model.default", value=f"model-{number}"))
        await self.command(
            "topup", {"account": "local", "amount_microunits": 5_000_000, "idempotency_key": "first"}
        )
        await self.ledger.log.seal()
        try:
            yield
        finally:
            await self.ledger.close()

    def _witnesses(self) -> Any:
        bindings = [keys.bound() for keys in self.witnesses.values()]
        return witness_view(self.ledger.log.reader, bindings, self.doubts)

    async def cosign(self, number: int) -> LogKeys:
        """The newest checkpoint cosigned by another device's true keys."""
        keys = LogKeys.derive(node_identity(number))
        self.witnesses[keys.peer] = keys
        text = parse_note(self.ledger.log.checkpoint() or "").text
        line = cosign_note(text, keys.witness_verifier.name, keys.witness, time.time_ns() // 10**9)
        await self.ledger.log.add_cosignature(parse_checkpoint(text).size, str(line), peer=keys.peer)
        return keys

    def record(self, name: str, arguments: Mapping[str, Any]) -> Any:
        return self.queries.ask(name, arguments)

    def billing(self) -> JsonObject:
        return self.ledger.view("billing")

    def settings(self) -> JsonObject:
        return self.ledger.view("settings")

    async def command(self, name: str, arguments: Mapping[str, Any]) -> JsonObject:
        answer = await super().command(name, arguments)
        if name == "topup":
            wanted = c.TopUp(
                note="",
                **{key: arguments[key] for key in ("account", "amount_microunits", "idempotency_key")},
            )
            answer = await self.ledger.do(wanted, idempotency_key=arguments["idempotency_key"])
        elif name == "quota":
            limit, period = arguments.get("limit_microunits"), arguments.get("period_ms")
            answer = await self.ledger.do(
                c.SetQuota(
                    account=arguments["account"],
                    limit_microunits=limit or 0,
                    period_ms=period or 0,
                    unlimited=limit is None,
                )
            )
        elif name == "set":
            answer = await self.ledger.do(c.ChangeSetting(key=arguments["key"], value=arguments["value"]))
        await self.ledger.log.seal()
        return answer
