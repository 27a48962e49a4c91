"""Stages that this device computes for others, and the ways on which rows come to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2pnode.node.adapters import Adapters
from p2pnode.node.bringing import PREFIXES, Bringing, prefix_bytes_of
from p2pnode.node.engine_settings import EngineSettings
from p2pnode.node.engine_share import EngineShare, StageEngine
from p2pnode.node.grants import Grants
from p2pnode.node.hosting import Hosting
from p2pnode.node.kv_transfers import KvTransfers
from p2pnode.node.omni import OmniStages
from p2pnode.node.orders import StageOrder
from p2pnode.node.reduce_streams import ReduceStreams
from p2pnode.node.rpc_tunnel import RpcTunnel
from p2pnode.node.stage_loading import StageLoader
from p2pnode.node.stage_streams import StageStreams
from p2pnode.node.tensor import Lanes
from p2pnode.projections.settings import value_of
from p2pnode.units import ContentId

if TYPE_CHECKING:
    from p2pnode.node.core import Node


def assemble_stages(node: Node) -> None:
    options, ledger, transport = node.options, node.ledger, node.transport
    node.engine_options = EngineSettings(ledger)
    node.capability.gpu_layers = lambda: node.engine_options.of_device().gpu_layers
    node.adapters = Adapters(options.data / "adapters", node.links)
    lanes = Lanes(node.links)
    node.hosting = Hosting(
        loader=StageLoader(
            catalog=node.catalog,
            lanes=lanes,
            threads=node.threads,
            new_engine=lambda order: _stage_engine(node, order),
            device=node.engine_options.of_device,
            adapters=node.adapters,
        ),
        lanes=lanes,
        links=node.links,
        stored=node.tidings.stage_stored,
        check_head=lambda head: node.grants.check(head),
    )
    node.grants = Grants(
        me=node.me,
        record=ledger,
        tallies=node.hosting.tallies,
        stages_of=node.hosting.of_head,
        path=lambda peer: node.links.path(peer),
        serve=node.links.serve,
        tracing=node.tracing,
    )
    node.reduce_streams = ReduceStreams(
        hosting=node.hosting, links=node.links, transport=transport, tasks=node.tasks
    )
    node.streams = StageStreams(
        hosting=node.hosting,
        grants=node.grants,
        links=node.links,
        transport=transport,
        tasks=node.tasks,
    )
    node.omni = OmniStages(hosting=node.hosting, grants=node.grants, transport=transport)
    node.tunnel = RpcTunnel(
        transport=transport,
        links=node.links,
        threads=node.threads,
        check_head=node.grants.check_uncounted,
        processes=node.processes,
    )
    node.bringing = Bringing(
        node.catalog,
        node.threads,
        lambda: prefix_bytes_of(value_of(ledger.state.settings, PREFIXES)),
        engine=node.engine_options.of_model,
        device=node.engine_options.of_device,
        adapters=node.adapters,
    )
    node.kv_transfers = KvTransfers(hosting=node.hosting, links=node.links, transport=transport)


def _stage_engine(node: Node, order: StageOrder) -> StageEngine:
    """A head's own stages are in the engine that samples for them; a rank of a group waits for the others."""
    if order.head == node.me and not order.shares:
        engine = node.engines.named(ContentId(order.model), order.model_name, "head")
        return EngineShare(engine, f"{order.plan_id} {order.stage} ")
    return node.new_engine(f"{order.model_name} layers {order.layer_first}–{order.layer_end - 1}")
