"""What a request leaves in the record: accepted and held, finished and settled, or failed and given back."""

from __future__ import annotations

import json

from p2pnode import commands as c
from p2pnode.errors import P2PNodeError
from p2pnode.events import types as facts
from p2pnode.node.ledger import Ledger
from p2pnode.node.requests import Running


class Books:
    """At most eight facts a request: accepted, held, finished, settled, receipts; never a word of it."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def accepted(self, running: Running) -> None:
        request = running.request
        prompt = request.prompt if isinstance(request.prompt, str) else json.dumps(list(request.prompt))
        commit = self._ledger.log.commit_secret(running.request_id, prompt.encode(), owner=request.caller)
        await self._ledger.do(
            c.ServeRequest(
                request_id=running.request_id,
                caller=request.caller,
                path="loopback" if request.caller == "local" else "lan",
                model=running.active.model.content_id,
                mode=running.active.mode,
                plan_id=running.active.plan_id,
                prompt_commitment=commit,
                prompt_tokens=len(running.session.prompt),
                max_tokens=running.session.max_tokens,
                seed=request.sampling.seed,
            )
        )

    async def finished(self, running: Running, text: str) -> int:
        session = running.session
        commit = self._ledger.log.commit_secret(
            running.request_id, text.encode(), owner=running.request.caller
        )
        answer = await self._ledger.do(
            c.FinishRequest(
                request_id=running.request_id,
                reason=session.reason or "error",
                prompt_tokens=len(session.prompt),
                completion_tokens=len(session.generated),
                cached_tokens=session.cached,
                answer_commitment=commit,
                prefill_ms=int(session.prefill_s * 1000),
                decode_ms=int(session.decode_s * 1000),
                stages=tuple((s["peer"], s["layers"][0], s["layers"][1]) for s in running.active.stages),
                work=tuple(running.work.items()),
            )
        )
        return int(answer.get("cost_microunits", 0))

    async def failed(self, running: Running, error: P2PNodeError) -> None:
        await self._ledger.do(
            c.FailRequest(
                request_id=running.request_id,
                code=error.code,
                message=error.message[:500],
                completion_tokens=len(running.session.generated),
            )
        )

    async def lost(self, running: Running, error: P2PNodeError) -> None:
        peer = str(error.details.get("peer") or "")
        stage = next((s for s in running.active.stages if s["peer"] == peer), running.active.stages[-1])
        await self._ledger.do(
            c.RecordFact(
                fact=facts.StageLost(
                    request_id=running.request_id,
                    plan_id=running.active.plan_id,
                    peer=peer,
                    layer_first=stage["layers"][0],
                    layer_end=stage["layers"][1],
                    position=running.session.position,
                    reason=f"{error.code}: {error.message}"[:500],
                )
            )
        )

    async def recovered(self, running: Running, times_ms: tuple[int, int, int, int]) -> None:
        detected, replanned, refilled, resumed = times_ms
        await self._ledger.do(
            c.RecordFact(
                fact=facts.StageRecovered(
                    request_id=running.request_id,
                    plan_id=running.active.plan_id,
                    detected_ms=detected,
                    replanned_ms=replanned,
                    refilled_ms=refilled,
                    resumed_ms=resumed,
                    refilled_tokens=running.session.position,
                )
            )
        )
