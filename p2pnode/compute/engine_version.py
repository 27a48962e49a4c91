"""Which llama.cpp engines of this device compute with, in a word that two devices can compare.

Two builds of one version may still round differently on different processors; two versions also order their sums
differently, know other quantisations and write other states. So parts of one answer are computed by one version,
unless somebody allows more (`plan.versions`).
"""

from __future__ import annotations

import ctypes
import importlib.util
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


@cache
def engine_version() -> str:
    """Of the package and of the ggml in it, such as `0.3.36 0c1e570`; empty where there is none."""
    try:
        words = [version("llama-cpp-python")]
    except PackageNotFoundError:
        return ""
    return " ".join([*words, *filter(None, [_ggml_commit()])])


def _ggml_commit() -> str:
    """As its smallest library says; an older one says nothing."""
    spec = importlib.util.find_spec("llama_cpp")
    folder = Path(spec.origin).parent / "lib" if spec is not None and spec.origin is not None else Path()
    for path in sorted(folder.glob("*ggml-base*")):
        try:
            say = ctypes.CDLL(str(path)).ggml_commit
        except (OSError, AttributeError):
            continue
        say.restype = ctypes.c_char_p
        return str((say() or b"").decode("ascii", "replace"))[:40]
    return ""
