"""Which plans are worth costing for a wish: local, streamed, pipelines, tensor groups, hybrids, rpc, maps by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from p2pnode import limits
from p2pnode.compute import cost, layout
from p2pnode.compute.cost import Device, Group, Mesh, ModelShape
from p2pnode.compute.plan import PlanMode, check_layers
from p2pnode.compute.search import Search, Unit
from p2pnode.compute.wish import Rejection, Wish, resolve, size_text
from p2pnode.errors import LayerGap, PlanError

Candidate = tuple[PlanMode, tuple[Group, ...]]


def candidates(
    wish: Wish, shape: ModelShape, mesh: Mesh, devices: Sequence[Device], rejections: list[Rejection]
) -> Iterator[Candidate]:
    """Candidates in the order they are shown; what is impossible for its kind goes to `rejections`."""
    if wish.blocks is not None:
        yield _mapped(wish, shape, devices, rejections)
        return
    whole = (Group(0, shape.layer_count, (wish.head,)),)
    is_alone = wish.stages in (None, 1) and (wish.devices is None or [d.peer for d in devices] == [wish.head])
    # The memory rule is asked for by name, so it is not weighed against running on one device.
    is_local_open = wish.strategy == "speed" or wish.mode == "local" or len(devices) == 1
    if wish.allows("local") and is_alone and is_local_open and not wish.pins:
        yield "local", whole
    if wish.allows("streamed") and is_alone and not wish.pins:
        yield from _streamed(wish, shape, mesh, whole)
    if wish.mode in ("local", "streamed"):
        if not is_alone or wish.pins:
            reason = (
                "it is computed by the head alone, and other devices, stages or pinned layers were asked for"
            )
            rejections.append(Rejection(wish.mode, reason))
        return
    if shape.cut_refusal is not None:
        rejections.append(Rejection("every split", shape.cut_refusal))
        return
    if wish.allows("pipeline"):
        yield from _pipelines(wish, shape, mesh, devices, rejections)
    if wish.allows("tensor") or wish.allows("hybrid"):
        yield from _tensor(wish, shape, mesh, devices, rejections)
    if wish.mode == "disaggregated":
        yield from _disaggregated(wish, shape, mesh, devices, rejections)
    if wish.allows("tensor_rpc"):
        yield from _rpc(wish, shape, mesh, devices, rejections)


def _streamed(wish: Wish, shape: ModelShape, mesh: Mesh, whole: tuple[Group, ...]) -> Iterator[Candidate]:
    """Worth a thought only where the model does not fit; on request always."""
    needed = cost.unit_memory_bytes(shape, wish.load, 0, shape.layer_count, embedding=True, output=True)
    if wish.mode == "streamed" or needed > mesh.devices[wish.head].memory_free_bytes:
        yield "streamed", whole


def _pipelines(
    wish: Wish, shape: ModelShape, mesh: Mesh, devices: Sequence[Device], rejections: list[Rejection]
) -> Iterator[Candidate]:
    if wish.strategy == "memory":
        yield from _by_memory(wish, shape, devices, rejections)
        return
    units = [Unit((device.peer,)) for device in devices]
    stages = len(units) if wish.devices is not None and wish.stages is None else wish.stages
    found = Search(wish, shape, mesh, units).best(stages=stages, fixed_order=wish.devices is not None)
    if found is not None:
        yield pipeline(wish, found.groups)
        if stages is None and len(found.groups) == 1 and wish.mode == "pipeline" and len(units) > 1:
            yield from _longer(wish, shape, mesh, units)
        return
    rejections.append(_no_way(wish, shape, devices, stages))
    if stages is not None and stages <= len(devices) and not wish.pins:
        # Say which device lacks what: by speed, the numbers are closest to what was asked for.
        groups = layout.by_speed(shape, devices[:stages])
        if len(groups) == stages:
            yield pipeline(wish, groups)


def _disaggregated(
    wish: Wish, shape: ModelShape, mesh: Mesh, devices: Sequence[Device], rejections: list[Rejection]
) -> Iterator[Candidate]:
    """Each other device alone for the prompts, or a ring of them; the head has the whole model for what follows."""
    units = [Unit((device.peer,)) for device in devices if device.peer != wish.head]
    if not units:
        rejections.append(Rejection("disaggregated", "there is no other device to compute prompts"))
        return
    if wish.devices is None and wish.stages in (None, 1):
        yield from (("disaggregated", (Group(0, shape.layer_count, unit.peers),)) for unit in units)
    if wish.devices is not None or wish.stages != 1:
        stages = wish.stages or (len(units) if wish.devices is not None else None)
        found = Search(wish, shape, mesh, units).best(stages=stages, fixed_order=wish.devices is not None)
        if found is not None:
            yield "disaggregated", found.groups


def _by_memory(
    wish: Wish, shape: ModelShape, devices: Sequence[Device], rejections: list[Rejection]
) -> Iterator[Candidate]:
    """The seed's rule: all devices, or the first N."""
    count = wish.stages or len(devices)
    groups = layout.by_memory(shape, devices[:count])
    if count > len(devices):
        rejections.append(_no_way(wish, shape, devices, count))
    elif wish.stages is not None and len(groups) != count:
        rejections.append(
            Rejection(
                f"pipeline of {count} by memory",
                f"only {len(groups)} of {count} devices have a share of memory that is worth a layer",
                {"stages": count, "devices_with_layers": len(groups)},
            )
        )
    else:
        yield pipeline(wish, groups)


def _longer(wish: Wish, shape: ModelShape, mesh: Mesh, units: Sequence[Unit]) -> Iterator[Candidate]:
    """Who asks for a pipeline gets a real one, however fast one device would be."""
    found = Search(wish, shape, mesh, units).best(stages=2)
    if found is not None:
        yield pipeline(wish, found.groups)


def pipeline(wish: Wish, groups: tuple[Group, ...]) -> Candidate:
    """All layers on the head alone is what people call local."""
    return ("local" if [group.peers for group in groups] == [(wish.head,)] else "pipeline"), groups


def _no_way(wish: Wish, shape: ModelShape, devices: Sequence[Device], stages: int | None) -> Rejection:
    if stages is not None and stages > len(devices):
        return Rejection(
            f"pipeline of {stages}",
            f"{len(devices)} devices are ready, {stages} stages were asked for",
            {"devices": len(devices), "stages": stages},
        )
    free = sum(device.memory_free_bytes for device in devices)
    needed = cost.unit_memory_bytes(shape, wish.load, 0, shape.layer_count, embedding=True, output=True)
    return Rejection(
        "pipeline" if stages is None else f"pipeline of {stages}",
        f"no way to cut {size_text(needed)} into parts that fit {len(devices)} devices with {size_text(free)} free",
        {"needed_bytes": needed, "free_bytes": free, "devices": len(devices)},
    )


def _tensor(
    wish: Wish, shape: ModelShape, mesh: Mesh, devices: Sequence[Device], rejections: list[Rejection]
) -> Iterator[Candidate]:
    """Tensor groups around the head, and pipelines in which neighbours form groups."""
    if shape.shard_refusal is not None:
        rejections.append(Rejection("tensor", shape.shard_refusal))
        return
    groups = _clusters(wish, shape, mesh, devices, rejections)
    own = next((group for group in groups if wish.head in group), ())
    # A group is one stage, however many devices it has: who asked for several means a pipeline, unless it said tensor.
    if wish.allows("tensor") and (wish.mode == "tensor" or wish.stages in (None, 1)):
        yield from _groups_of_head(wish, shape, mesh, devices, own, rejections)
    if wish.allows("hybrid"):
        yield from _hybrid(wish, shape, mesh, devices, groups, rejections)


def _groups_of_head(
    wish: Wish,
    shape: ModelShape,
    mesh: Mesh,
    devices: Sequence[Device],
    own: Sequence[str],
    rejections: list[Rejection],
) -> Iterator[Candidate]:
    """The head with its nearest 1, 2, … others, or with exactly the named ones."""
    if len(own) < 2:
        rejections.append(Rejection("tensor", "no other device is near enough to the head"))
    elif wish.devices is None:
        yield from (("tensor", (_group(mesh, shape, own[:size]),)) for size in range(2, len(own) + 1))
    elif len(devices) == len(own):
        yield "tensor", (_group(mesh, shape, own),)
    else:
        text = f"{len(own)} of the {len(devices)} named devices can form a group: all near, {shape.shard_units} at most"
        numbers = {"devices": len(devices), "group": len(own), "ranks_max": shape.shard_units}
        rejections.append(Rejection("tensor", text, numbers))


def _group(mesh: Mesh, shape: ModelShape, peers: Sequence[str]) -> Group:
    return Group(0, shape.layer_count, tuple(peers), _shares(shape, mesh, peers))


def _shares(shape: ModelShape, mesh: Mesh, peers: Sequence[str]) -> tuple[int, ...]:
    """KV heads for each rank, in proportion to speed: heads are what a shard is cut by."""
    speeds = [mesh.devices[peer].decode_bytes_per_s for peer in peers]
    return tuple(layout.proportional_split(shape.shard_units, speeds))


def _clusters(
    wish: Wish, shape: ModelShape, mesh: Mesh, devices: Sequence[Device], rejections: list[Rejection]
) -> list[tuple[str, ...]]:
    """Groups of devices that are all near each other, the head's first; the head leads its group."""
    limit = min(shape.shard_units, limits.PLAN_GROUP_RANKS_MAX)
    left = sorted((d.peer for d in devices), key=lambda peer: peer != wish.head)
    clusters: list[tuple[str, ...]] = []
    while left:
        seed, *others = left
        cluster = [seed]
        for peer in sorted(others, key=lambda p: (mesh.link(seed, p).rtt_s, p)):
            links = [mesh.link(member, peer) for member in cluster]
            worst = max(link.rtt_s for link in links)
            if worst > wish.tensor_rtt_max_s or not all(link.is_measured for link in links):
                if seed == wish.head:
                    rejections.append(
                        _too_far(wish, mesh, peer, worst, all(link.is_measured for link in links))
                    )
            elif len(cluster) < limit:
                cluster.append(peer)
        clusters.append(tuple(cluster))
        left = [peer for peer in left if peer not in cluster]
    return clusters


def _too_far(wish: Wish, mesh: Mesh, peer: str, rtt_s: float, is_measured: bool) -> Rejection:
    name = mesh.devices[peer].name
    if not is_measured:
        return Rejection(f"tensor with {name}", "the link to it has not been timed yet")
    return Rejection(
        f"tensor with {name}",
        f"{1000 * rtt_s:.1f} ms round trip; two exchanges a layer pay off up to {1000 * wish.tensor_rtt_max_s:.3g} ms",
        {"rtt_s": rtt_s, "rtt_max_s": wish.tensor_rtt_max_s},
    )


def _hybrid(
    wish: Wish,
    shape: ModelShape,
    mesh: Mesh,
    devices: Sequence[Device],
    clusters: Sequence[tuple[str, ...]],
    rejections: list[Rejection],
) -> Iterator[Candidate]:
    if wish.mode == "hybrid" and wish.stages is not None:
        clusters = _halved(clusters, wish.stages)
    groups = [cluster for cluster in clusters if len(cluster) > 1]
    grouped = {peer for cluster in groups for peer in cluster}
    if not groups:
        rejections.append(Rejection("hybrid", "no two devices are near enough to form a group"))
        return
    if len(clusters) == 1 and wish.mode == "auto":
        return
    units = [Unit(cluster, _shares(shape, mesh, cluster)) for cluster in groups]
    units += [Unit((device.peer,)) for device in devices if device.peer not in grouped]
    found = Search(wish, shape, mesh, units).best(stages=wish.stages)
    if found is None:
        rejections.append(Rejection("hybrid", "no way to cut the model into parts that fit the groups"))
    elif any(len(group.peers) > 1 for group in found.groups):
        yield ("hybrid" if len(found.groups) > 1 else "tensor"), found.groups
    else:
        rejections.append(Rejection("hybrid", "one device alone is faster than any group"))


def _halved(clusters: Sequence[tuple[str, ...]], count: int) -> list[tuple[str, ...]]:
    """Near devices in as many groups as stages were asked for; the largest is halved first."""
    out = list(clusters)
    while len(out) < count and len(largest := max(out, key=len)) > 1:
        at, half = out.index(largest), -(-len(largest) // 2)
        out[at : at + 1] = [largest[:half], largest[half:]]
    return out


def _rpc(
    wish: Wish, shape: ModelShape, mesh: Mesh, devices: Sequence[Device], rejections: list[Rejection]
) -> Iterator[Candidate]:
    """llama.cpp's own workers: the head has the file, the others take layers by speed."""
    build = mesh.devices[wish.head].build
    able = []
    for device in devices:
        if device.peer != wish.head and not device.can_rpc:
            rejections.append(
                Rejection(f"tensor_rpc with {device.name}", "its llama.cpp was built without RPC")
            )
        elif device.build != build:
            rejections.append(
                Rejection(
                    f"tensor_rpc with {device.name}",
                    f"its llama.cpp is {device.build or 'unknown'}, the head's is {build or 'unknown'}",
                )
            )
        else:
            able.append(device)
    count = wish.stages or len(able)
    if count <= len(able) and able:
        yield "tensor_rpc", layout.by_speed(shape, able[: min(count, shape.layer_count)])


def _mapped(
    wish: Wish, shape: ModelShape, devices: Sequence[Device], rejections: Sequence[Rejection]
) -> Candidate:
    """The hand-written map as groups; LayerGap or PlanError with the reason when it cannot be obeyed."""
    assert wish.blocks is not None
    check_layers([(first, end) for _, first, end in wish.blocks], shape.layer_count)
    mesh = Mesh({device.peer: device for device in devices})
    for rejection in rejections:
        if rejection.candidate in {name for name, _, _ in wish.blocks}:
            raise PlanError(f"{rejection.candidate} is in the map, but {rejection.reason}")
    groups = tuple(Group(first, end, (resolve(name, mesh).peer,)) for name, first, end in wish.blocks)
    for group in groups[:-1]:
        if group.end % shape.boundary:
            raise LayerGap(
                f"{shape.architecture} is cut at multiples of {shape.boundary} layers, not at {group.end}"
            )
    if [group.peers for group in groups] != [(wish.head,)] and shape.cut_refusal is not None:
        raise PlanError(shape.cut_refusal, hint="run it whole on one device")
    return pipeline(wish, groups)
