"""`p2pnode join`: the node itself, in the foreground."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("ticket", required=False)
@click.option(
    "--invite-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Read the ticket from a file; - is stdin.",
)
@click.option("--ask", is_flag=True, help="Ask a mesh to be let in: the one nearby, or the member of --peer.")
@click.option("--moved", is_flag=True, help="The data folder was moved here; the other device is gone.")
@click.option("--nearby", is_flag=True, help="List the meshes on this network, and end.")
@click.option(
    "--data", type=click.Path(file_okay=False, path_type=Path), metavar="DIR", help="Data folder of the node."
)
@click.option(
    "--config",
    "config_file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="TOML file of options [default: DIR/config.toml].",
)
@click.option("--name", metavar="NAME", help="How people call this device [default: host name].")
@click.option(
    "--listen",
    multiple=True,
    metavar="MULTIADDR",
    help="QUIC address to listen on [default: /ip4/0.0.0.0/udp/9481/quic-v1].",
)
@click.option(
    "--announce",
    multiple=True,
    metavar="MULTIADDR",
    help="Tell others this address instead of the bound ones.",
)
@click.option("--api", metavar="HOST:PORT", help="Address of API and panel [default: 127.0.0.1:9480].")
@click.option("--peer", "peers", multiple=True, metavar="MULTIADDR", help="Dial this address at start.")
@click.option(
    "--model",
    "models",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Add a GGUF file to the store.",
)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    metavar="URL",
    help="Serve the models of an OpenAI-compatible server (llama-server, Ollama ...): http://[:KEY@]HOST:PORT.",
)
@click.option("--threads", type=int, metavar="N", help="Compute threads [default: physical cores].")
@click.option("--memory-max", "memory_max_bytes", metavar="SIZE", help="Most memory for models, e.g. 6G.")
@click.option("--no-mdns", is_flag=True, help="Do not announce or look for members on the local network.")
@click.option(
    "--port-mapping",
    is_flag=True,
    help="Ask the router (PCP, NAT-PMP or UPnP) to forward this node's UDP port.",
)
@click.option(
    "--metered", is_flag=True, help="Traffic costs money here: fetch no models unless asked by name."
)
@click.option(
    "--allow-host", "allowed_hosts", multiple=True, metavar="NAME", help="Host name the API also answers to."
)
@click.option(
    "--traces", is_flag=True, help="Send traces by OTLP/HTTP to what OTEL_EXPORTER_OTLP_ENDPOINT names."
)
@click.option("--console", is_flag=True, help="Enable POST /shell/exec for admin keys on this machine.")
@click.option(
    "--mcp", type=click.Path(path_type=Path), metavar="FILE", help="JSON file of tool servers for agents."
)
@click.option("--oidc-issuer", metavar="URL", help="Take tokens of this OpenID issuer as keys.")
@click.option("--oidc-audience", metavar="NAME", help="What their `aud` must name [default: p2pnode].")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document once the node is ready.")
def join(
    config_file: Path | None,
    ask: bool,
    moved: bool,
    nearby: bool,
    no_mdns: bool,
    port_mapping: bool,
    metered: bool,
    traces: bool,
    console: bool,
    as_json: bool,
    **flags: Any,
) -> int:
    """Start this device's node and stay in the foreground.

    The first device of all makes a mesh and prints a ticket; others join with TICKET. A device that has
    joined before needs no ticket; with --ask the owner lets it in by comparing two codes.
    SIGTERM and Ctrl-C stop it cleanly.
    """
    if nearby:
        from p2pnode.cli.admission import list_nearby

        return list_nearby(as_json=as_json)
    from p2pnode.bootstrap import run_node
    from p2pnode.config import load_options

    flags["as_json"] = as_json
    flags |= {
        "mdns": False if no_mdns else None,
        "traces": True if traces else None,
        "console": True if console else None,
        "ask": True if ask else None,
        "moved": True if moved else None,
        "port_mapping": True if port_mapping else None,
        "metered": True if metered else None,
    }
    resolved = load_options(flags, config_file=config_file)
    return run_node(resolved.options)
