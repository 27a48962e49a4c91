"""The rest of `p2pnode log`: fold again, export, witnesses, receipts, forget."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from p2pnode.cli import log_render as render
from p2pnode.cli.log_folder import folder_options, open_reader
from p2pnode.cli.log_offline import drop_snapshot, folder_of, forget_offline, open_own_log, rotate_offline
from p2pnode.cli.output import node_options, print_json

EXISTING_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("request", required=False)
@click.option("--to", "size", type=click.IntRange(min=0), help="After so many events (default: all).")
@click.option("--prompt-file", type=EXISTING_FILE, help="With REQUEST: its prompt, when it was not kept.")
@click.option("--api", metavar="HOST:PORT", help="With REQUEST: address of the running node's API.")
@folder_options
def replay(
    data: Path,
    as_json: bool,
    request: str | None,
    size: int | None,
    prompt_file: Path | None,
    api: str | None,
) -> None:
    """Fold the record again: what was known after its first N events.

    With REQUEST, ask a recorded greedy or seeded request again and say whether the answer is the same.
    """
    if request is not None:
        _ask_again(data, as_json, request, prompt_file, api)
        return
    from p2pnode.events.replay import check_snapshot
    from p2pnode.events.replay import replay as fold_again
    from p2pnode.projections import MeshFold

    tables = open_reader(data).tables
    replayed = fold_again(tables, MeshFold(), size)
    check = check_snapshot(tables, MeshFold()) if size is None else None
    document: dict[str, Any] = {
        "size": replayed.size,
        "state_hash": replayed.state_hash.hex(),
        "state": state_summary(replayed.state),
        "snapshot": None if check is None else {"size": check.size, "ok": check.ok},
    }
    if as_json:
        print_json(document)
    else:
        click.echo(render.summary_text(document))
    if check is not None and not check.ok:
        raise click.exceptions.Exit(1)


@click.command()
@folder_options
def rebuild(data: Path, as_json: bool) -> None:
    """Fold everything from the beginning and compare with the kept snapshot; drop it if it differs.

    While the running node does that by itself, after an update, say how far it is.
    """
    progress = _rebuilding(data)
    if progress is not None:
        if as_json:
            print_json({"rebuilding": progress})
        else:
            click.echo(render.rebuilding_text(progress))
        return
    from p2pnode.events.replay import check_snapshot
    from p2pnode.events.replay import replay as fold_again
    from p2pnode.projections import MeshFold

    reader = open_reader(data)
    replayed = fold_again(reader.tables, MeshFold())
    check = check_snapshot(reader.tables, MeshFold())
    reader.close()
    ok = check is None or check.ok
    document = {
        "size": replayed.size,
        "state_hash": replayed.state_hash.hex(),
        "ok": ok,
        "snapshot_size": None if check is None else check.size,
        "dropped": not ok and drop_snapshot(data),
    }
    if as_json:
        print_json(document)
    else:
        click.echo(render.summary_text(document))
    if not ok:
        raise click.exceptions.Exit(1)


@click.command()
@click.option("--first", type=click.IntRange(min=0), default=0, show_default=True, help="From this event on.")
@click.option("--end", type=click.IntRange(min=0), help="Up to this event, exclusive.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="A file, instead of stdout.")
@click.option("--raw", is_flag=True, help="Each event's exact bytes in hexadecimal instead of its fields.")
@folder_options
def export(data: Path, as_json: bool, first: int, end: int | None, output: Path | None, raw: bool) -> None:
    """Write events as JSON lines (with --json as one document)."""
    reader = open_reader(data)
    stop = reader.size if end is None else min(end, reader.size)
    lines = _exported(reader, first, stop, raw)
    with click.open_file(str(output) if output else "-", "w", encoding="utf-8") as file:
        if as_json:
            json.dump({"first": first, "end": stop, "events": list(lines)}, file, ensure_ascii=False)
            file.write("\n")
            return
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    if output is not None:
        click.echo(f"{max(stop - first, 0)} events written to {output}", err=True)


@click.command()
@folder_options
def witnesses(data: Path, as_json: bool) -> None:
    """Who cosigned this log, whose logs this node cosigned, and who was caught."""
    from p2pnode.events.witness_view import witness_view

    view = witness_view(open_reader(data))
    if as_json:
        print_json(view)
    else:
        click.echo(render.witnesses_text(view))


@click.group()
def receipt() -> None:
    """Take receipts out of the record and check them without it."""


@receipt.command("export")
@click.argument("what")
@click.option(
    "--with",
    "others",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Another side's file; may be given several times.",
)
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="A file, instead of stdout.")
@folder_options
def receipt_export(
    data: Path, as_json: bool, what: str, others: tuple[Path, ...], output: Path | None
) -> None:
    """Write a receipt (by event index, id, or request) with the proof that it is in this log."""
    del as_json  # it is JSON in any case
    from p2pnode.events.receipt_file import export_receipts, merge

    document = export_receipts(open_reader(data), what)
    for other in others:
        document = merge(document, json.loads(other.read_text(encoding="utf-8")))
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    with click.open_file(str(output) if output else "-", "w", encoding="utf-8") as file:
        file.write(text)


@receipt.command("verify")
@click.argument("file", type=EXISTING_FILE)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def receipt_verify(file: Path, as_json: bool) -> None:
    """Check a receipt file offline: signatures, both logs' proofs, and that both tell the same."""
    from p2pnode.events.receipt_file import verify_receipts

    found = verify_receipts(file.read_text(encoding="utf-8"))
    if as_json:
        print_json(found)
    else:
        click.echo(render.receipts_text(found))
    if not found["ok"]:
        raise click.exceptions.Exit(1)


@click.command()
@click.argument("subject")
@node_options
def forget(data: Path | None, api: str | None, subject: str, as_json: bool) -> None:
    """Delete what is kept about a request, account or peer: salts and texts. The record says that it was done."""
    from p2pnode.cli.output import connect
    from p2pnode.errors import NodeNotRunning

    try:
        answer = connect(data, api).post("/command/log_forget", {"subject": subject})
    except NodeNotRunning:
        if api is not None:
            raise
        answer = {"subject": subject, "forgotten": forget_offline(data, subject)}
    if as_json:
        print_json(answer)
    else:
        click.echo(f"{answer.get('forgotten', 0)} commitments about {subject} can not be opened any more")


@click.command()
@node_options
def seal(data: Path | None, api: str | None, as_json: bool) -> None:
    """Seal and sign what is not sealed yet, instead of within half a minute."""
    from p2pnode.cli.output import connect
    from p2pnode.errors import NodeNotRunning

    try:
        document = connect(data, api).post("/command/seal", {})
    except NodeNotRunning:
        if api is not None:
            raise
        log = open_own_log(data)
        log.close_blocking()  # whatever is open is sealed at the end
        reader = open_reader(folder_of(data))
        document = {"size": reader.size, "blocks": reader.block_count}
    if as_json:
        print_json(document)
    else:
        click.echo(f"{document['size']} events are sealed in {document['blocks']} blocks")


@click.command("accept-rollback")
@folder_options
def accept_rollback(data: Path, as_json: bool) -> None:
    """After restoring a backup: go on under a new log name, so that nothing is signed twice."""
    log = open_own_log(data, accept_rollback=True)
    document = {"origin": log.keys.origin, "size": log.size}
    log.close_blocking()
    if as_json:
        print_json(document)
    else:
        click.echo(f"the log goes on as {document['origin']} at {document['size']} events")


@click.command("rotate-keys")
@node_options
def rotate_keys(data: Path | None, api: str | None, as_json: bool) -> None:
    """Bind new signing keys; the old key signs one last checkpoint together with the new one."""
    from p2pnode.cli.output import connect
    from p2pnode.errors import NodeNotRunning

    try:
        document = connect(data, api).post("/command/log_rotate_keys", {})
    except NodeNotRunning:
        if api is not None:
            raise
        document = rotate_offline(data)
    if as_json:
        print_json(document)
    else:
        click.echo(f"generation {document['generation']}: {document['log_key']}")


def state_summary(state: Any) -> dict[str, Any]:
    """How many of what a folded state holds, and the balances."""
    from p2pnode.projections import all_projections

    return {name: _counts(getattr(state, name)) for name in all_projections()}


def _counts(part: Any) -> Any:
    """Sizes of tables, plain values as they are."""
    return {
        field: len(value) if isinstance(value, dict | list | tuple | set) else value
        for field in type(part).__struct_fields__
        if isinstance(value := getattr(part, field), dict | list | tuple | set | int | str)
    }


def _exported(reader: Any, first: int, end: int, raw: bool) -> Any:
    from p2pnode.events.view import record_view
    from p2pnode.limits import LOG_READ_EVENTS_MAX

    for start in range(first, end, LOG_READ_EVENTS_MAX):
        stop = min(start + LOG_READ_EVENTS_MAX, end)
        if raw:
            yield from (
                {"index": start + i, "entry": e.hex()} for i, e in enumerate(reader.entries(start, stop))
            )
        else:
            yield from map(record_view, reader.read(start, stop))


def _ask_again(data: Path, as_json: bool, request: str, prompt_file: Path | None, api: str | None) -> None:
    from p2pnode.cli.output import connect
    from p2pnode.events.rerun import rerun_of

    prompt = None if prompt_file is None else prompt_file.read_text(encoding="utf-8")
    again = rerun_of(open_reader(data), request, prompt)
    answer = connect(data, api).post(
        "/v1/completions",
        {"model": again.model, "prompt": again.prompt, **again.parameters, "cache_prompt": False},
    )
    found = again.compare(answer["choices"][0]["text"])
    if as_json:
        print_json(found)
    else:
        click.echo(render.rerun_text(found))
    if not found["same"]:
        raise click.exceptions.Exit(1)


def _rebuilding(data: Path) -> Any:
    """What the folder's node says, if one runs: the record itself is read from the folder."""
    from p2pnode.cli.output import connect
    from p2pnode.errors import P2PNodeError

    try:
        return connect(data, None).get("/log/rebuild")["rebuilding"]
    except P2PNodeError:
        return None
