"""The addresses of this machine, as other machines may dial them."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Literal

import psutil

from p2pnode.transport import multiaddr
from p2pnode.transport.quic_socket import UdpSocket

_ROUTES = Path("/proc/net/route")
_RTF_GATEWAY = 0x2


def default_gateway() -> str | None:
    """The router that this machine's IPv4 traffic leaves by; None when there is none, or no way to know."""
    if sys.platform == "linux":
        try:
            lines = _ROUTES.read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            return None
        return _gateway_of(lines)
    if sys.platform == "darwin":
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            command = ["/sbin/route", "-n", "get", "default"]
            said = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False).stdout
            if found := re.search(r"gateway: ([0-9.]+)$", said, re.MULTILINE):
                return found[1]
    return None


def _gateway_of(lines: list[str]) -> str | None:
    """From lines of /proc/net/route: interface, destination, gateway, flags, ..., metric, mask."""
    routes: list[tuple[int, str]] = []
    for line in lines:
        fields = line.split()
        if len(fields) >= 8 and fields[1] == fields[7] == "00000000" and int(fields[3], 16) & _RTF_GATEWAY:
            # Hexadecimal in the byte order of the machine.
            packed = int(fields[2], 16).to_bytes(4, sys.byteorder)
            routes.append((int(fields[6]), socket.inet_ntoa(packed)))
    return min(routes)[1] if routes else None


def interface_multiaddrs(udp: UdpSocket) -> list[str]:
    """The addresses behind a bound socket: its own, or those of every interface that is up."""
    if not udp.is_wildcard:
        return [multiaddr.QuicAddress("ip6" if ":" in udp.host else "ip4", udp.host, udp.port).multiaddr()]
    kind: Literal["ip4", "ip6"] = "ip6" if udp.family == socket.AF_INET6 else "ip4"
    up = {name for name, status in psutil.net_if_stats().items() if status.isup}
    hosts = [
        entry.address
        for name, entries in psutil.net_if_addrs().items()
        if name in up
        for entry in entries
        if entry.family == udp.family and not entry.address.lower().startswith("fe80:")
    ]
    # Link-local addresses mean nothing without the zone of whoever dials.
    # Loopback last: it is of use to nodes of the same machine only.
    hosts.sort(key=lambda host: host.startswith("127.") or host == "::1")
    return [multiaddr.QuicAddress(kind, host, udp.port).multiaddr() for host in hosts]
