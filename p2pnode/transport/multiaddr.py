"""Multiaddrs: where a node can be reached, in text and in bytes (multiformats/multiaddr).

Only what QUIC peers need is interpreted; an address with an unknown protocol is refused as a whole,
callers skip it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from p2pnode.multiformats import DecodeError, decode_uvarint, encode_uvarint
from p2pnode.peer_id import peer_id_from_bytes, peer_id_to_bytes
from p2pnode.units import PeerId

MULTIADDR_BYTES_MAX = 512
"""A dns name has 253 bytes, two peer ids and a relay hop add about 150."""

MULTIADDR_CHARS_MAX = 1024

_CODES = {
    "ip4": 4,
    "tcp": 6,
    "ip6": 41,
    "ip6zone": 42,
    "dns": 53,
    "dns4": 54,
    "dns6": 55,
    "dnsaddr": 56,
    "udp": 273,
    "p2p-circuit": 290,
    "p2p": 421,
    "quic": 460,
    "quic-v1": 461,
}
_NAMES = {code: name for name, code in _CODES.items()}
_VALUELESS = frozenset({"p2p-circuit", "quic", "quic-v1"})

Part = tuple[str, str]
HostKind = Literal["ip4", "ip6", "dns", "dns4", "dns6"]


@dataclass(frozen=True, slots=True)
class QuicAddress:
    """The part of a multiaddr that a UDP socket needs."""

    kind: HostKind
    host: str
    port: int
    peer_id: PeerId | None = None

    def multiaddr(self) -> str:
        """Text form, without /p2p."""
        host, _, zone = self.host.partition("%")
        prefix = f"/ip6zone/{zone}" if zone else ""
        return f"{prefix}/{self.kind}/{host}/udp/{self.port}/quic-v1"


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65_535):
        raise DecodeError(f"{text!r} is not a port")
    return int(text)


def _canonical(name: str, value: str) -> str:
    try:
        if name == "ip4":
            return str(ipaddress.IPv4Address(value))
        if name == "ip6":
            address = ipaddress.IPv6Address(value)
            if address.scope_id is not None:
                raise DecodeError("a zone goes into /ip6zone")
            return str(address)
    except ipaddress.AddressValueError as error:
        raise DecodeError(str(error)) from error
    if name in ("udp", "tcp"):
        return str(_port(value))
    if name == "p2p":
        return peer_id_from_bytes(peer_id_to_bytes(value))
    if not value or len(value.encode()) > 253 or not value.isprintable() or " " in value:
        raise DecodeError(f"{value!r} is not a name")
    return value


def parse(text: str) -> tuple[Part, ...]:
    """Text -> ((protocol, value), ...); values canonical, "" for protocols without one."""
    if len(text) > MULTIADDR_CHARS_MAX:
        raise DecodeError("multiaddr is too long")
    if not text.startswith("/"):
        raise DecodeError("a multiaddr starts with /")
    words = text[1:].split("/")
    parts: list[Part] = []
    index = 0
    while index < len(words):
        name = "p2p" if words[index] == "ipfs" else words[index]
        if name not in _CODES:
            raise DecodeError(f"multiaddr protocol {name!r} is unknown")
        index += 1
        if name in _VALUELESS:
            parts.append((name, ""))
            continue
        if index == len(words):
            raise DecodeError(f"multiaddr ends after /{name}")
        parts.append((name, _canonical(name, words[index])))
        index += 1
    return tuple(parts)


def render(parts: Iterable[Part]) -> str:
    return "".join(f"/{name}/{value}" if value else f"/{name}" for name, value in parts)


def to_bytes(text: str) -> bytes:
    out = bytearray()
    for name, value in parse(text):
        out += encode_uvarint(_CODES[name])
        if name == "ip4":
            out += ipaddress.IPv4Address(value).packed
        elif name == "ip6":
            out += ipaddress.IPv6Address(value).packed
        elif name in ("udp", "tcp"):
            out += int(value).to_bytes(2, "big")
        elif value:
            data = peer_id_to_bytes(value) if name == "p2p" else value.encode()
            out += encode_uvarint(len(data)) + data
    return bytes(out)


def from_bytes(data: bytes) -> str:
    """Bytes -> text; DecodeError for unknown protocols, wrong lengths, impossible values."""
    if len(data) > MULTIADDR_BYTES_MAX:
        raise DecodeError("multiaddr is too long")
    parts: list[Part] = []
    index = 0
    while index < len(data):
        code, index = decode_uvarint(data, index)
        name = _NAMES.get(code)
        if name is None:
            raise DecodeError(f"multiaddr code {code} is unknown")
        if name in _VALUELESS:
            parts.append((name, ""))
            continue
        if name in ("ip4", "ip6", "udp", "tcp"):
            size = {"ip4": 4, "ip6": 16}.get(name, 2)
        else:
            size, index = decode_uvarint(data, index)
        if size > len(data) - index:
            raise DecodeError("multiaddr is truncated")
        parts.append((name, _value(name, data[index : index + size])))
        index += size
    if not parts:
        raise DecodeError("multiaddr is empty")
    return render(parts)


def _value(name: str, raw: bytes) -> str:
    if name == "ip4":
        return str(ipaddress.IPv4Address(raw))
    if name == "ip6":
        return str(ipaddress.IPv6Address(raw))
    if name in ("udp", "tcp"):
        return str(int.from_bytes(raw, "big"))
    if name == "p2p":
        return peer_id_from_bytes(raw)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DecodeError(f"multiaddr {name} is not UTF-8") from error
    if "/" in text:
        raise DecodeError(f"multiaddr {name} contains a slash")
    return _canonical(name, text)


def quic_address(text: str) -> QuicAddress:
    """The dialable or bindable form of /<host>/udp/<port>/quic-v1[/p2p/<id>]; anything else is refused."""
    parts = list(parse(text))
    zone = parts.pop(0)[1] if parts and parts[0][0] == "ip6zone" else ""
    names = [name for name, _ in parts]
    if names[1:] not in (["udp", "quic-v1"], ["udp", "quic-v1", "p2p"]):
        raise DecodeError(f"{text} is not a quic-v1 address")
    kind, host = parts[0]
    peer_id = PeerId(parts[3][1]) if len(parts) == 4 else None
    if zone:
        if kind != "ip6":
            raise DecodeError("/ip6zone is followed by /ip6")
        host = f"{host}%{zone}"
    port = int(parts[1][1])
    match kind:
        case "ip4" | "ip6" | "dns" | "dns4" | "dns6":
            return QuicAddress(kind, host, port, peer_id)
        case _:
            raise DecodeError(f"/{kind} cannot be dialled directly")


def peer_address(text: str) -> tuple[str, PeerId]:
    """What a person gives to be dialled -> (address without the peer, peer); DecodeError says what is missing."""
    parts = parse(text)
    if parts[-1][0] != "p2p":
        raise DecodeError(f"{text} does not name its peer: /p2p/ID belongs at its end")
    address = render(parts[:-1])
    if [name for name, _ in parts] != ["dnsaddr", "p2p"]:
        quic_address(text)
    return address, PeerId(parts[-1][1])


def from_socket_address(host: str, port: int) -> str:
    """What recvfrom reports -> text multiaddr; IPv4-mapped IPv6 is IPv4."""
    address = ipaddress.ip_address(host)
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return QuicAddress("ip4", str(address.ipv4_mapped), port).multiaddr()
        return QuicAddress("ip6", str(address), port).multiaddr()
    return QuicAddress("ip4", str(address), port).multiaddr()


def without_peer_id(text: str) -> str:
    """The address without a trailing /p2p/<id>."""
    parts = parse(text)
    if parts and parts[-1][0] == "p2p" and (len(parts) < 2 or parts[-2][0] != "p2p-circuit"):
        parts = parts[:-1]
    return render(parts)
