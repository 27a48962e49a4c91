"""This device, the others, who of them is in the mesh, and what models all of them have."""

from __future__ import annotations

import asyncio
import os
import secrets
from random import Random
from typing import TYPE_CHECKING

from p2pnode.compute.engine_client import EngineClient
from p2pnode.machine import host_name, now_ms
from p2pnode.node.address_book import AddressBook
from p2pnode.node.admission import Admission
from p2pnode.node.approval import Approvals
from p2pnode.node.capability import Capability
from p2pnode.node.catalog import Catalog
from p2pnode.node.duplicates import Duplicates
from p2pnode.node.instances import Instance
from p2pnode.node.joining import Joins
from p2pnode.node.links import Links
from p2pnode.node.mesh import Mesh
from p2pnode.node.model_check import check_model
from p2pnode.node.reach import Reach
from p2pnode.projections.views import default_model

if TYPE_CHECKING:
    from p2pnode.node.core import Node


def assemble_devices(node: Node) -> None:
    options, ledger, transport = node.options, node.ledger, node.transport
    node.capability = Capability(
        options.data,
        threads=node.threads,
        memory_max_bytes=options.memory_max_bytes,
        is_metered=options.metered,
    )
    node.reach = Reach(
        announced=options.announce,
        bound=lambda: node.transport.listen_multiaddrs,
        is_member=lambda peer: node.mesh.is_member(peer),
        changed=lambda: node.links.status_changed(),
    )
    node.links = Links(
        transport,
        tasks=node.tasks,
        rng=Random(secrets.randbits(64)),  # noqa: S311 - jitter, not a secret
        my_status=lambda: node.presence.status(),
        on_status=node.tidings.heard,
        on_link=node.tidings.link_changed,
        is_member=lambda peer: node.mesh.is_member(peer),
        is_forwarded=bool(options.announce),
    )
    node.mesh = Mesh(
        identity=node.identity,
        ledger=ledger,
        transport=transport,
        name=node.name,
        addresses=node.addresses,
        now_ms=now_ms,
        member_added=node.tidings.member_added,
        where=node.where,
    )
    node.mesh.member_removed = node.tidings.member_removed
    node.address_book = AddressBook(options.data)
    node.joins = Joins(now_ms=now_ms)
    node.joins.changed = lambda: node.say({"kind": "joining", "data": {}})
    admission = Admission(mesh=node.mesh, ledger=ledger, transport=transport, joins=node.joins)
    node.approvals = Approvals(
        mesh=node.mesh,
        admission=admission,
        joins=node.joins,
        now_ms=now_ms,
        changed=lambda: node.say({"kind": "approvals", "data": {"waiting": len(node.approvals.waiting)}}),
    )
    node.duplicates = Duplicates(
        me=node.me,
        mine=Instance(secrets.token_hex(8), f"{host_name()} (process {os.getpid()})"),
        record=lambda fact: node.recording.record_soon("duplicate identity", fact),
        changed=lambda: node.links.status_changed(),
        name_of=lambda peer: node.links.name_of(peer),
        now_s=lambda: asyncio.get_running_loop().time(),
    )
    node.catalog = Catalog(
        node.store,
        node.links,
        report=node.recording.blob_refused,
        default_name=lambda: default_model(ledger.state),
        check_file=lambda path: check_model(path, lambda: node.processes.start(EngineClient.start)),
    )
