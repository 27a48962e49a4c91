"""Commands about who belongs: approve, refuse, revoke, and the meshes nearby."""

from __future__ import annotations

from pathlib import Path

import click

from p2pnode.cli import complete
from p2pnode.cli.device_commands import say
from p2pnode.cli.output import connect, node_options, one_line, print_json, print_table, short
from p2pnode.endpoint import Endpoint
from p2pnode.errors import NotFound


@click.command()
@click.argument("device", shell_complete=complete.devices)
@node_options
def approve(device: str, data: Path | None, api: str | None, as_json: bool) -> None:
    """Let in the DEVICE that asks: its match code, as its own screen shows it, or its name."""
    answer = connect(data, api).post("/command/approve_peer", {"peer": device})
    say(answer, f"{one_line(answer['name'])} is let in", as_json=as_json)


@click.command()
@click.argument("device", shell_complete=complete.devices)
@node_options
def refuse(device: str, data: Path | None, api: str | None, as_json: bool) -> None:
    """Say no to the DEVICE that asks: its match code or its name."""
    answer = connect(data, api).post("/command/refuse_peer", {"peer": device})
    say(answer, f"{one_line(answer['name'])} is refused", as_json=as_json)


@click.command()
@click.argument("device", shell_complete=complete.devices)
@click.option("--reason", default="", metavar="TEXT", help="Why, for the record.")
@node_options
def revoke(device: str, reason: str, data: Path | None, api: str | None, as_json: bool) -> None:
    """End the membership of a DEVICE (name or peer id): every member refuses it from then on."""
    node = connect(data, api)
    peer = peer_named(node, device)
    answer = node.post("/command/revoke_peer", {"peer": peer, "reason": reason})
    say(answer, f"{device} is a member no longer", as_json=as_json)


@click.command("verify-peer")
@click.argument("device", shell_complete=complete.devices)
@node_options
def verify_peer(device: str, data: Path | None, api: str | None, as_json: bool) -> None:
    """Fetch the record of another DEVICE (name or peer id) through this node, and check all of it."""
    node = connect(data, api)
    answer = node.post("/command/verify_peer_log", {"peer": peer_named(node, device)})
    say(
        answer,
        f"{device}: {answer['size']} entries are what was signed, root {answer['root'][:16]}",
        as_json=as_json,
    )


def peer_named(node: Endpoint, device: str) -> str:
    """Peer id of a device given by name or id; NotFound says how many there are."""
    found = [row["peer"] for row in node.get("/peers")["peers"] if device in (row["peer"], row.get("name"))]
    if len(found) != 1:
        problem = "there is no device" if not found else f"{len(found)} devices are called"
        raise NotFound(f"{problem} {one_line(device)!r}", hint="p2pnode peers --json shows the peer ids")
    return str(found[0])


def list_nearby(*, as_json: bool) -> int:
    """`p2pnode join --nearby`."""
    import asyncio

    from p2pnode.node.nearby import meshes_nearby

    found, here = asyncio.run(meshes_nearby())
    rows = [
        {
            "mesh": entry.mesh_name,
            "mesh_key": entry.mesh_key.hex(),
            "name": entry.name,
            "peer": peer,
            "addresses": [f"{address}/p2p/{peer}" for address in found[peer]],
        }
        for peer, entry in here.items()
    ]
    if as_json:
        print_json({"nearby": rows})
        return 0
    table = [
        (one_line(str(r["mesh"])), one_line(str(r["name"])), short(str(r["peer"])), *r["addresses"][:1])
        for r in rows
    ]
    print_table("Nearby", ("MESH", "DEVICE", "PEER", "ADDRESS"), table)
    return 0
