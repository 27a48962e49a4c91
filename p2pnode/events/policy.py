"""Trust policies: which logs count, and whose cosignatures a checkpoint needs. Pure.

Source: c2sp.org/tlog-policy. Names are opaque bytes there; keys are vkeys of signed notes, and so UTF-8.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from p2pnode.errors import BadCheckpoint, BadPolicy
from p2pnode.events.note import COSIGNATURE, ED25519, Note, Verifier, cosigned_at, is_signed, parse_verifier
from p2pnode.limits import POLICY_BYTES_MAX, POLICY_LINES_MAX

NONE: Final = b"none"


@dataclass(frozen=True, slots=True)
class Group:
    """At least `needed` of the members; a member is a witness or a group named before."""

    needed: int
    members: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Policy:
    """A checkpoint counts when any of the logs signed it and the quorum cosigned it."""

    logs: tuple[Verifier, ...]
    witnesses: Mapping[bytes, Verifier]
    groups: Mapping[bytes, Group]
    quorum: bytes

    def is_met(self, cosigned: Iterable[bytes]) -> bool:
        """Whether these witnesses are enough."""
        met = set(cosigned) & self.witnesses.keys()
        for name, group in self.groups.items():  # in the order of their lines: members come before
            if sum(member in met for member in group.members) >= group.needed:
                met.add(name)
        return self.quorum == NONE or self.quorum in met


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a policy says of a checkpoint."""

    ok: bool
    cosigned: tuple[str, ...]
    missing: tuple[str, ...]
    """Witnesses of the policy that have not cosigned."""


def parse_policy(raw: bytes) -> Policy:
    """Read a policy; BadPolicy names the line that cannot be."""
    if len(raw) > POLICY_BYTES_MAX:
        raise BadPolicy(f"a policy has at most {POLICY_BYTES_MAX} bytes")
    lines = raw.split(b"\n")
    if len(lines) > POLICY_LINES_MAX:
        raise BadPolicy(f"a policy has at most {POLICY_LINES_MAX} lines")
    reader = _Reader()
    for number, line in enumerate(lines, start=1):
        if any(byte < 0x20 and byte != 0x09 for byte in line) or 0x7F in line:
            raise BadPolicy(f"line {number} of the policy has a control character")
        words = line.replace(b"\t", b" ").split(b" ")
        words = [word for word in words if word]
        if not words or words[0].startswith(b"#"):
            continue
        try:
            reader.line(words)
        except (BadPolicy, ValueError) as error:
            raise BadPolicy(f"line {number} of the policy: {getattr(error, 'message', error)}") from error
    if reader.quorum is None:
        raise BadPolicy("the policy has no quorum line")
    return Policy(tuple(reader.logs), reader.witnesses, reader.groups, reader.quorum)


def check_policy(policy: Policy, note: Note) -> Verdict:
    """Whether a checkpoint is signed and cosigned as the policy wants; BadCheckpoint for a forged line."""
    is_known_log = not policy.logs or any(is_signed(note, log) for log in policy.logs)
    cosigned = [name for name, key in policy.witnesses.items() if cosigned_at(note, key) is not None]
    missing = [name for name in policy.witnesses if name not in cosigned]
    return Verdict(is_known_log and policy.is_met(cosigned), _texts(cosigned), _texts(missing))


def policy_text(log: Verifier, witnesses: Sequence[Verifier], needed: int) -> str:
    """A policy that wants so many of these witnesses."""
    lines = [f"log {log}", ""]
    names = [f"w{number}" for number in range(1, len(witnesses) + 1)]
    lines += [f"witness {name} {key}" for name, key in zip(names, witnesses, strict=True)]
    if not 0 <= needed <= len(witnesses):
        raise BadPolicy(f"{needed} of {len(witnesses)} witnesses can not be needed")
    if needed:
        lines += ["", f"group witnesses {needed} {' '.join(names)}"]
    lines.append(f"quorum {'witnesses' if needed else 'none'}")
    return "\n".join(lines) + "\n"


class _Reader:
    """What the lines so far defined."""

    def __init__(self) -> None:
        self.logs: list[Verifier] = []
        self.witnesses: dict[bytes, Verifier] = {}
        self.groups: dict[bytes, Group] = {}
        self.quorum: bytes | None = None
        self._used: set[bytes] = set()

    def line(self, words: list[bytes]) -> None:
        match words:
            case [b"log", key, *rest] if len(rest) <= 1:
                self._add_log(key)
            case [b"witness", name, key, *rest] if len(rest) <= 1:
                self._add_witness(name, key)
            case [b"group", name, needed, first, *rest]:
                self._add_group(name, needed, (first, *rest))
            case [b"quorum", name]:
                self._set_quorum(name)
            case _:
                raise BadPolicy(
                    "a line is: log VKEY, witness NAME VKEY, group NAME K NAME..., or quorum NAME"
                )

    def _add_log(self, key: bytes) -> None:
        verifier = _verifier(key, ED25519, "a log")
        if any(verifier.public_key == log.public_key for log in self.logs):
            raise BadPolicy("this log's key is there already")
        self.logs.append(verifier)

    def _add_witness(self, name: bytes, key: bytes) -> None:
        self._check_new(name)
        verifier = _verifier(key, COSIGNATURE, "a witness")
        if any(verifier.public_key == other.public_key for other in self.witnesses.values()):
            raise BadPolicy("this witness's key is there already")
        self.witnesses[name] = verifier

    def _add_group(self, name: bytes, needed: bytes, members: tuple[bytes, ...]) -> None:
        self._check_new(name)
        for member in members:
            self._check_defined(member)
            if member in self._used:
                raise BadPolicy(f"{_text(member)} is in a group already")
            self._used.add(member)
        count = {b"any": 1, b"all": len(members)}.get(needed)
        if count is None:
            if not needed.isdigit() or needed.startswith(b"0") or len(needed) > 6:
                raise BadPolicy("a group needs any, all or a number of its members")
            count = int(needed)
        if count > len(members):
            raise BadPolicy(f"{count} of {len(members)} members can not be needed")
        self.groups[name] = Group(count, members)

    def _set_quorum(self, name: bytes) -> None:
        if self.quorum is not None:
            raise BadPolicy("there is a quorum line already")
        if name != NONE:
            self._check_defined(name)
        self.quorum = name

    def _check_new(self, name: bytes) -> None:
        if name == NONE or name in self.witnesses or name in self.groups:
            raise BadPolicy(f"the name {_text(name)} is taken")

    def _check_defined(self, name: bytes) -> None:
        if name not in self.witnesses and name not in self.groups:
            raise BadPolicy(f"{_text(name)} is not defined before")


def _verifier(key: bytes, algorithm: int, whose: str) -> Verifier:
    try:
        verifier = parse_verifier(key.decode())
    except (UnicodeDecodeError, BadCheckpoint) as error:
        raise BadPolicy(getattr(error, "message", "a key is UTF-8 text")) from error
    if verifier.algorithm != algorithm:
        raise BadPolicy(f"the key of {whose} has the type {algorithm:#04x}, not {verifier.algorithm:#04x}")
    return verifier


def _text(name: bytes) -> str:
    return name.decode("utf-8", "replace")


def _texts(names: Iterable[bytes]) -> tuple[str, ...]:
    return tuple(map(_text, names))
