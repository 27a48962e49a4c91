"""A fake node and its application for every test of the API."""

from __future__ import annotations

import pytest
from quart import Quart
from quart.testing import QuartClient
from quart.typing import TestClientProtocol

from p2pnode.api.app import create_app
from p2pnode.api.security import ApiSecurity
from tests.kit.fake_node import FakeNode


class LoopbackClient(QuartClient):
    """Quart's test client as a program on this machine: loopback address, proper Host."""

    async def open(self, path, *, headers=None, scope_base=None, **kwargs):  # type: ignore[no-untyped-def]
        headers = dict(headers or {})
        headers.setdefault("Host", "127.0.0.1:9480")
        scope_base = {"client": ("127.0.0.1", 50_000), **(scope_base or {})}
        return await super().open(path, headers=headers, scope_base=scope_base, **kwargs)


@pytest.fixture
def node() -> FakeNode:
    return FakeNode()


@pytest.fixture
def security() -> ApiSecurity:
    return ApiSecurity(admin_token="admin-token")


@pytest.fixture
def app(node: FakeNode, security: ApiSecurity) -> Quart:
    return create_app(node, security)


@pytest.fixture
def client(app: Quart) -> TestClientProtocol:
    app.test_client_class = LoopbackClient
    return app.test_client()
