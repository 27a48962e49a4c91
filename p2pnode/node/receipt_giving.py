"""Receipts as a device that computed for others gives them: numbered, signed, recorded before they are sent.

A receipt that waits for its head's signature is said again instead of the next one.
Source: specs/09-billing.md#receipts
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from p2pnode.commands import Command, GiveReceipt
from p2pnode.compute.row_tally import RowTallies, RowTally
from p2pnode.decide import StageWork, draft_receipt, may_compute
from p2pnode.errors import BadReceipt, Forbidden, NotFound
from p2pnode.events import receipt as receipts
from p2pnode.events.keys import LogKeys
from p2pnode.events.note import Note, parse_note
from p2pnode.node.receipt_messages import (
    AGREE,
    ASK,
    TALLY,
    WAITING,
    Ask,
    JsonObject,
    Signed,
    Where,
    binding_of,
    bound,
    convert,
    plain,
)
from p2pnode.projections import MeshState
from p2pnode.units import PeerId


class Record(Protocol):
    """What is needed of the node's ledger."""

    state: MeshState

    async def do(self, command: Command) -> JsonObject: ...


Serve = Callable[[str, Callable[[PeerId, JsonObject, Any], Awaitable[JsonObject]]], None]


class Debts(Protocol):
    """Who watches what heads have not signed for."""

    def given(self, head: PeerId, key: tuple[str, int, tuple[int, int]], microunits: int) -> None: ...

    def signed(self, head: PeerId, key: tuple[str, int, tuple[int, int]]) -> None: ...

    def owed_beside(self, head: PeerId, key: tuple[str, int, tuple[int, int]]) -> int:
        """What a head has not signed for, but for this."""
        ...


class ReceiptGiving:
    """The provider's side of the exchange."""

    def __init__(
        self,
        *,
        record: Record,
        tallies: RowTallies,
        debts: Debts,
        serve: Serve,
        keys: Callable[[], LogKeys],
        checkpoint: Callable[[], str | None],
        now_ms: Callable[[], int],
    ) -> None:
        self._record, self._tallies, self._debts = record, tallies, debts
        self._keys, self._checkpoint, self._now_ms = keys, checkpoint, now_ms
        self._locks: dict[PeerId, asyncio.Lock] = {}
        """One receipt is under way in each channel."""
        self._waiting: dict[PeerId, tuple[str, int, tuple[int, int]]] = {}
        """What the receipt that waits for a consumer's signature is about."""
        serve(TALLY, self._serve_tally)
        serve(WAITING, self._serve_waiting)
        serve(ASK, self._serve_ask)
        serve(AGREE, self._serve_agree)

    async def _serve_tally(self, peer: PeerId, arguments: JsonObject, _: Any) -> JsonObject:
        await self._tallies.settle()
        tally = self._tally(convert(arguments, Where), peer)
        return {
            "layer_tokens": tally.layer_tokens,
            "positions": [tally.position_first, tally.position_end],
        }

    async def _serve_waiting(self, peer: PeerId, arguments: JsonObject, _: Any) -> JsonObject:
        """The receipt that waits for the caller's signature, if one does."""
        del arguments
        channel = self._record.state.billing.given.get(peer)
        if channel is None or channel.sequence == channel.agreed_sequence:
            return {}
        return self._offer(channel.receipt, repeated=True)

    async def _serve_ask(self, peer: PeerId, arguments: JsonObject, _: Any) -> JsonObject:
        """Sign the next receipt, or say the one again that still waits for a signature."""
        asked = convert(arguments, Ask)
        async with self._locks.setdefault(peer, asyncio.Lock()):
            channel = self._record.state.billing.given.get(peer)
            if channel is not None and channel.sequence != channel.agreed_sequence:
                return self._offer(channel.receipt, repeated=True)
            await self._tallies.settle()
            tally = self._tally(asked, peer)
            raw = receipts.encode(self._draft(peer, asked, tally))
            # Recorded before it is sent: a number is never signed twice, whatever happens.
            await self._record.do(
                GiveReceipt(receipt=raw, signature=self._sign(raw), provider_key=self._public_key())
            )
            tally.cut()
            self._waiting[peer] = (asked.plan_id, asked.session, asked.layers)
            self._debts.given(peer, self._waiting[peer], asked.microunits)
            return self._offer(raw)

    def _draft(self, peer: PeerId, asked: Ask, tally: RowTally) -> receipts.Receipt:
        state = self._record.state
        if asked.layer_tokens > tally.layer_tokens:
            raise BadReceipt(f"this device computed {tally.layer_tokens} layer-tokens for it, not more")
        beside = self._debts.owed_beside(peer, (asked.plan_id, asked.session, asked.layers))
        may_compute(state, peer, beside + asked.microunits)
        work = StageWork(
            request_id=asked.request_id,
            model=asked.model,
            layers=tally.stage.layers,
            positions=(tally.position_first, tally.position_end),
            layer_tokens=asked.layer_tokens,
            request_layer_tokens=asked.request_layer_tokens,
            microunits=asked.microunits,
            request_microunits=asked.request_microunits,
            input_commitment=hmac.digest(asked.salt, tally.input_digest, "sha256"),
            output_commitment=hmac.digest(asked.salt, tally.output_digest, "sha256"),
        )
        return draft_receipt(state, peer, work, _own_part(self._checkpoint()), self._now_ms())

    async def _serve_agree(self, peer: PeerId, arguments: JsonObject, _: Any) -> JsonObject:
        agreed = convert(arguments, Signed)
        channel = self._record.state.billing.given.get(peer)
        if channel is None or channel.receipt != agreed.receipt:
            raise NotFound("that receipt does not wait for a signature")
        await self._record.do(
            GiveReceipt(
                receipt=channel.receipt,
                signature=self._sign(channel.receipt),
                provider_key=self._public_key(),
                countersignature=agreed.signature,
                consumer_key=bound(agreed.keys, peer).receipt_key,
            )
        )
        waited_for = self._waiting.pop(peer, None)
        if waited_for is not None:
            self._debts.signed(peer, waited_for)
        return {"sequence": channel.sequence}

    def _offer(self, raw: bytes, *, repeated: bool = False) -> JsonObject:
        """Signed by the keys of now: they may have been changed since the receipt was given."""
        return plain(Signed(raw, self._sign(raw), binding_of(self._keys()), repeated))

    def _sign(self, raw: bytes) -> bytes:
        return receipts.sign(raw, self._keys().receipt)

    def _public_key(self) -> bytes:
        return self._keys().receipt.public_key().public_bytes_raw()

    def _tally(self, where: Where, peer: PeerId) -> RowTally:
        tally = self._tallies.get(where.plan_id, where.session, where.layers)
        if tally is None:
            raise NotFound(f"this device computed nothing for session {where.session} of that plan")
        if tally.stage.head != peer:
            raise Forbidden("only the head of a plan asks what was computed for it")
        return tally


def _own_part(checkpoint: str | None) -> str:
    """The log's own signature only: witnesses' would not fit."""
    if checkpoint is None:
        return ""
    note = parse_note(checkpoint)
    return str(Note(note.text, note.signatures[:1]))
