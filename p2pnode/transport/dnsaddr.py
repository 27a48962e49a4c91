"""Addresses that stand in DNS: /dnsaddr/NAME is the TXT records `dnsaddr=<multiaddr>` of _dnsaddr.NAME.

Source: https://github.com/multiformats/multiaddr/blob/master/protocols/DNSADDR.md. Records may name further dnsaddrs,
and anyone can write records: depth, look-ups and addresses are bounded. Who answers is checked when dialling.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from p2pnode import limits
from p2pnode.errors import TransportError
from p2pnode.multiformats import DecodeError
from p2pnode.transport.multiaddr import Part, parse, quic_address, render
from p2pnode.units import PeerId

TxtLookup = Callable[[str], Awaitable[list[str]]]
"""The TXT records of a name, each as one text; TransportError says why there are none."""

_PREFIX = "dnsaddr="


def is_dnsaddr(text: str) -> bool:
    return text.startswith("/dnsaddr/")


async def resolve(text: str, peer_id: PeerId, lookup: TxtLookup) -> list[str]:
    """The QUIC addresses of `peer_id` under a /dnsaddr/NAME[/p2p/ID], in the order of the records.

    Raises: DecodeError for text that is no such address, TransportError when DNS has nothing that can be dialled
    """
    found: list[str] = []
    seen: set[str] = set()
    level = [_name_of(parse(text))]
    asked, failure = 0, ""
    for _ in range(limits.DNSADDR_DEPTH_MAX):
        deeper: list[str] = []
        for name in level:
            if name in seen or asked == limits.DNSADDR_LOOKUPS_MAX:
                continue
            seen.add(name)
            asked += 1
            try:
                records = await lookup(f"_dnsaddr.{name}")
            except TransportError as error:
                failure = failure or error.message
                continue
            for record in records[: limits.DNSADDR_RECORDS_MAX]:
                _sort_in(record, peer_id, found, deeper)
        level = deeper
    if not found:
        why = failure or f"no record of _dnsaddr.{_name_of(parse(text))} is a QUIC address of {peer_id}"
        raise TransportError(why)
    return list(dict.fromkeys(found))[: limits.DIAL_ADDRESSES_MAX]


def _name_of(parts: tuple[Part, ...]) -> str:
    kinds = [kind for kind, _ in parts]
    if kinds not in (["dnsaddr"], ["dnsaddr", "p2p"]):
        raise DecodeError(f"{render(parts)} is not /dnsaddr/NAME or /dnsaddr/NAME/p2p/ID")
    return parts[0][1].rstrip(".").lower()


def _sort_in(record: str, peer_id: PeerId, addresses: list[str], names: list[str]) -> None:
    """Records of other peers, and of transports that are not ours, are ordinary: they are passed over."""
    if not record.startswith(_PREFIX):
        return
    try:
        parts = parse(record[len(_PREFIX) :])
        if parts[-1][0] == "p2p" and parts[-1][1] != peer_id:
            return
        if parts[0][0] == "dnsaddr":
            names.append(_name_of(parts))
        else:
            addresses.append(quic_address(render(parts)).multiaddr())
    except DecodeError:
        return


async def system_txt(name: str) -> list[str]:
    """Ask the resolver of this machine's configuration."""
    import dns.asyncresolver  # 0.1 s, and most nodes never need it
    import dns.exception

    try:
        resolver = dns.asyncresolver.Resolver()
    except dns.exception.DNSException as error:
        raise TransportError(f"this machine has no DNS resolver configured: {error}") from None
    return await ask_txt(resolver, name)


async def ask_txt(resolver: object, name: str) -> list[str]:
    """`resolver` is a dns.asyncresolver.Resolver."""
    import dns.asyncresolver
    import dns.exception

    assert isinstance(resolver, dns.asyncresolver.Resolver)
    try:
        answer = await resolver.resolve(name, "TXT", lifetime=limits.DNS_TIMEOUT_S, search=False)
    except (dns.exception.DNSException, OSError) as error:
        reason = str(error).rstrip(".") or type(error).__name__
        raise TransportError(f"{name} does not resolve: {reason[:200]}") from None
    return [b"".join(record.strings).decode("utf-8", "replace") for record in answer]
