"""Turn groups of layers into a costed plan, or say with numbers why they cannot be one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from p2pnode import limits
from p2pnode.compute import care, cost
from p2pnode.compute.cost import Group, Mesh, ModelShape
from p2pnode.compute.plan import Plan, PlanMode, Prediction, Rank, Spare, StagePlan, role_of
from p2pnode.compute.wish import Rejection, Wish, absent, size_text


@dataclass(frozen=True, slots=True)
class Builder:
    """All methods are pure; `mesh` has the wished caps applied."""

    wish: Wish
    shape: ModelShape
    mesh: Mesh

    def build(self, mode: PlanMode, groups: Sequence[Group]) -> Plan | Rejection:
        """A plan with its prediction, or the first device that cannot do its part."""
        rejection = self._fit(mode, groups)
        if rejection is not None:
            return rejection
        prediction = self.predict(mode, groups)
        made = Plan(
            plan_id="",
            model=self.shape.name,
            content_id=self.shape.content_id,
            mode=mode,
            head=self.wish.head,
            stages=tuple(self._stage(mode, group, groups) for group in groups),
            layer_count=self.shape.layer_count,
            n_ctx=self.wish.n_ctx,
            parallel=self.wish.parallel,
            prediction=prediction,
            reasons=(why(describe(mode, groups, self.mesh), prediction),),
            output_memory_bytes=self._head_bytes(mode, groups),
            engine=self.wish.engine,
        )
        made = replace(made, spares=self._spares(made, groups))
        return made.check().with_id()

    def again(self, made: Plan, position: int) -> Plan:
        """A plan with what is predicted now, of tokens at this place in their context."""
        groups = [
            Group(
                stage.layer_first,
                stage.layer_end,
                stage.peers,
                stage.shares if len(stage.ranks) > 1 else (1,),
            )
            for stage in made.stages
        ]
        stages = tuple(
            replace(stage, decode_s=cost.group_decode_s(self.shape, self.mesh, group, position))
            for stage, group in zip(made.stages, groups, strict=True)
        )
        return replace(made, prediction=self.predict(made.mode, groups, position), stages=stages)

    def predict(
        self, mode: PlanMode, groups: Sequence[Group], position: int = limits.CONTEXT_ASSUMED_TOKENS
    ) -> Prediction:
        """Times of one request at a time, from the cost law."""
        head = self.mesh.devices[self.wish.head]
        compute_s = sum(cost.group_decode_s(self.shape, self.mesh, group, position) for group in groups)
        compute_s += cost.output_decode_s(self.shape, head)
        if mode in ("pipeline", "tensor", "hybrid") and not self._is_on_head(groups):
            compute_s += head.step_overhead_s  # the output is a unit of its own there
        network_s = cost.network_s(self.shape, self.mesh, self.wish.head, groups)
        first_token_s = cost.first_token_s(self.shape, self.mesh, head.peer, groups, self.wish.prompt_tokens)
        if mode == "disaggregated":
            own = Group(0, self.shape.layer_count, (head.peer,))
            compute_s = cost.group_decode_s(self.shape, self.mesh, own, position)
            compute_s += cost.output_decode_s(self.shape, head)
            compute_s += head.step_overhead_s
            network_s = 0.0
            first_token_s += self._move_s(groups)
        if mode == "tensor_rpc":
            compute_s /= limits.RPC_EFFICIENCY
            network_s *= limits.RPC_ROUND_TRIPS
        if mode == "streamed":
            streamed_s = self._streamed_s(groups[0])
            compute_s += streamed_s
            first_token_s += streamed_s
        fetches = [(peer, self._fetch_bytes(peer, group, groups)) for group in groups for peer in group.peers]
        return Prediction(
            first_token_s=first_token_s,
            decode_s=compute_s + network_s,
            compute_s=compute_s,
            network_s=network_s,
            fetch_bytes=sum(size for _, size in fetches),
            fetch_s=max((self._fetch_s(peer, size) for peer, size in fetches), default=0.0),
        )

    def _is_on_head(self, groups: Sequence[Group]) -> bool:
        return [group.peers for group in groups] == [(self.wish.head,)]

    def _move_s(self, groups: Sequence[Group]) -> float:
        """Keys and values of the prompt from every stage to the head, side by side."""
        tokens = self.wish.prompt_tokens
        return max(
            cost.hop_s(self.mesh, g.peers[0], self.wish.head, self.shape.kv_bytes(g.first, g.end, tokens, 1))
            for g in groups
        )

    def _streamed_s(self, group: Group) -> float:
        """Weights that do not stay in memory are read from disk for every token."""
        device = self.mesh.devices[group.peers[0]]
        whole = cost.unit_memory_bytes(
            self.shape, self.wish.load, group.first, group.end, embedding=True, output=True
        )
        return max(0, whole - device.memory_free_bytes) / device.disk_bytes_per_s

    def _fetch_s(self, peer: str, size: int) -> float:
        """From the best linked other device, as an estimate."""
        if size == 0:
            return 0.0
        rates = [self.mesh.link(peer, other).bytes_per_s for other in self.mesh.devices if other != peer]
        return size / max(rates, default=cost.ASSUMED_LINK.bytes_per_s)

    def _stage(self, mode: PlanMode, group: Group, groups: Sequence[Group]) -> StagePlan:
        return StagePlan(
            layer_first=group.first,
            layer_end=group.end,
            ranks=tuple(
                Rank(
                    peer,
                    share,
                    self._rank_bytes(mode, rank, group, groups),
                    self._fetch_bytes(peer, group, groups),
                )
                for rank, (peer, share) in enumerate(zip(group.peers, group.shares, strict=True))
            ),
            role=role_of(group.first, group.end, self.shape.layer_count),
            decode_s=cost.group_decode_s(self.shape, self.mesh, group),
        )

    def _has_output(self, group: Group, groups: Sequence[Group]) -> bool:
        return group is groups[-1] and group.peers == (self.wish.head,)

    def _rank_bytes(self, mode: PlanMode, rank: int, group: Group, groups: Sequence[Group]) -> int:
        if mode == "streamed":
            return cost.streamed_memory_bytes(self.shape, self.wish.load)
        return cost.unit_memory_bytes(
            self.shape,
            self.wish.load,
            group.first,
            group.end,
            embedding=group.first == 0,
            output=self._has_output(group, groups),
            part=group.shares[rank] / sum(group.shares),
        )

    def _head_bytes(self, mode: PlanMode, groups: Sequence[Group]) -> int:
        """What the head holds beside its stages: the output, and what it decodes with where others compute prompts."""
        whole = 0
        if mode == "disaggregated":
            whole = self._rank_bytes(mode, 0, Group(0, self.shape.layer_count, (self.wish.head,)), groups)
        return self._output_bytes(groups) + whole

    def _output_bytes(self, groups: Sequence[Group]) -> int:
        """The head's separate output unit."""
        if self._has_output(groups[-1], groups):
            return 0
        return output_unit_bytes(self.wish, self.shape)

    def _fetch_bytes(self, peer: str, group: Group, groups: Sequence[Group]) -> int:
        device = self.mesh.devices[peer]
        part = group.shares[group.peers.index(peer)] / sum(group.shares)
        layers = sum(
            self.shape.layer_bytes[i] for i in range(group.first, group.end) if i not in device.held_layers
        )
        ends = 0
        if not device.holds_ends:
            has_output = self._has_output(group, groups)
            ends = self.shape.weight_bytes(0, 0, embedding=group.first == 0, output=has_output)
        return int(layers * part) + ends

    def _fit(self, mode: PlanMode, groups: Sequence[Group]) -> Rejection | None:
        """None when every device has the memory and the disk its work needs."""
        label = describe(mode, groups, self.mesh)
        needed: dict[str, int] = {self.wish.head: self._head_bytes(mode, groups)}
        fetched: dict[str, int] = {}
        if mode == "disaggregated":
            own = Group(0, self.shape.layer_count, (self.wish.head,))
            fetched[self.wish.head] = self._fetch_bytes(self.wish.head, own, groups)
        for group in groups:
            for rank, peer in enumerate(group.peers):
                needed[peer] = needed.get(peer, 0) + self._rank_bytes(mode, rank, group, groups)
                fetched[peer] = fetched.get(peer, 0) + self._fetch_bytes(peer, group, groups)
        for peer, size in needed.items():
            device = self.mesh.devices[peer]
            if size > device.memory_free_bytes:
                return _lacks(label, device.name, "needs", size, device.memory_free_bytes, "memory")
            disk = device.disk_free_bytes
            if disk is not None and fetched.get(peer, 0) > disk:
                return _lacks(label, device.name, "must fetch", fetched[peer], disk, "disk")
        return None

    def _spares(self, made: Plan, groups: Sequence[Group]) -> tuple[Spare, ...]:
        """For every stage elsewhere, the device that would be back soonest: holding its layers, then fast."""
        found = []
        for number, group in enumerate(groups):
            if len(group.peers) > 1 or group.peers == (self.wish.head,):
                continue
            size = made.stages[number].ranks[0].memory_bytes
            layers = frozenset(range(group.first, group.end))
            fitting = [
                device
                for device in self.mesh.devices.values()
                if device.peer not in group.peers
                and absent(device) is None
                and (not device.is_metered or layers <= device.held_layers)
                and device.peer not in self.wish.excluded
                and device.name not in self.wish.excluded
                and device.decode_bytes_per_s > 0
                and care.other_version(self.wish, self.mesh.devices[self.wish.head], device) is None
                and care.banned(self.wish, device) is None
                and device.memory_free_bytes - made.memory_of(device.peer) >= size
            ]
            if fitting:
                best = min(
                    fitting,
                    key=lambda d: (
                        d.peer in made.peers,
                        d.on_battery or d.is_metered,
                        not layers <= d.held_layers,
                        -d.decode_bytes_per_s,
                        d.peer,
                    ),
                )
                found.append(Spare(number, best.peer))
        return tuple(found)


def output_unit_bytes(wish: Wish, shape: ModelShape) -> int:
    """Memory of the head's unit without layers."""
    last = shape.layer_count
    return cost.unit_memory_bytes(shape, wish.load, last, last, embedding=False, output=True)


def why(label: str, found: Prediction) -> str:
    return (
        f"{label}: {found.tokens_per_s:.1f} tokens/s expected, {1000 * found.compute_s:.1f} ms computing and "
        f"{1000 * found.network_s:.1f} ms network a token"
    )


def describe(mode: PlanMode, groups: Sequence[Group], mesh: Mesh) -> str:
    """One line for people: mode, devices and layers."""
    parts = []
    for group in groups:
        names = "+".join(mesh.devices[peer].name for peer in group.peers)
        parts.append(f"{names} [{group.first}, {group.end})")
    return f"{mode} {' → '.join(parts)}"


def _lacks(label: str, name: str, verb: str, needed: int, free: int, what: str) -> Rejection:
    text = f"{name} {verb} {size_text(needed)} and has {size_text(free)} of {what} free"
    return Rejection(
        label, text, {"device": name, "resource": what, "needed_bytes": needed, "free_bytes": free}
    )
