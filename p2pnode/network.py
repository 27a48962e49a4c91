"""Where an address is: the authenticated remote address decides what is free, never a header.

Free are loopback, RFC 1918, link-local (RFC 3927, RFC 4291) and ULA (RFC 4193); shared address space
(RFC 6598) is not, since strangers behind one carrier share it.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final, Literal

Path = Literal["loopback", "lan", "wan", "relay"]
"""`relay`: the address seen is the relay's, so it says nothing about the peer."""

FREE_PATHS: Final = frozenset({"loopback", "lan"})

_LAN: Final = tuple(
    ip_network(block)
    for block in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "fc00::/7", "fe80::/10")
)
_BUCKET_BITS: Final = {4: 24, 6: 48}


def path_of(address: str) -> Path:
    """loopback, lan or wan; what is no address at all is taken for wan."""
    parsed = _parse(address)
    if parsed is None:
        return "wan"
    if parsed.is_loopback:
        return "loopback"
    return "lan" if any(parsed in block for block in _LAN if block.version == parsed.version) else "wan"


def network_bucket(address: str) -> str:
    """The /24 (IPv4) or /48 (IPv6) an address is in, for counting strangers; "" for no address."""
    parsed = _parse(address)
    if parsed is None:
        return ""
    return str(ip_network(f"{parsed}/{_BUCKET_BITS[parsed.version]}", strict=False))


def _parse(address: str) -> IPv4Address | IPv6Address | None:
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return None
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
        return parsed.ipv4_mapped
    return parsed
