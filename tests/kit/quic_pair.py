"""Two QUIC machines and a wire between them, in memory and on a clock of their own; for tests of the machines."""

from __future__ import annotations

from aioquic import tls
from aioquic.quic import events
from aioquic.quic.connection import NetworkAddress

from p2pnode.transport.quic_core import QuicCore
from tests.kit.net import identity, quic

CLIENT: NetworkAddress = ("192.0.2.1", 1)
SERVER: NetworkAddress = ("192.0.2.2", 2)


class Pair:
    """`client` and `server`; `roundtrip` lets datagrams pass until both are silent."""

    def __init__(self, core: type[QuicCore], client_core: type[QuicCore] | None = None) -> None:
        self.now = 1000.0
        client, server = quic("client")._credentials, quic("server")._credentials
        self.client = (client_core or core)(
            client,
            client.configuration(is_client=True, idle_timeout_s=30),
            expected_peer=identity("server").peer_id,
        )
        self.client.connect(SERVER, now=self.now)
        self.server = core(
            server,
            server.configuration(is_client=False, idle_timeout_s=30),
            original_destination_connection_id=self.client.original_destination_connection_id,
        )
        self.roundtrip()
        assert self.client.handshake_confirmed
        assert self.server.handshake_confirmed
        self.roundtrip()

    def roundtrip(self, turns: int = 50) -> None:
        for _ in range(turns):
            self.now += 0.002
            outgoing = self.client.datagrams_to_send(self.now)
            for data, _ in outgoing:
                self.server.receive_datagram(data, CLIENT, self.now)
            answers = self.server.datagrams_to_send(self.now)
            for data, _ in answers:
                self.client.receive_datagram(data, SERVER, self.now)
            outgoing += answers
            if not outgoing and not self._timers():
                return

    def _timers(self) -> bool:
        """Fires what is due within 30 ms (acknowledgements), not idle or probe timers."""
        fired = False
        for core in (self.client, self.server):
            at = core.get_timer()
            if at is not None and at <= self.now + 0.03:
                self.now = max(self.now, at)
                core.handle_timer(self.now)
                fired = True
        return fired

    def inject(self, frames: bytes) -> None:
        """A packet of the client with valid protection and these frames, whatever they are."""
        crypto = self.client._cryptos[tls.Epoch.ONE_RTT].send
        assert crypto.aead is not None
        assert crypto.hp is not None
        number = self.client._packet_number
        self.client._packet_number += 1
        # A packet with hardly any frames is long enough to sample only with a long packet number.
        size = 2 if len(frames) > 1 else 4
        first = bytes((0x40 | crypto.key_phase << 2 | size - 1,))
        head = first + self.client._peer_cid.cid + (number & (1 << 8 * size) - 1).to_bytes(size, "big")
        body = crypto.aead.encrypt(frames, head, number)
        self.server.receive_datagram(crypto.hp.apply(head, body), CLIENT, self.now)

    def server_events(self) -> list[events.QuicEvent]:
        """What the server's application would see; consecutive pieces of a stream joined."""
        joined: list[events.QuicEvent] = []
        while (event := self.server.next_event()) is not None:
            last = joined[-1] if joined else None
            if (
                isinstance(event, events.StreamDataReceived)
                and isinstance(last, events.StreamDataReceived)
                and last.stream_id == event.stream_id
            ):
                last.data += event.data
                last.end_stream = event.end_stream
            else:
                joined.append(event)
        return joined


def opened(core: type[QuicCore] = QuicCore) -> Pair:
    """A pair whose client opened stream 0 with a little data, which the server has read."""
    pair = Pair(core)
    assert pair.client.open_stream_id() == 0
    pair.client.send_stream_data(0, b"hello")
    pair.roundtrip()
    pair.server.accept_stream(0)
    pair.server_events()
    return pair
