"""How the API bears many chats at once: nothing lost or mixed, and how long /health takes meanwhile.

    python bench/api_streams.py [--streams 200] [--tokens 40] [--out FILE] [--api HOST:PORT]

Twice: with a node that answers at once, so that only the HTTP side is measured, and with a node process that computes
the demo model. There each answer is made to begin with its own number by a grammar, so a mixed one is seen.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.nodes import Node
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


async def chat(host: str, port: int, number: int, tokens: int, *, computed: bool) -> tuple[bool, int, float]:
    """Whether one stream came whole and with nobody else's words, its tokens, and the wait for its first byte."""
    message = {"role": "user", "content": f"Tell me story number {number}."}
    body = {
        "stream": True, "stream_options": {"include_usage": True}, "max_tokens": tokens, "seed": number,
        "temperature": 0, "messages": [message],
        **({"grammar": f'root ::= "{number}: " [a-z ]+'} if computed else {}),
    }  # fmt: skip
    raw, waited = await request(host, port, "POST /v1/chat/completions", json.dumps(body).encode())
    chunks = [json.loads(line[6:]) for line in raw.decode().splitlines() if line.startswith("data: {")]
    text = "".join(
        choice["delta"].get("content") or "" for chunk in chunks for choice in chunk.get("choices", [])
    )
    whole = b"data: [DONE]" in raw and len({chunk["id"] for chunk in chunks}) == 1
    counted = chunks[-1].get("usage", {}).get("completion_tokens", 0) if whole else 0
    return whole and (not computed or text.startswith(f"{number}: ")), counted, waited


async def watch(host: str, port: int, stop: asyncio.Event, waits: list[float]) -> None:
    while not stop.is_set():
        waits.append((await request(host, port, "GET /health"))[1])
        await asyncio.sleep(0.01)


async def measure(host: str, port: int, options: argparse.Namespace, *, computed: bool) -> dict[str, Any]:
    await chat(host, port, 0, options.tokens, computed=computed)  # the model is in memory from here on
    stop, waits = asyncio.Event(), []
    watcher = asyncio.ensure_future(watch(host, port, stop, waits))
    begun = time.perf_counter()
    chats = [chat(host, port, n, options.tokens, computed=computed) for n in range(options.streams)]
    results = await asyncio.gather(*chats)
    seconds = time.perf_counter() - begun
    stop.set()
    await watcher
    waits.sort()
    return {
        "streams": options.streams,
        "whole_and_unmixed": sum(ok for ok, _, _ in results),
        "seconds": round(seconds, 2),
        "tokens_per_s": round(sum(tokens for _, tokens, _ in results) / seconds),
        "first_byte_p50_ms": round(statistics.median(wait for _, _, wait in results) * 1000, 1),
        "health_p50_ms": round(statistics.median(waits) * 1000, 1),
        "health_p99_ms": round(waits[int(len(waits) * 0.99)] * 1000, 1),
        "health_asked": len(waits),
    }


async def http_alone(options: argparse.Namespace) -> dict[str, Any]:
    closing = asyncio.Event()
    server = ApiServer("127.0.0.1:0", closing)
    await server.start(create_app(FakeNode("word " * 200), closing=closing), await server.bind())
    try:
        return await measure(server.host, server.port, options, computed=False)
    finally:
        await server.stop()


def demo_model(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="p2pnode-bench-") as folder:
        node = Node(Path(folder), "alpha", threads=options.threads)
        try:
            host, port = parse_host_port(node.api.url)
            return asyncio.run(measure(host, port, options, computed=True))
        finally:
            node.stop()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1, help="of the node that computes the demo model")
    parser.add_argument("--api", help="measure this running node instead")
    parser.add_argument("--out", type=Path, help="keep the report there")
    options = parser.parse_args()
    if options.api:
        host, port = parse_host_port(options.api)
        parts = {"given_node": asyncio.run(measure(host, port, options, computed=True))}
    else:
        parts = {"http_alone": asyncio.run(http_alone(options)), "demo_model": demo_model(options)}
    report = {
        **parts,
        "tokens_each": options.tokens,
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "command": " ".join(["python", *sys.argv]),
    }
    text = json.dumps(report, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")
    return 0 if all(part["whole_and_unmixed"] == options.streams for part in parts.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
