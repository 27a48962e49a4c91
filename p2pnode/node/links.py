"""Links to the other members: who is reachable, what they last said, and the way to ask them things.

Every member keeps one status stream to every other, so each side of a link shows what it sees itself.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from p2pnode import limits
from p2pnode.errors import P2PNodeError, PeerTimeout, PeerUnreachable, RemoteProtocolError
from p2pnode.machine import now_ms as machine_now_ms
from p2pnode.network import Path, path_of
from p2pnode.node import directions
from p2pnode.node.calls import CONTROL, Calls, Method, ProgressCallback, ask
from p2pnode.node.heard import check_status
from p2pnode.node.link import Link
from p2pnode.node.redial import Redial, Wait, wait_for_event
from p2pnode.node.tasks import Tasks, describe
from p2pnode.transport import messages
from p2pnode.transport.port import Connection, Stream, Transport
from p2pnode.units import PeerId

STATUS = "/p2pnode/status/1"


class Links:
    """Keeps a connection and a fresh status for every member it is told about."""

    def __init__(
        self,
        transport: Transport,
        *,
        tasks: Tasks,
        rng: Random,
        my_status: Callable[[], messages.Status],
        on_status: Callable[[Link, messages.Status], None],
        on_link: Callable[[Link, bool], None],
        is_member: Callable[[PeerId], bool],
        wait: Wait = wait_for_event,
        is_forwarded: bool = False,
        now_ms: Callable[[], int] = machine_now_ms,
    ) -> None:
        self._wait = wait
        self._now_ms = now_ms
        self.is_forwarded = is_forwarded
        """Others reach this device by an address it announces, so by that port and no other."""
        self._transport = transport
        self._tasks = tasks
        self._rng = rng
        self._my_status = my_status
        self._on_status = on_status
        self._on_link = on_link
        self._is_member = is_member
        self._closed = False
        self._calls = Calls(tasks)
        self._changed = asyncio.Event()
        self._news = asyncio.Event()
        self.links: dict[PeerId, Link] = {}
        transport.observe(self._on_connection)
        transport.handle(STATUS, self._serve_status)
        transport.handle(CONTROL, self._calls.answer)

    # --- members and their addresses -----------------------------------------------------------------
    def know(
        self,
        peer_id: PeerId,
        *,
        name: str = "",
        addresses: list[str] | None = None,
        is_there: bool | None = None,
    ) -> Link:
        """Remember a member and keep trying to reach it.

        A pause before the next dial ends when an address is new, or when something says that the member
        `is_there`; False for addresses that are no sign of that.
        """
        link = self.links.get(peer_id)
        if link is None:
            link = self.links[peer_id] = Link(peer_id, Redial(self._rng, self._wait))
        link.name = name or link.name
        fresh = [address for address in addresses or [] if address not in link.addresses]
        for address in fresh:
            link.addresses.insert(0, address)
            link.moved.set()
        del link.addresses[limits.PEER_ADDRESSES_MAX :]
        if not link.is_up and (connection := self._transport.connection(peer_id)) is not None:
            self._attach(link, connection)
        if not link.is_up and (bool(fresh) if is_there is None else is_there):
            link.redial.news()
        if not link.is_up and link.addresses and not link.dialing and not self._closed:
            link.dialing = True
            self._tasks.spawn(f"dial {peer_id[-6:]}", self._keep_dialing(link))
        return link

    def heard_of(self, observer: PeerId, peer_id: PeerId, addresses: list[str], *, is_up_there: bool) -> None:
        """`observer` told where another member is, and whether it is connected to it.

        Said again and again, this is news once: an observer behind the same router reaches what this node cannot.
        """
        link = self.know(peer_id, addresses=addresses, is_there=None if is_up_there else False)
        if is_up_there and observer not in link.reached_by:
            link.reached_by.add(observer)
            self.know(peer_id, is_there=True)
        elif not is_up_there:
            link.reached_by.discard(observer)

    def told(self) -> dict[directions.Pair, directions.Told]:
        """The last word on each direction that others told, without what they say of this device's own."""
        newest = directions.newest(link.told for link in self.links.values())
        return {pair: told for pair, told in newest.items() if pair[0] != self._transport.peer_id}

    @property
    def me(self) -> PeerId:
        return self._transport.peer_id

    def name_of(self, peer_id: PeerId) -> str:
        """What people call a device; the end of its id when nobody said."""
        if peer_id == self._transport.peer_id:
            return self._my_status().name
        link = self.links.get(peer_id)
        return (link.name if link else "") or peer_id[-6:]

    def path(self, peer_id: PeerId) -> Path:
        """Where a device is by the address its connection has now; of one that is not connected nothing is known."""
        link = self.links.get(peer_id)
        if link is None or link.connection is None:
            return "wan"
        remote = link.connection.remote_multiaddr.split("/")
        return path_of(remote[2] if len(remote) > 2 else "")

    def network_changed(self) -> None:
        """Ask every peer whether the way still holds, which also shows it our new address, and try the others again."""
        self.status_changed()
        for link in self.links.values():
            if link.is_up and link.connection is not None:
                self._tasks.spawn(f"look {link.peer_id[-6:]}", self._look(link.connection))
            else:
                self.know(link.peer_id, is_there=True)

    async def _look(self, connection: Connection) -> None:
        try:
            await connection.ping()
        except P2PNodeError:
            await connection.close(0, "no answer after the network changed")

    def close(self) -> None:
        """No more dialing: the node is ending."""
        self._closed = True

    def forget(self, peer_id: PeerId) -> None:
        self.links.pop(peer_id, None)

    async def wait_for_change(self) -> None:
        """Until some link comes up, goes down or says something new."""
        await self._news.wait()

    def _something_new(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def status_changed(self) -> None:
        """Tell everyone soon instead of at the next interval."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def _keep_dialing(self, link: Link) -> None:
        try:
            while self.links.get(link.peer_id) is link and not link.is_up:
                try:
                    connection = await self._transport.dial(link.addresses, link.peer_id)
                except P2PNodeError as error:
                    link.tried = error.details.get("tried", [["", error.message]])
                    link.direction.failed(link.tried)
                else:
                    # Mostly the transport has told of it already; and it may have ended since.
                    if not link.is_up and not connection.is_closed:
                        self._attach(link, self._transport.connection(link.peer_id) or connection)
                if not link.is_up:
                    await link.redial.pause()
        finally:
            link.dialing = False

    def _on_connection(self, connection: Connection, is_up: bool) -> None:
        link = self.links.get(connection.peer_id)
        if is_up:
            if link is None and self._is_member(connection.peer_id):
                link = self.know(connection.peer_id)
            if link is not None and not link.is_up:
                self._attach(link, connection)
            elif link is not None and link.connection is not connection:
                self._prefer(link)
        elif link is not None and link.connection is connection:
            link.connection = self._transport.connection(connection.peer_id)
            if link.connection is not None:
                self._follow(link, link.connection)  # both had dialled: the other one serves on
            else:
                reason = connection.error.message if connection.error else "the connection ended"
                link.direction.failed([[connection.remote_multiaddr, reason]])
                link.moved.set()
                self._something_new()
                self._on_link(link, False)
                # It was there a moment ago: a pause of an earlier dial that still runs would only lose time.
                self.know(link.peer_id, is_there=True)

    def _prefer(self, link: Link) -> None:
        """Both had dialled: use the connection that stays, for the other one ends once nothing runs on it."""
        best = self._transport.connection(link.peer_id)
        if best is not None and best is not link.connection:
            link.connection = best
            self._follow(link, best)

    def _attach(self, link: Link, connection: Connection) -> None:
        link.connection, link.tried, link.redial.failures = connection, [], 0
        link.lost_reason = ""
        link.reached_by.clear()
        self._something_new()
        if self._closed:
            return
        self._on_link(link, True)
        self._follow(link, connection)

    def _follow(self, link: Link, connection: Connection) -> None:
        if self._closed:
            return
        self._tasks.spawn(f"status {link.peer_id[-6:]}", self._tell_status(link, connection))
        link.moved.set()
        if connection.is_outbound:
            link.direction.reached()
        else:
            link.direction.unproven()
            self._tasks.spawn(f"probe {link.peer_id[-6:]}", self._probe(link, connection))

    async def _probe(self, link: Link, connection: Connection) -> None:
        """Whether this side could open the link as well, for as long as the other side's connection stands."""
        while self._is_used(link, connection):
            link.moved.clear()
            tried = await self._transport.probe(link.addresses, link.peer_id)
            if link.connection is not connection:
                return
            link.direction.probed(tried)
            self._something_new()
            is_open = link.direction.state == "ok"
            await self._wait(
                link.moved, limits.DIRECTION_PROBE_S if is_open else limits.DIRECTION_PROBE_AGAIN_S
            )

    # --- status --------------------------------------------------------------------------------------
    async def _tell_status(self, link: Link, connection: Connection) -> None:
        """Say and hear for as long as the connection lives; a refusal is asked again later.

        A device that was let in a moment ago may not know it yet when the first stream reaches it.
        """
        while self._is_used(link, connection):
            try:
                await self._status_stream(link, connection)
            except TimeoutError:
                await connection.close(0, "no status in time")
            except P2PNodeError as error:
                link.tried = [[connection.remote_multiaddr, describe(error)]]
                if not connection.is_closed:
                    link.direction.refused(connection.remote_multiaddr, describe(error))
                await asyncio.sleep(self._rng.uniform(limits.REDIAL_DELAY_S_MIN, limits.STATUS_INTERVAL_S))

    def _is_used(self, link: Link, connection: Connection) -> bool:
        return link.connection is connection and not connection.is_closed

    async def _status_stream(self, link: Link, connection: Connection) -> None:
        stream = await connection.open_stream(STATUS, timeout_s=limits.CONTROL_TIMEOUT_S)
        try:
            while self._is_used(link, connection):
                changed = self._changed
                async with asyncio.timeout(limits.CONTROL_TIMEOUT_S):
                    await messages.send_message(stream, self._my_status())
                    self._heard(link, await messages.receive_message(stream))
                link.tried = []
                if link.direction.answered(self._now_ms(), is_outbound=connection.is_outbound):
                    link.moved.set()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(limits.STATUS_INTERVAL_S):
                        await changed.wait()
        finally:
            stream.reset()

    async def _serve_status(self, stream: Stream) -> None:
        link = self.know(stream.peer_id)
        while True:
            async with asyncio.timeout(limits.STATUS_SILENCE_S_MAX):
                self._heard(link, await messages.receive_message(stream))
                link.asked_ms = self._now_ms()
                await messages.send_message(stream, self._my_status())

    def _heard(self, link: Link, message: messages.AnyMessage) -> None:
        if not isinstance(message, messages.Status):
            raise RemoteProtocolError(f"expected a status, got {type(message).__name__}")
        link.status = check_status(message)
        link.told = directions.read(message.extra.get("directions", {}), link.peer_id, self._now_ms())
        link.failing = directions.failing(link.told)
        link.name = message.name[: limits.NAME_CHARACTERS_MAX] or link.name
        known = list(link.addresses)
        self._on_status(link, message)
        if link.addresses != known:
            link.moved.set()
        self._something_new()

    # --- control -------------------------------------------------------------------------------------
    def serve(self, method: str, handler: Method) -> None:
        self._calls.serve(method, handler)

    def connection_to(self, peer_id: PeerId) -> Connection | None:
        """The one that stands now."""
        link = self.links.get(peer_id)
        return link.connection if link is not None and link.is_up else None

    async def call(
        self,
        peer_id: PeerId,
        method: str,
        arguments: Mapping[str, Any],
        *,
        on_progress: ProgressCallback | None = None,
        timeout_s: float = limits.CONTROL_TIMEOUT_S,
    ) -> dict[str, Any]:
        """Ask a member; the silence between two progress messages is at most `timeout_s`."""
        if peer_id == self._transport.peer_id:
            return await self._calls.here(peer_id, method, arguments, on_progress)
        link, connection = self.links.get(peer_id), self.connection_to(peer_id)
        name = (link.name if link else "") or peer_id[-6:]
        if connection is None:
            raise PeerUnreachable(f"{name} is not reachable now", tried=link.tried if link else [])
        try:
            return await ask(connection, method, arguments, on_progress, timeout_s)
        except TimeoutError:
            raise PeerTimeout(f"{name} did not answer {method} within {timeout_s:g} s") from None
