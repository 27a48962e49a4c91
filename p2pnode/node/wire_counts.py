"""What the transport and the stages counted, as families of metrics. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_REFUSED = "refused_"
TENSOR_PROTOCOLS = ("/p2pnode/stage/1", "/p2pnode/reduce/1", "/p2pnode/rpc/2", "/p2pnode/kv/1")
"""Streams of activations, partial sums, llama.cpp's own tensors, keys and values."""


def families(
    counted: Mapping[str, int], stages_refused: Mapping[str, int], lane_bytes: tuple[int, int] = (0, 0)
) -> list[dict[str, Any]]:
    """In the form of `NodeFacade.metrics`; reasons are words of this program, so there are few."""
    refused = {name[len(_REFUSED) :]: n for name, n in counted.items() if name.startswith(_REFUSED)}
    if "gate_refused" in counted:
        refused["not_for_this_peer"] = counted["gate_refused"]
    moved = {name: counted.get(f"datagrams_{name}", 0) for name in ("received", "sent", "dropped")}
    return [
        _family(
            "p2pnode_transport_refused",
            "Datagrams, handshakes and streams refused, by reason.",
            {"reason": refused},
        ),
        _family("p2pnode_transport_datagrams", "Datagrams of the QUIC sockets.", {"what": moved}),
        _tensor_bytes(counted, lane_bytes),
        _family("p2pnode_transport_resets_sent", "Stateless resets.", counted.get("resets_sent", 0)),
        _family("p2pnode_transport_connections", "Live connections.", counted.get("connections", 0), "gauge"),
        _family(
            "p2pnode_transport_handshakes", "Half-open handshakes.", counted.get("handshakes", 0), "gauge"
        ),
        _family(
            "p2pnode_stage_streams_refused",
            "Streams to stages refused or ended for what the peer did, by code.",
            {"code": stages_refused},
        ),
    ]


def _tensor_bytes(counted: Mapping[str, int], lane_bytes: tuple[int, int]) -> dict[str, Any]:
    samples = []
    for direction, by_lane in zip(("received", "sent"), lane_bytes, strict=True):
        by_stream = sum(counted.get(f"{direction} {protocol}", 0) for protocol in TENSOR_PROTOCOLS)
        for way, value in (("lane", by_lane), ("stream", by_stream)):
            samples.append({"labels": {"direction": direction, "way": way}, "value": value})
    text = "Bytes of tensors between devices, by lanes of engines and by streams."
    return {"name": "p2pnode_tensor_bytes", "type": "counter", "help": text, "samples": samples}


def _family(
    name: str, help_text: str, values: int | Mapping[str, Mapping[str, int]], kind: str = "counter"
) -> dict[str, Any]:
    if isinstance(values, int):
        samples = [{"labels": {}, "value": values}]
    else:
        ((label, by_value),) = values.items()
        samples = [{"labels": {label: value}, "value": n} for value, n in sorted(by_value.items())]
    return {"name": name, "type": kind, "help": help_text, "samples": samples}
