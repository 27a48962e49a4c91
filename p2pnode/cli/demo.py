"""`p2pnode demo`: three devices on this machine."""

from __future__ import annotations

import click


@click.command()
@click.option("--keep", is_flag=True, help="Leave it running and print the panel's address.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def demo(keep: bool, as_json: bool) -> int:
    """Three devices on this machine answer a question together, and prove it."""
    from p2pnode.demo import run_demo

    return run_demo(keep=keep, as_json=as_json)
