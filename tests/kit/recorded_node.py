"""The fake node with a true record behind it: real log, real proofs, real bookings."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from p2pnode import commands as c
from p2pnode.facade import JsonObject
from p2pnode.identity import load_or_create
from p2pnode.node.ledger import Ledger
from p2pnode.node.queries import LogQueries
from tests.kit.fake_node import FakeNode


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
        self.queries = LogQueries(self.ledger)
        self.loop = asyncio.get_running_loop()
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

    def log_query(self, name: str, arguments: Mapping[str, Any]) -> Any:
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
        elif name == "set":
            answer = await self.ledger.do(c.ChangeSetting(key=arguments["key"], value=arguments["value"]))
        await self.ledger.log.seal()
        return answer
