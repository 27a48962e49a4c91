"""mDNS records: ours are read by ourselves as libp2p writes them, odd ones are passed over."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import TransportError
from p2pnode.identity import Identity
from p2pnode.transport.discovery import Discovery
from p2pnode.transport.mdns import NAME_LENGTH, random_name, read_txt, txt_record
from p2pnode.transport.multicast import Interface, multicast_interfaces, try_multicast
from p2pnode.units import PeerId

ME = Identity.from_seed(b"m" * 32).peer_id
OTHER = Identity.from_seed(b"o" * 32).peer_id
LOOPBACK = Interface("lo", 4, "127.0.0.1", 1)
ADDRESSES = ["/ip4/192.168.1.5/udp/4001/quic-v1", "/ip6/fd00::1/udp/4001/quic-v1"]


def strings(*texts: str) -> bytes:
    return b"".join(bytes([len(text)]) + text.encode() for text in texts)


def test_round_trip() -> None:
    assert read_txt(txt_record(ADDRESSES, ME)) == [(ME, address) for address in ADDRESSES]


def test_what_does_not_belong_is_passed_over() -> None:
    good = f"dnsaddr={ADDRESSES[0]}/p2p/{ME}"
    data = strings(
        "dnsaddr=/ip4/1.2.3.4/tcp/4001/p2p/" + ME,
        f"dnsaddr={ADDRESSES[0]}/p2p-circuit/p2p/{ME}",
        "dnsaddr=" + ADDRESSES[0],
        f"dnsaddr={ADDRESSES[0]}/p2p/notapeer",
        "dnsaddr=/ip4/999.1.1.1/udp/1/quic-v1/p2p/" + ME,
        "other=" + good,
        "",
        good,
    )
    assert read_txt(data) == [(ME, ADDRESSES[0])]
    assert read_txt(data + b"\xff short") == [(ME, ADDRESSES[0])]
    assert read_txt(strings("dnsaddr=/ip4/\x00")) == []


def test_long_addresses_and_many_are_left_out() -> None:
    long = "/dns4/" + "a" * 240 + "/udp/1/quic-v1"
    assert txt_record([long], ME) == b""
    many = [f"/ip4/10.0.0.{n}/udp/4001/quic-v1" for n in range(40)]
    assert len(read_txt(txt_record(many, ME))) == 16
    assert len(read_txt(strings(*(f"dnsaddr={a}/p2p/{ME}" for a in many)))) == 16


@given(st.binary(max_size=600))
def test_any_bytes(data: bytes) -> None:
    for peer, address in read_txt(data):
        assert peer
        assert address.startswith("/")


def test_random_names_have_the_wanted_form() -> None:
    name = random_name(bytes(range(64)))
    assert len(name) == NAME_LENGTH
    assert name.isalnum()
    assert name == name.lower()


async def test_two_nodes_find_each_other_on_loopback() -> None:
    """Real multicast on the loopback interface."""
    found: asyncio.Queue[tuple[PeerId, list[str]]] = asyncio.Queue()
    mine = Discovery(ME, lambda: ADDRESSES, lambda p, a: found.put_nowait((p, a)), interfaces=[LOOPBACK])
    other = Discovery(OTHER, lambda: ADDRESSES[:1], lambda *_: None, interfaces=[LOOPBACK])
    await mine.start()
    await other.start()
    try:
        async with asyncio.timeout(20):
            while True:
                peer, addresses = await found.get()
                if peer == OTHER:
                    break
        assert addresses == ADDRESSES[:1]
    finally:
        await mine.close()
        await other.close()


def test_interfaces_exist() -> None:
    assert multicast_interfaces()


def test_multicast_on_loopback_is_seen_to_work() -> None:
    assert try_multicast(LOOPBACK, 5.0) == ""


@pytest.mark.parametrize(
    "interface", [Interface("none", 4, "192.0.2.77", 99), Interface("none", 6, "fe80::1", 9999)]
)
def test_multicast_on_an_interface_that_is_not_there(interface: Interface) -> None:
    assert try_multicast(interface, 0.1) != ""


async def test_without_interfaces_the_words_are_clear() -> None:
    with pytest.raises(TransportError, match="no multicast on this network") as refused:
        await Discovery(ME, lambda: [], lambda *_: None, interfaces=[]).start()
    assert "--peer" in refused.value.hint
