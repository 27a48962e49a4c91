"""Finding peers on the local network: a thin shell of zeroconf around `mdns.py`.

Records are read raw from the stream of updates: js-libp2p sends no SRV or A records, so zeroconf's own
service resolution would time out, and its property dict keeps only one of several `dnsaddr` keys.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

from zeroconf import IPVersion, RecordUpdateListener, ServiceInfo, Zeroconf, const
from zeroconf._dns import DNSQuestion, DNSText
from zeroconf._protocol.outgoing import DNSOutgoing
from zeroconf.asyncio import AsyncZeroconf

from p2pnode import limits
from p2pnode.errors import TransportError
from p2pnode.transport.mdns import SERVICE, random_name, read_txt, txt_record
from p2pnode.transport.multicast import Interface, multicast_interfaces
from p2pnode.units import PeerId

OnPeer = Callable[[PeerId, list[str]], None]


class Discovery(RecordUpdateListener):
    """Announces this node and reports every other; call `start` and `close` on the loop."""

    def __init__(
        self,
        peer_id: PeerId,
        addresses: Callable[[], Sequence[str]],
        on_peer: OnPeer,
        *,
        interfaces: Sequence[Interface] | None = None,
    ) -> None:
        self._peer_id = peer_id
        self._addresses = addresses
        self._on_peer = on_peer
        self._interfaces = list(interfaces) if interfaces is not None else multicast_interfaces()
        self._name = random_name(os.urandom(64))
        self._zeroconf: AsyncZeroconf | None = None
        self._info: ServiceInfo | None = None
        self._asking: asyncio.Task[None] | None = None
        self.peers_heard: dict[PeerId, list[str]] = {}

    async def start(self) -> None:
        """Raises TransportError in words when this network has no multicast."""
        if not self._interfaces:
            raise _no_multicast("no interface is up")
        choice = [interface.for_zeroconf for interface in self._interfaces]
        try:
            self._zeroconf = AsyncZeroconf(interfaces=choice, ip_version=self._ip_version())
            await self._zeroconf.zeroconf.async_wait_for_start()
        except (OSError, RuntimeError) as error:
            # RuntimeError: an interface went away since it was listed.
            raise _no_multicast(getattr(error, "strerror", None) or str(error)) from None
        self._zeroconf.zeroconf.async_add_listener(self, None)
        self._info = self._service()
        await (
            await self._zeroconf.async_register_service(
                self._info, allow_name_change=False, cooperating_responders=True
            )
        )
        self._asking = asyncio.get_running_loop().create_task(self._ask(), name="mdns questions")

    def _ip_version(self) -> IPVersion:
        versions = {interface.version for interface in self._interfaces}
        return (
            IPVersion.All if versions == {4, 6} else IPVersion.V6Only if versions == {6} else IPVersion.V4Only
        )

    def _service(self) -> ServiceInfo:
        return ServiceInfo(
            SERVICE,
            f"{self._name}.{SERVICE}",
            port=4001,  # SRV needs one; addresses are in the TXT record
            properties=txt_record(self._addresses(), self._peer_id),
            server=f"{self._name}.local.",
            addresses=[socket.inet_aton(i.address) for i in self._interfaces if i.version == 4],
            host_ttl=limits.MDNS_TTL_S,
            other_ttl=limits.MDNS_TTL_S,
        )

    async def _ask(self) -> None:
        """The question again and again, slower each time: devices come and go, answers get lost."""
        delay_s = 1.0
        while self._zeroconf is not None:
            question = DNSOutgoing(const._FLAGS_QR_QUERY)
            question.add_question(DNSQuestion(SERVICE, const._TYPE_PTR, const._CLASS_IN))
            self._zeroconf.zeroconf.async_send(question)
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, limits.MDNS_QUESTION_INTERVAL_S_MAX)

    def async_update_records(self, zc: Zeroconf, now: float, records: list[Any]) -> None:
        """zeroconf calls this on the loop for every record it hears."""
        del zc
        for update in records:
            record = update.new
            if not isinstance(record, DNSText) or not record.name.lower().endswith("." + SERVICE):
                continue
            if record.ttl == 0 or record.is_expired(now):
                continue
            self._heard(record.text)

    def _heard(self, text: bytes) -> None:
        by_peer: dict[PeerId, list[str]] = {}
        for peer_id, address in read_txt(text):
            if peer_id != self._peer_id:
                by_peer.setdefault(peer_id, []).append(address)
        for peer_id, addresses in by_peer.items():
            if peer_id in self.peers_heard or len(self.peers_heard) < limits.MDNS_PEERS_MAX:
                self.peers_heard[peer_id] = addresses
                self._on_peer(peer_id, addresses)

    async def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
        zeroconf, self._zeroconf = self._zeroconf, None
        if zeroconf is not None:
            with contextlib.suppress(OSError):
                if self._info is not None:
                    await zeroconf.async_unregister_service(self._info)
            await zeroconf.async_close()


def _no_multicast(why: str) -> TransportError:
    return TransportError(
        f"no multicast on this network ({why}): devices nearby are not found by themselves",
        hint="join with a ticket or --peer; p2pnode doctor shows the interfaces",
    )
