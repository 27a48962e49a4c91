"""What this node keeps in memory, beside what it may: its share of the models and a fixed amount on top."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import psutil

from p2pnode import limits
from p2pnode.node.engines import EngineHost


def resident_bytes() -> int:
    """Of this node and its engines, pages that they share counted for each."""
    own = psutil.Process()
    total = own.memory_info().rss
    for child in own.children(recursive=True):
        try:
            total += child.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return int(total)


def memory_use(engines: Iterable[EngineHost]) -> dict[str, Any]:
    """As `p2pnode status` shows it; `share_bytes` are the weights that these engines were told to hold."""
    share = sum(info.model_bytes for engine in engines if engine.is_up for info in engine.infos.values())
    return {
        "node_and_engines_bytes": resident_bytes(),
        "share_bytes": share,
        "allowed_bytes": share + limits.NODE_MEMORY_BYTES_MAX,
    }
