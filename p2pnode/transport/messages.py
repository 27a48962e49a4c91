"""Control messages: what devices say to each other besides tensors and weights.

Each message is a 4-byte big-endian length and a MessagePack map, checked against a closed set of
types before anything is done with it. Source: specs/05-messages.md
"""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

import msgspec

from p2pnode import errors, limits
from p2pnode.errors import LocalProtocolError, RemoteProtocolError


class Message(msgspec.Struct, frozen=True, tag_field="t", forbid_unknown_fields=False, kw_only=True):
    """Unknown fields are ignored, so that a newer version may say more."""


# --- /p2pnode/admit/1 --------------------------------------------------------------------------------
class AdmitRequest(Message, tag="admit", frozen=True, kw_only=True, omit_defaults=True):
    secret: bytes
    name: str
    version: str
    addresses: list[str] = []
    guest: bool = False
    """Whether the asker wants whole answers and nothing else, whatever its ticket is good for."""


class Admitted(Message, tag="admitted", frozen=True, kw_only=True):
    grant: bytes
    mesh_name: str
    grants: list[bytes]
    revocations: list[bytes]
    peers: list[dict[str, Any]]
    """[{"key": bytes, "name": str, "addresses": [str]}]"""


class Look(Message, tag="look", frozen=True, kw_only=True):
    """Which mesh are you of?"""


class Here(Message, tag="here", frozen=True, kw_only=True):
    mesh_key: bytes
    mesh_name: str
    name: str


class Ask(Message, tag="ask", frozen=True, kw_only=True):
    """Let me in without a ticket; `commitment` is to the nonce that `reveal` shows."""

    name: str
    version: str
    commitment: bytes
    addresses: list[str] = []


class Pending(Message, tag="pending", frozen=True, kw_only=True):
    """The owner will be shown the code; `wait_s` is how long the question stands."""

    mesh_key: bytes
    mesh_name: str
    name: str
    nonce: bytes
    wait_s: float


class Reveal(Message, tag="reveal", frozen=True, kw_only=True):
    nonce: bytes


class Refused(Message, tag="refused", frozen=True, kw_only=True):
    code: str
    message: str
    hint: str = ""


# --- /p2pnode/status/1 -------------------------------------------------------------------------------
class Status(Message, tag="status", frozen=True, kw_only=True):
    name: str
    version: str
    role: str
    mesh_key: bytes
    addresses: list[str]
    grants: list[bytes]
    revocations: list[bytes]
    models: list[dict[str, Any]]
    """[{"name", "manifest", "size_bytes", "layers", "architecture", ..., "complete": bool}]"""
    capability: dict[str, Any]
    """{"memory_total_bytes", "memory_free_bytes", "cores", "threads", ...}"""
    state: str
    """"active", "paused" or "draining"."""
    now_ms: int
    checkpoint: str = ""
    """Newest signed note of this node's log."""
    extra: dict[str, Any] = {}


# --- /p2pnode/control/1 ------------------------------------------------------------------------------
class Call(Message, tag="call", frozen=True, kw_only=True):
    method: str
    arguments: dict[str, Any]


class Progress(Message, tag="progress", frozen=True, kw_only=True):
    """Zero or more before the answer, so that long work is never silent."""

    data: dict[str, Any]


class Answer(Message, tag="answer", frozen=True, kw_only=True):
    data: dict[str, Any]


AnyMessage = (
    AdmitRequest
    | Admitted
    | Look
    | Here
    | Ask
    | Pending
    | Reveal
    | Refused
    | Status
    | Call
    | Progress
    | Answer
)
M = TypeVar("M", bound=Message)

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(AnyMessage)


class ByteStream(Protocol):
    """What a message needs of a stream."""

    async def write(self, *chunks: bytes) -> None: ...

    async def read_exactly(self, size: int) -> bytes: ...


def encode_message(message: AnyMessage) -> bytes:
    body = _encoder.encode(message)
    if len(body) > limits.MESSAGE_BYTES_MAX:
        raise LocalProtocolError(f"a control message of {len(body)} bytes is over {limits.MESSAGE_BYTES_MAX}")
    return len(body).to_bytes(4, "big") + body


def decode_message(body: bytes) -> AnyMessage:
    """Raises RemoteProtocolError with what is wrong and where."""
    if len(body) > limits.MESSAGE_BYTES_MAX:
        raise RemoteProtocolError("a control message is too long")
    try:
        message: AnyMessage = _decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RemoteProtocolError(f"not a control message: {error}") from None
    except RecursionError:
        raise RemoteProtocolError("not a control message: nested too deeply") from None
    return message


async def send_message(stream: ByteStream, message: AnyMessage) -> None:
    await stream.write(encode_message(message))


async def receive_message(stream: ByteStream) -> AnyMessage:
    size = int.from_bytes(await stream.read_exactly(4), "big")
    if size > limits.MESSAGE_BYTES_MAX:
        raise RemoteProtocolError(f"a control message of {size} bytes is over {limits.MESSAGE_BYTES_MAX}")
    return decode_message(await stream.read_exactly(size))


_CONDITIONS: dict[str, type[errors.P2PNodeError]] = {
    kind.code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.P2PNodeError) and kind is not errors.P2PNodeError
}


def refusal(error: errors.P2PNodeError) -> Refused:
    return Refused(code=error.code, message=error.message, hint=error.hint)


def refusal_error(refused: Refused) -> errors.P2PNodeError:
    """The peer's condition, as the same type here when we know its code."""
    kind = _CONDITIONS.get(refused.code, RemoteProtocolError)
    return kind(refused.message, hint=refused.hint)


async def ask(stream: ByteStream, message: AnyMessage) -> AnyMessage:
    """What is answered to a message; a refusal is raised as the condition that it names."""
    await send_message(stream, message)
    answer = await receive_message(stream)
    if isinstance(answer, Refused):
        raise refusal_error(answer)
    return answer
