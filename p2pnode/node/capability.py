"""What this machine can do, as it tells the others in its status."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from p2pnode import limits
from p2pnode.compute.engine_version import engine_version


def cores() -> int:
    """Physical cores: hyper-threads do not help llama.cpp."""
    return psutil.cpu_count(logical=False) or os.cpu_count() or 1


class Capability:
    def __init__(
        self, data_dir: Path, *, threads: int, memory_max_bytes: int | None, is_metered: bool = False
    ) -> None:
        self._data_dir = data_dir
        self._threads = threads
        self._memory_max_bytes = memory_max_bytes
        self._is_metered = is_metered
        self.measured: dict[str, Any] = {}
        self.gpu_layers: Callable[[], int] = lambda: 0
        self._gpu_memory = (0, 0)

    def engine_said(self, hello: Mapping[str, Any]) -> None:
        """What an engine process found when it started: no llama.cpp is loaded here."""
        free, total = hello.get("gpu_memory", (0, 0))
        self._gpu_memory = (int(free), int(total))

    def view(self) -> dict[str, Any]:
        memory = psutil.virtual_memory()
        total, free = memory.total, memory.available
        if self._memory_max_bytes is not None:
            total, free = min(total, self._memory_max_bytes), min(free, self._memory_max_bytes)
        battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
        return {
            "memory_total_bytes": total,
            "memory_free_bytes": free,
            "gpu_memory_free_bytes": self._gpu_memory[0],
            "gpu_memory_total_bytes": self._gpu_memory[1],
            "gpu_layers": self.gpu_layers() if self.gpu_layers() >= 0 else limits.GPU_LAYERS_ALL,
            "disk_free_bytes": shutil.disk_usage(self._data_dir).free,
            "cores": cores(),
            "threads": self._threads,
            "machine": platform.machine(),
            "system": platform.system(),
            "on_battery": bool(battery and not battery.power_plugged),
            "is_metered": self._is_metered,
            "llama": engine_version(),
            **self.measured,
        }
