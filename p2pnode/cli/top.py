"""`p2pnode top`: the mesh while it works; with Textual a whole screen, without it a picture drawn again and again."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from p2pnode.cli.output import (
    Number,
    connect,
    layers_text,
    node_options,
    one_line,
    print_json,
    short,
    since,
    size_text,
)
from p2pnode.endpoint import Endpoint

if TYPE_CHECKING:
    from rich.console import Group

_BAR_CELLS = 32
_COLORS = ("cyan", "green", "magenta", "yellow", "blue", "red")


def snapshot(node: Endpoint) -> dict[str, Any]:
    """Everything one picture needs, in one document."""
    sessions = node.get("/sessions")
    running = [
        row for row in sessions["sessions"] if row.get("state") not in ("finished", "failed", "cancelled")
    ]
    return {
        "status": node.get("/status"),
        "peers": node.get("/peers")["peers"],
        "plans": [plan for plan in node.get("/plans")["plans"] if plan.get("state") == "active"],
        "running": running,
        "finished": sessions.get("finished", 0),
        "failed": sessions.get("failed", 0),
    }


def layer_bar(stages: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """(cells, colour) of each stage, together as wide as the bar."""
    total = max((stage["layers"][1] for stage in stages), default=0)
    if not total:
        return []
    edges = [round(_BAR_CELLS * stage["layers"][1] / total) for stage in stages]
    starts = [0, *edges[:-1]]
    return [
        ("█" * max(1, end - start), _COLORS[index % len(_COLORS)])
        for index, (start, end) in enumerate(zip(starts, edges, strict=True))
    ]


def speed_text(row: dict[str, Any]) -> str:
    """Of an answer whose device was lost, that it is not given up."""
    return "recovering" if row.get("state") == "recovering" else str(row.get("tokens_per_s") or "-")


def pulse(view: dict[str, Any]) -> str:
    """The mesh in one line."""
    peers = view["peers"]
    up = sum(1 for peer in peers if peer.get("self") or peer.get("state") == "online")
    speed = sum(float(row.get("tokens_per_s") or 0) for row in view["running"])
    name = one_line(str(view["status"].get("name", "-")))
    count = len(view["running"])
    head = f"{name}: {up} of {len(peers)} devices, {count} answer{'' if count == 1 else 's'} being written"
    return f"{head}, {speed:.1f} tokens/s, {view['finished']} done, {view['failed']} failed"


def picture(view: dict[str, Any]) -> Group:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    peers, head = view["peers"], pulse(view)
    devices = Table("DEVICE", "STATE", "RTT", "SENT", "RECEIVED", "SEEN", box=None, header_style="bold")
    for peer in peers:
        rtt = peer.get("rtt_ms")
        devices.add_row(
            Text(peer.get("name") or short(peer["peer"])),
            "this device" if peer.get("self") else str(peer.get("state", "-")),
            f"{rtt:.1f} ms" if isinstance(rtt, int | float) and not peer.get("self") else "-",
            size_text(peer.get("bytes_sent")),
            size_text(peer.get("bytes_received")),
            "now" if peer.get("self") else since(peer.get("last_seen_ms")),
        )
    parts: list[Any] = [Text(head, style="bold"), Text(), devices]
    for plan in view["plans"]:
        bar = Text.assemble(*layer_bar(plan["stages"]))
        names = ", ".join(
            f"{stage.get('name')} {layers_text(stage.get('layers'))}" for stage in plan["stages"]
        )
        parts += [
            Text(),
            Text(f"{plan.get('model')}: {plan.get('mode')}", style="bold"),
            bar,
            Text(names, style="dim"),
        ]
    if view["running"]:
        answers = Table("ANSWER", "MODEL", "MODE", "TOKENS", "TOK/S", box=None, header_style="bold")
        for row in view["running"]:
            answers.add_row(
                Text(str(row.get("request_id", "-"))[-16:]),
                Text(str(row.get("model", "-"))),
                str(row.get("mode", "-")),
                str(row.get("completion_tokens", "-")),
                speed_text(row),
            )
        parts += [Text(), answers]
    return Group(*parts)


@click.command()
@click.option(
    "--interval",
    type=Number(0.2, 60),
    default=1.0,
    show_default=True,
    help="Seconds between pictures.",
)
@click.option("--once", is_flag=True, help="One picture, then leave.")
@click.option("--plain", is_flag=True, help="Draw without Textual also when it is installed.")
@node_options
def top(interval: float, once: bool, plain: bool, data: Path | None, api: str | None, as_json: bool) -> None:
    """Devices, plans, hops and answers while they happen; q or Ctrl-C leaves.

    The whole screen needs Textual (pip install 'p2pnode[top]'); without it a simpler picture is drawn.
    """
    node = connect(data, api)
    if as_json:
        print_json(snapshot(node))
        return
    from rich.console import Console
    from rich.live import Live

    view = picture(snapshot(node))
    if once or not sys.stdout.isatty():
        Console().print(view)
        return
    if not plain:
        try:
            from p2pnode.cli.top_app import MeshTop
        except ImportError:
            pass  # Textual is an extra: the plain picture says the same
        else:
            MeshTop(node, interval).run()
            return
    pause = threading.Event()
    with Live(view, screen=True, auto_refresh=False) as live:
        while not pause.wait(interval):
            live.update(picture(snapshot(node)), refresh=True)
