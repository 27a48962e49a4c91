"""Which llama.cpp engines of this device compute with, in a word that two devices can compare.

Two builds of one version may still round differently on different processors; two versions also order their sums
differently, know other quantisations and write other states. So parts of one answer are computed by one version,
unless somebody allows more (`plan.versions`).
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from functools import cache
from pathlib import Path


@cache
def engine_version() -> str:
    """Of the package and of the ggml in it, such as `0.3.36 0c1e570`; empty where there is none."""
    package = _package_version()
    return " ".join(filter(None, [package, _ggml_commit()])) if package else ""


def _package_version() -> str:
    """As its first folder on the path is called: asking for metadata loads mail and zip readers, 1 MB an engine."""
    for place in filter(None, sys.path):
        found = list(Path(place).glob("llama_cpp_python-*.dist-info"))
        if len(found) == 1:
            return found[0].name.removesuffix(".dist-info").split("-")[1]
    from importlib.metadata import PackageNotFoundError, version  # installed in some other way

    try:
        return version("llama-cpp-python")
    except PackageNotFoundError:
        return ""


def _package_folder() -> Path | None:
    spec = importlib.util.find_spec("llama_cpp")
    return Path(spec.origin).parent if spec is not None and spec.origin is not None else None


def _ggml_commit() -> str:
    """As its smallest library says; an older one says nothing."""
    folder = _package_folder()
    for path in sorted((folder / "lib").glob("*ggml-base*") if folder is not None else []):
        try:
            say = ctypes.CDLL(str(path)).ggml_commit
        except (OSError, AttributeError):
            continue
        say.restype = ctypes.c_char_p
        return str((say() or b"").decode("ascii", "replace"))[:40]
    return ""
