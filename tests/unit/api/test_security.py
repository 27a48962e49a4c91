"""Who may ask: Host, origin, keys, scopes, rate."""

from __future__ import annotations

from pathlib import Path

import pytest
from werkzeug.datastructures import Headers

from p2pnode.api.app import create_app
from p2pnode.api.keys import FileKeys, MemoryKeys
from p2pnode.api.security import ApiSecurity, RateLimiter, host_name, is_loopback
from p2pnode.errors import (
    ConfigError,
    DataDirError,
    Forbidden,
    NotFound,
    RateLimited,
    RequestError,
    Unauthorized,
)
from tests.kit.fake_node import FakeNode
from tests.unit.api.conftest import LoopbackClient


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:9480", "", "192.168.1.5", "localhost.evil.example"]
)
async def test_wrong_host(client, host: str) -> None:
    """A DNS-rebinding page's Host is refused on loopback."""
    response = await client.get("/status", headers={"Host": host})
    assert response.status_code == 403


@pytest.mark.parametrize("host", ["localhost:9480", "127.0.0.1", "[::1]:9480", "LOCALHOST"])
async def test_right_host(client, host: str) -> None:
    """Loopback's own names are always answered."""
    assert (await client.get("/status", headers={"Host": host})).status_code == 200


def test_host_of_a_network_address() -> None:
    """Bound to the network, IP literals are answered and names only when allowed."""
    security = ApiSecurity(host="0.0.0.0", allowed_hosts=frozenset({"studio.local"}))
    security.check_host("192.168.1.5:9480")
    security.check_host("studio.local:9480")
    with pytest.raises(Forbidden):
        security.check_host("rebind.example")


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1234"},
        {"Origin": "http://[broken"},
    ],
)
async def test_foreign_pages(client, headers: dict[str, str]) -> None:
    """A page of another origin can do nothing, read or write."""
    assert (await client.post("/invites", json={}, headers=headers)).status_code == 403
    assert (await client.get("/peers", headers=headers)).status_code == 403


async def test_own_page_and_programs(client) -> None:
    """The panel itself, and programs that are no browser, are answered."""
    for headers in ({"Sec-Fetch-Site": "same-origin"}, {"Origin": "http://127.0.0.1:9480"}, {}):
        assert (await client.post("/invites", json={}, headers=headers)).status_code == 201


async def test_link_to_the_panel(client) -> None:
    """A link on another page may open the panel, not an API address."""
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert (await client.get("/", headers=headers)).status_code == 200
    assert (await client.get("/peers", headers=headers)).status_code == 403


async def test_network_needs_a_key() -> None:
    """Off loopback nothing but health and the panel's files answers without a key."""
    keys = MemoryKeys()
    _, use = keys.create("app", "use", 1)
    _, admin = keys.create("ops", "admin", 2)
    security = ApiSecurity(host="0.0.0.0", admin_token="node-token", keys=keys)
    app = create_app(FakeNode(), security)
    app.test_client_class = LoopbackClient
    client = app.test_client()
    assert (await client.get("/health")).status_code == 200
    assert (await client.get("/web/app.js")).status_code == 200
    refused = await client.get("/v1/models")
    assert refused.status_code == 401
    assert "keys create" in (await refused.get_json())["error"]["hint"]

    async def status(method: str, path: str, secret: str) -> int:
        response = await client.open(
            path, method=method, headers={"Authorization": f"Bearer {secret}"}, json={}
        )
        return response.status_code

    assert await status("GET", "/v1/models", use) == 200
    assert await status("POST", "/invites", use) == 403
    assert await status("POST", "/invites", admin) == 201
    assert await status("POST", "/invites", "node-token") == 201
    assert await status("GET", "/v1/models", "p2pk-wrong") == 401
    keys.revoke(keys.list()[0].key_id, 3)
    assert await status("GET", "/v1/models", use) == 401


async def test_placeholder_key_on_loopback(client) -> None:
    """OpenAI's clients must send some key: on loopback any word will do."""
    assert (await client.get("/v1/models", headers={"Authorization": "Bearer none"})).status_code == 200


async def test_a_use_key_is_weaker_than_loopback(client, security: ApiSecurity) -> None:
    """Whoever shows a key has that key's rights, also on loopback."""
    _, secret = security.keys.create("", "use", 1)
    response = await client.post("/invites", json={}, headers={"Authorization": f"Bearer {secret}"})
    assert response.status_code == 403


def test_key_account_and_rate() -> None:
    """A key pays from its own account and may ask so often a minute."""
    keys = MemoryKeys()
    key, secret = keys.create("app", "use", 1)
    security = ApiSecurity(keys=keys, limiter=RateLimiter(per_minute=2))
    caller = security.authenticate(f"Bearer {secret}", "127.0.0.1", 0.0)
    assert caller is not None
    assert caller.account == f"key:{key.key_id}"
    security.authenticate(f"Bearer {secret}", "127.0.0.1", 0.0)
    with pytest.raises(RateLimited) as caught:
        security.authenticate(f"Bearer {secret}", "127.0.0.1", 0.0)
    assert caught.value.details["retry_after_s"] == pytest.approx(30.0)
    security.authenticate(f"Bearer {secret}", "127.0.0.1", 31.0)
    assert security.authenticate("", "10.0.0.9", 0.0) is None
    with pytest.raises(Unauthorized):
        security.authenticate("Bearer x", "10.0.0.9", 0.0)
    with pytest.raises(Unauthorized):
        ApiSecurity(host="0.0.0.0").authenticate("Basic x", "127.0.0.1", 0.0)


def test_key_file(tmp_path: Path) -> None:
    """Keys survive in a file that holds no secret and that only its owner reads."""
    path = tmp_path / "api_keys.json"
    key, secret = FileKeys(path).create("app", "use", 1)
    assert secret not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    again = FileKeys(path)
    assert again.find(secret) == key
    assert "digest" not in key.public()
    again.revoke(key.key_id, 2)
    assert again.revoke(key.key_id, 3).revoked_ms == 2
    assert FileKeys(path).find(secret) is None
    with pytest.raises(NotFound):
        again.revoke("nothing", 1)
    with pytest.raises(RequestError):
        again.create("bad\nlabel", "use", 1)
    path.write_text("{]")
    with pytest.raises(ConfigError):
        FileKeys(path)
    with pytest.raises(DataDirError):
        FileKeys(tmp_path / "nowhere" / "keys.json").create("", "use", 1)


def test_host_names() -> None:
    """Ports and brackets are no part of a name."""
    assert host_name("[::1]:80") == "::1"
    assert host_name("::1") == "::1"
    assert host_name("A.b:80") == "a.b"
    assert is_loopback("127.8.9.1")
    assert not is_loopback("example.org")
    ApiSecurity().check_origin(Headers({"Sec-Fetch-Site": "none"}), navigable=False)


async def test_key_routes(client) -> None:
    """Keys are made, listed without secrets, and revoked over HTTP."""
    made = await (await client.post("/keys", json={"label": "app"})).get_json()
    assert made["key"].startswith("p2pk-")
    listed = await (await client.get("/keys")).get_json()
    assert listed["keys"][0]["key_id"] == made["key_id"]
    assert "key" not in listed["keys"][0]
    revoked = await (await client.delete(f"/keys/{made['key_id']}")).get_json()
    assert revoked["revoked_ms"] is not None
    assert (await client.delete("/keys/nothing")).status_code == 404


async def test_policy_headers(client) -> None:
    """Every answer carries the strict policy, errors too."""
    for path in ("/", "/health", "/nothing"):
        response = await client.get(path)
        assert "script-src 'self'" in response.headers["Content-Security-Policy"]
        assert response.headers["X-Content-Type-Options"] == "nosniff"
