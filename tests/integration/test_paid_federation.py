"""A request served whole by another member: free between neighbours, paid by the asking node's credit from outside."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from p2pnode.errors import InsufficientCredit
from p2pnode.events.types import CreditHeld, CreditSettled, ForwardedRequestEnded, RequestAccepted
from p2pnode.facade import Finished, GenerateRequest, SamplingParams
from p2pnode.node.core import Node
from p2pnode.projections import billing
from tests.kit.net import until
from tests.kit.node_here import node_here

UNIT = 1_000_000
WELCOME = 5 * UNIT


@asynccontextmanager
async def two(folder: Path) -> AsyncIterator[tuple[Node, Node]]:
    """One that holds the demo model whole, and one that knows it only by name.

    The asking one has no room: with room it fetches the model where its holder was measured in a busy moment.
    """
    async with node_here(folder / "server", "server") as server:
        invite = await server.mesh.invite(uses=1, expires_s=600, role="worker", label="")
        async with node_here(
            folder / "asker", "asker", ticket=invite["ticket"], memory_max_bytes=1_000_000
        ) as asker:
            await until(lambda: _knows_model(asker))
            yield server, asker


def _knows_model(node: Node) -> bool:
    return any(model.holders and not model.is_complete_here for model in node.catalog.known())


async def ask(asker: Node, tokens: int = 5) -> Finished:
    request = GenerateRequest(
        model=None, prompt="Once upon a time", max_tokens=tokens, sampling=SamplingParams(temperature=0.0)
    )
    last = [event async for event in asker.generate(request)][-1]
    assert isinstance(last, Finished)
    return last


def served(
    server: Node, asker: Node, end: Finished
) -> tuple[CreditHeld, CreditSettled, ForwardedRequestEnded]:
    """What both logs say of one request: the asking one names it as the serving one does."""
    (told,) = [
        record.event
        for record in asker.ledger.log.reader.find(end.request_id)
        if isinstance(record.event, ForwardedRequestEnded)
    ]
    facts = [record.event for record in server.ledger.log.reader.find(told.served_as)]
    (accepted,) = [fact for fact in facts if isinstance(fact, RequestAccepted)]
    (held,) = [fact for fact in facts if isinstance(fact, CreditHeld)]
    (settled,) = [fact for fact in facts if isinstance(fact, CreditSettled)]
    assert accepted.caller == held.payer == settled.payer == asker.me
    assert told.peer == server.me
    assert told.cost_microunits == settled.amount_microunits == end.cost_microunits
    return held, settled, told


async def test_neighbours_serve_each_other_for_nothing(tmp_path: Path) -> None:
    async with two(tmp_path) as (server, asker):
        held, settled, told = served(server, asker, await ask(asker))
        assert (held.free, held.amount_microunits, settled.amount_microunits) == (True, 0, 0)
        assert settled.quoted_microunits == UNIT, "what it would have cost is recorded"
        assert told.completion_tokens == 5
        assert server.ledger.state.billing.balances == {}


async def test_a_stranger_pays_by_its_welcome_and_then_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address of the authenticated connection decides, here one from outside; both logs agree on the price."""
    monkeypatch.setattr("p2pnode.node.books.path_of", lambda address: "wan")
    async with two(tmp_path) as (server, asker):
        ledger = server.ledger
        for number in range(1, 6):
            held, settled, _ = served(server, asker, await ask(asker))
            assert (held.free, held.amount_microunits, settled.amount_microunits) == (False, UNIT, UNIT)
            assert settled.shares == ((server.me, UNIT),)
            assert billing.available(ledger.state.billing, asker.me) == WELCOME - number * UNIT
        with pytest.raises(InsufficientCredit, match="are there"):
            await ask(asker)
        state = ledger.state.billing
        assert state.accounts[asker.me].spent == state.accounts[server.me].earned == WELCOME
        assert sum(billing.balances(state).values()) == 0
        failed = asker.ledger.state.sessions.failed
        assert failed == 1, "the refusal is a fact where it was asked, too"
