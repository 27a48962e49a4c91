"""A Hugging Face hub on loopback: listing, resolve with redirects and checksums, ranges; it can misbehave."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

REPO = "maker/toy-GGUF"
COMMIT = "c" * 40


class HubServer(ThreadingHTTPServer):
    """Files of one repository; `faults` names what goes wrong."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files
        self.faults: set[str] = set()
        self.ranges: list[str | None] = []
        """The Range header of every request for content."""
        self.bytes_sent = 0
        self.cut_after: int | None = None
        """Close the connection after so many bytes, once."""
        self.small: set[str] = set()
        """Files that are not in large file storage: their ETag is a git blob id."""

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def checksum(self, path: str) -> str:
        data = self.files[path]
        if path in self.small:
            return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        return hashlib.sha256(data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""

    def do_HEAD(self) -> None:
        self._route()

    def do_GET(self) -> None:
        self._route()

    def _route(self) -> None:
        path = self.path.split("?")[0]
        if "down" in self.server.faults:
            self._answer(503, b"down")
        elif re.fullmatch(rf"/api/models/{REPO}/revision/[^/]+", path):
            self._listing()
        elif match := re.fullmatch(rf"/{REPO}/resolve/{COMMIT}/(.+)", path):
            self._resolve(match[1])
        elif match := re.fullmatch(r"/cdn/(.+)", path):
            self._content(match[1])
        elif "gated" in self.server.faults:
            self._answer(403, b"", {"X-Error-Code": "GatedRepo"})
        else:
            self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})

    def _listing(self) -> None:
        if "gated" in self.server.faults:
            self._answer(403, b"", {"X-Error-Code": "GatedRepo"})
            return
        siblings: list[dict[str, Any]] = [
            {"rfilename": path, "size": len(data)} for path, data in self.server.files.items()
        ]
        if "checksums listed" in self.server.faults:
            for entry in siblings:
                path = str(entry["rfilename"])
                entry["lfs"] = {
                    "sha256": self.server.checksum(path),
                    "size": entry["size"],
                    "pointerSize": 134,
                }
        if "sizes" in self.server.faults:
            siblings = [{**s, "size": s["size"] + 1} for s in siblings]
        body = {
            "id": REPO,
            "modelId": REPO,
            "sha": COMMIT,
            "siblings": siblings,
            "private": False,
            "downloads": 0,
            "tags": [],
        }
        self._answer(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _resolve(self, path: str) -> None:
        if path not in self.server.files:
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        headers = {
            "X-Repo-Commit": COMMIT,
            "X-Linked-Size": str(len(self.server.files[path])),
            # Another host name, as with a real content network: the library must not follow it with its token.
            "Location": f"http://localhost:{self.server.server_address[1]}/cdn/{path}",
        }
        etag = "none" if "no checksum" in self.server.faults else self.server.checksum(path)
        if "other checksum" in self.server.faults:
            etag = "0" * 64
        self._answer(302, b"", {**headers, "X-Linked-Etag": f'"{etag}"', "ETag": f'"{etag}"'})

    def _content(self, path: str) -> None:
        data = self.server.files[path]
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        if "bad bytes" in self.server.faults:
            data = bytes(len(data))
        if "endless" in self.server.faults:
            data = data + bytes(100_000)
        status, headers = 200, {"Accept-Ranges": "bytes"}
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", asked or "")
        if match and "no ranges" not in self.server.faults:
            first = int(match[1])
            end = int(match[2]) + 1 if match[2] else len(data)
            headers["Content-Range"] = f"bytes {first}-{end - 1}/{len(data)}"
            status, data = 206, data[first:end]
            if "short range" in self.server.faults:
                data = data[:-1]
            if "long range" in self.server.faults:
                data = data + b"xx"
        self._answer(status, data, headers)

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = None
        if len(body) > 10_000:
            cut, self.server.cut_after = self.server.cut_after, None
        sent = body if cut is None else body[:cut]
        self.wfile.write(sent)
        self.server.bytes_sent += len(sent)
        if cut is not None:
            self.close_connection = True


@contextmanager
def hub_server(files: dict[str, bytes]) -> Iterator[HubServer]:
    """Up while inside."""
    server = HubServer(files)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
