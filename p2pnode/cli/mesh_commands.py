"""Commands that show or change the mesh through a running node."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from p2pnode.cli import complete
from p2pnode.cli.link_text import link_of, link_text, reasons_text, state_text
from p2pnode.cli.output import (
    Number,
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
from p2pnode.cli.plan_wish import names_of, parse_blocks, parse_caps, parse_engine, parse_pins, read_blocks
from p2pnode.cli.progress import watch
from p2pnode.cli.run import MODES
from p2pnode.errors import P2PNodeError, RequestError

_RANGE = re.compile(r"\[(\d+), (\d+)\)")


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
@click.argument("model", shell_complete=complete.models, required=False)
@click.option("--mode", type=click.Choice(MODES), default="auto", show_default=True, help="How to compute.")
@click.option("--stages", type=click.IntRange(1, 64), metavar="N", help="Number of stages.")
@click.option(
    "--devices",
    metavar="NAME,NAME,...",
    help="Only these devices, in this order.",
    shell_complete=complete.devices_listed,
)
@click.option("--context", type=click.IntRange(1), metavar="N", help="Context length to plan for.")
@click.option(
    "--exclude", metavar="NAME,NAME,...", help="Not these devices.", shell_complete=complete.devices_listed
)
@click.option("--blocks", metavar="NAME:A-B,...", help="A map by hand: kitchen:0-3,study:4-7.")
@click.option(
    "--map",
    "map_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="A map by hand as TOML: [[blocks]], device, layers.",
)
@click.option("--pin", multiple=True, metavar="NAME:A-B", help="Layers this device must compute.")
@click.option(
    "--max-memory", multiple=True, metavar="NAME=SIZE", help="What this device may use for the plan."
)
@click.option(
    "--max-rtt",
    type=Number(0, min_open=True),
    metavar="MS",
    help="Round trip within a tensor group.",
)
@click.option(
    "--engine",
    multiple=True,
    metavar="KEY=VALUE",
    help="How the model is loaded, everywhere alike: kv=q8_0, flash=off, context=N, rope=yarn, rope_scale=0.25 ...; "
    "with --apply it stays. 'default' ends it.",
)
@click.option(
    "--what-if", multiple=True, metavar="CHANGE", help="Try: +NAME:RAM,SPEED,RTT, -NAME, context=N, quant=Q."
)
@click.option(
    "--anyway", is_flag=True, help="Load although memory is short: what other programs hold is not counted."
)
@click.option("--apply", is_flag=True, help="Make it the plan in use.")
@click.option("--why", is_flag=True, help="Say why other plans were not chosen.")
@node_options
def plan(
    model: str | None,
    mode: str,
    stages: int | None,
    devices: str | None,
    context: int | None,
    exclude: str | None,
    blocks: str | None,
    map_file: Path | None,
    pin: tuple[str, ...],
    max_memory: tuple[str, ...],
    max_rtt: float | None,
    engine: tuple[str, ...],
    what_if: tuple[str, ...],
    anyway: bool,
    apply: bool,
    why: bool,
    data: Path | None,
    api: str | None,
    as_json: bool,
) -> None:
    """Who would compute which layers of MODEL."""
    if blocks and map_file:
        raise RequestError("--blocks and --map say the same in two ways", hint="give one of them")
    asked = {
        "model": model if model != "-" else None,
        "stages": stages,
        "context": context,
        "devices": names_of(devices),
        "exclude": names_of(exclude),
        "blocks": read_blocks(map_file) if map_file else parse_blocks(blocks) if blocks else None,
        "pins": parse_pins(pin),
        "memory_max": parse_caps(max_memory),
        "max_rtt_ms": max_rtt,
        "what_if": list(what_if),
        "anyway": anyway,
    }
    wanted: dict[str, Any] = {"mode": mode, "apply": apply, "why": why}
    wanted |= {name: value for name, value in asked.items() if value}
    if engine:
        wanted["engine"] = parse_engine(engine)
    from p2pnode.cli.device_commands import local_model

    if "model" in wanted:
        wanted["model"] = local_model(wanted["model"])
    node = connect(data, api)
    try:
        answer = (
            watch(node.stream("/plan", {**wanted, "stream": True}), "plan")
            if apply
            else node.post("/plan", wanted)
        )
    except P2PNodeError as error:
        if not as_json:
            error.message, error.hint = reason_text(error.message), reason_text(error.hint)
        raise
    if as_json:
        print_json(answer)
    else:
        _show_plan(answer, model or "", mode, why=why)


def _show_plan(answer: Mapping[str, Any], model: str, mode: str, *, why: bool) -> None:
    chosen = answer.get("plan", answer)
    rows = [
        (
            number + 1,
            stage.get("name") or short(stage.get("peer")),
            layers_text(stage.get("layers")),
            size_text(stage.get("bytes", stage.get("model_bytes", stage.get("fetch_bytes")))),
            size_text(stage.get("memory_bytes")),
        )
        for number, stage in enumerate(chosen.get("stages", []))
    ]
    state = chosen.get("state") or ("in use" if answer.get("applied") else "proposed")
    loaded = f" {chosen['engine']}" if chosen.get("engine") else ""
    title = f"{chosen.get('model', model)}: {chosen.get('mode', mode)}{loaded} ({state})"
    print_table(title, ("STAGE", "DEVICE", "LAYERS", "WEIGHTS", "MEMORY"), rows)
    for reason in answer.get("reasons", []):
        click.echo(f"  {reason_text(reason)}")
    if measured := answer.get("measured"):
        click.echo(f"  {measured_text(measured)}")
    if why:
        for rejection in answer.get("rejections", []):
            click.echo(f"  not: {rejection_text(rejection)}")


def reason_text(reason: object) -> str:
    """Why, in words; half-open ranges of layers are said as people count them."""
    words: object = reason
    if isinstance(reason, dict):
        words = reason.get("reason") or reason.get("message") or reason.get("text") or reason
    return _RANGE.sub(lambda match: f"layers {layers_text([match[1], match[2]])}", str(words))


def measured_text(measured: Mapping[str, Any]) -> str:
    """The last answer on a plan beside what was expected of it."""
    error = measured.get("error")
    off = f" ({error:+.0%})" if isinstance(error, int | float) else ""
    return (
        f"the last answer on it had {measured['measured_tokens_per_s']:.1f} tokens/s, "
        f"{measured['predicted_tokens_per_s']:.1f} were expected{off}"
    )


def rejection_text(rejection: object) -> str:
    """Which candidate, and why not."""
    said = rejection if isinstance(rejection, dict) else {}
    names = (said.get(key) for key in ("candidate", "mode", "name", "peer", "code"))
    subject = next((str(name) for name in names if name), "")
    return f"{reason_text(subject)}: {reason_text(rejection)}" if subject else reason_text(rejection)


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
