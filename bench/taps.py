"""Ways to take a stage's rows out of llama.cpp, in turn within one process: what each adds to a decoded token.

    python bench/taps.py [--layers 11] [--turns 3000] [--out bench/results/taps.json]

A random model of few columns is used, so that what a tap costs stands out of what the layers cost; the number of
questions depends on the layers alone. Every way decodes one token per turn, the ways in random order; of each the
fastest tenth counts, since other work on the machine only adds. `layer input` has one layer more, whose input is
taken: llama.cpp offers the inputs of layers, and behind the last one there is none.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.parts import spec_of
from p2pnode.compute.gguf import open_model
from p2pnode.compute.llama_abi import L, lib
from p2pnode.compute.llama_context import Context
from p2pnode.compute.llama_model import Model
from p2pnode.compute.part import Part
from p2pnode.compute.taps import Taps
from p2pnode.compute.watch import EvalCallback, watch
from tools.random_model import ModelShape, write_random_model

SET = "_Z30llama_set_embeddings_layer_inpP13llama_contextjb"
GET = "_Z30llama_get_embeddings_layer_inpP13llama_contextj"
POSITIONS = 64
"""A decoded token always has as many before it."""


@dataclass
class Way:
    """One context, how it is asked for its rows, and what each turn took."""

    name: str
    context: Context
    rows: Callable[[], np.ndarray | None]
    times_s: list[float] = field(default_factory=list)

    def turn(self, row: np.ndarray) -> np.ndarray | None:
        context = self.context
        context.drop_from(0, POSITIONS)
        context.positions[0], context.sequences[0], context.wanted[0] = POSITIONS, 0, 1
        started = time.perf_counter()
        assert context.decode(1, row)
        found = self.rows()
        self.times_s.append(time.perf_counter() - started)
        return found

    def fill(self, rows: np.ndarray) -> None:
        context, count = self.context, len(rows)
        context.positions[:count], context.sequences[:count] = np.arange(count), 0
        context.wanted[:count] = 1
        assert context.decode(count, rows)
        self.rows()


def tapped(path: Path, layers: int, *, fast: bool) -> Way:
    index, _ = open_model(path)
    spec = replace(spec_of(index, path, Part(1, 1 + layers), threads=1), context_tokens=256, sessions_max=1)
    taps = Taps(spec.tap, ())
    if not fast:
        taps.callback = watch([spec.tap.encode()], (), taps._take, fast=False)
    context = Context(Model(spec), spec, taps.callback)

    def rows() -> np.ndarray:
        found, taps.rows = taps.rows[-1], []
        return found

    return Way("callback, compiled" if fast else "callback, Python", context, rows)


def counted(path: Path, layers: int) -> int:
    """How often llama.cpp asks for one token."""
    index, _ = open_model(path)
    spec = replace(spec_of(index, path, Part(1, 1 + layers), threads=1), context_tokens=256, sessions_max=1)
    asked = 0

    def ask(_tensor: int, is_question: bool, _data: Any) -> bool:
        nonlocal asked
        asked += is_question
        return not is_question

    callback = EvalCallback(L.ggml_backend_sched_eval_callback(ask))
    context = Context(Model(spec), spec, callback)
    context.positions[0], context.sequences[0], context.wanted[0] = 0, 0, 1
    assert context.decode(1, np.zeros((1, context._model.columns), np.float32))
    return asked


def layer_input(path: Path, layers: int) -> Way:
    """The input of one layer more than wanted, copied by llama.cpp without any callback."""
    setter, getter = getattr(lib, SET), getattr(lib, GET)
    setter.restype, setter.argtypes = None, [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_bool]
    getter.restype, getter.argtypes = ctypes.POINTER(ctypes.c_float), [ctypes.c_void_p, ctypes.c_uint32]
    index, _ = open_model(path)
    part = Part(1, 2 + layers)
    spec = replace(spec_of(index, path, part, threads=1), context_tokens=256, sessions_max=1)
    context = Context(Model(spec), spec, None)
    setter(context.pointer, layers, True)
    width = context._model.columns

    def rows() -> np.ndarray:
        return np.ctypeslib.as_array(getter(context.pointer, layers), shape=(1, width)).copy()

    return Way("layer input", context, rows)


def untapped(path: Path, layers: int, name: str) -> Way:
    """Computed to the end: norm and a one-row output, which a tap leaves out."""
    index, _ = open_model(path)
    spec = replace(spec_of(index, path, Part(1, 1 + layers), threads=1), context_tokens=256, sessions_max=1)
    return Way(name, Context(Model(spec), spec, None), lambda: None)


def fastest_tenth_us(times_s: Sequence[float]) -> float:
    ordered = sorted(times_s)[: max(1, len(times_s) // 10)]
    return sum(ordered) / len(ordered) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=11)
    parser.add_argument("--turns", type=int, default=3000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    shape = ModelShape(args.layers + 3, 256, 8, 4, 512, 512, context_count=512)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        write_random_model(path, shape)
        ways = [
            untapped(path, args.layers, "no tap"),
            tapped(path, args.layers, fast=True),
            tapped(path, args.layers, fast=False),
            layer_input(path, args.layers),
            untapped(path, args.layers + 1, "no tap, a layer more"),
        ]
        questions = counted(path, args.layers)
        rng = np.random.default_rng(1)
        before = rng.standard_normal((POSITIONS, shape.embedding_size), np.float32)
        row = rng.standard_normal((1, shape.embedding_size), np.float32)
        for way in ways:
            way.fill(before)
        same = [way.turn(row) for way in ways]
        for other in same[2:4]:
            assert np.array_equal(same[1], other), "the ways disagree"
        gc.disable()
        order, chance = list(ways), random.Random(1)
        for _ in range(args.turns):
            chance.shuffle(order)
            for way in order:
                way.turn(row)
    base = fastest_tenth_us(ways[0].times_s)
    table = {
        way.name: {"us": fastest_tenth_us(way.times_s), "adds_us": fastest_tenth_us(way.times_s) - base}
        for way in ways
    }
    result = {
        "command": "python bench/taps.py " + " ".join(sys.argv[1:]),
        "layers": args.layers, "turns": args.turns, "questions": questions, "ways": table,
    }  # fmt: skip
    for name, each in table.items():
        print(f"{name:24}{each['us']:10.1f} µs  {each['adds_us']:+8.1f} µs against no tap")
    print(f"{questions} questions a token")
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
