"""A radix tree over token ids: which kept sequences share how long a beginning with a prompt. Pure.

Edges hold runs of ids, so a tree of long conversations has few nodes; what is found costs one comparison a token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class _Node:
    run: tuple[int, ...]
    """Token ids on the edge that leads here."""
    keys: dict[int, None] = field(default_factory=dict)
    """Sequences that end exactly here, in the order they came."""
    children: dict[int, _Node] = field(default_factory=dict)

    def first_key(self) -> int:
        """A sequence that begins with everything up to here; every leaf has one."""
        node = self
        while not node.keys:
            node = next(iter(node.children.values()))
        return next(iter(node.keys))


def _shared(run: Sequence[int], tokens: Sequence[int], start: int) -> int:
    """How many ids of `run` are those of `tokens` from `start` on."""
    end = min(len(run), len(tokens) - start)
    for index in range(end):
        if run[index] != tokens[start + index]:
            return index
    return end


class PrefixTree:
    """Sequences by key; a key is added once and removed with the tokens it was added with."""

    def __init__(self) -> None:
        self._root = _Node(())

    def add(self, tokens: Sequence[int], key: int) -> None:
        node, at = self._root, 0
        while at < len(tokens):
            child = node.children.get(tokens[at])
            if child is None:
                child = node.children[tokens[at]] = _Node(tuple(tokens[at:]))
            else:
                shared = _shared(child.run, tokens, at)
                if shared < len(child.run):
                    child = self._split(node, child, shared)
            node, at = child, at + len(child.run)
        node.keys[key] = None

    @staticmethod
    def _split(parent: _Node, child: _Node, at: int) -> _Node:
        middle = _Node(child.run[:at], children={child.run[at]: child})
        child.run = child.run[at:]
        parent.children[middle.run[0]] = middle
        return middle

    def remove(self, tokens: Sequence[int], key: int) -> None:
        path = [self._root]
        at = 0
        while at < len(tokens):
            path.append(path[-1].children[tokens[at]])
            at += len(path[-1].run)
        del path[-1].keys[key]
        while len(path) > 1:
            node = path.pop()
            if node.keys or len(node.children) > 1:
                return
            if node.children:  # a fork no more: its only branch becomes one edge
                (child,) = node.children.values()
                child.run = node.run + child.run
                path[-1].children[child.run[0]] = child
                return
            del path[-1].children[node.run[0]]

    def longest(self, tokens: Sequence[int]) -> tuple[int, int] | None:
        """A sequence that shares the longest beginning with `tokens`, and how many ids that is."""
        node, at = self._root, 0
        while at < len(tokens) and (child := node.children.get(tokens[at])) is not None:
            shared = _shared(child.run, tokens, at)
            node, at = child, at + shared
            if shared < len(child.run):
                break
        return (node.first_key(), at) if at else None

    def beginnings(self, tokens: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Sequences that are a beginning of `tokens` themselves, the shortest first, with their lengths."""
        node, at = self._root, 0
        while (
            at < len(tokens)
            and (child := node.children.get(tokens[at])) is not None
            and _shared(child.run, tokens, at) == len(child.run)
        ):
            node, at = child, at + len(child.run)
            for key in node.keys:
                yield key, at

    @property
    def nodes(self) -> int:
        """Without the root."""

        def count(node: _Node) -> int:
            return sum(1 + count(child) for child in node.children.values())

        return count(self._root)
