"""Routes: how the head turns tokens into the next token, on one device or over several.

A route is fed token ids at a position and gives back what llama.cpp's sampler chain chose. The head
owns sampling in every mode, so seeds, grammars and log-probabilities do not depend on the split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from p2pnode.compute.engine_protocol import Sampled
from p2pnode.facade import SamplingParams
from p2pnode.frame import DType, Frame, Kind, pack_tokens


class HeadEngine(Protocol):
    async def step(self, unit_id: int, frame: Frame) -> Frame: ...

    async def step_sample(self, unit_id: int, frame: Frame, *, ahead: bool = False) -> Sampled: ...

    async def ring_step(self, ring: int, frame: Frame, *, ahead: bool = False) -> Sampled: ...

    async def open_session(
        self, unit_id: int, session: int, params: SamplingParams, prompt_tokens: Sequence[int]
    ) -> None: ...

    async def free_session(self, unit_id: int, session: int) -> None: ...

    async def keep_prefix(self, unit_id: int, session: int, count: int) -> None: ...

    async def reuse_prefix(self, unit_id: int, session: int, prefix: int, count: int) -> None: ...

    async def forget_prefix(self, unit_id: int, prefix: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Feed:
    """Tokens of one session at a position; `sample` when the token after them is wanted."""

    session: int
    epoch: int
    position_first: int
    tokens: Sequence[int]
    sample: bool
    is_last_chunk: bool = True
    ahead: bool = False
    """Whether the sampled token will most likely be fed next."""
    is_alone: bool = False
    """Decoding: nothing else of the session is under way."""

    def frame(self, sequence: int) -> Frame:
        rows = len(self.tokens)
        return Frame(
            kind=Kind.TOKENS, dtype=DType.I32, rows=rows, columns=1, session=self.session, epoch=self.epoch,
            payload=pack_tokens(list(self.tokens)), position_first=self.position_first,
            wanted_first=rows - 1 if self.sample else rows, sequence=sequence,
        )  # fmt: skip


class Route(Protocol):
    @property
    def stages(self) -> int:
        """How many devices or groups compute one after the other."""
        ...

    @property
    def home(self) -> tuple[object, int]:
        """Engine and unit that sample."""
        ...

    async def open(self, session: int, params: SamplingParams, prompt_tokens: Sequence[int]) -> None: ...

    async def feed(self, feed: Feed) -> Sampled | None:
        """Raises StageLost, EngineUnavailable and what the stages raise."""
        ...

    async def free(self, session: int) -> None: ...

    async def keep(self, session: int, count: int) -> None:
        """Every stage lays the session's first positions aside, as the prefix of its number."""
        ...

    async def reuse(self, session: int, prefix: int, count: int) -> None:
        """An opened session begins with the first positions of a prefix.

        SessionLost, now or with the first rows, when a stage does not hold it: then feed from position 0.
        """
        ...

    async def forget(self, prefix: int) -> None: ...
