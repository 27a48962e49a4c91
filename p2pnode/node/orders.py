"""What a head asks of a device that shall compute a stage, and how frames leave a device."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from p2pnode import limits
from p2pnode.errors import EngineIncompatible
from p2pnode.frame import Frame, encode
from p2pnode.transport.port import Stream
from p2pnode.units import PeerId

STAGE = "/p2pnode/stage/1"
RETURN = -1
"""Stage number of the head's end of a ring."""
PROBE_SESSION = 2**63
"""One position of it is computed for nobody: a plan is ready only when that came through every stage."""


class HoldOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What a head asks of a spare: the bytes of layers on its disk, so that it need not fetch when it takes over."""

    model: str
    model_name: str
    layer_first: int
    layer_end: int


class StageOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What a head asks of one device; the wire form of `stage.prepare`'s arguments."""

    plan_id: str
    stage: int
    model: str
    model_name: str
    layer_first: int
    layer_end: int
    is_last: bool
    context_tokens: int
    sessions: int
    head: str
    previous_peer: str
    """Who sends the frames, and may attach: the head, the stage before, or the leader of the group."""
    next_peer: str
    next_stage: int
    next_addresses: list[str] = []
    threads: int = 0
    prefix_bytes: int = 0
    engine: str = ""
    """Engine options that differ from the defaults, alike on all devices of the plan."""
    rank: int = 0
    shares: list[int] = []
    """Weights of all ranks of this stage's tensor group; empty when one device has it alone."""
    shard_table: str = ""
    """Content id of the model's shard table, as the head computed it; empty: shards come in whole chunks."""
    llama: str = ""
    """What the head's engines compute with."""
    any_llama: bool = False
    """The head's operator allows parts of an answer to be computed by other versions."""
    followers: list[str] = []
    """Peers of ranks 1.. for the leader."""


Orders = list[tuple[PeerId, StageOrder]]
"""What each device is asked for, in the order of the stages and of the ranks in each."""
Views = dict[tuple[int, int], dict[str, Any]]
"""What the device of a stage and rank answered."""


def check_versions(order: StageOrder, found: str, name: str) -> None:
    """EngineIncompatible where a device would compute with another llama.cpp than its head, and nobody allowed it.

    A device or a head that does not say, of an older version, is taken as it is.
    """
    if order.any_llama or not order.llama or not found or found == order.llama:
        return
    raise EngineIncompatible(
        f"{name} computes with llama.cpp {found}, the device that leads the answer with {order.llama}: "
        "their texts could differ",
        hint="install the same version on both, or allow it: p2pnode set plan.versions any",
    )


def slot(stage: int, rank: int) -> int:
    """Number under which a device holds a rank of a stage: leaders have the stage's own."""
    return stage + rank * limits.PLAN_STAGES_MAX


class OutboundFrames:
    """Frames to one stream, whole frames in order whoever sends."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._lock = asyncio.Lock()
        self.bytes_sent = 0

    async def send(self, frame: Frame) -> None:
        views = encode(frame)
        async with self._lock:
            await self.stream.write(*views)
        self.bytes_sent += sum(view.nbytes for view in views)
