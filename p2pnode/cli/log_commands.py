"""`p2pnode log ...`: look at the record and prove it. Reading works on the data folder, node or no node."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from p2pnode.cli import log_render as render

if TYPE_CHECKING:
    from p2pnode.events.reader import LogReader


def common(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--data` and `--json`, and conditions as one line with exit status 1."""

    @click.option("--data", "data_dir", type=click.Path(path_type=Path), help="The node's data folder.")
    @click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
    @wraps(function)
    def wrapped(data_dir: Path | None, as_json: bool, **arguments: Any) -> Any:
        from p2pnode.config import default_data_dir
        from p2pnode.errors import P2PNodeError

        chosen = default_data_dir(os.environ) if data_dir is None else data_dir
        try:
            return function(data_dir=chosen, as_json=as_json, **arguments)
        except P2PNodeError as error:
            if as_json:
                _print_json({"error": error.as_dict()})
            else:
                click.echo(f"error: {error.message}", err=True)
                if error.hint:
                    click.echo(f"hint: {error.hint}", err=True)
            sys.exit(1)

    return wrapped


@click.group("log")
def log() -> None:
    """Look at the sealed record and prove it."""


@log.command()
@click.option("-n", "--lines", "count", default=20, show_default=True, help="How many events.")
@click.option("-f", "--follow", is_flag=True, help="Go on with new events as they come.")
@common
def tail(data_dir: Path, as_json: bool, count: int, follow: bool) -> None:
    """Show the newest events."""
    from p2pnode.events.view import record_view

    reader = _reader(data_dir)
    size = reader.size
    records = [record_view(record) for record in reader.read(max(size - count, 0), size)]
    if as_json and not follow:
        _print_json({"size": size, "events": records})
        return
    for record in records:
        click.echo(json.dumps(record) if as_json else render.record_line(record))
    while follow:
        _wait_a_moment()
        first, size = size, reader.size
        for new in reader.read(first, size):
            click.echo(json.dumps(record_view(new)) if as_json else render.record_line(record_view(new)))


@log.command()
@click.argument("what")
@common
def show(data_dir: Path, as_json: bool, what: str) -> None:
    """Show events in full: by index, by id, or all of a request."""
    from p2pnode.events.view import record_view

    records = [record_view(record) for record in _reader(data_dir).find(what)]
    if as_json:
        _print_json({"events": records})
    else:
        click.echo("\n\n".join(map(render.record_text, records)))


@log.command()
@click.option("-n", "--lines", "count", default=20, show_default=True, help="How many blocks.")
@click.option("--first", type=int, help="From this block on, instead of the newest ones.")
@common
def blocks(data_dir: Path, as_json: bool, count: int, first: int | None) -> None:
    """List sealed blocks."""
    from p2pnode.events.view import block_view

    reader = _reader(data_dir)
    total = reader.block_count
    start = max(total - count, 0) if first is None else first
    found = [block_view(block) for block in reader.blocks(start, start + count)]
    if as_json:
        _print_json({"blocks": found, "count": total})
    else:
        click.echo(render.blocks_table(found))


@log.command()
@click.option("--peer", help="The peer id the log must belong to (default: that of the folder's key).")
@click.option(
    "--checkpoint",
    "checkpoint_files",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A checkpoint of this log seen elsewhere; may be repeated.",
)
@common
def verify(data_dir: Path, as_json: bool, peer: str | None, checkpoint_files: tuple[Path, ...]) -> None:
    """Recompute everything; name the first event that is wrong. Exit status 1 if one is."""
    from p2pnode.events.verify import verify_folder
    from p2pnode.events.view import report_view

    report = verify_folder(
        data_dir,
        peer=peer or _peer_of(data_dir),
        checkpoints=[path.read_text(encoding="utf-8") for path in checkpoint_files],
    )
    view = report_view(report)
    if as_json:
        _print_json(view)
    else:
        click.echo(render.report_text(view))
    if not report.ok:
        sys.exit(1)


@log.command()
@click.argument("index", type=int)
@click.option("--size", type=int, help="In the log of this size (default: the newest sealed one).")
@common
def proof(data_dir: Path, as_json: bool, index: int, size: int | None) -> None:
    """Prove that an event is in the log: a c2sp.org/tlog-proof, which other tools verify."""
    from p2pnode.events.merkle import leaf_hash
    from p2pnode.events.proof import prove

    reader = _reader(data_dir)
    found = prove(reader, index, size)
    if as_json:
        entry = reader.entries(index, index + 1)[0]
        _print_json(
            {
                "index": index,
                "size": found.size,
                "leaf": leaf_hash(entry).hex(),
                "entry": entry.hex(),
                "proof": [value.hex() for value in found.hashes],
                "checkpoint": found.checkpoint,
                "tlog_proof": str(found),
            }
        )
    else:
        click.echo(str(found), nl=False)


@log.command()
@click.argument("size_first", type=int)
@click.argument("size_second", type=int, required=False)
@common
def consistency(data_dir: Path, as_json: bool, size_first: int, size_second: int | None) -> None:
    """Prove that the log of one size begins the log of a larger one."""
    reader = _reader(data_dir)
    end = reader.size if size_second is None else size_second
    hashes = [value.hex() for value in reader.consistency_proof(size_first, end)]
    document = {
        "size_first": size_first,
        "size_second": end,
        "root_first": reader.root(size_first).hex(),
        "root_second": reader.root(end).hex(),
        "proof": hashes,
    }
    if as_json:
        _print_json(document)
    else:
        click.echo(f"{size_first} {document['root_first']}\n{end} {document['root_second']}")
        click.echo("\n".join(hashes))


def _reader(data_dir: Path) -> LogReader:
    from p2pnode.events.reader import LogReader

    return LogReader.of_folder(data_dir)


def _peer_of(data_dir: Path) -> str | None:
    """The peer id of the folder's key; None when there is none (a copied log)."""
    from p2pnode import identity

    path = data_dir / identity.KEY_FILE
    return str(identity.load(path).peer_id) if path.exists() else None


def _wait_a_moment() -> None:
    import threading

    threading.Event().wait(0.5)


def _print_json(document: Any) -> None:
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))
