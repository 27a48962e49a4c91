"""Checkpoints carried to peers and back with their cosignatures, and the same done for them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from p2pnode import limits
from p2pnode.errors import BadCheckpoint, P2PNodeError, RemoteProtocolError, RollbackRefused
from p2pnode.events.keys import decode_binding, encode_binding, is_binding_valid
from p2pnode.events.types import KeysBound
from p2pnode.events.witnessing import gather_cosignature
from p2pnode.node.ledger import Ledger
from p2pnode.node.links import Links, ProgressCallback
from p2pnode.units import PeerId


class Witnessing:
    """Asks up to three peers to cosign each new checkpoint; answers theirs atomically through the log's writer."""

    def __init__(self, *, ledger: Ledger, links: Links) -> None:
        self._ledger = ledger
        self._links = links
        self._bindings: dict[PeerId, KeysBound] = {}
        self._known_sizes: dict[PeerId, int] = {}
        self._last = ""
        links.serve("log.binding", self._tell_binding)
        links.serve("log.witness", self._witness)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(limits.WITNESS_INTERVAL_S)
            checkpoint = self._ledger.log.checkpoint() or ""
            if checkpoint and checkpoint.split("\n\n")[0] != self._last and await self.gather() > 0:
                self._last = checkpoint.split("\n\n")[0]

    async def gather(self) -> int:
        """Cosignatures got for the newest checkpoint."""
        count = 0
        for link in list(self._links.links.values()):
            if not link.is_up or count >= limits.WITNESSES_WANTED:
                continue
            try:
                await self._ask(link.peer_id)
            except RollbackRefused:
                # A witness remembers more than this disk holds: signing on under the old name would be a fork.
                await self._ledger.log.restart_origin()
                self._known_sizes.clear()
                return 0
            except BadCheckpoint:
                self._bindings.pop(link.peer_id, None)  # its keys may have been rotated
                continue
            except P2PNodeError:
                continue
            count += 1
        return count

    async def _ask(self, peer: PeerId) -> None:
        binding = await self.binding_of(peer)
        own = encode_binding(self.own_binding())

        async def carry(body: str) -> tuple[int, str]:
            answer = await self._links.call(peer, "log.witness", {"body": body, "binding": own})
            return int(answer["status"]), str(answer["body"])

        known = self._known_sizes.get(peer, 0)
        self._known_sizes[peer] = await gather_cosignature(self._ledger.log, binding, carry, known)

    async def binding_of(self, peer: PeerId) -> KeysBound:
        """The keys a peer's identity vouches for; asked once."""
        if peer not in self._bindings:
            answer = await self._links.call(peer, "log.binding", {})
            self._bindings[peer] = checked_binding(peer, answer.get("binding"))
        return self._bindings[peer]

    def own_binding(self) -> KeysBound:
        reader = self._ledger.log.reader
        event = reader.record(reader.bindings()[-1]).event
        assert isinstance(event, KeysBound)
        return event

    async def _tell_binding(
        self, peer: PeerId, arguments: Mapping[str, Any], _: ProgressCallback
    ) -> dict[str, Any]:
        del peer, arguments
        return {"binding": encode_binding(self.own_binding())}

    async def _witness(
        self, peer: PeerId, arguments: Mapping[str, Any], _: ProgressCallback
    ) -> dict[str, Any]:
        body, binding = arguments.get("body"), arguments.get("binding")
        if not isinstance(body, str) or not isinstance(binding, bytes):
            raise RemoteProtocolError(
                "log.witness takes a request and the binding of the keys that signed it"
            )
        answer = await self._ledger.log.witness(peer, body, binding)
        return {"status": answer.status, "body": answer.body}


def checked_binding(peer: PeerId, raw: object) -> KeysBound:
    """A binding that the peer's own identity signed."""
    if not isinstance(raw, bytes):
        raise RemoteProtocolError("a binding is bytes")
    binding = decode_binding(raw)
    if binding.peer != peer or not is_binding_valid(binding):
        raise BadCheckpoint(f"the keys shown are not bound by {peer}")
    return binding
