"""Plans with the whole model in one engine of this device: local, streamed from the file, llama.cpp's RPC."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from p2pnode import limits
from p2pnode.compute.engine_protocol import UnitInfo, UnitSpec
from p2pnode.compute.local_route import LocalRoute
from p2pnode.compute.part import real_layer_count, whole
from p2pnode.compute.scheduler import Cells
from p2pnode.errors import PlanError
from p2pnode.node.active import Active, Say, stage_view
from p2pnode.node.bringing import Bringing
from p2pnode.node.catalog import KnownModel
from p2pnode.node.engines import EngineHost, EnginePool
from p2pnode.node.rpc_tunnel import RpcTunnel
from p2pnode.node.units import UnitOptions, unit_spec
from p2pnode.units import PeerId

WHOLE = "whole"


class Whole:
    def __init__(
        self,
        *,
        me: PeerId,
        name_of: Callable[[PeerId], str],
        bringing: Bringing,
        engines: EnginePool,
        tunnel: RpcTunnel,
    ) -> None:
        self._me = me
        self._name_of = name_of
        self._bringing = bringing
        self._engines = engines
        self._tunnel = tunnel

    async def local(self, plan_id: str, model: KnownModel, say: Say) -> Active:
        """The whole model on this device."""
        bringing = self._bringing
        index = await bringing.bring(model, whole, say)
        part, options = whole(index), bringing.options(model, index)
        spec = unit_spec(
            index, bringing.paths(model), part, options, model_id=bringing.model_id(model), is_last=True
        )
        spec = await bringing.adapted(model, index, part, options, spec)
        paths = bringing.paths(model)
        if options.device.maps_files and model.is_complete_here:
            whole_file = replace(spec, pieces=(), model_path=str(paths[0]))
            spec = options.device.applied(whole_file)
        engine = self._engines.of(model, "local")
        info = await engine.ensure(WHOLE, spec, _loading(say))
        stages = [self._view(self._me, part.layer_end, {"model_bytes": info.model_bytes})]
        active = self._active(plan_id, model, "local", stages, engine, info, options)
        active.prefixes = bringing.prefixes(index, active.route, options)
        return active

    async def streamed(self, plan_id: str, model: KnownModel, resident_bytes_max: int, say: Say) -> Active:
        """One device, less memory than the model: layers come from the file as they are needed."""
        path = self._bringing.file(model, "streamed")
        index, _, options, _ = await self._bringing.brought(model, whole)
        spec = UnitSpec(
            model_path=path,
            resident_bytes_max=resident_bytes_max,
            context_tokens=options.context_tokens,
            batch_rows=limits.UNIT_BATCH_ROWS,
            sessions_max=options.sessions,
            threads=options.threads,
            threads_batch=options.threads,
            load_mode="mmap",
            repack=False,
        )
        _without_adapters(options, model, "streamed")
        spec = options.engine.applied(spec)
        engine = self._engines.of(model, "streamed")
        info = await engine.ensure(WHOLE, spec, _loading(say))
        extra = {"resident_bytes_max": resident_bytes_max}
        stages = [self._view(self._me, real_layer_count(index), extra)]
        return self._active(plan_id, model, "streamed", stages, engine, info, options)

    async def rpc(self, plan_id: str, model: KnownModel, workers: Sequence[PeerId], say: Say) -> Active:
        """llama.cpp's own RPC: the whole file here, its tensors sent to workers and computed there."""
        path = self._bringing.file(model, "tensor_rpc")
        index, _, options, _ = await self._bringing.brought(model, whole)
        _without_adapters(options, model, "tensor_rpc")
        release = [functools.partial(self._tunnel.shut, peer, plan_id) for peer in workers]
        # llama.cpp's RPC client aborts its process when a worker goes, so this engine serves this plan alone.
        engine = self._engines.of(model, f"rpc {plan_id}")
        try:
            endpoints = [await self._tunnel.open(peer, plan_id) for peer in workers]
            spec = UnitSpec(
                model_path=path,
                rpc_endpoints=tuple(endpoints),
                gpu_layers=-1,
                split_mode=options.engine.rpc_split,
                context_tokens=options.context_tokens,
                batch_rows=limits.UNIT_BATCH_ROWS,
                sessions_max=options.sessions,
                threads=options.threads,
                threads_batch=options.threads,
                load_mode="copy",
            )
            info = await engine.ensure(WHOLE, options.engine.applied(spec), _loading(say))
        except BaseException:
            await self._engines.drop(engine)
            for undo in release:
                await undo()
            raise
        stages = [self._view(peer, real_layer_count(index), {"role": "rpc"}) for peer in (self._me, *workers)]
        active = self._active(plan_id, model, "tensor_rpc", stages, engine, info, options)
        active.release += release
        return active

    def _view(self, peer: PeerId, layer_end: int, extra: dict[str, Any]) -> dict[str, Any]:
        return stage_view(self._name_of(peer), peer, 0, layer_end, extra)

    def _active(
        self,
        plan_id: str,
        model: KnownModel,
        mode: str,
        stages: list[dict[str, Any]],
        engine: EngineHost,
        info: UnitInfo,
        options: UnitOptions,
    ) -> Active:
        route = LocalRoute(engine.client, info.unit_id)
        active = Active(
            plan_id=plan_id,
            model=model,
            mode=mode,
            stages=stages,
            route=route,
            engine=engine,
            vocabulary_unit=info.unit_id,
            cells=Cells(cells=options.context_tokens, sessions=options.sessions),
            session_tokens=info.session_tokens,
            options=options.engine.text,
        )
        active.on_lost.append(route.lost)
        active.follow_engine(self._name_of(self._me))
        return active


def _loading(say: Say) -> Callable[[float], None]:
    return lambda fraction: say({"state": "loading", "progress": fraction})


def _without_adapters(options: UnitOptions, model: KnownModel, mode: str) -> None:
    if options.engine.lora or options.engine.control:
        raise PlanError(
            f"{mode} mode takes no adapters",
            hint=f"remove those of {model.name}, or choose another mode",
        )
