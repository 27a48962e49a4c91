"""A node is dialled by its /dnsaddr name, found by a real resolver at a DNS server on loopback."""

from __future__ import annotations

import pytest

from p2pnode import limits
from p2pnode.errors import PeerUnreachable
from p2pnode.transport.dnsaddr import ask_txt
from tests.kit.dns_server import dns_server
from tests.kit.net import identity, quic, running

NAME = "_dnsaddr.home.example"


async def test_a_name_leads_to_the_peer() -> None:
    """Its records need more room than a datagram of 512 bytes has, and one names another peer."""
    server, client = quic("server"), quic("client")
    async with running(server, client):
        other = identity("other").peer_id
        records = [f"dnsaddr=/ip4/127.0.0.1/udp/{port}/quic-v1/p2p/{other}" for port in range(1, 9)]
        records.append(f"dnsaddr={server.listen_multiaddrs[0]}/p2p/{server.peer_id}")
        async with dns_server({NAME: records}) as (names, resolver):
            client.lookup_txt = lambda name: ask_txt(resolver, name)
            connection = await client.dial(["/dnsaddr/home.example"], server.peer_id)
            assert connection.remote_multiaddr == server.listen_multiaddrs[0]
            assert names.asked == [NAME, NAME]  # by datagram, then over TCP


async def test_a_name_that_does_not_exist_is_told() -> None:
    client = quic("client")
    async with running(client), dns_server({}) as (_, resolver):
        client.lookup_txt = lambda name: ask_txt(resolver, name)
        with pytest.raises(PeerUnreachable) as refused:
            await client.dial(["/dnsaddr/home.example"], identity("server").peer_id)
        ((address, reason),) = refused.value.details["tried"]
        assert address == "/dnsaddr/home.example"
        assert reason.startswith(f"{NAME} does not resolve")


async def test_a_silent_name_server_keeps_no_known_address_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Happy eyeballs: the dial is over before the resolver gives up."""
    server, client = quic("server"), quic("client")
    async with running(server, client), dns_server({}) as (names, resolver):
        names.is_silent = True
        client.lookup_txt = lambda name: ask_txt(resolver, name)
        monkeypatch.setattr(limits, "DNS_TIMEOUT_S", 3600.0)
        addresses = ["/dnsaddr/home.example", *server.listen_multiaddrs]
        assert await (await client.dial(addresses, server.peer_id)).ping() >= 0


async def test_a_silent_name_server_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DNS_TIMEOUT_S", 0.1)
    client = quic("client")
    async with running(client), dns_server({}) as (names, resolver):
        names.is_silent = True
        client.lookup_txt = lambda name: ask_txt(resolver, name)
        with pytest.raises(PeerUnreachable, match="does not resolve"):
            await client.dial(["/dnsaddr/home.example"], identity("server").peer_id)
