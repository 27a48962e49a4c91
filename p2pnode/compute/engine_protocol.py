"""Messages between node and engine process over a socketpair (specs/06-tensors.md#engine-messages).

A message is 16 bytes (`P2PE`, header size u32, payload size u64, little-endian), a msgpack map and raw
payload bytes. Both ends are ours and on one machine, so there is no checksum; sizes are bounded all the
same, since a broken engine must not take the node with it.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import msgpack

from p2pnode import errors
from p2pnode.compute.virtual_file import FilePiece, InlinePiece, Piece
from p2pnode.errors import EngineUnavailable, P2PNodeError, RequestError
from p2pnode.frame import DType, Frame, Kind
from p2pnode.limits import ENGINE_HEADER_BYTES_MAX, ENGINE_PAYLOAD_BYTES_MAX, ENGINE_PIECES_MAX

PREFIX = struct.Struct("<4sIQ")
MAGIC = b"P2PE"

Buffer = bytes | bytearray | memoryview
Message = dict[str, Any]


def encode_message(header: Mapping[str, Any], payload: Buffer = b"") -> list[Buffer]:
    """Views to send in this order, the payload uncopied."""
    packed = msgpack.packb(header)
    size = memoryview(payload).nbytes
    assert len(packed) <= ENGINE_HEADER_BYTES_MAX, "engine message header too large"
    assert size <= ENGINE_PAYLOAD_BYTES_MAX, "engine message payload too large"
    first = PREFIX.pack(MAGIC, len(packed), size) + packed
    return [first, payload] if size else [first]


def decode_prefix(data: Buffer) -> tuple[int, int]:
    """Header and payload sizes; raises EngineUnavailable when the other end has lost its mind."""
    magic, header_bytes, payload_bytes = PREFIX.unpack_from(data)
    if magic != MAGIC or header_bytes > ENGINE_HEADER_BYTES_MAX or payload_bytes > ENGINE_PAYLOAD_BYTES_MAX:
        raise EngineUnavailable("the engine sent something that is not a message")
    return header_bytes, payload_bytes


def decode_header(data: Buffer) -> Message:
    """The msgpack map of a message."""
    try:
        header = msgpack.unpackb(data, strict_map_key=False)
    except ValueError as exc:
        raise EngineUnavailable(f"the engine sent a broken message: {exc}") from None
    if not isinstance(header, dict):
        raise EngineUnavailable("the engine sent a message that is not a map")
    return header


# --- frames inside messages ------------------------------------------------------------------------
def frame_fields(frame: Frame) -> list[Any]:
    """A frame without its payload, in few bytes."""
    return [
        int(frame.kind), int(frame.dtype), frame.rows, frame.columns, frame.session, frame.epoch,
        frame.position_first, frame.wanted_first, frame.sequence, frame.request, frame.flags, dict(frame.meta),
    ]  # fmt: skip


def frame_of(values: Sequence[Any], payload: Buffer) -> Frame:
    """The inverse of `frame_fields`; raises TypeError or ValueError for anything else."""
    if not all(type(value) is int for value in values[:-1]) or not isinstance(values[-1], dict):
        raise TypeError("a frame's fields are whole numbers, and its meta is a map")
    kind, dtype, rows, columns, session, epoch, position, wanted, sequence, request, flags, meta = values
    return Frame(
        Kind(kind), DType(dtype), rows, columns, session, payload, epoch, position, wanted, sequence, request,
        flags, meta,
    )  # fmt: skip


# --- errors across the process border --------------------------------------------------------------
def error_fields(exc: P2PNodeError) -> Message:
    return exc.as_dict()


def error_of(values: Mapping[str, Any]) -> P2PNodeError:
    """The same condition on this side; an unknown code is an EngineUnavailable."""
    found = _BY_CODE.get(str(values.get("code")), EngineUnavailable)
    return found(str(values.get("message")), hint=values.get("hint"), **dict(values.get("details") or {}))


_BY_CODE: dict[str, type[P2PNodeError]] = {
    kind.code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, P2PNodeError) and kind is not P2PNodeError
}


# --- ways between ranks of a tensor group -----------------------------------------------------------
@dataclass(frozen=True, slots=True)
class StreamToRank:
    """A connected stream socket; the node carries its other end to the rank. The engine gets its own copy."""

    rank: int
    stream: socket.socket

    def as_message(self) -> list[Any]:
        return [self.rank, "stream"]


@dataclass(frozen=True, slots=True)
class LaneToRank:
    """Sealed datagrams from one of our lane ports to the rank's (specs/16-lane.md)."""

    rank: int
    port: int
    peer_host: str
    peer_port: int
    secret: bytes
    """32 bytes, fresh for this group and pair, exchanged over the authenticated connection."""
    datagram_bytes: int = 1452

    def as_message(self) -> list[Any]:
        return [self.rank, "lane", self.port, self.peer_host, self.peer_port, self.datagram_bytes]


RankLink = StreamToRank | LaneToRank


# --- what a unit is --------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class TokenTable:
    """Where the token embedding lies: rows are read from the file one by one, nothing stays resident."""

    path: str
    offset: int
    ggml_type: int
    rows: int
    columns: int
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter file, cut like the model, and its weight."""

    path: str
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class UnitSpec:
    """All an engine must know to build one unit: a whole model, a slice, a shard, an output, a vocabulary."""

    model_path: str | None = None
    pieces: tuple[Piece, ...] = ()
    """Instead of `model_path`: the GGUF as byte ranges."""
    vocab_only: bool = False
    input: Literal["tokens", "rows"] = "tokens"
    output: Literal["sample", "rows", "embedding", "none"] = "sample"
    tap: str | None = None
    """Name of the tensor that is the result of an `output="rows"` unit."""
    token_table: TokenTable | None = None
    """Lets a unit with input rows take token ids as well."""
    input_scale: float = 1.0
    """Incoming rows are multiplied by this (families that scale their input again)."""
    reduce: tuple[str, ...] = ()
    """Names of tensors that are partial sums over `ranks` shards."""
    rank: int = 0
    ranks: int = 1
    rows_dtype: Literal["f32", "f16", "bf16", "q8_0"] = "f32"
    rows_out: Literal["all", "wanted"] = "all"
    """Whether a result carries every row or only the wanted ones (before an output without layers)."""
    stateless: bool = False
    """No layer, so no memory of earlier rows: every frame starts anew."""
    context_tokens: int = 4096
    """Positions over all sessions together."""
    batch_rows: int = 512
    sessions_max: int = 8
    outputs_max: int = 0
    """Rows with logits in one batch; 0 for sessions_max + 8."""
    threads: int = 0
    """0 for the number of processors."""
    threads_batch: int = 0
    gpu_layers: int = 0
    main_gpu: int = 0
    split_mode: Literal["none", "layer", "row", "tensor"] = "layer"
    rpc_endpoints: tuple[str, ...] = ()
    load_mode: Literal["auto", "copy", "mmap", "mlock", "mmap_mlock", "direct"] = "auto"
    repack: bool = True
    kv_type_k: Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1"] = "f16"
    kv_type_v: Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1"] = "f16"
    flash_attention: Literal["auto", "on", "off"] = "on"
    rope_scaling: Literal["model", "none", "linear", "yarn", "longrope"] = "model"
    rope_freq_base: float = 0.0
    rope_freq_scale: float = 0.0
    yarn_ext_factor: float = -1.0
    yarn_attn_factor: float = -1.0
    yarn_beta_fast: float = -1.0
    yarn_beta_slow: float = -1.0
    yarn_orig_context: int = 0
    pooling: Literal["model", "none", "mean", "cls", "last", "rank"] = "model"
    swa_full: bool = True
    prefix_bytes_max: int = 0
    """Most bytes of prefixes kept beside the cells; 0 keeps none."""
    adapters: tuple[Adapter, ...] = ()
    control_vectors: tuple[Adapter, ...] = ()
    """Files of float32 rows for layers 1, 2, ...; their scaled sum is added."""
    resident_bytes_max: int = 0
    """Streamed mode: weights stay in the file and at most this much of them in memory; 0 for all."""
    fingerprint: str = ""
    """What the key-value state belongs to; states of another fingerprint are refused."""
    conversations_bytes_max: int = 0
    """What keys and values take here when all cells and all room for kept prefixes are full; for who counts memory."""

    def as_message(self) -> tuple[Message, bytes]:
        """Header fields and payload (the inline pieces joined)."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        inline = [piece.data for piece in self.pieces if isinstance(piece, InlinePiece)]
        values["pieces"] = [
            [piece.path, piece.offset, piece.size, piece.count, piece.stride]
            if isinstance(piece, FilePiece)
            else piece.total
            for piece in self.pieces
        ]
        values["token_table"] = asdict(self.token_table) if self.token_table else None
        for name in ("adapters", "control_vectors"):
            values[name] = [asdict(adapter) for adapter in getattr(self, name)]
        return values, b"".join(inline)


def spec_of(values: Mapping[str, Any], payload: Buffer) -> UnitSpec:
    """The inverse of `UnitSpec.as_message`."""
    known = dict(values)
    if len(known["pieces"]) > ENGINE_PIECES_MAX:
        raise RequestError(f"a unit of {len(known['pieces'])} pieces")
    pieces: list[Piece] = []
    view, used = memoryview(payload), 0
    for piece in known["pieces"]:
        if isinstance(piece, int):
            pieces.append(InlinePiece(bytes(view[used : used + piece])))
            used += piece
        else:
            pieces.append(FilePiece(*piece))
    known["pieces"] = tuple(pieces)
    known["token_table"] = TokenTable(**known["token_table"]) if known["token_table"] else None
    for name in ("adapters", "control_vectors"):
        known[name] = tuple(Adapter(**adapter) for adapter in known[name])
    for name in ("reduce", "rpc_endpoints"):
        known[name] = tuple(known[name])
    return UnitSpec(**known)


@dataclass(frozen=True, slots=True)
class UnitInfo:
    """What an engine found in a loaded unit."""

    unit_id: int
    description: str
    architecture: str
    layers: int
    columns: int
    """Width of a row."""
    vocab_tokens: int
    context_tokens: int
    session_tokens: int
    """Positions one session may reach."""
    sessions_max: int
    batch_rows: int
    model_bytes: int
    rollback: bool
    """Whether part of a session can be dropped (not in recurrent models)."""
    load_s: float
    bos: int
    eos: int
    adds_bos: bool
    chat_template: str | None
    fingerprint: str
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SampledToken:
    """One sampled token; `top` holds (token, logprob, piece) of the likeliest, when asked for."""

    token: int
    piece: bytes
    is_eog: bool
    logprob: float | None = None
    top: tuple[tuple[int, float, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Timings:
    """Nanoseconds of one step inside the engine."""

    waited_ns: int = 0
    compute_ns: int = 0
    tap_ns: int = 0
    sample_ns: int = 0
    batched_rows: int = 0
    """Rows of all sessions in the batches that held this step."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """What `step_sample` answers: one token per wanted row, fewer when a draft was refused."""

    tokens: tuple[SampledToken, ...]
    timings: Timings

    @property
    def token(self) -> int:
        return self.tokens[-1].token

    @property
    def piece(self) -> bytes:
        return self.tokens[-1].piece

    @property
    def is_eog(self) -> bool:
        return self.tokens[-1].is_eog
