"""What this node keeps in memory, beside what it may: its share of the models and a fixed amount on top."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from typing import Any

import psutil

from p2pnode import limits
from p2pnode.node.engines import EngineHost


def resident_bytes(pids: Iterable[int]) -> int:
    """Of these processes together; pages that several of them share are counted for each."""
    total = 0
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):  # an engine may have died just now
            total += psutil.Process(pid).memory_info().rss
    return total


def held_by(engine: EngineHost) -> int:
    """Resident memory of one engine's process."""
    return resident_bytes([engine.pid] if engine.pid else [])


def memory_use(engines: Iterable[EngineHost]) -> dict[str, Any]:
    """As `p2pnode status` shows it; `share_bytes` are the weights that these engines were told to hold.

    Other children (a measurement at the first start, tools that a model may call) are not the node's memory.
    """
    up = [engine for engine in engines if engine.is_up]
    share = sum(info.model_bytes for engine in up for info in engine.infos.values())
    return {
        "node_and_engines_bytes": resident_bytes([os.getpid(), *(engine.pid for engine in up if engine.pid)]),
        "share_bytes": share,
        "allowed_bytes": share + limits.NODE_MEMORY_BYTES_MAX,
    }
