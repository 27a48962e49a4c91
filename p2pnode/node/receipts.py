"""Receipts between a head and the devices that computed for it: asked for, countersigned, recorded, handed back.

After an answer, or a unit of it, the head asks each device what it did (`receipt.tally`), settles, and asks for signed
receipts of it (`receipt.ask`); it countersigns what agrees with what it saw, records that, and hands it back
(`receipt.agree`). What the devices of one request signed is recorded together, so that a request leaves few facts
however many places it ran on. The other side: `receipt_giving`. Source: specs/09-billing.md#receipts
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from p2pnode.commands import AcceptReceipts, OfferedReceipt
from p2pnode.compute.row_tally import RowTallies
from p2pnode.decide import fact_bytes, parts_of_share
from p2pnode.errors import BadReceipt, P2PNodeError, ReceiptOwed, TransportError
from p2pnode.events import receipt as receipts
from p2pnode.events.keys import LogKeys
from p2pnode.events.receipt import Receipt, Signed
from p2pnode.limits import (
    RECEIPT_CALL_S_MAX,
    RECEIPT_GATHER_S_MAX,
    RECEIPT_PARTS_MAX,
    RECEIPT_TURNS_MAX,
    RECEIPTS_FACT_BYTES_MAX,
    RECEIPTS_UNFINISHED_MAX,
)
from p2pnode.node import receipt_messages as wire
from p2pnode.node.active import Place
from p2pnode.node.receipt_desk import Desk
from p2pnode.node.receipt_giving import Debts, ReceiptGiving
from p2pnode.node.receipt_messages import (
    AGREE,
    ASK,
    TALLY,
    WAITING,
    Ask,
    Call,
    JsonObject,
    Offer,
    Part,
    Record,
    Serve,
)
from p2pnode.units import PeerId

Accept = Callable[[Sequence[OfferedReceipt]], Awaitable[list[JsonObject]]]
"""Records what is offered; one answer for each."""


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
        self._me, self._record, self._call, self._keys, self._rng = me, record, call, keys, rng
        self._locks: dict[PeerId, asyncio.Lock] = {}
        """One question to a device is under way at a time."""
        self._unfinished: dict[PeerId, list[Ask]] = {}
        """What a provider could not be asked for; the newest last."""
        self._giving = ReceiptGiving(
            record=record,
            tallies=tallies,
            debts=debts,
            serve=serve,
            keys=keys,
            checkpoint=checkpoint,
            now_ms=now_ms,
        )

    # --- what was done --------------------------------------------------------------------------------
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

    # --- receipts of it -------------------------------------------------------------------------------
    async def collect(
        self,
        done: RequestDone,
        stages: Sequence[StageDone],
        work: Mapping[str, int],
        shares: Mapping[str, int],
    ) -> int:
        """Exchange receipts with every place; answers how many were signed by both. Never raises a condition.

        `work` is what the price was divided by, `shares` who earned what of it.
        """
        asks = self._asks(done, stages, work, shares)
        async with Desk(self._accept, len(asks), RECEIPT_GATHER_S_MAX) as desk:
            signed = await asyncio.gather(*[self._exchange(peer, ask, desk) for peer, ask in asks.items()])
        return sum(signed)

    def _asks(
        self,
        done: RequestDone,
        stages: Sequence[StageDone],
        work: Mapping[str, int],
        shares: Mapping[str, int],
    ) -> dict[PeerId, Ask]:
        accounts = self._record.state.billing.accounts
        earning = {peer: n for peer, n in work.items() if peer not in accounts or not accounts[peer].ended}
        price, total = sum(shares.values()), sum(earning.values())
        salt = self._rng(32)
        asks: dict[PeerId, Ask] = {}
        for peer in earning:
            own = [stage for stage in stages if stage.place.peer == peer and stage.layer_tokens]
            if not own:
                continue
            pieces = [stage.layer_tokens for stage in own]
            rest = work[peer] - sum(pieces)  # the head's own count for a place that is gone: nobody signs
            parts = parts_of_share(shares.get(peer, 0), price, total, [*pieces, rest])
            asks[own[0].place.peer] = Ask(
                session=done.session,
                request_id=done.request_id,
                model=done.model,
                salt=salt,
                request_layer_tokens=total,
                request_microunits=price,
                parts=tuple(
                    Part(stage.place.plan_id, stage.place.layers, stage.layer_tokens, part)
                    for stage, part in zip(own, parts, strict=False)
                ),
            )
        return asks

    async def _exchange(self, peer: PeerId, asked: Ask, desk: Desk) -> int:
        """How many both signed; what could not be asked is asked for again with the next one."""
        async with self._locks.setdefault(peer, asyncio.Lock()):
            try:
                signed, rest = await self._ask(peer, asked, desk.accept)
            finally:
                desk.leave()
            if rest is not None:
                unfinished = self._unfinished.setdefault(peer, [])
                unfinished.append(rest)
                del unfinished[:-RECEIPTS_UNFINISHED_MAX]
            else:
                await self._ask_unfinished(peer)
            return signed

    async def make_up(self, peer: PeerId) -> None:
        """Sign what waits at a provider and ask for what it could not be asked for: it is back, or refuses to go on."""
        with contextlib.suppress(P2PNodeError, msgspec.ValidationError):
            async with self._locks.setdefault(peer, asyncio.Lock()):
                answer = await self._call(peer, WAITING, {}, timeout_s=RECEIPT_CALL_S_MAX)
                if answer:
                    offer = msgspec.convert(answer, Offer, builtin_types=(bytes,))
                    await self._agree(peer, offer, self._limits_of_repeated(offer), self._accept)
                await self._ask_unfinished(peer)

    async def _ask_unfinished(self, peer: PeerId) -> None:
        while unfinished := self._unfinished.get(peer):
            _, rest = await self._ask(peer, unfinished[0], self._accept)
            if rest is not None:
                unfinished[0] = rest
                return
            del unfinished[0]
        self._unfinished.pop(peer, None)

    async def _ask(self, peer: PeerId, asked: Ask, accept: Accept) -> tuple[int, Ask | None]:
        """How many receipts both signed, and what is worth asking for later; what was refused is not.

        Receipts that waited for a signature come first, and what is too much for one turn in the next.
        """
        count, parts = 0, asked.parts
        try:
            for _ in range(RECEIPT_TURNS_MAX):
                question = _with_parts(asked, parts[:RECEIPT_PARTS_MAX])
                answer = await self._call(peer, ASK, wire.plain(question), timeout_s=RECEIPT_CALL_S_MAX)
                offer = msgspec.convert(answer, Offer, builtin_types=(bytes,))
                if offer.repeated:
                    await self._agree(peer, offer, self._limits_of_repeated(offer), accept)
                    continue
                limits = _limits_of_asked(peer, offer, question)
                parts = parts[max(len(question.parts) - offer.left, 1) :]
                count += await self._agree(peer, offer, limits, accept)
                if not parts:
                    break
        except (TransportError, ReceiptOwed):
            return count, _with_parts(asked, parts) if parts else None
        except (P2PNodeError, msgspec.ValidationError):
            pass
        return count, None

    async def _agree(
        self, peer: PeerId, offer: Offer, limits: Sequence[tuple[int, int]], accept: Accept
    ) -> int:
        """Countersign, record, hand back; how many. BadReceipt when the first one is refused."""
        keys, provider_keys = self._keys(), wire.bound(offer.keys, peer)
        if sum(fact_bytes(raw) for raw, _ in offer.receipts) > RECEIPTS_FACT_BYTES_MAX:
            raise BadReceipt(f"{peer} gave more receipts than one fact holds")
        signed = [
            Signed(raw, signature, receipts.countersign(raw, keys.receipt))
            for raw, signature in offer.receipts
        ]
        answers = await accept(
            [
                OfferedReceipt(
                    signed=one,
                    provider_keys=provider_keys,
                    layer_tokens_max=layer_tokens,
                    microunits_max=microunits,
                )
                for one, (layer_tokens, microunits) in zip(signed, limits, strict=True)
            ]
        )
        good = 0
        while good < len(answers) and answers[good]["accepted"]:
            good += 1
        if not good:
            raise BadReceipt(answers[0]["refused"] or f"{peer} signed two receipts under one number")
        pairs = tuple((one.raw, one.countersignature or b"") for one in signed[:good])
        agreed = wire.plain(Offer(pairs, wire.binding(keys)))
        await self._call(peer, AGREE, agreed, timeout_s=RECEIPT_CALL_S_MAX)
        return good

    async def _accept(self, offers: Sequence[OfferedReceipt]) -> list[JsonObject]:
        command = AcceptReceipts(offers=tuple(offers), consumer_key=wire.public_key(self._keys()))
        answer = await self._record.do(command)
        answers: list[JsonObject] = answer["answers"]
        return answers

    def _limits_of_repeated(self, offer: Offer) -> list[tuple[int, int]]:
        """Most that repeated receipts can be for: the provider's part of their request, and of all it earned here
        what no receipt names yet. How much was asked for then, only the provider remembers."""
        billing = self._record.state.billing
        limits: list[tuple[int, int]] = []
        named = 0
        for raw, _ in offer.receipts:
            receipt = receipts.decode(raw)
            channel = billing.received.get(receipt.provider)
            account = billing.accounts.get(receipt.provider)
            if channel is not None and receipt.sequence <= channel.sequence:
                limits.append(
                    (receipt.layer_tokens, receipt.microunits)
                )  # recorded before: no more is signed for
                continue
            earned = account.earned if account is not None else 0
            agreed = channel.agreed_microunits if channel is not None else 0
            limits.append((receipt.layer_tokens, min(self._share(receipt), earned - agreed) - named))
            named += receipt.microunits
        return limits

    def _share(self, receipt: Receipt) -> int:
        """What a provider earned by a request."""
        billing = self._record.state.billing
        resolution, hold = billing.resolved.get(receipt.request_id), billing.holds.get(receipt.request_id)
        if resolution is not None:
            return dict(resolution.shares).get(receipt.provider, 0)
        return hold.shares.get(receipt.provider, 0) if hold is not None else 0


def _with_parts(asked: Ask, parts: Sequence[Part]) -> Ask:
    return msgspec.structs.replace(asked, parts=tuple(parts))


def _limits_of_asked(peer: PeerId, offer: Offer, asked: Ask) -> list[tuple[int, int]]:
    """What was asked for, for each receipt; BadReceipt when one is for something else. Parts may have been left out."""
    parts = iter(asked.parts)
    limits: list[tuple[int, int]] = []
    for raw, _ in offer.receipts:
        receipt = receipts.decode(raw)
        about = ((receipt.layer_first, receipt.layer_end), receipt.layer_tokens, receipt.microunits)
        part = next((p for p in parts if (p.layers, p.layer_tokens, p.microunits) == about), None)
        if part is None or receipt.request_id != asked.request_id:
            raise BadReceipt(f"{peer} gave a receipt for something else")
        limits.append((part.layer_tokens, part.microunits))
    return limits
