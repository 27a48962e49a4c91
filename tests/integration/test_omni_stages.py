"""`/omni/tensor-xfer/1` over real QUIC and a real engine: two stages one after the other are the whole model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from p2pnode import limits
from p2pnode.errors import RemoteProtocolError
from p2pnode.frame import pack_tokens
from p2pnode.node.core import Node
from p2pnode.node.omni import ask
from p2pnode.transport import messages
from p2pnode.transport.omni import Activation, Request
from p2pnode.transport.port import Connection
from tests.kit.net import quic, running
from tests.kit.node_here import become_member, node_here

F32 = 2
TOKENS = [5, 17, 99, 200, 31]


@asynccontextmanager
async def prepared(folder: Path) -> AsyncIterator[tuple[Node, Connection, int]]:
    """A node that holds the demo model whole (stage 9) and in two parts (0 and 1) for the test's peer."""
    head = quic("head")
    async with running(head), node_here(folder) as node:
        connection = await become_member(head, node, "head")
        model = node.catalog.resolve(None)
        layers = int(model.summary["layers"])
        for stage, first, end in ((9, 0, layers), (0, 0, layers // 2), (1, layers // 2, layers)):
            order: dict[str, Any] = {
                "plan_id": "omni", "stage": stage, "model": model.content_id, "model_name": model.name,
                "layer_first": first, "layer_end": end, "is_last": end == layers, "context_tokens": 256,
                "sessions": 2, "head": head.peer_id, "previous_peer": head.peer_id, "next_peer": head.peer_id,
                "next_stage": -1,
            }  # fmt: skip
            stream = await connection.open_stream("/p2pnode/control/1")
            await messages.send_message(stream, messages.Call(method="stage.prepare", arguments=order))
            while isinstance(answer := await messages.receive_message(stream), messages.Progress):
                pass
            assert isinstance(answer, messages.Answer), answer
        yield node, connection, int(answer.data["columns"])


def tokens(ids: list[int]) -> Activation:
    return Activation(len(ids), 1, F32, pack_tokens(ids))


async def test_two_stages_are_the_whole_model(tmp_path: Path) -> None:
    """Also when the second half of the rows comes in a request of its own, and in every number format."""
    async with prepared(tmp_path) as (node, connection, columns):
        whole = await ask(connection, Request("whole", 0, 0, 9, tokens(TOKENS)))
        assert (whole.seq_len, whole.hidden_dim) == (len(TOKENS), columns)
        parts = []
        for number, ids in enumerate((TOKENS[:3], TOKENS[3:])):
            middle = await ask(connection, Request("parts", number, 0, 0, tokens(ids)))
            parts.append((await ask(connection, Request("parts", number, 0, 1, middle))).data)
        np.testing.assert_allclose(
            np.frombuffer(b"".join(parts), "<f4"), np.frombuffer(whole.data, "<f4"), rtol=2e-3, atol=2e-3
        )
        for dtype, size in ((0, 2), (1, 2)):
            ids = Activation(len(TOKENS), 1, dtype, pack_tokens(TOKENS))
            small = await ask(connection, Request(f"dtype {dtype}", 0, 0, 9, ids))
            assert (small.dtype, len(small.data)) == (dtype, len(TOKENS) * columns * size)
        tally = node.hosting.tallies.get("omni", node.omni._next, node.hosting.stages["omni", 9].layers)
        assert tally is not None
        assert tally.rows == len(TOKENS)


async def test_what_cannot_be_is_not_accepted(tmp_path: Path) -> None:
    async with prepared(tmp_path) as (node, connection, columns):
        rows = Activation(1, columns, F32, bytes(columns * 4))
        for stage, activation, why in (
            (5, tokens([1]), "not_found"),
            (0, rows, "shape_mismatch"),
            (1, tokens([1]), "shape_mismatch"),
            (1, Activation(1, columns + 1, F32, bytes(columns * 4 + 4)), "shape_mismatch"),
            (1, Activation(1, columns, F32, b"\x00\x00\xc0\x7f" * columns), "shape_mismatch"),
            (0, tokens([2**31 - 1]), "shape_mismatch"),
            (0, tokens([1] * 300), "context_length_exceeded"),
        ):
            with pytest.raises(RemoteProtocolError, match=why):
                await ask(connection, Request("bad", 0, 0, stage, activation))
        for number in range(limits.OMNI_SESSIONS_PER_STAGE_MAX * 2):
            # More sessions than the engine has: the oldest make room.
            answer = await ask(connection, Request(f"s{number}", 0, 0, 0, tokens([number])))
            assert answer.seq_len == 1
        assert len(node.omni._sessions) == 2  # what the stage was prepared for


async def test_only_the_head_may_ask_its_stages(tmp_path: Path) -> None:
    other = quic("other")
    async with prepared(tmp_path) as (node, _, _), running(other):
        connection = await become_member(other, node, "other")
        with pytest.raises(RemoteProtocolError, match="not_found"):
            await ask(connection, Request("x", 0, 0, 0, tokens([1])))
