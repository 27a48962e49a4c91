"""Old versions of facts, lifted one version at a time when read; the bytes in the log never change.

A fact's current version is one more than the number of its upcasters. When the fields of fact `X` change: say here
for `(X, old version)` what its records would say now. A record of every version stays in specs/vectors/events.json.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Data = dict[str, Any]
Upcaster = Callable[[Data], Data]


def _of_this_mesh(data: Data) -> Data:
    """Only members of one's own mesh were asked then."""
    return {**data, "mesh": ""}


def _one_receipt(data: Data) -> list[list[Any]]:
    return [[data["receipt"], data["signature"], data.get("countersignature")]]


def _receipt_given_1(data: Data) -> Data:
    """One fact held one receipt, and said beside it what stands in its bytes."""
    return {"peer": data["peer"], "request_id": data["request_id"], "receipts": _one_receipt(data)}


def _receipt_received_1(data: Data) -> Data:
    return {"request_id": data["request_id"], "receipts": _one_receipt(data)}


UPCASTERS: Mapping[tuple[str, int], Upcaster] = {
    ("RequestForwarded", 1): _of_this_mesh,
    ("ReceiptGiven", 1): _receipt_given_1,
    ("ReceiptReceived", 1): _receipt_received_1,
}


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
