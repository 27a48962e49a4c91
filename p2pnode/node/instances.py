"""Two devices under one identity, after a data folder was copied: noticed by whoever both are connected to. Pure.

Every start of a node draws an id for this instance of it and tells it in its status. A device that starts again
is heard under a new id and never again under an old one. So an old id that is heard after a newer one belongs to
another device that runs at the same time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from p2pnode import limits
from p2pnode.units import PeerId


@dataclass(frozen=True, slots=True)
class Instance:
    """One running node process; what it says of itself."""

    id: str
    host: str
    """For people: host name and process."""

    def as_dict(self) -> dict[str, str]:
        return {"id": self.id, "host": self.host}

    @classmethod
    def read(cls, value: object) -> Instance | None:
        """From a message; None when it is not of this form."""
        if not isinstance(value, dict):
            return None
        made = cls(value.get("id", ""), value.get("host", ""))
        texts = isinstance(made.id, str) and isinstance(made.host, str)
        return made if texts and 0 < len(made.id) <= 32 and len(made.host) <= 96 else None


class Instances:
    """Which instances of each member were heard, newest last."""

    def __init__(self) -> None:
        self._heard: dict[PeerId, dict[str, tuple[Instance, float]]] = {}
        self._clashing: dict[PeerId, frozenset[str]] = {}

    def heard(self, peer: PeerId, instance: Instance, now_s: float) -> tuple[Instance, Instance] | None:
        """-> (the one that just spoke, the other) the first time that two run at once."""
        known = self._heard.setdefault(peer, {})
        newest = next(reversed(known), None)
        is_back = instance.id in known and instance.id != newest
        known.pop(instance.id, None)
        known[instance.id] = (instance, now_s)
        while len(known) > limits.INSTANCES_KEPT_MAX:
            del known[next(iter(known))]
        if not is_back or newest is None:
            return None
        pair = frozenset((instance.id, newest))
        is_news = self._clashing.get(peer) != pair
        self._clashing[peer] = pair
        return (instance, known[newest][0]) if is_news else None

    def clashes(self, now_s: float) -> Mapping[PeerId, list[Instance]]:
        """Members under whose identity several devices run, as far as all of them spoke lately."""
        found: dict[PeerId, list[Instance]] = {}
        for peer, pair in list(self._clashing.items()):
            known = self._heard.get(peer, {})
            lately = [
                made
                for made, at_s in known.values()
                if made.id in pair and now_s - at_s <= limits.DUPLICATE_KEPT_S
            ]
            if len(lately) < 2:
                del self._clashing[peer]
            else:
                found[peer] = lately
        return found

    def forget(self, peer: PeerId) -> None:
        self._heard.pop(peer, None)
        self._clashing.pop(peer, None)


def read_clashes(value: object) -> dict[PeerId, list[Instance]]:
    """What another member says about duplicates; what is not of the form is left out."""
    if not isinstance(value, Mapping):
        return {}
    found: dict[PeerId, list[Instance]] = {}
    for peer, entries in list(value.items())[: limits.MESH_MEMBERS_MAX]:
        if isinstance(entries, list):
            read = [Instance.read(entry) for entry in entries[: limits.INSTANCES_KEPT_MAX]]
            found[PeerId(str(peer))] = [instance for instance in read if instance is not None]
    return found


def describe_clashes(clashes: Mapping[PeerId, list[Instance]]) -> dict[str, Any]:
    return {peer: [instance.as_dict() for instance in found] for peer, found in clashes.items()}
