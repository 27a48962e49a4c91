"""Requests that mean harm: always a clear 4xx, never a 500, and the server lives."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.api.app import create_app
from p2pnode.api.openapi import BODIES, SUMMARIES, document, routes_of
from p2pnode.api.server import ApiServer
from p2pnode.limits import API_BODY_BYTES_MAX
from tests.kit.fake_node import FakeNode
from tests.unit.api.conftest import LoopbackClient

PATHS = sorted(BODIES)


@pytest.fixture
async def server() -> AsyncIterator[ApiServer]:
    closing = asyncio.Event()
    server = ApiServer("127.0.0.1:0", closing)
    app = create_app(FakeNode(), closing=closing)
    app.config["BODY_TIMEOUT"] = 0.3
    await server.start(app, await server.bind())
    yield server
    await server.stop()


async def exchange(server: ApiServer, *parts: bytes, pause_s: float = 0.0) -> bytes:
    """Send parts one after the other and read what comes until the end of the first answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    answer = asyncio.ensure_future(reader.read(65_536))
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
            if (await asyncio.wait({answer}, timeout=pause_s))[0]:
                break
        return await asyncio.wait_for(answer, 5)
    except (ConnectionResetError, BrokenPipeError):
        return b""
    finally:
        answer.cancel()
        await asyncio.wait({answer})
        writer.close()


async def lives(server: ApiServer) -> bool:
    answer = await exchange(server, b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    return b" 200 " in answer.split(b"\r\n", 1)[0]


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


async def test_huge_content_length(server: ApiServer) -> None:
    """Ten gigabytes by Content-Length are refused before a byte is read."""
    answer = await exchange(server, HEAD + b"Content-Length: 10737418240\r\n\r\n{")
    assert b" 413 " in answer.split(b"\r\n", 1)[0]
    assert b"body_too_large" in answer
    assert await lives(server)


async def test_huge_chunked_body(server: ApiServer) -> None:
    """A chunked body that never ends is refused once it passes the limit."""
    chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
    parts = [HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * (API_BODY_BYTES_MAX // 0x100000 + 2)]
    answer = await exchange(server, *parts)
    assert answer == b"" or b" 413 " in answer.split(b"\r\n", 1)[0]
    assert await lives(server)


async def test_dripping_body(server: ApiServer) -> None:
    """A body that drips ends with 408."""
    parts = [HEAD + b"Content-Length: 1000\r\n\r\n", *[b" "] * 8]
    answer = await exchange(server, *parts, pause_s=0.06)
    assert b" 408 " in answer.split(b"\r\n", 1)[0]
    assert await lives(server)


@pytest.mark.parametrize(
    "raw",
    [
        b"\x00\x01\x02garbage\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
        + b"".join(b"X%d: y\r\n" % n for n in range(9000))
        + b"\r\n",
        b"POST /infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"GET /%ff%fe HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /log/../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /web/..%2f..%2fpyproject.toml HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /web/%2e%2e/pyproject.toml HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /web//etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /web/\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /web/%00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
)
async def test_broken_requests(server: ApiServer, raw: bytes) -> None:
    """Bytes that are no honest request get a 4xx or a closed connection."""
    status = (await exchange(server, raw)).split(b"\r\n", 1)[0]
    assert status == b"" or b" 4" in status, status
    assert await lives(server)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "raw",
    [
        b"\xff\xfe{}",
        b"[" * 100_000,
        b'{"messages":' * 50_000,
        b"null",
        b"[]",
        b'"text"',
        b"{",
        b'{"model": "\\ud800"}',
        b'{"temperature": 1e999}',
        b'{"temperature": NaN}',
        b'{"max_tokens": 99999999999999999999999999}',
        b'{"prompt": [[[[1]]]]}',
        b'{"prompt": [-1]}',
        b'{"prompt": [99999999999999]}',
        b'{"input": [true]}',
        b'{"messages": [{"role": "user", "content": [null]}]}',
        b'{"messages": [{"role": "user", "content": [{"type": "text", "text": {}}]}]}',
    ],
)
async def test_wrong_bodies(client, path: str, raw: bytes) -> None:
    """A body that is no request of this address is a 4xx in the envelope."""
    response = await client.post(path, data=raw)
    assert 400 <= response.status_code < 500 or response.status_code in (200, 201), response.status_code
    if response.status_code >= 400:
        error = (await response.get_json())["error"]
        assert error if path.startswith("/api/") else error["message"]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


def field_names(path: str) -> st.SearchStrategy[str]:
    return st.sampled_from(BODIES[path].__struct_fields__) | st.text(max_size=8)


bodies = st.sampled_from(PATHS).flatmap(
    lambda path: st.tuples(st.just(path), st.dictionaries(field_names(path), values, max_size=6))
)


@pytest.fixture(scope="module")
def post() -> Iterator[Callable[[str, bytes], int]]:
    """One application for many questions: to make it takes much longer than to ask it."""
    app = create_app(FakeNode())
    app.test_client_class = LoopbackClient

    async def ask(path: str, body: bytes) -> int:
        response = await app.test_client().post(path, data=body)
        await response.get_data()
        return response.status_code

    with asyncio.Runner() as runner:
        yield lambda path, body: runner.run(ask(path, body))


@settings(max_examples=300, deadline=None)
@given(made=bodies)
def test_random_bodies(post: Callable[[str, bytes], int], made: tuple[str, dict]) -> None:
    """Random values under real field names never make a 500."""
    path, body = made
    assert post(path, json.dumps(body).encode()) < 500


async def test_methods_and_addresses(client) -> None:
    """Unknown addresses and wrong methods are in the envelope too."""
    assert (await client.get("/nothing")).status_code == 404
    wrong = await client.get("/v1/chat/completions")
    assert wrong.status_code == 405
    assert (await wrong.get_json())["error"]["code"] == "method_not_allowed"
    assert (await client.post("/command/unknown", json={})).status_code == 400
    assert (await client.get("/log/nonsense")).status_code == 404
    assert (await client.get("/api/live", headers={"Last-Event-ID": "x"})).status_code == 400


async def test_openapi(client, app) -> None:
    """The served document names every route, and every reference in it leads somewhere."""
    served = await (await client.get("/openapi.json")).get_json()
    assert served == json.loads(json.dumps(document(app)))
    assert {f"{method} {rule}" for method, rule in routes_of(app)} == set(SUMMARIES)
    known = set(served["components"]["schemas"])
    text = json.dumps(served)
    for part in text.split('"#/components/schemas/')[1:]:
        assert part.split('"')[0] in known
