"""The rings an engine has a place in, and what its node still has to hear of the rows that passed through."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from p2pnode.compute.engine_protocol import Buffer, Message, frame_fields
from p2pnode.compute.engine_step import Reply
from p2pnode.compute.engine_unit import Unit
from p2pnode.errors import P2PNodeError, StageLost
from p2pnode.frame import Frame
from p2pnode.limits import RELAYED_FRAMES_TOLD_AT, RELAYED_TOLD_S

if TYPE_CHECKING:
    from p2pnode.compute.engine_ring import Relay, Ring
    from p2pnode.compute.frame_lane import FrameLane


class EngineRings:
    """By the unit that samples or computes; one that fell silent is ended, and its steps take the streams."""

    def __init__(self, send: Callable[[Message, Buffer], None]) -> None:
        self._send = send
        self._rings: dict[int, Ring] = {}
        self._relays: dict[int, Relay] = {}
        self._relayed: list[tuple[int, Frame, Frame]] = []
        self._tell_at = 0.0
        self.filenos: list[int] = []

    # places
    def open_ring(
        self,
        first: Unit | None,
        output: Unit,
        lanes: Sequence[FrameLane],
        stages: int,
        answer: Callable[[Reply], None],
    ) -> None:
        from p2pnode.compute.engine_ring import Ring

        self.drop(output.unit_id)
        for unit in (first, output):
            if unit is not None:
                unit.gather.share_among(stages)
        self._rings[output.unit_id] = Ring(first, output, lanes[0], lanes[1], answer)
        self._changed()

    def open_relay(self, unit: Unit, lanes: Sequence[FrameLane], stages: int) -> None:
        from p2pnode.compute.engine_ring import Relay

        self.drop(unit.unit_id)
        unit.gather.share_among(stages)
        self._relays[unit.unit_id] = Relay(unit, lanes[0], lanes[1], unit.relayed)
        self._changed()

    def ring(self, unit_id: int) -> Ring | None:
        return self._rings.get(unit_id)

    def drop(self, unit_id: int, error: P2PNodeError | None = None) -> None:
        """A unit goes, or what led through it is given up."""
        over = error or StageLost("this ring was taken down")
        for key, ring in list(self._rings.items()):
            if unit_id in ring.units:
                del self._rings[key]
                ring.end(over)
        relay = self._relays.pop(unit_id, None)
        if relay is not None:
            relay.end()
        self._changed()

    def _changed(self) -> None:
        self.filenos = [lane.fileno() for place in self._places() for lane in place.lanes]

    def _places(self) -> list[Ring | Relay]:
        return [*self._rings.values(), *self._relays.values()]

    # the loop's turn
    def service(self) -> None:
        """Take what arrived on all lanes."""
        now = time.monotonic()
        for place in self._places():
            try:
                place.service(now)
            except P2PNodeError as exc:
                self.drop(place.unit_id, exc)

    def wait_s(self) -> float | None:
        """How long the loop may sleep when nothing arrives."""
        times = [at for place in self._places() if (at := place.wake_at()) is not None]
        if self._relayed:
            times.append(self._tell_at)
        return max(0.0, min(times) - time.monotonic()) if times else None

    # what the node hears
    def observer(self, unit_id: int) -> Callable[[Frame, Frame], None]:
        """Told what a unit received without its node, and what it made of it."""
        return lambda received, sent: self._relay(unit_id, received, sent)

    def _relay(self, unit_id: int, received: Frame, sent: Frame) -> None:
        if not self._relayed:
            self._tell_at = time.monotonic() + RELAYED_TOLD_S
        self._relayed.append((unit_id, received, sent))
        if len(self._relayed) >= RELAYED_FRAMES_TOLD_AT:
            self.tell()

    def tell_if_due(self) -> None:
        if self._relayed and time.monotonic() >= self._tell_at:
            self.tell()

    def tell(self) -> None:
        """Frames that came and went by lanes, in order; before anything else is answered."""
        relayed, self._relayed = self._relayed, []
        if relayed:
            fields = [[unit_id, frame_fields(a), frame_fields(b)] for unit_id, a, b in relayed]
            payload = b"".join(bytes(part) for _, a, b in relayed for part in (a.payload, b.payload))
            self._send({"id": 0, "relayed": fields}, payload)
