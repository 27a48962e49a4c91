"""Replacing a file: whole or not at all, and nothing left beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pnode.durable import replace_file


def test_the_new_content_is_there_with_the_mode_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    for content in (b"first", b"2"):
        replace_file(path, content, mode=0o600)
        assert path.read_bytes() == content
        assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    with pytest.raises(OSError, match="directory"):
        replace_file(path, b"content")
    assert list(tmp_path.iterdir()) == [path]
    (tmp_path / "file.new").mkdir()
    with pytest.raises(OSError, match="directory"):
        replace_file(tmp_path / "file", b"content")
    assert not (tmp_path / "file").exists()
