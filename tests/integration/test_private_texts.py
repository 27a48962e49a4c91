"""What people write, where they are and what they type is in no event: salted commitments stand there instead."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pnode.events.folder import LOG_DIR
from p2pnode.events.reader import LogReader
from p2pnode.events.secret import commitment_of
from p2pnode.events.types import RequestAccepted, RequestFinished, SubjectForgotten
from p2pnode.events.verify import verify_folder
from tests.kit.mesh import MeshOfProcesses, mesh_of

DEMO = "p2pnode-demo"
PROMPT = "zanzibar quokka 7431"
KEPT = "marmalade wombat 9925"
COMMAND = "TOKEN=hunter2-9931 echo hidden-word-5512"


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MeshOfProcesses]:
    root = tmp_path_factory.mktemp("mesh")
    with mesh_of(root, "alpha", "beta", first_arguments=("--console",)) as made:
        yield made


def recorded(folder: Path) -> bytes:
    """All events of a device, byte for byte."""
    reader = LogReader.of_folder(folder)
    try:
        return b"\n".join(reader.entries(0, reader.size))
    finally:
        reader.close()


def on_disk(folder: Path) -> bytes:
    return b"\n".join(path.read_bytes() for path in sorted((folder / LOG_DIR).iterdir()))


def test_no_event_holds_a_text_an_address_or_a_command(mesh: MeshOfProcesses) -> None:
    """Both devices compute the answer; nothing of it is in either log, nor anywhere in the folder of the log."""
    alpha, beta = mesh.nodes
    answer = alpha.infer(DEMO, PROMPT, mode="pipeline")
    ran = alpha.api.post("/shell/exec", {"command": COMMAND})
    assert "hidden-word-5512" in ran["output"]
    assert [entry["data"]["verb"] for entry in alpha.events("ConsoleCommandRun")] == ["shell"]
    for node in (alpha, beta):
        node.api.post("/command/seal", {})
        events, files = recorded(node.data), on_disk(node.data)
        ports = [
            str(address).split("/")[4] for address in (*alpha.hello["addresses"], *beta.hello["addresses"])
        ]
        for private in (PROMPT, answer["text"], COMMAND, "hunter2-9931", "hidden-word-5512"):
            assert private.encode() not in files, private
        for address in ("127.0.0.1", *(f"/udp/{port}" for port in ports)):
            assert address.encode() not in events, address
    assert alpha.events("PeerSeen"), "an address was seen and committed to"


def test_a_kept_request_is_asked_again(mesh: MeshOfProcesses) -> None:
    """Greedy and seeded answers come again, over both devices; what was chance or another prompt's is refused."""
    alpha = mesh.nodes[0]
    alpha.api.post("/command/set", {"key": "keep_texts", "value": "true"})
    for wish in ({}, {"temperature": 0.9, "seed": 7}):
        answer = alpha.infer(DEMO, PROMPT, mode="pipeline", **wish)
        again = alpha.cli("log", "replay", answer["request_id"])
        assert (again["same"], again["text"]) == (True, answer["text"]), wish
    chance = alpha.infer(DEMO, PROMPT, mode="pipeline", temperature=0.9)["request_id"]
    other = alpha.data / "prompt.txt"
    other.write_text("another prompt")
    for arguments, what in (
        ([chance], "neither greedy nor seeded"),
        ([answer["request_id"], "--prompt-file", str(other)], "is not the prompt"),
    ):
        found = subprocess.run(
            [sys.executable, "-m", "p2pnode", "log", "replay", *arguments, "--data", str(alpha.data)],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert found.returncode == 1, found
        assert what in found.stderr


def test_what_was_kept_is_gone_when_it_is_forgotten(mesh: MeshOfProcesses) -> None:
    """The owner keeps texts: they are beside the log, open the commitments, and go with their salts for good."""
    alpha = mesh.nodes[0]
    alpha.api.post("/command/set", {"key": "keep_texts", "value": "true"})
    request_id = alpha.infer(DEMO, KEPT, mode="pipeline")["request_id"]
    assert KEPT.encode() not in recorded(alpha.data)
    assert KEPT.encode() in on_disk(alpha.data)
    reader = LogReader.of_folder(alpha.data)
    events = [record.event for record in reader.read(0, reader.size)]
    (asked,) = [e for e in events if isinstance(e, RequestAccepted) and e.request_id == request_id]
    (told,) = [e for e in events if isinstance(e, RequestFinished) and e.request_id == request_id]
    row = reader.tables.secret(asked.prompt_commitment)
    assert row is not None
    assert row.text is not None
    assert KEPT.encode() in row.text
    assert commitment_of(row.salt, row.text) == asked.prompt_commitment
    reader.close()

    assert alpha.cli("log", "forget", request_id)["forgotten"] >= 2
    reader = LogReader.of_folder(alpha.data)
    assert reader.tables.secret(asked.prompt_commitment) is None
    assert reader.tables.secret(told.answer_commitment) is None
    (gone,) = [r.event for r in reader.read(0, reader.size) if isinstance(r.event, SubjectForgotten)]
    assert {asked.prompt_commitment, told.answer_commitment} <= set(gone.commitments)
    reader.close()
    alpha.stop()  # closing the database empties its write-ahead log
    assert KEPT.encode() not in on_disk(alpha.data)
    assert verify_folder(alpha.data).ok
