"""Facts, identities and clocks for tests of the record."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import fields
from typing import Any, get_args, get_origin, get_type_hints

from p2pnode.events.codec import Record
from p2pnode.events.types import EVENT_TYPES, CreditHeld, Event, NodeStarted, RequestAccepted
from p2pnode.identity import Identity
from p2pnode.units import EventIndex, UnixMs

START_MS = 1_790_000_000_000


class ManualClock:
    """Milliseconds that pass when told to."""

    def __init__(self, now_ms: int = START_MS) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms

    def advance(self, ms: int) -> None:
        self.now_ms += ms


def seeded_bytes(seed: int) -> Callable[[int], bytes]:
    return random.Random(seed).randbytes


def node_identity(number: int = 1) -> Identity:
    return Identity.from_seed(number.to_bytes(32, "big"))


def started(name: str = "desk") -> NodeStarted:
    return NodeStarted(version="0.1.0", platform="linux-x86_64", device_name=name)


def accepted(request_id: str = "r1") -> RequestAccepted:
    return RequestAccepted(
        request_id=request_id,
        caller="local",
        model="bafkr4iabc",
        mode="pipeline",
        plan_id="plan-1",
        prompt_commitment=bytes(32),
        prompt_tokens=12,
        max_tokens=128,
    )


def held(number: int, amount: int = 1_000_000) -> CreditHeld:
    return CreditHeld(
        hold_id=f"hold-{number}",
        payer="local",
        request_id=f"r{number}",
        amount_microunits=amount,
        expires_ms=0,
    )


def record_of(event: Event, index: int = 0) -> Record:
    return Record(
        EventIndex(index),
        index.to_bytes(16, "big"),
        "local",
        UnixMs(START_MS),
        index + 1,
        None,
        None,
        None,
        event,
    )


def sample_of(cls: type[Any], seed: int = 0) -> Any:
    """An event of any class, every field filled within its bounds."""
    rng = random.Random(f"{cls.__name__} {seed}")
    hints = get_type_hints(cls, include_extras=True)
    return cls(**{field.name: _value(hints[field.name], rng, field.name) for field in fields(cls)})


def all_samples(seed: int = 0) -> list[Event]:
    return [sample_of(cls, seed) for cls in EVENT_TYPES.values()]


def _value(hint: Any, rng: random.Random, name: str) -> Any:
    if get_origin(hint) is not None and type(None) in get_args(hint):
        return _value(next(a for a in get_args(hint) if a is not type(None)), rng, name)
    base = get_args(hint)[0] if hasattr(hint, "__metadata__") else hint
    meta = hint.__metadata__[0] if hasattr(hint, "__metadata__") else None
    if base is bool:
        return rng.random() < 0.5
    if base is int:
        return rng.choice((0, 1, 127, 128, 255, 256, 65_536, 2**31, 2**40))
    if base is str:
        return f"{name}-{rng.randrange(1000)}-ü"[: getattr(meta, "max_length", None) or 100]
    if base is bytes:
        return rng.randbytes((meta.min_length or 7) if meta else 7)
    if get_origin(base) is tuple:
        inner = get_args(base)
        if inner[-1] is Ellipsis:
            least = (meta.min_length or 0) if meta else 0
            return tuple(_value(inner[0], rng, name) for _ in range(max(rng.randrange(3), least)))
        return tuple(_value(item, rng, name) for item in inner)
    raise AssertionError(f"no sample for {hint}")
