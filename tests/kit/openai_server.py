"""An OpenAI-compatible server on loopback, as llama-server and Ollama are; it can misbehave in many ways."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORDS = ["Once", " upon", " a", " time", " there", " was", " a", " server", "."]


class OpenAIServer(ThreadingHTTPServer):
    """Answers every question with WORDS; `fault` names what goes wrong."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(
        self, *, kind: str = "llamacpp", models: tuple[str, ...] = ("toy:1b",), key: str = ""
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.kind, self.models, self.key = kind, models, key
        self.fault = ""
        self.asked: list[dict[str, Any]] = []
        self.gate = threading.Event()
        """For the fault `slow`: the answer stops after two words until it is set."""
        self.gone = threading.Event()
        """Set when an asker hung up in the middle."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        self.gone.set()


class _Handler(BaseHTTPRequestHandler):
    server: OpenAIServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None: ...

    def _json(self, document: Any, status: int = 200) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refused(self) -> bool:
        if self.server.key and self.headers.get("Authorization") != f"Bearer {self.server.key}":
            self._json({"error": {"message": "Invalid API Key", "type": "authentication_error"}}, 401)
            return True
        return False

    def do_GET(self) -> None:
        server = self.server
        if self._refused():
            return
        if self.path == "/v1/models":
            rows = [{"id": name, "object": "model", "owned_by": server.kind} for name in server.models]
            if server.kind == "llamacpp":
                rows[0]["meta"] = {"n_ctx_train": 4096, "size": 1234}
            self._json({"object": "list", "data": rows})
        elif self.path == "/api/tags" and server.kind == "library":
            details = {"quantization_level": "Q4_K_M"}
            self._json({"models": [{"name": name, "size": 77, "details": details} for name in server.models]})
        else:
            self._json({"error": {"message": "File Not Found", "code": 404}}, 404)

    def do_POST(self) -> None:
        server = self.server
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self._refused():
            return
        server.asked.append({"path": self.path, **asked})
        match server.fault:
            case "busy":
                return self._json({"error": {"message": "Loading model", "code": 503}}, 503)
            case "context":
                words = "the request exceeds the available context size, try increasing it"
                return self._json({"error": {"message": words, "type": "exceed_context_size_error"}}, 400)
            case "crash":
                return self._json({"error": "llama runner process has terminated"}, 500)
            case "no http":
                self.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n")
                self.close_connection = True
                return None
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._stream(asked)
        return None

    def _stream(self, asked: dict[str, Any]) -> None:
        server, is_chat = self.server, self.path.endswith("/chat/completions")
        words = WORDS[: asked["max_tokens"]]
        if server.fault == "huge line":
            self._chunk(b"data: " + b"x" * 3_000_000)
        if server.fault == "no json":
            self._chunk(b"data: {nonsense\n\n")
        for number, word in enumerate(words):
            if number == 2 and server.fault == "dies":
                self.close_connection = True
                return
            if number == 2 and server.fault == "error inside":
                self._event({"error": {"message": "slot is gone"}})
                return
            if number == 2 and server.fault == "slow":
                server.gate.wait(30)
            piece = {"delta": {"content": word}} if is_chat else {"text": word}
            self._event({"choices": [{"index": 0, "finish_reason": None, **piece}]})
        reason = "length" if len(words) < len(WORDS) else "stop"
        if server.fault == "ends early":
            self._chunk(b"")
            return
        self._event({"choices": [{"index": 0, "finish_reason": reason, "delta": {}}]})
        usage = {
            "prompt_tokens": 21,
            "completion_tokens": len(words),
            "prompt_tokens_details": {"cached_tokens": 5},
        }
        if server.fault != "no usage":
            self._event({"choices": [], "usage": usage})
        self._chunk(b": a comment\n\n")
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _event(self, document: dict[str, Any]) -> None:
        self._chunk(b"data: " + json.dumps(document).encode() + b"\n\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n" % len(data) + data + b"\r\n")
        self.wfile.flush()


@contextmanager
def openai_server(**wish: Any) -> Iterator[OpenAIServer]:
    server = OpenAIServer(**wish)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.gate.set()
        server.shutdown()
        server.server_close()
        thread.join()
