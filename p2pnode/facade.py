"""What faces (HTTP API, command line through it) may ask of a running node.

`node.Node` implements `NodeFacade`; the API is written and tested against this port. Views are plain
JSON-able dicts made by projections; their keys are documented in specs/11-http.md.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from p2pnode.units import PeerId

JsonObject = dict[str, Any]
FinishReason = Literal["stop", "length", "tool_calls", "error", "cancelled"]
Mode = Literal["auto", "local", "pipeline", "tensor", "tensor_rpc", "hybrid", "streamed", "disaggregated"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """llama.cpp's sampler chain, by the names its users know. temperature 0 is greedy."""

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repeat_last_tokens: int = 64
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    grammar: str | None = None
    """GBNF text; JSON schemas are converted before."""
    logprobs: int | None = None
    """How many alternatives to report per token; None for none."""


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One prompt, already rendered to text (chat templates are applied by the API)."""

    model: str | None
    prompt: str | Sequence[int]
    messages: Sequence[JsonObject] = ()
    """The conversation itself, for an external server, which renders it by its own template."""
    max_tokens: int = 256
    stop: Sequence[str] = ()
    sampling: SamplingParams = SamplingParams()
    mode: Mode = "auto"
    cache_prompt: bool | None = None
    """Whether to begin with what was kept of earlier requests. None: yes, and where the answer can be repeated
    (temperature 0, or a seed) only with what leaves every number the same; True: with all of it; False: with none."""
    parse_special: bool = True
    """Whether special tokens in the prompt text are tokens (chat templates) or text."""
    caller: str = "local"
    """Billing account: `local`, an API key id, or a peer id."""
    address: str = ""
    """Remote address as the socket saw it, by which a request is free or not; empty for this process itself."""
    request_id: str = ""
    trace: str = ""
    """W3C traceparent of what asks, on whatever device; empty where nobody traces."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    token: str
    logprob: float
    token_bytes: bytes
    top: Sequence[tuple[str, float, bytes]] = ()


@dataclass(frozen=True, slots=True)
class TextDelta:
    """New text (complete UTF-8, stop sequences already held back)."""

    text: str
    token_count: int
    logprobs: Sequence[TokenLogprob] = ()


@dataclass(frozen=True, slots=True)
class PrefillProgress:
    tokens_done: int
    tokens_total: int
    tokens_cached: int


@dataclass(frozen=True, slots=True)
class Loading:
    """The model is on its way into memory; the API adds this for those who want to see it."""

    state: str
    """`preparing`, `fetching` or `loading`: what the device does that is furthest behind."""
    node: str
    progress: float | None
    """0..1 of this step; it never goes back."""
    eta_s: float | None
    """Until this step is over; None when it is not known."""
    done_bytes: int | None = None
    total_bytes: int | None = None
    """Of what is fetched; None for steps that count no bytes."""

    @staticmethod
    def of(view: Mapping[str, Any]) -> Loading:
        """From what `NodeFacade.loading` says."""
        counts = view.get("done_bytes"), view.get("total_bytes")
        return Loading(view["state"], view["node"], view["progress"], view["eta_s"], *counts)

    def view(self) -> JsonObject:
        """The document that `NodeFacade.loading` says."""
        view: JsonObject = {
            "state": self.state, "node": self.node, "progress": self.progress, "eta_s": self.eta_s
        }  # fmt: skip
        if self.total_bytes is not None:
            view.update(done_bytes=self.done_bytes, total_bytes=self.total_bytes)
        return view


@dataclass(frozen=True, slots=True)
class Ranking:
    """How well documents answer a query."""

    scores: Sequence[float]
    """One per document, in their order; larger is better."""
    tokens: int
    method: Literal["rank", "embedding"]
    """`rank`: a reranker read query and document together; `embedding`: cosine of their separate vectors."""


@dataclass(frozen=True, slots=True)
class Finished:
    """Always the last event of a generation that did not raise."""

    reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    mode: str
    stages: Sequence[JsonObject]
    """[{"peer": id, "name": str, "layers": [first, end]}]"""
    prefill_s: float
    decode_s: float
    request_id: str
    cost_microunits: int = 0
    stop_sequence: str | None = None


GenerateEvent = TextDelta | PrefillProgress | Loading | Finished


class NodeFacade(Protocol):
    """Errors are conditions of errors.py, raised before the first event or in the middle of a stream."""

    @property
    def peer_id(self) -> PeerId: ...

    @property
    def name(self) -> str: ...

    # views (cheap, synchronous, from projections)
    def health(self) -> JsonObject:
        """{"status": "ok", "ready": bool, "peer_id", "version"}"""
        ...

    def status(self) -> JsonObject: ...
    def peers(self) -> JsonObject:
        """{"peers": [{"peer", "name", "state", "role", "addresses", "rtt_ms", "path", "self",
        "last_seen_ms", ...}],
        "joining": [{"peer", "name", "at_ms", "failed", "done", "steps": [{"step", "state", "text"}]}],
        "links": [{"peers": [one, other], "state", "directions": [{"from", "to", "state", "rtt_ms", "last_good_ms",
        "opened", "tried": [{"address", "reason"}], "told_by", "told_ms"}]}]}"""
        ...

    def models(self) -> JsonObject:
        """{"models": [{"name", "architecture", "size_bytes", "layers", "quantisation", "context_length",
        "holders", "default": bool}]}"""
        ...

    def sessions(self) -> JsonObject: ...
    def plans(self) -> JsonObject:
        """{"plans": [{"plan_id", "model", "mode", "state",
        "stages": [{"peer", "name", "layers", "bytes", "memory_bytes"}]}]}"""
        ...

    def billing(self) -> JsonObject: ...
    def settings(self) -> JsonObject: ...
    async def count(self) -> None:
        """Ask engines for what only they count, before `metrics` is read."""
        ...

    def metrics(self) -> JsonObject:
        """{"metrics": [{"name", "type": counter | gauge | summary, "help", "samples": [{"labels": {}, "value"}]}]}"""
        ...

    def options(self) -> JsonObject:
        """{"settings": [{"name", "value", "origin"}]}: what this start was told, secrets hidden."""
        ...

    # models
    def resolve_model(self, name: str | None) -> str:
        """Full name of a model (None: the default); raises ModelUnknown."""
        ...

    def loading(self, model: str) -> JsonObject | None:
        """How far a model is on its way into memory: `state`, `node`, `progress`, `eta_s`; None when none is."""
        ...

    def transfer(self, model: str) -> JsonObject | None:
        """The same of a model that is fetched to a disk, with `done_bytes` and `total_bytes`."""
        ...

    async def model_metadata(self, name: str) -> JsonObject:
        """GGUF metadata that faces need: chat_template (or None), bos_token, eos_token, add_bos,
        architecture, context_length. Asked of a device that has the model where nothing of it is here yet."""
        ...

    async def tokenize(
        self, model: str, text: str, *, add_special: bool, parse_special: bool
    ) -> list[int]: ...
    async def detokenize(self, model: str, tokens: Sequence[int]) -> str: ...
    async def embed(self, model: str, inputs: Sequence[Sequence[int]]) -> list[list[float]]:
        """L2-normalised pooled embeddings, one per input."""
        ...

    async def rerank(self, model: str, query: str, documents: Sequence[str]) -> Ranking: ...

    # doing
    def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateEvent]:
        """Closing the iterator (aclose) cancels the work on every stage."""
        ...

    async def plan(self, request: Mapping[str, Any]) -> JsonObject:
        """Keys: model, mode, stages, devices, apply, strategy, why. Answer: the plan, reasons, rejections."""
        ...

    async def invite(self, *, uses: int, expires_s: int, role: str, label: str) -> JsonObject:
        """{"ticket": str, "expires_ms": int, "uses": int, "role": str, "invite_id": str}"""
        ...

    async def command(self, name: str, arguments: Mapping[str, Any]) -> JsonObject:
        """Other state changes by name: topup, forget_peer, approve_peer, pause, resume, drain, seal, set, pull,
        remove_model, copy_model, log_forget, ... Raises RequestError for an unknown name."""
        ...

    def hops(self) -> JsonObject:
        """{"totals": {stage: [steps, compute_ns]}, "requests": [ids of traces that are kept, newest last]}"""
        ...

    def trace(self, request_id: str) -> JsonObject:
        """The way of one request in Chrome's trace format; raises NotFound."""
        ...

    async def tools(self) -> JsonObject:
        """{"servers": [{"name", "scope": use | admin, "error", "tools": [{"name", "description", "input_schema"}]}]}:
        tools of other programs that the operator allows."""
        ...

    async def call_tool(
        self, server: str, tool: str, arguments: Mapping[str, Any], *, request_id: str
    ) -> JsonObject:
        """{"text", "is_error"}; every call is recorded. Raises NotFound and ToolFailed."""
        ...

    def log_query(self, name: str, arguments: Mapping[str, Any]) -> Any:
        """Read-only views of the record by name: size, entries, find, checkpoint, tile, blocks, inclusion, consistency,
        event, verify, replay, witnesses, receipts, statement."""
        ...

    def live(self, after_index: int | None) -> AsyncIterator[JsonObject]:
        """The live feed: log events from an index on, plus ephemeral telemetry {"kind": ..., "data": ...};
        slow readers are dropped."""
        ...
