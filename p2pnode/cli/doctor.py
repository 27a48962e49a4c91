"""`p2pnode doctor`: what could keep this device from joining and computing, said plainly."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import click

from p2pnode.cli.link_text import direction, link_of, reasons_text
from p2pnode.cli.output import connect, print_json, since, size_text
from p2pnode.config import default_data_dir
from p2pnode.endpoint import Endpoint
from p2pnode.errors import NodeNotRunning, P2PNodeError
from p2pnode.server_address import KNOWN_PORTS

State = Literal["ok", "note", "problem"]
_MARKS: dict[State, tuple[str, str]] = {
    "ok": ("✓", "green"),
    "note": ("·", "yellow"),
    "problem": ("✗", "red"),
}
_DISK_FREE_MIN = 2 * 1000**3
_MULTICAST_WAIT_S = 0.5


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    state: State
    message: str
    hint: str = ""


def check_data_dir(folder: Path) -> Check:
    name = "data folder"
    existing = folder
    while not existing.exists():
        existing = existing.parent
    if not os.access(existing, os.W_OK):
        return Check(name, "problem", f"{folder} cannot be written", "choose another with --data")
    free = shutil.disk_usage(existing).free
    if free < _DISK_FREE_MIN:
        return Check(name, "note", f"{folder}: only {size_text(free)} free", "models need room")
    return Check(name, "ok", f"{folder}, {size_text(free)} free")


def check_memory() -> Check:
    import psutil

    memory = psutil.virtual_memory()
    return Check(
        "memory", "ok", f"{size_text(memory.available)} of {size_text(memory.total)} free, "
        f"{psutil.cpu_count(logical=False) or os.cpu_count()} cores",
    )  # fmt: skip


def check_interfaces() -> Check:
    import psutil

    addresses = []
    for name, entries in psutil.net_if_addrs().items():
        stats = psutil.net_if_stats().get(name)
        if stats is None or not stats.isup:
            continue
        addresses += [
            f"{name} {entry.address}"
            for entry in entries
            if entry.family == socket.AF_INET and not entry.address.startswith("127.")
        ]
    if not addresses:
        return Check("network", "problem", "no address but loopback", "connect to a network")
    return Check("network", "ok", "; ".join(addresses))


def check_multicast() -> Check:
    """Whether a multicast packet of ours comes back, on each interface: without that mDNS finds nobody."""
    from p2pnode.transport.multicast import multicast_interfaces, try_multicast

    name, hint = "multicast", "join with a ticket or --peer instead of mDNS"
    interfaces = multicast_interfaces()
    if not interfaces:
        return Check(name, "note", "no interface is up that carries it: devices nearby are not found", hint)
    results = [(f"{i.name} IPv{i.version}", try_multicast(i, _MULTICAST_WAIT_S)) for i in interfaces]
    works = [where for where, trouble in results if not trouble]
    fails = [f"{where} ({trouble})" for where, trouble in results if trouble]
    if not works:
        return Check(
            name, "note", f"does not work here: {', '.join(fails)}; devices nearby are not found", hint
        )
    message = f"packets of ours came back on {', '.join(works)}"
    return Check(name, "ok", f"{message}; not on {', '.join(fails)}" if fails else message)


def check_udp_port(port: int) -> Check:
    name = f"UDP port {port}"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("", port))
        except OSError as error:
            return Check(
                name, "note", f"in use or refused: {error.strerror}", "fine if a node runs; else --listen"
            )
    return Check(name, "ok", "free")


def check_engine() -> Check:
    import subprocess
    import sys

    program = (
        "import llama_cpp as l;print(l.__version__, l.llama_supports_gpu_offload(), l.llama_supports_mmap(),"
        "l.llama_print_system_info().decode(), sep='|')"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check("llama.cpp", "problem", f"cannot be tried: {error}", "reinstall llama-cpp-python")
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return Check("llama.cpp", "problem", f"does not load: {last}", "reinstall llama-cpp-python")
    version, gpu, mmap, features = [*done.stdout.strip().split("|", 3), "", "", ""][:4]
    offload = "GPU offload" if gpu == "True" else "CPU only"
    mapped = "mmap" if mmap == "True" else "no mmap"
    return Check("llama.cpp", "ok", f"{version}, {offload}, {mapped}; {' '.join(features.split())}")


def check_backends(ports: Sequence[int] = KNOWN_PORTS) -> list[Check]:
    """OpenAI-compatible servers on this machine, which could join the mesh; none is no news."""
    found = []
    for port in ports:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1.0)
        try:
            connection.request("GET", "/v1/models")
            response = connection.getresponse()
            rows = json.loads(response.read(1 << 20))["data"]
            found.append(f"127.0.0.1:{port} has {len(rows)} model{'s' if len(rows) != 1 else ''}")
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
            continue  # nothing there, or something else
        finally:
            connection.close()
    hint = "to serve them from here: p2pnode join --backend http://HOST:PORT, or p2pnode set backends.discover on"
    return [Check("other servers", "note", "; ".join(found), hint)] if found else []


def check_node(node: Endpoint) -> list[Check]:
    """The running node: its health, its clock, every peer with every address tried."""
    begun = time.monotonic()
    health = node.get("/health")
    checks = [
        Check(
            "node",
            "ok" if health.get("ready") else "note",
            f"{health.get('peer_id')} answers in {(time.monotonic() - begun) * 1000:.0f} ms, "
            + ("ready" if health.get("ready") else "not ready yet"),
        )
    ]
    view = node.get("/peers")
    me, links = str(health.get("peer_id")), view.get("links", [])
    for peer in view.get("peers", []):
        name = f"peer {peer.get('name') or str(peer.get('peer'))[-8:]}"
        if duplicate := peer.get("duplicate"):
            whose = "identity" if peer.get("self") else f"identity of {name}"
            checks.append(Check(whose, "problem", duplicate.get("message", ""), duplicate.get("hint", "")))
        if peer.get("self"):
            continue
        tried = "; ".join(
            f"{attempt.get('address')}: {attempt.get('reason') or 'ok'}"
            if isinstance(attempt, dict)
            else str(attempt)
            for attempt in peer.get("tried") or peer.get("addresses") or []
        )
        skew_ms = peer.get("clock_skew_ms")
        if peer.get("state") in ("connected", "ready", "online", "active"):
            skewed = isinstance(skew_ms, int | float) and abs(skew_ms) > 60_000
            message = f"{peer.get('path', '-')}, {peer.get('rtt_ms', '-')} ms"
            hint = f"its clock differs by {skew_ms} ms" if skewed else ""
            checks.append(Check(name, "note" if skewed else "ok", message, hint))
            checks += check_directions(name, link_of(links, me, str(peer.get("peer"))), me)
        else:
            last = since(direction(link_of(links, me, str(peer.get("peer"))), me).get("last_good_ms"))
            message = f"{peer.get('state', 'unreachable')}; last answer {last}; tried {tried or 'no address'}"
            checks.append(Check(name, "problem", message, "is it on? does a firewall block UDP?"))
    return checks


def check_directions(name: str, link: Mapping[str, Any], me: str) -> list[Check]:
    """A link that stands and that one side alone could open: it does not come back by the other."""
    checks = []
    for way in link.get("directions", []):
        if way.get("state") != "unreachable":
            continue
        is_out = way.get("from") == me
        who = f"this device does not reach {name[5:]}" if is_out else f"{name[5:]} does not reach this device"
        last = since(way.get("last_good_ms"))
        message = f"{who} by itself ({reasons_text(way) or 'no reason is told'}); last answer {last}"
        hint = (
            "let UDP in through the firewall, or name an address that others reach: p2pnode join --announce"
        )
        checks.append(Check(name, "note", message, f"on {name[5:]}: {hint}" if is_out else hint))
    return checks


@click.command()
@click.option("--data", type=click.Path(file_okay=False, path_type=Path), metavar="DIR", help="Data folder.")
@click.option("--api", metavar="HOST:PORT", help="Address of a running node's API.")
@click.option(
    "--port", type=click.IntRange(1, 65535), default=9481, show_default=True, help="QUIC port to try."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def doctor(data: Path | None, api: str | None, port: int, as_json: bool) -> int:
    """Check this machine and the links to every peer; exit code 1 when something is wrong."""
    folder = data or default_data_dir(os.environ)
    steps: list[Callable[[], Check]] = [
        lambda: check_data_dir(folder),
        check_memory,
        check_interfaces,
        check_multicast,
        lambda: check_udp_port(port),
        check_engine,
    ]
    checks = [*(step() for step in steps), *check_backends()]
    try:
        checks += check_node(connect(data, api))
    except NodeNotRunning as error:
        checks.append(Check("node", "note", error.message, error.hint))
    except P2PNodeError as error:
        checks.append(Check("node", "problem", error.message, error.hint))
    bad = any(check.state == "problem" for check in checks)
    if as_json:
        print_json({"ok": not bad, "checks": [asdict(check) for check in checks]})
        return int(bad)
    for check in checks:
        mark, color = _MARKS[check.state]
        click.echo(f"{click.style(mark, fg=color)} {check.name}: {check.message}")
        if check.hint:
            click.echo(f"    {check.hint}")
    return int(bad)
