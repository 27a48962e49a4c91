"""How others see this node: an address counts once several of them, in different places, agree on it. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from p2pnode import limits
from p2pnode.multiformats import DecodeError
from p2pnode.transport import multiaddr
from p2pnode.units import PeerId


class ObservedAddresses:
    """Keeps the newest word of each observer, bounded; the caller decides whose word counts."""

    def __init__(self) -> None:
        self._said: dict[PeerId, tuple[str, str]] = {}

    def heard(self, observer: PeerId, observer_host: str, address: str) -> None:
        """`observer`, itself at `observer_host`, sees this node at `address`; what cannot be dialled is left out."""
        self._said.pop(observer, None)
        try:
            found = multiaddr.quic_address(address)
        except DecodeError:
            return
        if found.kind not in ("ip4", "ip6"):
            return
        plain = multiaddr.QuicAddress(found.kind, found.host, found.port).multiaddr()
        self._said[observer] = (observer_host, plain)
        while len(self._said) > limits.OBSERVERS_MAX:
            del self._said[next(iter(self._said))]

    def forget(self, observer: PeerId) -> None:
        self._said.pop(observer, None)

    def agreed(self, known: Sequence[str] = ()) -> list[str]:
        """Addresses beyond the known ones that enough observers at different hosts report, most agreed first."""
        hosts: dict[str, set[str]] = {}
        for host, address in self._said.values():
            hosts.setdefault(address, set()).add(host)
        enough = [
            (-len(seen), address)
            for address, seen in hosts.items()
            if len(seen) >= limits.OBSERVERS_AGREEING_MIN and address not in known
        ]
        return [address for _, address in sorted(enough)][: limits.OBSERVED_ADDRESSES_MAX]
