"""The addresses of this machine, as other machines may dial them."""

from __future__ import annotations

import socket
from typing import Literal

import psutil

from p2pnode.transport import multiaddr
from p2pnode.transport.quic_socket import UdpSocket


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
