"""`p2pnode plan`: the wish as options, and the plan with its reasons in words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from p2pnode.cli import complete
from p2pnode.cli.output import (
    Number,
    connect,
    layers_text,
    node_options,
    print_json,
    print_table,
    short,
    size_text,
)
from p2pnode.cli.plan_wish import names_of, parse_blocks, parse_caps, parse_engine, parse_pins, read_blocks
from p2pnode.cli.progress import watch
from p2pnode.cli.run import MODES
from p2pnode.errors import P2PNodeError, RequestError

_RANGE = re.compile(r"\[(\d+), (\d+)\)")


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
