"""How long each hop of a running answer takes: asked of the engines while somebody waits for one.

Engines count what they compute. This head asks the devices of a plan for their counts twice a second while the plan
answers, and once when it stops; differences are the time of each hop. It costs one small message a device, and
nothing on the way of the tokens. What is neither is wires and waiting. None of it is recorded.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from p2pnode import limits
from p2pnode.errors import P2PNodeError
from p2pnode.node.active import Active
from p2pnode.node.calls import ProgressCallback
from p2pnode.node.hosted_stage import UNIT
from p2pnode.node.hosting import Hosting
from p2pnode.node.links import Links
from p2pnode.node.rings import FIRST, OUTPUT
from p2pnode.node.running import Running
from p2pnode.node.whole import WHOLE
from p2pnode.tracing import OFF, Tracing, Value
from p2pnode.units import PeerId

Say = Callable[[dict[str, Any]], None]
Counts = tuple[int, int]
"""Steps and nanoseconds of computing, since the unit was loaded."""
Key = tuple[str, int, int]
"""Device and layers; `[0, 0)` is the output of the head."""


@dataclass(slots=True)
class Trace:
    """One request's way, in seconds after it was accepted."""

    request_id: str
    plan_id: str
    model: str
    mode: str
    begun_s: float
    stages: list[dict[str, Any]]
    prompt_tokens: int
    samples: list[dict[str, Any]] = field(default_factory=list)
    prefill_s: float = 0.0
    decode_s: float = 0.0
    tokens: int = 0
    is_over: bool = False
    parent: str = ""
    """Traceparent of the request; empty where nobody traces."""
    begun_ns: int = 0


@dataclass(slots=True)
class _Seen:
    """A plan as it was at the last look."""

    counts: dict[Key, Counts]
    at_s: float
    tokens: int = 0
    decode_s: float = 0.0


class Hops:
    def __init__(
        self,
        *,
        me: PeerId,
        links: Links,
        hosting: Hosting,
        active: Callable[[], Iterable[Active]],
        running: Callable[[], Mapping[str, Running]],
        say: Say,
        clock: Callable[[], float],
        tracing: Tracing = OFF,
    ) -> None:
        self._me = me
        self._links = links
        self._hosting = hosting
        self._active = active
        self._running = running
        self._say = say
        self._clock = clock
        self._tracing = tracing
        self._seen: dict[str, _Seen] = {}
        self._busy: set[str] = set()
        self.traces: OrderedDict[str, Trace] = OrderedDict()
        self.totals: dict[str, Counts] = {}
        """By stage (`0`, `1` …, `output`): steps and nanoseconds since this node started."""
        links.serve("stage.times", self._times)

    async def run(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(limits.HOPS_LOOK_S)

    # --- counting ------------------------------------------------------------------------------------
    async def _times(self, peer: PeerId, arguments: Mapping[str, Any], _: ProgressCallback) -> dict[str, Any]:
        """What the stages of the asking head computed on this device."""
        plan_id = str(arguments.get("plan_id", ""))
        rows = []
        for key, hosted in self._hosting.stages.items():
            if key[0] == plan_id and hosted.order.head == peer and hosted.engine.is_up:
                counts = counts_of(await hosted.engine.client.stats(), hosted.engine.unit(UNIT))
                rows.append({"layers": list(hosted.layers), "steps": counts[0], "compute_ns": counts[1]})
        return {"stages": rows}

    async def _counts(self, active: Active) -> dict[Key, Counts]:
        """Of every device of a plan; one that does not answer is left out."""
        found: dict[Key, Counts] = {}
        mine = [stage["layers"] for stage in active.stages if stage["peer"] == self._me]
        engine = active.engine
        stats = await engine.client.stats()
        for name in (FIRST, WHOLE):
            if name in engine.infos and mine:
                found[(self._me, mine[0][0], mine[0][1])] = counts_of(stats, engine.unit(name))
        if OUTPUT in engine.infos:
            found[(self._me, 0, 0)] = counts_of(stats, engine.unit(OUTPUT))
        others = {PeerId(str(stage["peer"])) for stage in active.stages}
        answers = await asyncio.gather(
            *(self._ask(peer, active.plan_id) for peer in sorted(others)), return_exceptions=True
        )
        for peer, answer in zip(sorted(others), answers, strict=True):
            if isinstance(answer, P2PNodeError):
                continue
            if isinstance(answer, BaseException):
                raise answer
            for first, end, steps, compute_ns in answer:
                found[(peer, first, end)] = (steps, compute_ns)
        return found

    async def _ask(self, peer: PeerId, plan_id: str) -> list[tuple[int, int, int, int]]:
        answer = await self._links.call(peer, "stage.times", {"plan_id": plan_id})
        rows = answer.get("stages")
        found = []
        for row in rows[: limits.HOSTED_STAGES_MAX] if isinstance(rows, list) else []:
            values = [*row.get("layers", ()), row.get("steps"), row.get("compute_ns")]
            if len(values) == 4 and all(isinstance(value, int) for value in values):
                found.append((values[0], values[1], values[2], values[3]))
        return found

    # --- looking -------------------------------------------------------------------------------------
    async def look(self) -> None:
        """Plans that answer now, that answered at the last look, or that are new."""
        running: dict[str, list[Running]] = {}
        for request in self._running().values():
            running.setdefault(request.active.plan_id, []).append(request)
            self._follow(request)
        plans = {active.plan_id: active for active in self._active() if active.is_usable}
        for plan_id in [plan_id for plan_id in self._seen if plan_id not in plans]:
            del self._seen[plan_id]
        for plan_id, active in plans.items():
            if plan_id in running or plan_id in self._busy or plan_id not in self._seen:
                await self._look_at(active, running.get(plan_id, []))
        self._busy = set(running)
        for trace in self.traces.values():
            if not trace.is_over and trace.request_id not in self._running():
                trace.is_over = True
                self._tell_hops(trace)

    def _tell_hops(self, trace: Trace) -> None:
        """A span a hop for the whole answer, and one for sampling: what its engine computed meanwhile, in sum."""
        if not self._tracing.is_on or not trace.parent:
            return
        ended_ns = trace.begun_ns + int((trace.prefill_s + trace.decode_s) * 1e9)
        for key, attributes in in_sum(trace).items():
            name = "sampling" if key == "output" else f"hop {key}"
            self._tracing.past(name, trace.parent, trace.begun_ns, ended_ns, attributes)

    def _follow(self, request: Running) -> None:
        trace = self.traces.get(request.request_id)
        session = request.session
        if trace is None:
            active = request.active
            trace = self.traces[request.request_id] = Trace(
                request.request_id, active.plan_id, active.model.name, active.mode, request.started_s, active.stages,
                len(session.prompt), parent=request.spans.traceparent,
                begun_ns=self._tracing.now_ns() - int((self._clock() - request.started_s) * 1e9),
            )  # fmt: skip
            while len(self.traces) > limits.TRACES_KEPT_MAX:
                self.traces.popitem(last=False)
        self._note(trace, request)

    @staticmethod
    def _note(trace: Trace, request: Running) -> None:
        session = request.session
        trace.prefill_s, trace.decode_s, trace.tokens = (
            session.prefill_s,
            session.decode_s,
            len(session.generated),
        )

    def finished(self, request: Running) -> None:
        """The last word of a request that came to its end, whether or not it was seen on its way."""
        self._follow(request)
        self._busy.add(request.active.plan_id)

    async def _look_at(self, active: Active, requests: list[Running]) -> None:
        try:
            counts = await self._counts(active)
        except P2PNodeError:
            return  # it is being lost; whoever leads the request says so
        now_s = self._clock()
        tokens = sum(len(request.session.generated) for request in requests)
        decode_s = sum(request.session.decode_s for request in requests)
        before, now = self._seen.get(active.plan_id), _Seen(counts, now_s, tokens, decode_s)
        self._seen[active.plan_id] = now
        if not (requests or active.plan_id in self._busy):
            return
        if before is None:  # it answered before it was looked at: all that its units computed is of that
            begun_s = [trace.begun_s for trace in self.traces.values() if trace.plan_id == active.plan_id]
            before = _Seen({}, min(begun_s, default=now_s))
        sample = self._difference(active, before, now)
        if sample is None:
            return
        for request_id in {r.request_id for r in requests} | {
            trace.request_id
            for trace in self.traces.values()
            if not trace.is_over and trace.plan_id == active.plan_id
        }:
            trace = self.traces.get(request_id)
            if trace is not None and len(trace.samples) < limits.TRACE_SAMPLES_MAX:
                trace.samples.append(
                    {"from_s": before.at_s - trace.begun_s, "to_s": now_s - trace.begun_s, **sample}
                )
        self._say({"kind": "hops", "data": {"plan_id": active.plan_id, "model": active.model.name, **sample}})

    def _difference(self, active: Active, before: _Seen, now: _Seen) -> dict[str, Any] | None:
        hops: list[dict[str, Any]] = []
        order = [(str(s["peer"]), int(s["layers"][0]), int(s["layers"][1])) for s in active.stages]
        for number, key in enumerate([*order, (str(self._me), 0, 0)]):
            if key not in now.counts:
                continue
            was = before.counts.get(key, (0, 0))
            if now.counts[key][0] < was[0]:
                was = (0, 0)  # an engine that was started again counts from the beginning
            steps, spent_ns = now.counts[key][0] - was[0], now.counts[key][1] - was[1]
            stage = str(number) if number < len(order) else "output"
            total = self.totals.get(stage, (0, 0))
            self.totals[stage] = (total[0] + steps, total[1] + spent_ns)
            if steps > 0:
                hops.append(
                    {
                        "stage": stage, "peer": key[0], "name": self._links.name_of(PeerId(key[0])),
                        "layers": list(key[1:]), "steps": steps, "step_ms": round(spent_ns / steps / 1e6, 3),
                        "busy": round(min(1.0, spent_ns / 1e9 / max(1e-6, now.at_s - before.at_s)), 4),
                    }
                )  # fmt: skip
        if not hops:
            return None
        tokens, decode_s = now.tokens - before.tokens, now.decode_s - before.decode_s
        token_ms = round(decode_s / tokens * 1000, 3) if tokens > 0 and decode_s > 0 else None
        computing_ms = sum(hop["step_ms"] for hop in hops)
        rest_ms = None if token_ms is None else round(max(0.0, token_ms - computing_ms), 3)
        return {"hops": hops, "token_ms": token_ms, "rest_ms": rest_ms}


def in_sum(trace: Trace) -> dict[str, dict[str, Value]]:
    """By stage: its device, and the steps and seconds that all looks at a request counted."""
    found: dict[str, dict[str, Value]] = {}
    for hop in (hop for sample in trace.samples for hop in sample["hops"]):
        row = found.setdefault(
            hop["stage"],
            {
                "p2pnode.peer": hop["peer"],
                "p2pnode.device": hop["name"],
                "p2pnode.steps": 0,
                "p2pnode.compute_s": 0.0,
            },
        )
        if hop["layers"][1]:
            row["p2pnode.layers"] = f"{hop['layers'][0]}-{hop['layers'][1] - 1}"
        row["p2pnode.steps"] = int(str(row["p2pnode.steps"])) + int(hop["steps"])
        spent_s = hop["steps"] * hop["step_ms"] / 1000
        row["p2pnode.compute_s"] = round(float(str(row["p2pnode.compute_s"])) + spent_s, 6)
    return found


def counts_of(stats: Mapping[str, Any], unit: int) -> Counts:
    units = stats["units"]
    counters = units.get(unit) or units.get(str(unit)) or {}
    return int(counters.get("decodes", 0)), int(counters.get("compute_ns", 0))


def chrome_trace(trace: Trace) -> dict[str, Any]:
    """The way of one request as Perfetto and Chrome's tracing draw it: times in microseconds.

    Its phases are spans; how busy each hop was between two looks are counters, because that is what is known.
    """
    events: list[dict[str, Any]] = [
        {
            "ph": "M",
            "pid": 1,
            "tid": 0,
            "name": "process_name",
            "args": {"name": f"{trace.model}, {trace.mode}"},
        },
        {"ph": "M", "pid": 1, "tid": 1, "name": "thread_name", "args": {"name": trace.request_id}},
    ]
    decode_begun_s = trace.prefill_s
    for name, begun_s, took_s, args in (
        ("prefill", 0.0, trace.prefill_s, {"tokens": trace.prompt_tokens}),
        ("decode", decode_begun_s, trace.decode_s, {"tokens": trace.tokens}),
    ):
        if took_s > 0:
            span = {
                "ph": "X",
                "pid": 1,
                "tid": 1,
                "name": name,
                "ts": begun_s * 1e6,
                "dur": took_s * 1e6,
                "args": args,
            }
            events.append(span)
    for sample in trace.samples:
        at_us = max(0.0, sample["from_s"]) * 1e6
        for hop in sample["hops"]:
            where = (
                "output" if hop["stage"] == "output" else f"layers {hop['layers'][0]}–{hop['layers'][1] - 1}"
            )
            name = f"{hop['name']} {where}"
            for what, value in (("busy %", hop["busy"] * 100), ("ms a step", hop["step_ms"])):
                counter = {"ph": "C", "pid": 1, "name": f"{name}: {what}", "ts": at_us}
                events.append({**counter, "args": {what: round(value, 3)}})
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"request_id": trace.request_id, "stages": [
            {"name": stage["name"], "layers": stage["layers"]} for stage in trace.stages
        ]},
    }  # fmt: skip
