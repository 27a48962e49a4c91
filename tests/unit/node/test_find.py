"""Looking for what a number is made of, from the newest entry back."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pnode import limits
from p2pnode.errors import RequestError
from tests.kit.recorded_node import RecordedNode


async def test_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By words, by type, by both; a search that did not look at everything says where it goes on."""
    node = RecordedNode()
    async with node.recording(tmp_path):
        ask = node.queries.ask
        size = ask("size", {})["size"]
        found = ask("find", {"words": "model-7"})
        # Setting 8 names it as what was before.
        assert [entry["data"]["value"] for entry in found["entries"]] == ["model-8", "model-7"]
        assert found["before"] == 0
        found = ask("find", {"type": "SettingChanged", "limit": 5})
        assert [entry["data"]["value"] for entry in found["entries"]] == [
            f"model-{n}" for n in range(11, 6, -1)
        ]
        rest = ask("find", {"type": "SettingChanged", "before": found["before"]})
        assert [entry["data"]["value"] for entry in rest["entries"]] == [
            f"model-{n}" for n in range(6, -1, -1)
        ]
        assert ask("find", {"words": "model-7", "type": "NodeStarted"})["entries"] == []
        monkeypatch.setattr(limits, "LOG_FIND_EVENTS_MAX", 4)
        monkeypatch.setattr(limits, "LOG_READ_EVENTS_MAX", 3)
        before, entries = size, []
        while before:
            answer = ask("find", {"words": "model-0", "before": before, "limit": 2})
            assert before - answer["before"] <= 4
            before = answer["before"]
            entries += answer["entries"]
        assert [entry["data"]["value"] for entry in entries] == ["model-1", "model-0"]
        for wrong in ({"before": size + 1}, {"limit": 0}, {"before": "x"}):
            with pytest.raises(RequestError):
                ask("find", wrong)
