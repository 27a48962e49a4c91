"""What a command prints: one JSON document or a table; errors as one red line and a hint."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from p2pnode.errors import P2PNodeError

if TYPE_CHECKING:
    from p2pnode.endpoint import Endpoint

Command = TypeVar("Command", bound=Callable[..., Any])


class Number(click.FloatRange):
    """A number within bounds; NaN is within all of them, and nothing that anybody means."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number


def node_options(command: Command) -> Command:
    """--data, --api and --json, in this order, as every command about a node has them."""
    command = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(command)
    command = click.option("--api", metavar="HOST:PORT", help="Address of a running node's API.")(command)
    data = click.Path(file_okay=False, path_type=Path)
    return click.option("--data", type=data, metavar="DIR", help="Data folder of the node.")(command)


def connect(data: Path | None, api: str | None) -> Endpoint:
    from p2pnode.endpoint import find_node

    return find_node(data, api)


def print_json(document: Any) -> None:
    click.echo(
        json.dumps(document, indent=2 if sys.stdout.isatty() else None, ensure_ascii=False, default=str)
    )


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A rich table on a terminal, tab-separated text in a pipe."""
    if not sys.stdout.isatty():
        click.echo("\t".join(columns))
        for row in rows:
            click.echo("\t".join(str(cell) for cell in row))
        return
    if not rows:
        click.echo(f"{title}: none")
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Few lines and nothing cut off: eight columns have room on a terminal of 80, and ids stay whole to be copied.
    table = Table(
        title=title, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    Console().print(table)


def print_pairs(title: str, pairs: Sequence[tuple[str, object]]) -> None:
    width = max((len(name) for name, _ in pairs), default=0)
    if title and sys.stdout.isatty():
        click.secho(title, bold=True)
    for name, value in pairs:
        click.echo(f"{name.ljust(width)}  {value}")


def one_line(text: str) -> str:
    """A message as one printable line: it may quote a file or a peer."""
    return "".join(char if char.isprintable() else " " for char in text)


def wants_color() -> bool | None:
    """False where the environment says so (no-color.org); None leaves it to whether a terminal is written to."""
    return False if os.environ.get("NO_COLOR") else None


def line_width() -> int:
    """Characters of a line: the terminal's, and in a pipe as many as people scroll."""
    return shutil.get_terminal_size((160, 24)).columns if sys.stdout.isatty() else 160


def print_error(error: P2PNodeError) -> None:
    print_trouble(error.message, error.hint)


def print_trouble(message: str, hint: str) -> None:
    """After a command ended, when click's own choice of colours is over."""
    click.secho(f"error: {one_line(message)}", fg="red", err=True, color=wants_color())
    if hint:
        click.secho(f"hint:  {one_line(hint)}", fg="yellow", err=True, color=wants_color())


def since(ms: object) -> str:
    if not isinstance(ms, int | float) or ms <= 0:
        return "-"
    seconds = max(0, round(datetime.now(UTC).timestamp() - ms / 1000))
    if seconds < 3:
        return "now"
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"


def size_text(count: object) -> str:
    """Bytes as people read them."""
    if not isinstance(count, int | float):
        return "-"
    value, units = float(count), ["B", "KB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.1f} {units[0]}"


def short(peer: object) -> str:
    """A peer id short enough for a table: its last eight characters tell peers apart."""
    text = str(peer or "-")
    return f"…{text[-8:]}" if len(text) > 12 else text


def layers_text(layers: object) -> str:
    if isinstance(layers, list | tuple) and len(layers) == 2:
        first, end = int(layers[0]), int(layers[1])
        return "none" if end <= first else str(first) if end == first + 1 else f"{first}-{end - 1}"
    return "-"


def units_text(micro: object) -> str:
    """Micro-units as units, exactly."""
    if not isinstance(micro, int):
        return "-"
    sign, micro = ("-" if micro < 0 else ""), abs(micro)
    return f"{sign}{micro // 1_000_000}.{micro % 1_000_000:06d}".rstrip("0").rstrip(".") if micro else "0"
