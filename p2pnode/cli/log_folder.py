"""The data folder that `p2pnode log ...` reads."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from p2pnode.events.reader import LogReader


def folder_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--data and --json; the folder is the user's own unless said otherwise."""

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
    @click.option("--data", type=click.Path(path_type=Path), metavar="DIR", help="Data folder of the node.")
    @wraps(command)
    def wrapped(data: Path | None, **arguments: Any) -> Any:
        from p2pnode.config import default_data_dir

        return command(data=data or default_data_dir(os.environ), **arguments)

    return wrapped


def open_reader(data: Path) -> LogReader:
    from p2pnode.events.reader import LogReader

    reader = LogReader.of_folder(data)
    click.get_current_context().call_on_close(reader.close)
    return reader


def own_peer(data: Path) -> str | None:
    """The peer id of the folder's key; None when there is none (a copied log)."""
    from p2pnode import identity

    path = data / identity.KEY_FILE
    return str(identity.load(path).peer_id) if path.exists() else None
