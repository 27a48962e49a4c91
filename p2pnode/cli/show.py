"""`p2pnode show`: what a model is, from its header, and who holds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from p2pnode.cli import complete
from p2pnode.cli.output import connect, node_options, one_line, print_json, print_pairs, short, size_text

TEMPLATE_CHARACTERS_SHOWN = 300


@click.command()
@click.argument("model", shell_complete=complete.models)
@click.option("--template", is_flag=True, help="The whole chat template and nothing else.")
@node_options
def show(model: str, template: bool, data: Path | None, api: str | None, as_json: bool) -> None:
    """What MODEL is: architecture, quantisation, layers, sizes, licence, chat template, holders."""
    view: dict[str, Any] = connect(data, api).get(f"/models/{quote(model)}")
    if as_json:
        print_json(view)
    elif template:
        click.echo(view.get("chat_template") or "")
    else:
        print_pairs("Model", pairs_of(view))


def pairs_of(view: dict[str, Any]) -> list[tuple[str, object]]:
    """For people; what the header does not say is a dash."""

    def said(name: str) -> object:
        value = view.get(name)
        return "-" if value in (None, "") else one_line(str(value))

    text = view.get("chat_template") or ""
    shown = one_line(text)[:TEMPLATE_CHARACTERS_SHOWN]
    return [
        ("name", said("name")),
        ("title", said("title")),
        ("content id", said("manifest")),
        ("architecture", said("architecture")),
        ("quantisation", said("quantisation")),
        ("layers", said("layers")),
        ("width", said("embedding_length")),
        ("context", said("context_length")),
        ("vocabulary", said("vocabulary_size")),
        ("size", size_text(view.get("size_bytes"))),
        ("files", said("file_count")),
        ("tensors", said("tensor_count")),
        ("licence", said("license")),
        ("here", said("here")),
        ("holders", ", ".join(short(peer) for peer in view.get("holders", [])) or "-"),
        ("chat template", f"{shown} …" if len(text) > len(shown) else shown or "-"),
    ]
