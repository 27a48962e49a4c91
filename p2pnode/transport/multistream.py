"""multistream-select 1.0, sans-I/O: how two peers agree what a stream speaks.

Messages are varint-length-prefixed lines. The initiator sends header and proposal at once, which costs
no extra round trip; the responder answers each proposal with its echo or `na`.
Source: multiformats/multistream-select, libp2p/specs connections/README.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from p2pnode.errors import RemoteProtocolError
from p2pnode.multiformats import length_prefixed

HEADER = "/multistream/1.0.0"
NOT_AVAILABLE = "na"
LIST = "ls"

MESSAGE_BYTES_MAX = 1024
"""libp2p/specs: "implementations should limit messages to 1,024 bytes"."""

PROPOSALS_MAX = 16
"""An initiator that asks for more protocols than this on one stream is guessing."""


def encode_message(text: str) -> bytes:
    return length_prefixed(text.encode() + b"\n")


class MessageReader:
    """Cuts a byte stream into lines; never holds more than one message and what followed it."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def next_message(self) -> str | None:
        """The next complete line, None when bytes are missing; RemoteProtocolError when it can be none."""
        buffer = self._buffer
        size = index = 0
        while True:
            if index == len(buffer):
                return None
            byte = buffer[index]
            size |= (byte & 0x7F) << (7 * index)
            index += 1
            if byte < 0x80:
                break
            if index == 2:
                raise RemoteProtocolError("a multistream message is longer than allowed")
        if not 0 < size <= MESSAGE_BYTES_MAX or (index == 2 and size < 0x80):
            raise RemoteProtocolError(f"a multistream message of {size} bytes is not allowed")
        if len(buffer) < index + size:
            return None
        line = bytes(buffer[index : index + size])
        del buffer[: index + size]
        if line[-1:] != b"\n":
            raise RemoteProtocolError("a multistream message does not end with a newline")
        try:
            return line[:-1].decode("utf-8")
        except UnicodeDecodeError as error:
            raise RemoteProtocolError("a multistream message is not UTF-8") from error

    def take_rest(self) -> bytes:
        """Bytes that came after the last message: they belong to the chosen protocol."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest


@dataclass(slots=True)
class Initiator:
    """Proposes one protocol. Feed what arrives until `done`."""

    protocol: str
    done: bool = False
    _reader: MessageReader = field(default_factory=MessageReader)
    _header_seen: bool = False

    def opening(self) -> bytes:
        return encode_message(HEADER) + encode_message(self.protocol)

    def feed(self, data: bytes) -> None:
        """RemoteProtocolError, with `reason: na` when the peer does not speak the protocol (to us)."""
        self._reader.feed(data)
        while not self.done and (message := self._reader.next_message()) is not None:
            if not self._header_seen:
                if message != HEADER:
                    raise RemoteProtocolError("the peer does not speak multistream-select 1.0")
                self._header_seen = True
            elif message == self.protocol:
                self.done = True
            elif message == NOT_AVAILABLE:
                raise RemoteProtocolError(
                    f"the peer does not speak {self.protocol} (or not to this node)", reason=NOT_AVAILABLE
                )
            else:
                raise RemoteProtocolError("the peer answered with a protocol that was not proposed")

    def take_rest(self) -> bytes:
        return self._reader.take_rest()


@dataclass(slots=True)
class Responder:
    """Answers proposals; `accepts` decides. After each feed send `outgoing()`; at the end `chosen` is set."""

    accepts: Callable[[str], bool]
    chosen: str | None = None
    _reader: MessageReader = field(default_factory=MessageReader)
    _header_seen: bool = False
    _proposals: int = 0
    _outgoing: bytearray = field(default_factory=bytearray)

    def feed(self, data: bytes) -> None:
        self._reader.feed(data)
        while self.chosen is None and (message := self._reader.next_message()) is not None:
            if not self._header_seen:
                if message != HEADER:
                    raise RemoteProtocolError("the peer does not speak multistream-select 1.0")
                self._header_seen = True
                self._outgoing += encode_message(HEADER)
                continue
            self._proposals += 1
            if self._proposals > PROPOSALS_MAX:
                raise RemoteProtocolError(f"the peer proposed more than {PROPOSALS_MAX} protocols")
            if message != LIST and self.accepts(message):
                self.chosen = message
                self._outgoing += encode_message(message)
            else:
                self._outgoing += encode_message(NOT_AVAILABLE)

    def outgoing(self) -> bytes:
        data = bytes(self._outgoing)
        self._outgoing.clear()
        return data

    def take_rest(self) -> bytes:
        return self._reader.take_rest()
