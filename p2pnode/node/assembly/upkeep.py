"""What goes on without being asked, and tools."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from p2pnode.node.auto_mode import AutoMode
from p2pnode.node.hops import Hops
from p2pnode.node.lending import Lending
from p2pnode.node.mcp import Tools, read_file
from p2pnode.node.pulling import Pulling
from p2pnode.node.readiness import Readiness

if TYPE_CHECKING:
    from p2pnode.node.core import Node


def assemble_upkeep(node: Node) -> None:
    options = node.options
    node.auto_mode = AutoMode(node)
    node.lending = Lending(
        ledger=node.ledger,
        enter=node.enter,
        may_change=lambda: node.state != "leaving",
        is_busy=node.is_busy,
        now_ms=node.clock_ms,
    )
    node.pulling = Pulling(
        catalog=node.catalog,
        links=node.links,
        mesh=node.mesh,
        transfers=node.transfers,
        came=node.tidings.model_came,
    )
    node.readiness = Readiness(
        me=node.me,
        links=node.links,
        catalog=node.catalog,
        routing=node.routing,
        choosing=node.choosing,
        is_at_work=node.carrying_out.is_at_work,
        running=node.requests.on_plans,
        may_act=lambda: node.state == "active" and not node.auto_mode.is_on,
        say=node.say,
    )
    node.hops = Hops(
        me=node.me,
        links=node.links,
        hosting=node.hosting,
        active=lambda: list(node.routing.active.values()),
        running=node.requests.on_plans,
        say=node.say,
        clock=time.monotonic,
        tracing=node.tracing,
    )
    node.tools = Tools(read_file(options.mcp) if options.mcp else {}, node.recording.tool_called)
