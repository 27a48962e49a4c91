"""Which beginnings of prompts a route keeps, which of them a new prompt may use, and which go first. Pure.

What was computed in whole chunks from the first token on is exact: a prompt that goes on after it is cut into the
same batches as without a cache, so every number is the same. The rest (ends of prompts, what was generated) was
computed in other batches, which round differently; only requests whose answer is chance anyway, or that ask for
it, go on from there (specs/decisions/0022-prefixes-outside-the-cells.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from p2pnode.compute.prefix_tree import PrefixTree


@dataclass(frozen=True, slots=True)
class Reuse:
    """The first `count` positions of a kept prefix are those of a prompt."""

    prefix: int
    count: int
    exact: int
    """How many of them were computed in whole chunks from the first token on."""


@dataclass(frozen=True, slots=True)
class _Entry:
    tokens: tuple[int, ...]
    exact: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class PrefixShape:
    """What keys and values of one model need, over all stages together."""

    bytes_per_token: int
    bytes_per_session: int
    whole_only: bool
    """Recurrent states cannot go back: a prefix is used as a whole or not at all."""


class PrefixCache:
    """Prefixes by number, least recently used first."""

    def __init__(self, shape: PrefixShape, *, chunk_tokens: int, tokens_min: int) -> None:
        self._shape = shape
        self._chunk_tokens = chunk_tokens
        self._tokens_min = tokens_min
        self._all = PrefixTree()
        self._exact = PrefixTree()
        """Of every prefix what was computed in whole chunks."""
        self._entries: dict[int, _Entry] = {}
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, prompt: Sequence[int], *, exact: bool) -> Reuse | None:
        """The longest beginning of a prompt that is kept; the last token is always computed, for what follows it."""
        known = prompt[: len(prompt) - 1]
        reuse = self._find_exact(known) if exact else self._find_any(known)
        if reuse is None or reuse.count < self._tokens_min:
            return None
        self._entries[reuse.prefix] = self._entries.pop(reuse.prefix)  # the newest is last
        return reuse

    def _find_exact(self, known: Sequence[int]) -> Reuse | None:
        found = None if self._shape.whole_only else self._exact.longest(known)
        if found is None:
            return None
        count = self._whole_chunks(found[1])
        return Reuse(found[0], count, count)

    def _find_any(self, known: Sequence[int]) -> Reuse | None:
        if self._shape.whole_only:
            found = max(self._all.beginnings(known), key=lambda pair: pair[1], default=None)
        else:
            found = self._all.longest(known)
        if found is None:
            return None
        key, count = found
        return Reuse(key, count, min(self._entries[key].exact, self._whole_chunks(count)))

    def _whole_chunks(self, tokens: int) -> int:
        return tokens // self._chunk_tokens * self._chunk_tokens

    def size_of(self, tokens: int) -> int:
        return tokens * self._shape.bytes_per_token + self._shape.bytes_per_session

    def wants(self, tokens: Sequence[int], bytes_max: int) -> bool:
        """Whether keeping these positions is worth it: not too short, not too large, not kept already."""
        if len(tokens) < self._tokens_min or self.size_of(len(tokens)) > bytes_max:
            return False
        longest = self._all.longest(tokens)
        return longest is None or longest[1] < len(tokens)

    def room_for(self, tokens: Sequence[int], bytes_max: int) -> list[int]:
        """Prefixes that must go before these tokens are kept: what they make superfluous, then the oldest."""
        gone = [] if self._shape.whole_only else [key for key, _ in self._all.beginnings(tokens)]
        for key in gone:
            self._remove(key)
        while self._entries and self.size_bytes + self.size_of(len(tokens)) > bytes_max:
            gone.append(next(iter(self._entries)))
            self._remove(gone[-1])
        return gone

    def add(self, prefix: int, tokens: Sequence[int], exact: int) -> None:
        entry = _Entry(tuple(tokens), self._whole_chunks(min(exact, len(tokens))), self.size_of(len(tokens)))
        self._entries[prefix] = entry
        self._all.add(entry.tokens, prefix)
        self._exact.add(entry.tokens[: entry.exact], prefix)
        self.size_bytes += entry.size_bytes

    def forget(self, prefix: int) -> bool:
        """Whether it was kept; for what a stage turned out not to hold."""
        if prefix not in self._entries:
            return False
        self._remove(prefix)
        return True

    def clear(self) -> list[int]:
        """All of them, to be forgotten by the stages."""
        gone = list(self._entries)
        for key in gone:
            self._remove(key)
        return gone

    def _remove(self, prefix: int) -> None:
        entry = self._entries.pop(prefix)
        self._all.remove(entry.tokens, prefix)
        self._exact.remove(entry.tokens[: entry.exact], prefix)
        self.size_bytes -= entry.size_bytes
