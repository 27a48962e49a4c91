"""Settings: each is documented, a mistyped one is refused, and so is a value that it cannot have."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from p2pnode.errors import P2PNodeError, RequestError
from p2pnode.node.settings import check

DOCS = (Path(__file__).parents[3] / "docs" / "settings.md").read_text()
DOCUMENTED = re.findall(r"^\| `([a-z_.]+)` \|", DOCS.split("## Engine options")[0], re.MULTILINE)


def test_every_documented_setting_is_one_and_no_other() -> None:
    with pytest.raises(RequestError) as refused:
        check("nothing", "")
    told = refused.value.hint.removeprefix("there are ").split(" and ")[0].split(", ")
    assert sorted(told) == sorted(DOCUMENTED)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("auto.lood", "on", "did you mean auto.load"),
        ("models.quota", "1MB", "there is no setting 'models.quota'"),
        ("auto.load", "yes", "auto.load is one of on, off, not 'yes'"),
        ("backends.discover", "", "backends.discover is one of on, off"),
        ("plan.battery", "sometimes", "plan.battery is one of avoid, use, never"),
        ("cache.prefix", "plenty", "plenty"),
        ("", "on", "there is no setting ''"),
    ],
)
def test_what_is_refused(key: str, value: str, words: str) -> None:
    with pytest.raises(P2PNodeError) as refused:
        check(key, value)
    assert words in refused.value.message


@pytest.mark.parametrize(
    ("key", "value"),
    [("auto.load", "on"), ("model.default", "tiny"), ("engine.tiny", "kv=q8_0"), ("cache.prefix", "64M")],
)
def test_what_is_taken(key: str, value: str) -> None:
    check(key, value)
