"""Commands that change a device or its models: pull, rm, pause, resume, drain, forget, set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from p2pnode.cli import complete
from p2pnode.cli.output import connect, node_options, one_line, print_json
from p2pnode.cli.progress import watch
from p2pnode.endpoint import Endpoint
from p2pnode.errors import NotFound


def local_model(name: str) -> str:
    """A path as the node can open it, whatever folder it runs in; anything else is a name already."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.suffix == ".gguf" and path.is_file() else name


def add_file(node: Endpoint, name: str) -> str:
    """Name in the store of a model given by name or path; a file is added first."""
    model = local_model(name)
    return (
        str(node.post("/command/add_model", {"model": model})["model"])
        if model != name or "/" in model
        else name
    )


def say(answer: dict[str, Any], text: str, *, as_json: bool) -> None:
    if as_json:
        print_json(answer)
    else:
        click.echo(text)


@click.command()
@click.argument("source", shell_complete=complete.models)
@node_options
def pull(source: str, data: Path | None, api: str | None, as_json: bool) -> None:
    """Add a model to this device: a GGUF file here, or a name on a hub."""
    node = connect(data, api)
    model = local_model(source)
    if Path(model).is_absolute():
        answer = node.post("/command/add_model", {"model": model})
    else:
        answer = watch(node.stream("/command/pull?stream=true", {"model": source}), "done")
    say(answer, f"{answer.get('model', source)} is here", as_json=as_json)


@click.command()
@click.argument("model", shell_complete=complete.models)
@node_options
def rm(model: str, data: Path | None, api: str | None, as_json: bool) -> None:
    """Remove a model from this device."""
    answer = connect(data, api).post("/command/remove_model", {"model": model})
    say(answer, f"{model} is removed from this device", as_json=as_json)


def _state_command(name: str, text: str) -> click.Command:
    @click.command(name, help=text)
    @click.option("--reason", default="", metavar="TEXT", help="Why, for the record.")
    @node_options
    def command(reason: str, data: Path | None, api: str | None, as_json: bool) -> None:
        answer = connect(data, api).post(f"/command/{name}", {"reason": reason})
        say(answer, f"this device is {answer.get('state', name)}", as_json=as_json)

    return command


pause = _state_command("pause", "Compute nothing for others until resumed.")
resume = _state_command("resume", "Compute again.")
drain = _state_command("drain", "Finish what runs, take nothing new.")


@click.command()
@click.argument("device", shell_complete=complete.devices)
@node_options
def forget(device: str, data: Path | None, api: str | None, as_json: bool) -> None:
    """Forget a DEVICE (name or peer id) that will not come back."""
    node = connect(data, api)
    found = [row["peer"] for row in node.get("/peers")["peers"] if device in (row["peer"], row.get("name"))]
    if len(found) != 1:
        problem = "there is no device" if not found else f"{len(found)} devices are called"
        raise NotFound(f"{problem} {one_line(device)!r}", hint="p2pnode peers --json shows the peer ids")
    answer = node.post("/command/forget_peer", {"peer": found[0]})
    say(answer, f"{device} is forgotten", as_json=as_json)


@click.command("set")
@click.argument("key")
@click.argument("value")
@node_options
def set_value(key: str, value: str, data: Path | None, api: str | None, as_json: bool) -> None:
    """Change a setting of the mesh, for example: p2pnode set model.default NAME."""
    answer = connect(data, api).post("/settings", {"key": key, "value": value})
    say(answer, f"{key} = {value}", as_json=as_json)


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def completion(shell: str, as_json: bool) -> None:
    """Print the script that completes commands, options, and names of models and devices.

    \b
    bash, zsh: eval "$(p2pnode completion bash)", in ~/.bashrc or ~/.zshrc
    fish:      p2pnode completion fish | source
    """
    from click.shell_completion import get_completion_class

    from p2pnode.cli.main import cli

    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(cli, {}, "p2pnode", "_P2PNODE_COMPLETE").source()
    say({"shell": shell, "script": script}, script, as_json=as_json)
