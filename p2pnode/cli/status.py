"""`p2pnode status`: this node in one screen."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from p2pnode.cli.output import (
    connect,
    layers_text,
    node_options,
    one_line,
    print_json,
    print_pairs,
    size_text,
)


@click.command()
@node_options
def status(data: Path | None, api: str | None, as_json: bool) -> None:
    """This node in one screen."""
    node = connect(data, api)
    view = node.get("/status")
    if as_json:
        print_json(view)
        return
    print_pairs("Status", status_pairs(view, node.url, now_s=time.time()))


def status_pairs(view: Mapping[str, Any], url: str, *, now_s: float) -> list[tuple[str, str]]:
    """What /status says, for a person; --json has every field."""
    mesh, log = view.get("mesh") or {}, view.get("log") or {}
    pairs = [
        ("device", f"{view.get('name', '-')}, version {view.get('version', '-')}"),
        ("peer id", str(view.get("peer_id", "-"))),
        ("panel", url),
        ("mesh", f"{mesh.get('name') or '-'} as {mesh.get('role') or '-'}, {mesh.get('members', 0)} members"),
        ("state", state_text(view)),
    ]
    if started := view.get("started_ms"):
        pairs.append(("up for", span_text(now_s - started / 1000)))
    pairs += [("address", str(address)) for address in view.get("addresses") or ["none"]]
    if isinstance(memory := view.get("memory"), dict) and "allowed_bytes" in memory:
        pairs.append(("memory", memory_text(memory)))
    pairs += machine_pairs(view.get("capability") or {})
    for stage in view.get("hosted_stages") or []:
        up = "" if stage.get("up", True) else ", not running"
        model = stage.get("model") or stage.get("plan_id") or "-"
        pairs.append(("holds", f"layers {layers_text(stage.get('layers'))} of {model}{up}"))
    for engine in view.get("engines") or []:
        pairs.append(("engine", f"{engine.get('purpose')}{'' if engine.get('up') else ', not running'}"))
    pairs += [
        ("server", " ".join(f"{k} {v}" for k, v in server.items())) for server in view.get("backends") or []
    ]
    record = f"{log.get('size', 0)} events in {log.get('blocks', 0)} sealed blocks"
    if rebuilding := log.get("rebuilding"):
        record += f", read anew: {rebuilding.get('folded', 0)} of {rebuilding.get('size', 0)}"
    answers = f"{view.get('running', 0)} being written now"
    if waiting := view.get("recovering"):
        answers += f", {waiting} of them recovering from a lost device"
    pairs += [("record", record), ("answers", answers)]
    return [(name, one_line(value)) for name, value in pairs]


def state_text(view: Mapping[str, Any]) -> str:
    """Ready or not, what is missing, and whether it computes for others."""
    words = ["ready" if view.get("ready") else "not ready yet"]
    words += [str(item) for item in view.get("missing") or []]
    if (state := view.get("state", "active")) != "active":
        words.append(str(state))
    if says := (view.get("schedule") or {}).get("says"):
        words.append(str(says))
    return ", ".join(words)


def machine_pairs(power: Mapping[str, Any]) -> list[tuple[str, str]]:
    if not power:
        return []
    words = [f"{power.get('cores', '-')} cores, {power.get('threads', '-')} of them compute"]
    words += [str(power[name]) for name in ("system", "machine") if power.get(name)]
    words += ["on battery"] * bool(power.get("on_battery")) + ["metered"] * bool(power.get("is_metered"))
    free = (
        f"{size_text(power.get('memory_free_bytes'))} of {size_text(power.get('memory_total_bytes'))} memory"
    )
    pairs = [
        ("machine", ", ".join(words)),
        ("free", f"{free}, {size_text(power.get('disk_free_bytes'))} disk"),
    ]
    if power.get("gpu_memory_total_bytes"):
        gpu = f"{size_text(power.get('gpu_memory_free_bytes'))} of {size_text(power['gpu_memory_total_bytes'])} free"
        pairs.append(("GPU", f"{gpu}, computes {power.get('gpu_layers', 0)} layers"))
    if rate := power.get("memory_bytes_per_s"):
        pairs.append(("speed", f"memory read at {size_text(rate)}/s"))
    return [*pairs, ("llama.cpp", str(power.get("llama", "-")))]


def memory_text(memory: Mapping[str, int]) -> str:
    """What is resident beside what may be: the share of the models and a fixed amount for everything else."""
    share, allowed = memory["share_bytes"], memory["allowed_bytes"]
    return (
        f"{size_text(memory['node_and_engines_bytes'])} resident, node and engines; at most {size_text(allowed)}: "
        f"{size_text(share)} share of the models and {size_text(allowed - share)}; "
        f"full conversations come to {size_text(memory.get('conversations_bytes_max', 0))}"
    )


def span_text(seconds: float) -> str:
    whole = max(0, round(seconds))
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if whole >= size:
            return f"{whole // size} {unit}"
    return f"{whole} s"
