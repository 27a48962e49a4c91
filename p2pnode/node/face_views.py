"""What faces show of devices, models and proposed plans: the record, and beside it what is known just now."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from p2pnode import __version__
from p2pnode.compute import other_meshes
from p2pnode.compute.planner import Planned
from p2pnode.facade import JsonObject
from p2pnode.machine import now_ms
from p2pnode.node import directions
from p2pnode.node.link import Link
from p2pnode.node.silence import words
from p2pnode.units import PeerId

if TYPE_CHECKING:
    from p2pnode.node.core import Node


def peers_view(node: Node) -> JsonObject:
    """What the record says of every device, with what is known of it just now."""
    view = node.ledger.view("peers")
    for entry in view["peers"]:
        if (duplicate := node.duplicates.of(PeerId(entry["peer"]))) is not None:
            entry["duplicate"] = duplicate.as_dict()
        if entry["self"]:
            entry.update(state="online", role=node.mesh.my_role, name=node.name)
            entry.update(addresses=node.addresses(), version=__version__, last_seen_ms=now_ms())
            entry.update(device_state=node.state, lending=node.lending.says())
            continue
        link = node.links.links.get(PeerId(entry["peer"]))
        entry["role"] = node.mesh.role_of(PeerId(entry["peer"])) or entry["role"]
        if link is None:
            if node.mesh.is_guest(PeerId(entry["peer"])):
                _show_guest(node, entry)
            continue
        _show_link(node, entry, link)
    waiting = node.approvals.view()
    asking = {entry["peer"] for entry in waiting}
    rows = {entry["peer"]: entry for entry in view["peers"]}
    view["peers"] = [entry for entry in view["peers"] if entry["peer"] not in asking] + waiting
    view["joining"] = node.joins.view(rows)
    return view


def links_view(node: Node) -> list[JsonObject]:
    """Each link of two members with both directions, by what each of them says of its own."""
    now, tellings = now_ms(), node.links.told()
    rtt_ms: dict[directions.Pair, float] = {}
    for link in node.links.links.values():
        own = link.direction
        tellings[node.me, link.peer_id] = directions.Told(
            own.state, own.tried, own.good_ms, link.is_opener, now, node.me
        )
        for peer, value in (link.status.extra.get("rtt_ms", {}) if link.status else {}).items():
            rtt_ms[link.peer_id, peer] = value
        if (found := own_rtt_ms(node, link)) is not None:
            rtt_ms[node.me, link.peer_id] = found
    return directions.links_view(
        node.me,
        [peer for peer in node.links.links if node.mesh.is_member(peer)],
        tellings,
        rtt_ms=rtt_ms,
        asked_ms={link.peer_id: link.asked_ms for link in node.links.links.values()},
        now_ms=now,
    )


def own_rtt_ms(node: Node, link: Link) -> float | None:
    """Timed now and then; before that as the connection sees it. None when there is none."""
    if not link.is_up or link.connection is None:
        return None
    timed = node.link_times.times.get(link.peer_id)
    return round(1000 * (timed.rtt_s if timed else link.connection.stats().rtt_s), 3)


def _show_link(node: Node, entry: JsonObject, link: Link) -> None:
    """What its connection says, and what it said last of itself."""
    entry["addresses"] = list(link.addresses)
    entry["tried"] = [{"address": a, "reason": r} for a, r in link.tried]
    if link.is_up and link.connection is not None:
        stats = link.connection.stats()
        silent_ms = round(1000 * node.heartbeat.silent_s(link.peer_id))
        entry.update(
            state="suspect" if node.heartbeat.is_suspect(link.peer_id) else "online",
            silent_ms=silent_ms,
            rtt_ms=round(stats.rtt_s * 1000, 3),
            path=stats.path,
            bytes_sent=stats.bytes_sent,
            bytes_received=stats.bytes_received,
            datagram_bytes=stats.datagram_bytes,
        )
        if node.heartbeat.is_suspect(link.peer_id):
            entry["lost_reason"] = words(silent_ms / 1000)
        if (timed := node.link_times.times.get(link.peer_id)) is not None:
            entry["link"] = {
                "rtt_ms": round(timed.rtt_s * 1000, 3),
                "bytes_per_s": round(timed.bytes_per_s),
            }
        entry["last_seen_ms"] = now_ms() - silent_ms
    elif entry["state"] in ("online", "unadmitted") and node.mesh.is_member(PeerId(entry["peer"])):
        entry["state"] = "offline"  # the founder holds no grant: it is what grants lead back to
        entry["lost_reason"] = link.lost_reason or entry["lost_reason"]  # recorded a moment later
    if link.status is not None:
        entry["name"] = link.name or entry["name"]
        entry["capability"] = link.status.capability
        entry["device_state"] = link.status.state
        entry["lending"] = link.status.extra.get("lending", "")
        entry["stages"] = link.status.extra.get("stages", [])
        entry["clock_skew_ms"] = link.status.now_ms - now_ms() if link.is_up else None


def _show_guest(node: Node, entry: JsonObject) -> None:
    """It has no link of its own: it is there while it asks."""
    connection = node.transport.connection(PeerId(entry["peer"]))
    entry["state"] = "offline" if connection is None else "online"
    if connection is not None:
        stats = connection.stats()
        entry.update(rtt_ms=round(stats.rtt_s * 1000, 3), path=stats.path, last_seen_ms=now_ms())


def models_view(node: Node) -> JsonObject:
    """Every model of the mesh by every name it has, and those of external servers."""
    known = node.catalog.known()
    default = node.catalog.resolve(None).name if known else None
    return {
        "models": [
            {
                "name": model.name,
                "manifest": model.content_id,
                **{k: v for k, v in model.summary.items() if k != "chat_template"},
                "here": "complete" if model.is_complete_here else "part" if model.is_local else "no",
                "holders": [*([node.me] if model.is_complete_here else []), *model.holders],
                "default": model.name == default,
                "loaded": node.routing.of_model(model.content_id) is not None,
                "loading": node.loads.view(model.name),
                "transfer": node.transfers.view(model.name),
            }
            for each in known
            for model in map(each.as_called, each.names)
        ]
        + [view for view in node.backends.views() if node.is_external(view["name"])]
        + other_meshes.views(node.others.offers())
    }


def proposal_view(
    planned: Planned, model: str, name_of: Callable[[PeerId], str], *, anyway: bool
) -> JsonObject:
    """A plan as it would be carried out, with its reasons and what was not chosen."""
    made = planned.plan
    return {
        "plan_id": made.plan_id,
        "model": model,
        "mode": made.mode,
        "head": made.head,
        "applied": False,
        "engine": made.engine,
        "stages": [
            {
                "peer": stage.peer,
                "name": name_of(PeerId(stage.peer)),
                "layers": [stage.layer_first, stage.layer_end],
                "role": stage.role,
                "devices": [name_of(PeerId(peer)) for peer in stage.peers],
                "memory_bytes": sum(rank.memory_bytes for rank in stage.ranks),
                "fetch_bytes": sum(rank.fetch_bytes for rank in stage.ranks),
            }
            for stage in made.stages
        ],
        "prediction": {
            **msgspec.to_builtins(made.prediction),
            "tokens_per_s": made.prediction.tokens_per_s,
        },
        "reasons": [
            *made.reasons,
            *([f"every device loads it with {made.engine}"] if made.engine else []),
            *(["memory that other programs hold now was not counted, as asked"] if anyway else []),
        ],
        "rejections": [r.as_dict() for r in planned.rejections],
    }
