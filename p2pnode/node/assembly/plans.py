"""Which devices compute what: measured, chosen, carried out, and moved when devices go."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from p2pnode.compute.elsewhere import SETTING as ELSEWHERE
from p2pnode.compute.elsewhere import elsewhere_of
from p2pnode.machine import now_ms
from p2pnode.node.carrying_out import CarryingOut
from p2pnode.node.choosing import Choosing
from p2pnode.node.failover import Failover
from p2pnode.node.layer_rates import RATES_DOUBT, TIMING, LayerRates
from p2pnode.node.learning import Learning
from p2pnode.node.link_times import LinkTimes
from p2pnode.node.loading import Loads
from p2pnode.node.planning import Planning
from p2pnode.node.ways import routing_of
from p2pnode.projections.settings import value_of

if TYPE_CHECKING:
    from p2pnode.node.core import Node


def assemble_plans(node: Node) -> None:
    options, ledger = node.options, node.ledger
    node.routing = routing_of(node)
    node.link_times = LinkTimes(
        node.links, is_busy=lambda: bool(node.requests.running), tell=node.tidings.link_timed
    )
    node.layer_rates = LayerRates(
        said=node.capability.engine_said,
        catalog=node.catalog,
        path=options.data / "rates.json",
        threads=node.threads,
        is_busy=node.is_busy,
        now_ms=now_ms,
        changed=node.tidings.rates_changed,
        processes=node.processes,
        repeats=lambda: value_of(ledger.state.settings, TIMING) != "once",
    )
    node.links.serve(RATES_DOUBT, node.layer_rates.asked_to_doubt)
    node.planning = Planning(
        me=node.me,
        catalog=node.catalog,
        links=node.links,
        capability=node.capability.view,
        link_times=node.link_times.times,
        name=node.name,
        engine=node.engine_options.of_model,
        policy=node.policy,
        silent_s=lambda peer: node.heartbeat.suspect_s(peer),
        elsewhere=lambda: elsewhere_of(value_of(ledger.state.settings, ELSEWHERE)),
    )
    node.loads = Loads(kind="loading", name=node.name, say=node.say, clock=time.monotonic)
    node.transfers = Loads(kind="transfer", name=node.name, say=node.say, clock=time.monotonic)
    node.carrying_out = CarryingOut(
        me=node.me,
        ledger=ledger,
        links=node.links,
        routing=node.routing,
        tasks=node.tasks,
        memory_max_bytes=options.memory_max_bytes,
        loads=node.loads,
        say=node.say,
    )
    node.learning = Learning(
        links=node.links, planning=node.planning, carrying_out=node.carrying_out, say=node.say
    )
    node.choosing = Choosing(
        me=node.me,
        catalog=node.catalog,
        links=node.links,
        planning=node.planning,
        routing=node.routing,
        carrying_out=node.carrying_out,
        say=node.say,
    )
    node.failover = Failover(
        me=node.me,
        links=node.links,
        planning=node.planning,
        routing=node.routing,
        choosing=node.choosing,
        carrying_out=node.carrying_out,
        tasks=node.tasks,
        loads=node.loads,
        say=node.say,
    )
