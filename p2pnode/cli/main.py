"""`p2pnode`: commands are imported when they run, so that --help is quick."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from p2pnode import __version__
from p2pnode.errors import P2PNodeError

COMMANDS: dict[str, tuple[str, str, str]] = {
    "join": ("join", "join", "Start this device's node; with a ticket, join a mesh."),
    "invite": ("invite_commands", "invite", "Make a ticket for another device."),
    "invites": ("invite_commands", "invites", "Invites so far; end one."),
    "approve": ("admission", "approve", "Let in a device that asks, by its match code."),
    "refuse": ("admission", "refuse", "Say no to a device that asks."),
    "revoke": ("admission", "revoke", "End a device's membership."),
    "federation": (
        "federation_commands",
        "federation",
        "Other meshes that answer whole requests: add, list, remove.",
    ),
    "peers": ("mesh_commands", "peers", "Devices of the mesh and how to reach them."),
    "plan": ("plan_command", "plan", "Who would compute which layers of a model, and why."),
    "run": ("run", "run", "Ask a model: one prompt, or what stdin says."),
    "chat": ("chat", "chat", "Talk with a model in the terminal."),
    "ps": ("mesh_commands", "ps", "Sessions that run now."),
    "top": ("top", "top", "The mesh while it works."),
    "models": ("mesh_commands", "models", "Models of the mesh and who holds them."),
    "show": ("show", "show", "What a model is: architecture, sizes, licence, chat template."),
    "pull": ("device_commands", "pull", "Add a model to this device."),
    "rm": ("device_commands", "rm", "Remove a model from this device."),
    "adapters": ("adapter_commands", "adapters", "LoRA adapters and control vectors of models."),
    "balance": ("billing_commands", "balance", "Credit of every account."),
    "topup": ("billing_commands", "topup", "Add credit to an account."),
    "quota": ("billing_commands", "quota", "Limit what an account may use in each period."),
    "statement": ("billing_commands", "statement", "Every booking of an account."),
    "status": ("status", "status", "This node in one screen."),
    "pause": ("device_commands", "pause", "Compute nothing for others until resumed."),
    "resume": ("device_commands", "resume", "Compute again."),
    "drain": ("device_commands", "drain", "Finish what runs, take nothing new."),
    "schedule": ("schedule_commands", "schedule", "The hours in which this device lends itself."),
    "forget": ("device_commands", "forget", "Forget a device that will not come back."),
    "set": ("device_commands", "set_value", "Change a setting of the mesh."),
    "log": ("log_commands", "log", "The sealed record: verify, replay, entries, export."),
    "keys": ("key_commands", "keys", "API keys: create, list, revoke."),
    "config": ("config_commands", "config", "Settings and where each comes from."),
    "doctor": ("doctor", "doctor", "Check this machine and the links to every peer."),
    "demo": ("demo", "demo", "Three devices on this machine answer a question together."),
    "completion": ("device_commands", "completion", "Completion script for your shell."),
    "version": ("mesh_commands", "version", "Versions of p2pnode and what it runs on."),
}
"""Name: module in p2pnode.cli, attribute, one line of help."""
_SAID_ELSEWHERE = {
    "help": "--help", "ls": "models", "list": "models", "serve": "join", "up": "join",
    "start": "join", "worker": "join", "download": "pull", "get": "pull", "remove": "rm", "delete": "rm",
    "meshes": "federation", "nodes": "peers", "devices": "peers", "token": "invite", "usage": "statement",
    "verify": "log verify",
}  # fmt: skip
"""What other programs call it: hands that know them are shown the way."""


class LazyGroup(click.Group):
    """A group that knows its commands' names and help without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        found = COMMANDS.get(cmd_name)
        if found is None:
            return None
        module, attribute, _ = found
        command = getattr(import_module(f"p2pnode.cli.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if name and not name.startswith("-") and name not in COMMANDS:
            from difflib import get_close_matches

            near = _SAID_ELSEWHERE.get(name) or next(iter(get_close_matches(name, COMMANDS, n=1)), "")
            meant = f"; did you mean {near!r}?" if near else ""
            raise click.UsageError(f"there is no command {name!r}{meant}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="p2pnode")
def cli() -> None:
    """Several devices, one language model, one sealed record."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; errors are one line, never a traceback (P2PNODE_DEBUG=1 shows it)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(run_command(given))


def run_command(arguments: list[str]) -> int:
    debug = os.environ.get("P2PNODE_DEBUG", "") not in ("", "0")
    try:
        color = False if os.environ.get("NO_COLOR") else None
        result = cli.main(arguments, prog_name="p2pnode", standalone_mode=False, color=color)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.Abort:  # Ctrl-C: click has ended the line
        return 130
    except SystemExit:  # click's end when the reader of our pipe has gone: that is how pipes end, no failure
        return 0
    except click.ClickException as error:
        return _usage(error, as_json="--json" in arguments)
    except P2PNodeError as error:
        if debug:
            raise
        return _failed(error, as_json="--json" in arguments)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # the reader of our pipe has gone; Python would complain once more when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            raise
        return _failed(_UnexpectedError(f"{type(error).__name__}: {error}"), as_json="--json" in arguments)


_PLAINER = (
    ("is not a valid integer range", "is not a whole number"),
    ("is not a valid float range", "is not a number"),
    ("is not a valid integer", "is not a whole number"),
)
"""The library names its types here, people do not."""


def _usage(error: click.ClickException, *, as_json: bool) -> int:
    from p2pnode.cli.output import one_line, print_json, print_trouble

    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message(), err=True)  # a page of help, not a line that says what is wrong
        return error.exit_code
    message = one_line(error.format_message())
    for words, plainer in _PLAINER:
        message = message.replace(words, plainer)
    context = getattr(error, "ctx", None)
    hint = "" if context is None else f"{context.command_path} --help"
    print_trouble(message, hint)
    if as_json:
        print_json({"error": {"code": "usage", "message": message, "hint": hint, "details": {}}})
    return error.exit_code


class _UnexpectedError(P2PNodeError):
    code = "unexpected"
    hint_default = "this is a bug; run again with P2PNODE_DEBUG=1 and report what it shows"


def _failed(error: P2PNodeError, *, as_json: bool) -> int:
    from p2pnode.cli.output import print_error, print_json

    print_error(error)
    if as_json:
        print_json({"error": error.as_dict()})
    return 1


def every_command() -> dict[str, Any]:
    """Name → click command, groups included: what the reference is generated from."""
    context = click.Context(cli, info_name="p2pnode")
    return {name: cli.get_command(context, name) for name in COMMANDS}
