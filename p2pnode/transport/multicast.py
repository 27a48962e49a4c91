"""Which interfaces of this machine can carry mDNS, and whether multicast really works on each."""

from __future__ import annotations

import contextlib
import socket
import struct
from dataclasses import dataclass
from typing import Literal

import psutil

GROUPS: dict[socket.AddressFamily, str] = {socket.AF_INET: "224.0.0.251", socket.AF_INET6: "ff02::fb"}
"""RFC 6762 section 3."""
_BRIDGES = ("docker", "br-", "veth", "virbr", "cni", "flannel")
"""Peers behind the bridges of containers are this very machine (exo picked docker0)."""
_HELLO = b"p2pnode looks whether multicast works here"


@dataclass(frozen=True, slots=True)
class Interface:
    """One interface with one protocol."""

    name: str
    version: Literal[4, 6]
    address: str
    index: int

    @property
    def for_zeroconf(self) -> str | int:
        """zeroconf knows IPv4 interfaces by address and IPv6 ones by index."""
        return self.address if self.version == 4 else self.index


def multicast_interfaces() -> list[Interface]:
    """Those that are up and say that they carry multicast; loopback when there is nothing else."""
    stats = psutil.net_if_stats()
    real: list[Interface] = []
    loopback: list[Interface] = []
    for name, entries in sorted(psutil.net_if_addrs().items()):
        if name not in stats or not stats[name].isup or name.startswith(_BRIDGES):
            continue
        is_loopback = any(entry.address.startswith("127.") for entry in entries)
        # An empty text where psutil has no flags. Loopback hardly ever says multicast, and yet does it.
        if stats[name].flags and "multicast" not in stats[name].flags.split(",") and not is_loopback:
            continue
        try:
            index = socket.if_nametoindex(name)
        except OSError:  # it went away meanwhile
            continue
        (loopback if is_loopback else real).extend(_protocols(name, index, entries))
    return real or [interface for interface in loopback if interface.version == 4]


def _protocols(name: str, index: int, entries: list[psutil._common.snicaddr]) -> list[Interface]:
    found = [Interface(name, 4, e.address, index) for e in entries if e.family == socket.AF_INET]
    # One IPv6 address is enough: groups are joined by interface.
    sixes = sorted(
        (e.address for e in entries if e.family == socket.AF_INET6), key=lambda a: not a.startswith("fe80:")
    )
    return found + [Interface(name, 6, address, index) for address in sixes[:1]]


def try_multicast(interface: Interface, timeout_s: float) -> str:
    """Sends a packet to the mDNS group on an interface and waits for it; "" when it came back, else why not."""
    family = socket.AF_INET if interface.version == 4 else socket.AF_INET6
    try:
        with (
            socket.socket(family, socket.SOCK_DGRAM) as receiver,
            socket.socket(family, socket.SOCK_DGRAM) as sender,
        ):
            receiver.bind(("", 0))
            receiver.settimeout(timeout_s)
            _join(receiver, sender, interface)
            port = receiver.getsockname()[1]
            scope = (0, interface.index) if interface.version == 6 else ()
            sender.sendto(_HELLO, (GROUPS[family], port, *scope))
            while receiver.recvfrom(256)[0] != _HELLO:
                continue
    except TimeoutError:
        return "no packet came back"
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _join(receiver: socket.socket, sender: socket.socket, interface: Interface) -> None:
    if interface.version == 4:
        own = socket.inet_aton(interface.address)
        group = socket.inet_aton(GROUPS[socket.AF_INET])
        receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group + own)
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, own)
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 1)
        return
    number = struct.pack("@I", interface.index)
    group = socket.inet_pton(socket.AF_INET6, GROUPS[socket.AF_INET6])
    receiver.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group + number)
    sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, number)
    with contextlib.suppress(OSError):
        sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 1)
