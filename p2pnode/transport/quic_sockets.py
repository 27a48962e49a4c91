"""The UDP sockets of a node: one for each listen address, which dials too, and others where none of those can."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence

from aioquic.quic.connection import NetworkAddress

from p2pnode import limits
from p2pnode.errors import ConfigError, P2PNodeError
from p2pnode.multiformats import DecodeError
from p2pnode.transport import multiaddr
from p2pnode.transport.interfaces import interface_multiaddrs
from p2pnode.transport.quic_socket import UdpSocket


class UdpSockets:
    """`readable` is told which socket has datagrams."""

    def __init__(self, listen: Sequence[str], readable: Callable[[UdpSocket], None]) -> None:
        self._listen = parse_listen(listen)
        self._readable = readable
        self.all: list[UdpSocket] = []
        """Those that listen first, in the order of their addresses."""

    def open(self) -> None:
        """All that listen, or none."""
        try:
            for address in self._listen:
                self._bind(address.host, address.port)
        except P2PNodeError:
            self.close()
            raise

    def _bind(self, host: str, port: int) -> UdpSocket:
        udp = UdpSocket(host, port)
        self.all.append(udp)
        asyncio.get_running_loop().add_reader(udp.fileno(), self._readable, udp)
        return udp

    def close(self) -> None:
        for udp in self.all:
            asyncio.get_running_loop().remove_reader(udp.fileno())
            udp.close()
        self.all.clear()

    @property
    def listening(self) -> list[UdpSocket]:
        return self.all[: len(self._listen)]

    @property
    def multiaddrs(self) -> list[str]:
        """Under which the node can be dialled; wildcards as the addresses of the machine's interfaces."""
        expanded = [address for udp in self.listening for address in interface_multiaddrs(udp)]
        return list(dict.fromkeys(expanded))[: limits.LISTEN_ADDRESSES_MAX]

    def reaching(self, family: socket.AddressFamily, address: NetworkAddress) -> UdpSocket:
        """A listening socket that can reach the address, or one that only dials."""
        to_loopback = str(address[0]).startswith("127.") or address[0] == "::1"
        for udp in self.all:
            if udp.family == family and (udp.is_wildcard or udp.is_loopback == to_loopback):
                return udp
        return self._bind("0.0.0.0" if family == socket.AF_INET else "::", 0)  # noqa: S104 (dials only)

    def counters(self) -> dict[str, int]:
        return {
            "datagrams_received": sum(udp.datagrams_received for udp in self.all),
            "datagrams_sent": sum(udp.datagrams_sent for udp in self.all),
            "datagrams_dropped": sum(udp.datagrams_dropped for udp in self.all),
        }


def parse_listen(listen: Sequence[str]) -> list[multiaddr.QuicAddress]:
    """ConfigError unless each is an address of this machine."""
    addresses = []
    for text in listen:
        try:
            address = multiaddr.quic_address(text)
        except DecodeError as error:
            raise ConfigError(
                f"cannot listen on {text}: {error}",
                hint="write for example /ip4/0.0.0.0/udp/9481/quic-v1",
            ) from error
        if address.kind not in ("ip4", "ip6"):
            raise ConfigError(
                f"cannot listen on {text}: give an address of this machine, not a name",
                hint="write for example /ip4/0.0.0.0/udp/9481/quic-v1",
            )
        addresses.append(address)
    return addresses
