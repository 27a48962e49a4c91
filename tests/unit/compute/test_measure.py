"""Measurements: medians after a warm-up, bounded by what clocks can tell, in the planner's own units."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path

import psutil
import pytest

from p2pnode import limits
from p2pnode.compute import measure
from p2pnode.node.capability import Capability


class Clock:
    """Moves when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_a_layer_is_timed_warm() -> None:
    clock, calls = Clock(), []

    async def run_rows(rows: int) -> float:
        calls.append(rows)
        computed = 0.010 + (5.0 if len(calls) == 1 else 0.0) + 0.001 * (rows - 1)
        clock.now += computed + 0.0007
        return computed

    found = await measure.time_layers(run_rows, 95_000_000, prefill_rows=64, clock=clock)
    assert found.decode_s == pytest.approx(0.010)
    assert found.prefill_s == pytest.approx(0.073)
    assert found.decode_bytes_per_s == pytest.approx(95e6 / 0.010)
    assert found.prefill_bytes_per_s == pytest.approx(95e6 * 64 / 0.073)
    assert found.overhead_s == pytest.approx(0.0007)


async def test_a_clock_that_stands_still_makes_nobody_infinite() -> None:
    async def run_rows(rows: int) -> float:
        return 0.0

    found = await measure.time_layers(run_rows, 1000, clock=lambda: 1.0)
    assert found.decode_bytes_per_s == pytest.approx(1000 / limits.MEASURE_SECONDS_MIN)


@pytest.mark.parametrize("threads", [1, 3])
def test_memory_is_read_by_all_threads(threads: int) -> None:
    rate = measure.memory_bytes_per_s(threads, size=1_000_000)
    assert rate > 0
    assert measure.decode_rate_guess(rate) < rate


def test_disks_are_timed_on_large_files_only(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(300_000))
    assert measure.disk_bytes_per_s(path, size=200_000) is not None
    assert measure.disk_bytes_per_s(path) is None


def test_the_machine_is_described_and_capped(tmp_path: Path) -> None:
    found = measure.machine(tmp_path)
    assert 0 < found["memory_free_bytes"] <= found["memory_total_bytes"]
    assert found["cores"] >= 1
    assert found["disk_free_bytes"] > 0
    assert measure.machine(tmp_path, memory_max_bytes=1000)["memory_free_bytes"] == 1000


def test_batteries_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    battery = namedtuple("battery", "power_plugged")
    for state, expected in ((battery(False), True), (battery(True), False), (None, False)):
        monkeypatch.setattr(psutil, "sensors_battery", lambda state=state: state, raising=False)
        assert measure.on_battery() is expected

    def broken() -> None:
        raise OSError("no such sensor")

    monkeypatch.setattr(psutil, "sensors_battery", broken, raising=False)
    assert measure.on_battery() is False
    monkeypatch.delattr(psutil, "sensors_battery")
    assert measure.on_battery() is False


def test_the_memory_of_gpus_is_told_as_engines_find_it(tmp_path: Path) -> None:
    machine = Capability(tmp_path, threads=1, memory_max_bytes=None)
    names = ("gpu_memory_free_bytes", "gpu_memory_total_bytes", "gpu_layers")
    assert [machine.view()[name] for name in names] == [0, 0, 0]
    machine.engine_said({"gpu_memory": [5, 7]})
    machine.gpu_layers = lambda: -1
    assert [machine.view()[name] for name in names] == [5, 7, limits.GPU_LAYERS_ALL]
    machine.engine_said({"pid": 1})
    assert machine.view()["gpu_memory_total_bytes"] == 0
