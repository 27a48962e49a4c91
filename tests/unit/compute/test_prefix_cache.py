"""The radix tree against a plain table, and what the cache gives, keeps and lets go."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from p2pnode.compute.prefix_cache import PrefixCache, PrefixShape, Reuse
from p2pnode.compute.prefix_tree import PrefixTree

TOKENS = st.lists(st.integers(0, 2), max_size=8).map(tuple)


def shared(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


class TreeAgainstTable(RuleBasedStateMachine):
    """Whatever is added and removed, answers are those of comparing with every sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.tree = PrefixTree()
        self.table: dict[int, tuple[int, ...]] = {}
        self.next = 0

    @rule(tokens=TOKENS)
    def add(self, tokens: tuple[int, ...]) -> None:
        self.tree.add(tokens, self.next)
        self.table[self.next] = tokens
        self.next += 1

    @precondition(lambda self: self.table)
    @rule(choice=st.integers(0, 10**6))
    def remove(self, choice: int) -> None:
        key = sorted(self.table)[choice % len(self.table)]
        self.tree.remove(self.table.pop(key), key)

    @rule(asked=TOKENS)
    def find(self, asked: tuple[int, ...]) -> None:
        best = max((shared(tokens, asked) for tokens in self.table.values()), default=0)
        found = self.tree.longest(asked)
        if not best:
            assert found is None
        else:
            assert found is not None
            assert (found[1], shared(self.table[found[0]], asked)) == (best, best)
        beginnings = {
            (key, len(tokens))
            for key, tokens in self.table.items()
            if tokens and asked[: len(tokens)] == tokens
        }
        given_out = list(self.tree.beginnings(asked))
        assert set(given_out) == beginnings
        assert [length for _, length in given_out] == sorted(length for _, length in given_out)

    @invariant()
    def no_node_is_superfluous(self) -> None:
        """Every node ends a sequence or is a fork, so there are fewer than two for each sequence."""
        different = len({tokens for tokens in self.table.values() if tokens})
        assert self.tree.nodes <= max(0, 2 * different - 1)


TestTreeAgainstTable = TreeAgainstTable.TestCase


# --- the cache -------------------------------------------------------------------------------------
ATTENTION = PrefixShape(bytes_per_token=10, bytes_per_session=0, whole_only=False)
RECURRENT = PrefixShape(bytes_per_token=0, bytes_per_session=100, whole_only=True)
MANY = 10**9


def cache(shape: PrefixShape = ATTENTION) -> PrefixCache:
    return PrefixCache(shape, chunk_tokens=4, tokens_min=2)


def test_a_prompt_gets_what_it_shares_but_its_last_token() -> None:
    made = cache()
    made.add(1, range(10), 8)
    assert made.find([*range(12)], exact=False) == Reuse(1, 10, 8)
    assert made.find([*range(10)], exact=False) == Reuse(1, 9, 8), "the last is computed, for what follows it"
    assert made.find([0, 1, 2, 3, 4, 99, 98], exact=False) == Reuse(1, 5, 4)
    assert made.find([0, 99, 98], exact=False) is None, "too short to be worth it"
    assert made.find([7, 8], exact=False) is None


def test_an_answer_that_can_be_repeated_gets_whole_chunks() -> None:
    made = cache()
    made.add(1, range(11), 10)  # two chunks and a rest
    assert made.find([*range(20)], exact=True) == Reuse(1, 8, 8)
    assert made.find([*range(8), 99, 99], exact=True) == Reuse(1, 8, 8)
    assert made.find([*range(7), 99], exact=True) == Reuse(1, 4, 4)
    assert made.find([0, 1, 2, 99], exact=True) is None
    made.add(2, range(100, 120), 3)  # nothing of it in a whole chunk
    assert made.find([*range(100, 130)], exact=True) is None


def test_a_state_that_cannot_go_back_is_used_as_a_whole() -> None:
    made = cache(RECURRENT)
    made.add(1, range(4), 4)
    made.add(2, range(8), 8)
    assert made.find([*range(10)], exact=False) == Reuse(2, 8, 8)
    assert made.find([*range(7), 99], exact=False) == Reuse(1, 4, 4)
    assert made.find([0, 1, 2, 99], exact=False) is None
    assert made.find([*range(10)], exact=True) is None
    assert made.room_for(range(9), MANY) == [], "shorter states are of use still"


def test_the_least_recently_used_goes_first() -> None:
    made = cache()
    for key in (1, 2, 3):
        made.add(key, range(key * 100, key * 100 + 5), 0)
    made.find([*range(100, 109)], exact=False)
    assert made.room_for(range(500, 510), 200) == [2]
    assert made.size_bytes == 100
    assert made.room_for(range(500, 510), 199) == [3]


def test_a_longer_one_makes_the_shorter_superfluous() -> None:
    made = cache()
    made.add(1, range(5), 4)
    assert not made.wants(range(5), MANY), "it is there"
    assert not made.wants(range(4), MANY), "and more"
    assert made.wants(range(6), MANY)
    assert made.room_for(range(6), MANY) == [1]
    assert (len(made), made.size_bytes) == (0, 0)


def test_what_is_too_short_or_too_large_is_not_wanted() -> None:
    made = cache()
    assert not made.wants([1], MANY)
    assert not made.wants(range(10), 99)
    assert made.wants(range(10), 100)


def test_what_a_stage_lost_is_forgotten_once() -> None:
    made = cache()
    made.add(1, range(5), 0)
    assert made.forget(1)
    assert not made.forget(1)
    made.add(2, range(5), 0)
    made.add(3, range(9, 15), 0)
    assert made.clear() == [2, 3]
    assert (len(made), made.size_bytes) == (0, 0)


@given(
    st.lists(st.tuples(TOKENS, st.integers(0, 8)), max_size=12), st.integers(0, 200), TOKENS, st.booleans()
)
def test_whatever_comes_it_stays_within_its_bytes_and_true(
    sequences: list[tuple[tuple[int, ...], int]], bytes_max: int, prompt: tuple[int, ...], exact: bool
) -> None:
    made, kept = cache(), {}
    for key, (tokens, grid) in enumerate(sequences):
        if made.wants(tokens, bytes_max):
            for gone in made.room_for(tokens, bytes_max):
                del kept[gone]
            made.add(key, tokens, grid)
            kept[key] = tokens
        assert made.size_bytes == sum(10 * len(tokens) for tokens in kept.values()) <= bytes_max
    found = made.find(prompt, exact=exact)
    if found is not None:
        assert prompt[: found.count] == kept[found.prefix][: found.count]
        assert 2 <= found.count < len(prompt)
        assert found.exact <= found.count
        assert found.exact == found.count or not exact
