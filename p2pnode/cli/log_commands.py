"""`p2pnode log ...`: look at the record and prove it. Reading works on the data folder, node or no node."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from p2pnode.cli import log_render as render
from p2pnode.cli.admission import verify_peer
from p2pnode.cli.log_folder import folder_options, open_reader, own_peer
from p2pnode.cli.log_history_commands import check_proof, compare, fraud, policy
from p2pnode.cli.log_record_commands import (
    accept_rollback,
    export,
    forget,
    rebuild,
    receipt,
    replay,
    rotate_keys,
    seal,
    witnesses,
)
from p2pnode.cli.output import line_width, print_json

F = TypeVar("F", bound=Callable[..., Any])


def _count_option(what: str) -> Callable[[F], F]:
    return click.option(
        "-n",
        "--lines",
        "count",
        type=click.IntRange(min=0),
        default=20,
        show_default=True,
        help=f"How many {what}.",
    )


@click.group("log")
def log() -> None:
    """Look at the sealed record and prove it."""


@log.command()
@_count_option("events")
@click.option("-f", "--follow", is_flag=True, help="Go on with new events as they come.")
@folder_options
def tail(data: Path, as_json: bool, count: int, follow: bool) -> None:
    """Show the newest events."""
    from p2pnode.events.view import record_view

    reader = open_reader(data)
    size = reader.size
    records = [record_view(record) for record in reader.read(max(size - count, 0), size)]
    if as_json and not follow:
        print_json({"size": size, "events": records})
        return
    for record in records:
        click.echo(json.dumps(record) if as_json else render.record_line(record, line_width()))
    while follow:
        _wait_a_moment()
        first, size = size, reader.size
        for new in reader.read(first, size):
            click.echo(
                json.dumps(record_view(new))
                if as_json
                else render.record_line(record_view(new), line_width())
            )


@log.command()
@click.argument("what")
@folder_options
def show(data: Path, as_json: bool, what: str) -> None:
    """Show events in full: by index, by id, or all of a request."""
    from p2pnode.events.view import record_view

    records = [record_view(record) for record in open_reader(data).find(what)]
    if as_json:
        print_json({"events": records})
    else:
        click.echo("\n\n".join(map(render.record_text, records)))


@log.command()
@_count_option("blocks")
@click.option("--first", type=click.IntRange(min=0), help="From this block on, instead of the newest ones.")
@folder_options
def blocks(data: Path, as_json: bool, count: int, first: int | None) -> None:
    """List sealed blocks."""
    from p2pnode.events.view import block_view

    reader = open_reader(data)
    total = reader.block_count
    start = max(total - count, 0) if first is None else first
    found = [block_view(block) for block in reader.blocks(start, start + count)]
    if as_json:
        print_json({"blocks": found, "count": total})
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
@click.option(
    "--policy",
    "policy_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A trust policy (c2sp.org/tlog-policy): whose cosignatures it must have.",
)
@folder_options
def verify(
    data: Path, as_json: bool, peer: str | None, checkpoint_files: tuple[Path, ...], policy_file: Path | None
) -> None:
    """Recompute everything; name the first event that is wrong. Exit status 1 if one is."""
    from p2pnode.events.verify import verify_folder
    from p2pnode.events.view import report_view

    report = verify_folder(
        data,
        peer=peer or own_peer(data),
        checkpoints=[path.read_text(encoding="utf-8") for path in checkpoint_files],
    )
    view = report_view(report)
    is_trusted = True
    if policy_file is not None:
        from p2pnode.events.policy import parse_policy
        from p2pnode.events.witness_view import policy_view

        view["policy"] = policy_view(open_reader(data), parse_policy(policy_file.read_bytes()))
        is_trusted = view["policy"]["ok"]
    if as_json:
        print_json(view)
    else:
        click.echo(render.report_text(view))
    if not (report.ok and is_trusted):
        raise click.exceptions.Exit(1)


@log.command()
@click.argument("index", type=int)
@click.option("--size", type=int, help="In the log of this size (default: the newest sealed one).")
@click.option("--block", "in_block", is_flag=True, help="In its block alone, by the block's root.")
@folder_options
def proof(data: Path, as_json: bool, index: int, size: int | None, in_block: bool) -> None:
    """Prove that an event is in the log: a c2sp.org/tlog-proof, which other tools verify."""
    from p2pnode.events.merkle import leaf_hash
    from p2pnode.events.proof import prove

    reader = open_reader(data)
    if in_block:
        block_proof = reader.block_proof(index)
        print_json(block_proof) if as_json else click.echo(render.summary_text(block_proof))
        return
    reader.record(index)
    found = prove(reader, index, size)
    if as_json:
        entry = reader.entries(index, index + 1)[0]
        print_json(
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
@folder_options
def consistency(data: Path, as_json: bool, size_first: int, size_second: int | None) -> None:
    """Prove that the log of one size begins the log of a larger one."""
    reader = open_reader(data)
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
        print_json(document)
    else:
        click.echo(f"{size_first} {document['root_first']}\n{end} {document['root_second']}")
        click.echo("\n".join(hashes))


def _wait_a_moment() -> None:
    import threading

    threading.Event().wait(0.5)


for command in (
    verify_peer,
    replay,
    rebuild,
    export,
    witnesses,
    receipt,
    forget,
    accept_rollback,
    rotate_keys,
    seal,
    fraud,
    compare,
    policy,
    check_proof,
):
    log.add_command(command)
