"""How programs on this machine reach a running node: node.json in its data folder, or an address."""

from __future__ import annotations

import http.client
import json
import os
import socket
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from p2pnode.config import default_data_dir, parse_host_port
from p2pnode.errors import NodeNotRunning, P2PNodeError, RequestError

NODE_FILE = "node.json"
_CONNECT_TIMEOUT_S = 5.0
_READ_BYTES = 64 * 1024
_RETRY_S_MAX = 5.0
"""Asking again is cheap on one machine, and the node waits too before it answers."""
_ANSWER_TIMEOUT_S = 900.0
"""A long answer on a slow machine, not streamed, takes minutes."""


class NodeError(P2PNodeError):
    """An error the node answered with, under the code it gave."""

    code, http_status = "node_error", 500

    def __init__(self, status: int, error: Mapping[str, Any]) -> None:
        super().__init__(str(error.get("message") or f"the node answered with status {status}"))
        self.hint = str(error.get("hint") or "")
        self.details = dict(error.get("details") or {})
        self.status = status
        self.node_code = str(error.get("code") or "node_error")

    def as_dict(self) -> dict[str, Any]:
        return {"code": self.node_code, "message": self.message, "hint": self.hint, "details": self.details}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Address of a node's API and the credential to show it."""

    host: str
    port: int
    token: str | None = None
    data: Path | None = None
    answer_timeout_s: float = _ANSWER_TIMEOUT_S

    @property
    def url(self) -> str:
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"

    def get(self, path: str, query: Mapping[str, Any] | None = None) -> Any:
        return self.request("GET", path + (f"?{urlencode(query)}" if query else ""))

    def post(self, path: str, document: Mapping[str, Any] | None = None) -> Any:
        return self.request("POST", path, document or {})

    def request(self, method: str, path: str, document: Mapping[str, Any] | None = None) -> Any:
        """The answer's JSON document; NodeError for an error status. A model that loads is waited for."""
        until_s = time.monotonic() + self.answer_timeout_s
        while True:
            with closing(self._connect()) as connection:
                response = self._send(connection, method, path, document)
                raw = response.read()
            try:
                return self._document(response, raw)
            except NodeError as error:
                self._pause(response, error, until_s)

    def stream(self, path: str, document: Mapping[str, Any] | None = None) -> Generator[dict[str, Any]]:
        """Events of an SSE answer; closing the iterator stops the work at the node. A loading model is waited for."""
        method = "GET" if document is None else "POST"
        until_s = time.monotonic() + self.answer_timeout_s
        while True:
            with closing(self._connect()) as connection:
                response = self._send(connection, method, path, document)
                if response.status < 400:
                    for event in _events(response, says_done=method == "POST"):
                        if "error" in event and isinstance(event["error"], dict):
                            raise NodeError(200, event["error"])
                        yield event
                    return
                try:
                    self._document(response, response.read())
                except NodeError as error:
                    self._pause(response, error, until_s)

    @staticmethod
    def _pause(response: http.client.HTTPResponse, error: NodeError, until_s: float) -> None:
        """Until it may be asked again; raises the error when that does not help, or takes too long."""
        pause_s = _retry_after_s(response)
        if error.node_code != "model_loading" or time.monotonic() + pause_s > until_s:
            raise error
        time.sleep(pause_s)

    def _connect(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(
            self.host, self.port, timeout=min(_CONNECT_TIMEOUT_S, self.answer_timeout_s)
        )
        try:
            connection.connect()
        except OSError as error:
            where = f" of {self.data}" if self.data else ""
            raise NodeNotRunning(
                f"no node answers at {self.host}:{self.port}{where}: {error.strerror or error}"
            ) from error
        assert connection.sock is not None
        connection.sock.settimeout(self.answer_timeout_s)
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def _send(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        document: Mapping[str, Any] | None,
    ) -> http.client.HTTPResponse:
        headers = {"Accept": "application/json, text/event-stream"}
        body = None
        if document is not None:
            body = json.dumps(document).encode()
            headers["Content-Type"] = "application/json"
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        try:
            connection.request(method, path, body=body, headers=headers)
            return connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise NodeNotRunning(f"the node at {self.host}:{self.port} went away: {error}") from error

    def _document(self, response: http.client.HTTPResponse, raw: bytes) -> Any:
        try:
            document = json.loads(raw)
        except ValueError:
            if response.status == 200 and (response.headers.get_content_type() or "").startswith("text/"):
                return raw.decode(errors="replace")
            raise RequestError(
                f"what answers at {self.host}:{self.port} is not a p2pnode", hint="check --api"
            ) from None
        if response.status >= 400:
            error = document.get("error") if isinstance(document, dict) else None
            raise NodeError(response.status, error if isinstance(error, dict) else {})
        return document


def _retry_after_s(response: http.client.HTTPResponse) -> float:
    text = response.headers.get("Retry-After", "")
    return min(float(text), _RETRY_S_MAX) if text.isdecimal() else 1.0


def _events(response: http.client.HTTPResponse, *, says_done: bool) -> Iterator[dict[str, Any]]:
    data: list[str] = []
    for line in _lines(response):
        if line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif not line and data:
            text, data = "\n".join(data), []
            if text == "[DONE]":
                return
            yield json.loads(text)
    if says_done:
        raise NodeNotRunning("the node went away in the middle of an answer")


def _lines(response: http.client.HTTPResponse) -> Iterator[str]:
    """Whole lines as they come, without their ends: what has arrived is taken at once, not line by line."""
    rest = b""
    while True:
        try:
            piece = response.read1(_READ_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise NodeNotRunning(f"the node went away in the middle of an answer: {error}") from error
        if not piece:
            return
        *lines, rest = (rest + piece).split(b"\n")
        for raw in lines:
            yield raw.decode("utf-8", errors="replace").rstrip("\r")


def find_node(data: Path | None = None, api: str | None = None) -> Endpoint:
    """The node of a data folder, or at an address; NodeNotRunning when there is none.

    An address given together with a folder uses the folder's token when both mean the same node.
    """
    environ = os.environ
    api = api or environ.get("P2PNODE_API") or None
    folder = data or default_data_dir(environ)
    written = _node_file(folder)
    key = environ.get("P2PNODE_API_KEY")
    if api:
        host, port = parse_host_port(api)
        token = written.get("token") if written and _same(written["api"], host, port) else None
        return Endpoint(host, port, key or token, folder if token else None)
    if written is None:
        raise NodeNotRunning(
            f"no node is running in {folder}", hint=f"start one with: p2pnode join --data {folder}"
        )
    host, port = parse_host_port(written["api"])
    return Endpoint(host, port, key or written.get("token"), folder)


def _same(url: str, host: str, port: int) -> bool:
    try:
        return parse_host_port(url) == (host, port)
    except P2PNodeError:
        return False


def _node_file(folder: Path) -> dict[str, Any] | None:
    path = folder / NODE_FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        raise NodeNotRunning(f"{path} cannot be read", hint="restart the node") from None
    if not isinstance(document, dict) or not isinstance(document.get("api"), str):
        raise NodeNotRunning(f"{path} is not what a node writes", hint="restart the node")
    return document
