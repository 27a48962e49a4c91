"""`p2pnode adapters`: LoRA adapters of models."""

from __future__ import annotations

from pathlib import Path

import click

from p2pnode.cli import complete
from p2pnode.cli.device_commands import say
from p2pnode.cli.output import Number, connect, node_options, print_json, print_table, short, size_text


@click.group()
def adapters() -> None:
    """LoRA adapters and control vectors that change a model, on every device that computes it."""


@adapters.command()
@click.argument("model", shell_complete=complete.models)
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--scale", type=Number(), default=1.0, show_default=True, metavar="S", help="How strongly it acts."
)
@node_options
def add(model: str, file: Path, scale: float, data: Path | None, api: str | None, as_json: bool) -> None:
    """Load MODEL with the LoRA adapter or control vector in FILE (GGUF) from now on.

    Other devices of a plan fetch it from this one. What runs on the model goes on with the adapter.
    """
    wanted = {"model": model, "path": str(file.expanduser().resolve()), "scale": scale}
    answer = connect(data, api).post("/command/add_adapter", wanted)
    say(answer, f"{answer['model']} is loaded with {answer['name']} from now on", as_json=as_json)


@adapters.command("list")
@node_options
def list_adapters(data: Path | None, api: str | None, as_json: bool) -> None:
    """Adapters in use."""
    view = connect(data, api).post("/command/adapters", {})
    if as_json:
        print_json(view)
        return
    rows = [
        (
            row["model"],
            row["kind"],
            row["name"] or "-",
            f"{row['scale']:g}",
            size_text(row["size_bytes"]),
            short(row["adapter"]),
        )
        for row in view["adapters"]
    ]
    print_table("Adapters", ("MODEL", "KIND", "NAME", "SCALE", "SIZE", "ID"), rows)


@adapters.command()
@click.argument("model", shell_complete=complete.models)
@click.argument("adapter")
@node_options
def remove(model: str, adapter: str, data: Path | None, api: str | None, as_json: bool) -> None:
    """Load MODEL without ADAPTER (its name or id) from now on."""
    answer = connect(data, api).post("/command/remove_adapter", {"model": model, "adapter": adapter})
    say(answer, f"{answer['model']} is loaded without {answer['name']} from now on", as_json=as_json)
