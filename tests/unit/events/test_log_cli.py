"""`p2pnode log ...` on a data folder: text for people, one JSON document for programs, one line for errors."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from p2pnode import identity
from p2pnode.cli.main import run_command
from p2pnode.errors import BadCheckpoint
from p2pnode.events.database import connect_writer
from p2pnode.events.folder import DATABASE, LOG_DIR
from p2pnode.events.fraud import fraud_from_trees
from p2pnode.events.keys import LogKeys, encode_binding
from p2pnode.events.merkle import verify_inclusion
from p2pnode.events.note import (
    Checkpoint,
    Note,
    cosign_note,
    parse_checkpoint,
    parse_note,
    parse_verifier,
    sign_note,
)
from p2pnode.events.policy import policy_text
from p2pnode.events.proof import check_proof, parse_proof
from p2pnode.events.store import SqliteLog
from p2pnode.events.types import PeerEquivocated
from p2pnode.events.witness import AddCheckpoint
from p2pnode.projections import MeshFold
from tests.kit.log_events import accepted, held, node_identity, started
from tests.kit.log_trees import Tree

TREES = (Tree(40), Tree(40, fork_at=10))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A node's folder: key, a few hundred events, sealed."""

    async def fill() -> None:
        log: SqliteLog[Any] = SqliteLog.open(tmp_path, own, fold=MeshFold())
        await log.append([started()])
        commitment = log.commit_secret("r-9", b"a prompt")
        assert commitment
        await log.append([accepted("r-9")], correlation="r-9")
        await log.append([held(n, 0) for n in range(200)])
        peer = node_identity(2).peer_id
        other = LogKeys.derive(node_identity(2))
        text = Checkpoint(other.origin, 3, bytes(32)).text()
        request = AddCheckpoint(0, [], str(Note(text, (sign_note(text, other.origin, other.log),))))
        assert (await log.witness(peer, str(request), encode_binding(other.bound()))).status == 200
        note = parse_note(log.checkpoint() or "")
        size = parse_checkpoint(note.text).size
        line = cosign_note(note.text, other.witness_verifier.name, other.witness, 1_790_000_000)
        await log.add_cosignature(size, str(line), peer=peer)
        await log.append(
            [
                PeerEquivocated(peer=peer, origin=f"p2pnode/{peer}", size_first=1, size_second=1, proof=b"x"),
            ]
        )
        await log.close()

    own = identity.load_or_create(tmp_path)
    asyncio.run(fill())
    return tmp_path


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def command(*arguments: str, status: int = 0) -> str:
        assert run_command(["log", *arguments, "--data", str(folder)]) == status
        return capsys.readouterr().out

    return command


@pytest.fixture
def complaint(capsys: pytest.CaptureFixture[str]) -> Any:
    """What a command that must fail says on stderr."""

    def command(*arguments: str) -> str:
        assert run_command(list(arguments)) != 0
        return capsys.readouterr().err

    return command


def test_tail_and_show(run: Any) -> None:
    """The newest events; one by index, by id, or all of a request."""
    lines = run("tail", "-n", "3").splitlines()
    assert [line.split()[3] for line in lines] == [
        "CheckpointWitnessed",
        "WitnessReceived",
        "PeerEquivocated",
    ]
    document = json.loads(run("tail", "--json"))
    assert len(document["events"]) == 20
    assert document["events"][-1]["index"] == document["size"] - 1
    by_request = json.loads(run("show", "r-9", "--json"))["events"]
    assert [record["type"] for record in by_request] == ["RequestAccepted"]
    by_id = json.loads(run("show", by_request[0]["id"], "--json"))["events"]
    assert by_id == by_request
    assert "prompt_tokens" in run("show", str(by_request[0]["index"]))


def test_blocks_and_verify(run: Any, folder: Path) -> None:
    """Blocks in a table; the verdict, and exit status 1 when it is bad."""
    assert len(run("blocks", "-n", "2").splitlines()) == 3
    blocks = json.loads(run("blocks", "--first", "0", "--json"))
    assert blocks["blocks"][0]["events"] == 1
    assert blocks["count"] == len(blocks["blocks"])
    assert run("verify").startswith("ok: 206 events")
    report = json.loads(run("verify", "--json", "--checkpoint", str(folder / LOG_DIR / "checkpoint")))
    assert report["ok"]
    assert "not of nobody" in run("verify", "--peer", "nobody", status=1)
    connection = connect_writer(folder / LOG_DIR / DATABASE)
    connection.execute("DROP TRIGGER events_no_update")
    connection.execute("UPDATE events SET body = x'00' WHERE seq = 77")
    connection.close()
    report = json.loads(run("verify", "--json", status=1))
    assert report["first_bad_index"] == 77
    assert run("verify", status=1).startswith("NOT OK: event 77 was changed")


def test_proof_and_consistency(run: Any, folder: Path, complaint: Any) -> None:
    """A proof that other tools check, with the log's key alone."""
    text = run("proof", "42")
    document = json.loads(run("proof", "42", "--json"))
    assert document["tlog_proof"] == text
    verifier = parse_verifier(str(LogKeys.derive(identity.load(folder / "identity.key")).log_verifier))
    assert check_proof(parse_proof(text), bytes.fromhex(document["entry"]), verifier).size == 206
    assert json.loads(run("proof", "42", "--size", "101", "--json"))["size"] == 101
    run("proof", "42", "--size", "102", status=1)
    block = json.loads(run("proof", "42", "--block", "--json"))
    hashes = [bytes.fromhex(value) for value in block["proof"]]
    place = (bytes.fromhex(block["leaf"]), block["offset"], block["size"])
    assert verify_inclusion(*place, hashes, bytes.fromhex(block["block_root"]))
    assert not verify_inclusion(*place, hashes[:-1], bytes.fromhex(block["block_root"]))
    assert "block_root" in run("proof", "0", "--block")
    run("proof", "999", "--block", status=1)
    run("proof", "9999", status=1)
    assert "there is no event 9999" in complaint("log", "proof", "9999", "--data", str(folder))
    assert len(json.loads(run("consistency", "100", "--json"))["proof"]) > 3
    assert run("consistency", "100", "200").splitlines()[1].startswith("200 ")
    run("consistency", "300", "200", status=1)


def test_replay_rebuild_export(run: Any, tmp_path: Path, folder: Path) -> None:
    """Time travel, comparison with the snapshot, JSON lines and exact bytes."""
    early = json.loads(run("replay", "--to", "10", "--json"))
    late = json.loads(run("replay", "--json"))
    assert early["state_hash"] != late["state_hash"]
    assert late["snapshot"] == {"size": 206, "ok": True}
    assert "state_hash" in run("replay")
    run("replay", "--to", "9999", status=1)
    assert json.loads(run("rebuild", "--json"))["ok"]
    assert len(run("export", "--first", "1", "--end", "4").splitlines()) == 3
    assert len(json.loads(run("export", "--json"))["events"]) == 206
    target = tmp_path / "out.jsonl"
    run("export", "--raw", "--output", str(target))
    assert len(target.read_text().splitlines()) == 206
    connection = connect_writer(folder / LOG_DIR / DATABASE)
    connection.execute("UPDATE snapshots SET state = x'00'")
    connection.close()
    assert not json.loads(run("replay", "--json", status=1))["snapshot"]["ok"]
    assert "dropped: True" in run("rebuild", status=1)
    assert json.loads(run("rebuild", "--json"))["snapshot_size"] is None


def test_witnesses(run: Any) -> None:
    """Who cosigned, who was cosigned, who was caught."""
    view = json.loads(run("witnesses", "--json"))
    assert [len(view[key]) for key in ("cosigned_by", "cosigned", "equivocations")] == [1, 1, 1]
    assert view["cosigned_by"][0]["time_ms"] == 1_790_000_000_000
    assert view["cosigned"][0]["size"] == 3
    text = run("witnesses")
    assert "FRAUD" in text
    assert "cosigned by p2pnode/" in text


def test_a_fraud_is_taken_out_and_checked_elsewhere(
    folder: Path, run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file alone convinces; a changed one, or one of the record that proves nothing, does not."""
    proof = fraud_from_trees(TREES[0].signed(20), TREES[1].signed(37), *TREES)

    async def convict() -> None:
        log: SqliteLog[Any] = SqliteLog.open(folder, identity.load_or_create(folder), fold=MeshFold())
        assert await log.convict(proof)
        assert not await log.convict(proof)
        with pytest.raises(BadCheckpoint):
            await log.convict(proof[:-1])
        await log.close()

    asyncio.run(convict())
    peer, target = node_identity(1).peer_id, tmp_path / "fraud.json"
    run("fraud", "export", peer, "--output", str(target))
    assert run_command(["log", "fraud", "verify", str(target)]) == 0
    assert "event 10 is not the same in both" in capsys.readouterr().out
    assert run_command(["log", "fraud", "verify", str(target), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["peer"], found["sizes"], found["event"]) == (peer, [20, 37], 10)
    assert run("fraud", "export", f"p2pnode/{peer}") == target.read_text()
    good = target.read_text()
    for bad in ("nonsense", good.replace('"document": "9', '"document": "8'), good[:-20] + '00"}'):
        target.write_text(bad)
        assert run_command(["log", "fraud", "verify", str(target)]) == 1
        assert capsys.readouterr().out.startswith("NOT OK")
    run("fraud", "export", "nobody", status=1)
    assert f"p2pnode log fraud export {len(json.loads(run('export', '--json'))['events']) - 1}" in run(
        "witnesses"
    )


def test_copies_of_a_log_are_compared(folder: Path, run: Any, tmp_path: Path) -> None:
    """The same, a beginning, or parted at an event, with the proof of that."""
    copy = tmp_path / "copy"
    shutil.copytree(folder / LOG_DIR, copy / LOG_DIR)
    shutil.copy(folder / "identity.key", copy / "identity.key")
    assert run("compare", str(copy)).startswith("the same 206 events")

    def go_on(where: Path, count: int) -> None:
        async def append() -> None:
            log: SqliteLog[Any] = SqliteLog.open(where, identity.load_or_create(where), fold=MeshFold())
            await log.append([held(n, 0) for n in range(1000, 1000 + count)])
            await log.close()

        asyncio.run(append())

    go_on(folder, 5)
    assert "the first 206 events are the same; this log goes on to 211" in run("compare", str(copy))
    go_on(copy, 90)
    proof = tmp_path / "proof.json"
    assert "THEY PART at event 206" in run("compare", str(copy), "--proof", str(proof), status=1)
    assert json.loads(run("compare", str(copy), "--json", status=1))["first_difference"] == 206
    assert run_command(["log", "fraud", "verify", str(proof)]) == 0


def test_forget_without_a_node(run: Any) -> None:
    """The salt goes, the record says so, and a second time there is nothing left."""
    assert run("forget", "r-9").startswith("1 commitments")
    assert json.loads(run("tail", "-n", "1", "--json"))["events"][0]["type"] == "SubjectForgotten"
    run("forget", "r-9", status=1)
    assert run("verify").startswith("ok")


def test_a_restored_backup_is_accepted_by_the_operator_alone(run: Any, folder: Path) -> None:
    """Until then the log is not opened to write; afterwards it has another name."""
    path = folder / LOG_DIR / DATABASE
    backup = path.read_bytes()
    run("forget", "r-9")
    path.write_bytes(backup)
    assert "its tail was cut" in run("verify", status=1)
    run("forget", "r-9", status=1)
    assert json.loads(run("accept-rollback", "--json"))["origin"].endswith("/1")
    assert run("verify").startswith("ok")
    assert "goes on as" in run("accept-rollback")


def test_keys_are_rotated_while_the_node_is_stopped(run: Any) -> None:
    """Twice; the log verifies with each key in its time."""
    assert json.loads(run("rotate-keys", "--json"))["generation"] == 1
    assert run("rotate-keys").startswith("generation 2: p2pnode/")
    assert run("verify").startswith("ok")


def test_a_policy_wants_its_witnesses(run: Any, folder: Path, tmp_path: Path) -> None:
    """Met by the newest checkpoint that they cosigned; not met is exit status 1, as is no policy at all."""
    log_key = LogKeys.derive(identity.load(folder / "identity.key")).log_verifier
    two, three = (LogKeys.derive(node_identity(number)).witness_verifier for number in (2, 3))
    path = tmp_path / "policy"
    path.write_text(policy_text(log_key, [two, three], 1))
    assert "policy: met by the checkpoint of " in run("verify", "--policy", str(path))
    found = json.loads(run("verify", "--policy", str(path), "--json"))["policy"]
    assert (found["ok"], found["cosigned"], found["missing"]) == (True, ["w1"], ["w2"])
    assert 0 < found["size"] < 206, "the newest one is not cosigned yet"
    path.write_text(policy_text(log_key, [two, three], 2))
    assert "POLICY NOT MET" in run("verify", "--policy", str(path), status=1)
    path.write_text("quorum x\n")
    run("verify", "--policy", str(path), status=1)


def test_a_proof_is_checked_without_the_log(run: Any, folder: Path, tmp_path: Path, capsys: Any) -> None:
    """By the log's key or a policy; another entry, key, place or missing witness is refused."""
    document = json.loads(run("proof", "42", "--json"))
    proof, entry, policy = tmp_path / "proof", tmp_path / "entry", tmp_path / "policy"
    proof.write_text(document["tlog_proof"])
    entry.write_text(document["entry"])
    keys = LogKeys.derive(identity.load(folder / "identity.key"))
    policy.write_text(policy_text(keys.log_verifier, [], 0))

    def check(*options: str, status: int = 0) -> str:
        assert run_command(["log", "check-proof", str(proof), str(entry), *options]) == status
        return str(capsys.readouterr().out)

    key = ("--key", str(keys.log_verifier))
    assert check(*key).startswith("ok: it is event 42 of p2pnode/")
    assert json.loads(check("--policy", str(policy), "--json"))["size"] == 206
    entry.write_bytes(bytes.fromhex(document["entry"]))
    check(*key)
    assert check("--key", str(LogKeys.derive(node_identity(5)).log_verifier), status=1).startswith("NOT OK")
    policy.write_text(policy_text(keys.log_verifier, [LogKeys.derive(node_identity(2)).witness_verifier], 1))
    assert "missing: w1" in check("--policy", str(policy), status=1)
    proof.write_text(document["tlog_proof"].replace("index 42", "index 43"))
    assert check(*key, status=1).startswith("NOT OK")
    proof.write_text(document["tlog_proof"])
    entry.write_bytes(b"something else")
    assert check(*key, status=1).startswith("NOT OK")
    check(status=2)


def test_sealing_on_demand(run: Any) -> None:
    """While the node is stopped everything is sealed already; the hint of `proof` names this command."""
    assert run("seal").startswith("206 events are sealed in ")
    assert json.loads(run("seal", "--json"))["size"] == 206


def test_numbers_that_can_not_be_are_refused(folder: Path, complaint: Any) -> None:
    """Negative counts and places, and logs of other devices."""
    for arguments in (("tail", "-n", "-3"), ("export", "--first", "-3"), ("export", "--end", "-1"),
                      ("blocks", "--first", "-1"), ("replay", "--to", "-1")):  # fmt: skip
        assert "-" in complaint("log", *arguments, "--data", str(folder))


def test_logs_of_two_devices_are_not_compared(folder: Path, complaint: Any, tmp_path: Path) -> None:
    other = tmp_path / "other"
    log: SqliteLog[Any] = SqliteLog.open(other, node_identity(9))
    log.close_blocking()
    assert "another device" in complaint("log", "compare", str(other), "--data", str(folder))


def test_folders_without_a_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line each, no traceback; nothing is made."""
    for command in (["verify"], ["tail"], ["replay"], ["witnesses"], ["forget", "x"], ["rebuild"]):
        assert run_command(["log", *command, "--data", str(tmp_path / "none")]) == 1
        captured = capsys.readouterr()
        assert captured.err.startswith("error:")
        assert "Traceback" not in captured.err
    assert not (tmp_path / "none").exists()


def test_what_is_not_there_is_said_so(run: Any) -> None:
    """Unknown events, receipts of requests that have none."""
    run("show", "nothing", status=1)
    run("show", "9999", status=1)
    run("receipt", "export", "r-9", status=1)
