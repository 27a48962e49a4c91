"""`p2pnode run`: one prompt, one answer, as it is written."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from p2pnode.cli import complete
from p2pnode.cli.output import Number, connect, layers_text, node_options, print_json, units_text
from p2pnode.cli.progress import ProgressLine
from p2pnode.errors import RequestError

MODES = ("auto", "local", "pipeline", "tensor", "tensor_rpc", "hybrid", "streamed", "disaggregated")
_PROGRESS_TOKENS_MIN = 256
_STDIN_CHARS_MAX = 4 * 1024 * 1024


@click.command()
@click.argument("model", shell_complete=complete.models, required=False)
@click.argument("prompt", required=False)
@click.option("--max-tokens", type=click.IntRange(1), metavar="N", help="Longest answer.")
@click.option("--temperature", type=Number(0, 10), metavar="T", help="0 is greedy.")
@click.option("--top-p", type=Number(0, 1), metavar="P", help="Nucleus sampling.")
@click.option("--top-k", type=click.IntRange(-1), metavar="K", help="Most likely K tokens only.")
@click.option("--seed", type=int, metavar="S", help="Same seed, same answer.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before this text.")
@click.option("--system", metavar="TEXT", help="Instruction before the conversation.")
@click.option("--mode", type=click.Choice(MODES), help="How to compute [default: auto].")
@click.option("--raw", is_flag=True, help="Send the prompt as it is, without the model's chat format.")
@click.option("--quiet", is_flag=True, help="No statistics after the answer.")
@node_options
def run(
    model: str | None,
    prompt: str | None,
    stop: tuple[str, ...],
    system: str | None,
    raw: bool,
    quiet: bool,
    data: Path | None,
    api: str | None,
    as_json: bool,
    **sampling: Any,
) -> int:
    """Ask MODEL a PROMPT and print the answer as it is written.

    MODEL is a name of `p2pnode models` or a path; `-` or nothing is the default one. Without PROMPT, or
    after it, the text of a pipe on stdin is read.
    """
    asked = prompt_text(prompt)
    node = connect(data, api)
    document: dict[str, Any] = {name: value for name, value in sampling.items() if value is not None}
    if model is not None and model != "-":
        from p2pnode.cli.device_commands import add_file

        document["model"] = add_file(node, model)
    if stop:
        document["stop"] = list(stop)
    if raw:
        document["prompt"] = asked
    else:
        document["messages"] = [{"role": "user", "content": asked}]
        if system:
            document["system"] = system
    if as_json:
        print_json(node.post("/infer", document))
        return 0
    end: dict[str, Any] = {}
    events = node.stream("/infer/stream", {**document, "return_progress": True})
    line = ProgressLine()
    try:
        for event in events:
            if event.get("type") == "loading":
                line.show(event)
                continue
            line.clear()
            if event.get("type") == "text":
                sys.stdout.write(event["text"])
                sys.stdout.flush()
            elif event.get("type") == "prefill":
                show_progress(event)
            elif event.get("type") == "finished":
                end = event
    finally:
        line.clear()
        events.close()
        sys.stdout.write("\n")
        sys.stdout.flush()
    if not quiet and sys.stderr.isatty():
        click.secho(summary(end), dim=True, err=True)
    return 0


def show_progress(event: dict[str, Any]) -> None:
    """How far a long prompt was read, on a terminal's stderr; gone when it is done."""
    total, done = int(event["total"]), int(event["done"])
    if total < _PROGRESS_TOKENS_MIN or not sys.stderr.isatty():
        return
    filled = 24 * done // total
    bar = "█" * filled + " " * (24 - filled)
    sys.stderr.write(
        "\r\x1b[K"
        if done >= total
        else f"\rreading the prompt {100 * done // total:3d}% ▕{bar}▏ {done}/{total}"
    )
    sys.stderr.flush()


def prompt_text(prompt: str | None) -> str:
    """The prompt argument and, below it, what a pipe says."""
    piped = "" if sys.stdin is None or sys.stdin.isatty() else _read_pipe(wanted=prompt is None)
    text = "\n\n".join(part for part in (prompt or "", piped) if part.strip())
    if not text:
        raise RequestError("there is no prompt", hint='p2pnode run MODEL "PROMPT", or pipe text into it')
    return text


def _read_pipe(*, wanted: bool) -> str:
    import select

    if not wanted:
        # a prompt was given: take a pipe's text only if there is some, never wait for a terminal's
        try:
            if not select.select([sys.stdin], [], [], 0)[0]:
                return ""
        except (OSError, ValueError):
            return ""
    try:
        text = sys.stdin.read(_STDIN_CHARS_MAX + 1)
    except UnicodeDecodeError:
        raise RequestError("stdin is not UTF-8 text") from None
    if len(text) > _STDIN_CHARS_MAX:
        raise RequestError(f"stdin has more than {_STDIN_CHARS_MAX} characters")
    return text


def summary(end: dict[str, Any]) -> str:
    usage = end.get("usage", {})
    names = ", ".join(f"{s.get('name')} {layers_text(s.get('layers'))}" for s in end.get("stages", []))
    speed = f"{end['tokens_per_s']} tokens/s" if end.get("tokens_per_s") else "-"
    cost = f"{units_text(end['cost_microunits'])} units, " if end.get("cost_microunits") else ""
    return f"{usage.get('completion_tokens', 0)} tokens, {speed}, {cost}{end.get('mode')}: {names}"
