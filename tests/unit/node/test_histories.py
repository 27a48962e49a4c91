"""Two checkpoints of one log compared over its tiles: agreement, fraud, or a log that does not show its tree."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import pytest

from p2pnode import limits
from p2pnode.errors import CorruptRecord, PeerUnreachable
from p2pnode.events.fraud import check_fraud
from p2pnode.node.histories import compare_two
from tests.kit.log_trees import KEYS, Tree

HONEST, FORKED = Tree(1500), Tree(1500, fork_at=300)
Ask = Callable[[int, int], Awaitable[bytes]]


def tiles_of(tree: Tree, asked: list[tuple[int, int]] | None = None) -> Ask:
    async def ask(level: int, index: int) -> bytes:
        if asked is not None:
            asked.append((level, index))
        return tree.tile(level, index)

    return ask


@pytest.mark.parametrize("sizes", [(301, 301), (301, 600), (511, 512), (512, 600), (512, 1024), (1024, 1500)])
async def test_a_fork_is_proved_whatever_the_sizes(sizes: tuple[int, int]) -> None:
    """Those of 2**k events too, of which the log's own proof says nothing."""
    for first, second, tree in ((HONEST, FORKED, FORKED), (FORKED, HONEST, HONEST)):
        proof = await compare_two(first.signed(sizes[0]), second.signed(sizes[1]), tiles_of(tree))
        assert proof is not None
        fraud = check_fraud(proof)
        assert (fraud.peer, fraud.size_first, fraud.size_second) == (KEYS.peer, *sizes)


async def test_honest_logs_are_never_accused() -> None:
    """Any two sizes, each tile fetched once."""
    rng = random.Random(1)
    for _ in range(200):
        small, large = sorted((rng.randrange(1, 1500), rng.randrange(1, 1500)))
        asked: list[tuple[int, int]] = []
        assert await compare_two(HONEST.signed(small), HONEST.signed(large), tiles_of(HONEST, asked)) is None
        assert len(asked) == len(set(asked)) <= 8
    assert await compare_two(HONEST.signed(200), FORKED.signed(300), tiles_of(FORKED)) is None


async def test_a_log_that_hides_its_tree_is_in_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tiles, too few of them, too many wanted, none at all: no proof, and no agreement either."""
    first, second = HONEST.signed(400), FORKED.signed(600)
    for tree in (HONEST, Tree(500, fork_at=300), Tree(1)):
        with pytest.raises(CorruptRecord):
            await compare_two(first, second, tiles_of(tree))

    async def gone(level: int, index: int) -> bytes:
        raise PeerUnreachable("gone")

    with pytest.raises(PeerUnreachable):
        await compare_two(first, second, gone)
    monkeypatch.setattr(limits, "WITNESS_TILES_MAX", 1)
    with pytest.raises(CorruptRecord, match="more than 1 tiles"):
        await compare_two(first, second, tiles_of(FORKED))
