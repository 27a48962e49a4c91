"""How the API bears many chats at once: nothing lost or mixed, and how long /health takes meanwhile.

    python bench/api_streams.py [--streams 200] [--tokens 40] [--api HOST:PORT]

Without --api a fake node answers at once, so that only the HTTP side is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from p2pnode.api.app import create_app
from p2pnode.api.server import ApiServer
from p2pnode.config import parse_host_port
from tests.kit.fake_node import FakeNode


async def request(host: str, port: int, head: str, body: bytes = b"") -> tuple[bytes, float]:
    """The whole answer and the seconds until its first byte."""
    reader, writer = await asyncio.open_connection(host, port)
    begun = time.perf_counter()
    lines = [
        f"{head} HTTP/1.1",
        "Host: localhost",
        "Connection: close",
        f"Content-Length: {len(body)}",
        "",
        "",
    ]
    writer.write("\r\n".join(lines).encode() + body)
    first = await reader.read(1)
    waited = time.perf_counter() - begun
    rest = await reader.read()
    writer.close()
    return first + rest, waited


async def chat(host: str, port: int, number: int, tokens: int) -> tuple[bool, float]:
    """Whether one stream came whole and with nobody else's chunks, and the wait for its first byte."""
    message = {"role": "user", "content": f"number {number}"}
    body = {"stream": True, "max_tokens": tokens, "seed": number, "temperature": 0, "messages": [message]}
    raw, waited = await request(host, port, "POST /v1/chat/completions", json.dumps(body).encode())
    chunks = [json.loads(line[6:]) for line in raw.decode().splitlines() if line.startswith("data: {")]
    return b"[DONE]" in raw and len({chunk["id"] for chunk in chunks}) == 1, waited


async def watch(host: str, port: int, stop: asyncio.Event, waits: list[float]) -> None:
    while not stop.is_set():
        waits.append((await request(host, port, "GET /health"))[1])
        await asyncio.sleep(0.01)


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--api")
    options = parser.parse_args()
    closing = asyncio.Event()
    server = None
    if options.api:
        host, port = parse_host_port(options.api)
    else:
        server = ApiServer("127.0.0.1:0", closing)
        await server.start(create_app(FakeNode("word " * 200), closing=closing), await server.bind())
        host, port = server.host, server.port
    stop, waits = asyncio.Event(), []
    watcher = asyncio.ensure_future(watch(host, port, stop, waits))
    begun = time.perf_counter()
    results = await asyncio.gather(*(chat(host, port, n, options.tokens) for n in range(options.streams)))
    seconds = time.perf_counter() - begun
    stop.set()
    await watcher
    if server is not None:
        await server.stop()
    whole = sum(ok for ok, _ in results)
    report = {
        "streams": options.streams,
        "whole_and_unmixed": whole,
        "seconds": round(seconds, 2),
        "tokens_per_s": round(options.streams * options.tokens / seconds),
        "first_byte_p50_ms": round(statistics.median(wait for _, wait in results) * 1000, 1),
        "health_p99_ms": round(sorted(waits)[int(len(waits) * 0.99)] * 1000, 1),
        "health_asked": len(waits),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "command": " ".join(["python", *sys.argv]),
    }
    print(json.dumps(report, indent=1))
    return 0 if whole == options.streams else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
