"""Receipts between a head and the devices that computed for it: asked for, signed, countersigned, recorded.

After an answer the head asks each stage what it did (`receipt.tally`), settles, and asks for a signed
receipt of it (`receipt.ask`); it countersigns what agrees with what it saw and hands that back
(`receipt.agree`). A provider that waits for a signature repeats that receipt instead of giving the next.
Source: specs/09-billing.md#receipts
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from p2pnode.commands import AcceptReceipt, Command, GiveReceipt
from p2pnode.compute.row_tally import RowTallies, RowTally
from p2pnode.decide import StageWork, draft_receipt, may_compute, parts_of_share
from p2pnode.errors import (
    BadReceipt,
    Forbidden,
    NotFound,
    P2PNodeError,
    ReceiptOwed,
    RemoteProtocolError,
    TransportError,
)
from p2pnode.events import receipt as receipts
from p2pnode.events.fields import Count, Hash, Label
from p2pnode.events.keys import LogKeys, decode_binding, encode_binding
from p2pnode.events.note import Note, parse_note
from p2pnode.events.types import KeysBound
from p2pnode.limits import RECEIPT_CALL_S_MAX, RECEIPTS_UNFINISHED_MAX
from p2pnode.node.active import Place
from p2pnode.projections import MeshState
from p2pnode.units import PeerId

TALLY, ASK, AGREE, WAITING = "receipt.tally", "receipt.ask", "receipt.agree", "receipt.waiting"
GIVE = "give"
JsonObject = dict[str, Any]


class Record(Protocol):
    """What is needed of the node's ledger."""

    state: MeshState

    async def do(self, command: Command) -> JsonObject: ...


Call = Callable[..., Awaitable[JsonObject]]
"""(peer, method, arguments, timeout_s=...): the links' `call`."""
Serve = Callable[[str, Callable[[PeerId, JsonObject, Any], Awaitable[JsonObject]]], None]


class Debts(Protocol):
    """Who watches what heads have not signed for."""

    def given(self, head: PeerId, key: tuple[str, int, tuple[int, int]], microunits: int) -> None: ...

    def signed(self, head: PeerId, key: tuple[str, int, tuple[int, int]]) -> None: ...

    def owed_beside(self, head: PeerId, key: tuple[str, int, tuple[int, int]]) -> int:
        """What a head has not signed for, but for this."""
        ...


class _Where(msgspec.Struct, frozen=True):
    plan_id: Label
    session: Count
    layers: tuple[Count, Count]


class _Ask(_Where, frozen=True):
    request_id: Label
    model: Label
    salt: Hash
    layer_tokens: Count
    microunits: Count
    request_layer_tokens: Count
    request_microunits: Count


class _Signed(msgspec.Struct, frozen=True):
    """A signed receipt on its way; `keys` is a KeysBound fact, by which the signer's identity vouches."""

    receipt: bytes
    signature: bytes
    keys: bytes
    repeated: bool = False
    """It was given before, for something else, and still waits for its signature."""


@dataclass(frozen=True, slots=True)
class StageDone:
    """One place's part in a request, by its own tally."""

    place: Place
    layer_tokens: int


@dataclass(frozen=True, slots=True)
class RequestDone:
    """What the head knows of a request that is over, or of a unit of it that is there."""

    request_id: str
    session: int
    model: str
    positions: Mapping[Place, int]
    """Most that each place can have computed since its last receipt, by what the head fed; of all plans it ran on."""

    def work(self, stages: Sequence[StageDone] = ()) -> dict[str, int]:
        """Layer-tokens by device: by the places' own tallies, where there is none by what the head fed."""
        counted = {stage.place: stage.layer_tokens for stage in stages}
        work: dict[str, int] = {}
        for place, positions in self.positions.items():
            done = counted.get(place, place.layer_tokens(positions))
            work[place.peer] = work.get(place.peer, 0) + done
        return work


class Receipts:
    """Both sides of the exchange for one node."""

    def __init__(
        self,
        *,
        me: PeerId,
        record: Record,
        tallies: RowTallies,
        debts: Debts,
        call: Call,
        serve: Serve,
        keys: Callable[[], LogKeys],
        checkpoint: Callable[[], str | None],
        now_ms: Callable[[], int],
        rng: Callable[[int], bytes],
    ) -> None:
        self._me, self._record, self._tallies, self._debts = me, record, tallies, debts
        self._call, self._keys, self._checkpoint = call, keys, checkpoint
        self._now_ms, self._rng = now_ms, rng
        self._locks: dict[tuple[str, PeerId], asyncio.Lock] = {}
        """One receipt is under way in each channel."""
        self._waiting: dict[PeerId, tuple[str, int, tuple[int, int]]] = {}
        """What the receipt that waits for a consumer's signature is about."""
        self._unfinished: dict[PeerId, list[_Ask]] = {}
        """What a provider could not be asked for; the newest last."""
        serve(TALLY, self._serve_tally)
        serve(WAITING, self._serve_waiting)
        serve(ASK, self._serve_ask)
        serve(AGREE, self._serve_agree)

    # --- head -----------------------------------------------------------------------------------------
    async def tally(self, done: RequestDone) -> list[StageDone]:
        """What each remote place says it did, never more than the head can have asked of it."""
        remote = [place for place in done.positions if place.peer != self._me]
        claims = await asyncio.gather(*[self._claim(place, done.session) for place in remote])
        return [
            StageDone(place, max(min(claim, place.layer_tokens(done.positions[place])), 0))
            for place, claim in zip(remote, claims, strict=True)
            if claim is not None
        ]

    async def _claim(self, place: Place, session: int) -> int | None:
        where = {"plan_id": place.plan_id, "session": session, "layers": list(place.layers)}
        try:
            answer = await self._call(place.peer, TALLY, where, timeout_s=RECEIPT_CALL_S_MAX)
            return msgspec.convert(answer["layer_tokens"], int)
        except (P2PNodeError, KeyError, msgspec.ValidationError):
            return None  # it is gone, or does not know the session: no receipt, no harm

    async def collect(
        self,
        done: RequestDone,
        stages: Sequence[StageDone],
        work: Mapping[str, int],
        shares: Mapping[str, int],
    ) -> int:
        """Exchange a receipt with every place; answers how many were signed by both. Never raises a condition.

        `work` is what the price was divided by, `shares` who earned what of it.
        """
        accounts = self._record.state.billing.accounts
        earning = {peer: n for peer, n in work.items() if peer not in accounts or not accounts[peer].ended}
        price, total = sum(shares.values()), sum(earning.values())
        salt = self._rng(32)
        asked: list[tuple[PeerId, _Ask]] = []
        for peer in earning:
            own = [stage for stage in stages if stage.place.peer == peer and stage.layer_tokens]
            if not own:
                continue
            pieces = [stage.layer_tokens for stage in own]
            rest = work[peer] - sum(
                pieces
            )  # counted by the head for a place that is gone: nobody signs for that
            parts = parts_of_share(shares.get(peer, 0), price, total, [*pieces, rest])
            asked += [
                (
                    stage.place.peer,
                    _Ask(
                        plan_id=stage.place.plan_id,
                        session=done.session,
                        layers=stage.place.layers,
                        request_id=done.request_id,
                        model=done.model,
                        salt=salt,
                        layer_tokens=stage.layer_tokens,
                        microunits=part,
                        request_layer_tokens=total,
                        request_microunits=price,
                    ),
                )
                for stage, part in zip(own, parts, strict=False)
            ]
        return sum(await asyncio.gather(*[self._exchange(peer, ask) for peer, ask in asked]))

    async def _exchange(self, peer: PeerId, asked: _Ask) -> bool:
        """Whether both signed; what is left unsigned is asked for again with the next one."""
        async with self._locks.setdefault((ASK, peer), asyncio.Lock()):
            try:
                is_signed = await self._ask(peer, asked)
                await self._ask_unfinished(peer)
            except (TransportError, ReceiptOwed):
                unfinished = self._unfinished.setdefault(peer, [])
                unfinished.append(asked)
                del unfinished[:-RECEIPTS_UNFINISHED_MAX]
                return False
            except (P2PNodeError, msgspec.ValidationError):
                return False
            return is_signed

    async def make_up(self, peer: PeerId) -> None:
        """Sign what waits at a provider and ask for what it could not be asked for: it is back, or refuses to go on."""
        with contextlib.suppress(P2PNodeError, msgspec.ValidationError):
            async with self._locks.setdefault((ASK, peer), asyncio.Lock()):
                answer = await self._call(peer, WAITING, {}, timeout_s=RECEIPT_CALL_S_MAX)
                if answer:
                    offered = msgspec.convert(answer, _Signed, builtin_types=(bytes,))
                    await self._agree(peer, offered, receipts.decode(offered.receipt), None)
                await self._ask_unfinished(peer)

    async def _ask_unfinished(self, peer: PeerId) -> None:
        while unfinished := self._unfinished.get(peer):
            try:
                await self._ask(peer, unfinished[0])
            except (TransportError, ReceiptOwed):
                return
            except (P2PNodeError, msgspec.ValidationError):
                pass  # it knows nothing of that any more, or signed for it already
            del unfinished[0]
        self._unfinished.pop(peer, None)

    async def _ask(self, peer: PeerId, asked: _Ask) -> bool:
        """One that waited for a signature comes first, so it may take two turns."""
        for _ in range(2):
            answer = await self._call(peer, ASK, _plain(asked), timeout_s=RECEIPT_CALL_S_MAX)
            offered = msgspec.convert(answer, _Signed, builtin_types=(bytes,))
            receipt = receipts.decode(offered.receipt)
            is_about = (receipt.request_id, (receipt.layer_first, receipt.layer_end))
            if not offered.repeated and is_about != (asked.request_id, asked.layers):
                raise BadReceipt(f"{peer} gave a receipt for something else")
            await self._agree(peer, offered, receipt, None if offered.repeated else asked)
            if not offered.repeated:
                return True
        return False

    async def _agree(
        self, peer: PeerId, offered: _Signed, receipt: receipts.Receipt, asked: _Ask | None
    ) -> None:
        keys = self._keys()
        countersignature = receipts.countersign(offered.receipt, keys.receipt)
        answer = await self._record.do(
            AcceptReceipt(
                receipt=offered.receipt,
                signature=offered.signature,
                provider_keys=_bound(offered.keys, peer),
                countersignature=countersignature,
                consumer_key=self._public_key(),
                layer_tokens_max=receipt.layer_tokens if asked is None else asked.layer_tokens,
                microunits_max=self._earned(receipt) if asked is None else asked.microunits,
            )
        )
        if not answer["accepted"]:
            raise BadReceipt(f"{peer} signed two receipts under one number")
        mine = _Signed(offered.receipt, countersignature, _binding(keys))
        await self._call(peer, AGREE, _plain(mine), timeout_s=RECEIPT_CALL_S_MAX)

    def _earned(self, receipt: receipts.Receipt) -> int:
        """Most that a repeated receipt can be for: the provider's part of that request, and of all it earned here
        what no receipt names yet. How much was asked for then, only the provider remembers."""
        billing, provider = self._record.state.billing, receipt.provider
        resolution, hold = billing.resolved.get(receipt.request_id), billing.holds.get(receipt.request_id)
        shares = (
            dict(resolution.shares) if resolution is not None else hold.shares if hold is not None else {}
        )
        account, channel = billing.accounts.get(provider), billing.received.get(provider)
        earned = account.earned if account is not None else 0
        named = channel.agreed_microunits if channel is not None else 0
        return min(shares.get(provider, 0), earned - named)

    # --- provider -------------------------------------------------------------------------------------
    async def _serve_tally(self, peer: PeerId, arguments: JsonObject, _: Any) -> JsonObject:
        await self._tallies.settle()
        tally = self._tally(_convert(arguments, _Where), peer)
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
        asked = _convert(arguments, _Ask)
        async with self._locks.setdefault((GIVE, peer), asyncio.Lock()):
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

    def _draft(self, peer: PeerId, asked: _Ask, tally: RowTally) -> receipts.Receipt:
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
        agreed = _convert(arguments, _Signed)
        channel = self._record.state.billing.given.get(peer)
        if channel is None or channel.receipt != agreed.receipt:
            raise NotFound("that receipt does not wait for a signature")
        await self._record.do(
            GiveReceipt(
                receipt=channel.receipt,
                signature=self._sign(channel.receipt),
                provider_key=self._public_key(),
                countersignature=agreed.signature,
                consumer_key=_bound_key(agreed.keys, peer),
            )
        )
        waited_for = self._waiting.pop(peer, None)
        if waited_for is not None:
            self._debts.signed(peer, waited_for)
        return {"sequence": channel.sequence}

    def _offer(self, raw: bytes, *, repeated: bool = False) -> JsonObject:
        """Signed by the keys of now: they may have been changed since the receipt was given."""
        return _plain(_Signed(raw, self._sign(raw), _binding(self._keys()), repeated))

    def _sign(self, raw: bytes) -> bytes:
        return receipts.sign(raw, self._keys().receipt)

    def _public_key(self) -> bytes:
        return self._keys().receipt.public_key().public_bytes_raw()

    def _tally(self, where: _Where, peer: PeerId) -> RowTally:
        tally = self._tallies.get(where.plan_id, where.session, where.layers)
        if tally is None:
            raise NotFound(f"this device computed nothing for session {where.session} of that plan")
        if tally.stage.head != peer:
            raise Forbidden("only the head of a plan asks what was computed for it")
        return tally


def _convert(arguments: JsonObject, kind: type[Any]) -> Any:
    try:
        return msgspec.convert(arguments, kind, builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        raise RemoteProtocolError(f"a call about receipts that cannot be read: {error}") from None


def _plain(value: Any) -> JsonObject:
    plain: JsonObject = msgspec.to_builtins(value, builtin_types=(bytes,))
    return plain


def _binding(keys: LogKeys) -> bytes:
    return encode_binding(keys.bound())


def _own_part(checkpoint: str | None) -> str:
    """The log's own signature only: witnesses' would not fit."""
    if checkpoint is None:
        return ""
    note = parse_note(checkpoint)
    return str(Note(note.text, note.signatures[:1]))


def _bound_key(raw: bytes, peer: PeerId) -> bytes:
    """The receipt key for which the peer's identity vouches."""
    return _bound(raw, peer).receipt_key


def _bound(raw: bytes, peer: PeerId) -> KeysBound:
    bound = decode_binding(raw)
    if bound.peer != peer:
        raise BadReceipt(f"the keys are {bound.peer}'s, not {peer}'s")
    return bound
