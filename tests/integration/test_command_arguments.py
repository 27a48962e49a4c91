"""Arguments of commands that cannot be: each is named, none is a bug's answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from p2pnode.errors import P2PNodeError, RequestError
from p2pnode.node.faces import Faces
from tests.kit.node_here import node_here

TOP_UP = {"account": "local", "amount_microunits": 5, "idempotency_key": "k"}
QUOTA = {"account": "local", "limit_microunits": 5, "period_ms": 1000}
ODD: list[Any] = ["abc", "", None, [], {}, 1.5, True, 2**70, "9" * 30]


async def test_whole_numbers(tmp_path: Path) -> None:
    async with node_here(tmp_path / "node") as node:
        faces = Faces(node)
        for odd in ODD:
            with pytest.raises(P2PNodeError, match="amount_microunits"):
                await faces.command("topup", {**TOP_UP, "amount_microunits": odd})
            with pytest.raises(P2PNodeError, match="period_ms"):
                await faces.command("quota", {**QUOTA, "period_ms": odd})
        for name, given in (("topup", TOP_UP), ("quota", QUOTA)):
            for missing in given:
                if (name, missing) == ("quota", "limit_microunits"):
                    continue  # that lifts the quota
                with pytest.raises(P2PNodeError, match=missing):
                    await faces.command(name, {k: v for k, v in given.items() if k != missing})
        assert (await faces.command("topup", {**TOP_UP, "amount_microunits": "7"})) is not None


async def test_every_command_bears_anything(tmp_path: Path) -> None:
    """Whatever is sent, the answer is a document or a condition."""
    async with node_here(tmp_path / "node") as node:
        faces = Faces(node)
        keys = (
            "model",
            "device",
            "peer",
            "plan_id",
            "key",
            "value",
            "subject",
            "invite_id",
            "account",
            "frame",
            "stage",
        )
        for name in sorted(faces._commands):
            for odd in (None, "", "x", 7, [1], {"a": 1}):
                try:
                    answer = await faces.command(name, dict.fromkeys(keys, odd))
                except P2PNodeError:
                    continue
                assert isinstance(answer, dict)
            await faces.command("resume", {})
        assert faces.health()["status"] == "ok"


async def test_frames_that_are_none(tmp_path: Path) -> None:
    """What a caller sends is the caller's fault, not another device's."""
    async with node_here(tmp_path / "node") as node:
        faces = Faces(node)
        for name in ("pipeline_forward", "tensor_allreduce"):
            for raw in (b"x", b"x" * 64, b"P2PF" + b"\x00" * 200, b"P2PF" * 100):
                with pytest.raises(RequestError):
                    await faces.command(name, {"frame": raw})
