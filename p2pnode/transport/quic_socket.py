"""UDP sockets: one per listen address, shared by dialling and listening; drained and filled in batches."""

from __future__ import annotations

import errno
import logging
import socket
import sys
from collections.abc import Callable

from aioquic.quic.connection import NetworkAddress

from p2pnode import limits
from p2pnode.errors import ConfigError, PortTaken

BATCH_DATAGRAMS = 64
"""Per wake-up of the event loop: enough to amortise it, few enough to stay responsive (about 4 ms)."""

DATAGRAM_BYTES_READ_MAX = 65_535

# Linux numbers (linux/in.h, linux/in6.h, asm-generic/socket.h); Python does not name them.
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE = 10, 23, 3
_SOL_UDP, _UDP_SEGMENT, _UDP_GRO = 17, 103, 104
_CONTROL_BYTES = socket.CMSG_SPACE(4)
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33

_SEGMENTS_MAX = 64
"""UDP_MAX_SEGMENTS of Linux before 6.9."""
_SEGMENTED_BYTES_MAX = 65_000

OnDatagram = Callable[["UdpSocket", bytes, NetworkAddress], None]

logger = logging.getLogger(__name__)


class UdpSocket:
    """A bound, non-blocking UDP socket."""

    def __init__(self, host: str, port: int) -> None:
        is_ipv6 = ":" in host
        self.family = socket.AF_INET6 if is_ipv6 else socket.AF_INET
        self._socket = socket.socket(self.family, socket.SOCK_DGRAM)
        try:
            self._socket.setblocking(False)
            if is_ipv6:
                self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            self._set_buffers()
            self._forbid_fragments(is_ipv6)
            self._keep_runs_together()
            self._socket.bind(_resolve_zone(host, port) if is_ipv6 else (host, port))
        except OSError as error:
            self._socket.close()
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                raise PortTaken(
                    f"UDP port {port} of {host} cannot be used: {error.strerror}",
                    hint="another program uses this port; choose another with --listen MULTIADDR",
                ) from error
            raise ConfigError(
                f"cannot listen on {host}: {error.strerror or error}",
                hint="is this an address of this machine?",
            ) from error
        name = self._socket.getsockname()
        self.host: str = name[0]
        self.port: int = name[1]
        self._can_segment = sys.platform == "linux"
        self.datagrams_received = 0
        self.datagrams_sent = 0
        self.datagrams_dropped = 0

    @property
    def is_wildcard(self) -> bool:
        return self.host in ("0.0.0.0", "::")  # noqa: S104  (compared, not bound)

    @property
    def is_loopback(self) -> bool:
        return self.host.startswith("127.") or self.host == "::1"

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def _set_buffers(self) -> None:
        options = ((socket.SO_SNDBUF, _SO_SNDBUFFORCE), (socket.SO_RCVBUF, _SO_RCVBUFFORCE))
        for plain, forced in options:
            if sys.platform == "linux":
                try:
                    self._socket.setsockopt(socket.SOL_SOCKET, forced, limits.SOCKET_BUFFER_BYTES)
                    continue
                except PermissionError:
                    logger.debug("socket buffers stay within the system's maximum")
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, plain, limits.SOCKET_BUFFER_BYTES)
            except OSError as error:
                logger.debug("socket buffer stays at the system's default: %s", error)

    def _forbid_fragments(self, is_ipv6: bool) -> None:
        """Probes must find the path's size, not the kernel's skill at fragmenting (RFC 9000 section 14)."""
        if sys.platform != "linux":
            return
        if is_ipv6:
            self._socket.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)
        else:
            self._socket.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)

    def _keep_runs_together(self) -> None:
        """Generic receive offload: one read for many datagrams of equal size."""
        if sys.platform == "linux":
            try:
                self._socket.setsockopt(_SOL_UDP, _UDP_GRO, 1)
            except OSError as error:
                logger.debug("the system has no receive offload for UDP: %s", error)

    def receive_batch(self, on_datagram: OnDatagram) -> None:
        """What waits in the socket, up to a batch; runs that the system kept together are taken apart."""
        count = self._receive(on_datagram)
        self.datagrams_received += count

    def _receive(self, on_datagram: OnDatagram) -> int:
        receive = self._socket.recvmsg
        count = 0
        while count < BATCH_DATAGRAMS:
            try:
                data, control, _, address = receive(DATAGRAM_BYTES_READ_MAX, _CONTROL_BYTES)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                # An ICMP error of an earlier datagram; QUIC has its own timers.
                logger.debug("receiving failed: %s", error)
                break
            segment = len(data)
            for level, kind, value in control:
                if level == _SOL_UDP and kind == _UDP_GRO:
                    segment = int.from_bytes(value[:4], sys.byteorder)
            if segment >= len(data):
                count += 1
                on_datagram(self, data, address)
                continue
            for start in range(0, len(data), segment):
                count += 1
                on_datagram(self, data[start : start + segment], address)
        return count

    def send_batch(self, datagrams: list[tuple[bytes, NetworkAddress]]) -> None:
        """In order; runs of equal size to one address leave in one system call where the system can."""
        start, count = 0, len(datagrams)
        while start < count:
            stop = self._run_end(datagrams, start) if self._can_segment else start + 1
            if stop - start > 1:
                self._send_run(datagrams, start, stop)
            else:
                self._send_one(*datagrams[start])
            start = stop

    @staticmethod
    def _run_end(datagrams: list[tuple[bytes, NetworkAddress]], start: int) -> int:
        """End of the run that generic segmentation can carry: equal sizes, only the last may be smaller."""
        first, address = datagrams[start]
        size = total = len(first)
        stop, end = start + 1, min(len(datagrams), start + _SEGMENTS_MAX)
        while stop < end and datagrams[stop][1] == address:
            next_size = len(datagrams[stop][0])
            total += next_size
            if next_size > size or total > _SEGMENTED_BYTES_MAX:
                break
            stop += 1
            if next_size < size:
                break
        return stop

    def _send_run(self, datagrams: list[tuple[bytes, NetworkAddress]], start: int, stop: int) -> None:
        first, address = datagrams[start]
        control = [(_SOL_UDP, _UDP_SEGMENT, len(first).to_bytes(2, sys.byteorder))]
        try:
            self._socket.sendmsg([data for data, _ in datagrams[start:stop]], control, 0, address)
        except (BlockingIOError, InterruptedError):
            self.datagrams_dropped += stop - start
        except OSError as error:
            # No segmentation on this interface, or datagrams too large for it: one at a time tells which.
            if error.errno in (errno.EIO, errno.EOPNOTSUPP):
                self._can_segment = False
            for index in range(start, stop):
                self._send_one(*datagrams[index])
        else:
            self.datagrams_sent += stop - start

    def _send_one(self, data: bytes, address: NetworkAddress) -> None:
        try:
            self._socket.sendto(data, address)
        except (BlockingIOError, InterruptedError):
            # The send buffer is full: loss recovery sends again, at the pace the path takes.
            self.datagrams_dropped += 1
        except OSError as error:
            # Too large for the interface (a probe's answer), no route, or the address went away.
            self.datagrams_dropped += 1
            logger.debug("sending %d bytes failed: %s", len(data), error)
        else:
            self.datagrams_sent += 1


def _resolve_zone(host: str, port: int) -> tuple[str, int, int, int]:
    address, _, zone = host.partition("%")
    if not zone:
        return address, port, 0, 0
    return address, port, 0, int(zone) if zone.isdigit() else socket.if_nametoindex(zone)


def socket_address(host: str, port: int, family: socket.AddressFamily) -> NetworkAddress:
    """The address in the exact form recvfrom reports it, so that paths compare equal."""
    if family == socket.AF_INET6:
        host_only, _, zone = host.partition("%")
        full = _resolve_zone(host, port)
        return (f"{host_only}%{zone}" if zone else host_only, port, 0, full[3])
    return (host, port)
