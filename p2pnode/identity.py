"""The node's key: one Ed25519 key is its peer id, its log's signing key and its receipts' signing key.

On disk it is `identity.key` in the data folder: libp2p's PrivateKey protobuf, mode 0600.
Format and derivation: specs/01-identity.md.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from p2pnode import peer_id as ids
from p2pnode.durable import sync_folder
from p2pnode.errors import DataDirError
from p2pnode.multiformats import DecodeError
from p2pnode.units import PeerId

KEY_FILE = "identity.key"
RECORD_FILE = "log/log.db"
"""Beside it from the first start on; a new key could not go on with an old record."""
KEY_FILE_BYTES_MAX = 256
"""The protobuf has 68 bytes; an old form has 100."""

_DERIVE_SALT = b"p2pnode/identity/1"
_HINT = (
    "restore it from a copy, or choose another folder with --data to start as a new node "
    "(other devices must admit it again)"
)


@dataclass(frozen=True, slots=True)
class Identity:
    """A host key; the secret never appears in repr or logs."""

    key: Ed25519PrivateKey = field(repr=False)
    public_key: bytes
    """PublicKey protobuf, 36 bytes."""
    peer_id: PeerId

    @classmethod
    def from_key(cls, key: Ed25519PrivateKey) -> Identity:
        public_key = ids.encode_public_key(key.public_key())
        return cls(key=key, public_key=public_key, peer_id=ids.peer_id_of(public_key))

    @classmethod
    def from_seed(cls, seed: bytes) -> Identity:
        """From the 32-byte Ed25519 seed (tests, derivation)."""
        return cls.from_key(Ed25519PrivateKey.from_private_bytes(seed))

    @classmethod
    def generate(cls) -> Identity:
        return cls.from_key(Ed25519PrivateKey.generate())

    def sign(self, message: bytes) -> bytes:
        return self.key.sign(message)

    def derive(self, purpose: str) -> Ed25519PrivateKey:
        """A sub-key for one purpose: the same purpose gives the same key, no key tells of another."""
        assert purpose, "a purpose has a name"
        return Ed25519PrivateKey.from_private_bytes(self.derive_secret(purpose))

    def derive_secret(self, purpose: str) -> bytes:
        """32 bytes for one purpose (a MAC key, a seed); HKDF-SHA-256 of the seed."""
        info = b"p2pnode " + purpose.encode()
        hkdf = HKDF(algorithm=hashes.SHA256(), length=32, salt=_DERIVE_SALT, info=info)
        return hkdf.derive(self.key.private_bytes_raw())


def verify(peer_id: str, signature: bytes, message: bytes) -> bool:
    """Whether the Ed25519 node `peer_id` signed `message`; False for ids that do not carry their key."""
    try:
        key = ids.ed25519_public_key(peer_id)
    except DecodeError:
        return False
    if key is None:
        return False
    return ids.verify_signature(ids.encode_public_key(key), signature, message)


def load(path: Path) -> Identity:
    """Read a key file; DataDirError says what is wrong with it and what to do."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(KEY_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise DataDirError(
            f"the node's key {path} cannot be read: {error.strerror or error}",
            hint="check who owns the file: chown it to the user that runs p2pnode",
            path=str(path),
        ) from error
    if stat.S_IMODE(mode) & 0o077:
        raise DataDirError(
            f"the node's key {path} can be read by other users (mode {stat.S_IMODE(mode):04o})",
            hint=f"run: chmod 600 {path}",
            path=str(path),
        )
    try:
        if len(data) > KEY_FILE_BYTES_MAX:
            raise DecodeError("the file is too long")
        return Identity.from_key(ids.decode_private_key(data))
    except DecodeError as error:
        raise DataDirError(
            f"the node's key {path} is damaged: {error}", hint=_HINT, path=str(path)
        ) from error


def load_or_create(data_dir: Path) -> Identity:
    """The identity kept in `data_dir`; the first start makes it."""
    path = data_dir / KEY_FILE
    if path.exists() or path.is_symlink():
        return load(path)
    if (data_dir / RECORD_FILE).exists():
        raise DataDirError(
            f"the node's key {path} is missing, and {data_dir} holds the record of the node it belongs to",
            hint=_HINT,
            path=str(path),
        )
    identity = Identity.generate()
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        _write_new(path, ids.encode_private_key(identity.key))
    except FileExistsError:
        return load(path)
    except OSError as error:
        raise DataDirError(
            f"the node's key cannot be written to {path}: {error.strerror or error}",
            hint="choose a folder you may write to with --data",
            path=str(path),
        ) from error
    return identity


def _write_new(path: Path, data: bytes) -> None:
    """Durable and all-or-nothing; FileExistsError when another process was first."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            path.hardlink_to(temporary)
        except PermissionError:
            # A file system without hard links (FAT, some network ones).
            temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)
