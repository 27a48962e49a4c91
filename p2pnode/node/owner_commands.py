"""What the owner of a device may tell it: about accounts, its state, its record, devices, plans, models and keys."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from p2pnode import commands as c
from p2pnode.compute.engine_options import DeviceOptions, EngineOptions
from p2pnode.errors import NotFound, RequestError
from p2pnode.events.types import ConsoleCommandRun
from p2pnode.facade import JsonObject
from p2pnode.node import settings
from p2pnode.node.core import Node
from p2pnode.node.engine_settings import DEVICE, MODEL
from p2pnode.node.lending import SETTING as SCHEDULE
from p2pnode.projections.settings import value_of
from p2pnode.units import PeerId

Command = Callable[[Mapping[str, Any]], Awaitable[JsonObject]]


class OwnerCommands:
    """`peers` is the view that devices are found in by their names."""

    def __init__(self, node: Node, peers: Callable[[], JsonObject]) -> None:
        self._node = node
        self._peers = peers

    def table(self) -> dict[str, Command]:
        return {
            "topup": self._top_up,
            "quota": self._quota,
            "pause": self._pause,
            "resume": self._resume,
            "drain": self._drain,
            "schedule_set": self._schedule_set,
            "schedule_clear": self._schedule_clear,
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
            "verify_peer_log": self._verify_peer_log,
            "approve_peer": self._approve_peer,
            "refuse_peer": self._refuse_peer,
            "revoke_peer": self._revoke_peer,
            "federation_add": self._federation_add,
            "federation_remove": self._federation_remove,
        }

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
        return await self._node.lending.command(c.PauseDevice(reason=str(a.get("reason", ""))))

    async def _resume(self, a: Mapping[str, Any]) -> JsonObject:
        return await self._node.lending.command(c.ResumeDevice(reason=str(a.get("reason", ""))))

    async def _drain(self, a: Mapping[str, Any]) -> JsonObject:
        return await self._node.lending.command(c.DrainDevice(reason=str(a.get("reason", ""))))

    async def _schedule_set(self, a: Mapping[str, Any]) -> JsonObject:
        """`entries`: texts such as `mon-fri 20:00-08:00`; `zone`: a time zone's name, else this machine's."""
        entries = a["entries"]
        if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
            raise RequestError("entries is a list of texts", param="entries")
        return await self._node.lending.set(entries, str(a.get("zone") or ""))

    async def _schedule_clear(self, a: Mapping[str, Any]) -> JsonObject:
        del a
        return await self._node.lending.clear()

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
        settings.check(key, value)
        if key == SCHEDULE:
            await self._node.lending.set_text(value)
            return {"key": key, "value": value_of(self._node.ledger.state.settings, key)}
        if key == DEVICE:
            value = DeviceOptions.parse(value).text  # from the next loading on
        elif key.startswith(MODEL):
            return await self._set_engine(key.removeprefix(MODEL), value)
        return await self._node.ledger.do(c.ChangeSetting(key=key, value=value))

    async def _set_engine(self, name: str, value: str) -> JsonObject:
        """Plans of the model end, and are loaded like this when they are asked for next."""
        node, asked = self._node, EngineOptions.parse(value)
        model = node.catalog.resolve(name)
        asked.check_model(await node.bringing.slim_index(model))
        previous = ""

        def as_asked(standing: EngineOptions) -> EngineOptions:
            nonlocal previous
            previous = standing.text
            return asked.with_adapters(  # which have commands of their own
                asked.adapters or standing.adapters, asked.control_vectors or standing.control_vectors
            )

        async with node.engine_options.changed(model.content_id, as_asked, node.choosing.renew) as engine:
            return {"key": MODEL + model.name, "value": engine.text, "previous": previous}

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

    async def _federation_add(self, a: Mapping[str, Any]) -> JsonObject:
        return await self._node.others.add(str(a["ticket"]), str(a.get("name") or "")[:64])

    async def _federation_remove(self, a: Mapping[str, Any]) -> JsonObject:
        return await self._node.others.remove(str(a["name"]))

    async def _revoke_invite(self, a: Mapping[str, Any]) -> JsonObject:
        return await self._node.ledger.do(c.RevokeInvite(invite_id=str(a["invite_id"])))

    async def _release_plan(self, a: Mapping[str, Any]) -> JsonObject:
        return await self._node.choosing.release(str(a["plan_id"]), "released by its owner")

    async def _add_model(self, a: Mapping[str, Any]) -> JsonObject:
        model = await self._node.catalog.resolve_or_add(str(a["model"]))
        return {"model": model.name, "manifest": model.content_id}

    async def _remove_model(self, a: Mapping[str, Any]) -> JsonObject:
        model = self._node.store.get(str(a["model"]))
        freed = await asyncio.to_thread(self._node.store.remove, model.name)
        if not self._node.catalog.holds(model.content_id):  # by another name it may still be here
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
        found = [row["peer"] for row in self._peers()["peers"] if device in (row["peer"], row["name"])]
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


def _whole(arguments: Mapping[str, Any], name: str) -> int:
    """A whole number, also written as text; KeyError when it is missing."""
    value = arguments[name]
    if isinstance(value, str) and value.removeprefix("-").isdecimal() and len(value) < 20:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 1 << 63:
        raise RequestError(f"{name} is not a whole number", param=name)
    return value
