"""The first chat with a model that another device announced a moment ago is written in that model's own format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from p2pnode.api.conversation import chat_prompt
from p2pnode.api.schemas import Message
from p2pnode.node.faces import Faces
from p2pnode.node.presence import Presence
from tests.kit.net import until
from tests.kit.node_here import node_here

DEMO = "p2pnode-demo"


async def test_the_format_is_asked_for_when_only_the_announcement_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its manifest comes by itself soon; who asks sooner waits for it, and guesses no format."""

    async def later(*_: Any) -> None: ...

    async with node_here(tmp_path / "alpha") as alpha:
        ticket = (await alpha.mesh.invite(uses=1, expires_s=600, role="worker", label=""))["ticket"]
        monkeypatch.setattr(Presence, "_learn_model", later)
        async with node_here(tmp_path / "beta", "beta", ticket=ticket) as beta:
            await until(lambda: any(model.name == DEMO for model in beta.catalog.known()))
            (model,) = beta.catalog.known()
            assert not model.is_local
            said = [Message("user", "What is a mesh?")]
            there = await chat_prompt(Faces(alpha), DEMO, said)
            assert "What is a mesh?" in there.text
            assert there.text != "What is a mesh?"
            assert await chat_prompt(Faces(beta), DEMO, said) == there
