"""Commands that show or change the mesh through a running node."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from p2pnode.cli import complete
from p2pnode.cli.link_text import link_of, link_text, reasons_text, state_text
from p2pnode.cli.output import (
    connect,
    layers_text,
    node_options,
    one_line,
    print_json,
    print_pairs,
    print_table,
    short,
    since,
    size_text,
)
from p2pnode.cli.progress import watch


@click.command()
@click.option(
    "--links", is_flag=True, help="Each link with both directions: state, last answer, why it fails."
)
@node_options
def peers(links: bool, data: Path | None, api: str | None, as_json: bool) -> None:
    """Devices of the mesh and how to reach them."""
    view = connect(data, api).get("/peers")
    if as_json:
        print_json(view)
        return
    if links:
        print_links(view)
        return
    rows = []
    me = next((str(peer["peer"]) for peer in view.get("peers", []) if peer.get("self")), "")
    for peer in view.get("peers", []):
        rtt = peer.get("rtt_ms")
        rows.append(
            (
                peer.get("name") or "-",
                short(peer.get("peer")),
                peer_state(peer),
                peer.get("role", "-"),
                f"{rtt:.1f} ms" if isinstance(rtt, int | float) and not peer.get("self") else "-",
                peer.get("path", "-"),
                since(peer.get("last_seen_ms")) if not peer.get("self") else "now",
                link_text(link_of(view.get("links", []), me, str(peer.get("peer"))), me),
            )
        )
    print_table("Devices", ("NAME", "PEER", "STATE", "ROLE", "RTT", "PATH", "SEEN", "LINK"), rows)
    for peer in view.get("peers", []):
        if duplicate := peer.get("duplicate"):
            click.echo(f"{duplicate['message']}\n  {duplicate['hint']}", err=True)


def peer_state(peer: Mapping[str, Any]) -> str:
    """Whether it is there, why not, and where it does not lend itself now, since when it will."""
    words = ["this device" if peer.get("self") else str(peer.get("state", "-"))]
    if peer.get("state") in ("suspect", "offline") and peer.get("lost_reason"):
        words.append(str(peer["lost_reason"]))
    elif peer.get("device_state", "active") != "active":
        words.append(str(peer["device_state"]))
        words += [str(peer["lending"])] * bool(peer.get("lending"))
    return one_line(", ".join(words))


def print_links(view: Mapping[str, Any]) -> None:
    """Two rows a link: what each side sees of the other one."""
    names = {peer.get("peer"): peer.get("name") or short(peer.get("peer")) for peer in view.get("peers", [])}
    rows = []
    for way in (way for link in view.get("links", []) for way in link.get("directions", [])):
        rtt = way.get("rtt_ms")
        rows.append(
            (
                names.get(way.get("from")) or short(way.get("from")),
                names.get(way.get("to")) or short(way.get("to")),
                state_text(way),
                f"{rtt:.1f} ms" if isinstance(rtt, int | float) else "-",
                since(way.get("last_good_ms")),
                reasons_text(way) or "-",
            )
        )
    print_table("Links", ("FROM", "TO", "STATE", "RTT", "LAST ANSWER", "WHY"), rows)


@click.group(invoke_without_command=True)
@node_options
@click.pass_context
def models(context: click.Context, data: Path | None, api: str | None, as_json: bool) -> None:
    """Models of the mesh and who holds them; `copy` brings one to another device."""
    if context.invoked_subcommand is not None:
        return
    view = connect(data, api).get("/models")
    if as_json:
        print_json(view)
        return
    rows = [
        (
            model["name"] + (" *" if model.get("default") else ""),
            model.get("architecture", "-"),
            model.get("quantisation", "-"),
            size_text(model.get("size_bytes")),
            model.get("layers", "-"),
            model.get("context_length", "-"),
            len(model.get("holders") or []),
        )
        for model in view.get("models", [])
    ]
    print_table("Models (* default)", ("NAME", "KIND", "QUANT", "SIZE", "LAYERS", "CONTEXT", "HOLDERS"), rows)


@models.command("copy")
@click.argument("model", shell_complete=complete.models)
@click.argument("device", shell_complete=complete.devices)
@node_options
def copy_model(model: str, device: str, data: Path | None, api: str | None, as_json: bool) -> None:
    """Have DEVICE (name or peer id) fetch MODEL from the devices that hold it.

    Every byte is verified there. Ctrl-C stops it; what came is kept, and the next copy goes on from there.
    """
    wanted = {"model": model, "device": device}
    answer = watch(connect(data, api).stream("/command/copy_model?stream=true", wanted), "done")
    if as_json:
        print_json(answer)
        return
    click.echo(f"{answer['model']} is on {answer['name']} ({size_text(answer['bytes_fetched'])} fetched)")


@click.command()
@click.option("--all", "everything", is_flag=True, help="Finished ones too.")
@node_options
def ps(everything: bool, data: Path | None, api: str | None, as_json: bool) -> None:
    """Sessions that run now: who computes them and how fast."""
    view = connect(data, api).get("/sessions")
    if not everything:
        ended = ("finished", "failed", "cancelled")
        view["sessions"] = [row for row in view.get("sessions", []) if row.get("state") not in ended]
    if as_json:
        print_json(view)
        return
    rows = []
    for session in view.get("sessions", []):
        stages = ", ".join(
            f"{s.get('name')}:{layers_text(s.get('layers'))}" for s in session.get("stages", [])
        )
        identity = session.get("session_id", session.get("request_id", "-"))
        speed = session.get("tokens_per_s")
        rows.append(
            (
                identity,
                session.get("model", "-"),
                " ".join(filter(None, (session.get("mode", "-"), session.get("engine")))),
                answer_state(session),
                session.get("tokens", session.get("completion_tokens", "-")),
                f"{speed:.1f}" if isinstance(speed, int | float) else "-",
                stages or served_by(session),
            )
        )
    print_table("Sessions", ("SESSION", "MODEL", "MODE", "STATE", "TOKENS", "TOK/S", "STAGES"), rows)


def answer_state(session: dict[str, Any]) -> str:
    """Of an answer that stands still, since when."""
    since = session.get("recovering_s")
    state = str(session.get("state", "-"))
    return f"{state} for {since:.1f} s" if isinstance(since, int | float) else state


def served_by(session: dict[str, Any]) -> str:
    """Whose whole answer it is."""
    if mesh := session.get("served_mesh"):
        return f"whole by the mesh {mesh}"
    return f"whole by {session['served_by_name']}" if session.get("served_by_name") else "-"


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def version(as_json: bool) -> None:
    """Versions of p2pnode and what it runs on."""
    import platform
    from importlib import metadata

    from p2pnode import __version__

    def installed(name: str) -> str:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return "missing"

    parts = ("llama-cpp-python", "aioquic", "zeroconf", "quart", "hypercorn", "cryptography")
    document = {
        "version": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: installed(name) for name in parts},
    }
    if as_json:
        print_json(document)
        return
    rows = [("p2pnode", __version__), ("python", document["python"]), ("system", document["system"])]
    print_pairs("", [*rows, *((name, installed(name)) for name in parts)])
