"""The provider's side of receipts: what it computed is tallied, signed, recorded, and only then given.

Receipts of one question stand in one fact, and again when the head has signed them. While a head's signatures are
missing it hears those receipts again instead of the next. Source: specs/09-billing.md#receipts
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable, Collection
from typing import Any, Protocol

from p2pnode.commands import GiveReceipts
from p2pnode.compute.row_tally import RowTallies, RowTally
from p2pnode.decide import StageWork, draft_receipts, fact_bytes, may_compute
from p2pnode.errors import BadReceipt, Forbidden, NotFound, P2PNodeError, ReceiptOwed, RemoteProtocolError
from p2pnode.events import receipt as receipts
from p2pnode.events.keys import LogKeys
from p2pnode.events.note import Note, parse_note
from p2pnode.events.receipt import Signed
from p2pnode.limits import RECEIPT_BYTES_MAX, RECEIPTS_FACT_BYTES_MAX
from p2pnode.node import receipt_messages as wire
from p2pnode.node.receipt_messages import (
    AGREE,
    ASK,
    TALLY,
    WAITING,
    Ask,
    DebtKey,
    JsonObject,
    Offer,
    Record,
    Serve,
    Where,
)
from p2pnode.units import PeerId


class Debts(Protocol):
    """Who watches what heads have not signed for."""

    def given(self, head: PeerId, key: DebtKey, microunits: int) -> None: ...

    def signed(self, head: PeerId, key: DebtKey) -> None: ...

    def owed_beside(self, head: PeerId, keys: Collection[DebtKey]) -> int:
        """What a head has not signed for, but for these."""
        ...


class ReceiptGiving:
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
        """One question of a head is answered at a time."""
        self._waiting: dict[PeerId, list[DebtKey]] = {}
        """What the receipts that wait for a head's signature are about, in order."""
        serve(TALLY, self._serve_tally)
        serve(WAITING, self._serve_waiting)
        serve(ASK, self._serve_ask)
        serve(AGREE, self._serve_agree)

    async def _serve_tally(self, peer: PeerId, arguments: JsonObject, _: Any) -> JsonObject:
        await self._tallies.settle()
        where: Where = wire.convert(arguments, Where)
        tally = self._tally((where.plan_id, where.session, where.layers), peer)
        return {
            "layer_tokens": tally.layer_tokens,
            "positions": [tally.position_first, tally.position_end],
        }

    async def _serve_waiting(self, peer: PeerId, arguments: JsonObject, _: Any) -> JsonObject:
        """The receipts that wait for the caller's signature, if any do."""
        del arguments
        waiting = self._unsigned(peer)
        return self._offer(waiting, repeated=True) if waiting else {}

    async def _serve_ask(self, peer: PeerId, arguments: JsonObject, _: Any) -> JsonObject:
        """Sign the next receipts, or say those again that still wait for a signature."""
        asked: Ask = wire.convert(arguments, Ask)
        async with self._locks.setdefault(peer, asyncio.Lock()):
            if waiting := self._unsigned(peer):
                return self._offer(waiting, repeated=True)
            await self._tallies.settle()
            work, left = self._work(peer, asked)
            made = draft_receipts(
                self._record.state,
                peer,
                [one for _, _, one in work],
                _own_part(self._checkpoint()),
                self._now_ms(),
            )
            raws = [receipts.encode(receipt) for receipt in made]
            fitting = self._fitting(raws)
            given, left = raws[:fitting], left + len(raws) - fitting
            keys = self._keys()
            # Recorded before they are sent: a number is never signed twice, whatever happens.
            await self._record.do(
                GiveReceipts(
                    receipts=tuple(Signed(raw, receipts.sign(raw, keys.receipt)) for raw in given),
                    provider_key=wire.public_key(keys),
                )
            )
            self._waiting[peer] = [key for key, _, _ in work[:fitting]]
            for key, tally, one in work[:fitting]:
                tally.cut()
                self._debts.given(peer, key, one.microunits)
            return self._offer(given, left=left)

    def _work(self, peer: PeerId, asked: Ask) -> tuple[list[tuple[DebtKey, RowTally, StageWork]], int]:
        """What can be signed for now, and how many of the last parts only later; a part that is wrong is left out.

        Raises: what is wrong when nothing is left.
        """
        found: list[tuple[DebtKey, RowTally, StageWork]] = []
        keys: set[DebtKey] = set()
        owed = 0
        refusal: P2PNodeError | None = None
        for number, part in enumerate(asked.parts):
            key = (part.plan_id, asked.session, part.layers)
            if key in keys:
                raise RemoteProtocolError("one stage's work is receipted once")
            try:
                tally = self._tally(key, peer)
                if part.layer_tokens > tally.layer_tokens:
                    raise BadReceipt(
                        f"this device computed {tally.layer_tokens} layer-tokens for it, not more"
                    )
                beside = self._debts.owed_beside(peer, {*keys, key})
                may_compute(self._record.state, peer, beside + owed + part.microunits)
            except ReceiptOwed:
                if not found:
                    raise
                return found, len(asked.parts) - number
            except (NotFound, Forbidden, BadReceipt) as error:
                refusal = error
                continue
            keys.add(key)
            owed += part.microunits
            work = StageWork(
                request_id=asked.request_id,
                model=asked.model,
                layers=tally.stage.layers,
                positions=(tally.position_first, tally.position_end),
                layer_tokens=part.layer_tokens,
                request_layer_tokens=asked.request_layer_tokens,
                microunits=part.microunits,
                request_microunits=asked.request_microunits,
                input_commitment=hmac.digest(asked.salt, tally.input_digest, "sha256"),
                output_commitment=hmac.digest(asked.salt, tally.output_digest, "sha256"),
            )
            found.append((key, tally, work))
        if not found:
            assert refusal is not None, "an ask has a part"
            raise refusal
        return found, 0

    def _fitting(self, raws: list[bytes]) -> int:
        """How many of the first receipts one fact of the head's holds beside this device's keys."""
        room = RECEIPTS_FACT_BYTES_MAX - RECEIPT_BYTES_MAX
        for number, raw in enumerate(raws):
            room -= fact_bytes(raw)
            if room < 0:
                return number
        return len(raws)

    async def _serve_agree(self, peer: PeerId, arguments: JsonObject, _: Any) -> JsonObject:
        agreed: Offer = wire.convert(arguments, Offer)
        async with self._locks.setdefault(peer, asyncio.Lock()):
            channel = self._record.state.billing.given.get(peer)
            known = {raw for raw, _ in channel.receipts} if channel is not None else set()
            if channel is None or any(raw not in known for raw, _ in agreed.receipts):
                raise NotFound("those receipts do not wait for a signature")
            before, keys = channel.agreed_sequence, self._keys()
            await self._record.do(
                GiveReceipts(
                    receipts=tuple(
                        Signed(raw, receipts.sign(raw, keys.receipt), countersignature)
                        for raw, countersignature in agreed.receipts
                    ),
                    provider_key=wire.public_key(keys),
                    consumer_key=wire.bound(agreed.keys, peer).receipt_key,
                )
            )
            sequence = self._record.state.billing.given[peer].agreed_sequence
            waited_for = self._waiting.pop(peer, [])
            for key in waited_for[: sequence - before]:
                self._debts.signed(peer, key)
            self._waiting[peer] = waited_for[sequence - before :]
            return {"sequence": sequence}

    def _unsigned(self, peer: PeerId) -> list[bytes]:
        channel = self._record.state.billing.given.get(peer)
        return [] if channel is None else [raw for raw, _ in channel.waiting]

    def _offer(self, raws: list[bytes], *, repeated: bool = False, left: int = 0) -> JsonObject:
        """Signed by the keys of now: they may have been changed since the receipts were given."""
        keys = self._keys()
        signed = tuple((raw, receipts.sign(raw, keys.receipt)) for raw in raws)
        return wire.plain(Offer(signed, wire.binding(keys), repeated, left))

    def _tally(self, key: DebtKey, peer: PeerId) -> RowTally:
        plan_id, session, layers = key
        tally = self._tallies.get(plan_id, session, layers)
        if tally is None:
            raise NotFound(f"this device computed nothing for session {session} of that plan")
        if tally.stage.head != peer:
            raise Forbidden("only the head of a plan asks what was computed for it")
        return tally


def _own_part(checkpoint: str | None) -> str:
    """The log's own signature only: witnesses' would not fit."""
    if checkpoint is None:
        return ""
    note = parse_note(checkpoint)
    return str(Note(note.text, note.signatures[:1]))
