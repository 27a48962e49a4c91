"""Which layers are timed, and what is remembered of it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from p2pnode import limits
from p2pnode.compute.part import Part
from p2pnode.node.layer_rates import LayerRates, sample_of
from tests.kit.meshes import GIB, MIB, shape

RATES = [1e9, 2e10, 0.0005]


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


def rates_of(path: Path, threads: int = 2) -> LayerRates:
    catalog = SimpleNamespace(store=SimpleNamespace(models=lambda: [SimpleNamespace(content_id="new")]))
    return LayerRates(
        catalog=cast(Any, catalog), path=path, threads=threads, is_busy=lambda: False, now_ms=lambda: 1000,
        changed=lambda: None,
    )  # fmt: skip


def test_what_was_measured_with_these_threads_is_remembered(tmp_path: Path) -> None:
    path = tmp_path / "rates.json"
    entries = {f"m{n}": {"rates": RATES, "threads": 2, "at_ms": n} for n in range(40)}
    path.write_text(json.dumps(entries))
    told = rates_of(path).view()
    assert list(told) == [f"m{n}" for n in range(39, 39 - limits.RATES_TOLD_MAX, -1)]
    assert told["m39"] == RATES
    assert rates_of(path, threads=1).view() == {}


@pytest.mark.parametrize(
    "text",
    ["", "[]", "5", '{"m": 5}', '{"m": {"rates": [1, 2], "threads": 2, "at_ms": 1}}',
     '{"m": {"rates": [1, 2, -1], "threads": 2, "at_ms": 1}}', '{"m": {"rates": [1, 2, 3], "threads": 2}}',
     '{"m": {"rates": [1, 2, 3], "at_ms": 1}}'],
)  # fmt: skip
def test_a_broken_file_is_as_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rates.json"
    path.write_text(text)
    assert rates_of(path).view() == {}
