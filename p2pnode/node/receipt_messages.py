"""What the two sides of an exchange of receipts say to each other. Source: specs/09-billing.md#receipts"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Protocol

import msgspec
from msgspec import Meta

from p2pnode.commands import Command
from p2pnode.errors import BadReceipt, RemoteProtocolError
from p2pnode.events.fields import Count, Hash, Label, Signature
from p2pnode.events.keys import LogKeys, decode_binding, encode_binding
from p2pnode.events.types import KeysBound
from p2pnode.limits import RECEIPT_BYTES_MAX, RECEIPT_PARTS_MAX
from p2pnode.projections import MeshState
from p2pnode.units import PeerId

TALLY, ASK, AGREE, WAITING = "receipt.tally", "receipt.ask", "receipt.agree", "receipt.waiting"
JsonObject = dict[str, Any]
DebtKey = tuple[str, int, tuple[int, int]]
"""Plan, session, layers."""


class Record(Protocol):
    """What is needed of the node's ledger."""

    state: MeshState

    async def do(self, command: Command) -> JsonObject: ...


Call = Callable[..., Awaitable[JsonObject]]
"""(peer, method, arguments, timeout_s=...): the links' `call`."""
Serve = Callable[[str, Callable[[PeerId, JsonObject, Any], Awaitable[JsonObject]]], None]


class Where(msgspec.Struct, frozen=True):
    """`receipt.tally`: a session on one stage."""

    plan_id: Label
    session: Count
    layers: tuple[Count, Count]


class Part(msgspec.Struct, frozen=True):
    """One stage's work, and its part of the price."""

    plan_id: Label
    layers: tuple[Count, Count]
    layer_tokens: Count
    microunits: Count


class Ask(msgspec.Struct, frozen=True):
    """`receipt.ask`: a receipt for each part, in this order."""

    session: Count
    request_id: Label
    model: Label
    salt: Hash
    request_layer_tokens: Count
    request_microunits: Count
    parts: Annotated[tuple[Part, ...], Meta(min_length=1, max_length=RECEIPT_PARTS_MAX)]


_Raw = Annotated[bytes, Meta(max_length=RECEIPT_BYTES_MAX)]


class Offer(msgspec.Struct, frozen=True):
    """Signed receipts on their way, or the countersignatures of them (`receipt.agree`)."""

    receipts: Annotated[tuple[tuple[_Raw, Signature], ...], Meta(min_length=1, max_length=RECEIPT_PARTS_MAX)]
    keys: bytes
    """A `KeysBound` fact, by which the signer's identity vouches for its key."""
    repeated: bool = False
    """They were given before, for something else, and still wait for their signatures."""
    left: Count = 0
    """So many of the last parts can only be receipted once these are signed."""


def convert(arguments: JsonObject, kind: type[Any]) -> Any:
    try:
        return msgspec.convert(arguments, kind, builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        raise RemoteProtocolError(f"a call about receipts that cannot be read: {error}") from None


def plain(value: Any) -> JsonObject:
    made: JsonObject = msgspec.to_builtins(value, builtin_types=(bytes,))
    return made


def binding(keys: LogKeys) -> bytes:
    return encode_binding(keys.bound())


def bound(raw: bytes, peer: PeerId) -> KeysBound:
    """The keys for which the peer's identity vouches."""
    shown = decode_binding(raw)
    if shown.peer != peer:
        raise BadReceipt(f"the keys are {shown.peer}'s, not {peer}'s")
    return shown


def public_key(keys: LogKeys) -> bytes:
    return keys.receipt.public_key().public_bytes_raw()
