"""Prompts on other devices, answers here: keys and values follow the prompt (disaggregated mode).

The unit that samples is the same for both ways, so seeds, penalties and grammars know nothing of it. When the keys
and values do not come, the prompt is computed here after all, in the same batches: nothing but time is lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from p2pnode.compute.engine_protocol import Sampled
from p2pnode.compute.pipeline_route import PipelineRoute
from p2pnode.compute.route import Feed
from p2pnode.errors import P2PNodeError, SessionLost
from p2pnode.facade import SamplingParams

Move = Callable[[int, int], Awaitable[None]]
"""(session, positions): brings what the other devices computed of a session into the unit here."""
Tell = Callable[[P2PNodeError], None]


class SplitRoute:
    def __init__(self, prefill: PipelineRoute, decode: PipelineRoute, move: Move, tell: Tell) -> None:
        self._prefill = prefill
        self._decode = decode
        self._move = move
        self.tell = tell
        """Told why keys and values did not come."""
        self._fed: dict[int, list[Feed]] = {}
        """What went to the other devices, until they have given it back."""
        self._moves: dict[int, asyncio.Task[None]] = {}
        self._here: set[int] = set()
        """Sessions that this device alone computes."""

    @property
    def stages(self) -> int:
        return self._prefill.stages

    @property
    def home(self) -> tuple[object, int]:
        return self._decode.home

    async def open(self, session: int, params: SamplingParams, prompt_tokens: Sequence[int]) -> None:
        await self._decode.open(session, params, prompt_tokens)

    async def feed(self, feed: Feed) -> Sampled | None:
        session = feed.session
        if session not in self._here and feed.is_alone:
            await self._arrive(session)
        if session in self._here:
            return await self._decode.feed(feed)
        self._fed.setdefault(session, []).append(feed)
        sampled = await self._prefill.feed(replace(feed, ahead=False))
        if feed.is_last_chunk:
            # It travels while the first token is shown.
            count = feed.position_first + len(feed.tokens)
            self._moves[session] = asyncio.ensure_future(self._move(session, count))
        return sampled

    async def _arrive(self, session: int) -> None:
        """The session is here once this returns, one way or the other."""
        move = self._moves.pop(session, None)
        fed = self._fed.pop(session, [])
        try:
            if move is None:
                raise SessionLost("this prompt was not computed elsewhere")
            await move
        except P2PNodeError as error:
            self.tell(error)
            for feed in fed:
                await self._decode.feed(replace(feed, sample=False, ahead=False))
        self._here.add(session)
        await self._leave(session)

    async def _leave(self, session: int) -> None:
        try:
            await self._prefill.free_stages(session)
        except P2PNodeError:
            return  # they are gone, and what they held with them

    async def free(self, session: int) -> None:
        move = self._moves.pop(session, None)
        if move is not None:
            move.cancel()
            await asyncio.gather(move, return_exceptions=True)
        self._fed.pop(session, None)
        if session not in self._here:
            await self._leave(session)
        self._here.discard(session)
        await self._decode.free(session)

    # --- prefixes: they are kept here, and what goes on from one is computed here -------------------------
    async def keep(self, session: int, count: int) -> None:
        if session not in self._here:
            await self._arrive(session)
        await self._decode.keep(session, count)

    async def reuse(self, session: int, prefix: int, count: int) -> None:
        await self._decode.reuse(session, prefix, count)
        self._here.add(session)

    async def forget(self, prefix: int) -> None:
        await self._decode.forget(prefix)
