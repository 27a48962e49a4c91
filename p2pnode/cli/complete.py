"""What the shell completes besides commands and options: names that the running node knows."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from p2pnode.errors import P2PNodeError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

_PATIENCE_S = 1.0
"""Somebody waits with a finger on Tab."""


def models(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Models of the mesh, and GGUF files where a file may stand for one."""
    del parameter
    return _named(context, incomplete, "models", "name") or _files(context, incomplete)


def devices(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    del parameter
    return _named(context, incomplete, "peers", "name")


def devices_listed(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """The last of several, with commas between them."""
    from click.shell_completion import CompletionItem

    before, comma, last = incomplete.rpartition(",")
    taken = before.split(",")
    found = [item.value for item in devices(context, parameter, last) if item.value not in taken]
    return [CompletionItem(before + comma + name) for name in found]


def accounts(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    del parameter
    return _named(context, incomplete, "billing", "account", rows="accounts")


def meshes(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Other meshes that are asked."""
    del parameter
    return _named(context, incomplete, "status", "name", rows="meshes")


def invites(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    del parameter
    return _named(context, incomplete, "log/invites", "invite_id", rows="invites")


def _files(context: click.Context, incomplete: str) -> list[CompletionItem]:
    """The shell lists files itself."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")] if context.info_name in ("run", "chat", "pull") else []


def _named(
    context: click.Context, incomplete: str, view: str, key: str, *, rows: str = ""
) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    from p2pnode.endpoint import find_node

    given: dict[str, Any] = context.params
    try:
        node = replace(find_node(given.get("data"), given.get("api")), answer_timeout_s=_PATIENCE_S)
        found = [str(row.get(key) or "") for row in node.get(f"/{view}").get(rows or view, [])]
    except (P2PNodeError, OSError):
        return []  # no node runs: there is nothing to offer, and this is no place to say so
    # A name with white space would be several words to the shell.
    return [
        CompletionItem(name)
        for name in dict.fromkeys(found)
        if name.startswith(incomplete) and name.isprintable() and name.split() == [name]
    ]
