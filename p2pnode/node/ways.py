"""The ways an answer can take through the mesh, put together: whole on one device, around a ring, split in two."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2pnode.node.memory_use import held_by
from p2pnode.node.rings import Rings
from p2pnode.node.room import Room
from p2pnode.node.routing import Routing
from p2pnode.node.splits import Splits
from p2pnode.node.whole import Whole

if TYPE_CHECKING:
    from p2pnode.node.core import Node


def routing_of(node: Node) -> Routing:
    """All of them share one pool of engines: an engine that one way leaves, another finds warm."""
    engines = node.engines
    rings = Rings(
        me=node.me,
        my_addresses=node.addresses,
        links=node.links,
        streams=node.streams,
        tasks=node.tasks,
        bringing=node.bringing,
        engines=engines,
        make_up=lambda peer: node.receipts.make_up(peer),
        policy=node.policy,
    )
    return Routing(
        me=node.me,
        bringing=node.bringing,
        engines=engines,
        tasks=node.tasks,
        room=Room(
            memory_max_bytes=node.options.memory_max_bytes,
            engines=lambda: node.engine_hosts,
            in_use=lambda: (
                {running.active.plan_id for running in node.requests.on_plans().values()}
                | node.embedding.in_use
            ),
            held_by=held_by,
        ),
        unloaded=node.tidings.unloaded,
        drop_kept=lambda model: node.hosting.drop_kept(lambda hosted: hosted.order.model != model),
        whole_models=Whole(
            me=node.me,
            name_of=node.links.name_of,
            bringing=node.bringing,
            engines=engines,
            tunnel=node.tunnel,
        ),
        rings=rings,
        splits=Splits(
            me=node.me,
            name_of=node.links.name_of,
            bringing=node.bringing,
            rings=rings,
            transfers=node.kv_transfers,
            say=node.say,
        ),
    )
