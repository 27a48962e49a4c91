"""Tensor groups: several devices compute the same layers, each its share of heads and columns.

The leader of a group takes frames for all: it sends each to every follower and computes its own share;
inside the engines the partial sums are exchanged over lanes (specs/16-lane.md). All ranks must see the
same batches in the same order, so a group computes one frame at a time.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import combinations
from typing import Any, TypeVar

from p2pnode import limits
from p2pnode.compute.engine_client import EngineClient
from p2pnode.compute.engine_protocol import LaneToRank, Sampled
from p2pnode.compute.notices import forget_frame, free_frame, keep_frame, reuse_frame
from p2pnode.errors import ComputeError, P2PNodeError, RemoteProtocolError, StageLost
from p2pnode.facade import SamplingParams
from p2pnode.frame import Frame
from p2pnode.network import FREE_PATHS, path_of
from p2pnode.node.links import Links
from p2pnode.transport import messages
from p2pnode.transport.port import Stream
from p2pnode.units import PeerId

SendFrame = Callable[[Frame], Awaitable[None]]
T = TypeVar("T")


class GroupEngine:
    """An engine whose every step is taken by the whole group; looks like an engine to routes and stages."""

    def __init__(self, client: EngineClient, followers: Mapping[str, SendFrame]) -> None:
        self._client = client
        self._followers = dict(followers)
        self._turn = asyncio.Lock()
        self._lost: P2PNodeError | None = None

    async def step(self, unit_id: int, frame: Frame) -> Frame:
        async with self._turn:
            await self._tell(frame)
            return await self._own(self._client.step(unit_id, frame))

    async def step_sample(self, unit_id: int, frame: Frame, *, ahead: bool = False) -> Sampled:
        async with self._turn:
            await self._tell(frame)
            return await self._own(self._client.step_sample(unit_id, frame, ahead=ahead))

    async def open_session(
        self, unit_id: int, session: int, params: SamplingParams, prompt_tokens: Sequence[int]
    ) -> None:
        await self._client.open_session(unit_id, session, params, prompt_tokens)

    async def free_session(self, unit_id: int, session: int) -> None:
        async with self._turn:
            if self._lost is None:
                await self._tell(free_frame(session, 0))
            await self._client.free_session(unit_id, session)

    async def keep_prefix(self, unit_id: int, session: int, count: int) -> None:
        async with self._turn:
            await self._tell(keep_frame(session, count))
            await self._client.keep_prefix(unit_id, session, count)

    async def reuse_prefix(self, unit_id: int, session: int, prefix: int, count: int) -> None:
        async with self._turn:
            await self._tell(reuse_frame(session, prefix, count))
            await self._client.reuse_prefix(unit_id, session, prefix, count)

    async def forget_prefix(self, unit_id: int, prefix: int) -> None:
        async with self._turn:
            if self._lost is None:
                await self._tell(forget_frame(prefix))
            await self._client.forget_prefix(unit_id, prefix)

    async def _tell(self, frame: Frame) -> None:
        if self._lost is not None:
            raise self._lost
        for send in self._followers.values():
            await send(frame)

    async def _own(self, work: Awaitable[T]) -> T:
        try:
            return await work
        except P2PNodeError:
            if self._lost is not None:
                raise self._lost from None
            raise

    def lose(self, error: P2PNodeError) -> None:
        """A follower is gone: the exchange under way is given up now, not at its timeout."""
        if self._lost is None:
            self._lost = error
            if self._client.alive:
                self._client.give_up_exchange()


async def listen_to_follower(stream: Stream, name: str, lose: Callable[[P2PNodeError], None]) -> None:
    """A follower says nothing unless something is wrong."""
    try:
        notice = await messages.receive_message(stream)
        reason = notice.message if isinstance(notice, messages.Refused) else "it left the protocol"
    except P2PNodeError as error:
        reason = error.message
    lose(StageLost(f"{name}, which computes a share of the same layers, went away: {reason}"))


class Lanes:
    """This device's ends of lanes: opened when a shard is prepared, linked when all ranks are."""

    def __init__(self, links: Links) -> None:
        self._links = links

    @property
    def are_for_rings(self) -> bool:
        """Whether neighbours could reach ports beside the one this device announces; else their rows take streams."""
        return not self._links.is_forwarded

    async def open(self, client: EngineClient, unit_id: int, count: int) -> list[int]:
        if not count:
            return []
        anywhere = "0.0.0.0"  # noqa: S104 - sealed, and connected to one peer each
        return await client.open_lanes(anywhere, count, unit_id)

    async def link(
        self, client: EngineClient, unit_id: int, ends: Sequence[Mapping[str, Any]], *, half: bool
    ) -> None:
        """`ends`: {"rank", "peer", "port", "peer_port", "secret"}; hosts are where this device sees its peers."""
        try:
            ways = [self._rank_way(end) for end in ends]
        except (KeyError, TypeError, ValueError):
            raise RemoteProtocolError("a lane that cannot be read") from None
        async with asyncio.timeout(limits.CONTROL_TIMEOUT_S):
            await client.link(unit_id, ways, half=half)

    def _rank_way(self, end: Mapping[str, Any]) -> LaneToRank:
        host = self._host_of(PeerId(str(end["peer"])))
        return LaneToRank(
            int(end["rank"]), int(end["port"]), host, int(end["peer_port"]), bytes(end["secret"]),
            _datagram_bytes(host),
        )  # fmt: skip

    def hop(self, end: Mapping[str, Any]) -> LaneToRank:
        """This device's end of a lane of a ring: `end` is {"peer", "port", "peer_port", "secret"}.

        Only within the local network: a lane has no congestion control, and its frames ask nobody for leave.
        """
        try:
            peer, secret = PeerId(str(end["peer"])), bytes(end["secret"])
            host = self._host_of(peer)
            if path_of(host) not in FREE_PATHS:
                raise ComputeError(f"{self._links.name_of(peer)} is not in the local network")
            return LaneToRank(0, int(end["port"]), host, int(end["peer_port"]), secret, _datagram_bytes(host))
        except (KeyError, TypeError, ValueError):
            raise RemoteProtocolError("a lane that cannot be read") from None

    def _host_of(self, peer: PeerId) -> str:
        if peer == self._links.me:
            return "127.0.0.1"
        connection = self._links.connection_to(peer)
        if connection is None:
            raise ComputeError(
                f"{self._links.name_of(peer)} is not reachable from here, so no lane can lead there"
            )
        return connection.remote_multiaddr.split("/")[2]


def _datagram_bytes(host: str) -> int:
    """Whole rows where nothing on the way cuts datagrams; both ends of a lane see the same of each other there."""
    return limits.LANE_DATAGRAM_BYTES_LOOPBACK if path_of(host) == "loopback" else limits.LANE_DATAGRAM_BYTES


def pair_up(peers: Sequence[str], ports: Sequence[Sequence[int]]) -> list[list[dict[str, Any]]]:
    """Every rank's ends: one lane for each pair of ranks, with a fresh secret.

    `ports[rank]` are the ranks - 1 ports a rank opened, one for each other rank in order.
    """
    ends: list[list[dict[str, Any]]] = [[] for _ in peers]
    for a, b in combinations(range(len(peers)), 2):
        secret = os.urandom(32)
        a_port, b_port = ports[a][b - 1], ports[b][a]
        ends[a].append({"rank": b, "peer": peers[b], "port": a_port, "peer_port": b_port, "secret": secret})
        ends[b].append({"rank": a, "peer": peers[a], "port": b_port, "peer_port": a_port, "secret": secret})
    return ends


def hops_of(
    peers: Sequence[str], ports: Sequence[Sequence[int]]
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Ends of a ring's lanes, (in, out) for each device: one lane from each to the next, with a fresh secret.

    `ports[n]` are the ports device n opened: in, out.
    """
    count = len(peers)
    secrets = [os.urandom(32) for _ in peers]
    ends = []
    for n in range(count):
        before, after = (n - 1) % count, (n + 1) % count
        ends.append((
            {"peer": peers[before], "port": ports[n][0], "peer_port": ports[before][1], "secret": secrets[before]},
            {"peer": peers[after], "port": ports[n][1], "peer_port": ports[after][0], "secret": secrets[n]},
        ))  # fmt: skip
    return ends
