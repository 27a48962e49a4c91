"""Audit: how many facts of each kind, who cosigned this log, whose checkpoints this node holds."""

from __future__ import annotations

from typing import Final

import msgspec

from p2pnode import limits
from p2pnode.events import types as facts
from p2pnode.events.codec import Record
from p2pnode.projections.fold import Handlers, JsonObject, forget_oldest, in_order


class Cosigned(msgspec.Struct, array_like=True):
    """The newest checkpoint of this log that one peer cosigned."""

    index: int
    size: int
    root: bytes
    at_ms: int


class Witnessed(msgspec.Struct, array_like=True):
    """The newest checkpoint of a peer's log that this node cosigned."""

    index: int
    peer: str
    size: int
    root: bytes
    at_ms: int


class Fraud(msgspec.Struct, array_like=True):
    index: int
    peer: str
    size_first: int
    size_second: int
    at_ms: int


class ConsoleRun(msgspec.Struct, array_like=True):
    index: int
    actor: str
    verb: str
    exit_code: int
    duration_ms: int
    at_ms: int


class Audit(msgspec.Struct):
    counts: dict[str, int] = {}
    unknown: dict[str, int] = {}
    """Facts of newer versions, by name."""
    last_ms: int = 0
    cosigned: dict[str, Cosigned] = {}
    witnessed: dict[str, Witnessed] = {}
    """By origin."""
    frauds: dict[str, Fraud] = {}
    """By origin."""
    forgotten_subjects: int = 0
    forgotten_commitments: int = 0
    console: list[ConsoleRun] = []

    def __post_init__(self) -> None:
        self.cosigned = in_order(self.cosigned)
        self.witnessed = in_order(self.witnessed)
        self.frauds = in_order(self.frauds)


def initial() -> Audit:
    return Audit()


def count(state: Audit, record: Record, event: facts.Event) -> None:
    """Called for every fact, known or not."""
    name = type(event).__name__
    state.counts[name] = state.counts.get(name, 0) + 1
    state.last_ms = record.wall_ms


def _unknown(state: Audit, record: Record, event: facts.UnknownEvent) -> None:
    state.unknown[event.type_name] = state.unknown.get(event.type_name, 0) + 1
    forget_oldest(state.unknown, limits.SETTINGS_KEPT_MAX)


def _checkpoint_witnessed(state: Audit, record: Record, event: facts.CheckpointWitnessed) -> None:
    state.witnessed.pop(event.origin, None)
    state.witnessed[event.origin] = Witnessed(
        record.index, event.peer, event.size, event.root, record.wall_ms
    )
    forget_oldest(state.witnessed, limits.WITNESSES_KEPT_MAX)


def _witness_received(state: Audit, record: Record, event: facts.WitnessReceived) -> None:
    state.cosigned.pop(event.peer, None)
    state.cosigned[event.peer] = Cosigned(record.index, event.size, event.root, record.wall_ms)
    forget_oldest(state.cosigned, limits.WITNESSES_KEPT_MAX)


def _peer_equivocated(state: Audit, record: Record, event: facts.PeerEquivocated) -> None:
    state.frauds.setdefault(
        event.origin,
        Fraud(record.index, event.peer, event.size_first, event.size_second, record.wall_ms),
    )
    forget_oldest(state.frauds, limits.WITNESSES_KEPT_MAX)


def _subject_forgotten(state: Audit, record: Record, event: facts.SubjectForgotten) -> None:
    state.forgotten_subjects += 1
    state.forgotten_commitments += len(event.commitments)


def _console_command_run(state: Audit, record: Record, event: facts.ConsoleCommandRun) -> None:
    state.console.append(
        ConsoleRun(record.index, record.actor, event.verb, event.exit_code, event.duration_ms, record.wall_ms)
    )
    del state.console[: -limits.CONSOLE_KEPT_MAX]


def view(state: Audit, now_ms: int) -> JsonObject:
    """{"events", "counts": {type: n}, "unknown": {type: n}, "last_ms", "witnesses": [{"peer", "size",
    "root", "at_ms", "age_ms"}], "witnessed": [{"origin", "peer", "size", "root", "at_ms"}], "frauds":
    [{"origin", "peer", "size_first", "size_second", "index", "at_ms"}], "forgotten": {"subjects",
    "commitments"}, "console": [{"index", "actor", "verb", "exit_code", "duration_ms", "at_ms"}]} Roots
    are hex.
    """
    return {
        "events": sum(state.counts.values()),
        "counts": dict(sorted(state.counts.items())),
        "unknown": dict(sorted(state.unknown.items())),
        "last_ms": state.last_ms,
        "witnesses": [
            {
                "peer": peer,
                "size": entry.size,
                "root": entry.root.hex(),
                "at_ms": entry.at_ms,
                "age_ms": max(now_ms - entry.at_ms, 0),
            }
            for peer, entry in state.cosigned.items()
        ],
        "witnessed": [
            {
                "origin": origin,
                "peer": entry.peer,
                "size": entry.size,
                "root": entry.root.hex(),
                "at_ms": entry.at_ms,
            }
            for origin, entry in state.witnessed.items()
        ],
        "frauds": [
            {"origin": origin, **msgspec.structs.asdict(entry)} for origin, entry in state.frauds.items()
        ],
        "forgotten": {"subjects": state.forgotten_subjects, "commitments": state.forgotten_commitments},
        "console": [msgspec.structs.asdict(run) for run in reversed(state.console)],
    }


HANDLERS: Final[Handlers] = {
    facts.UnknownEvent: _unknown,
    facts.CheckpointWitnessed: _checkpoint_witnessed,
    facts.WitnessReceived: _witness_received,
    facts.PeerEquivocated: _peer_equivocated,
    facts.SubjectForgotten: _subject_forgotten,
    facts.ConsoleCommandRun: _console_command_run,
}
