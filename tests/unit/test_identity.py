"""The node's key on disk and what is derived from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pnode import identity as identities
from p2pnode.errors import DataDirError
from p2pnode.identity import Identity
from p2pnode.peer_id import encode_private_key


def test_first_start_makes_a_key_and_later_ones_find_it(tmp_path: Path) -> None:
    made = identities.load_or_create(tmp_path / "new" / "folder")
    path = tmp_path / "new" / "folder" / identities.KEY_FILE
    assert path.stat().st_mode & 0o777 == 0o600
    assert identities.load_or_create(path.parent).peer_id == made.peer_id
    assert [entry.name for entry in path.parent.iterdir()] == [identities.KEY_FILE]


def test_key_file_is_libp2ps_private_key(tmp_path: Path) -> None:
    """libp2p/specs peer-ids.md, Ed25519 vector: other implementations' files are read."""
    data = bytes.fromhex(
        "080112407e0830617c4a7de83925dfb2694556b12936c477a0e1feb2e148ec9da60fee7d"
        "1ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e"
    )
    path = tmp_path / identities.KEY_FILE
    path.write_bytes(data)
    path.chmod(0o600)
    loaded = identities.load(path)
    assert (
        loaded.public_key.hex() == "080112201ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e"
    )
    assert encode_private_key(loaded.key) == data


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "damaged"),
        (b"\x08\x01\x12\x40" + bytes(64), "does not belong"),
        (b"\x08\x01\x12\x20" + bytes(32), "64 bytes"),
        (b"\x08\x02\x12\x40" + bytes(64), "not an Ed25519"),
        (b"\x08\x01", "not an Ed25519"),
        (bytes(1000), "too long"),
        (b"\xff" * 68, "damaged"),
    ],
)
def test_damaged_key_says_so(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / identities.KEY_FILE
    path.write_bytes(data)
    path.chmod(0o600)
    with pytest.raises(DataDirError, match=words) as caught:
        identities.load_or_create(tmp_path)
    assert "restore it" in caught.value.hint
    assert path.read_bytes() == data


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    identities.load_or_create(tmp_path)
    path = tmp_path / identities.KEY_FILE
    path.chmod(mode)
    with pytest.raises(DataDirError, match="other users") as caught:
        identities.load_or_create(tmp_path)
    assert caught.value.hint == f"run: chmod 600 {path}"


def test_key_that_is_a_folder_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / identities.KEY_FILE).mkdir()
    with pytest.raises(DataDirError, match="cannot be read"):
        identities.load_or_create(tmp_path)


def test_a_key_that_went_missing_is_not_made_anew(tmp_path: Path) -> None:
    """The record beside it goes on under its own key or not at all."""
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "log.db").touch()
    with pytest.raises(DataDirError, match="is missing"):
        identities.load_or_create(tmp_path)
    assert not (tmp_path / identities.KEY_FILE).exists()


def test_folder_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataDirError, match="cannot be written") as caught:
        identities.load_or_create(tmp_path / "file" / "data")
    assert "--data" in caught.value.hint


def test_another_process_that_was_first_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two first starts at once end with one key."""
    first = identities.load_or_create(tmp_path)
    monkeypatch.setattr(Path, "exists", lambda _path: False)
    monkeypatch.setattr(Path, "is_symlink", lambda _path: False)
    assert identities.load_or_create(tmp_path).peer_id == first.peer_id


def test_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_path: Path, _target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    made = identities.load_or_create(tmp_path)
    assert identities.load(tmp_path / identities.KEY_FILE).peer_id == made.peer_id


def test_signatures_verify_for_the_signer_only() -> None:
    one, two = Identity.from_seed(bytes(32)), Identity.from_seed(bytes([1]) * 32)
    signature = one.sign(b"message")
    assert identities.verify(one.peer_id, signature, b"message")
    assert not identities.verify(one.peer_id, signature, b"massage")
    assert not identities.verify(two.peer_id, signature, b"message")
    assert not identities.verify("not a peer id", signature, b"message")
    assert not identities.verify("QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N", signature, b"message")


def test_derived_keys_differ_by_purpose_and_node() -> None:
    one, two = Identity.from_seed(bytes(32)), Identity.from_seed(bytes([1]) * 32)
    keys = {
        key.private_bytes_raw()
        for node in (one, two)
        for key in (node.key, node.derive("log"), node.derive("receipt"))
    }
    assert len(keys) == 6
    assert one.derive("log").private_bytes_raw() == one.derive_secret("log")
    assert one.derive_secret("log").hex() == DERIVED_LOG_OF_ZERO_SEED


def test_repr_keeps_the_secret() -> None:
    one = Identity.from_seed(bytes(32))
    assert "key=" not in repr(one).replace("public_key=", "")


DERIVED_LOG_OF_ZERO_SEED = "d1a2c9cd03908a6a6d00cbc8cc26a6fffed29745c0e83a35ba43d78b52666038"
