"""Signed notes and checkpoints: the log's size and root as a text that other people's tools verify.

Sources: c2sp.org/signed-note, c2sp.org/tlog-checkpoint, c2sp.org/tlog-cosignature (Ed25519 types 0x01, 0x04).
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from p2pnode.errors import BadCheckpoint
from p2pnode.events.merkle import EMPTY_ROOT, HASH_BYTES

ED25519: Final = 0x01
COSIGNATURE: Final = 0x04
NOTE_BYTES_MAX: Final = 16_384
"""Go's x/mod accepts a megabyte; a checkpoint with fifty cosignatures has ten kilobytes."""
SIGNATURES_MAX: Final = 100
"""The limit of Go's x/mod and of C2SP witnesses."""
SIZE_MAX: Final = 2**63 - 1

_KEY_HASH_BYTES: Final = 4
_SIGNATURE_BYTES: Final = 64
_TIME_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class Verifier:
    """A public key and the name it signs by; the text form is a C2SP vkey."""

    name: str
    algorithm: int
    public_key: bytes

    def __post_init__(self) -> None:
        _check_name(self.name)
        if self.algorithm not in (ED25519, COSIGNATURE) or len(self.public_key) != 32:
            raise BadCheckpoint(f"the key of {self.name} is not an Ed25519 key")

    @property
    def key_hash(self) -> bytes:
        """The four bytes that tell keys of one name apart."""
        material = self.name.encode() + b"\n" + bytes([self.algorithm]) + self.public_key
        return sha256(material).digest()[:_KEY_HASH_BYTES]

    def __str__(self) -> str:
        material = base64.b64encode(bytes([self.algorithm]) + self.public_key).decode()
        return f"{self.name}+{self.key_hash.hex()}+{material}"


@dataclass(frozen=True, slots=True)
class SignatureLine:
    """One signature under a note, not yet checked."""

    name: str
    key_hash: bytes
    signature: bytes

    def __str__(self) -> str:
        return f"\u2014 {self.name} {base64.b64encode(self.key_hash + self.signature).decode()}"


@dataclass(frozen=True, slots=True)
class Note:
    """A text (with its last newline) and the signatures under it."""

    text: str
    signatures: tuple[SignatureLine, ...]

    def __str__(self) -> str:
        return self.text + "\n" + "".join(f"{line}\n" for line in self.signatures)

    def with_signatures(self, *lines: SignatureLine) -> Note:
        return Note(self.text, (*self.signatures, *lines))

    def with_only(self, *verifiers: Verifier) -> Note:
        """The note without the signatures of others."""
        keys = {(verifier.name, verifier.key_hash) for verifier in verifiers}
        return Note(self.text, tuple(s for s in self.signatures if (s.name, s.key_hash) in keys))


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a log commits to: its name, how many entries it has and the root over them."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    def text(self) -> str:
        extensions = "".join(f"{line}\n" for line in self.extensions)
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n{extensions}"


def parse_verifier(vkey: str) -> Verifier:
    """Read a vkey; BadCheckpoint when any part of it is not what the others say."""
    parts = vkey.split("+", 2)
    if len(parts) != 3:
        raise BadCheckpoint("a verifier key has the form name+hash+key")
    name, hash_text, key_text = parts
    material = _base64(key_text, "a verifier key")
    if len(material) != 33:
        raise BadCheckpoint(f"the key of {name!r} is not an Ed25519 key")
    verifier = Verifier(name, material[0], material[1:])
    if hash_text != verifier.key_hash.hex():
        raise BadCheckpoint(f"the key hash of {name!r} does not belong to its key")
    return verifier


def parse_note(raw: str | bytes) -> Note:
    """Split a note into text and signatures without checking these; strict about every byte."""
    text = _decode_text(raw)
    split = text.rfind("\n\n")
    if split < 0:
        raise BadCheckpoint("a note has an empty line before its signatures")
    body, block = text[: split + 1], text[split + 2 :]
    if not block.endswith("\n") or not body.strip("\n"):
        raise BadCheckpoint("a note ends its text and every signature with a newline")
    lines = block[:-1].split("\n")
    if len(lines) > SIGNATURES_MAX:
        raise BadCheckpoint(f"a note has at most {SIGNATURES_MAX} signatures; this one has {len(lines)}")
    return Note(body, tuple(parse_signature_line(line) for line in lines))


def parse_signature_line(line: str) -> SignatureLine:
    """Read `— name base64` (the bytes still unchecked)."""
    parts = line.split(" ")
    if len(parts) != 3 or parts[0] != "\u2014":
        raise BadCheckpoint("a signature line begins with a long dash, a name and base64")
    _check_name(parts[1])
    material = _base64(parts[2], "a signature")
    if len(material) <= _KEY_HASH_BYTES:
        raise BadCheckpoint("a signature is too short")
    return SignatureLine(parts[1], material[:_KEY_HASH_BYTES], material[_KEY_HASH_BYTES:])


def parse_checkpoint(text: str) -> Checkpoint:
    """Read the text of a checkpoint note."""
    lines = text.split("\n")
    if len(lines) < 4 or lines[-1] != "":
        raise BadCheckpoint("a checkpoint has an origin, a size and a root, each on its line")
    origin, size_text, root_text, *extensions = lines[:-1]
    if not origin or any(not line for line in extensions):
        raise BadCheckpoint("a checkpoint has no empty lines")
    size = parse_size(size_text)
    root = _base64(root_text, "a root")
    if len(root) != HASH_BYTES or (size == 0 and root != EMPTY_ROOT):
        raise BadCheckpoint("a checkpoint's root is a SHA-256 tree hash")
    return Checkpoint(origin, size, root, tuple(extensions))


def parse_hash(line: str) -> bytes:
    """One hash of a proof."""
    value = _base64(line, "a hash")
    if len(value) != HASH_BYTES:
        raise BadCheckpoint(f"a hash has {HASH_BYTES} bytes")
    return value


def parse_size(text: str) -> int:
    """A size or index: decimal, without leading zeros, below 2**63."""
    if not (text.isascii() and text.isdigit()) or len(text) > 19:
        raise BadCheckpoint("a size is a decimal number")
    size = int(text)
    if str(size) != text or size > SIZE_MAX:
        raise BadCheckpoint("a size has no leading zeros and fits 63 bits")
    return size


def sign_note(text: str, name: str, key: Ed25519PrivateKey) -> SignatureLine:
    """The log's own signature over a note's text."""
    assert text.endswith("\n"), "a note's text ends with a newline"
    verifier = verifier_of(name, key)
    return SignatureLine(name, verifier.key_hash, key.sign(text.encode()))


def cosign_note(text: str, name: str, key: Ed25519PrivateKey, time_s: int) -> SignatureLine:
    """A witness's signature: this checkpoint is consistent with all it saw of that log until `time_s`."""
    assert text.endswith("\n"), "a note's text ends with a newline"
    verifier = verifier_of(name, key, COSIGNATURE)
    signature = time_s.to_bytes(_TIME_BYTES, "big") + key.sign(_cosigned_message(text, time_s))
    return SignatureLine(name, verifier.key_hash, signature)


def verifier_of(name: str, key: Ed25519PrivateKey, algorithm: int = ED25519) -> Verifier:
    """The verifier that belongs to a signing key."""
    return Verifier(name, algorithm, key.public_key().public_bytes_raw())


def is_signed(note: Note, verifier: Verifier) -> bool:
    """Whether `verifier` signed the note; BadCheckpoint if a line claims so and lies."""
    return _find(note, verifier) is not None


def cosigned_at(note: Note, verifier: Verifier) -> int | None:
    """When a witness cosigned, in seconds since 1970; None if it did not."""
    assert verifier.algorithm == COSIGNATURE, "only cosignatures have a time"
    line = _find(note, verifier)
    return None if line is None else int.from_bytes(line.signature[:_TIME_BYTES], "big")


def open_checkpoint(raw: str | bytes, log: Verifier, origin: str | None = None) -> tuple[Checkpoint, Note]:
    """Read a checkpoint that `log` signed; its origin is the key's name unless said otherwise."""
    note = parse_note(raw)
    if not is_signed(note, log):
        raise BadCheckpoint(f"the checkpoint is not signed by {log.name}")
    checkpoint = parse_checkpoint(note.text)
    if checkpoint.origin != (log.name if origin is None else origin):
        raise BadCheckpoint(f"the checkpoint is of {checkpoint.origin}, not of {log.name}")
    return checkpoint, note


def _find(note: Note, verifier: Verifier) -> SignatureLine | None:
    """The first line of a verifier; every line of it must be good, or the note is forged."""
    found = None
    for line in note.signatures:
        if line.name == verifier.name and line.key_hash == verifier.key_hash:
            if not _line_holds(note.text, line, verifier):
                raise BadCheckpoint(f"the signature of {verifier.name} is wrong")
            found = found or line
    return found


def _line_holds(text: str, line: SignatureLine, verifier: Verifier) -> bool:
    signature, message = line.signature, text.encode()
    if verifier.algorithm == COSIGNATURE:
        if len(signature) != _TIME_BYTES + _SIGNATURE_BYTES:
            return False
        time_s = int.from_bytes(signature[:_TIME_BYTES], "big")
        if not 0 < time_s <= SIZE_MAX:
            return False
        signature, message = signature[_TIME_BYTES:], _cosigned_message(text, time_s)
    try:
        Ed25519PublicKey.from_public_bytes(verifier.public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _cosigned_message(text: str, time_s: int) -> bytes:
    return f"cosignature/v1\ntime {time_s}\n{text}".encode()


def _check_name(name: str) -> None:
    if not name or "+" in name or any(char.isspace() or ord(char) < 0x20 for char in name):
        raise BadCheckpoint("a key's name has no spaces and no plus sign")


def _decode_text(raw: str | bytes) -> str:
    data = raw.encode() if isinstance(raw, str) else raw
    if len(data) > NOTE_BYTES_MAX:
        raise BadCheckpoint(f"a note has at most {NOTE_BYTES_MAX} bytes; this one has {len(data)}")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise BadCheckpoint("a note is UTF-8 text") from error
    if any(ord(char) < 0x20 and char != "\n" for char in text):
        raise BadCheckpoint("a note has no control characters")
    return text


def _base64(text: str, what: str) -> bytes:
    """Standard base64 in its one form: padded, no stray bits."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadCheckpoint(f"{what} is not base64") from error
    if base64.b64encode(data).decode() != text:
        raise BadCheckpoint(f"{what} is not in the one form of base64")
    return data
