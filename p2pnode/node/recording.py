"""What the rooms of a node notice, told to its record (and, where a person watches, to the live feed)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from p2pnode import commands as c
from p2pnode.errors import P2PNodeError
from p2pnode.events import types as facts
from p2pnode.models.store import StoredModel
from p2pnode.node.hosted_stage import HostedStage
from p2pnode.node.ledger import Ledger
from p2pnode.node.link import Link
from p2pnode.node.link_times import LinkTime
from p2pnode.node.tasks import Tasks


class Recording:
    def __init__(self, ledger: Ledger, tasks: Tasks, say: Callable[[dict[str, Any]], None]) -> None:
        self._ledger = ledger
        self._tasks = tasks
        self._say = say

    async def offer(self, model: StoredModel) -> None:
        summary = model.manifest.summary()
        await self._ledger.do(
            c.AddModel(
                model=facts.ModelAdded(
                    model=model.content_id,
                    name=model.name[:128],
                    architecture=str(summary["architecture"])[:128],
                    quantisation=str(summary["quantisation"] or "")[:128],
                    size_bytes=model.manifest.size,
                    layer_count=int(summary["layers"] or 0),
                    source="file" if model.imported else "peer",
                    context_length=int(summary["context_length"] or 0),
                )
            )
        )

    async def link_timed(self, link: Link, found: LinkTime) -> None:
        """Into the record, which keeps only what changed much."""
        said = link.status.capability if link.status is not None else {}

        def number(key: str) -> int:
            value = said.get(key, 0)
            return int(value) if isinstance(value, int | float) and value > 0 else 0

        measured = facts.PeerMeasured(
            peer=link.peer_id,
            rtt_us=int(found.rtt_s * 1e6),
            bytes_per_s=int(found.bytes_per_s),
            memory_bytes=number("memory_total_bytes"),
            memory_free_bytes=number("memory_free_bytes"),
            flops_mega=0,
            memory_bytes_per_s=number("memory_bytes_per_s"),
        )
        await self._ledger.do(c.RecordMeasurement(measured=measured))

    async def engine_notice(self, what: str, purpose: str, details: dict[str, int | str]) -> None:
        fact: facts.EngineDied | facts.EngineRestarted
        if what == "died":
            fact = facts.EngineDied(
                model=purpose[:128], exit_code=int(details["exit_code"]), reason=str(details["reason"])[:500]
            )
        else:
            fact = facts.EngineRestarted(
                model=purpose[:128], attempt=int(details["attempt"]), duration_ms=int(details["duration_ms"])
            )
        await self._ledger.do(c.RecordFact(fact=fact))
        self._say({"kind": f"engine_{what}", "data": {"purpose": purpose, **details}})

    async def stage_stored(self, hosted: HostedStage) -> None:
        if hosted.bytes_fetched == 0:
            return
        await self._ledger.do(
            c.StoreShard(
                shard=facts.ShardStored(
                    model=hosted.order.model,
                    content=f"{hosted.order.model[-24:]}:{hosted.layers[0]}-{hosted.layers[1]}",
                    layer_first=hosted.layers[0],
                    layer_end=hosted.layers[1],
                    size_bytes=hosted.bytes_fetched,
                    source="mesh",
                )
            )
        )

    async def tool_called(self, about: dict[str, Any]) -> None:
        arguments = msgspec.json.encode(about.pop("arguments"))
        commitment = self._ledger.log.commit_secret(about["request_id"], arguments)
        await self._ledger.do(c.RecordFact(fact=facts.ToolCalled(arguments_commitment=commitment, **about)))

    def blob_refused(self, peer: str, error: P2PNodeError) -> None:
        fact = facts.BlobRefused(content="", peer=peer[:128], reason=f"{error.code}: {error.message}"[:500])
        self.record_soon("blob refused", fact)

    def record_soon(self, what: str, fact: facts.BlobRefused | facts.IdentityDuplicated) -> None:
        self._tasks.spawn(what, self._ledger.do(c.RecordFact(fact=fact)))
