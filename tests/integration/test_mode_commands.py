"""Modes by hand over HTTP: a binary forward step equals the ring's, sums are sums, and nonsense is refused."""

from __future__ import annotations

import http.client
from collections.abc import Iterator

import numpy as np
import pytest

from p2pnode.endpoint import NodeError
from p2pnode.frame import (
    HEADER_BYTES,
    DType,
    Frame,
    Kind,
    decode,
    decode_header,
    encode,
    pack_rows,
    pack_tokens,
    rows_f32,
)
from tests.kit.mesh import MeshOfProcesses, NodeProcess, mesh_of

DEMO = "p2pnode-demo"


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MeshOfProcesses]:
    with mesh_of(tmp_path_factory.mktemp("commands"), "alpha", "beta") as made:
        yield made


def post(node: NodeProcess, path: str, body: bytes) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(node.api.host, node.api.port, timeout=60)
    headers = {"Authorization": f"Bearer {node.api.token}", "Content-Type": "application/octet-stream"}
    connection.request("POST", path, body=body, headers=headers)
    response = connection.getresponse()
    answer = response.status, response.read()
    connection.close()
    return answer


def frame_of(raw: bytes) -> Frame:
    return decode(decode_header(raw[:HEADER_BYTES]), raw[HEADER_BYTES:])


def tokens(position: int, *ids: int) -> bytes:
    frame = Frame(Kind.TOKENS, DType.I32, len(ids), 1, 7, pack_tokens(list(ids)), position_first=position)
    return b"".join(encode(frame))


def test_forward_by_hand(mesh: MeshOfProcesses) -> None:
    """Rows come out of the stage a ring would use; the same frame again gives the same rows."""
    alpha, beta = mesh.nodes
    wish = {"model": DEMO, "mode": "pipeline", "devices": ["beta", "alpha"], "stages": 2, "apply": True}
    plan = alpha.api.post("/plan", wish)
    path = f"/pipeline/forward?plan_id={plan['plan_id']}&stage=0"
    status, raw = post(beta, path, tokens(0, 300, 301, 302))
    assert status == 200
    rows = rows_f32(frame_of(raw))
    assert rows.shape == (3, 256)
    assert np.isfinite(rows).all()
    assert np.array_equal(rows_f32(frame_of(post(beta, path, tokens(0, 300, 301, 302))[1])), rows)
    assert post(beta, path, b"no frame")[0] in (400, 502)
    assert post(beta, path, b"")[0] == 400
    assert post(beta, "/pipeline/forward?plan_id=none&stage=0", tokens(0, 1))[0] == 404
    assert alpha.api.post("/pipeline/clear", {"plan_id": plan["plan_id"]})["cleared"] == [plan["plan_id"]]
    assert alpha.infer(DEMO, "What is a mesh?", mode="pipeline")["text"]
    alpha.api.post("/command/release_plan", {"plan_id": plan["plan_id"]})


def test_all_reduce_by_hand(mesh: MeshOfProcesses) -> None:
    alpha = mesh.nodes[0]
    parts = [np.arange(8, dtype=np.float32).reshape(2, 4) * n for n in (1, 2, 3)]
    frames = [
        b"".join(encode(Frame(Kind.ROWS, DType.F32, 2, 4, 1, pack_rows(part, DType.F32)))) for part in parts
    ]
    status, raw = post(alpha, "/tensor/allreduce", b"".join(frames))
    assert status == 200
    assert np.array_equal(rows_f32(frame_of(raw)), sum(parts))
    other = b"".join(
        encode(Frame(Kind.ROWS, DType.F32, 1, 8, 1, pack_rows(parts[0].reshape(1, 8), DType.F32)))
    )
    assert post(alpha, "/tensor/allreduce", frames[0] + other)[0] == 400


def test_rpc_worker_by_hand(mesh: MeshOfProcesses) -> None:
    alpha = mesh.nodes[0]
    started = alpha.api.post("/tensor/rpc/start", {})
    assert started["endpoint"].startswith("127.0.0.1:")
    assert alpha.api.post("/tensor/rpc/start", {})["endpoint"] == started["endpoint"]
    assert alpha.api.post("/tensor/rpc/stop", {}) == {"stopped": True}
    assert alpha.api.post("/tensor/rpc/stop", {}) == {"stopped": False}
    with pytest.raises(NodeError, match="threads"):
        alpha.api.post("/tensor/rpc/start", {"threads": "many"})
