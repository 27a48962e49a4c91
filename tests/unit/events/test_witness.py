"""Witnesses: honest logs are always cosigned, forks never, and a fork becomes a proof that convinces anybody."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from p2pnode.errors import BadCheckpoint, RollbackRefused
from p2pnode.events.fraud import check_fraud
from p2pnode.events.keys import LogKeys, encode_binding
from p2pnode.events.memory import MemoryLog
from p2pnode.events.merkle import consistency_proof
from p2pnode.events.note import Checkpoint, Note, cosigned_at, parse_note, parse_verifier, sign_note
from p2pnode.events.store import SqliteLog
from p2pnode.events.types import CheckpointWitnessed, PeerEquivocated, WitnessReceived
from p2pnode.events.witness import (
    BAD_REQUEST,
    CONFLICT,
    FORBIDDEN,
    OK,
    UNKNOWN,
    UNPROCESSABLE,
    AddCheckpoint,
    Witnessed,
    judge,
    parse_add_checkpoint,
    read_cosignature,
)
from p2pnode.events.witnessing import gather_cosignature
from p2pnode.limits import WITNESS_EVENT_MS_MIN
from tests.kit.log_events import ManualClock, node_identity, seeded_bytes, started
from tests.kit.log_trees import BINDING, KEYS, Tree


def test_honest_logs_are_always_cosigned(honest: Tree) -> None:
    """10,000 rounds of random growth: no false alarm."""
    rng = random.Random(6962)
    notes: dict[int, str] = {}
    rounds = 0
    while rounds < 10_000:
        latest: Witnessed | None = None
        size = 0
        while size < 600 and rounds < 10_000:
            new = min(600, size + rng.choice((0, 1, 1, 2, 17, 100)))
            if new == 0:
                continue
            note = notes.setdefault(new, honest.note(new))
            proof = consistency_proof(honest, size, new) if size else []
            verdict = judge(AddCheckpoint(size, proof, note), BINDING, latest)
            assert verdict.status == OK
            assert verdict.fraud is None
            latest, size, rounds = verdict.latest, new, rounds + 1


def witnessed(tree: Tree, size: int) -> Witnessed:
    verdict = judge(tree.request(0, size), BINDING, None)
    assert verdict.latest is not None
    return verdict.latest


@pytest.mark.parametrize("size", [301, 302, 400, 511, 512, 513, 600])
def test_a_fork_is_never_cosigned(honest: Tree, forked: Tree, size: int) -> None:
    """At the first contact after the histories part, whichever of them came first."""
    for first, second in ((honest, forked), (forked, honest)):
        latest = witnessed(first, size)
        for new in (size, min(size + 1, 600), 600):
            verdict = judge(second.request(size, new), BINDING, latest)
            assert verdict.status == UNPROCESSABLE
            # Its own proof convicts it, unless the known tree is perfect: then its root is not in there.
            assert (verdict.fraud is not None) == (new == size or size != 512)
            if verdict.fraud is not None:
                found = check_fraud(verdict.fraud)
                assert (found.peer, found.size_first, found.size_second) == (KEYS.peer, size, new)


def test_before_the_fork_both_histories_are_one(honest: Tree, forked: Tree) -> None:
    """Until they part there is nothing to see."""
    assert judge(forked.request(200, 300), BINDING, witnessed(honest, 200)).status == OK


def test_each_refusal_has_its_status(honest: Tree) -> None:
    """The numbers of c2sp.org/tlog-witness."""
    latest = witnessed(honest, 100)
    other = LogKeys.derive(node_identity(2))
    cases = [
        (honest.request(100, 200), BINDING, OK),
        (honest.request(100, 100), BINDING, OK),
        (honest.request(0, 200), BINDING, CONFLICT),
        (honest.request(50, 200), BINDING, CONFLICT),
        (AddCheckpoint(300, [], honest.note(200)), BINDING, BAD_REQUEST),
        (AddCheckpoint(100, [], honest.note(200)), BINDING, UNPROCESSABLE),
        (AddCheckpoint(100, [bytes(32)] * 5, honest.note(200)), BINDING, UNPROCESSABLE),
        (honest.request(100, 200), other.bound(), UNKNOWN),
        (AddCheckpoint(100, [], honest.note(200).replace("\n200\n", "\n201\n")), BINDING, FORBIDDEN),
        (AddCheckpoint(100, [], honest.note(200, LogKeys.derive(node_identity(1), 1))), BINDING, FORBIDDEN),
        (AddCheckpoint(100, [], "nonsense"), BINDING, FORBIDDEN),
    ]
    for request, binding, status in cases:
        assert judge(request, binding, latest).status == status, (request, status)
    assert judge(honest.request(0, 200), BINDING, latest).known_size == 100
    assert judge(AddCheckpoint(0, [bytes(32)], honest.note(9)), BINDING, None).status == UNPROCESSABLE


def test_replaced_keys_do_not_come_back(honest: Tree) -> None:
    """After a rotation was seen, the old key signs no more."""
    newer = LogKeys.derive(node_identity(1), 1, KEYS.origin)
    request = AddCheckpoint(0, [], honest.note(50, newer))
    latest = judge(request, newer.bound(), None).latest
    assert judge(honest.request(50, 60), BINDING, latest).status == FORBIDDEN


@pytest.mark.parametrize(
    "body",
    [
        "",
        "old 1",
        "old 01\n\nx",
        "new 1\n\nx",
        "old -1\n\nx",
        "old 1\nAAAA\n\nx",
        "old " + "9" * 30 + "\n\nx",
    ],
)
def test_bad_requests_are_refused(body: str) -> None:
    """Before anything is looked up."""
    with pytest.raises(BadCheckpoint):
        parse_add_checkpoint(body)
    with pytest.raises(BadCheckpoint):
        parse_add_checkpoint("old 1\n" + ("A" * 43 + "=\n") * 64 + "\nx")
    with pytest.raises(BadCheckpoint):
        parse_add_checkpoint("old 1\n\n" + "x" * 100_000)


def test_requests_keep_their_bytes(honest: Tree) -> None:
    """What is written is what is read."""
    request = honest.request(37, 411)
    assert parse_add_checkpoint(str(request)) == request


def memory_log(number: int, clock: ManualClock) -> MemoryLog[Any]:
    return MemoryLog(node_identity(number), now_ms=clock, rng=seeded_bytes(number))


def sqlite_log(folder: Path, number: int, clock: ManualClock) -> SqliteLog[Any]:
    return SqliteLog.open(folder / str(number), node_identity(number), now_ms=clock, rng=seeded_bytes(number))


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_two_nodes_witness_each_other_and_fall_silent(kind: str, tmp_path: Path) -> None:
    """Cosignatures arrive and verify; events about them are rare, so idle nodes do not cosign for ever."""
    clock = ManualClock()
    one, two = (memory_log(n, clock) if kind == "memory" else sqlite_log(tmp_path, n, clock) for n in (1, 2))
    binding = encode_binding(one.keys.bound())

    async def ask(body: str) -> tuple[int, str]:
        answer = await two.witness(one.keys.peer, body, binding)
        return answer.status, answer.body

    known = 0
    for _ in range(5):
        await one.append([started()])
        await one.seal()
        known = await gather_cosignature(one, two.keys.bound(), ask, known)
        assert known == one.blocks(one.block_count - 1, one.block_count)[0].header.end
        assert cosigned_at(parse_note(one.checkpoint()), two.keys.witness_verifier) == clock() // 1000
    assert sum(isinstance(r.event, CheckpointWitnessed) for r in two.read(0, 99)) == 1
    assert sum(isinstance(r.event, WitnessReceived) for r in one.read(0, 99)) == 1
    assert await gather_cosignature(one, two.keys.bound(), ask, 0) == known
    clock.advance(WITNESS_EVENT_MS_MIN)
    await one.seal()
    await gather_cosignature(one, two.keys.bound(), ask, known)
    assert sum(isinstance(r.event, CheckpointWitnessed) for r in two.read(0, 99)) == 2
    await one.close()
    await two.close()


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_a_restored_backup_is_noticed_by_its_witness(kind: str, tmp_path: Path) -> None:
    """The asking side learns that it must not sign; the witness of a fork has a proof and records it once."""
    clock = ManualClock()
    witness = memory_log(9, clock) if kind == "memory" else sqlite_log(tmp_path, 9, clock)
    log, restored, forged = memory_log(1, clock), memory_log(1, clock), memory_log(1, clock)
    await log.append([started() for _ in range(5)])
    await log.seal()
    binding = encode_binding(log.keys.bound())

    async def ask(body: str) -> tuple[int, str]:
        answer = await witness.witness(log.keys.peer, body, binding)
        return answer.status, answer.body

    await gather_cosignature(log, witness.keys.bound(), ask)
    with pytest.raises(RollbackRefused):
        await gather_cosignature(restored, witness.keys.bound(), ask)
    await forged.append([started("other") for _ in range(5)])
    await forged.seal()
    for _ in range(2):
        with pytest.raises(BadCheckpoint, match="422"):
            await gather_cosignature(forged, witness.keys.bound(), ask, 6)
    events = [r.event for r in witness.read(0, 99) if isinstance(r.event, PeerEquivocated)]
    assert len(events) == 1
    assert check_fraud(events[0].proof).peer == log.keys.peer
    answer = await witness.witness("somebody", str(Tree(3).request(0, 3)), binding)
    assert answer.status == FORBIDDEN
    assert (await witness.witness("x", "nonsense", binding)).status == BAD_REQUEST
    assert (await witness.witness("x", str(Tree(3).request(0, 3)), b"nonsense")).status == BAD_REQUEST
    await witness.close()


async def test_a_witness_answers_with_reasons_and_remembers_so_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refusals that are no conflicts; and a limit to the logs it knows."""
    witness = sqlite_log(tmp_path, 9, ManualClock())
    binding = encode_binding(BINDING)
    tree = Tree(9)
    for request, status in ((tree.request(0, 9), OK), (AddCheckpoint(9, [], tree.note(3)), BAD_REQUEST)):
        assert (await witness.witness(KEYS.peer, str(request), binding)).status == status
    monkeypatch.setattr("p2pnode.events.committer.WITNESS_ORIGINS_MAX", 1)
    other = LogKeys.derive(node_identity(2))
    request = AddCheckpoint(0, [], tree.note(3, other))
    assert (await witness.witness(other.peer, str(request), encode_binding(other.bound()))).status == UNKNOWN
    await witness.close()


async def test_a_witness_that_plays_games_is_refused() -> None:
    """Wrong cosignatures, ever changing sizes, and answers that are none."""
    clock = ManualClock()
    log, witness = memory_log(1, clock), LogKeys.derive(node_identity(2)).bound()
    await log.append([started() for _ in range(9)])
    await log.seal()
    for answers in (
        [(200, "\u2014 x AAAAAAAA\n")],
        [(200, "")],
        [(500, "?")],
        [(409, "x")],
        [(409, "3\n")] * 2,
    ):
        left = list(answers)

        async def ask(body: str, left: list[tuple[int, str]] = left) -> tuple[int, str]:
            return left.pop(0)

        with pytest.raises(BadCheckpoint):
            await gather_cosignature(log, witness, ask)
    with pytest.raises(BadCheckpoint):
        read_cosignature("", log.checkpoint() or "", parse_verifier(str(log.keys.witness_verifier)))


async def test_unsealed_events_do_not_hide_a_rollback() -> None:
    """A log put back may have more events than the witness knows; what counts is what it has signed."""
    clock = ManualClock()
    log, witness = memory_log(1, clock), memory_log(9, clock)
    restored = memory_log(1, clock)
    binding = encode_binding(log.keys.bound())

    async def ask(body: str) -> tuple[int, str]:
        answer = await witness.witness(log.keys.peer, body, binding)
        return answer.status, answer.body

    await log.append([started() for _ in range(5)])
    await log.seal()
    known = await gather_cosignature(log, witness.keys.bound(), ask)
    await restored.append([started("other") for _ in range(50)])
    assert restored.size > known
    for remembered in (0, known):
        with pytest.raises(RollbackRefused, match="has cosigned 6 events of this log, which has sealed 1"):
            await gather_cosignature(restored, witness.keys.bound(), ask, remembered)


async def test_a_larger_size_is_believed_with_our_own_signature_only() -> None:
    """A witness that lies can not make a node give up its log's name."""
    clock = ManualClock()
    log, witness = memory_log(1, clock), LogKeys.derive(node_identity(2)).bound()
    foreign = Note(text := Checkpoint(log.keys.origin, 999, bytes(32)).text(), ())
    other = LogKeys.derive(node_identity(2))
    forged = foreign.with_signatures(sign_note(text, other.origin, other.log))
    true = str(foreign.with_signatures(sign_note(text, log.keys.origin, log.keys.log)))
    lies = ("999\n", f"999\n\n{forged}", f"998\n\n{true}", "999\n\nnonsense\n")
    for body in lies:
        with pytest.raises(BadCheckpoint):
            await gather_cosignature(log, witness, answer_with(409, body))
    with pytest.raises(RollbackRefused):
        await gather_cosignature(log, witness, answer_with(409, f"999\n\n{true}"))


def answer_with(status: int, body: str) -> Any:
    async def ask(request: str) -> tuple[int, str]:
        return status, body

    return ask
