"""What a unit keeps of a session and of a frame on its way through."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from p2pnode.compute.engine_protocol import SampledToken, Timings
from p2pnode.compute.llama_sampler import Sampler
from p2pnode.errors import P2PNodeError
from p2pnode.frame import Frame


@dataclass(slots=True)
class Session:
    """One llama.cpp sequence."""

    sequence: int
    length: int = 0
    """Positions held; the next frame may start at any of them or right after."""
    epoch: int = 0
    sampler: Sampler | None = None


@dataclass(slots=True, eq=False)
class Step:
    """One frame on its way through this unit."""

    call: int
    frame: Frame
    sample: bool
    ids: Sequence[int] | None
    rows: NDArray[np.float32] | None
    draft: Sequence[int]
    arrived_ns: int
    session: Session | None = None
    done: int = 0
    out: list[NDArray[np.float32]] = field(default_factory=list)
    sampled: list[SampledToken] = field(default_factory=list)
    ahead: bool = False
    """Whether to begin the pass over the sampled token before anybody asks for what follows it."""
    unasked: bool = False
    """Begun ahead: its result is held until it is asked for."""
    row: int = -1
    """Where the held result lies in the last batch."""
    is_gone: bool = False
    """Its result was dropped before anybody asked for it."""
    then: Callable[[Reply], None] | None = None
    """Hears the answer inside the engine, instead of the node."""
    go_on: Callable[[Step], None] | None = None
    """Begins what follows a sampled token, when that is not this unit's own next pass."""
    refused: bool = False
    """A draft token was not what the model chose: what follows it is of no use."""
    began_ns: int = 0
    compute_ns: int = 0
    tap_ns: int = 0
    sample_ns: int = 0
    batched_rows: int = 0

    @property
    def remaining(self) -> int:
        return self.frame.rows - self.done

    def is_over(self, frame: Frame) -> bool:
        """Whether this is the pass over just these tokens at this place."""
        mine = self.frame
        return (
            frame.kind is mine.kind
            and (frame.epoch, frame.position_first, frame.rows)
            == (mine.epoch, mine.position_first, mine.rows)
            and frame.wanted == mine.wanted
            and not frame.meta
            and bytes(frame.payload) == bytes(mine.payload)
        )

    def failed(self, error: P2PNodeError) -> Reply:
        return Reply(self.call, error, then=self.then)

    def timings(self) -> Timings:
        return Timings(
            self.began_ns - self.arrived_ns, self.compute_ns, self.tap_ns, self.sample_ns, self.batched_rows
        )


@dataclass(frozen=True, slots=True)
class Reply:
    """What a finished step answers: an error, sampled tokens or a frame."""

    call: int
    error: P2PNodeError | None = None
    frame: Frame | None = None
    sampled: tuple[SampledToken, ...] = ()
    timings: Timings = field(default_factory=Timings)
    then: Callable[[Reply], None] | None = None
