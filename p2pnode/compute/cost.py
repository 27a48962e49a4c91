"""What computing and sending cost: the planner's view of a model, of devices and of links, and the law of time.

First-order law: time per token = sum of stage compute + sum of hops. Computing a token reads every active weight
once, so a device's decode speed is bytes of weights per second, measured on a real layer. Specs: 10-plans.md.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from p2pnode import limits


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a model, from its tensor index."""

    name: str
    content_id: str
    architecture: str
    layer_bytes: tuple[int, ...]
    active_bytes: tuple[int, ...]
    """Of a layer, what one token reads: all of it, or the chosen experts' part."""
    embedding_bytes: int
    output_bytes: int
    """Output matrix and norm; the embedding's size where both are one tensor."""
    width: int
    """Values in one row of the hidden state."""
    kv_bytes_per_token: tuple[int, ...]
    """KV cache of a layer for one position."""
    context_length: int
    is_tied: bool = False
    """The output matrix is the embedding: a device with both holds it once."""
    boundary: int = 1
    """Cuts fall on multiples of this."""
    cut_refusal: str | None = None
    shard_refusal: str | None = None
    shard_units: int = 1
    """KV heads: the most ranks a tensor group can have."""
    layer_row_bytes: int = 0
    """Room a layer needs for each row of a batch."""
    output_row_bytes: int = 0
    """Room the output needs for each row: logits."""
    bits_per_weight: float | None = None
    """Of the layers, on average."""
    row_value_bytes: float = 4.0
    """On the wire, of a value in a row; float32 unless engine options say otherwise."""
    sum_value_bytes: int = 4
    """The same of a partial sum."""

    @property
    def layer_count(self) -> int:
        return len(self.layer_bytes)

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes(0, self.layer_count, embedding=True, output=True)

    @property
    def row_bytes(self) -> int:
        """One row on the wire."""
        return math.ceil(self.row_value_bytes * self.width)

    def weight_bytes(self, first: int, end: int, *, embedding: bool, output: bool) -> int:
        size = sum(self.layer_bytes[first:end])
        size += self.embedding_bytes if embedding else 0
        if output and not (embedding and self.is_tied):
            size += self.output_bytes
        return size

    def kv_bytes(self, first: int, end: int, n_ctx: int, parallel: int) -> int:
        return sum(self.kv_bytes_per_token[first:end]) * n_ctx * parallel


@dataclass(frozen=True, slots=True)
class Device:
    """A member of the mesh as measured; rates are of this model's quantisation where that was measured."""

    peer: str
    name: str
    memory_free_bytes: int
    memory_total_bytes: int
    decode_bytes_per_s: float
    """Weight bytes per second when computing one token."""
    prefill_bytes_per_s: float = 0.0
    """Weight bytes times tokens per second when computing many; 0 for unmeasured."""
    disk_free_bytes: int | None = None
    disk_bytes_per_s: float = 200e6
    held_layers: frozenset[int] = frozenset()
    """Layers whose weights are on this device's disk."""
    holds_ends: bool = False
    """Embedding and output matrix are there too."""
    is_paused: bool = False
    """Paused or draining by its owner."""
    silent_s: float = 0.0
    """It is connected and gives no sign of life for so long: perhaps it was switched off."""
    lending: str = ""
    """What it says of the hours in which it lends itself, such as `lends itself again at 20:00 CET`."""
    on_battery: bool = False
    is_metered: bool = False
    can_rpc: bool = False
    build: str = ""
    """llama.cpp build: tensor_rpc needs equal ones."""
    version: str = ""
    """What its engines compute with; parts of one answer are computed by equal ones unless somebody allows it."""
    step_overhead_s: float = limits.STEP_OVERHEAD_S
    """What a step of an engine takes besides computing."""
    context_bytes_per_s: float = math.inf
    """Keys and values a decoded row is compared with, per second; infinite until it was measured."""
    gpu_memory_free_bytes: int = 0
    """Of GPUs with memory of their own."""
    gpu_layers: int = 0
    """Layers of a model that its owner has computed by them."""

    def room_bytes(self, shape: ModelShape) -> int:
        """Memory for weights, keys and values: of the GPU where it has all layers, of both where it has some."""
        if not self.gpu_layers or not self.gpu_memory_free_bytes:
            return self.memory_free_bytes
        if self.gpu_layers >= shape.layer_count:
            return self.gpu_memory_free_bytes
        offloaded = self.gpu_layers * max(shape.layer_bytes, default=0)
        return self.memory_free_bytes + min(self.gpu_memory_free_bytes, offloaded)

    @property
    def prefill_rate(self) -> float:
        return self.prefill_bytes_per_s or self.decode_bytes_per_s * limits.PREFILL_GAIN_ASSUMED


@dataclass(frozen=True, slots=True)
class Link:
    rtt_s: float
    bytes_per_s: float
    is_measured: bool = True


ASSUMED_LINK = Link(limits.RTT_ASSUMED_S, limits.LINK_ASSUMED_BYTES_PER_S, is_measured=False)


@dataclass(frozen=True)
class Mesh:
    """Devices and the links between them; a link not listed is assumed to be slow rather than free."""

    devices: Mapping[str, Device]
    links: Mapping[tuple[str, str], Link] = field(default_factory=dict)

    def link(self, a: str, b: str) -> Link:
        """Symmetric: the worse direction is what `links` should hold."""
        return self.links.get((a, b)) or self.links.get((b, a)) or ASSUMED_LINK


@dataclass(frozen=True, slots=True)
class Load:
    """What the plan is for."""

    n_ctx: int
    parallel: int = 1
    """Sessions at a time."""
    prompt_tokens: int = 256


@dataclass(frozen=True, slots=True)
class Group:
    """A stage before it is costed: layers on devices with integer shares."""

    first: int
    end: int
    peers: tuple[str, ...]
    shares: tuple[int, ...] = (1,)


def hop_s(mesh: Mesh, a: str, b: str, size: int) -> float:
    """One message from a to b; nothing within a device."""
    if a == b:
        return 0.0
    link = mesh.link(a, b)
    return link.rtt_s / 2 + size / link.bytes_per_s + limits.HOP_PROCESSING_S


def reduce_s(shape: ModelShape, mesh: Mesh, peers: Sequence[str], rows: int = 1) -> float:
    """One all-reduce: every rank sends its partial rows to every other and waits for theirs."""
    others = len(peers) - 1
    sums = shape.sum_value_bytes * shape.width
    worst = 0.0
    for at, a in enumerate(peers):
        for b in peers[at + 1 :]:
            link = mesh.link(a, b)
            worst = max(worst, link.rtt_s / 2 + others * rows * sums / link.bytes_per_s)
    return worst + limits.REDUCE_PROCESSING_S if others else 0.0


def group_decode_s(
    shape: ModelShape, mesh: Mesh, group: Group, position: int = limits.CONTEXT_ASSUMED_TOKENS
) -> float:
    """Compute of one token through a stage, all-reduces included; it is compared with `position` before it."""
    total = sum(group.shares)
    size = sum(shape.active_bytes[group.first : group.end])
    context = position * sum(shape.kv_bytes_per_token[group.first : group.end])
    slowest = max(
        share / total * row_s(mesh.devices[peer], size, context)
        for peer, share in zip(group.peers, group.shares, strict=True)
    )
    reduces = 2 * (group.end - group.first) * reduce_s(shape, mesh, group.peers)
    return slowest + reduces + overhead_s(mesh, group.peers)


def row_s(device: Device, weight_bytes: int, context_bytes: int) -> float:
    """One row through so many bytes of weights, compared with so many of keys and values."""
    return weight_bytes / device.decode_bytes_per_s + context_bytes / device.context_bytes_per_s


def group_prefill_s(shape: ModelShape, mesh: Mesh, group: Group, tokens: int) -> float:
    """Compute of a chunk of prompt tokens through a stage."""
    total = sum(group.shares)
    size = sum(shape.active_bytes[group.first : group.end])
    slowest = max(
        tokens * size * share / total / mesh.devices[peer].prefill_rate
        for peer, share in zip(group.peers, group.shares, strict=True)
    )
    reduces = 2 * (group.end - group.first) * reduce_s(shape, mesh, group.peers, tokens)
    return slowest + reduces + overhead_s(mesh, group.peers)


def overhead_s(mesh: Mesh, peers: Sequence[str]) -> float:
    """Of one engine step; ranks take theirs at the same time."""
    return max(mesh.devices[peer].step_overhead_s for peer in peers)


def output_decode_s(shape: ModelShape, device: Device) -> float:
    return shape.output_bytes / device.decode_bytes_per_s


def network_s(shape: ModelShape, mesh: Mesh, head: str, groups: Sequence[Group], rows: int = 1) -> float:
    """The ring: head to the first stage, along the stages, back to the head."""
    leaders = [head, *(group.peers[0] for group in groups), head]
    return sum(hop_s(mesh, a, b, rows * shape.row_bytes) for a, b in itertools.pairwise(leaders))


def first_token_s(
    shape: ModelShape, mesh: Mesh, head: str, groups: Sequence[Group], prompt_tokens: int
) -> float:
    """Prompt in chunks through all stages at once: the slowest stage sets the pace after the first chunk."""
    chunk = min(limits.PREFILL_CHUNK_TOKENS, max(prompt_tokens, 1))
    chunk_count = -(-max(prompt_tokens, 1) // chunk)
    stages = [group_prefill_s(shape, mesh, group, chunk) for group in groups]
    once = sum(stages) + network_s(shape, mesh, head, groups, chunk)
    return once + (chunk_count - 1) * max(stages) + output_decode_s(shape, mesh.devices[head])


def buffer_bytes(shape: ModelShape, load: Load, *, layers: bool, output: bool) -> int:
    """Of one unit: its process, and room to compute a whole batch (compute/memory.py has the exact numbers)."""
    rows = limits.UNIT_BATCH_ROWS if layers else limits.OUTPUT_UNIT_TOKENS
    widest = max(shape.layer_row_bytes if layers else 0, shape.output_row_bytes if output else 0)
    mask = limits.MASK_ROW_TOKEN_BYTES * load.n_ctx * load.parallel if layers else 0
    return limits.UNIT_BUFFER_BYTES + rows * (widest + mask)


def unit_memory_bytes(
    shape: ModelShape, load: Load, first: int, end: int, *, embedding: bool, output: bool, part: float = 1.0
) -> int:
    """Weights, KV cache and buffers of one loaded unit; `part` is a rank's fraction of the layers."""
    layers = sum(shape.layer_bytes[first:end]) + shape.kv_bytes(first, end, load.n_ctx, load.parallel)
    ends = shape.weight_bytes(first, first, embedding=embedding, output=output)
    return int(layers * part) + ends + buffer_bytes(shape, load, layers=end > first, output=output)


def streamed_memory_bytes(shape: ModelShape, load: Load) -> int:
    """What a streaming device keeps: the ends, the KV cache, and the layer it computes with the next one."""
    layers = 2 * max(shape.layer_bytes)
    kv = shape.kv_bytes(0, shape.layer_count, load.n_ctx, load.parallel)
    ends = shape.weight_bytes(0, 0, embedding=True, output=True)
    return layers + kv + ends + buffer_bytes(shape, load, layers=True, output=True)
