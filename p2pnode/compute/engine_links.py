"""Ways to other ranks, made from what the node hands over: stream descriptors, or addresses and secrets of lanes.

A second socketpair beside the messages carries descriptors, and any byte on it ends an exchange that waits
for a rank that will not answer.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from p2pnode.compute.reduce import AllReduce, Link
from p2pnode.compute.reduce_stream import StreamLink
from p2pnode.errors import ComputeError, P2PNodeError, RequestError
from p2pnode.limits import RANKS_MAX

if TYPE_CHECKING:
    from p2pnode.compute.frame_lane import FrameLane
    from p2pnode.compute.reduce_lane import LaneLink


class GroupLinks:
    """Makes the all-reduce of a unit."""

    def __init__(self, side: socket.socket) -> None:
        side.setblocking(False)
        self._side = side
        self._opened: dict[int, tuple[int, socket.socket]] = {}
        """By port: sockets that wait for their lane, and the unit it will be of."""
        self.moved = [0, 0]
        """Bytes received and sent by all lanes there were."""

    def open_lanes(self, host: str, count: int, unit_id: int) -> list[int]:
        """Bind `count` datagram sockets for a unit; their ports go to the other ranks."""
        if not 0 < count <= RANKS_MAX + 2:
            raise RequestError(f"{count} lanes, at most {RANKS_MAX}")
        self.close_unlinked(unit_id)
        ports = []
        for _ in range(count):
            try:
                family = socket.AF_INET6 if ":" in host else socket.AF_INET
                lane = socket.socket(family, socket.SOCK_DGRAM)
                lane.bind((host, 0))
            except OSError as exc:
                raise ComputeError(f"cannot open a lane at {host}: {exc.strerror}") from exc
            ports.append(lane.getsockname()[1])
            self._opened[ports[-1]] = unit_id, lane
        return ports

    def close_unlinked(self, unit_id: int) -> None:
        """Sockets that were opened for lanes of a unit and wait for them still."""
        for port, (of_unit, lane) in list(self._opened.items()):
            if of_unit == unit_id:
                lane.close()
                del self._opened[port]

    def make(self, rank: int, links: Sequence[Sequence[Any]], secrets: bytes, *, half: bool) -> AllReduce:
        """`links`: [peer, "stream"] or [peer, "lane", our port, host, port, datagram bytes], a secret each."""
        descriptors = self._descriptors()
        ranks = sorted([rank, *(int(link[0]) for link in links)])
        if ranks != list(range(len(ranks))) or not 2 <= len(ranks) <= RANKS_MAX:
            raise RequestError(f"ranks {ranks} are not a tensor group")
        made: dict[int, Link] = {}
        lanes: list[LaneLink] = []
        try:
            for link in links:
                if link[1] == "stream":
                    if not descriptors:
                        raise RequestError("a stream link without its descriptor")
                    made[link[0]] = StreamLink(socket.socket(fileno=descriptors.pop(0)))
                else:
                    secret, secrets = secrets[:32], secrets[32:]
                    made[link[0]] = lane = self._lane(rank, link, secret)
                    lanes.append(lane)
            for lane in lanes:
                lane.greet()
        except P2PNodeError:
            for way in made.values():
                way.close()
            raise
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return AllReduce(rank, made, half=half, abort_fd=self._side.fileno())

    def _lane(self, rank: int, link: Sequence[Any], secret: bytes) -> LaneLink:
        from p2pnode.compute.lane_socket import LaneEnd
        from p2pnode.compute.reduce_lane import LaneLink  # its ciphers are 6 MB that few engines need

        peer, _, ours, host, port, datagram_bytes = link
        end = LaneEnd(secret, rank, peer, datagram_bytes)
        return LaneLink(self._connected(ours, host, port), end, self.moved)

    def frame_lanes(self, ends: Sequence[Sequence[Any]], secrets: bytes) -> list[FrameLane]:
        """Lanes of a ring, not greeted yet: [out, our port, host, port, datagram bytes] and a secret each."""
        from p2pnode.compute.frame_lane import FrameLane
        from p2pnode.compute.lane_socket import LaneEnd

        lanes: list[FrameLane] = []
        try:
            for number, (out, ours, host, port, datagram_bytes) in enumerate(ends):
                secret = secrets[32 * number : 32 * number + 32]
                me, peer = (0, 1) if out else (1, 0)
                way = self._connected(ours, host, port)
                lanes.append(FrameLane(way, LaneEnd(secret, me, peer, datagram_bytes), self.moved))
        except P2PNodeError:
            for lane in lanes:
                lane.close()
            raise
        return lanes

    def _connected(self, ours: int, host: str, port: int) -> socket.socket:
        _, lane = self._opened.pop(ours, (0, None))
        if lane is None:
            raise RequestError(f"no lane was opened on port {ours}")
        try:
            lane.connect((host, port))
        except OSError as exc:
            lane.close()
            raise ComputeError(f"no lane to {host}: {exc.strerror}") from exc
        return lane

    def _descriptors(self) -> list[int]:
        """Descriptors sent for this group; earlier wishes to give up are over with it."""
        found: list[int] = []
        while True:
            try:
                data, descriptors, _, _ = socket.recv_fds(self._side, 1, RANKS_MAX)
            except BlockingIOError:
                return found
            found.extend(descriptors)
            if not data:
                return found
