"""What a request leaves in the record, by where it came from."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from p2pnode.commands import Command, ServeRequest
from p2pnode.compute.scheduler import Session
from p2pnode.errors import DiskFull
from p2pnode.facade import GenerateRequest, SamplingParams
from p2pnode.node.books import Books
from p2pnode.projections import MeshState
from tests.kit.receipts import HASH, keys_of
from tests.kit.story import Story


class Ledger:
    """A story that answers like the node's ledger, and remembers the commands."""

    def __init__(self) -> None:
        keys = keys_of("me")
        self.story = Story(keys.peer)
        self.log = SimpleNamespace(keys=keys, commit_secret=lambda *_, **__: HASH, has_reserve=True)
        self.commands: list[Command] = []

    @property
    def state(self) -> MeshState:
        return self.story.state

    async def do(self, command: Command) -> dict[str, Any]:
        self.commands.append(command)
        return self.story.do(command)


def running(caller: str, address: str, request_id: str = "r1") -> Any:
    model = SimpleNamespace(content_id="bafkmodel")
    return SimpleNamespace(
        request_id=request_id,
        request=GenerateRequest(model=None, prompt="hello", caller=caller, address=address),
        active=SimpleNamespace(model=model, mode="local", plan_id="p1", stages=[]),
        session=Session(1, [1, 2], SamplingParams(), 10),
    )


async def accepted(*asked: Any) -> list[ServeRequest]:
    ledger = Ledger()
    books = Books(ledger, None, None)  # type: ignore[arg-type]  # nothing is signed here
    for one in asked:
        await books.accepted(one)
    return ledger.commands  # type: ignore[return-value]  # only these


@pytest.mark.parametrize(
    ("address", "path"),
    [("", "loopback"), ("127.0.0.1", "loopback"), ("192.168.1.7", "lan"), ("203.0.113.9", "wan")],
)
async def test_the_address_decides_who_pays(address: str, path: str) -> None:
    (command,) = await accepted(running("key:k1", address))
    assert command.path == path
    assert bool(command.network) == bool(address)


async def test_without_disk_in_reserve_only_free_work_is_taken() -> None:
    """What is paid must be recorded to its end."""
    ledger = Ledger()
    ledger.log.has_reserve = False
    books = Books(ledger, None, None)  # type: ignore[arg-type]  # nothing is signed here
    await books.accepted(running("key:k1", "192.168.1.7"))
    with pytest.raises(DiskFull):
        await books.accepted(running("key:k1", "203.0.113.9", "r2"))
    assert len(ledger.commands) == 1


async def test_a_network_is_named_so_that_only_this_node_knows_it() -> None:
    first, second, other = await accepted(
        running("key:a", "203.0.113.9", "r1"),
        running("key:b", "203.0.113.200", "r2"),
        running("key:c", "203.0.114.9", "r3"),
    )
    assert first.network == second.network != other.network
    assert "203" not in first.network
