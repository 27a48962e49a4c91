"""A NodeFacade whose answers are fixed: the API's tests look at words, not at weights."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from p2pnode import __version__
from p2pnode.errors import ModelUnknown, NotFound, P2PNodeError, RequestError
from p2pnode.facade import (
    Finished,
    GenerateEvent,
    GenerateRequest,
    JsonObject,
    PrefillProgress,
    Ranking,
    TextDelta,
    TokenLogprob,
)
from p2pnode.units import PeerId

PEER = PeerId("12D3KooWFakeNodeFakeNodeFakeNodeFakeNodeFakeNodeFake1")
PEER_TWO = PeerId("12D3KooWFakeNodeFakeNodeFakeNodeFakeNodeFakeNodeFake2")
MODEL = "p2pnode-demo"
STAGES = (
    {"peer": PEER, "name": "studio", "layers": [0, 4]},
    {"peer": PEER_TWO, "name": "kitchen", "layers": [4, 8]},
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if tools is defined and tools %}TOOLS {{ tools | tojson }}\n{% endif %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


Forge = Callable[[str, Mapping[str, Any], Any], Any]


def words(text: str) -> list[str]:
    """Tokens of the fake: words with the space before them."""
    parts = text.split(" ")
    return [part if index == 0 else " " + part for index, part in enumerate(parts)]


def link_row(one: PeerId, other: PeerId, back: str = "ok", **change: Any) -> JsonObject:
    """A link that works from one to the other; `back` and `change` are of the way back."""
    way = {"rtt_ms": 2.4, "last_good_ms": 1_790_000_000_000, "tried": [], "told_ms": 1_790_000_000_000}
    there = {**way, "from": one, "to": other, "state": "ok", "opened": True, "told_by": one}
    other_way = {**way, "from": other, "to": one, "state": back, "opened": False, "told_by": other, **change}
    state = {"ok": "both", "unreachable": "one_way"}.get(back, "half")
    return {"peers": [one, other], "state": state, "directions": [there, other_way]}


class FakeNode:
    """Answers with `reply`, one word a token; remembers what it was asked."""

    def __init__(self, reply: str = "The quick brown fox jumps.") -> None:
        self.reply = reply
        self.replies: dict[int, str] = {}
        """By choice number, where choices must differ."""
        self.requests: list[GenerateRequest] = []
        self.commands: list[tuple[str, dict[str, Any]]] = []
        self.plans_asked: list[dict[str, Any]] = []
        self.cancelled = 0
        self.was_cancelled = threading.Event()
        self.running = 0
        self.fail_before: P2PNodeError | Exception | None = None
        self.fail_after: tuple[int, P2PNodeError | Exception] | None = None
        self.hold = asyncio.Event()
        """Cleared: every generation waits after its first word."""
        self.hold.set()
        self.loading_views: dict[str, JsonObject] = {}
        """Models that load: requests for one wait until `loaded` is set."""
        self.loaded = asyncio.Event()
        self.transfer_views: dict[str, JsonObject] = {}
        self.command_hold = asyncio.Event()
        """Cleared: commands wait; `command_loop` is where they do."""
        self.command_hold.set()
        self.command_loop: asyncio.AbstractEventLoop | None = None
        self.tool_servers: list[JsonObject] = []
        self.tools_called: list[tuple[str, str, dict[str, Any]]] = []
        self.metadata: JsonObject = {
            "name": "demo",
            "chat_template": CHATML,
            "bos_token": "<s>",
            "eos_token": "<|im_end|>",
            "add_bos": True,
            "architecture": "llama",
            "context_length": 2048,
        }
        self.shown: dict[str, JsonObject | Exception] = {}
        """By view: what it shows instead of the usual, or fails with."""
        self.forge: Forge = lambda name, arguments, answer: answer
        """What somebody on the way makes of an answer about the record."""
        self.live_items: list[JsonObject] = [{"kind": "event", "index": 7, "data": {"type": "NodeStarted"}}]

    @property
    def peer_id(self) -> PeerId:
        return PEER

    @property
    def name(self) -> str:
        return "studio"

    def health(self) -> JsonObject:
        return {"status": "ok", "ready": True, "peer_id": PEER, "version": __version__}

    def _view(self, name: str, usual: JsonObject) -> JsonObject:
        found = self.shown.get(name, usual)
        if isinstance(found, Exception):
            raise found
        return found

    def status(self) -> JsonObject:
        usual = {
            **self.health(),
            "name": "studio",
            "mesh": {"name": "home", "role": "founder", "members": 2},
            "peer_count": 2,
            "log_size": 42,
            "tokens_per_s": 41.5,
            "memory": {
                "node_and_engines_bytes": 150_000_000,
                "share_bytes": 4_000_000,
                "allowed_bytes": 204_000_000,
                "conversations_bytes_max": 16_000_000,
            },
        }
        return self._view("status", usual)

    def peers(self) -> JsonObject:
        base = {"state": "online", "role": "worker", "addresses": ["/ip4/127.0.0.1/udp/9481/quic-v1"]}
        usual = {
            "peers": [
                {
                    **base,
                    "peer": PEER,
                    "name": "studio",
                    "self": True,
                    "rtt_ms": 0.0,
                    "path": "self",
                    "last_seen_ms": 0,
                },
                {
                    **base,
                    "peer": PEER_TWO,
                    "name": "kitchen",
                    "self": False,
                    "rtt_ms": 2.4,
                    "path": "lan",
                    "last_seen_ms": 1,
                },
            ],
            "links": [link_row(PEER, PEER_TWO)],
        }
        return self._view("peers", usual)

    def models(self) -> JsonObject:
        usual = {
            "models": [
                {
                    "name": MODEL,
                    "architecture": "llama",
                    "size_bytes": 9_000_000,
                    "layers": 8,
                    "quantisation": "Q8_0",
                    "context_length": 2048,
                    "holders": [PEER, PEER_TWO],
                    "default": True,
                }
            ]
        }
        return self._view("models", usual)

    def sessions(self) -> JsonObject:
        row = {
            "request_id": "chatcmpl-1", "caller": "local", "model": MODEL, "mode": "pipeline", "plan_id": "p1",
            "state": "finished", "reason": "stop", "accepted_ms": 1_790_000_000_000, "prompt_tokens": 4,
            "completion_tokens": 9, "tokens_per_s": 10.0, "cost_microunits": 27, "stages": list(STAGES), "index": 5,
        }  # fmt: skip
        return self._view(
            "sessions", {"sessions": [row], "running": 0, "accepted": 1, "finished": 1, "failed": 0}
        )

    def plans(self) -> JsonObject:
        stages = [{**stage, "bytes": 4_000_000, "memory_bytes": 8_000_000} for stage in STAGES]
        return {
            "plans": [
                {"plan_id": "p1", "model": MODEL, "mode": "pipeline", "state": "active", "stages": stages}
            ]
        }

    def billing(self) -> JsonObject:
        account = {
            "account": "local", "name": "local", "available_microunits": 5_000_000, "held_microunits": 250_000,
            "granted_microunits": 0, "topped_up_microunits": 5_250_000, "spent_microunits": 27,
            "earned_microunits": 1_500_000, "requests": 1, "opened_ms": 1, "ended": "", "quota": None,
        }  # fmt: skip
        channel = {
            "peer": PEER_TWO, "direction": "given", "sequence": 3, "agreed_sequence": 3, "layer_tokens": 40,
            "microunits": 1_500_000, "agreed_microunits": 1_500_000,
        }  # fmt: skip
        hold = {"hold_id": "h1", "payer": "local", "request_id": "chatcmpl-1", "amount_microunits": 250_000,
                "expires_ms": 1_790_000_060_000, "free": False}  # fmt: skip
        return {"unit_microunits": 1_000_000, "own_account": "local", "accounts": [account], "holds": [hold],
                "channels": [channel], "totals": {"sum_microunits": 0}}  # fmt: skip

    def settings(self) -> JsonObject:
        row = {
            "key": "model.default",
            "value": MODEL,
            "previous": "",
            "changed_by": PEER,
            "changed_ms": 1,
            "index": 3,
        }
        return {"settings": [row]}

    async def count(self) -> None:
        """Everything is counted already."""

    def metrics(self) -> JsonObject:
        sample = {"labels": {"type": "NodeStarted"}, "value": 3}
        return {
            "metrics": [
                {
                    "name": "p2pnode_events_total",
                    "type": "counter",
                    "help": "Facts in the log.",
                    "samples": [sample],
                },
                {
                    "name": "p2pnode_log_size",
                    "type": "gauge",
                    "help": "Events.",
                    "samples": [{"labels": {}, "value": 42}],
                },
            ]
        }

    def options(self) -> JsonObject:
        return self._view(
            "options", {"settings": [{"name": "threads", "value": 2, "origin": "flag --threads"}]}
        )

    def resolve_model(self, name: str | None) -> str:
        if name in (None, MODEL, "/models/demo.gguf"):
            return MODEL
        raise ModelUnknown(f"no model is called {name!r}")

    def loading(self, model: str) -> JsonObject | None:
        return self.loading_views.get(model)

    def transfer(self, model: str) -> JsonObject | None:
        return self.transfer_views.get(model)

    async def _until_loaded(self, model: str | None) -> None:
        if model in self.loading_views:
            await self.loaded.wait()

    async def model_metadata(self, name: str) -> JsonObject:
        assert name == MODEL
        return self.metadata

    async def tokenize(self, model: str, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        await self._until_loaded(model)
        return [int.from_bytes(hashlib.sha256(word.encode()).digest()[:2], "big") for word in words(text)]

    async def detokenize(self, model: str, tokens: Sequence[int]) -> str:
        await self._until_loaded(model)
        return "".join(f"<{token}>" for token in tokens)

    async def rerank(self, model: str, query: str, documents: Sequence[str]) -> Ranking:
        await self._until_loaded(model)
        return Ranking([float(len(document)) for document in documents], 7, "rank")

    async def embed(self, model: str, inputs: Sequence[Sequence[int]]) -> list[list[float]]:
        await self._until_loaded(model)
        return [[1.0, 0.0, float(len(tokens))] for tokens in inputs]

    def _answer(self, request: GenerateRequest) -> tuple[str, str | None]:
        last = request.request_id.rpartition("-")[2]
        number = int(last) if last.isdecimal() and len(last) < 4 else 0
        text = self.replies.get(number, self.reply)
        for stop in request.stop:
            position = text.find(stop)
            if position >= 0:
                return text[:position], stop
        return text, None

    async def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateEvent]:
        self.requests.append(request)
        if self.fail_before is not None:
            raise self.fail_before
        await self._until_loaded(request.model)
        prompt_tokens = (
            len(request.prompt) if not isinstance(request.prompt, str) else len(words(request.prompt))
        )
        text, stop = self._answer(request)
        tokens = words(text)
        self.running += 1
        done = 0
        try:
            yield PrefillProgress(prompt_tokens, prompt_tokens, 0)
            for token in tokens[: request.max_tokens]:
                if self.fail_after is not None and done >= self.fail_after[0]:
                    raise self.fail_after[1]
                yield TextDelta(token, 1, self._logprobs(request, token))
                done += 1
                await self.hold.wait()
                await asyncio.sleep(0)
            reason = "length" if done < len(tokens) else "stop"
            yield Finished(
                reason=reason,  # type: ignore[arg-type]
                prompt_tokens=prompt_tokens,
                completion_tokens=done,
                cached_tokens=0,
                mode="pipeline",
                stages=STAGES,
                prefill_s=0.25,
                decode_s=0.5,
                request_id=request.request_id,
                cost_microunits=done * 3,
                stop_sequence=stop,
            )
        except (GeneratorExit, asyncio.CancelledError):
            self.cancelled += 1
            self.was_cancelled.set()
            raise
        finally:
            self.running -= 1

    @staticmethod
    def _logprobs(request: GenerateRequest, token: str) -> tuple[TokenLogprob, ...]:
        if request.sampling.logprobs is None:
            return ()
        top = tuple((f"alt{n}", -1.0 - n, f"alt{n}".encode()) for n in range(request.sampling.logprobs))
        return (TokenLogprob(token, -0.5, token.encode(), top),)

    def hops(self) -> JsonObject:
        return {"totals": {"0": [10, 20_000_000], "output": [10, 1_000_000]}, "requests": ["chatcmpl-1"]}

    def trace(self, request_id: str) -> JsonObject:
        if "trace" in self.shown:
            return self._view("trace", {})
        if request_id != "chatcmpl-1":
            raise NotFound(f"no trace of {request_id!r} is kept")
        return {"traceEvents": [], "displayTimeUnit": "ms", "otherData": {"request_id": request_id}}

    async def tools(self) -> JsonObject:
        return {"servers": self.tool_servers}

    async def call_tool(
        self, server: str, tool: str, arguments: Mapping[str, Any], *, request_id: str
    ) -> JsonObject:
        self.tools_called.append((server, tool, dict(arguments)))
        return {"text": f"{tool} says {sorted(arguments)}", "is_error": False}

    async def plan(self, request: Mapping[str, Any]) -> JsonObject:
        self.plans_asked.append(dict(request))
        if "plan" in self.shown:
            return self._view("plan", {})
        await self._until_loaded(self.resolve_model(request.get("model")))
        plan = self.plans()["plans"][0]
        rejection = {"candidate": "whole by attic", "reason": "needs 9.1 GB, 6.2 free", "numbers": {}}
        return {
            "plan_id": "p1", "model": MODEL, "mode": plan["mode"], "head": PEER, "applied": bool(request.get("apply")),
            "stages": plan["stages"], "prediction": {"tokens_per_s": 41.5}, "reasons": ["fits on two devices"],
            "rejections": [rejection],
        }  # fmt: skip

    async def invite(self, *, uses: int, expires_s: int, role: str, label: str) -> JsonObject:
        return {
            "ticket": "p2p1-TEST",
            "expires_ms": expires_s * 1000,
            "uses": uses,
            "role": role,
            "invite_id": "i1",
        }

    async def command(self, name: str, arguments: Mapping[str, Any]) -> JsonObject:
        if name == "unknown":
            raise RequestError(f"there is no command {name!r}")
        self.commands.append((name, dict(arguments)))
        self.command_loop = asyncio.get_running_loop()
        await self.command_hold.wait()
        if name in ("add_model", "pull"):
            return {"model": MODEL}
        if name in ("pipeline_forward", "tensor_allreduce"):
            return {"frame": arguments["frame"]}
        return {"done": name}

    def log_query(self, name: str, arguments: Mapping[str, Any]) -> Any:
        return self.forge(name, arguments, self.record(name, arguments))

    def record(self, name: str, arguments: Mapping[str, Any]) -> Any:
        """What the record says."""
        if name == "size":
            return {"size": 42}
        if name == "earnings":
            row = {"peer": PEER_TWO, "direction": "given", "model": MODEL, "layers": [4, 8], "receipts": 3,
                   "layer_tokens": 40, "microunits": 1_500_000}  # fmt: skip
            return {"earnings": [row]}
        if name == "invites":
            row = {"invite_id": "i1", "label": "kitchen", "role": "worker", "uses": 2, "uses_left": 1,
                   "created_ms": 1_000, "expires_ms": 3_601_000, "state": "open", "peers": [PEER_TWO]}  # fmt: skip
            return {"invites": [row]}
        if name == "entries":
            return {"entries": [{"index": 0, "type": "NodeStarted"}], "arguments": dict(arguments)}
        raise NotFound(f"there is no view {name!r} of the log")

    async def live(self, after_index: int | None) -> AsyncIterator[JsonObject]:
        self.running += 1
        try:
            for item in self.live_items:
                yield item
            await asyncio.Event().wait()
        finally:
            self.running -= 1
