"""What a log tells its members, compared: one that shows two histories is found at the first contact, and proved.

Members pass on the checkpoints they cosigned, so that a log can not tell one story here and another there. Two of
different sizes are compared over the log's own tiles; a proof is told to all. Source: specs/08-log.md#two-histories
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from p2pnode import limits
from p2pnode.errors import BadCheckpoint, CorruptRecord, P2PNodeError, RemoteProtocolError
from p2pnode.events import receipt as receipts
from p2pnode.events.fraud import Signed, equivocation, fraud_proof, is_proof
from p2pnode.events.keys import decode_binding, encode_binding, verifiers_of
from p2pnode.events.merkle import TileReader, consistency_proof, root_at, verify_consistency
from p2pnode.events.note import is_signed, parse_checkpoint, parse_note
from p2pnode.events.types import KeysBound, PeerEquivocated
from p2pnode.node.calls import ProgressCallback
from p2pnode.node.ledger import Ledger
from p2pnode.node.links import Links
from p2pnode.transport.port import Connection
from p2pnode.units import PeerId

AskTile = Callable[[int, int], Awaitable[bytes]]
AskLog = Callable[[PeerId, str, Mapping[str, Any]], Awaitable[Mapping[str, Any]]]
BindingOf = Callable[[PeerId], Awaitable[KeysBound]]


class _TileWantedError(LookupError):
    def __init__(self, level: int, index: int) -> None:
        self.place = (level, index)


@dataclass(frozen=True, slots=True)
class _Fetched:
    """The tiles at hand; another one is asked for by the exception."""

    tiles: dict[tuple[int, int], bytes]

    def tile(self, level: int, index: int) -> bytes:
        if (level, index) not in self.tiles:
            raise _TileWantedError(level, index)
        return self.tiles[level, index]


async def compare_two(first: Signed, second: Signed, ask: AskTile) -> bytes | None:
    """A proof that two checkpoints of one log (the smaller one first) contradict each other; None when they agree.

    Raises: CorruptRecord when the log does not show the tree under the second, so that nobody can be convinced;
    what `ask` raises.
    """
    if first.checkpoint.size == second.checkpoint.size:
        return None if first.checkpoint.root == second.checkpoint.root else fraud_proof(first, second)
    tree = _Fetched({})
    while len(tree.tiles) < limits.WITNESS_TILES_MAX:
        try:
            return _by_tiles(first, second, tree)
        except _TileWantedError as wanted:
            tree.tiles[wanted.place] = await ask(*wanted.place)
    raise CorruptRecord(f"more than {limits.WITNESS_TILES_MAX} tiles would be needed")


def _by_tiles(first: Signed, second: Signed, tree: TileReader) -> bytes | None:
    old, new = first.checkpoint, second.checkpoint
    root, proof = root_at(tree, old.size), consistency_proof(tree, old.size, new.size)
    if not verify_consistency(old.size, new.size, proof, root, new.root):
        raise CorruptRecord("its tiles are not those of the root it signed")
    return None if root == old.root else fraud_proof(first, second, root, proof)


class Histories:
    """Compares what is heard, now and then; records and tells what it finds."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        links: Links,
        ask: AskLog,
        binding_of: BindingOf,
        now_ms: Callable[[], int],
    ) -> None:
        self._ledger, self._links = ledger, links
        self._ask, self._binding_of, self._now_ms = ask, binding_of, now_ms
        self._heard: dict[str, dict[tuple[int, bytes], tuple[str, bytes]]] = {}
        """By origin, by size and root: the note, and the binding that came with it."""
        self._agreed: dict[str, set[tuple[int, bytes]]] = {}
        """By origin: checkpoints found to be of one history, which need not be compared again."""
        self._newest: list[list[Any]] = []
        self._told: dict[PeerId, tuple[Connection, int]] = {}
        """How many of the recorded frauds a member was told on this connection; on the next it may have forgotten."""
        self._ahead: dict[PeerId, dict[str, bytes]] = {}
        """By who told it, by whom it convicts: proofs against devices that are not known here yet."""
        self.doubts: dict[str, dict[str, Any]] = {}
        """By origin: what does not fit together and can not be proved."""
        links.serve("log.fraud", self._be_told)

    # --- hearing -------------------------------------------------------------------------------------
    def told(self) -> list[list[Any]]:
        """For a status: the newest checkpoints cosigned here of other logs, with the keys that signed them."""
        return self._newest

    def refresh(self) -> None:
        """Take what `told` says from the record; a status is made too often to ask each time."""
        kept = self._ledger.log.reader.all_witnessed()
        newest = sorted(kept, key=lambda one: -one.recorded_ms)[: limits.WITNESSED_TOLD_MAX]
        self._newest = [[one.signed.bare(), one.binding] for one in newest]

    def hear(self, note: str, binding: bytes = b"") -> None:
        """A checkpoint somebody shows; it is checked later, when nobody waits."""
        try:
            checkpoint = parse_checkpoint(parse_note(note).text)
        except BadCheckpoint:
            return
        if (checkpoint.size, checkpoint.root) in self._agreed.get(checkpoint.origin, ()):
            return
        notes = self._heard.setdefault(checkpoint.origin, {})
        if len(self._heard) > limits.WITNESS_ORIGINS_MAX:
            del self._heard[checkpoint.origin]
        elif len(notes) < limits.WITNESS_HEARD_MAX:
            notes[checkpoint.size, checkpoint.root] = (note, binding)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(limits.WITNESS_INTERVAL_S)
            self.refresh()
            await self.compare()
            await self.convict_known()
            await self.tell()

    # --- comparing -----------------------------------------------------------------------------------
    async def compare(self) -> None:
        """Everything heard since the last time, each log by itself."""
        heard, self._heard = self._heard, {}
        for origin, notes in heard.items():
            known = self._ledger.log.reader.witnessed(origin)
            if known is None or known.signed.binding.peer in self._convicted():
                continue  # there is nothing to compare it with, or nothing left to say
            notes.pop((known.size, known.root), None)
            if notes:
                shown = [Signed(note, _binding(raw, known.signed)) for note, raw in notes.values()]
                await self._compare(known.signed, shown)

    def _convicted(self) -> set[str]:
        return {fraud.peer for fraud in self._ledger.state.audit.frauds.values()}

    async def _compare(self, known: Signed, shown: Sequence[Signed]) -> None:
        """Each beside its neighbour by size, which compares all with all."""
        peer, origin = PeerId(known.binding.peer), known.checkpoint.origin
        try:
            current = await self._binding_of(peer)
            good = [
                one for one in (_vouched(one, known.binding, current) for one in shown) if one is not None
            ]
            if current.origin != origin or not good:
                self.doubts.pop(origin, None)
                return  # it goes by another name since, after a backup was restored; or nothing is signed by it
            for first, second in pairwise(sorted((known, *good), key=lambda one: one.checkpoint.size)):
                proof = await compare_two(first, second, lambda *place: self._tile(peer, *place))
                if proof is not None:
                    await self._ledger.log.convict(proof)
                    self.doubts.pop(origin, None)
                    return
            self._agree(origin, (known, *good))
        except CorruptRecord as error:
            sizes = sorted(one.checkpoint.size for one in (known, *good))
            self.doubts[origin] = {
                "peer": peer,
                "origin": origin,
                "sizes": [sizes[0], sizes[-1]],
                "why": error.message,
                "time_ms": self._now_ms(),
            }
        except P2PNodeError:
            for one in shown:  # it can not be asked now
                self.hear(one.note, encode_binding(one.binding))

    def _agree(self, origin: str, of_one_history: Sequence[Signed]) -> None:
        self.doubts.pop(origin, None)
        agreed = self._agreed.setdefault(origin, set())
        if len(agreed) > limits.WITNESS_AGREED_MAX:
            agreed.clear()
        agreed.update((one.checkpoint.size, one.checkpoint.root) for one in of_one_history)

    async def _tile(self, peer: PeerId, level: int, index: int) -> bytes:
        hashes = (await self._ask(peer, "tile", {"level": level, "index": index})).get("hashes")
        if not isinstance(hashes, bytes):
            raise RemoteProtocolError("a tile is bytes")
        return hashes

    # --- telling -------------------------------------------------------------------------------------
    async def tell(self) -> None:
        """Every fraud recorded here to every member that has not been told."""
        recorded = [record.event for record in self._ledger.log.reader.frauds()]
        proofs = [
            event.proof for event in recorded if isinstance(event, PeerEquivocated) and is_proof(event.proof)
        ]
        for peer, link in list(self._links.links.items()):
            if link.is_up and link.connection is not None:
                await self._tell(peer, link.connection, proofs)

    async def _tell(self, peer: PeerId, connection: Connection, proofs: Sequence[bytes]) -> None:
        """From where it stopped, or anew to a member that connected anew: who knows already records nothing."""
        told_on, told = self._told.get(peer, (connection, 0))
        if told_on is not connection:
            told = 0
        for number in range(max(told, len(proofs) - limits.FRAUDS_TOLD_MAX), len(proofs)):
            try:
                await self._links.call(peer, "log.fraud", {"proof": proofs[number]})
            except P2PNodeError:
                return
            self._told[peer] = (connection, number + 1)

    async def convict_known(self) -> None:
        """What was told of devices before they were known here."""
        for proofs in self._ahead.values():
            for convicted in [peer for peer in proofs if peer in self._ledger.state.peers.peers]:
                await self._ledger.log.convict(proofs.pop(convicted))

    async def _be_told(
        self, peer: PeerId, arguments: Mapping[str, Any], _: ProgressCallback
    ) -> dict[str, Any]:
        proof = arguments.get("proof")
        if not isinstance(proof, bytes):
            raise RemoteProtocolError("a fraud proof is bytes")
        fraud = equivocation(proof)
        if fraud.peer == self._links.me:
            self.doubts[fraud.origin] = {
                "peer": fraud.peer,
                "origin": fraud.origin,
                "sizes": [fraud.size_first, fraud.size_second],
                "why": f"this device's own key has signed two {_of_what(proof)}: its data folder runs twice, or was "
                "restored",
                "time_ms": self._now_ms(),
            }
            return {"recorded": False}
        if fraud.peer not in self._ledger.state.peers.peers:
            ahead = self._ahead.setdefault(peer, {})
            ahead[fraud.peer] = proof
            while len(ahead) > limits.FRAUDS_AHEAD_MAX:
                del ahead[next(iter(ahead))]
            return {"recorded": False}
        return {"recorded": await self._ledger.log.convict(proof)}


def _binding(raw: bytes, known: Signed) -> KeysBound:
    """The keys that came with a note; those known of the log when none did, or bad ones."""
    try:
        return decode_binding(raw) if raw else known.binding
    except BadCheckpoint:
        return known.binding


def _vouched(shown: Signed, *others: KeysBound) -> Signed | None:
    """The checkpoint with the keys that signed it; None when no keys of this log did."""
    note = parse_note(shown.note)
    for binding in (shown.binding, *others):
        try:
            if binding.peer == others[0].peer and is_signed(note, verifiers_of(binding)[0]):
                return Signed(shown.note, binding)
        except BadCheckpoint:
            continue
    return None


def _of_what(proof: bytes) -> str:
    return "receipts with one number" if receipts.is_fraud(proof) else "histories"
