"""Other meshes whose guest this node is: admission there, what their members offer, and ways to those members.

A guest gets whole answers and nothing else, so nothing of another mesh is planned with, fetched or gossiped about.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from p2pnode import __version__, limits
from p2pnode import commands as c
from p2pnode.compute import other_meshes as pure
from p2pnode.compute.other_meshes import Beyond, Offer, ToldModel
from p2pnode.decide import decide
from p2pnode.errors import (
    ModelUnknown,
    NotAdmitted,
    NotFound,
    P2PNodeError,
    PeerTimeout,
    PeerUnreachable,
    RemoteProtocolError,
)
from p2pnode.node.admission import ask_admission
from p2pnode.node.ledger import Ledger
from p2pnode.node.other_mesh import Other, OtherMeshesFile, Remembered
from p2pnode.node.roles import INFER
from p2pnode.transport import messages
from p2pnode.transport.invite import decode_ticket
from p2pnode.transport.membership import Membership, decode_grant, key_of, peer_of
from p2pnode.transport.port import Stream, Transport
from p2pnode.units import PeerId, UnixMs

_ASK_AGAIN = "ask its owner for a new ticket, then: p2pnode federation add TICKET"


class OtherMeshes:
    def __init__(
        self,
        *,
        me: PeerId,
        name: str,
        ledger: Ledger,
        transport: Transport,
        data_dir: Path,
        policy: Callable[[], Beyond],
        now_ms: Callable[[], int],
        say: Callable[[dict[str, Any]], None],
    ) -> None:
        self._me, self._name = me, name
        self._ledger = ledger
        self._transport = transport
        self._file = OtherMeshesFile(data_dir)
        self._policy = policy
        self._now_ms = now_ms
        self._say = say
        self._meshes: dict[str, Other] = {}
        self._look_again = asyncio.Event()

    # --- being a guest -------------------------------------------------------------------------------
    async def add(self, text: str, name: str = "") -> dict[str, Any]:
        """Use a ticket of another mesh: from then on its members may be asked for whole answers."""
        ticket = decode_ticket(text)
        mesh_id, mesh_name = peer_of(ticket.mesh_key), ticket.mesh_name[: limits.NAME_CHARACTERS_MAX]
        gateway = peer_of(ticket.inviter_key)
        before = self._meshes.get(mesh_id)
        name = name or (before.name if before is not None else mesh_name)
        wish = c.Federate(mesh_id=mesh_id, mesh_name=mesh_name, name=name, gateway=gateway, grant=b"")
        decide(
            self._ledger.state, wish, self._now_ms()
        )  # what cannot be is refused before the ticket is used
        ticket = decode_ticket(text, now_ms=UnixMs(self._now_ms()))
        connection = await self._transport.dial(list(ticket.addresses), gateway)
        answer = await ask_admission(
            connection,
            messages.AdmitRequest(secret=ticket.secret, name=self._name, version=__version__, guest=True),
        )
        membership = Membership(ticket.mesh_key)
        membership.add_all(
            decode_grant(data) for data in (*answer.grants[: limits.MESH_MEMBERS_MAX], answer.grant)
        )
        if membership.role(key_of(self._me)) is None:
            raise NotAdmitted("the grants of that mesh do not let this device in")
        answered = await self._ledger.do(
            c.Federate(
                mesh_id=mesh_id,
                mesh_name=answer.mesh_name[: limits.NAME_CHARACTERS_MAX],
                name=name,
                gateway=gateway,
                grant=answer.grant,
            )
        )
        other = Other(mesh_id, name, gateway, membership)
        other.addresses[gateway] = list(ticket.addresses)
        other.learn_addresses(answer.peers)
        self._meshes[mesh_id] = other
        await self._refresh(other)
        return {**answered, **self._view(other)}

    async def remove(self, name: str) -> dict[str, Any]:
        """Ask a mesh, by its name here or its id, no more."""
        other = self._called(name)
        answer = await self._ledger.do(c.EndFederation(mesh_id=other.mesh_id))
        del self._meshes[other.mesh_id]
        await asyncio.to_thread(self._file.write, list(self._meshes.values()))
        for peer in other.addresses:
            if (connection := self._transport.connection(peer)) is not None:
                await connection.close(0, "no guest any more")
        return answer

    def _called(self, name: str) -> Other:
        for other in self._meshes.values():
            if name in (other.name, other.mesh_id):
                return other
        known = ", ".join(sorted(other.name for other in self._meshes.values())) or "none"
        raise NotFound(f"no other mesh is called {name[:64]!r} here", hint=f"known: {known}")

    # --- what they offer -----------------------------------------------------------------------------
    def restore(self) -> None:
        """From the record; where their members are is a forgettable file beside it."""
        remembered = self._file.read()
        for mesh_id, entry in self._ledger.state.federation.meshes.items():
            membership = Membership(key_of(mesh_id))
            other = Other(mesh_id, entry.name, PeerId(entry.gateway), membership)
            said = remembered.get(mesh_id, Remembered())
            with suppress(P2PNodeError):  # what was damaged is told again by the next member that answers
                other.learn_membership(said.grants, [])
            other.addresses.update(said.addresses)
            self._meshes[mesh_id] = other

    async def run(self) -> None:
        while True:
            self._look_again.clear()
            await self.refresh()
            with suppress(TimeoutError):
                is_well = not any(other.trouble for other in self._meshes.values())
                pause_s = limits.OTHER_MESHES_REFRESH_S if is_well else limits.OTHER_MESHES_TROUBLE_S
                async with asyncio.timeout(pause_s):
                    await self._look_again.wait()

    async def refresh(self) -> None:
        """Ask all of them anew."""
        await asyncio.gather(*(self._refresh(other) for other in list(self._meshes.values())))

    async def _refresh(self, other: Other) -> None:
        """Ask the first few members what they have; one that fails says why, and its offers are gone."""
        before = self._view(other)
        asked = other.members()[: limits.OTHER_MESH_MEMBERS_ASKED_MAX]
        found = await asyncio.gather(*(self._ask(other, peer) for peer in asked), return_exceptions=True)
        troubles = []
        for peer, heard in zip(asked, found, strict=True):
            if isinstance(heard, list):
                other.offers[peer] = other.last[peer] = heard
            elif isinstance(heard, P2PNodeError):
                other.offers.pop(peer, None)
                troubles.append(heard.message)
            else:
                raise heard
        for peer in other.offers.keys() - set(asked):
            del other.offers[peer]
        is_heard = bool(asked) and len(troubles) < len(asked)
        other.trouble = "" if is_heard else next(iter(troubles), "no address of its members is known")
        await asyncio.to_thread(self._file.write, list(self._meshes.values()))
        if self._view(other) != before:
            self._say({"kind": "meshes", "data": {"meshes": self.view()}})

    async def _ask(self, other: Other, peer: PeerId) -> list[ToldModel]:
        try:
            async with asyncio.timeout(limits.CONTROL_TIMEOUT_S):
                stream = await self.open(peer, other)
                try:
                    await messages.send_message(stream, messages.Call(method="models", arguments={}))
                    return await self._hear(other, peer, stream)
                finally:
                    stream.reset()
        except TimeoutError:
            raise PeerTimeout(f"{self.name_of(peer)} did not say in time what it has") from None

    async def _hear(self, other: Other, peer: PeerId, stream: Stream) -> list[ToldModel]:
        found: list[ToldModel] = []
        while True:
            message = await messages.receive_message(stream)
            if isinstance(message, messages.Refused):
                if message.code == RemoteProtocolError.code:
                    raise RemoteProtocolError(
                        f"{self.name_of(peer)} runs an older version that does not say which models it has",
                        hint=f"{other.name} can be asked once it is updated",
                    )
                raise messages.refusal_error(message)
            if isinstance(message, messages.Progress) and len(found) < limits.TOLD_MODELS_MAX:
                found.append(pure.told_model(message.data.get("model")))
            if isinstance(message, messages.Answer):
                data = message.data
                other.names[peer] = str(data.get("name", ""))[: limits.NAME_CHARACTERS_MAX]
                grants, revocations = list(data.get("grants", [])), list(data.get("revocations", []))
                other.learn_membership(grants, revocations)
                other.learn_addresses(list(data.get("peers", [])))
                return found

    def heard_nearby(self, peer: PeerId, addresses: Sequence[str]) -> None:
        """Where a member of another mesh says it is now: who answers there is checked when dialling."""
        for other in self._meshes.values():
            if other.moved(peer, addresses) and other.trouble:
                self._look_again.set()

    # --- choosing ------------------------------------------------------------------------------------
    @property
    def policy(self) -> Beyond:
        return self._policy()

    def offers(self) -> list[Offer]:
        return [offer for other in self._meshes.values() for offer in self._of(other, other.offers)]

    def _of(self, other: Other, told: dict[PeerId, list[ToldModel]]) -> list[Offer]:
        found = []
        for peer, models in told.items():
            connection = self._transport.connection(peer)
            rtt_s = connection.stats().rtt_s if connection is not None else 1.0
            found += [Offer(other.mesh_id, other.name, peer, model, rtt_s) for model in models]
        return found

    def named(self, name: str | None) -> list[Offer]:
        """Who is asked for a model that this mesh does not have; ModelUnknown or PeerUnreachable when nobody is."""
        offers = self.offers()
        if found := pure.named(offers, name, self.policy):
            return found
        meant = pure.split(name or "", {other.name for other in self._meshes.values()})
        if meant is None:
            return []
        other = self._called(meant[1])
        if other.trouble and (before := pure.named(self._of(other, other.last), name, self.policy)):
            return before  # it is asked once more, and says itself what is wrong
        if other.trouble:
            raise PeerUnreachable(
                f"the mesh {other.name} cannot be asked now: {other.trouble}",
                hint="p2pnode federation list shows which meshes can be asked",
            )
        has = ", ".join(sorted({offer.model.name for offer in offers if offer.mesh == other.name}))
        raise ModelUnknown(
            f"the mesh {other.name} has no model named {meant[0]!r}", hint=f"it has: {has or 'none'}"
        )

    def same(self, content_id: str) -> list[Offer]:
        return pure.same(self.offers(), content_id) if self._meshes else []

    # --- ways there ----------------------------------------------------------------------------------
    def mesh_of(self, peer: PeerId) -> Other | None:
        """The mesh that a peer is asked for, if it is a member of another one."""
        return next((other for other in self._meshes.values() if peer in other.addresses), None)

    def name_of(self, peer: PeerId) -> str:
        other = self.mesh_of(peer)
        if other is None:
            return peer[-6:]
        return f"{other.names.get(peer) or peer[-6:]} of {other.name}"

    async def open(self, peer: PeerId, other: Other) -> Stream:
        """A stream for one answer; NotAdmitted when that mesh does not let this node in any more."""
        try:
            async with asyncio.timeout(limits.OTHER_MESH_OPEN_S_MAX):
                connection = self._transport.connection(peer)
                if connection is None or connection.is_closed:
                    connection = await self._transport.dial(other.addresses.get(peer, []), peer)
                return await connection.open_stream(INFER)
        except TimeoutError:
            raise PeerTimeout(f"{self.name_of(peer)} does not answer") from None
        except RemoteProtocolError:
            raise NotAdmitted(
                f"the mesh {other.name} does not let this device in any more", hint=_ASK_AGAIN
            ) from None

    # --- faces ---------------------------------------------------------------------------------------
    def view(self) -> list[dict[str, Any]]:
        return [self._view(other) for other in self._meshes.values()]

    def _view(self, other: Other) -> dict[str, Any]:
        entry = self._ledger.state.federation.meshes.get(other.mesh_id)
        return {
            "mesh_id": other.mesh_id,
            "name": other.name,
            "mesh": entry.mesh_name if entry is not None else other.name,
            "since_ms": entry.since_ms if entry is not None else 0,
            "state": "trouble" if other.trouble else "asked",
            "trouble": other.trouble,
            "members": [
                {"peer": peer, "name": other.names.get(peer, ""), "models": len(models)}
                for peer, models in other.offers.items()
            ],
            "models": sorted({model.name for models in other.offers.values() for model in models}),
        }
