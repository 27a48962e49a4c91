"""`p2pnode schedule`: the hours in which this device lends itself to the mesh."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from p2pnode.cli.output import connect, node_options, one_line, print_json


@click.group()
def schedule() -> None:
    """The hours in which this device lends itself.

    Outside of them its work moves elsewhere and it is paused. A pause or resume by hand holds until the hours
    change next.
    """


@schedule.command("set")
@click.argument("entries", nargs=-1, required=True)
@click.option(
    "--zone", default="", metavar="NAME", help="Such as Europe/Berlin; this machine's if not given."
)
@node_options
def set_schedule(
    entries: tuple[str, ...], zone: str, data: Path | None, api: str | None, as_json: bool
) -> None:
    """Lend this device in these hours only: p2pnode schedule set "mon-fri 20:00-08:00" "sat,sun all".

    Days are mon to sun, ranges, lists, or daily. Times are HH:MM-HH:MM, several with commas, also past midnight;
    or all.
    """
    answer = connect(data, api).post("/command/schedule_set", {"entries": list(entries), "zone": zone})
    _show(answer, as_json=as_json)


@schedule.command("show")
@node_options
def show_schedule(data: Path | None, api: str | None, as_json: bool) -> None:
    """What is set, and what holds now."""
    view = connect(data, api).get("/status")
    _show({"schedule": view.get("schedule"), "state": view.get("state")}, as_json=as_json)


@schedule.command("clear")
@node_options
def clear_schedule(data: Path | None, api: str | None, as_json: bool) -> None:
    """Lend this device at all hours."""
    _show(connect(data, api).post("/command/schedule_clear", {}), as_json=as_json)


def _show(answer: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(answer)
        return
    view = answer.get("schedule")
    if view is None:
        click.echo("no schedule: this device lends itself at all hours")
        return
    for entry in view["entries"]:
        click.echo(f"  {one_line(entry)}")
    click.echo(f"  in the time of {one_line(view['zone'])}")
    words = ["it is within these hours now" if view["open"] else "it is outside these hours now"]
    words += [one_line(view["says"])] * bool(view["says"])
    words += ["paused or resumed by hand, which holds until the hours change next"] * view["overridden"]
    click.echo(", ".join(words))
