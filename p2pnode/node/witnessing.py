"""Checkpoints carried to peers and back with their cosignatures, and the same done for them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from p2pnode import limits
from p2pnode.errors import BadCheckpoint, P2PNodeError, RemoteProtocolError, RollbackRefused
from p2pnode.events.keys import decode_binding, encode_binding, is_binding_valid, witness_name
from p2pnode.events.policy import Policy
from p2pnode.events.types import KeysBound
from p2pnode.events.witness import UNPROCESSABLE, parse_add_checkpoint
from p2pnode.events.witnessing import gather_cosignature
from p2pnode.node.calls import ProgressCallback
from p2pnode.node.ledger import Ledger
from p2pnode.node.links import Links
from p2pnode.units import PeerId


class Witnessing:
    """Asks up to three peers to cosign each new checkpoint; answers theirs atomically through the log's writer."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        links: Links,
        refused: Callable[[str, bytes], None],
        policy: Policy | None = None,
    ) -> None:
        self._ledger = ledger
        self._links = links
        self.policy = policy
        """Whose cosignatures the owner wants: these members are asked first, and as many as it takes."""
        self._refused = refused
        """Takes a checkpoint that does not fit to what was cosigned before, with the keys that signed it."""
        self._bindings: dict[PeerId, KeysBound] = {}
        self._known_sizes: dict[PeerId, int] = {}
        self._last = ""
        self._looked_back = False
        self._asking = asyncio.Lock()
        links.serve("log.binding", self._tell_binding)
        links.serve("log.witness", self._witness)

    async def run(self) -> None:
        await self._before_signing()
        while True:
            await asyncio.sleep(limits.WITNESS_INTERVAL_S)
            checkpoint = self._ledger.log.checkpoint() or ""
            if checkpoint and checkpoint.split("\n\n")[0] != self._last and await self.gather() > 0:
                self._last = checkpoint.split("\n\n")[0]

    async def _before_signing(self) -> None:
        """After a start: hold new seals until somebody who cosigned before was asked whether that was all."""
        if not self._ledger.state.audit.cosigned:
            return
        await self._ledger.log.hold(limits.LOG_HOLD_MS)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limits.LOG_HOLD_MS / 1000):
                while not await self.look_back():
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(limits.WITNESS_RETRY_S):
                            await self._links.wait_for_change()
        await self._ledger.log.hold(0)

    async def look_back(self) -> bool:
        """Whether a member that cosigned before has been asked since the start; asks those that can be reached."""
        if not self._looked_back:
            for peer in self._ledger.state.audit.cosigned:
                link = self._links.links.get(PeerId(peer))
                if link is not None and link.is_up and await self._is_answered(link.peer_id):
                    self._looked_back = True
                    break
        return self._looked_back

    async def gather(self) -> int:
        """Cosignatures got for the newest checkpoint."""
        wanted = {key.name for key in self.policy.witnesses.values()} if self.policy else set()
        links = sorted(self._links.links.values(), key=lambda link: witness_name(link.peer_id) not in wanted)
        count = 0
        for link in links:
            if count >= limits.WITNESSES_WANTED and witness_name(link.peer_id) not in wanted:
                break
            if link.is_up and await self._is_answered(link.peer_id):
                count += 1
        return count

    async def _is_answered(self, peer: PeerId) -> bool:
        """Whether a member cosigned, or told that this log may not go on under its name."""
        try:
            await self.ask(peer)
        except RollbackRefused:
            # A witness remembers more than this disk holds: signing on under the old name would be a fork.
            await self._ledger.log.restart_origin()
            self._known_sizes.clear()
        except BadCheckpoint:
            self._bindings.pop(peer, None)  # its keys may have been rotated
            return False
        except P2PNodeError:
            return False
        return True

    async def ask(self, peer: PeerId) -> None:
        """One cosignature for the newest checkpoint; raises what `gather_cosignature` does."""
        binding = await self.binding_of(peer)

        async def carry(body: str) -> tuple[int, str]:
            own = encode_binding(self.own_binding())
            answer = await self._links.call(peer, "log.witness", {"body": body, "binding": own})
            return int(answer["status"]), str(answer["body"])

        async with self._asking:  # two questions at once would find each other's answers in the way
            known = self._known_sizes.get(peer, 0)
            self._known_sizes[peer] = await gather_cosignature(self._ledger.log, binding, carry, known)

    async def binding_of(self, peer: PeerId) -> KeysBound:
        """The keys a peer's identity vouches for; asked once."""
        if peer not in self._bindings:
            self._bindings[peer] = await fetch_binding(self._links, peer)
        return self._bindings[peer]

    def known_bindings(self) -> dict[PeerId, KeysBound]:
        """The keys of members that were asked since the start."""
        return dict(self._bindings)

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
        if answer.status == UNPROCESSABLE and answer.fraud is None:
            self._refused(parse_add_checkpoint(body).note, binding)
        return {"status": answer.status, "body": answer.body}


async def fetch_binding(links: Links, peer: PeerId) -> KeysBound:
    """The keys a peer's identity vouches for now."""
    answer = await links.call(peer, "log.binding", {})
    return checked_binding(peer, answer.get("binding"))


def checked_binding(peer: PeerId, raw: object) -> KeysBound:
    """A binding that the peer's own identity signed."""
    if not isinstance(raw, bytes):
        raise RemoteProtocolError("a binding is bytes")
    binding = decode_binding(raw)
    if binding.peer != peer or not is_binding_valid(binding):
        raise BadCheckpoint(f"the keys shown are not bound by {peer}")
    return binding
