"""The lanes of one place of a ring, while nobody knows whether datagrams get through (specs/16-lane.md).

An engine may have several places in one ring, and the other ends may be in engines that have too: whoever waited for
one lane alone would keep the others from answering. So greetings go on beside everything else that an engine does.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from p2pnode.compute.lane_socket import HELLO_EVERY_S, NO_LANE
from p2pnode.errors import StageLost
from p2pnode.limits import LANE_HELLO_TIMEOUT_S

if TYPE_CHECKING:
    from p2pnode.compute.engine_protocol import Message
    from p2pnode.compute.frame_lane import FrameLane


class Greeting:
    def __init__(
        self,
        call: int,
        units: Collection[int],
        lanes: Sequence[FrameLane],
        place: Callable[[], Message],
        now: float,
    ) -> None:
        self.call = call
        self.units = units
        self.lanes = lanes
        self.place = place
        """Takes the place; its answer to the call."""
        self._hello_at = now
        self._deadline = now + LANE_HELLO_TIMEOUT_S

    def look(self, now: float) -> bool:
        """Hear and say what is due; whether all lanes work. Raises StageLost when one does not in time."""
        for lane in self.lanes:
            lane.listen(now)
        if all(lane.is_met for lane in self.lanes):
            for lane in self.lanes:
                lane.hello()
            return True
        if now > self._deadline:
            raise StageLost(NO_LANE)
        if now >= self._hello_at:
            self._hello_at = now + HELLO_EVERY_S
            for lane in self.lanes:
                if not lane.is_met:
                    lane.hello()
        return False

    def wake_at(self) -> float:
        return min(self._hello_at, self._deadline)
