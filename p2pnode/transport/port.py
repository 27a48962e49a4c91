"""The transport port: what the rest of the node knows of the wire.

Implementations: `memory.py` (seeded faults, for tests and the simulator) and `quic.py` (libp2p over
QUIC). Both pass the same contract tests.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from p2pnode.errors import P2PNodeError
from p2pnode.units import PeerId

Buffer = bytes | bytearray | memoryview


class Stream(Protocol):
    """One bidirectional stream, protocol already negotiated by multistream-select."""

    @property
    def protocol(self) -> str: ...

    @property
    def peer_id(self) -> PeerId:
        """The authenticated other end."""
        ...

    @property
    def connection(self) -> Connection: ...

    async def write(self, *chunks: Buffer) -> None:
        """Send; returns when the send window has room again (back-pressure), raises StreamReset / ConnectionLost."""
        ...

    async def read(self, size_max: int) -> bytes:
        """1..size_max bytes as soon as any are there; b"" once the peer closed its side."""
        ...

    async def read_exactly(self, size: int) -> bytes:
        """Exactly `size` bytes; RemoteProtocolError when the peer closes before."""
        ...

    async def close_write(self) -> None:
        """Send FIN: no more bytes from us; reading goes on."""
        ...

    def reset(self, code: int = 0) -> None:
        """Abort both directions; safe to call twice and after an end."""
        ...


@dataclass(frozen=True, slots=True)
class ConnectionStats:
    rtt_s: float
    bytes_sent: int
    bytes_received: int
    streams_open: int
    datagram_bytes: int
    path: str = "direct"


class Connection(Protocol):
    @property
    def peer_id(self) -> PeerId: ...

    @property
    def remote_multiaddr(self) -> str: ...

    @property
    def is_outbound(self) -> bool:
        """Whether this side opened it."""
        ...

    @property
    def is_closed(self) -> bool: ...

    @property
    def error(self) -> P2PNodeError | None:
        """Why it ended; None while it lives."""
        ...

    def stats(self) -> ConnectionStats: ...

    async def open_stream(self, protocol: str, *, timeout_s: float | None = None) -> Stream:
        """Negotiate one protocol; RemoteProtocolError when the peer does not speak it (or not to us)."""
        ...

    async def ping(self, *, timeout_s: float | None = None) -> float:
        """One libp2p ping; seconds."""
        ...

    def nudge(self) -> None:
        """Ask for a sign of life without waiting for it: it counts as bytes received."""
        ...

    async def close(self, code: int = 0, reason: str = "") -> None: ...


StreamHandler = Callable[[Stream], Awaitable[None]]
Gate = Callable[[PeerId, str], bool]
"""May this peer open this protocol? Asked for every inbound stream; a refused one gets `na`."""
ConnectionObserver = Callable[[Connection, bool], None]
"""Called with True when an authenticated connection came up, False when it is gone."""


class Transport(Protocol):
    @property
    def peer_id(self) -> PeerId: ...

    @property
    def listen_multiaddrs(self) -> Sequence[str]:
        """Bound addresses, wildcard ones expanded to real interfaces, without /p2p."""
        ...

    def handle(self, protocol: str, handler: StreamHandler) -> None:
        """Serve a protocol; the stream is reset when the handler raises and closed when it returns."""
        ...

    def set_gate(self, gate: Gate) -> None: ...

    def observe(self, observer: ConnectionObserver) -> None: ...

    def connection(self, peer_id: PeerId) -> Connection | None:
        """A live connection to this peer, if there is one (inbound or outbound)."""
        ...

    def connections(self) -> Sequence[Connection]: ...

    async def dial(
        self, multiaddrs: Sequence[str], peer_id: PeerId, *, timeout_s: float | None = None
    ) -> Connection:
        """Reuse or make a connection; addresses are tried in parallel, staggered.

        Raises PeerUnreachable(tried=[[address, reason], ...]), IdentityMismatch, HandshakeRefused.
        """
        ...

    async def probe(self, multiaddrs: Sequence[str], peer_id: PeerId) -> list[list[str]]:
        """Whether the peer's addresses answer somebody who is not connected: [[address, reason]], "" for an answer.

        No connection is made or used, so who answers is not verified.
        """
        ...

    def announce(self) -> None:
        """Tell connected peers of new protocols or addresses (identify/push)."""
        ...

    def counters(self) -> Mapping[str, int]:
        """What came, went and was refused so far: `refused_<reason>`, `gate_refused` and others, for metrics.

        `received <protocol>` and `sent <protocol>` are bytes of its streams, after negotiation.
        """
        ...

    async def start(self) -> None:
        """Bind and listen; raises PortTaken."""
        ...

    async def close(self) -> None: ...
