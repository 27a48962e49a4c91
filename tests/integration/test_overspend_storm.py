"""Two hundred tasks and their retries against one account, through the log on a disk."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random

import pytest

from p2pnode import projections
from p2pnode.commands import TopUp
from p2pnode.decide import decide
from p2pnode.errors import InsufficientCredit
from p2pnode.events import types as facts
from p2pnode.events.log import Outcome
from p2pnode.events.store import SqliteLog
from p2pnode.identity import Identity
from p2pnode.projections import MeshFold, MeshState, billing
from tests.kit.story import NOW_MS, finish, serve

UNIT = 1_000_000


async def storm(folder: Path, seed: int, *, tasks: int = 200, calls: int = 4) -> None:
    rng = Random(seed)
    identity = Identity.from_seed(bytes([seed % 256]) * 32)
    log: SqliteLog[MeshState] = SqliteLog.open(folder, identity, fold=MeshFold(), now_ms=lambda: NOW_MS)
    credit = rng.randrange(50, 400)
    top_up = TopUp(account="payer", amount_microunits=credit * UNIT, idempotency_key="once")

    async def do(command: object, key: str | None = None) -> Outcome:
        return await log.submit(
            lambda state: decide(state, command, NOW_MS),  # type: ignore[arg-type]  # any command
            idempotency_key=key,
            fingerprint=repr(command).encode() if key else b"",
        )

    outcomes = await asyncio.gather(*[do(top_up, "once") for _ in range(5)])
    assert sum(not outcome.repeated for outcome in outcomes) == 1
    served = 0

    async def client(number: int) -> None:
        nonlocal served
        for call in range(calls):
            request_id = f"r{number}-{call}"
            copies = rng.choice((1, 1, 3))
            try:
                answers = await asyncio.gather(
                    *[do(serve(request_id, caller="payer")) for _ in range(copies)]
                )
            except InsufficientCredit:
                continue
            assert sum(bool(answer.records) for answer in answers) == 1
            served += 1
            await asyncio.sleep(0)
            tokens = rng.choice((1, 700, 1000))
            settled = await asyncio.gather(
                *[do(finish(request_id, completion_tokens=tokens)) for _ in range(copies)]
            )
            assert {answer.result["cost_microunits"] for answer in settled} == {UNIT}

    await asyncio.gather(*[client(number) for number in range(tasks)])
    written = await log.query(projections.snapshot)
    await log.close()
    welcome = 5
    assert served == min(credit + welcome, tasks * calls)

    again: SqliteLog[MeshState] = SqliteLog.open(folder, identity, fold=MeshFold(), now_ms=lambda: NOW_MS)
    state = projections.initial()
    for first in range(0, again.size, 1000):
        for record in again.read(first, first + 1000):
            projections.apply(state, record)
            assert billing.available(state.billing, "payer") >= 0
            assert sum(billing.balances(state.billing).values()) == 0
    assert projections.snapshot(state) == projections.snapshot(again.state) == written
    assert billing.available(state.billing, "payer") == (credit + welcome - served) * UNIT
    assert state.audit.counts[facts.CreditToppedUp.__name__] == 1
    await again.close()


async def test_concurrent_callers_and_their_retries_never_overspend(tmp_path: Path) -> None:
    await storm(tmp_path, 1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(30))
async def test_thirty_storms(tmp_path: Path, seed: int) -> None:
    await storm(tmp_path, seed)
