"""The rings an engine has a place in, and what its node still has to hear of the rows that passed through."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from p2pnode.compute.engine_protocol import Buffer, Message, error_fields, frame_fields
from p2pnode.compute.engine_step import Reply
from p2pnode.compute.engine_unit import Unit
from p2pnode.errors import P2PNodeError, StageLost
from p2pnode.frame import Frame, Kind
from p2pnode.limits import RELAYED_FRAMES_TOLD_AT, RELAYED_TOLD_S

if TYPE_CHECKING:
    from p2pnode.compute.engine_greeting import Greeting
    from p2pnode.compute.engine_ring import Relay, Ring
    from p2pnode.compute.frame_lane import FrameLane


class EngineRings:
    """A head's rings by number, for plans may share the unit that samples; a stage's place by its unit.

    One that fell silent is ended, and its steps take the streams.
    """

    def __init__(self, send: Callable[[Message, Buffer], None]) -> None:
        self._send = send
        self._rings: dict[int, Ring] = {}
        self._next_ring = 1
        self._greetings: list[Greeting] = []
        self._relays: dict[int, Relay] = {}
        self._relayed: list[tuple[int, Frame, Frame]] = []
        self._tell_at = 0.0
        self.filenos: list[int] = []

    # lanes
    def greet(
        self, call: int, units: Collection[int], lanes: Sequence[FrameLane], place: Callable[[], Message]
    ) -> None:
        """Begin to find out whether datagrams get through; then `place` opens what these units were asked for.

        The call is answered with what that returns, or with StageLost and closed lanes.
        """
        from p2pnode.compute.engine_greeting import Greeting

        self._greetings.append(Greeting(call, units, lanes, place, time.monotonic()))
        self._changed()

    def _settle(self, greeting: Greeting, now: float) -> None:
        try:
            if not greeting.look(now):
                return
        except P2PNodeError as error:
            self._refuse(greeting, error)
        else:
            self._greetings.remove(greeting)
            self._send({"id": greeting.call, **greeting.place()}, b"")

    def _refuse(self, greeting: Greeting, error: P2PNodeError) -> None:
        self._greetings.remove(greeting)
        for lane in greeting.lanes:
            lane.close()
        self._changed()
        self._send({"id": greeting.call, "error": error_fields(error)}, b"")

    # places
    def open_ring(
        self,
        first: Unit | None,
        output: Unit,
        lanes: Sequence[FrameLane],
        stages: int,
        answer: Callable[[Reply], None],
    ) -> int:
        from p2pnode.compute.engine_ring import Ring

        for unit in (first, output):
            if unit is not None:
                unit.gather.share_among(stages)
        number, self._next_ring = self._next_ring, self._next_ring + 1
        self._rings[number] = Ring(first, output, lanes[0], lanes[1], answer)
        self._changed()
        return number

    def open_relay(self, unit: Unit, lanes: Sequence[FrameLane], stages: int) -> None:
        from p2pnode.compute.engine_ring import Relay

        self.drop(unit.unit_id)
        unit.gather.share_among(stages)
        self._relays[unit.unit_id] = Relay(unit, lanes[0], lanes[1], unit.relayed)
        self._changed()

    def ring(self, number: int) -> Ring | None:
        return self._rings.get(number)

    def through(self, unit_id: int) -> list[Ring]:
        """This head's rings that a unit has a part in."""
        return [ring for ring in self._rings.values() if unit_id in ring.units]

    def close_ring(self, number: int) -> None:
        ring = self._rings.get(number)
        if ring is not None:
            self._end(ring, StageLost("this ring was taken down"))

    def _end(self, ring: Ring, error: P2PNodeError) -> None:
        self._rings = {number: other for number, other in self._rings.items() if other is not ring}
        ring.end(error)
        self._changed()

    def drop(self, unit_id: int) -> None:
        """A unit goes, and what leads through it."""
        for ring in self.through(unit_id):
            self._end(ring, StageLost("this ring was taken down"))
        for greeting in [other for other in self._greetings if unit_id in other.units]:
            self._refuse(greeting, StageLost("this ring was taken down"))
        relay = self._relays.pop(unit_id, None)
        if relay is not None:
            relay.end()
        self._changed()

    def _changed(self) -> None:
        self.filenos = [lane.fileno() for place in self._places() for lane in place.lanes]

    def _places(self) -> list[Ring | Relay | Greeting]:
        return [*self._rings.values(), *self._relays.values(), *self._greetings]

    # the loop's turn
    def service(self) -> None:
        """Take what arrived on all lanes."""
        now = time.monotonic()
        for greeting in list(self._greetings):
            if greeting in self._greetings:  # the one before may have taken its unit's place
                self._settle(greeting, now)
        for ring in list(self._rings.values()):
            try:
                ring.service(now)
            except P2PNodeError as exc:
                self._end(ring, exc)
        for unit_id, relay in list(self._relays.items()):
            try:
                relay.service(now)
            except P2PNodeError:
                self.drop(unit_id)

    def wait_s(self) -> float | None:
        """How long the loop may sleep when nothing arrives."""
        times = [at for place in self._places() if (at := place.wake_at()) is not None]
        if self._relayed:
            times.append(self._tell_at)
        return max(0.0, min(times) - time.monotonic()) if times else None

    # what the node hears
    def observer(self, unit_id: int) -> Callable[[Frame, Frame], None]:
        """Told what a unit received without its node, and what it made of it; of what failed, at once."""
        return lambda received, sent: self._relay(unit_id, received, sent)

    def _relay(self, unit_id: int, received: Frame, sent: Frame) -> None:
        if not self._relayed:
            self._tell_at = time.monotonic() + RELAYED_TOLD_S
        self._relayed.append((unit_id, received, sent))
        if len(self._relayed) >= RELAYED_FRAMES_TOLD_AT or sent.kind is Kind.ERROR:
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
