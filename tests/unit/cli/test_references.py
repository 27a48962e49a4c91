"""The references of the faces are what the code says, and every public thing is in them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec

from p2pnode.api import schemas
from p2pnode.api.responses_schemas import ResponsesRequest
from p2pnode.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[3]


def test_references_are_fresh() -> None:
    """A changed command, route, field, option or metric without its reference fails here."""
    done = subprocess.run(
        [sys.executable, "tools/generate_faces_doc.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_field_has_one_treatment() -> None:
    """A field is done, without effect, or refused; the tables name no field that is not there."""
    kinds = {
        "chat": schemas.ChatRequest,
        "completion": schemas.CompletionRequest,
        "embedding": schemas.EmbeddingRequest,
        "responses": ResponsesRequest,
    }
    for name, kind in kinds.items():
        known = {field.name for field in msgspec.structs.fields(kind)}
        assert schemas.IGNORED[name] <= known
        assert schemas.REFUSED[name] <= known
        assert not schemas.IGNORED[name] & schemas.REFUSED[name]


def test_commands_are_documented() -> None:
    text = (ROOT / "specs" / "15-cli.md").read_text()
    assert all(f"\n## {name}\n" in text for name in COMMANDS)
