"""Old versions of facts, lifted one version at a time when read; the bytes in the log never change.

A fact's current version is one more than the number of its upcasters. When a field is added to fact `X`:
give it a value here for `(X, old version)` and freeze an old record under tests/unit/events/fixtures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Data = dict[str, Any]
Upcaster = Callable[[Data], Data]


def _of_this_mesh(data: Data) -> Data:
    """Only members of one's own mesh were asked then."""
    return {**data, "mesh": ""}


UPCASTERS: Mapping[tuple[str, int], Upcaster] = {("RequestForwarded", 1): _of_this_mesh}


def schema_version(type_name: str, upcasters: Mapping[tuple[str, int], Upcaster] = UPCASTERS) -> int:
    """The version this code writes of a fact."""
    version = 1
    while (type_name, version) in upcasters:
        version += 1
    return version


def lift(
    type_name: str, version: int, data: Data, upcasters: Mapping[tuple[str, int], Upcaster] = UPCASTERS
) -> Data:
    """Bring a fact's fields from `version` to the current one."""
    while (upcaster := upcasters.get((type_name, version))) is not None:
        data = upcaster(dict(data))
        version += 1
    return data
