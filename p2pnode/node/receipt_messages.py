"""What a head and a device that computed for it say to each other about receipts.

Source: specs/09-billing.md#receipts
"""

from __future__ import annotations

from typing import Any

import msgspec

from p2pnode.errors import BadReceipt, RemoteProtocolError
from p2pnode.events.fields import Count, Hash, Label
from p2pnode.events.keys import LogKeys, decode_binding, encode_binding
from p2pnode.events.types import KeysBound
from p2pnode.units import PeerId

TALLY, ASK, AGREE, WAITING = "receipt.tally", "receipt.ask", "receipt.agree", "receipt.waiting"
JsonObject = dict[str, Any]


class Where(msgspec.Struct, frozen=True):
    plan_id: Label
    session: Count
    layers: tuple[Count, Count]


class Ask(Where, frozen=True):
    request_id: Label
    model: Label
    salt: Hash
    layer_tokens: Count
    microunits: Count
    request_layer_tokens: Count
    request_microunits: Count


class Signed(msgspec.Struct, frozen=True):
    """A signed receipt on its way; `keys` is a KeysBound fact, by which the signer's identity vouches."""

    receipt: bytes
    signature: bytes
    keys: bytes
    repeated: bool = False
    """It was given before, for something else, and still waits for its signature."""


def convert(arguments: JsonObject, kind: type[Any]) -> Any:
    try:
        return msgspec.convert(arguments, kind, builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        raise RemoteProtocolError(f"a call about receipts that cannot be read: {error}") from None


def plain(value: Any) -> JsonObject:
    written: JsonObject = msgspec.to_builtins(value, builtin_types=(bytes,))
    return written


def binding_of(keys: LogKeys) -> bytes:
    return encode_binding(keys.bound())


def bound(raw: bytes, peer: PeerId) -> KeysBound:
    fact = decode_binding(raw)
    if fact.peer != peer:
        raise BadReceipt(f"the keys are {fact.peer}'s, not {peer}'s")
    return fact
