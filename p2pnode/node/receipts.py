"""Receipts between a head and the devices that computed for it: asked for, signed, countersigned, recorded.

After an answer the head asks each stage what it did (`receipt.tally`), settles, and asks for a signed
receipt of it (`receipt.ask`); it countersigns what agrees with what it saw and hands that back
(`receipt.agree`). A provider that waits for a signature repeats that receipt instead of giving the next.
Source: specs/09-billing.md#receipts
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from p2pnode.commands import AcceptReceipt
from p2pnode.compute.row_tally import RowTallies
from p2pnode.decide import parts_of_share
from p2pnode.errors import BadReceipt, P2PNodeError, ReceiptOwed, TransportError
from p2pnode.events import receipt as receipts
from p2pnode.events.keys import LogKeys
from p2pnode.limits import RECEIPT_CALL_S_MAX, RECEIPTS_UNFINISHED_MAX
from p2pnode.node.active import Place
from p2pnode.node.receipt_giving import Debts, ReceiptGiving, Record, Serve
from p2pnode.node.receipt_messages import (
    AGREE,
    ASK,
    TALLY,
    WAITING,
    Ask,
    JsonObject,
    Signed,
    binding_of,
    bound,
    plain,
)
from p2pnode.units import PeerId

Call = Callable[..., Awaitable[JsonObject]]
"""(peer, method, arguments, timeout_s=...): the links' `call`."""


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
    """The head's side of the exchange; the node's other side is given its calls."""

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
        self._me, self._record = me, record
        self._call, self._keys, self._rng = call, keys, rng
        self._giving = ReceiptGiving(
            record=record,
            tallies=tallies,
            debts=debts,
            serve=serve,
            keys=keys,
            checkpoint=checkpoint,
            now_ms=now_ms,
        )
        self._locks: dict[PeerId, asyncio.Lock] = {}
        """One receipt is under way in each channel."""
        self._unfinished: dict[PeerId, list[Ask]] = {}
        """What a provider could not be asked for; the newest last."""

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
        asked: list[tuple[PeerId, Ask]] = []
        for peer in earning:
            own = [stage for stage in stages if stage.place.peer == peer and stage.layer_tokens]
            if not own:
                continue
            pieces = [stage.layer_tokens for stage in own]
            # What the head counted for a place that is gone: nobody signs for that.
            rest = work[peer] - sum(pieces)
            parts = parts_of_share(shares.get(peer, 0), price, total, [*pieces, rest])
            asked += [
                (
                    stage.place.peer,
                    Ask(
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

    async def _exchange(self, peer: PeerId, asked: Ask) -> bool:
        """Whether both signed; what is left unsigned is asked for again with the next one."""
        async with self._locks.setdefault(peer, asyncio.Lock()):
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
            async with self._locks.setdefault(peer, asyncio.Lock()):
                answer = await self._call(peer, WAITING, {}, timeout_s=RECEIPT_CALL_S_MAX)
                if answer:
                    offered = msgspec.convert(answer, Signed, builtin_types=(bytes,))
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

    async def _ask(self, peer: PeerId, asked: Ask) -> bool:
        """One that waited for a signature comes first, so it may take two turns."""
        for _ in range(2):
            answer = await self._call(peer, ASK, plain(asked), timeout_s=RECEIPT_CALL_S_MAX)
            offered = msgspec.convert(answer, Signed, builtin_types=(bytes,))
            receipt = receipts.decode(offered.receipt)
            is_about = (receipt.request_id, (receipt.layer_first, receipt.layer_end))
            if not offered.repeated and is_about != (asked.request_id, asked.layers):
                raise BadReceipt(f"{peer} gave a receipt for something else")
            await self._agree(peer, offered, receipt, None if offered.repeated else asked)
            if not offered.repeated:
                return True
        return False

    async def _agree(
        self, peer: PeerId, offered: Signed, receipt: receipts.Receipt, asked: Ask | None
    ) -> None:
        keys = self._keys()
        countersignature = receipts.countersign(offered.receipt, keys.receipt)
        answer = await self._record.do(
            AcceptReceipt(
                receipt=offered.receipt,
                signature=offered.signature,
                provider_keys=bound(offered.keys, peer),
                countersignature=countersignature,
                consumer_key=keys.receipt.public_key().public_bytes_raw(),
                layer_tokens_max=receipt.layer_tokens if asked is None else asked.layer_tokens,
                microunits_max=self._earned(receipt) if asked is None else asked.microunits,
            )
        )
        if not answer["accepted"]:
            raise BadReceipt(f"{peer} signed two receipts under one number")
        mine = Signed(offered.receipt, countersignature, binding_of(keys))
        await self._call(peer, AGREE, plain(mine), timeout_s=RECEIPT_CALL_S_MAX)

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
