"""The folder of a first start is given back as it was found."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pnode.errors import DataDirError
from p2pnode.node.data_folder import DataFolder


def test_made_folders_are_taken_away_with_all_they_hold(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "a" / "b")
    folder.prepare()
    assert folder.path.stat().st_mode & 0o777 == 0o700
    (folder.path / "log").mkdir()
    (folder.path / "log" / "log.db").write_bytes(b"half")
    (folder.path / "identity.key").write_bytes(b"key")
    (folder.path / "elsewhere").symlink_to(tmp_path)
    folder.give_back()
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_stays_and_is_empty(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    folder.prepare()
    (tmp_path / "identity.key").write_bytes(b"key")
    folder.give_back()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "identity.key").write_bytes(b"key")
    folder = DataFolder(tmp_path)
    folder.prepare()
    folder.give_back()
    assert (tmp_path / "identity.key").read_bytes() == b"key"


def test_what_others_put_beside_it_stays(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "a" / "b")
    folder.prepare()
    (tmp_path / "a" / "note").write_text("mine")
    folder.give_back()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["note"]


def test_a_file_on_the_way_is_a_condition(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    folder = DataFolder(tmp_path / "file" / "data")
    with pytest.raises(DataDirError):
        folder.prepare()
    folder.give_back()
    assert (tmp_path / "file").read_text() == "not a folder"
