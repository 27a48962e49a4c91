"""Requests, wherever they are computed, and what they cost."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from p2pnode.compute.other_meshes import SETTING as BEYOND
from p2pnode.compute.other_meshes import beyond_of
from p2pnode.config import parse_host_port
from p2pnode.machine import now_ms
from p2pnode.node.answering import Answering
from p2pnode.node.backends import DISCOVER, Backends
from p2pnode.node.books import Books
from p2pnode.node.embedding import Embedding
from p2pnode.node.federation import Federation
from p2pnode.node.forwarding import Forwarding, repeatable
from p2pnode.node.offering import Offering
from p2pnode.node.other_meshes import OtherMeshes
from p2pnode.node.pooling import Pooling
from p2pnode.node.receipts import Receipts
from p2pnode.node.requests import Requests
from p2pnode.projections.settings import value_of

if TYPE_CHECKING:
    from p2pnode.node.core import Node


def _request_id() -> str:
    return f"req-{secrets.token_hex(8)}"


def assemble_answers(node: Node) -> None:
    options, ledger, transport = node.options, node.ledger, node.transport
    node.receipts = Receipts(
        me=node.me,
        record=ledger,
        tallies=node.hosting.tallies,
        debts=node.grants,
        call=node.links.call,
        serve=node.links.serve,
        keys=lambda: ledger.log.keys,
        checkpoint=ledger.log.checkpoint,
        now_ms=now_ms,
        rng=secrets.token_bytes,
    )
    node.requests = Requests(
        choose=node.choosing.choose,
        choose_again=node.failover.choose_again,
        book=Books(ledger, node.receipts, node.tasks),
        new_id=_request_id,
        seeded=repeatable,
        finished=node.tidings.request_finished,
        tracing=node.tracing,
    )
    node.backends = Backends(
        me=node.me,
        name=node.name,
        addresses=options.backends,
        may_discover=lambda: value_of(ledger.state.settings, DISCOVER) == "on",
        own_port=lambda: parse_host_port(options.api)[1],
        links=node.links,
        requests=node.requests,
        say=node.say,
    )
    node.others = OtherMeshes(
        me=node.me,
        name=node.name,
        ledger=ledger,
        transport=transport,
        data_dir=options.data,
        policy=lambda: beyond_of(value_of(ledger.state.settings, BEYOND)),
        now_ms=now_ms,
        say=node.say,
    )
    node.federation = Federation(
        transport=transport,
        links=node.links,
        generate=lambda request: node.answering.generate_here(request),
        loading=lambda model: node.answering.loading_here(model),
        others=node.others,
        offering=Offering(
            me=node.me,
            name=node.name,
            mesh=node.mesh,
            catalog=node.catalog,
            backends=node.backends,
            addresses=node.addresses,
            where=node.where,
        ),
        is_guest=node.mesh.is_guest,
    )
    node.forwarding = Forwarding(
        ledger=ledger, ask=node.federation.ask, loads=node.loads, new_id=_request_id, tracing=node.tracing
    )
    node.answering = Answering(
        catalog=node.catalog,
        links=node.links,
        choosing=node.choosing,
        planning=node.planning,
        requests=node.requests,
        backends=node.backends,
        forwarding=node.forwarding,
        loads=node.loads,
        others=node.others,
    )
    node.embedding = Embedding(
        node.bringing,
        node.new_engine,
        node.loads,
        Pooling(
            me=node.me,
            bringing=node.bringing,
            choosing=node.choosing,
            failover=node.failover,
            path=node.links.path,
            loads=node.loads,
            new_session=node.requests.new_session,
            new_id=_request_id,
        ),
    )
