"""libp2p's mDNS records: which peers say they are where. Pure; the shell is `discovery.py`.

Source: https://github.com/libp2p/specs/blob/master/discovery/mdns.md
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from p2pnode import limits
from p2pnode.multiformats import DecodeError
from p2pnode.peer_id import parse_peer_id
from p2pnode.transport.multiaddr import parse
from p2pnode.units import PeerId

SERVICE = "_p2p._udp.local."
NAME_CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
NAME_LENGTH = 32
"""The spec wants 32 to 63 random characters, never the peer id."""
_KEY = b"dnsaddr="


def txt_record(addresses: Iterable[str], peer_id: PeerId) -> bytes:
    """TXT data: one `dnsaddr=` string an address, those that fit; all have the same key."""
    found = b""
    for address in list(addresses)[: limits.MDNS_ADDRESSES_MAX]:
        text = _KEY + f"{address}/p2p/{peer_id}".encode()
        if len(text) <= 255:
            found += bytes([len(text)]) + text
    return found


def read_txt(data: bytes) -> list[tuple[PeerId, str]]:
    """(peer, address) pairs of a TXT record; everything odd in it is passed over, it is unauthenticated anyway."""
    pairs: list[tuple[PeerId, str]] = []
    at = 0
    while at < len(data) and len(pairs) < limits.MDNS_ADDRESSES_MAX:
        size = data[at]
        text = data[at + 1 : at + 1 + size]
        at += 1 + size
        if text.startswith(_KEY) and (pair := _pair(text[len(_KEY) :])) is not None:
            pairs.append(pair)
    return pairs


def _pair(raw: bytes) -> tuple[PeerId, str] | None:
    try:
        address, _, peer = raw.decode("ascii").rpartition("/p2p/")
        names = [name for name, _ in parse(address)]
        peer_id = parse_peer_id(peer)
    except (UnicodeDecodeError, DecodeError, ValueError):
        return None
    # Relay and browser addresses do not belong into mDNS, and we speak QUIC v1 alone.
    if "p2p-circuit" in names or names[-1:] != ["quic-v1"]:
        return None
    return peer_id, address


def random_name(draw: Sequence[int]) -> str:
    """A peer-name from random bytes."""
    return "".join(NAME_CHARACTERS[number % len(NAME_CHARACTERS)] for number in draw[:NAME_LENGTH])
