"""`/omni/tensor-xfer/1`: one activation in, one out, in OmniNode's request-response form.

A message is a 4-byte big-endian length and a body of bincode 2 (standard configuration: little-endian,
variable-length integers, here always the shortest). Pure. Source: specs/17-omni.md
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from p2pnode import limits
from p2pnode.errors import LocalProtocolError, RemoteProtocolError

PROTOCOL = "/omni/tensor-xfer/1"
DTYPES = ("F16", "BF16", "F32")
"""By the number on the wire."""
_VALUE_BYTES = (2, 2, 4)
TOKEN_BYTES = 4
_WORDS = {251: struct.Struct("<H"), 252: struct.Struct("<I"), 253: struct.Struct("<Q")}
_LEAST = {251: 251, 252: 2**16, 253: 2**32}


@dataclass(frozen=True, slots=True)
class Activation:
    """`seq_len` rows of `hidden_dim` values; with `hidden_dim` 1 token ids of 4 bytes, little-endian."""

    seq_len: int
    hidden_dim: int
    dtype: int
    data: bytes

    @property
    def is_tokens(self) -> bool:
        return self.hidden_dim == 1


@dataclass(frozen=True, slots=True)
class Request:
    session_id: str
    micro_batch_index: int
    from_stage: int
    to_stage: int
    activation: Activation


@dataclass(frozen=True, slots=True)
class Answer:
    """OmniNode's acknowledgement, and behind it what the stage made; none when it was not accepted."""

    session_id: str
    micro_batch_index: int
    stage_index: int
    error: str | None = None
    activation: Activation | None = None


# --- writing -----------------------------------------------------------------------------------------
def encode_request(request: Request) -> bytes:
    return _framed(
        _text(request.session_id)
        + b"".join(map(_number, (request.micro_batch_index, request.from_stage, request.to_stage)))
        + _activation(request.activation)
    )


def encode_answer(answer: Answer) -> bytes:
    body = _text(answer.session_id) + _number(answer.micro_batch_index) + _number(answer.stage_index)
    if answer.error is not None:
        return _framed(body + b"\x00\x01" + _text(answer.error))
    assert answer.activation is not None, "what is accepted is answered with an activation"
    return _framed(body + b"\x01\x00" + _activation(answer.activation))


def _framed(body: bytes) -> bytes:
    if len(body) > limits.OMNI_MESSAGE_BYTES_MAX:
        raise LocalProtocolError(
            f"a message of {len(body)} bytes is over the limit of {limits.OMNI_MESSAGE_BYTES_MAX}"
        )
    return len(body).to_bytes(4, "big") + body


def _activation(activation: Activation) -> bytes:
    fault = _fault(activation)
    if fault is not None:
        raise LocalProtocolError(f"cannot send an activation with {fault}")
    head = _number(activation.seq_len) + _number(activation.hidden_dim) + bytes((activation.dtype,))
    return head + _number(len(activation.data)) + activation.data


def _text(text: str) -> bytes:
    data = text.encode()
    return _number(len(data)) + data


def _number(value: int) -> bytes:
    if value < 251:
        return bytes((value,))
    marker = 251 if value < 2**16 else 252 if value < 2**32 else 253
    return bytes((marker,)) + _WORDS[marker].pack(value)


# --- reading -----------------------------------------------------------------------------------------
class _Reader:
    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, size: int) -> bytes:
        if size > len(self._data) - self._at:
            raise RemoteProtocolError("a tensor message ends in the middle of a field")
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self, most: int) -> int:
        first = self.take(1)[0]
        if first < 251:
            value = first
        elif first in _WORDS:
            word = _WORDS[first]
            value = int(word.unpack(self.take(word.size))[0])
            if value < _LEAST[first]:
                raise RemoteProtocolError("a number of a tensor message is not in its shortest form")
        else:
            raise RemoteProtocolError("a number of a tensor message is too long")
        if value > most:
            raise RemoteProtocolError(f"{value} in a tensor message, at most {most} is allowed")
        return value

    def byte(self, most: int) -> int:
        value = self.take(1)[0]
        if value > most:
            raise RemoteProtocolError(f"{value} in a tensor message, at most {most} is allowed")
        return value

    def text(self, bytes_max: int) -> str:
        try:
            return self.take(self.number(bytes_max)).decode("utf-8")
        except UnicodeDecodeError:
            raise RemoteProtocolError("a text of a tensor message is not UTF-8") from None

    def activation(self) -> Activation:
        seq_len, hidden_dim = self.number(limits.FRAME_ROWS_MAX), self.number(limits.FRAME_COLUMNS_MAX)
        dtype = self.byte(len(DTYPES) - 1)
        data = self.take(self.number(limits.FRAME_PAYLOAD_BYTES_MAX))
        found = Activation(seq_len, hidden_dim, dtype, data)
        fault = _fault(found)
        if fault is not None:
            raise RemoteProtocolError(f"an activation with {fault}")
        return found

    def end(self) -> None:
        if self._at != len(self._data):
            raise RemoteProtocolError("a tensor message goes on behind its end")


def _fault(activation: Activation) -> str | None:
    rows, columns = activation.seq_len, activation.hidden_dim
    if not 1 <= rows <= limits.FRAME_ROWS_MAX or not 1 <= columns <= limits.FRAME_COLUMNS_MAX:
        return f"{rows} rows of {columns} values"
    if activation.dtype >= len(_VALUE_BYTES):
        return f"unknown dtype {activation.dtype}"
    size = TOKEN_BYTES if activation.is_tokens else columns * _VALUE_BYTES[activation.dtype]
    if len(activation.data) != rows * size:
        return f"{len(activation.data)} bytes for {rows} rows of {columns} values"
    return None


def decode_request(body: bytes) -> Request:
    """Raises RemoteProtocolError for anything but a request's exact bytes."""
    reader = _Reader(body)
    request = Request(
        reader.text(limits.OMNI_SESSION_ID_BYTES_MAX),
        reader.number(2**32 - 1),
        reader.number(2**32 - 1),
        reader.number(2**32 - 1),
        reader.activation(),
    )
    reader.end()
    return request


def decode_answer(body: bytes) -> Answer:
    """Raises RemoteProtocolError for anything but an answer's exact bytes."""
    reader = _Reader(body)
    session_id = reader.text(limits.OMNI_SESSION_ID_BYTES_MAX)
    index, stage = reader.number(2**32 - 1), reader.number(2**32 - 1)
    is_accepted, has_error = reader.byte(1), reader.byte(1)
    if is_accepted == has_error:
        raise RemoteProtocolError("an answer is accepted or says why not")
    if has_error:
        answer = Answer(session_id, index, stage, error=reader.text(limits.OMNI_ERROR_BYTES_MAX))
    else:
        answer = Answer(session_id, index, stage, activation=reader.activation())
    reader.end()
    return answer


async def read_body(read_exactly: Callable[[int], Awaitable[bytes]]) -> bytes:
    """One message's body; its length is checked before anything is kept."""
    size = int.from_bytes(await read_exactly(4), "big")
    if size > limits.OMNI_MESSAGE_BYTES_MAX:
        raise RemoteProtocolError(
            f"a tensor message of {size} bytes is over the limit of {limits.OMNI_MESSAGE_BYTES_MAX}"
        )
    return await read_exactly(size)
