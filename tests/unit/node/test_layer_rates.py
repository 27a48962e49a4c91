"""Which layers are timed, and what is remembered of it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from p2pnode import limits
from p2pnode.compute.measure import LayerTiming
from p2pnode.compute.part import Part
from p2pnode.errors import BadModelFile
from p2pnode.node.layer_rates import LayerRates, sample_of
from p2pnode.units import ContentId, PeerId
from tests.kit.meshes import GIB, MIB, shape


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (shape(8, 100), Part(2, 8)),
        (shape(8, 1), Part(0, 8)),
        (shape(8, 600), Part(7, 8)),
        (shape(1, 1), Part(0, 1)),
        (shape(12, 100, boundary=4), Part(4, 12)),
        (shape(10, 100, boundary=4), Part(4, 10)),
        (shape(8, 3000), Part(7, 8)),
        (shape(8, cut_refusal="it has loops"), None),
        (shape(8, 5000), None),
    ],
)
def test_layers_that_no_cache_helps_with(model: Any, expected: Part | None) -> None:
    assert sample_of(model, 4 * GIB) == expected
    assert limits.MEASURE_LAYER_BYTES == 512 * MIB


def test_a_small_device_times_what_it_has_room_for() -> None:
    assert sample_of(shape(8, 100), 250 * MIB) == Part(6, 8)
    assert sample_of(shape(8, 100), 99 * MIB) is None


class Machine:
    """A clock that moves when told, a timer that says how long a row takes now, and other programs."""

    def __init__(self, path: Path, threads: int = 2, models: tuple[str, ...] = ("new",)) -> None:
        self.now_ms, self.load, self.is_busy = 1_000_000, 0.0, False
        self.row_s: float | None = 0.010
        self.repeats = True
        self.spread = 1.0
        self.timings = self.changes = 0
        store = SimpleNamespace(models=lambda: [SimpleNamespace(content_id=name) for name in models])
        self.rates = LayerRates(
            catalog=cast(Any, SimpleNamespace(store=store)), path=path, threads=threads,
            is_busy=lambda: self.is_busy, now_ms=lambda: self.now_ms, changed=self.changed,
            others=lambda: self.load, time_model=self.time_model, repeats=lambda: self.repeats,
        )  # fmt: skip

    def changed(self) -> None:
        self.changes += 1

    async def time_model(self, content_id: ContentId) -> LayerTiming | None:
        self.timings += 1
        if self.row_s is None:
            raise BadModelFile("no layers")
        return LayerTiming(10_000_000, self.row_s, 0.5, 64, 0.0005, 0.001, 1_000_000, self.spread)

    async def after(self, seconds: float) -> bool:
        self.now_ms += int(seconds * 1000)
        return await self.rates.look()

    @property
    def told(self) -> float:
        return float(self.rates.view()["rates"]["new"][0])


async def test_a_speed_measured_in_a_busy_moment_is_corrected_when_it_is_quiet(tmp_path: Path) -> None:
    """Without any request: the rounds differed, and they were the slower ones of this machine."""
    machine = Machine(tmp_path / "rates.json")
    machine.row_s, machine.spread = 0.200, 5.0
    assert await machine.after(0)
    assert machine.told == pytest.approx(5e7)
    machine.row_s, machine.spread = 0.010, 1.0
    assert not await machine.after(1)
    assert await machine.after(limits.MEASURE_AGAIN_MS_MIN // 1000)
    assert (machine.told, machine.changes) == (pytest.approx(1e9), 2)
    assert not await machine.after(3600)


@pytest.mark.parametrize("wrong_s", [0.200, 0.0005])
async def test_a_request_makes_a_wrong_speed_be_measured_again(tmp_path: Path, wrong_s: float) -> None:
    """Much too slow or much too fast, and believed; nothing restarts."""
    machine = Machine(tmp_path / "rates.json")
    machine.row_s = wrong_s
    assert await machine.after(0)
    machine.row_s = 0.010
    assert not await machine.after(600)
    await machine.rates.asked_to_doubt(PeerId("head"), {"model": "new"}, lambda _: None)
    machine.is_busy = True
    assert not await machine.after(1)
    machine.is_busy, machine.load = False, 0.8
    assert not await machine.after(1)
    machine.load = 0.0
    assert await machine.after(1)
    assert machine.told == pytest.approx(1e9)


async def test_a_timing_gives_way_to_a_request_and_is_made_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MEASURE_YIELD_S", 0.0)
    machine, ended = Machine(tmp_path / "rates.json"), []
    quick = machine.time_model

    async def until_ended(content_id: ContentId) -> LayerTiming | None:
        machine.is_busy = True
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(content_id)
        return None

    machine.rates._time_model = until_ended
    assert not await machine.after(0)
    assert ended == ["new"]
    machine.rates._time_model = quick
    assert not await machine.after(0)
    machine.is_busy = False
    assert await machine.after(0)
    assert machine.told == pytest.approx(1e9)


async def test_doubts_of_a_right_speed_cost_ever_less(tmp_path: Path) -> None:
    """A machine that always has other work: every request differs, and every timing confirms what was told."""
    machine = Machine(tmp_path / "rates.json")
    await machine.after(0)
    for _ in range(24 * 360):  # a day, a request every ten seconds
        await machine.rates.doubt(ContentId("new"))
        await machine.after(10)
    assert machine.timings <= 14


async def test_where_it_is_timed_once_nothing_has_it_timed_again(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "rates.json")
    machine.repeats, machine.load = False, 0.9
    assert await machine.after(0)
    await machine.rates.doubt(ContentId("new"))
    assert not await machine.after(2 * limits.MEASURE_FRESH_MS / 1000)
    assert machine.timings == 1
    machine.repeats = True
    assert await machine.after(0)


async def test_doubts_of_what_nobody_timed_are_nothing(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "rates.json")
    await machine.rates.asked_to_doubt(PeerId("head"), {}, lambda _: None)
    assert machine.rates.view() == {"rates": {}, "context_rates": {}}


async def test_a_model_that_cannot_be_timed_is_tried_again_with_pauses(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "rates.json")
    machine.row_s = None
    assert await machine.after(0)
    assert not await machine.after(limits.MEASURE_AGAIN_MS_MIN // 1000 - 1)
    machine.row_s = 0.010
    assert await machine.after(1)
    assert machine.told == pytest.approx(1e9)


async def test_what_was_measured_with_these_threads_is_remembered(tmp_path: Path) -> None:
    path = tmp_path / "rates.json"
    machine = Machine(path)
    await machine.after(0)
    assert Machine(path).rates.view() == machine.rates.view()
    assert Machine(path, threads=1).rates.view() == {"rates": {}, "context_rates": {}}


async def test_the_newest_are_told_and_models_that_went_are_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "rates.json"
    names = tuple(f"m{number}" for number in range(limits.RATES_KEPT_MAX + 5))
    machine = Machine(path, models=names)
    for _ in names:
        assert await machine.after(1)
    assert not await machine.after(1)
    assert list(machine.rates.view()["rates"]) == list(reversed(names))[: limits.RATES_TOLD_MAX]
    assert set(json.loads(path.read_text())) == set(names)
    assert await Machine(path).after(2000)
    assert set(json.loads(path.read_text())) == {*names[-limits.RATES_KEPT_MAX + 1 :], "new"}


@pytest.mark.parametrize(
    "text", ["", "[]", "5", '{"m": 5}', '{"m": {"rates": [1, 2, 3], "threads": 2, "at_ms": 1}}']
)
def test_a_broken_file_is_as_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rates.json"
    path.write_text(text)
    assert Machine(path).rates.view() == {"rates": {}, "context_rates": {}}
