"""Which nodes of llama.cpp's graph are wanted: asked for every one of them, so compiled where that was possible.

`_watch.c` is built with the package. An installation without it (no compiler, or a source tree that was not set up)
has the same answers from Python, 0.5 µs each instead of some nanoseconds.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable, Collection, Sequence
from ctypes import string_at
from dataclasses import dataclass
from functools import cache
from typing import Any

from p2pnode.compute.llama_abi import TENSOR_NAME, TENSOR_SOURCE, L, source_name

_COMPILED = "p2pnode.compute._watch"


@dataclass(frozen=True, slots=True)
class EvalCallback:
    """What a context is given: a function llama.cpp can call, its argument, and what has to live as long."""

    function: Any
    data: int | None = None
    kept: Sequence[Any] = ()


class _Watched(ctypes.Structure):
    _fields_ = (
        ("take", ctypes.c_void_p),
        ("name_at", ctypes.c_size_t),
        ("source_at", ctypes.c_size_t),
        ("name_count", ctypes.c_size_t),
        ("weight_count", ctypes.c_size_t),
        ("names", ctypes.POINTER(ctypes.c_char_p)),
        ("weights", ctypes.POINTER(ctypes.c_char_p)),
    )


@cache
def compiled() -> Any | None:
    """The compiled function as llama.cpp's callback type, or None where it was not built."""
    try:
        spec = importlib.util.find_spec(_COMPILED)
        if spec is None or spec.origin is None:
            return None
        function = ctypes.CDLL(spec.origin).p2pnode_watch
    except (ImportError, OSError, AttributeError):
        return None
    return ctypes.cast(function, L.ggml_backend_sched_eval_callback)


def watch(
    names: Collection[bytes],
    weights: Collection[bytes],
    take: Callable[[int], bool],
    *,
    fast: bool = True,
) -> EvalCallback:
    """Call `take` with every computed node of these names, or that is a product of one of these weights (`blk.N...`).

    It says whether to go on.
    """
    function = compiled() if fast else None
    if function is None:
        return EvalCallback(L.ggml_backend_sched_eval_callback(_asked_in_python(names, weights, take)))
    taker = L.ggml_backend_sched_eval_callback(lambda tensor, _ask, _data: take(tensor))
    lists = [(ctypes.c_char_p * max(1, len(texts)))(*texts) for texts in (names, weights)]
    watched = _Watched(
        ctypes.cast(taker, ctypes.c_void_p),
        TENSOR_NAME,
        TENSOR_SOURCE,
        len(names),
        len(weights),
        *lists,
    )
    return EvalCallback(function, ctypes.addressof(watched), (taker, *lists, watched))


def _asked_in_python(
    names: Collection[bytes], weights: Collection[bytes], take: Callable[[int], bool]
) -> Callable[[int, bool, Any], bool]:
    """A closure, and one look at the name: names llama.cpp gives are remembered, ggml's own `node_N` change place."""
    wanted, weighed, name_at = frozenset(names), frozenset(weights), TENSOR_NAME

    def watch_names(tensor: int, ask: bool, _data: Any) -> bool:
        return string_at(tensor + name_at) in wanted if ask else take(tensor)

    known = dict.fromkeys(wanted, True)

    def is_product(tensor: int, name: bytes) -> bool:
        found = name in wanted or source_name(tensor) in weighed
        if name not in known and not name.startswith(b"node_"):
            known[name] = found
        return found

    def watch_products(tensor: int, ask: bool, _data: Any) -> bool:
        if not ask:
            return take(tensor)
        name = string_at(tensor + name_at)
        seen = known.get(name)
        return is_product(tensor, name) if seen is None else seen and is_product(tensor, name)

    return watch_products if weighed else watch_names
