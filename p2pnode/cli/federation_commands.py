"""Other meshes whose guest this device is: they answer whole requests, nothing else goes there or comes from there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from p2pnode.cli import complete
from p2pnode.cli.device_commands import say
from p2pnode.cli.output import connect, node_options, one_line, print_json, print_table, since


@click.group()
def federation() -> None:
    """Other meshes that answer whole requests: their models are MODEL@MESH.

    The owner of the other mesh makes a ticket with: p2pnode invite --role guest
    """


@federation.command()
@click.argument("ticket")
@click.option(
    "--as", "name", default="", metavar="NAME", help="What to call it here; else what it calls itself."
)
@node_options
def add(ticket: str, name: str, data: Path | None, api: str | None, as_json: bool) -> None:
    """Use a TICKET of another mesh (- reads it from stdin); again, to renew one that ended."""
    text = sys.stdin.read(4096).strip() if ticket == "-" else ticket
    answer = connect(data, api).post("/command/federation_add", {"ticket": text, "name": name})
    models = ", ".join(f"{model}@{answer['name']}" for model in answer["models"]) or "no models yet"
    trouble = f"\n  {answer['trouble']}" if answer["trouble"] else ""
    say(answer, one_line(f"{answer['name']} can be asked: {models}") + trouble, as_json=as_json)


@federation.command("list")
@node_options
def list_meshes(data: Path | None, api: str | None, as_json: bool) -> None:
    """Other meshes, whether they can be asked now, and what they have."""
    meshes = connect(data, api).get("/status").get("meshes", [])
    if as_json:
        print_json({"meshes": meshes})
        return
    print_table(
        "Other meshes", ("NAME", "STATE", "MODELS", "DEVICES", "SINCE"), [_row(mesh) for mesh in meshes]
    )


def _row(mesh: dict[str, Any]) -> tuple[object, ...]:
    devices = ", ".join(one_line(member["name"]) for member in mesh["members"])
    state = "can be asked" if not mesh["trouble"] else one_line(mesh["trouble"])
    models = ", ".join(mesh["models"]) or "-"
    return (one_line(mesh["name"]), state, models, devices or "-", since(mesh["since_ms"]))


@federation.command()
@click.argument("name", shell_complete=complete.meshes)
@node_options
def remove(name: str, data: Path | None, api: str | None, as_json: bool) -> None:
    """Ask the mesh called NAME no more."""
    answer = connect(data, api).post("/command/federation_remove", {"name": name})
    say(answer, f"{one_line(answer['name'])} is not asked any more", as_json=as_json)
