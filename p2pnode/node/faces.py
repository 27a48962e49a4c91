"""What faces see of the node: `NodeFacade` over the projections, the live links and the running work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from p2pnode import __version__, limits
from p2pnode import commands as c
from p2pnode.compute.engine_options import DeviceOptions, EngineOptions
from p2pnode.config import describe
from p2pnode.errors import Busy, NotFound, RequestError
from p2pnode.events.codec import Record
from p2pnode.events.types import ConsoleCommandRun
from p2pnode.events.witness_view import witness_view
from p2pnode.facade import GenerateEvent, GenerateRequest, JsonObject, Ranking
from p2pnode.limits import ADAPTER_SCALE_MAX
from p2pnode.multiformats import DecodeError
from p2pnode.node import wire_counts
from p2pnode.node.bringing import PREFIXES, prefix_bytes_of
from p2pnode.node.core import Node, now_ms
from p2pnode.node.engine_settings import DEVICE, MODEL
from p2pnode.node.hops import chrome_trace
from p2pnode.node.memory_use import memory_use
from p2pnode.node.mode_commands import ModeCommands
from p2pnode.node.planning import PlanRequest
from p2pnode.node.queries import LogQueries
from p2pnode.units import PeerId

Command = Callable[[Mapping[str, Any]], Awaitable[JsonObject]]


class Faces:
    """Implements `NodeFacade` for one node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._queries = LogQueries(node.ledger, self._witnesses)
        self.modes = ModeCommands(node)
        self._commands: dict[str, Command] = {
            **self.modes.table(),
            "topup": self._top_up,
            "quota": self._quota,
            "pause": self._pause,
            "resume": self._resume,
            "drain": self._drain,
            "seal": self._seal,
            "witness": self._witness,
            "set": self._set,
            "forget_peer": self._forget_peer,
            "revoke_invite": self._revoke_invite,
            "release_plan": self._release_plan,
            "add_model": self._add_model,
            "remove_model": self._remove_model,
            "pull": self._pull,
            "copy_model": self._copy_model,
            "log_forget": self._log_forget,
            "log_rotate_keys": self._log_rotate_keys,
            "console_ran": self._console_ran,
            "key_created": self._key_created,
            "key_revoked": self._key_revoked,
            "adapters": self._adapters,
            "add_adapter": self._add_adapter,
            "remove_adapter": self._remove_adapter,
            "verify_peer_log": self._verify_peer_log,
            "approve_peer": self._approve_peer,
            "refuse_peer": self._refuse_peer,
            "revoke_peer": self._revoke_peer,
        }

    @property
    def peer_id(self) -> PeerId:
        return self._node.me

    @property
    def name(self) -> str:
        return self._node.name

    # --- views ---------------------------------------------------------------------------------------
    def health(self) -> JsonObject:
        node = self._node
        broken = [
            a.plan_id
            for a in node.routing.active.values()
            if a.lost is not None and a.model.content_id in node.choosing.applied
        ]
        return {
            "status": "ok",
            "ready": node.is_started
            and node.state == "active"
            and not broken
            and node.ledger.log.failure is None,
            "peer_id": node.me,
            "name": node.name,
            "version": __version__,
        }

    def status(self) -> JsonObject:
        node = self._node
        return {
            **self.health(),
            "mesh": {
                "name": node.mesh.mesh_name,
                "role": node.mesh.my_role,
                "members": sum(peer["state"] != "pending" for peer in self.peers()["peers"]),
            },
            "state": node.state,
            "started_ms": node.started_ms,
            "addresses": [f"{a}/p2p/{node.me}" for a in node.addresses()],
            "capability": node.capability.view(),
            "memory": memory_use(node.engine_hosts),
            "hosted_stages": [
                {
                    "plan_id": hosted.order.plan_id,
                    "model": hosted.order.model_name,
                    "layers": list(hosted.layers),
                    "head": hosted.order.head,
                    "bytes_fetched": hosted.bytes_fetched,
                    "bytes_wanted": hosted.bytes_wanted,
                    "engine_pid": hosted.engine.pid,
                    "up": hosted.engine.is_up,
                    "sessions": hosted.sessions,
                }
                for hosted in node.hosting.stages.values()
            ],
            "engines": [
                {"purpose": a.engine.purpose, "pid": a.engine.pid, "plan_id": a.plan_id, "up": a.engine.is_up}
                for a in node.routing.active.values()
            ],
            "log": {"size": node.ledger.log.size, "blocks": node.ledger.log.block_count},
            "running": len(node.requests.running),
            "backends": node.backends.view(),
        }

    def peers(self) -> JsonObject:
        view = self._node.ledger.view("peers")
        for entry in view["peers"]:
            if (duplicate := self._node.duplicates.of(PeerId(entry["peer"]))) is not None:
                entry["duplicate"] = duplicate.as_dict()
            if entry["self"]:
                entry.update(state="online", role=self._node.mesh.my_role, name=self._node.name)
                entry.update(addresses=self._node.addresses(), version=__version__, last_seen_ms=now_ms())
                continue
            link = self._node.links.links.get(PeerId(entry["peer"]))
            entry["role"] = self._node.mesh.role_of(PeerId(entry["peer"])) or entry["role"]
            if link is None:
                continue
            entry["addresses"] = list(link.addresses)
            entry["tried"] = [{"address": a, "reason": r} for a, r in link.tried]
            if link.is_up and link.connection is not None:
                stats = link.connection.stats()
                entry.update(
                    state="online",
                    rtt_ms=round(stats.rtt_s * 1000, 3),
                    path=stats.path,
                    bytes_sent=stats.bytes_sent,
                    bytes_received=stats.bytes_received,
                    datagram_bytes=stats.datagram_bytes,
                )
                if (timed := self._node.link_times.times.get(link.peer_id)) is not None:
                    entry["link"] = {
                        "rtt_ms": round(timed.rtt_s * 1000, 3),
                        "bytes_per_s": round(timed.bytes_per_s),
                    }
                entry["last_seen_ms"] = now_ms()
            elif entry["state"] in ("online", "unadmitted") and self._node.mesh.is_member(
                PeerId(entry["peer"])
            ):
                entry["state"] = "offline"  # the founder holds no grant: it is what grants lead back to
            if link.status is not None:
                entry["name"] = link.name or entry["name"]
                entry["capability"] = link.status.capability
                entry["device_state"] = link.status.state
                entry["stages"] = link.status.extra.get("stages", [])
                entry["clock_skew_ms"] = link.status.now_ms - now_ms() if link.is_up else None
        waiting = self._node.approvals.view()
        asking = {entry["peer"] for entry in waiting}
        view["peers"] = [entry for entry in view["peers"] if entry["peer"] not in asking] + waiting
        return view

    def models(self) -> JsonObject:
        node = self._node
        known = node.catalog.known()
        default = node.catalog.resolve(None).name if known else None
        return {
            "models": [
                {
                    "name": model.name,
                    "manifest": model.content_id,
                    **{k: v for k, v in model.summary.items() if k != "chat_template"},
                    "here": "complete" if model.is_complete_here else "part" if model.is_local else "no",
                    "holders": [*([self._node.me] if model.is_complete_here else []), *model.holders],
                    "default": model.name == default,
                    "loaded": node.routing.of_model(model.content_id) is not None,
                    "loading": self._node.loads.view(model.name),
                    "transfer": self._node.transfers.view(model.name),
                }
                for model in known
            ]
            + [view for view in node.backends.views() if node.is_external(view["name"])]
        }

    def sessions(self) -> JsonObject:
        view = self._node.ledger.view("sessions")
        live = {request_id: running.view() for request_id, running in self._node.requests.running.items()}
        for entry in view["sessions"]:
            if entry["request_id"] in live:
                entry.update(live[entry["request_id"]])
        return view

    def plans(self) -> JsonObject:
        view = self._node.ledger.view("plans")
        for entry in view["plans"]:
            active = self._node.routing.active.get(entry["plan_id"])
            if active is not None:
                entry["live"] = active.lost is None
                entry["stages"] = active.stages
                entry["probe_ms"] = round(active.probe_s * 1000, 2)
                entry["lost"] = active.lost.message if active.lost else None
        return view

    def billing(self) -> JsonObject:
        return self._node.ledger.view("billing")

    def settings(self) -> JsonObject:
        return self._node.ledger.view("settings")

    def metrics(self) -> JsonObject:
        view = self._node.ledger.view("metrics")
        counted = wire_counts.families(self._node.transport.counters(), self._node.streams.refused)
        return {**view, "metrics": [*view["metrics"], *counted, self._node.ledger.append_metric()]}

    def options(self) -> JsonObject:
        return {"settings": describe(self._node.options)}

    # --- models --------------------------------------------------------------------------------------
    def resolve_model(self, name: str | None) -> str:
        if name is not None and self._node.is_external(name):
            return name
        return self._node.catalog.resolve(name).name

    def loading(self, model: str) -> JsonObject | None:
        return self._node.loads.view(model)

    def transfer(self, model: str) -> JsonObject | None:
        return self._node.transfers.view(model)

    def model_metadata(self, name: str) -> JsonObject:
        if self._node.is_external(name):
            return {"external": True, "chat_template": None, "bos_token": "", "eos_token": ""}
        return self._node.catalog.metadata(self._node.catalog.resolve(name))

    def _own(self, model: str) -> str:
        """RequestError for a model that only external servers have."""
        if self._node.is_external(model):
            raise RequestError(
                f"{model} is computed by an external server: ask that one for this", param="model"
            )
        return model

    async def tokenize(self, model: str, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return await self._node.choosing.with_vocabulary(
            self._own(model),
            lambda engine, unit: engine.tokenize(
                unit, text, add_special=add_special, parse_special=parse_special
            ),
        )

    async def detokenize(self, model: str, tokens: Sequence[int]) -> str:
        text = await self._node.choosing.with_vocabulary(
            self._own(model), lambda engine, unit: engine.detokenize(unit, list(tokens))
        )
        return text.decode("utf-8", "replace")

    async def rerank(self, model: str, query: str, documents: Sequence[str]) -> Ranking:
        return await self._node.embedding.rank(self._node.catalog.resolve(self._own(model)), query, documents)

    async def embed(self, model: str, inputs: Sequence[Sequence[int]]) -> list[list[float]]:
        return await self._node.embedding.embed(self._node.catalog.resolve(self._own(model)), inputs)

    # --- doing ---------------------------------------------------------------------------------------
    def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateEvent]:
        return self._node.generate(request)

    async def plan(self, request: Mapping[str, Any]) -> JsonObject:
        node = self._node
        try:
            asked = msgspec.convert(dict(request), PlanRequest)
        except msgspec.ValidationError as error:
            raise RequestError(f"this plan request cannot be read: {error}") from None
        model = await node.catalog.resolve_or_add(asked.model)
        engine = node.planning.engine_of(asked, model)
        planned = await node.planning.make(asked, model)
        made = planned.plan
        answer: JsonObject = {
            "plan_id": made.plan_id,
            "model": model.name,
            "mode": made.mode,
            "head": made.head,
            "applied": False,
            "engine": made.engine,
            "stages": [
                {
                    "peer": stage.peer,
                    "name": node.links.name_of(PeerId(stage.peer)),
                    "layers": [stage.layer_first, stage.layer_end],
                    "role": stage.role,
                    "devices": [node.links.name_of(PeerId(peer)) for peer in stage.peers],
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
                *(["memory that other programs hold now was not counted, as asked"] if asked.anyway else []),
            ],
            "rejections": [r.as_dict() for r in planned.rejections],
        }
        if asked.apply:
            asked = msgspec.structs.replace(asked, engine=None)  # from now on it is the model's own
            async with node.engine_options.changed(model.content_id, engine, node.routing.release_model):
                active = await node.choosing.apply(model, made, asked)
            answer.update(applied=True, plan_id=active.plan_id, probe_ms=round(active.probe_s * 1000, 2))
            by_peer = {(s["peer"], s["layers"][0]): s for s in active.stages}
            for stage in answer["stages"]:
                stage.update(by_peer.get((stage["peer"], stage["layers"][0]), {}))
        return answer

    async def invite(self, *, uses: int, expires_s: int, role: str, label: str) -> JsonObject:
        return await self._node.mesh.invite(uses=uses, expires_s=expires_s, role=role, label=label)

    async def command(self, name: str, arguments: Mapping[str, Any]) -> JsonObject:
        command = self._commands.get(name)
        if command is None:
            raise RequestError(
                f"there is no command {name!r}", hint=f"known: {', '.join(sorted(self._commands))}"
            )
        try:
            return await command(arguments)
        except KeyError as error:
            raise RequestError(f"the argument {error} is missing") from None
        except DecodeError as error:
            raise RequestError(f"an argument is not what it should be: {error}") from None

    async def _top_up(self, a: Mapping[str, Any]) -> JsonObject:
        key = str(a["idempotency_key"])
        return await self._node.ledger.do(
            c.TopUp(
                account=str(a["account"]),
                amount_microunits=_whole(a, "amount_microunits"),
                idempotency_key=key,
                note=str(a.get("note", "")),
            ),
            idempotency_key=key,
        )

    async def _quota(self, a: Mapping[str, Any]) -> JsonObject:
        """At most `limit_microunits` by list price in each `period_ms`; neither lifts the quota."""
        unlimited = a.get("limit_microunits") is None
        return await self._node.ledger.do(
            c.SetQuota(
                account=str(a["account"]),
                limit_microunits=0 if unlimited else _whole(a, "limit_microunits"),
                period_ms=0 if unlimited else _whole(a, "period_ms"),
                unlimited=unlimited,
            )
        )

    async def _pause(self, a: Mapping[str, Any]) -> JsonObject:
        return await self._set_state("paused", c.PauseDevice(reason=str(a.get("reason", ""))))

    async def _resume(self, a: Mapping[str, Any]) -> JsonObject:
        return await self._set_state("active", c.ResumeDevice(reason=str(a.get("reason", ""))))

    async def _drain(self, a: Mapping[str, Any]) -> JsonObject:
        return await self._set_state("draining", c.DrainDevice(reason=str(a.get("reason", ""))))

    async def _set_state(self, state: str, command: c.Command) -> JsonObject:
        await self._node.ledger.do(command)
        self._node.state = state
        self._node.links.status_changed()
        return {"state": state}

    async def _seal(self, a: Mapping[str, Any]) -> JsonObject:
        del a
        await self._node.witnessing.look_back()
        await self._node.ledger.log.seal()
        return {"size": self._node.ledger.log.size, "blocks": self._node.ledger.log.block_count}

    async def _witness(self, a: Mapping[str, Any]) -> JsonObject:
        del a
        await self._node.witnessing.look_back()
        await self._node.ledger.log.seal()
        return {
            "cosignatures": await self._node.witnessing.gather(),
            "checkpoint": self._node.ledger.log.checkpoint(),
        }

    async def _set(self, a: Mapping[str, Any]) -> JsonObject:
        key, value = str(a["key"]), str(a["value"])
        if key == PREFIXES:
            prefix_bytes_of(value)  # says what is wrong with it
        if key == DEVICE:
            value = DeviceOptions.parse(value).text  # from the next loading on
        elif key.startswith(MODEL):
            return await self._set_engine(key.removeprefix(MODEL), value)
        return await self._node.ledger.do(c.ChangeSetting(key=key, value=value))

    async def _set_engine(self, name: str, value: str) -> JsonObject:
        """Plans of the model end, and are loaded like this when they are asked for next."""
        node, engine = self._node, EngineOptions.parse(value)
        model = node.catalog.resolve(name)
        standing = node.engine_options.of_model(model.content_id)
        engine = engine.with_adapters(  # which have commands of their own
            engine.adapters or standing.adapters, engine.control_vectors or standing.control_vectors
        )
        engine.check_model(await node.bringing.slim_index(model))
        async with node.engine_options.changed(model.content_id, engine, node.routing.release_model):
            return {"key": MODEL + model.name, "value": engine.text, "previous": standing.text}

    async def _adapters(self, a: Mapping[str, Any]) -> JsonObject:
        del a
        node = self._node
        return {
            "adapters": [
                {"model": model.name, "kind": kind, "scale": scale, **node.adapters.view(identity)}
                for model in node.catalog.known()
                for engine in (node.engine_options.of_model(model.content_id),)
                for kind, found in (("lora", engine.adapters), ("control vector", engine.control_vectors))
                for identity, scale in found
            ]
        }

    async def _add_adapter(self, a: Mapping[str, Any]) -> JsonObject:
        """`path`: a file on this device. Added again, an adapter gets the new `scale`."""
        node, scale = self._node, a.get("scale", 1.0)
        if (
            isinstance(scale, bool)
            or not isinstance(scale, int | float)
            or not abs(scale) <= ADAPTER_SCALE_MAX
        ):
            raise RequestError(
                f"scale is a number from -{ADAPTER_SCALE_MAX} to {ADAPTER_SCALE_MAX}", param="scale"
            )
        model = node.catalog.resolve(str(a["model"]))
        base = await node.bringing.slim_index(model)
        identity = await asyncio.to_thread(node.adapters.add, Path(str(a["path"])), base)
        standing = node.engine_options.of_model(model.content_id)
        lora = [each for each in standing.adapters if each[0] != identity]
        control = [each for each in standing.control_vectors if each[0] != identity]
        (control if node.adapters.is_control_vector(identity) else lora).append((identity, float(scale)))
        engine = standing.with_adapters(lora, control)
        async with node.engine_options.changed(model.content_id, engine, node.routing.release_model):
            return {"model": model.name, "scale": scale, **node.adapters.view(identity)}

    async def _remove_adapter(self, a: Mapping[str, Any]) -> JsonObject:
        """`adapter`: its content id, or its name."""
        node, wanted = self._node, str(a["adapter"])
        model = node.catalog.resolve(str(a["model"]))
        standing = node.engine_options.of_model(model.content_id)
        named = (*standing.adapters, *standing.control_vectors)
        views = [node.adapters.view(identity) for identity, _ in named]
        found = [view for view in views if wanted and wanted in (view["adapter"], view["name"])]
        if len(found) != 1:
            raise NotFound(
                f"{model.name} has {len(found) or 'no'} adapter called {wanted[:128]!r}",
                hint="p2pnode adapters list --json shows their ids",
            )
        gone = str(found[0]["adapter"])
        engine = standing.with_adapters(
            [each for each in standing.adapters if each[0] != gone],
            [each for each in standing.control_vectors if each[0] != gone],
        )
        async with node.engine_options.changed(model.content_id, engine, node.routing.release_model):
            used = {row["adapter"] for row in (await self._adapters({}))["adapters"]}
            if gone not in used:
                await asyncio.to_thread(node.adapters.remove, gone)
            return {"model": model.name, **found[0]}

    async def _forget_peer(self, a: Mapping[str, Any]) -> JsonObject:
        self._node.links.forget(PeerId(str(a["peer"])))
        return await self._node.ledger.do(c.ForgetPeer(peer=str(a["peer"])))

    async def _verify_peer_log(self, a: Mapping[str, Any]) -> JsonObject:
        return await self._node.log_sharing.verify(PeerId(str(a["peer"])))

    async def _approve_peer(self, a: Mapping[str, Any]) -> JsonObject:
        return self._node.approvals.decide(str(a["peer"]), approve=True)

    async def _refuse_peer(self, a: Mapping[str, Any]) -> JsonObject:
        return self._node.approvals.decide(str(a["peer"]), approve=False)

    async def _revoke_peer(self, a: Mapping[str, Any]) -> JsonObject:
        peer, reason = PeerId(str(a["peer"])), str(a.get("reason", ""))[:500]
        await self._node.mesh.revoke(peer, reason or "revoked by its owner")
        return {"peer": peer, "revoked": True}

    async def _revoke_invite(self, a: Mapping[str, Any]) -> JsonObject:
        return await self._node.ledger.do(c.RevokeInvite(invite_id=str(a["invite_id"])))

    async def _release_plan(self, a: Mapping[str, Any]) -> JsonObject:
        plan_id = str(a["plan_id"])
        node = self._node
        node.choosing.applied = {k: v for k, v in node.choosing.applied.items() if v[0].plan_id != plan_id}
        await node.routing.release(plan_id, reason="released by its owner")
        if plan_id not in node.ledger.state.plans.plans:
            return {"plan_id": plan_id}  # one that needs no record: this device alone
        return await node.ledger.do(c.AbandonPlan(plan_id=plan_id, reason="released by its owner"))

    async def _add_model(self, a: Mapping[str, Any]) -> JsonObject:
        model = await self._node.catalog.resolve_or_add(str(a["model"]))
        return {"model": model.name, "manifest": model.content_id}

    async def _remove_model(self, a: Mapping[str, Any]) -> JsonObject:
        model = self._node.store.get(str(a["model"]))
        freed = await asyncio.to_thread(self._node.store.remove, model.name)
        await self._node.ledger.do(c.RemoveModel(model=model.content_id))
        return {"removed": model.name, "freed_bytes": freed}

    async def _pull(self, a: Mapping[str, Any]) -> JsonObject:
        model, fetched = await self._node.pulling.pull(str(a["model"]))
        summary = {k: v for k, v in model.manifest.summary().items() if k != "chat_template"}
        return {"model": model.name, "manifest": model.content_id, "bytes_fetched": fetched, **summary}

    async def _copy_model(self, a: Mapping[str, Any]) -> JsonObject:
        """`device`: a peer id, or a name that one device has."""
        return await self._node.pulling.copy(str(a["model"]), self._device(str(a["device"])))

    def _device(self, device: str) -> PeerId:
        found = [row["peer"] for row in self.peers()["peers"] if device in (row["peer"], row["name"])]
        if len(found) != 1:
            many = "there is no device" if not found else f"{len(found)} devices are called"
            raise NotFound(f"{many} {device[:128]!r}", hint="p2pnode peers --json shows the peer ids")
        return PeerId(found[0])

    async def _log_forget(self, a: Mapping[str, Any]) -> JsonObject:
        return {"forgotten": await self._node.ledger.log.forget(str(a["subject"]))}

    async def _log_rotate_keys(self, a: Mapping[str, Any]) -> JsonObject:
        del a
        await self._node.witnessing.look_back()
        keys = await self._node.ledger.log.rotate_keys()
        self._node.links.status_changed()
        return {"generation": keys.generation, "log_key": str(keys.log_verifier)}

    async def _console_ran(self, a: Mapping[str, Any]) -> JsonObject:
        log, text = self._node.ledger.log, str(a["command"]).encode()
        fact = ConsoleCommandRun(
            verb=str(a["verb"]),
            command_commitment=log.commit_secret(str(a["run_id"]), text, owner=str(a["actor"])),
            exit_code=int(a["exit_code"]),
            duration_ms=int(a["duration_ms"]),
        )
        return await self._node.ledger.do(c.RecordFact(fact=fact))

    async def _key_created(self, a: Mapping[str, Any]) -> JsonObject:
        scopes = (str(a["scope"]),)
        return await self._node.ledger.do(
            c.CreateApiKey(key_id=str(a["key_id"]), label=str(a["label"]), scopes=scopes)
        )

    async def _key_revoked(self, a: Mapping[str, Any]) -> JsonObject:
        return await self._node.ledger.do(c.RevokeApiKey(key_id=str(a["key_id"])))

    def hops(self) -> JsonObject:
        hops = self._node.hops
        return {
            "totals": {stage: list(counts) for stage, counts in hops.totals.items()},
            "requests": list(hops.traces),
        }

    def trace(self, request_id: str) -> JsonObject:
        trace = self._node.hops.traces.get(request_id)
        if trace is None:
            kept = limits.TRACES_KEPT_MAX
            raise NotFound(
                f"no trace of {request_id[:64]!r} is kept", hint=f"the newest {kept} are, while the node runs"
            )
        return chrome_trace(trace)

    async def tools(self) -> JsonObject:
        return await self._node.tools.view()

    async def call_tool(
        self, server: str, tool: str, arguments: Mapping[str, Any], *, request_id: str
    ) -> JsonObject:
        return await self._node.tools.call(server, tool, arguments, request_id=request_id)

    # --- the record ----------------------------------------------------------------------------------
    def log_query(self, name: str, arguments: Mapping[str, Any]) -> Any:
        return self._queries.ask(name, arguments)

    def _witnesses(self) -> JsonObject:
        node = self._node
        return witness_view(
            node.ledger.log.reader,
            node.witnessing.known_bindings().values(),
            list(node.histories.doubts.values()),
            node.witnessing.policy,
        )

    async def live(self, after_index: int | None) -> AsyncIterator[JsonObject]:
        """Events from the record as they are committed, telemetry between; a reader too slow is let go."""
        node = self._node
        queue: asyncio.Queue[JsonObject] = asyncio.Queue(limits.LIVE_ITEMS_WAITING_MAX)
        overflow = asyncio.Event()

        def put(item: JsonObject) -> None:
            if queue.full():
                overflow.set()
            else:
                queue.put_nowait(item)

        def committed(record: Record) -> None:
            put(self._queries.record_view(record))

        stop = node.ledger.log.subscribe(committed)
        node.telemetry.append(put)
        try:
            if after_index is not None:
                first = max(0, after_index + 1)
                for record in node.ledger.log.read(first, node.ledger.log.size):
                    yield self._queries.record_view(record)
            while not node.stopping.is_set():
                if overflow.is_set():
                    raise Busy("this reader was too slow for the live feed")
                try:
                    async with asyncio.timeout(limits.STATUS_INTERVAL_S):
                        yield await queue.get()
                except TimeoutError:
                    running = [r.view() for r in node.requests.running.values()]
                    yield {"kind": "pulse", "data": {"peers": self.peers()["peers"], "running": running}}
        finally:
            stop()
            node.telemetry.remove(put)


def _whole(arguments: Mapping[str, Any], name: str) -> int:
    """A whole number, also written as text; KeyError when it is missing."""
    value = arguments[name]
    if isinstance(value, str) and value.removeprefix("-").isdecimal() and len(value) < 20:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 1 << 63:
        raise RequestError(f"{name} is not a whole number", param=name)
    return value
