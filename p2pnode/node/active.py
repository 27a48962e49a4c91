"""Plans that stand: what a request runs on, and what ends with it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from p2pnode.compute.prefixes import Prefixes
from p2pnode.compute.route import Route
from p2pnode.compute.row_tally import rank_part
from p2pnode.compute.scheduler import Cells
from p2pnode.errors import P2PNodeError, StageLost
from p2pnode.node.catalog import KnownModel
from p2pnode.node.engines import EngineHost
from p2pnode.units import ContentId, PeerId

Announce = Callable[[str, int, int, str], Awaitable[int]]
"""(request id, session, positions before the unit of output that comes now, traceparent) to how far
all devices compute it."""
Say = Callable[[dict[str, Any]], None]


def plan_id_alone(mode: Literal["local", "streamed"], content_id: ContentId) -> str:
    """Under which a whole model on one device stands, asked for by a plan or by a request alone."""
    return f"{mode}-{content_id[-12:]}"


@asynccontextmanager
async def first_condition() -> AsyncIterator[None]:
    """Around a task group: the first device's reason, not a group of groups."""
    try:
        yield
    except* P2PNodeError as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None


@dataclass(frozen=True, slots=True)
class StagePart:
    peer: PeerId
    """The device that has these layers, or leads the group that shares them."""
    layer_first: int
    layer_end: int
    followers: tuple[PeerId, ...] = ()
    shares: tuple[int, ...] = ()
    """Weights of the leader and its followers; empty for one device."""


@dataclass(frozen=True, slots=True)
class Place:
    """A stage of a plan, or a rank's share of one: where work is counted and receipted."""

    plan_id: str
    peer: PeerId
    layers: tuple[int, int]
    rank: int = 0
    shares: tuple[int, ...] = ()

    def layer_tokens(self, positions: int) -> int:
        return rank_part((self.layers[1] - self.layers[0]) * positions, self.rank, self.shares)


@dataclass(slots=True, eq=False)
class Active:
    """A plan that answered its probe."""

    plan_id: str
    model: KnownModel
    mode: str
    stages: list[dict[str, Any]]
    route: Route
    engine: EngineHost
    vocabulary_unit: int
    cells: Cells
    session_tokens: int
    probe_s: float = 0.0
    used_s: float = 0.0
    """When a request last chose it or ended on it, by the monotonic clock."""
    lost: P2PNodeError | None = None
    on_lost: list[Callable[[P2PNodeError], None]] = field(default_factory=list)
    close: list[Callable[[], Any]] = field(default_factory=list)
    release: list[Callable[[], Awaitable[None]]] = field(default_factory=list)
    """What other devices do for this plan beside stages; ended with it."""
    announce: Announce | None = None
    """Tells the other devices of a ring which request a session is for; they compute for no other."""
    prefixes: Prefixes | None = None
    """What this plan keeps of finished requests; None where states cannot be moved in and out."""
    decoder: PeerId | None = None
    """The device that computes what follows a prompt, where others compute the prompt."""
    options: str = ""
    """Engine options it was loaded with, where they are not the defaults."""
    units: tuple[int, ...] = ()
    """Of the engine here; another plan of the model may take their place."""

    @property
    def places(self) -> list[Place]:
        """What computes for it; llama.cpp's RPC workers count nothing, so the head's device stands for them."""
        return [
            Place(
                self.plan_id,
                PeerId(stage["peer"]),
                (int(stage["layers"][0]), int(stage["layers"][1])),
                int(stage.get("rank", 0)),
                tuple(stage.get("shares", ())),
            )
            for stage in (self.stages[:1] if self.mode == "tensor_rpc" else self.stages)
        ]

    @property
    def is_usable(self) -> bool:
        return self.lost is None and self.engine.is_up and self.engine.has(self.units)

    def lose(self, error: P2PNodeError) -> None:
        """Everything under way on it fails with this; the first reason stands."""
        if self.lost is None:
            self.lost = error
            for tell in self.on_lost:
                tell(error)

    def end(self, error: P2PNodeError) -> None:
        """Lost, and its streams and watchers with it."""
        self.lose(error)
        closers, self.close = self.close, []
        for close in closers:
            close()

    def follow_engine(self, device: str) -> None:
        """A plan is lost with the engine that samples for it, and with a unit that another plan replaces."""

        def died(reason: str) -> None:
            self.lose(StageLost(f"the engine on {device} died ({reason})"))

        def unloads(unit_id: int) -> None:
            if unit_id in self.units:
                self.lose(StageLost(f"another plan took the place of its layers on {device}"))

        self.engine.listeners.append(died)
        self.engine.unload_listeners.append(unloads)
        self.close.append(lambda: self.engine.listeners.remove(died))
        self.close.append(lambda: self.engine.unload_listeners.remove(unloads))


def mode_of(remote: Sequence[StagePart], *, has_own: bool) -> str:
    if not remote:
        return "local"
    if not any(part.followers for part in remote):
        return "pipeline"
    return "tensor" if len(remote) == 1 and not has_own else "hybrid"


def stage_view(name: str, peer: PeerId, first: int, end: int, extra: dict[str, Any]) -> dict[str, Any]:
    """A stage as faces show it."""
    return {
        "peer": peer,
        "name": name,
        "layers": [first, end],
        **{k: v for k, v in extra.items() if k != "layers"},
    }
