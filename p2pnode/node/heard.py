"""What other devices say of themselves, checked before anything here counts on its form. Pure."""

from __future__ import annotations

import math
from typing import Any

from p2pnode import limits
from p2pnode.errors import RemoteProtocolError
from p2pnode.node import directions
from p2pnode.node.instances import Instance
from p2pnode.transport.messages import Status


def check_status(status: Status) -> Status:
    """The same status; raises RemoteProtocolError when a field this version reads is of another form."""
    for key, value in status.capability.items():
        if isinstance(value, int | float) and not _is_number(value):
            raise _wrong(f"capability {key[:40]!r} is not a number that can be")
    _check_rates(status.capability.get("rates", {}))
    _check_context_rates(status.capability.get("context_rates", {}))
    for model in status.models:
        if not all(isinstance(model.get(key, ""), str) for key in ("manifest", "name")):
            raise _wrong("a model's manifest and name are text")
        _check_held(model.get("held", {}))
    peers, rtt_ms, link_rates = (_map(status, key) for key in ("peers", "rtt_ms", "link_bytes_per_s"))
    if not all(isinstance(a, list) and all(isinstance(x, str) for x in a) for a in peers.values()):
        raise _wrong("addresses of peers are lists of text")
    if not all(_is_number(value) for value in (*rtt_ms.values(), *link_rates.values())):
        raise _wrong("round trips and rates are numbers")
    if not isinstance(status.extra.get("stages", []), list):
        raise _wrong("stages are a list")
    external = status.extra.get("external", [])
    if not isinstance(external, list) or len(external) > limits.BACKEND_MODELS_MAX:
        raise _wrong(f"models of external servers are at most {limits.BACKEND_MODELS_MAX}")
    if not all(isinstance(m, dict) and isinstance(m.get("name"), str) for m in external):
        raise _wrong("a model of an external server has a name")
    if "instance" in status.extra and Instance.read(status.extra["instance"]) is None:
        raise _wrong("an instance is an id and a host")
    _check_lending(status.extra.get("lending", ""))
    if not directions.is_form(status.extra.get("directions", {})):
        raise _wrong("directions are states, ages and reasons by two peers")
    _check_witnessed(status.extra.get("witnessed", []))
    return status


def _check_lending(lending: object) -> None:
    if (
        not isinstance(lending, str)
        or len(lending) > limits.LENDING_CHARACTERS_MAX
        or not lending.isprintable()
    ):
        raise _wrong(f"what is said of hours is at most {limits.LENDING_CHARACTERS_MAX} printable characters")


def _check_rates(rates: object) -> None:
    if not isinstance(rates, dict) or len(rates) > limits.RATES_TOLD_MAX:
        raise _wrong(f"speeds are of at most {limits.RATES_TOLD_MAX} models")
    for entry in rates.values():
        if not isinstance(entry, list) or len(entry) != 3 or not all(_is_number(x) and x > 0 for x in entry):
            raise _wrong("a model's speed is three numbers above 0")


def _check_context_rates(rates: object) -> None:
    if not isinstance(rates, dict) or len(rates) > limits.RATES_TOLD_MAX:
        raise _wrong(f"speeds over context are of at most {limits.RATES_TOLD_MAX} models")
    if not all(_is_number(rate) and rate > 0 for rate in rates.values()):
        raise _wrong("a model's speed over context is a number above 0")


def _check_witnessed(value: object) -> None:
    if not isinstance(value, list) or len(value) > limits.WITNESSED_TOLD_MAX:
        raise _wrong(f"witnessed checkpoints are a list of at most {limits.WITNESSED_TOLD_MAX}")
    for item in value:
        is_pair = isinstance(item, list) and len(item) == 2
        if not is_pair or not isinstance(item[0], str) or not isinstance(item[1], bytes):
            raise _wrong("a witnessed checkpoint is a note and the keys that signed it")


def _check_held(held: object) -> None:
    if not isinstance(held, dict) or not isinstance(held.get("layers", []), list):
        raise _wrong("what is held of a model is layers and ends")
    ranges = held.get("layers", [])
    if len(ranges) > limits.HELD_RANGES_MAX or not all(map(_is_range, ranges)):
        raise _wrong(f"held layers are at most {limits.HELD_RANGES_MAX} ranges [first, end)")


def _is_range(value: object) -> bool:
    if not isinstance(value, list) or len(value) != 2 or not all(type(x) is int for x in value):
        return False
    first, end = value
    return bool(0 <= first < end <= limits.MODEL_LAYERS_MAX)


def _map(status: Status, name: str) -> dict[str, Any]:
    value = status.extra.get(name, {})
    if not isinstance(value, dict) or len(value) > limits.MESH_MEMBERS_MAX:
        raise _wrong(f"{name} is not a map of at most {limits.MESH_MEMBERS_MAX} peers")
    if not all(isinstance(key, str) for key in value):
        raise _wrong(f"{name} names peers by text")
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and 0 <= value < 2**63


def _wrong(what: str) -> RemoteProtocolError:
    return RemoteProtocolError(f"a status that cannot be: {what}")
