"""What this node keeps in memory, beside what it may: its share of the models and a fixed amount on top."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from p2pnode import limits
from p2pnode.node.engines import EngineHost
from p2pnode.node.resident import together_bytes


def held_by(engine: EngineHost) -> int:
    """Resident memory of one engine's process."""
    return together_bytes([engine.pid] if engine.pid else [])


def memory_use(engines: Iterable[EngineHost]) -> dict[str, Any]:
    """As `p2pnode status` shows it; `share_bytes` are the weights that these engines were told to hold.

    Keys and values take memory as conversations fill them; `conversations_bytes_max` is what they come to when context
    and prefix cache, both the operator's choice, are full. Other children (a measurement at the first start, tools
    that a model may call) are not the node's memory.
    """
    up = [engine for engine in engines if engine.is_up]
    share = sum(info.model_bytes for engine in up for info in engine.infos.values())
    return {
        "node_and_engines_bytes": together_bytes([os.getpid(), *(engine.pid for engine in up if engine.pid)]),
        "share_bytes": share,
        "allowed_bytes": share + limits.NODE_MEMORY_BYTES_MAX,
        "conversations_bytes_max": sum(
            spec.conversations_bytes_max for engine in up for spec in engine.specs
        ),
    }
