"""Measurements: medians after a warm-up, bounded by what clocks can tell, in the planner's own units."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
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


class Layers:
    """Some layers on a machine: 10 ms for a row, 1 ms for each further one, 20 µs for each it is compared with."""

    def __init__(self, slower: Callable[[int], float] = lambda paused: 1.0) -> None:
        self.clock = Clock()
        self.slower = slower
        self.pauses: list[float] = []
        self.runs = 0

    async def run_rows(self, rows: int, position: int) -> float:
        self.runs += 1
        first = 5.0 if self.runs == 1 else 0.0
        computed = (0.010 + first + 0.001 * (rows - 1) + 20e-6 * position) * self.slower(len(self.pauses))
        self.clock.now += computed + 0.0007
        return computed

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.clock.now += seconds

    async def timed(self) -> measure.LayerTiming:
        return await measure.time_layers(
            self.run_rows,
            95_000_000,
            kv_bytes_per_token=4096,
            prefill_rows=64,
            clock=self.clock,
            pause=self.pause,
        )


async def test_a_layer_is_timed_warm_with_and_without_context() -> None:
    layers = Layers()
    found = await layers.timed()
    assert found.decode_s == pytest.approx(0.010)
    assert found.prefill_s == pytest.approx(0.073)
    assert found.decode_bytes_per_s == pytest.approx(95e6 / 0.010)
    assert found.prefill_bytes_per_s == pytest.approx(95e6 * 64 / found.prefill_s)
    assert found.overhead_s == pytest.approx(0.0007)
    assert found.context_bytes_per_s == pytest.approx(4096 / 20e-6, rel=0.05)
    assert found.spread == pytest.approx(1.0)
    assert layers.pauses == [limits.MEASURE_PAUSE_S] * (limits.MEASURE_ROUNDS - 1)


async def test_the_fastest_round_counts_and_the_spread_tells_of_the_others() -> None:
    """Other work in the first half of a timing: the rest of it is as if there had been none."""
    quiet = await Layers().timed()
    disturbed = await Layers(lambda paused: 3.0 if paused < 2 else 1.0).timed()
    assert disturbed.decode_s == pytest.approx(quiet.decode_s)
    assert disturbed.spread == pytest.approx(3.0)
    throughout = await Layers(lambda paused: 3.0).timed()
    assert throughout.decode_s == pytest.approx(3 * quiet.decode_s)
    assert throughout.spread == pytest.approx(1.0)


async def test_a_clock_that_stands_still_makes_nobody_infinite() -> None:
    async def run_rows(rows: int, position: int) -> float:
        return 0.0

    async def no_pause(seconds: float) -> None:
        pass

    found = await measure.time_layers(run_rows, 1000, kv_bytes_per_token=1, clock=lambda: 1.0, pause=no_pause)
    assert found.decode_bytes_per_s == pytest.approx(1000 / limits.MEASURE_SECONDS_MIN)
    assert found.context_bytes_per_s == limits.CONTEXT_BYTES_PER_S_MAX


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
