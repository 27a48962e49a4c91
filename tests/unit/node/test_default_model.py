"""Which model a request gets that names none."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from p2pnode.errors import ModelUnknown
from p2pnode.models.store import DEMO_NAME, ModelStore
from p2pnode.node.catalog import Catalog, KnownModel
from p2pnode.node.links import Links
from p2pnode.units import ContentId


class Known(Catalog):
    """A catalog that knows what the test says."""

    def __init__(self, models: list[KnownModel], default: str) -> None:
        super().__init__(
            cast(ModelStore, SimpleNamespace()),
            cast(Links, SimpleNamespace()),
            report=lambda _, error: None,
            default_name=lambda: default,
        )
        self._models = models

    def known(self) -> list[KnownModel]:
        return list(self._models)


def model(name: str, *, complete: bool = True) -> KnownModel:
    summary: dict[str, Any] = {}
    return KnownModel(name, ContentId(f"id-{name}"), summary, complete, complete)


@pytest.mark.parametrize(
    ("default", "expected"),
    [
        (DEMO_NAME, DEMO_NAME),
        ("story", "story"),
        ("id-story", "story"),
        ("elsewhere", "elsewhere"),  # chosen by name, though its bytes are on other devices
        ("gone", "big"),
    ],
)
def test_the_operators_default_comes_first(default: str, expected: str) -> None:
    models = [model("elsewhere", complete=False), model("big"), model(DEMO_NAME), model("story")]
    assert Known(models, default).resolve(None).name == expected


def test_without_any_model_the_error_says_how_to_add_one() -> None:
    with pytest.raises(ModelUnknown) as caught:
        Known([], DEMO_NAME).resolve(None)
    assert "p2pnode join --model" in (caught.value.hint or "")
