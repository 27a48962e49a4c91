"""Which protocols this node speaks, and to whom: shared by every implementation of the transport.

Ping and identify answer everyone; anything else asks the gate for each inbound stream.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from p2pnode.errors import ConnectionLost, P2PNodeError, PeerTimeout, StreamReset
from p2pnode.transport import identify, ping
from p2pnode.transport.port import Connection, ConnectionObserver, Gate, Stream, StreamHandler
from p2pnode.units import PeerId

PUBLIC_PROTOCOLS = frozenset({ping.PROTOCOL, identify.PROTOCOL, identify.PROTOCOL_PUSH})

RESET_PROTOCOL_VIOLATION = 0x1003
"""libp2p's code for: the peer broke the protocol."""
RESET_INTERNAL = 0x1
"""Below 0x1000 codes are the implementation's own."""

logger = logging.getLogger(__name__)


def _admit_all(_peer_id: PeerId, _protocol: str) -> bool:
    return True


class Router:
    """Handlers by protocol, the gate, and who wants to know about connections."""

    def __init__(self) -> None:
        self._handlers: dict[str, StreamHandler] = {}
        self._gate: Gate = _admit_all
        self._observers: list[ConnectionObserver] = []
        self.refused_count = 0
        self._moved: dict[str, list[int]] = {}
        self.on_protocols_changed: Callable[[], None] | None = None

    def handle(self, protocol: str, handler: StreamHandler) -> None:
        self._handlers[protocol] = handler
        if self.on_protocols_changed is not None:
            self.on_protocols_changed()

    def set_gate(self, gate: Gate) -> None:
        self._gate = gate

    def observe(self, observer: ConnectionObserver) -> None:
        self._observers.append(observer)

    @property
    def protocols(self) -> tuple[str, ...]:
        """What identify announces."""
        return tuple(self._handlers)

    def accepts(self, peer_id: PeerId, protocol: str) -> bool:
        """Spoken here, and to this peer; a refused protocol is told apart from an unknown one by nobody."""
        if protocol not in self._handlers:
            return False
        if protocol in PUBLIC_PROTOCOLS or self._gate(peer_id, protocol):
            return True
        self.refused_count += 1
        return False

    def moved_by(self, protocol: str) -> list[int]:
        """Bytes received and sent by all streams of a protocol, which add to it themselves."""
        return self._moved.setdefault(protocol, [0, 0])

    def moved_counters(self) -> dict[str, int]:
        ways = (("received", 0), ("sent", 1))
        return {f"{way} {p}": moved[i] for p, moved in self._moved.items() for way, i in ways}

    def notify(self, connection: Connection, is_up: bool) -> None:
        for observer in self._observers:
            observer(connection, is_up)

    async def serve(self, stream: Stream) -> None:
        """Run the handler of a negotiated inbound stream; its failure ends the stream, never the node."""
        try:
            await self._handlers[stream.protocol](stream)
            await stream.close_write()
        except (StreamReset, ConnectionLost):
            stream.reset()
        except (PeerTimeout, TimeoutError) as error:
            logger.info("%s from %s timed out: %s", stream.protocol, stream.peer_id, error)
            stream.reset(RESET_PROTOCOL_VIOLATION)
        except P2PNodeError as error:
            logger.info("%s from %s ended: %s", stream.protocol, stream.peer_id, error)
            stream.reset(RESET_PROTOCOL_VIOLATION)
        except Exception:
            # A bug in one handler must not take the connection of other streams with it.
            logger.exception("handler of %s failed", stream.protocol)
            stream.reset(RESET_INTERNAL)
        except BaseException:
            stream.reset()
            raise
