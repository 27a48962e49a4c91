"""A request while it runs: what is shown of it, who worked for it since when, and how long a recovery took."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from p2pnode.compute.scheduler import Session
from p2pnode.facade import GenerateRequest
from p2pnode.node.active import Active, Place
from p2pnode.node.catalog import KnownModel
from p2pnode.node.request_spans import RequestSpans, untraced


class Standing(Protocol):
    """What the record and faces say of what computes a request."""

    @property
    def plan_id(self) -> str: ...

    @property
    def mode(self) -> str: ...

    @property
    def model(self) -> KnownModel: ...

    @property
    def stages(self) -> list[dict[str, Any]]: ...


@dataclass(slots=True)
class Served:
    """A request while it runs, for `ps` and the live view."""

    request_id: str
    request: GenerateRequest
    session: Session
    active: Standing
    started_s: float
    recoveries: int = 0
    work: dict[Place, int] = field(default_factory=dict)
    """Positions fed to each place since the last unit was settled: by this the price is divided."""
    units: int = 0
    """Delivered and settled."""
    unit_shares: dict[str, int] = field(default_factory=dict)
    """Who earned what of them."""
    is_counted: bool = False
    """Whether a device computes no further than receipts were signed for."""
    generated_before: int = 0
    fruitless: int = 0
    """Recoveries since then that gave no token: so many are tried, while an answer that goes on may move for ever."""
    rows_before: int = 0
    rows_counted: int = 0
    recovery: Recovery | None = None
    """A device of it was lost, and no token has come since."""

    @property
    def tokens_per_s(self) -> float | None:
        """None while it stands still; a speed sinks when nothing comes, for whatever reason."""
        session = self.session
        if self.recovery is not None or not session.decode_s:
            return None
        silent_s = time.perf_counter() - session.last_token_s if session.last_token_s else 0.0
        return len(session.generated) / (session.decode_s + silent_s)

    def view(self) -> dict[str, Any]:
        session, speed = self.session, self.tokens_per_s
        return {
            "request_id": self.request_id,
            "model": self.active.model.name,
            "mode": self.active.mode,
            "plan_id": self.active.plan_id,
            "state": "running" if self.recovery is None else "recovering",
            "recovering_s": None if self.recovery is None else round(self.recovery.since_s, 3),
            "caller": self.request.caller,
            "stages": self.active.stages,
            "prompt_tokens": len(session.prompt),
            "prefilled_tokens": session.cached + session.prefilled,
            "completion_tokens": len(session.generated),
            "tokens_per_s": round(speed, 2) if speed else None,
            "age_s": round(time.monotonic() - self.started_s, 3),
            "recoveries": self.recoveries,
        }

    def unit_settled(self, shares: Mapping[str, int]) -> None:
        self.units += 1
        self.work = {}
        for account, share in shares.items():
            self.unit_shares[account] = self.unit_shares.get(account, 0) + share


@dataclass(slots=True)
class Running(Served):
    """A request computed by engines, here or along a ring."""

    active: Active
    spans: RequestSpans = field(default_factory=untraced)

    def view(self) -> dict[str, Any]:
        return {**Served.view(self), "engine": self.active.options}

    def begin_work(self) -> None:
        """A plan begins to work on the session as it stands."""
        self.rows_before, self.rows_counted = len(self.session.generated), 0

    def count_work(self) -> None:
        """Credit the present plan's places with what they computed since this was asked last."""
        # The last token that came was sampled, never fed.
        rows = max(self.session.prefilled + len(self.session.generated) - self.rows_before - 1, 0)
        # Where others compute prompts, each is credited with its part; what a cache began, the decoder computes alone.
        prompt = 0 if self.session.cached else self.session.prefilled
        early = min(rows, prompt) - min(self.rows_counted, prompt)
        late = rows - self.rows_counted - early
        for place in self.active.places:
            decoder = self.active.decoder
            done = early + late if decoder is None else late if place.peer == decoder else early
            self.work[place] = self.work.get(place, 0) + done
        self.rows_counted = rows


class Recovery:
    """When what happened, in milliseconds after the last token that came."""

    def __init__(self, last_token_s: float) -> None:
        now_s = time.perf_counter()
        self._since_s = last_token_s or now_s
        self._detected_ms = self._ms()
        self._replanned_ms = self._refilled_ms = self._detected_ms

    @property
    def since_s(self) -> float:
        """Seconds since the last token that came."""
        return time.perf_counter() - self._since_s

    def _ms(self) -> int:
        return int(self.since_s * 1000)

    def replanned(self) -> None:
        self._replanned_ms = self._ms()

    def refilled(self) -> None:
        self._refilled_ms = self._ms()

    def times_ms(self) -> tuple[int, int, int, int]:
        return (self._detected_ms, self._replanned_ms, self._refilled_ms, self._ms())
