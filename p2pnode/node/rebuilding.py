"""The faces of a device that folds a long record anew, because a newer version of the code folds it otherwise.

Nothing is decided by what an older version left: no member is let in, no request is taken, no credit moves. What
it left is shown, with its age, and the record itself can be read and proved. Source: specs/08-log.md#rebuilding
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any, cast

from p2pnode import __version__, limits
from p2pnode.config import JoinOptions, describe
from p2pnode.errors import StateRebuilding
from p2pnode.events.witness_view import witness_view
from p2pnode.facade import JsonObject, NodeFacade
from p2pnode.node.ledger import Ledger
from p2pnode.node.queries import LogQueries
from p2pnode.units import PeerId


class RebuildingFaces:
    """The views and the record's questions of `NodeFacade`; whatever else is asked is refused until it is done."""

    def __init__(self, ledger: Ledger, options: JoinOptions, me: PeerId) -> None:
        self._ledger, self._options, self.peer_id = ledger, options, me
        self._queries = LogQueries(ledger, lambda: witness_view(ledger.log.reader))

    @property
    def name(self) -> str:
        return self._options.name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise self._condition()

    def _condition(self) -> StateRebuilding:
        progress = self._ledger.rebuilding() or {
            "folded": self._ledger.log.size,
            "size": self._ledger.log.size,
        }
        return StateRebuilding(
            f"{progress['folded']} of {progress['size']} events are folded by this version of p2pnode",
            folded=progress["folded"],
            size=progress["size"],
        )

    def health(self) -> JsonObject:
        return {
            "status": "ok",
            "ready": False,
            "peer_id": self.peer_id,
            "name": self.name,
            "version": __version__,
        }

    def status(self) -> JsonObject:
        log = self._ledger.log
        return {
            **self.health(),
            "mesh": {"name": self._ledger.state.node.mesh_name, "role": "", "members": 0},
            "state": "rebuilding",
            "addresses": [],
            "capability": {},
            "memory": {},
            "hosted_stages": [],
            "engines": [],
            "log": {
                "size": log.size,
                "blocks": log.block_count,
                "rebuilding": self._ledger.rebuilding(),
            },
            "running": 0,
            "recovering": 0,
            "backends": [],
        }

    def peers(self) -> JsonObject:
        return self._ledger.view("peers")

    def models(self) -> JsonObject:
        return self._ledger.view("models")

    def sessions(self) -> JsonObject:
        return self._ledger.view("sessions")

    def plans(self) -> JsonObject:
        return self._ledger.view("plans")

    def billing(self) -> JsonObject:
        return self._ledger.view("billing")

    def settings(self) -> JsonObject:
        return self._ledger.view("settings")

    def metrics(self) -> JsonObject:
        return self._ledger.view("metrics")

    def options(self) -> JsonObject:
        return {"settings": describe(self._options)}

    def loading(self, model: str) -> None:
        del model

    def transfer(self, model: str) -> None:
        del model

    def hops(self) -> JsonObject:
        return {"totals": {}, "requests": []}

    def log_query(self, name: str, arguments: Mapping[str, Any]) -> Any:
        return self._queries.ask(name, arguments)

    async def generate(self, request: Any) -> AsyncIterator[Any]:
        del request
        raise self._condition()
        yield

    async def live(self, after_index: int | None) -> AsyncIterator[JsonObject]:
        """How far it is, until it is done: then the reader comes back to the whole feed."""
        del after_index
        while not self._ledger.is_exact.is_set():
            yield {"kind": "rebuilding", "data": self._ledger.rebuilding()}
            try:
                async with asyncio.timeout(limits.STATUS_INTERVAL_S):
                    await self._ledger.is_exact.wait()
            except TimeoutError:
                continue


class Door:
    """One application before and after: whoever asks it gets the faces there are now."""

    def __init__(self, faces: RebuildingFaces) -> None:
        self._faces: Any = faces

    @property
    def facade(self) -> NodeFacade:
        return cast(NodeFacade, self)

    def open(self, faces: NodeFacade) -> None:
        self._faces = faces

    def __getattr__(self, name: str) -> Any:
        return getattr(self._faces, name)


async def exact_or_failed(ledger: Ledger) -> None:
    """Until everything that is decided by is exact. Raises LogFailed when the record can not be folded."""
    over = asyncio.Event()
    ledger.log.on_failure(lambda _: over.set())
    ledger.log.on_rebuilt(lambda _: over.set())
    if not ledger.is_exact.is_set() and ledger.log.failure is None:
        await over.wait()
    if ledger.log.failure is not None:
        raise ledger.log.failure
