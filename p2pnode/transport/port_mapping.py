"""A port of the home router forwarded to this node: by PCP or NAT-PMP, else by UPnP.

All of it blocks for seconds at most; callers run it in a thread.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import TypeVar

from p2pnode import limits
from p2pnode.errors import TransportError
from p2pnode.multiformats import DecodeError
from p2pnode.transport import nat_pmp, upnp
from p2pnode.transport.interfaces import default_gateway
from p2pnode.transport.multiaddr import QuicAddress

_Answer = TypeVar("_Answer")
_NOT_PUBLIC = [
    IPv4Network(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")
]


@dataclass(frozen=True, slots=True)
class PortMapping:
    address: str
    """Multiaddress under which the router forwards."""
    external_port: int
    lifetime_s: int
    way: str
    end: Callable[[], bool]
    """Takes the mapping back; False when the router would not, then its lifetime ends it."""


def map_port(
    port: int,
    *,
    nonce: bytes,
    gateway: tuple[str, int] | None = None,
    description_url: str = "",
) -> PortMapping:
    """Ask the router to forward a UDP port, the same number outside when it is free; asked again it renews.

    `nonce` names this node's mapping to the router. Raises: TransportError with what every way said.
    """
    said: list[TransportError] = []
    found = gateway or _gateway()
    ways: list[Callable[[], PortMapping]] = [lambda: _by_upnp(port, description_url)]
    if found is not None:
        ways.insert(0, lambda: _by_gateway(found, port, nonce))
    for way in ways:
        try:
            return _public(way())
        except TransportError as error:
            said.append(error)
    hints = list(dict.fromkeys(error.hint for error in said if error.hint))
    raise TransportError("; ".join(error.message for error in said), hint="; ".join(hints))


def _gateway() -> tuple[str, int] | None:
    host = default_gateway()
    return (host, nat_pmp.PORT) if host else None


def _public(mapping: PortMapping) -> PortMapping:
    """A router behind another router forwards to nobody outside."""
    host = IPv4Address(mapping.address.split("/")[2]) if mapping.address.startswith("/ip4/") else None
    if host is not None and any(host in network for network in _NOT_PUBLIC):
        mapping.end()
        raise TransportError(
            f"the router forwards by {mapping.way}, but its own address outside, {host}, is not public: another "
            "router or the provider is in between",
            hint="forward the port on that router too, or ask the provider for a public address",
        )
    return mapping


def _by_upnp(port: int, description_url: str) -> PortMapping:
    made = upnp.map_port(port, description_url=description_url)
    return PortMapping(
        made.address, made.external_port, limits.PORT_MAPPING_LEASE_S, "UPnP", lambda: upnp.end_mapping(made)
    )


# --- PCP and NAT-PMP -------------------------------------------------------------------------------
def _by_gateway(gateway: tuple[str, int], port: int, nonce: bytes) -> PortMapping:
    with _connected(gateway) as sock:
        own = str(sock.getsockname()[0])
        lifetime_s = limits.PORT_MAPPING_LEASE_S
        try:
            request = nat_pmp.pcp_request(own, port, port, lifetime_s, nonce)
            granted = _ask(sock, request, lambda data: nat_pmp.read_pcp(data, port, nonce))
        except nat_pmp.RefusedError as refused:
            if not refused.is_version:
                raise
            return _by_nat_pmp(sock, gateway, port)
        except TransportError:
            # Some older routers drop a version that they do not know.
            return _by_nat_pmp(sock, gateway, port)
    end = nat_pmp.pcp_request(own, port, 0, 0, nonce)
    return _made(granted, "PCP", lambda: _end(gateway, end, lambda data: nat_pmp.read_pcp(data, port, nonce)))


def _by_nat_pmp(sock: socket.socket, gateway: tuple[str, int], port: int) -> PortMapping:
    host = _ask(sock, nat_pmp.address_request(), nat_pmp.read_address)
    request = nat_pmp.map_request(port, port, limits.PORT_MAPPING_LEASE_S)
    granted = _ask(sock, request, lambda data: nat_pmp.read_map(data, port))
    granted = nat_pmp.Granted(granted.external_port, granted.lifetime_s, granted.epoch_s, host)
    end = nat_pmp.map_request(port, 0, 0)
    return _made(granted, "NAT-PMP", lambda: _end(gateway, end, lambda data: nat_pmp.read_map(data, port)))


def _made(granted: nat_pmp.Granted, way: str, end: Callable[[], bool]) -> PortMapping:
    kind = "ip6" if ":" in granted.host else "ip4"
    address = QuicAddress("ip6" if kind == "ip6" else "ip4", granted.host, granted.external_port).multiaddr()
    return PortMapping(address, granted.external_port, granted.lifetime_s, way, end)


def _connected(gateway: tuple[str, int]) -> socket.socket:
    """Connected, so that only the gateway's own answers are heard."""
    family = socket.AF_INET6 if ":" in gateway[0] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.connect(gateway)
    except OSError as error:
        sock.close()
        raise TransportError(
            f"the router at {gateway[0]} cannot be asked: {error.strerror or error}"
        ) from None
    return sock


def _ask(sock: socket.socket, request: bytes, read: Callable[[bytes], _Answer]) -> _Answer:
    """Sent again with growing patience; what is no answer to it is passed over."""
    wait_s = limits.NAT_PMP_WAIT_S
    for _ in range(limits.NAT_PMP_TRIES):
        deadline = time.monotonic() + wait_s
        try:
            sock.send(request)
            while (left_s := deadline - time.monotonic()) > 0:
                sock.settimeout(left_s)
                with contextlib.suppress(DecodeError):
                    return read(sock.recv(nat_pmp.MESSAGE_BYTES_MAX + 1))
        except TimeoutError:
            pass
        except OSError:
            # Nothing listens there (an ICMP error of the last send). A router that starts just now may, soon.
            time.sleep(max(0.0, deadline - time.monotonic()))
        wait_s *= 2
    raise TransportError(
        f"the router at {sock.getpeername()[0]} answers neither PCP nor NAT-PMP",
        hint="switch one of PCP, NAT-PMP and UPnP on in the router, or forward the UDP port there by hand",
    )


def _end(gateway: tuple[str, int], request: bytes, read: Callable[[bytes], nat_pmp.Granted]) -> bool:
    try:
        with _connected(gateway) as sock:
            _ask(sock, request, read)
    except TransportError:
        return False
    return True
