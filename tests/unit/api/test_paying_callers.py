"""Whether a request is free is decided by the socket's address, whatever its headers say."""

from __future__ import annotations

from typing import Any

import pytest

from p2pnode.api.app import create_app
from p2pnode.api.security import ApiSecurity
from tests.kit.fake_node import FakeNode
from tests.unit.api.conftest import LoopbackClient

SPOOFED = {
    "X-Forwarded-For": "127.0.0.1",
    "X-Real-IP": "192.168.1.5",
    "Forwarded": "for=10.0.0.1",
    "Authorization": "Bearer admin-token",
    "Host": "203.0.113.1",
}
MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"model": "p2pnode-demo", "messages": MESSAGES}),
        ("/v1/completions", {"model": "p2pnode-demo", "prompt": "hello"}),
        ("/v1/responses", {"model": "p2pnode-demo", "input": "hello"}),
        ("/infer", {"model": "p2pnode-demo", "prompt": "hello"}),
    ],
)
async def test_the_node_is_told_the_address_of_the_socket(path: str, body: dict[str, Any]) -> None:
    node = FakeNode()
    app = create_app(node, ApiSecurity(host="0.0.0.0", admin_token="admin-token"))
    app.test_client_class = LoopbackClient
    response = await app.test_client().post(
        path, json=body, headers=SPOOFED, scope_base={"client": ("203.0.113.9", 4711)}
    )
    assert response.status_code == 200, await response.get_data()
    assert [request.address for request in node.requests] == ["203.0.113.9"]
