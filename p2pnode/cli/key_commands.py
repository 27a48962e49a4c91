"""`p2pnode keys`: API keys of a running node."""

from __future__ import annotations

from pathlib import Path

import click

from p2pnode.cli.output import connect, node_options, print_json, print_table, since


@click.group()
def keys() -> None:
    """API keys: create, list, revoke."""


@keys.command()
@click.option("--label", default="", metavar="TEXT", help="What it is for.")
@click.option(
    "--scope",
    type=click.Choice(["use", "admin"]),
    default="use",
    show_default=True,
    help="`admin` may also change the mesh.",
)
@node_options
def create(label: str, scope: str, data: Path | None, api: str | None, as_json: bool) -> None:
    """Make a key; it is shown this once."""
    made = connect(data, api).post("/keys", {"label": label, "scope": scope})
    if as_json:
        print_json(made)
        return
    click.echo(made["key"])


@keys.command(name="list")
@node_options
def list_keys(data: Path | None, api: str | None, as_json: bool) -> None:
    """Keys that exist; only their hashes are kept."""
    view = connect(data, api).get("/keys")
    if as_json:
        print_json(view)
        return
    rows = [
        (key["key_id"], key["label"] or "-", key["scope"], since(key["created_ms"]), since(key["revoked_ms"]))
        for key in view["keys"]
    ]
    print_table("API keys", ("KEY", "LABEL", "SCOPE", "CREATED", "REVOKED"), rows)


@keys.command()
@click.argument("key_id")
@node_options
def revoke(key_id: str, data: Path | None, api: str | None, as_json: bool) -> None:
    """Make a key useless, now."""
    answer = connect(data, api).request("DELETE", f"/keys/{key_id}")
    if as_json:
        print_json(answer)
        return
    click.echo(f"{key_id} is revoked")
