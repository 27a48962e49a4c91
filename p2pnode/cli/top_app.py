"""The live mesh on a whole terminal (Textual): devices, plans with their hops, answers, and what is recorded."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import DataTable, Footer, RichLog, Sparkline, Static

from p2pnode.cli.output import layers_text, one_line, short, since, size_text
from p2pnode.cli.progress import ProgressLine
from p2pnode.cli.top import layer_bar, pulse, snapshot, speed_text
from p2pnode.endpoint import Endpoint
from p2pnode.errors import P2PNodeError

_SPEEDS_KEPT = 120
_RETRY_S = 2.0
_FRESH_S = 2.5


class MeshTop(App[None]):
    """Asks the node every `interval_s`, and follows its live feed between."""

    TITLE = "p2pnode"
    CSS = """
    #pulse { height: 1; padding: 0 1; text-style: bold; }
    #speed { height: 3; margin: 0 1; }
    #now { height: auto; max-height: 12; padding: 0 1; }
    #tables { height: 1fr; }
    #devices { width: 3fr; }
    #answers { width: 2fr; }
    #events { height: 8; border-top: solid $primary; }
    DataTable { height: 1fr; }
    .-narrow #tables { layout: vertical; }
    .-narrow #devices, .-narrow #answers { width: 1fr; }
    """
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (110, "-wide")]  # noqa: RUF012 - Textual declares it so
    """Side by side the two tables need so many columns."""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q,escape,ctrl+c", "quit", "Leave"),
        Binding("space", "hold", "Hold"),
        Binding("e", "events", "Events"),
    ]

    def __init__(self, node: Endpoint, interval_s: float) -> None:
        super().__init__()
        self._node = node
        self._interval_s = interval_s
        self._held = False
        self._speeds: deque[float] = deque([0.0] * 2, maxlen=_SPEEDS_KEPT)
        self._view: dict[str, Any] = {}
        self._hops: tuple[float, dict[str, Any]] | None = None
        self._loading: dict[str, dict[str, Any]] = {}
        self._line = ProgressLine(lambda _: None)
        self._leaving = threading.Event()

    def compose(self) -> ComposeResult:
        yield Static("…", id="pulse")
        yield Sparkline(list(self._speeds), id="speed")
        yield Static("", id="now")
        with Horizontal(id="tables"):
            yield DataTable(id="devices", cursor_type="row", zebra_stripes=True)
            yield DataTable(id="answers", cursor_type="row", zebra_stripes=True)
        with Vertical():
            yield RichLog(id="events", max_lines=500, wrap=False)
        yield Footer()

    def on_mount(self) -> None:
        self.query_one("#devices", DataTable).add_columns(
            "DEVICE", "STATE", "RTT", "SENT", "RECEIVED", "SEEN"
        )
        self.query_one("#answers", DataTable).add_columns("ANSWER", "MODEL", "MODE", "TOKENS", "TOK/S")
        self.query_one("#events", RichLog).border_title = "recorded"
        # Not Textual's workers: leaving would wait for one that reads a silent feed.
        for work in (self._ask, self._follow):
            threading.Thread(target=work, name=f"top {work.__name__}", daemon=True).start()

    def on_unmount(self) -> None:
        self._leaving.set()

    # --- threads -------------------------------------------------------------------------------------
    def _ask(self) -> None:
        while not self._leaving.is_set():
            try:
                view = snapshot(self._node)
            except P2PNodeError as error:
                self._tell(self._lost, error.message)
            else:
                self._tell(self._show, view)
            self._leaving.wait(self._interval_s)

    def _follow(self) -> None:
        while not self._leaving.is_set():
            try:
                feed: Iterator[dict[str, Any]] = self._node.stream("/api/live")
                for item in feed:
                    if self._leaving.is_set():
                        return
                    self._tell(self._heard, item)
            except P2PNodeError:
                pass  # the other thread says that the node is away
            self._leaving.wait(_RETRY_S)

    def _tell(self, what: Any, about: Any) -> None:
        if not self._leaving.is_set():
            with contextlib.suppress(RuntimeError):  # it was left between the two lines
                self.call_from_thread(what, about)

    # --- showing -------------------------------------------------------------------------------------
    def _lost(self, message: str) -> None:
        self.query_one("#pulse", Static).update(Text(f"{one_line(message)}; trying again", style="red"))

    def _show(self, view: dict[str, Any]) -> None:
        self._view = view
        if self._held:
            return
        self._speeds.append(sum(float(row.get("tokens_per_s") or 0) for row in view["running"]))
        self.query_one("#pulse", Static).update(Text(pulse(view)))
        self.query_one("#speed", Sparkline).data = list(self._speeds)
        self._show_now()
        devices = self.query_one("#devices", DataTable)
        devices.clear()
        for peer in view["peers"]:
            rtt = peer.get("rtt_ms")
            is_up = peer.get("self") or peer.get("state") == "online"
            devices.add_row(
                Text(one_line(str(peer.get("name") or short(peer["peer"]))), style="" if is_up else "dim"),
                "this device" if peer.get("self") else str(peer.get("state", "-")),
                f"{rtt:.1f} ms" if isinstance(rtt, int | float) and not peer.get("self") else "-",
                size_text(peer.get("bytes_sent")),
                size_text(peer.get("bytes_received")),
                "now" if peer.get("self") else since(peer.get("last_seen_ms")),
            )
        answers = self.query_one("#answers", DataTable)
        answers.clear()
        for row in view["running"]:
            answers.add_row(
                Text(one_line(str(row.get("request_id", "-")))[-12:]),
                Text(one_line(str(row.get("model", "-")))),
                str(row.get("mode", "-")),
                str(row.get("completion_tokens", "-")),
                speed_text(row),
            )

    def _show_now(self) -> None:
        """Plans with what each hop takes now, and models on their way."""
        parts: list[Text] = []
        hops = {}
        if self._hops is not None and time.monotonic() - self._hops[0] < _FRESH_S:
            hops = {hop["stage"]: hop for hop in self._hops[1].get("hops", [])}
        for plan in self._view.get("plans", []):
            parts.append(Text(f"{one_line(str(plan.get('model')))}: {plan.get('mode')}", style="bold"))
            parts.append(Text.assemble(*layer_bar(plan["stages"])))
            for number, stage in enumerate(plan["stages"]):
                hop = hops.get(str(number))
                took = f"  {hop['step_ms']:.2f} ms a step, {hop['busy']:.0%} busy" if hop else ""
                words = f"  {one_line(str(stage.get('name')))} {layers_text(stage.get('layers'))}{took}"
                parts.append(Text(words, style="green" if hop else "dim"))
        now_s = time.monotonic()
        parts += [Text(self._line.text(view, now_s), style="yellow") for view in self._loading.values()]
        self.query_one("#now", Static).update(
            Text("\n").join(parts) if parts else Text("no plan yet", style="dim")
        )

    def _heard(self, item: dict[str, Any]) -> None:
        kind, data = item.get("kind"), item.get("data") or {}
        if kind == "event":
            words = f"{item.get('index', '')!s:>6}  {item.get('type', data.get('type', ''))}"
            self.query_one("#events", RichLog).write(Text(one_line(words)))
        elif kind == "hops":
            self._hops = (time.monotonic(), data)
        elif kind in ("loading", "transfer"):
            if data.get("state") == "over":
                self._loading.pop(f"{kind} {data.get('model')}", None)
            else:
                self._loading[f"{kind} {data.get('model')}"] = data
        if kind in ("hops", "loading", "transfer") and not self._held:
            self._show_now()

    # --- keys ----------------------------------------------------------------------------------------
    def action_hold(self) -> None:
        """Space: the picture stands still, so that it can be read."""
        self._held = not self._held
        self.query_one("#pulse", Static).set_class(self._held, "held")
        if self._held:
            words = f"{pulse(self._view)}   (held: Space goes on)"
            self.query_one("#pulse", Static).update(Text(words, style="reverse"))
        elif self._view:
            self._show(self._view)

    def action_events(self) -> None:
        log = self.query_one("#events", RichLog)
        log.display = not log.display
