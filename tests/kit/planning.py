"""Plans in short: the cuts of one, and why others were not chosen."""

from __future__ import annotations

from p2pnode.compute.plan import Plan
from p2pnode.compute.planner import Planned

ALL = frozenset({"local", "pipeline", "tensor", "hybrid", "streamed", "tensor_rpc"})
HEAD = "peer-n0"


def cuts(made: Plan) -> list[tuple[str, int, int]]:
    return [
        ("+".join(p.removeprefix("peer-") for p in s.peers), s.layer_first, s.layer_end) for s in made.stages
    ]


def reasons(planned: Planned) -> dict[str, str]:
    return {r.candidate: r.reason for r in planned.rejections}
