"""What a request leaves in the record: accepted and held, finished and settled, or failed and given back."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json

from p2pnode import commands as c
from p2pnode.errors import DiskFull, NotFound, P2PNodeError
from p2pnode.events import types as facts
from p2pnode.limits import SECRET_TEXT_BYTES_MAX
from p2pnode.network import network_bucket, path_of
from p2pnode.node.ledger import Ledger
from p2pnode.node.receipts import Receipts, RequestDone, StageDone
from p2pnode.node.running import Running, Served
from p2pnode.node.tasks import Tasks
from p2pnode.projections.settings import value_of

KEEP_TEXTS = "keep_texts"
"""Setting: `true` keeps prompts and answers for `p2pnode log replay REQUEST` until they are forgotten."""


class Books:
    """At most eight facts a request, however many devices it ran on; never a word of it."""

    def __init__(self, ledger: Ledger, receipts: Receipts, tasks: Tasks) -> None:
        self._ledger, self._receipts, self._tasks = ledger, receipts, tasks

    async def accepted(self, running: Served) -> None:
        request = running.request
        path = path_of(request.address) if request.address else "loopback"
        if path == "wan" and not self._ledger.log.has_reserve:
            raise DiskFull("this device has too little free disk to take on paid work")
        prompt = request.prompt if isinstance(request.prompt, str) else json.dumps(list(request.prompt))
        commit = self._commit(running, prompt.encode(), keep=self._keeps_texts())
        parameters = self._commit(running, parameters_of(running), keep=True)
        await self._ledger.do(
            c.ServeRequest(
                request_id=running.request_id,
                caller=request.caller,
                path=path,
                network=self._network_tag(request.address),
                model=running.active.model.content_id,
                mode=running.active.mode,
                plan_id=running.active.plan_id,
                prompt_commitment=commit,
                parameters_commitment=parameters,
                prompt_tokens=len(running.session.prompt),
                max_tokens=running.session.max_tokens,
                seed=request.sampling.seed,
            )
        )

    def _network_tag(self, address: str) -> str:
        """Names a network without telling which: only this node can make the same tag."""
        bucket = network_bucket(address)
        if not bucket:
            return ""
        salt = self._ledger.log.keys.identity.derive_secret("welcome networks")
        return hmac.digest(salt, bucket.encode(), "sha256").hex()[:32]

    def _keeps_texts(self) -> bool:
        """Whether the owner wants prompts and answers kept (beside the record, deletable) to replay them."""
        return value_of(self._ledger.state.settings, KEEP_TEXTS) == "true"

    def _commit(self, running: Served, text: bytes, *, keep: bool) -> bytes:
        owner, keep = running.request.caller, keep and len(text) <= SECRET_TEXT_BYTES_MAX
        return self._ledger.log.commit_secret(running.request_id, text, owner=owner, keep_text=keep)

    async def finished(self, running: Served, text: str) -> int:
        session = running.session
        commit = self._commit(running, text.encode(), keep=self._keeps_texts())
        done = _done(running)
        hold = self._ledger.state.billing.holds.get(running.request_id)
        # What is paid is divided by what the stages themselves counted; what is free need not wait for that.
        stages = await self._receipts.tally(done) if hold is not None and hold.amount else None
        work = done.work(stages or ())
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
                work=tuple(work.items()),
            )
        )
        earned = {str(account): int(share) for account, share in answer.get("shares", ())}
        last = {account: share - running.unit_shares.get(account, 0) for account, share in earned.items()}
        self._sign_later(done, stages, {account: share for account, share in last.items() if share > 0})
        return int(answer.get("cost_microunits", 0))

    async def unit(self, running: Running) -> None:
        """Settled by what the places counted, then signed: no receipt is for more than a unit, no debt either."""
        hold = self._ledger.state.billing.holds.get(running.request_id)
        is_paid = hold is not None and hold.amount > 0
        if not (is_paid or running.is_counted):
            return  # one receipt at the end will do
        done = _done(running)
        stages = await self._receipts.tally(done)
        work, shares = done.work(stages), dict[str, int]()
        if is_paid:
            command = c.SettleUnit(
                request_id=running.request_id, unit=running.units + 1, work=tuple(work.items())
            )
            with contextlib.suppress(NotFound):  # the hold expired meanwhile: the rest costs nothing
                answer = await self._ledger.do(command)
                shares = {str(account): int(share) for account, share in answer["shares"]}
        running.unit_settled(shares)
        await self._receipts.collect(done, stages, work, shares)

    def _sign_later(self, done: RequestDone, stages: list[StageDone] | None, shares: dict[str, int]) -> None:
        """Receipts come after the answer: nobody waits for them."""
        if all(place.peer == self._ledger.state.billing.own_account for place in done.positions):
            return
        with contextlib.suppress(asyncio.CancelledError):  # the node is closing: next time, then
            self._tasks.spawn("receipts", self._sign(done, stages, shares))

    async def _sign(self, done: RequestDone, stages: list[StageDone] | None, shares: dict[str, int]) -> None:
        if stages is None:
            stages = await self._receipts.tally(done)
        await self._receipts.collect(done, stages, done.work(stages), shares)

    async def failed(self, running: Served, error: P2PNodeError) -> None:
        await self._ledger.do(
            c.FailRequest(
                request_id=running.request_id,
                code=error.code,
                message=error.message[:500],
                completion_tokens=len(running.session.generated),
            )
        )

        # What was done for it earns nothing, but providers that count have to know that it is no debt.
        self._sign_later(_done(running), None, {})

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


def parameters_of(running: Served) -> bytes:
    """How the answer was sampled, in the words of the completions API, so that it can be asked for again."""
    request, sampling = running.request, running.request.sampling
    known = {
        "max_tokens": running.session.max_tokens,
        "stop": list(request.stop) or None,
        "seed": sampling.seed,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "typical_p": sampling.typical_p,
        "repeat_penalty": sampling.repeat_penalty,
        "repeat_last_n": sampling.repeat_last_tokens,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "logit_bias": {str(token): bias for token, bias in sampling.logit_bias.items()} or None,
        "grammar": sampling.grammar,
    }
    return json.dumps({name: value for name, value in known.items() if value is not None}).encode()


def _done(running: Served) -> RequestDone:
    """What all who computed for a request, or for the unit that is there, are asked about."""
    return RequestDone(
        request_id=running.request_id,
        session=running.session.session,
        model=running.active.model.content_id,
        positions=dict(running.work),
    )
