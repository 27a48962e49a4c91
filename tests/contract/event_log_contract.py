"""What every event log must do; MemoryLog and SqliteLog both inherit these tests."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from pathlib import Path
from typing import Any

import pytest

from p2pnode.errors import (
    BadCheckpoint,
    IdempotencyConflict,
    InsufficientCredit,
    LogFailed,
    NonCanonical,
    NotFound,
)
from p2pnode.events.codec import Record, decode
from p2pnode.events.fraud import fraud_from_tree
from p2pnode.events.keys import is_binding_valid
from p2pnode.events.log import Decision, NewEvent
from p2pnode.events.merkle import leaf_hash, verify_consistency, verify_inclusion
from p2pnode.events.note import is_signed, open_checkpoint, parse_note
from p2pnode.events.proof import check_proof, parse_proof, prove
from p2pnode.events.types import CreditHeld, KeysBound, NodeStarted, SubjectForgotten
from p2pnode.limits import LOG_BLOCK_EVENTS, LOG_BLOCK_MS
from tests.kit.log_events import ManualClock, accepted, held, node_identity, started
from tests.kit.log_trees import Tree


class CountingFold:
    """Counts events and sums what is held."""

    version = "1"

    def initial(self) -> dict[str, int]:
        return {"events": 0, "held": 0}

    def apply(self, state: dict[str, int], record: Record) -> dict[str, int]:
        amount = record.event.amount_microunits if isinstance(record.event, CreditHeld) else 0
        return {"events": state["events"] + 1, "held": state["held"] + amount}

    def dump(self, state: dict[str, int]) -> bytes:
        return b"%d %d" % (state["events"], state["held"])

    def load(self, raw: bytes) -> dict[str, int]:
        events, held_sum = map(int, raw.split())
        return {"events": events, "held": held_sum}


class EventLogContract:
    """Subclasses say how a log is made."""

    clock: ManualClock

    @abstractmethod
    def make(self, folder: Path, fold: Any) -> Any: ...

    @pytest.fixture
    async def log(self, tmp_path: Path) -> Any:
        self.clock = ManualClock()
        made = self.make(tmp_path, CountingFold())
        yield made
        await made.close()

    async def test_a_new_log_begins_with_its_keys(self, log: Any) -> None:
        """Event 0 binds the log's keys to the node's identity, and is sealed at once."""
        event = log.read(0, 1)[0].event
        assert isinstance(event, KeysBound)
        assert is_binding_valid(event)
        assert event.peer == node_identity().peer_id
        assert log.size == 1
        assert log.block_count == 1
        checkpoint, _ = open_checkpoint(log.checkpoint(), log.keys.log_verifier)
        assert (checkpoint.size, checkpoint.root) == (1, log.root(1))

    async def test_append_answers_places_and_reads_give_them_back(self, log: Any) -> None:
        """Events keep order, envelope and exact bytes."""
        indexes = await log.append(
            [started("a"), started("b")], actor="key/7", correlation="r1", causation=bytes(16)
        )
        assert indexes == [1, 2]
        records = log.read(1, 3)
        assert [record.event.device_name for record in records] == ["a", "b"]
        assert {(r.actor, r.correlation, r.causation) for r in records} == {("key/7", "r1", bytes(16))}
        assert records[0].id < records[1].id
        assert records[1].lamport == records[0].lamport + 1
        assert [decode(raw, r.index) for raw, r in zip(log.entries(1, 3), records, strict=True)] == records
        assert log.read(3, 9) == []
        assert log.read(2, 99)[0].index == 2

    async def test_decisions_see_everything_before_them(self, log: Any) -> None:
        """Two callers can not both take the last of something."""

        def hold_if_none(state: dict[str, int]) -> list[NewEvent]:
            if state["held"]:
                raise InsufficientCredit("it is gone")
            return [NewEvent(held(1))]

        answers = await asyncio.gather(*(log.submit(hold_if_none) for _ in range(20)), return_exceptions=True)
        assert sum(isinstance(answer, InsufficientCredit) for answer in answers) == 19
        assert log.size == 2

    async def test_a_decision_may_answer_without_facts(self, log: Any) -> None:
        """The caller gets the result; nothing is recorded."""
        outcome = await log.submit(lambda state: Decision((), state["events"]))
        assert (outcome.result, outcome.records, log.size) == (1, (), 1)

    async def test_a_bug_in_a_decision_reaches_its_caller_alone(self, log: Any) -> None:
        """The log goes on."""
        with pytest.raises(ZeroDivisionError):
            await log.submit(lambda state: [NewEvent(held(1 // 0))])
        assert await log.append([started()]) == [1]

    async def test_events_that_do_not_fit_are_refused_whole(self, log: Any) -> None:
        """One bad event keeps its companions out; the next caller is not troubled."""
        bad = NodeStarted(version="v" * 129, platform="", device_name="")
        with pytest.raises(NonCanonical):
            await log.append([started(), bad])
        assert log.size == 1
        assert await log.append([started()]) == [1]
        record = log.read(1, 2)[0]
        assert record.lamport == 2

    async def test_an_idempotency_key_answers_with_what_it_did_first(self, log: Any) -> None:
        """Retries record nothing, within one batch and later; another body is a conflict; actors do not mix."""
        first, second = await asyncio.gather(
            log.append([started()], idempotency_key="k"), log.append([started()], idempotency_key="k")
        )
        assert first == second == [1]
        outcome = await log.submit(lambda _: [NewEvent(held(1))], idempotency_key="h", fingerprint=b"1")
        again = await log.submit(lambda _: [NewEvent(held(2))], idempotency_key="h", fingerprint=b"1")
        assert (again.records, again.repeated) == (outcome.records, True)
        with pytest.raises(IdempotencyConflict):
            await log.submit(lambda _: [], idempotency_key="h", fingerprint=b"2")
        with pytest.raises(IdempotencyConflict):
            await log.append([started("other")], idempotency_key="k")
        assert await log.append([started()], actor="key/7", idempotency_key="k") == [3]

    async def test_subscribers_hear_each_event_once_in_order_before_its_caller(self, log: Any) -> None:
        """A caller that goes on finds views already up to date."""
        heard: list[int] = []
        stop = log.subscribe(lambda record: heard.append(record.index))
        for _ in range(3):
            (index,) = await log.append([started()])
            assert heard[-1] == index
        stop()
        await log.append([started()])
        assert heard == [1, 2, 3]

    async def test_a_block_is_sealed_at_a_hundred_events(self, log: Any) -> None:
        """Block root, log root and predecessor are those of the events."""
        await log.append([started() for _ in range(LOG_BLOCK_EVENTS + 30)])
        assert log.block_count == 2
        first, second = log.blocks(0, 2)
        assert (second.header.first, second.header.end) == (1, 1 + LOG_BLOCK_EVENTS)
        assert second.header.previous_hash == first.hash
        assert second.header.log_root == log.root(1 + LOG_BLOCK_EVENTS)
        assert second.header.node == node_identity().peer_id

    async def test_a_block_is_sealed_half_a_minute_after_its_first_event(self, log: Any) -> None:
        """By the clock it was given; an empty block never is."""
        await log.append([started()])
        self.clock.advance(LOG_BLOCK_MS - 1)
        await log.tick()
        assert log.block_count == 1
        self.clock.advance(1)
        await log.tick()
        assert log.block_count == 2
        self.clock.advance(10 * LOG_BLOCK_MS)
        await log.tick()
        assert log.block_count == 2
        assert await log.seal() is None

    async def test_a_clock_set_back_does_not_put_sealing_off(self, log: Any) -> None:
        """A block whose age is unknown is sealed now."""
        await log.append([started()])
        self.clock.advance(-3_600_000)
        await log.tick()
        assert log.block_count == 2

    async def test_sealing_on_demand_covers_everything(self, log: Any) -> None:
        """The checkpoint then has the size and root of the log."""
        await log.append([started(), started()])
        block = await log.seal()
        assert (block.header.first, block.header.end) == (1, 3)
        checkpoint, _ = open_checkpoint(log.checkpoint(), log.keys.log_verifier)
        assert (checkpoint.size, checkpoint.root) == (3, log.root(3))

    async def test_proofs_hold_for_every_event_and_size(self, log: Any) -> None:
        """Across the border of a tile; and the proofs of one event do not hold for another."""
        await log.append([held(number) for number in range(300)])
        size = log.size
        for index in (0, 1, 99, 254, 255, 256, 257, size - 1):
            for upto in (index + 1, 256, 257, size):
                if index < upto:
                    leaf, root = leaf_hash(log.entries(index, index + 1)[0]), log.root(upto)
                    proof = log.inclusion_proof(index, upto)
                    assert verify_inclusion(leaf, index, upto, proof, root)
                    assert not verify_inclusion(leaf_hash(b"?"), index, upto, proof, root)
        for first in (1, 2, 255, 256, 257, 300):
            proof = log.consistency_proof(first, size)
            assert verify_consistency(first, size, proof, log.root(first), log.root(size))
        for wrong in ((5, 5), (-1, 3), (3, size + 1)):
            with pytest.raises(NotFound):
                log.inclusion_proof(*wrong)
        for wrong in ((0, 5), (6, 5), (1, size + 1)):
            with pytest.raises(NotFound):
                log.consistency_proof(*wrong)
        assert len(log.tile(0, 0)) == 256 * 32
        assert len(log.tile(0, 1)) == (size - 256) * 32
        assert len(log.tile(1, 0)) == 32
        assert log.tile(0, 2) == log.tile(1, 1) == log.tile(2, 0) == b""

    async def test_a_proof_file_needs_nothing_but_the_key(self, log: Any) -> None:
        """By the newest checkpoint and by an older one."""
        await log.append([held(number) for number in range(150)])
        await log.seal()
        for size in (None, 101):
            proof = parse_proof(str(prove(log, 42, size)))
            entry = log.entries(42, 43)[0]
            assert check_proof(proof, entry, log.keys.log_verifier).size == (size or 151)
        with pytest.raises(NotFound):
            prove(log, 42, 100)
        with pytest.raises(NotFound):
            prove(log, 151)

    async def test_cosignatures_ride_on_the_checkpoint(self, log: Any) -> None:
        """Each once, under the log's own signature."""
        await log.append([accepted()])
        await log.seal()
        line = "\u2014 p2pnode/x/witness " + "A" * 100
        await log.add_cosignature(log.size, line)
        await log.add_cosignature(log.size, line)
        note = parse_note(log.checkpoint())
        assert is_signed(note, log.keys.log_verifier)
        assert [str(signature) for signature in note.signatures[1:]] == [line]

    async def test_forgetting_deletes_salts_and_is_recorded(self, log: Any) -> None:
        """By subject or by owner; what was never kept can not be forgotten."""
        one = log.commit_secret("r1", b"prompt", owner="key/7")
        two = log.commit_secret("r2", b"prompt", owner="key/7", keep_text=True)
        other = log.commit_secret("r3", b"prompt")
        assert len({one, two, other}) == 3
        await log.append([accepted("r1")])
        assert await log.forget("key/7") == 2
        event = log.read(2, 3)[0].event
        assert isinstance(event, SubjectForgotten)
        assert set(event.commitments) == {one, two}
        with pytest.raises(NotFound):
            await log.forget("key/7")

    async def test_a_fraud_is_recorded_once_a_peer(self, log: Any) -> None:
        """What is proved already is no news, and what proves nothing is refused."""
        honest, forked = Tree(40), Tree(40, fork_at=10)
        proof = fraud_from_tree(honest.signed(20), forked.signed(20), forked)
        again = fraud_from_tree(honest.signed(20), forked.signed(37), forked)
        assert [await log.convict(document) for document in (proof, proof, again)] == [True, False, False]
        event = log.read(1, 2)[0].event
        assert (event.peer, event.size_first, event.proof) == (node_identity(1).peer_id, 20, proof)
        with pytest.raises(BadCheckpoint):
            await log.convict(proof[1:])

    async def test_rotated_keys_are_vouched_for_by_the_old_key_too(self, log: Any) -> None:
        """Who knew the old key can follow; later checkpoints are signed by the new one alone."""
        old = log.keys.log_verifier
        new = await log.rotate_keys()
        assert log.keys == new
        note = parse_note(log.checkpoint())
        assert is_signed(note, old)
        assert is_signed(note, new.log_verifier)
        assert old != new.log_verifier
        await log.append([started()])
        await log.seal()
        note = parse_note(log.checkpoint())
        assert not is_signed(note, old)
        assert is_signed(note, new.log_verifier)

    async def test_a_clock_that_goes_back_does_not_break_the_order(self, log: Any) -> None:
        """Ids still grow; the wall time is what the clock said."""
        await log.append([started()])
        self.clock.advance(-60_000)
        await log.append([started()])
        first, second = log.read(1, 3)
        assert second.id > first.id
        assert second.wall_ms == first.wall_ms - 60_000

    async def test_it_tells_how_it_is(self, log: Any) -> None:
        """The state after everything submitted, the reserve, no failure; clocks of peers are heeded."""
        await log.append([held(1)])
        assert await log.query(lambda state: state["events"]) == 2
        assert log.state == {"events": 2, "held": 1_000_000}
        assert (log.failure, log.has_reserve) == (None, True)
        await log.witness_lamport(500)
        await log.append([started()])
        assert log.read(2, 3)[0].lamport == 501

    async def test_a_closed_log_takes_nothing(self, log: Any) -> None:
        """And what it had is sealed."""
        await log.append([started()])
        await log.close()
        with pytest.raises(LogFailed):
            await log.append([started()])
