"""`p2pnode config show`: settings and where each comes from."""

from __future__ import annotations

from pathlib import Path

import click

from p2pnode.cli.output import print_json, print_table


@click.group()
def config() -> None:
    """Settings and where each comes from."""


@config.command()
@click.option("--origin", is_flag=True, help="Say where each value comes from.")
@click.option("--data", type=click.Path(file_okay=False, path_type=Path), metavar="DIR", help="Data folder.")
@click.option(
    "--config",
    "config_file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="TOML file.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def show(origin: bool, data: Path | None, config_file: Path | None, as_json: bool) -> None:
    """What `p2pnode join` would use now."""
    from p2pnode.config import describe, load_options

    rows = describe(load_options({"data": data}, config_file=config_file).options)
    if as_json:
        print_json({"settings": rows})
        return
    columns = ("NAME", "VALUE", "ORIGIN") if origin else ("NAME", "VALUE")
    table = [[row["name"], _text(row["value"]), row["origin"]][: len(columns)] for row in rows]
    print_table("Settings", columns, table)


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return "-" if value is None else str(value)
