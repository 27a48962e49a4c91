"""A small client for programs and notebooks, on the standard library alone.

    import p2pnode
    with p2pnode.connect() as mesh:
        print(mesh.generate("Once upon a time", max_tokens=50).text)

Every method raises a condition of p2pnode.errors: NodeNotRunning when nothing answers, NodeError with the node's
own code for everything it refuses. Times are seconds, sizes bytes, amounts micro-units (1 unit = 1,000,000).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import quote

from p2pnode.endpoint import Endpoint, find_node
from p2pnode.errors import NodeNotRunning

T = TypeVar("T")
Message = Mapping[str, Any]
_END = object()


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model wrote, and how it came to be."""

    text: str
    mode: str
    """How it was computed: local, pipeline, tensor ..."""
    stages: Sequence[Mapping[str, Any]]
    """[{"peer", "name", "layers": [first, end]}], in the order the layers were run."""
    usage: Mapping[str, Any]
    """Token counts: prompt_tokens, completion_tokens, total_tokens."""
    finish_reason: str
    details: Mapping[str, Any] = field(default_factory=dict)
    """Everything else the node said: request_id, prefill_s, decode_s, tokens_per_s, cost_microunits."""

    def __str__(self) -> str:
        return self.text


def _answer(document: Mapping[str, Any], text: str | None = None) -> Answer:
    known = ("text", "mode", "stages", "usage", "finish_reason")
    rest = {name: value for name, value in document.items() if name not in known}
    return Answer(
        text=str(document.get("text", "")) if text is None else text,
        mode=str(document.get("mode", "")),
        stages=document.get("stages", ()),
        usage=document.get("usage", {}),
        finish_reason=str(document.get("finish_reason", "")),
        details=rest,
    )


def _request(options: Mapping[str, Any], **given: Any) -> dict[str, Any]:
    return {name: value for name, value in {**given, **options}.items() if value is not None}


class Log:
    """The node's sealed record, read only."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    def ask(self, name: str, **arguments: Any) -> Any:
        """Any question of GET /log/...: size, entries, event, checkpoint, proof/inclusion ..."""
        return self._endpoint.get(f"/log/{quote(name)}", arguments or None)

    def size(self) -> int:
        """Number of events recorded."""
        return int(self.ask("size")["size"])

    def entries(self, first: int = 0, limit: int = 100) -> list[dict[str, Any]]:
        """Events from `first` on, oldest first."""
        return list(self.ask("entries", first=first, limit=limit)["entries"])

    def verify(self, index: int | None = None) -> bool:
        """Check, here and not at the node, that an event (default: the newest sealed) is under the signed root.

        Raises BadCheckpoint or CorruptRecord naming what does not fit.
        """
        from p2pnode.verify_remote import verify_entry

        return verify_entry(self.ask, index)


class Mesh:
    """A connection to one node; it holds no state and may be shared by threads."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.log = Log(endpoint)

    def __enter__(self) -> Mesh:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is held open between calls."""

    def generate(self, prompt: str, *, model: str | None = None, **options: Any) -> Answer:
        """Continue a prompt as it is. Options: max_tokens, temperature, top_p, top_k, seed, stop, mode, grammar ..."""
        return _answer(self.endpoint.post("/infer", _request(options, prompt=prompt, model=model)))

    def chat(self, messages: str | Sequence[Message], *, model: str | None = None, **options: Any) -> Answer:
        """Answer a conversation through the model's own chat format; a text is one user message."""
        body = _request(options, messages=_messages(messages), model=model)
        return _answer(self.endpoint.post("/infer", body))

    def stream(
        self, messages: str | Sequence[Message], *, model: str | None = None, **options: Any
    ) -> Generator[str, None, Answer]:
        """Pieces of text as they are written; the generator's return value is the whole Answer.

        Closing it early stops the work on every device.
        """
        body = _request(options, messages=_messages(messages), model=model)
        pieces: list[str] = []
        for event in self.endpoint.stream("/infer/stream", body):
            if event.get("type") == "text":
                pieces.append(event["text"])
                yield event["text"]
            elif event.get("type") == "finished":
                return _answer(event, "".join(pieces))
        raise NodeNotRunning("the node ended the answer without a result", hint="try again")

    def embed(self, inputs: str | Sequence[str], *, model: str | None = None) -> list[list[float]]:
        """One L2-normalised vector per input."""
        wanted = [inputs] if isinstance(inputs, str) else list(inputs)
        document = self.endpoint.post("/v1/embeddings", _request({}, input=wanted, model=model))
        return [row["embedding"] for row in document["data"]]

    def plan(self, model: str | None = None, *, apply: bool = False, **options: Any) -> dict[str, Any]:
        """Who would compute which layers. Options: mode, stages, devices, context, why. Raises no_plan with reasons."""
        return dict(self.endpoint.post("/plan", _request(options, model=model, apply=apply)))

    def peers(self) -> list[dict[str, Any]]:
        """Devices of the mesh, this one included: name, state, rtt_ms, addresses."""
        return list(self.endpoint.get("/peers")["peers"])

    def links(self) -> list[dict[str, Any]]:
        """Links between devices: `state` (both, one_way, half, none, unknown) and both `directions`."""
        return list(self.endpoint.get("/peers")["links"])

    def models(self) -> list[dict[str, Any]]:
        """Models of the mesh: name, size_bytes, layers, holders."""
        return list(self.endpoint.get("/models")["models"])

    def status(self) -> dict[str, Any]:
        """This node in one document: name, mesh, log, engines, memory in bytes."""
        return dict(self.endpoint.get("/status"))

    def billing(self) -> dict[str, Any]:
        """Accounts with their balances in micro-units."""
        return dict(self.endpoint.get("/billing"))

    def invite(self, *, uses: int = 1, expires_s: int = 3600, role: str = "worker", label: str = "") -> str:
        """A ticket for another device: `p2pnode join TICKET`."""
        body = {"uses": uses, "expires_s": expires_s, "role": role, "label": label}
        return str(self.endpoint.post("/invites", body)["ticket"])


class AsyncMesh:
    """The same for asyncio: each call runs in a thread, so that the loop is never blocked."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._mesh = Mesh(endpoint)

    async def __aenter__(self) -> AsyncMesh:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is held open between calls."""

    async def _call(self, method: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        return await asyncio.to_thread(method, *args, **kwargs)

    async def generate(self, prompt: str, *, model: str | None = None, **options: Any) -> Answer:
        """Answer one prompt as it is, as `Mesh.generate` does."""
        return await self._call(self._mesh.generate, prompt, model=model, **options)

    async def chat(
        self, messages: str | Sequence[Message], *, model: str | None = None, **options: Any
    ) -> Answer:
        """Answer a conversation through the model's own chat format; a text is one user message."""
        return await self._call(self._mesh.chat, messages, model=model, **options)

    async def stream(
        self, messages: str | Sequence[Message], *, model: str | None = None, **options: Any
    ) -> AsyncGenerator[str, None]:
        """Pieces of text as they are written."""
        pieces = self._mesh.stream(messages, model=model, **options)
        try:
            while (piece := await asyncio.to_thread(next, pieces, _END)) is not _END:
                yield str(piece)
        finally:
            await asyncio.to_thread(pieces.close)

    async def embed(self, inputs: str | Sequence[str], *, model: str | None = None) -> list[list[float]]:
        """One L2-normalised vector per input."""
        return await self._call(self._mesh.embed, inputs, model=model)

    async def plan(self, model: str | None = None, *, apply: bool = False, **options: Any) -> dict[str, Any]:
        """Who would compute which layers, as `Mesh.plan` says."""
        return await self._call(self._mesh.plan, model, apply=apply, **options)

    async def peers(self) -> list[dict[str, Any]]:
        """Devices of the mesh, this one included: name, state, rtt_ms, addresses."""
        return await self._call(self._mesh.peers)

    async def links(self) -> list[dict[str, Any]]:
        """Links between devices with both directions, as `Mesh.links` says."""
        return await self._call(self._mesh.links)

    async def models(self) -> list[dict[str, Any]]:
        """Models of the mesh: name, size_bytes, layers, holders."""
        return await self._call(self._mesh.models)


def connect(url: str | None = None, *, data: Path | str | None = None, key: str | None = None) -> Mesh:
    """The node at `url` (HOST:PORT), or of a data folder, or this machine's own; raises NodeNotRunning."""
    return Mesh(_endpoint(url, data, key))


def connect_async(
    url: str | None = None, *, data: Path | str | None = None, key: str | None = None
) -> AsyncMesh:
    """The asyncio twin of connect()."""
    return AsyncMesh(_endpoint(url, data, key))


def _endpoint(url: str | None, data: Path | str | None, key: str | None) -> Endpoint:
    found = find_node(Path(data) if data is not None else None, url)
    endpoint = Endpoint(found.host, found.port, key or found.token, found.data)
    endpoint.get("/health")
    return endpoint


def _messages(messages: str | Sequence[Message]) -> list[dict[str, Any]]:
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    return [dict(message) for message in messages]
