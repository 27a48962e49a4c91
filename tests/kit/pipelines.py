"""Compare a chain of cuts with the whole model: prefill, decode, two sequences at once, and after rolling back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from threading import Barrier

import numpy as np

from p2pnode.compute.embedding import embed_rows
from p2pnode.compute.gguf import ModelIndex
from p2pnode.compute.part import Part, Shard, real_layer_count
from p2pnode.compute.surgery import cut
from tests.kit.llama_runner import Engine, Reduce, engine_for, index_of, reader_of

PROMPT = (3, 17, 42, 9, 55, 80, 1, 33, 77, 12)


class Chain:
    """Stages one after the other, as a pipeline runs them."""

    def __init__(
        self, stages: Sequence[Engine], index: ModelIndex, data: bytes, *, tokens_first: bool
    ) -> None:
        self._stages, self._index, self._read = stages, index, reader_of(data)
        self._tokens_first = tokens_first

    def decode(
        self, positions: Sequence[int], tokens: Sequence[int], sequences: Sequence[int] | None = None
    ) -> np.ndarray:
        stages = list(self._stages)
        if self._tokens_first:
            rows = stages.pop(0).decode(positions, tokens=tokens, sequences=sequences)
        else:
            rows = embed_rows(self._index, self._read, tokens)
        for stage in stages:
            rows = stage.decode(positions, rows=rows, sequences=sequences)
        return rows

    def forget(self, sequence: int, first: int) -> None:
        for stage in self._stages:
            assert stage.forget(sequence, first)


def parts_of(layer_count: int, cuts: Sequence[int], *, embedding: bool, output_alone: bool) -> list[Part]:
    """Parts between cut points; the output with the last layers or on its own."""
    points = [0, *sorted(set(cuts) - {0, layer_count}), layer_count]
    parts = [
        Part(first, end, embedding=embedding and first == 0, output=end == layer_count and not output_alone)
        for first, end in pairwise(points)
    ]
    return [*parts, Part(layer_count, layer_count, output=True)] if output_alone else parts


@contextmanager
def chain(data: bytes, cuts: Sequence[int], *, embedding: bool, output_alone: bool) -> Iterator[Chain]:
    index = index_of(data)
    parts = parts_of(real_layer_count(index), cuts, embedding=embedding, output_alone=output_alone)
    stages: list[Engine] = []
    try:
        stages.extend(engine_for(cut(index, part), data) for part in parts)
        yield Chain(stages, index, data, tokens_first=embedding)
    finally:
        for stage in stages:
            stage.close()


class Whole:
    """The reference: the original file in one context."""

    def __init__(self, data: bytes) -> None:
        self._engine = Engine(data)

    def decode(
        self, positions: Sequence[int], tokens: Sequence[int], sequences: Sequence[int] | None = None
    ) -> np.ndarray:
        return self._engine.decode(positions, tokens=tokens, sequences=sequences)

    def forget(self, sequence: int, first: int) -> None:
        assert self._engine.forget(sequence, first)

    def close(self) -> None:
        self._engine.close()


def conversation(model: Chain | Whole, *, rollback: bool) -> list[np.ndarray]:
    """Logits of every step of a fixed exchange."""
    count = len(PROMPT)
    steps = [model.decode(range(count), PROMPT)]
    steps += [model.decode([count + step], [5 + step]) for step in range(3)]
    both = [(count + 3, 21, 0), (0, 2, 1), (1, 60, 1), (count + 4, 31, 0)]
    ordered = sorted(both, key=lambda each: each[2])
    steps.append(
        model.decode([p for p, _, _ in ordered], [t for _, t, _ in ordered], [s for _, _, s in ordered])
    )
    if rollback:
        model.forget(0, count - 2)
        steps.append(model.decode([count - 2, count - 1, count], [90, 91, 92]))
    return steps


class Group:
    """Ranks of a tensor group in threads of one process; sums are exchanged in memory."""

    def __init__(self, index: ModelIndex, data: bytes, shares: Sequence[int], part: Part) -> None:
        self._barrier = Barrier(len(shares), timeout=30)
        self._parts: list[np.ndarray] = [np.empty(0)] * len(shares)
        self._names = [""] * len(shares)
        self.sums = 0
        self.engines = [
            engine_for(
                cut(index, replace(part, shard=Shard(rank, tuple(shares)))), data, reduce=self._reducer(rank)
            )
            for rank in range(len(shares))
        ]
        self._pool = ThreadPoolExecutor(len(shares))

    def _reducer(self, rank: int) -> Reduce:
        def reduce(name: str, rows: np.ndarray) -> np.ndarray:
            self._parts[rank], self._names[rank] = rows, name
            self._barrier.wait()
            assert len(set(self._names)) == 1
            total = sum(self._parts[1:], self._parts[0])
            self.sums += rank == 0
            self._barrier.wait()
            return total

        return reduce

    def decode(
        self, positions: Sequence[int], tokens: Sequence[int] | None = None, rows: np.ndarray | None = None
    ) -> np.ndarray:
        jobs = [self._pool.submit(each.decode, positions, tokens=tokens, rows=rows) for each in self.engines]
        results = [job.result() for job in jobs]
        assert all(np.array_equal(results[0], each) for each in results[1:])
        return results[0]

    def close(self) -> None:
        self._pool.shutdown()
        for engine in self.engines:
            engine.close()
