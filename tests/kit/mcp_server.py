"""A small tool server for tests, on the standard library: `python mcp_server.py stdio` or `http`.

Tools: echo, fail (says so itself), refuse (a JSON-RPC error), slow (never answers), big, noise (prints words that
are no message first), ping (asks the client something before it answers), exit (the process ends), environment.
"""

from __future__ import annotations

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOOLS = ("echo", "fail", "refuse", "slow", "big", "noise", "ping", "exit", "environment")
SCHEMA = {"type": "object", "properties": {"text": {"type": "string"}}}


def text(words: str, **more: Any) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": words}], **more}


def call(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    match name:
        case "echo":
            picture = {"type": "image", "data": "AAAA", "mimeType": "image/png"}
            return {"content": [{"type": "text", "text": f"echo: {arguments.get('text')}"}, picture]}
        case "fail":
            return text("the disk is on fire", isError=True)
        case "big":
            return text("x" * 100_000)
        case "environment":
            return text(json.dumps(sorted(os.environ)))
    return text(name)


def answer(message: dict[str, Any]) -> dict[str, Any] | None:
    """The response to a message; None for notifications and for what is never answered."""
    if "id" not in message:
        return None
    method, params = message["method"], message.get("params", {})
    head = {"jsonrpc": "2.0", "id": message["id"]}
    if method == "initialize":
        result: dict[str, Any] = {
            "protocolVersion": params["protocolVersion"],
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "kit", "version": "1"},
        }
    elif method == "tools/list":
        first = int(params.get("cursor", 0))
        rows = [
            {"name": name, "description": f"does {name}", "inputSchema": SCHEMA}
            for name in TOOLS[first : first + 5]
        ]
        result = {"tools": rows} | ({"nextCursor": str(first + 5)} if first + 5 < len(TOOLS) else {})
    elif method == "tools/call" and params["name"] == "slow":
        return None
    elif method == "tools/call" and params["name"] in TOOLS and params["name"] != "refuse":
        result = call(params["name"], params["arguments"])
    else:
        return {**head, "error": {"code": -32602, "message": "no such tool"}}
    return {**head, "result": result}


def stdio() -> None:
    for line in sys.stdin:
        message = json.loads(line)
        name = message.get("params", {}).get("name")
        if name == "exit":
            print("the last words", file=sys.stderr, flush=True)
            os._exit(3)
        if name == "noise":
            print("starting up ... (no message)", flush=True)
        if name == "ping":
            print(json.dumps({"jsonrpc": "2.0", "id": "p1", "method": "ping"}), flush=True)
            pong = json.loads(sys.stdin.readline())
            assert pong == {"jsonrpc": "2.0", "id": "p1", "result": {}}, pong
        if name == "flood":
            sys.stdout.write("x" * 9_000_000)
        response = answer(message)
        if response is not None:
            print(json.dumps(response), flush=True)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        is_first = message["method"] == "initialize"
        if not is_first and (
            self.headers.get("Mcp-Session-Id") != "s1"
            or self.headers.get("MCP-Protocol-Version") != "2025-06-18"
        ):
            self.send(400, b"", "text/plain")
            return
        response = answer(message)
        if response is None:
            self.send(202, b"", "application/json")
        elif message["method"] == "tools/call":  # as events, with a notification before the response
            news = {"jsonrpc": "2.0", "method": "notifications/progress", "params": {}}
            body = "".join(f"event: message\ndata: {json.dumps(item)}\n\n" for item in (news, response))
            self.send(200, body.encode(), "text/event-stream")
        else:
            self.send(200, json.dumps(response).encode(), "application/json", first=is_first)

    def send(self, status: int, body: bytes, kind: str, *, first: bool = False) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if first:
            self.send_header("Mcp-Session-Id", "s1")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Tests read stdout."""


if __name__ == "__main__":
    if sys.argv[1] == "stdio":
        stdio()
    else:
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        print(server.server_address[1], flush=True)
        server.serve_forever()
