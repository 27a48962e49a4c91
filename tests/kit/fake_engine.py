"""An engine behind its port, without a model: rows are the tokens again, and the next token is the last one plus 1."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from p2pnode.compute.engine_protocol import Sampled, SampledToken, Timings
from p2pnode.errors import P2PNodeError, SessionLost
from p2pnode.facade import SamplingParams
from p2pnode.frame import Frame


def sampled(token: int, *, is_eog: bool = False) -> Sampled:
    return Sampled((SampledToken(token, bytes([token % 256]), is_eog),), Timings())


class FakeEngine:
    """Remembers what it was asked; `gate` holds steps back, `failure` fails them, `eog` ends answers."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.gate: asyncio.Event | None = None
        self.failure: P2PNodeError | None = None
        self.eog: int | None = None
        self.alive = True
        self.hello = {"llama": "of the test"}
        self.given_up = 0
        self.missing: set[int] = set()
        """Prefixes that it does not hold."""
        self.on_step: Callable[[Frame], None] = lambda frame: None

    async def _wait(self, frame: Frame) -> None:
        self.on_step(frame)
        if self.gate is not None:
            await self.gate.wait()
        if self.failure is not None:
            raise self.failure

    async def step(self, unit_id: int, frame: Frame) -> Frame:
        self.calls.append(("step", unit_id, frame.session, frame.position_first))
        await self._wait(frame)
        return replace(frame, sequence=0)  # an engine knows nothing of sequences

    async def step_sample(self, unit_id: int, frame: Frame, *, ahead: bool = False) -> Sampled:
        self.calls.append(("sample", unit_id, frame.session, frame.position_first))
        await self._wait(frame)
        token = struct.unpack_from("<i", frame.payload, 4 * (frame.rows - 1))[0] + 1
        return sampled(token, is_eog=token == self.eog)

    async def ring_step(self, ring: int, frame: Frame, *, ahead: bool = False) -> Sampled:
        self.calls.append(("around", ring, frame.session, frame.position_first))
        await self._wait(frame)
        return sampled(struct.unpack_from("<i", frame.payload)[0] + 1)

    async def open_session(
        self, unit_id: int, session: int, params: SamplingParams, prompt_tokens: Sequence[int]
    ) -> None:
        self.calls.append(("open", unit_id, session, tuple(prompt_tokens)))

    async def free_session(self, unit_id: int, session: int) -> None:
        self.calls.append(("free", unit_id, session))
        if self.failure is not None:
            raise self.failure

    async def open_lanes(self, host: str, count: int, unit_id: int = 0) -> list[int]:
        self.calls.append(("lanes", host, count, unit_id))
        return list(range(40_000, 40_000 + count))

    async def keep_prefix(self, unit_id: int, session: int, count: int) -> None:
        self.calls.append(("keep", unit_id, session, count))

    async def reuse_prefix(self, unit_id: int, session: int, prefix: int, count: int) -> None:
        self.calls.append(("reuse", unit_id, session, prefix, count))
        if prefix in self.missing:
            raise SessionLost("not kept here")

    async def forget_prefix(self, unit_id: int, prefix: int) -> None:
        self.calls.append(("forget", unit_id, prefix))

    def give_up_exchange(self) -> None:
        self.given_up += 1

    def named(self, name: str) -> list[tuple[Any, ...]]:
        return [call for call in self.calls if call[0] == name]
