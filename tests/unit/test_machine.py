"""A data folder belongs to the machine it was made on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from p2pnode import machine
from p2pnode.errors import DataDirError, DuplicateIdentity
from p2pnode.machine import MACHINE_FILE, bind_to_machine
from tests.kit.net import identity

KITCHEN, STUDY = "a" * 32, "b" * 32
WHO = identity("node")


def bind(folder: Path, found: str | None, *, moved: bool = False) -> None:
    bind_to_machine(folder, WHO, moved=moved, find_id=lambda: found)


def test_the_same_machine_starts_again_and_again(tmp_path: Path) -> None:
    bind(tmp_path, KITCHEN)
    written = (tmp_path / MACHINE_FILE).read_bytes()
    bind(tmp_path, KITCHEN)
    assert (tmp_path / MACHINE_FILE).read_bytes() == written


def test_a_copy_on_another_machine_is_refused_and_names_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "host_name", lambda: "kitchen")
    bind(tmp_path, KITCHEN)
    monkeypatch.setattr(machine, "host_name", lambda: "study")
    with pytest.raises(
        DuplicateIdentity, match="belongs to kitchen: it was copied or moved to study"
    ) as refused:
        bind(tmp_path, STUDY)
    assert "--moved" in refused.value.hint
    bind(tmp_path, STUDY, moved=True)
    bind(tmp_path, STUDY)
    with pytest.raises(DuplicateIdentity, match="belongs to study"):
        bind(tmp_path, KITCHEN)


def test_where_the_system_has_no_id_nothing_is_bound(tmp_path: Path) -> None:
    bind(tmp_path, None)
    assert not (tmp_path / MACHINE_FILE).exists()
    bind(tmp_path, KITCHEN)
    bind(tmp_path, None)


def test_the_file_does_not_tell_the_machine_id(tmp_path: Path) -> None:
    """Nor the same for two identities on one machine: it cannot be used to link them."""
    bind(tmp_path, KITCHEN)
    first = json.loads((tmp_path / MACHINE_FILE).read_text())["machine"]
    (tmp_path / MACHINE_FILE).unlink()
    bind_to_machine(tmp_path, identity("another"), find_id=lambda: KITCHEN)
    assert KITCHEN not in first
    assert json.loads((tmp_path / MACHINE_FILE).read_text())["machine"] != first


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"machine": 3}', b"\xff\xfe", b"[" * 5000])
def test_a_damaged_file_is_written_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MACHINE_FILE).write_bytes(content)
    bind(tmp_path, KITCHEN)
    with pytest.raises(DuplicateIdentity):
        bind(tmp_path, STUDY)


def test_a_folder_that_takes_no_file(tmp_path: Path) -> None:
    (tmp_path / MACHINE_FILE).with_suffix(".json.new").mkdir()
    with pytest.raises(DataDirError, match="cannot be written"):
        bind(tmp_path, KITCHEN)


@pytest.mark.parametrize(
    ("content", "found"),
    [(KITCHEN + "\n", KITCHEN), ("", None), ("uninitialized\n", None), ("A" * 32, KITCHEN), ("a" * 31, None)],
)
def test_what_counts_as_a_machine_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, found: str | None
) -> None:
    (tmp_path / "machine-id").write_text(content)
    monkeypatch.setattr(machine, "_LINUX_FILES", (tmp_path / "none", tmp_path / "machine-id"))
    monkeypatch.setattr(machine.platform, "system", lambda: "Linux")
    assert machine.machine_id() == found
