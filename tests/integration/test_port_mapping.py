"""Ports are mapped by routers on loopback that speak PCP, NAT-PMP or UPnP; without one the words are clear."""

from __future__ import annotations

import asyncio
import struct
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode import limits
from p2pnode.errors import TransportError
from p2pnode.multiformats import DecodeError
from p2pnode.node.reach import Reach
from p2pnode.transport import nat_pmp, port_mapping, upnp
from p2pnode.transport.interfaces import _gateway_of
from p2pnode.transport.port_mapping import PortMapping, map_port
from tests.kit.fake_gateway import FakeGateway, fake_gateway
from tests.kit.fake_router import fake_router
from tests.kit.net import until

NONCE = bytes(range(12))
NO_UPNP = "http://127.0.0.1:1/desc.xml"


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "NAT_PMP_WAIT_S", 0.05)


def ask(gateway: FakeGateway, port: int = 9481) -> PortMapping:
    return map_port(port, nonce=NONCE, gateway=gateway.at, description_url=NO_UPNP)


# --- PCP and NAT-PMP -------------------------------------------------------------------------------
@pytest.mark.parametrize(("way", "pcp"), [("PCP", True), ("NAT-PMP", False)])
def test_a_port_is_mapped_renewed_and_given_back_by_the_gateway(way: str, pcp: bool) -> None:
    with fake_gateway() as gateway:
        gateway.speaks_pcp = pcp
        mapping = ask(gateway)
        assert (mapping.address, mapping.way) == ("/ip4/203.0.113.7/udp/9481/quic-v1", way)
        assert mapping.lifetime_s == min(limits.PORT_MAPPING_LEASE_S, gateway.lifetime_s)
        assert gateway.mappings == {9481: 9481}
        assert ask(gateway).address == mapping.address
        assert gateway.mappings == {9481: 9481}
        assert mapping.end()
        assert gateway.mappings == {}


@pytest.mark.parametrize("pcp", [True, False])
def test_the_router_may_choose_another_port_and_a_shorter_lease(pcp: bool) -> None:
    with fake_gateway() as gateway:
        gateway.speaks_pcp, gateway.taken, gateway.lifetime_s = pcp, {9481, 9482}, 600
        mapping = ask(gateway)
        assert (mapping.external_port, mapping.lifetime_s) == (9483, 600)


def test_a_router_that_drops_the_newer_protocol() -> None:
    with fake_gateway() as gateway:
        gateway.drops = limits.NAT_PMP_TRIES
        gateway.speaks_pcp = False
        assert ask(gateway).way == "NAT-PMP"


def test_lost_answers_are_asked_for_again() -> None:
    with fake_gateway() as gateway:
        gateway.drops = 2
        assert ask(gateway).way == "PCP"
        assert len(gateway.heard) == 3


@pytest.mark.parametrize("pcp", [True, False])
def test_what_is_no_answer_is_passed_over(pcp: bool) -> None:
    """Noise, and answers to somebody else's request."""
    with fake_gateway() as gateway:
        gateway.speaks_pcp = pcp
        other = (
            struct.pack(">BBBBII12x", 2, 129, 0, 0, 60, 1) + bytes(12) + struct.pack(">B3xHH16x", 17, 1, 1)
        )
        gateway.noise = [
            b"",
            b"\0",
            b"\2\x81",
            bytes(2000),
            other,
            struct.pack(">BBHIHHI", 0, 129, 0, 1, 1, 1, 60),
        ]
        assert ask(gateway).external_port == 9481


@pytest.mark.parametrize(
    ("pcp", "code", "word"), [(True, 2, "does not allow"), (False, 4, "no room"), (True, 99, "99")]
)
def test_a_gateway_that_refuses(pcp: bool, code: int, word: str) -> None:
    with fake_gateway() as gateway:
        gateway.speaks_pcp, gateway.code = pcp, code
        with pytest.raises(TransportError, match=word):
            ask(gateway)


def test_where_the_gateway_is_silent_upnp_is_asked() -> None:
    with fake_gateway() as gateway, fake_router() as router:
        gateway.speaks_pcp = gateway.speaks_nat_pmp = False
        mapping = map_port(9481, nonce=NONCE, gateway=gateway.at, description_url=router.url)
        assert mapping.way == "UPnP"
        assert router.mappings == {9481: 9481}
        assert mapping.end()
        assert router.mappings == {}


def test_without_any_router_both_reasons_are_told() -> None:
    with fake_gateway() as gateway:
        gateway.speaks_pcp = gateway.speaks_nat_pmp = False
        with pytest.raises(
            TransportError, match="neither PCP nor NAT-PMP; the router did not map"
        ) as refused:
            ask(gateway)
        assert "by hand" in refused.value.hint


@pytest.mark.parametrize("host", ["192.168.1.2", "100.64.3.4", "10.0.0.1"])
def test_a_router_behind_a_router_is_named_and_keeps_no_mapping(host: str) -> None:
    with fake_gateway() as gateway:
        gateway.host = host
        with pytest.raises(TransportError, match=f"{host}, is not public"):
            ask(gateway)
        assert gateway.mappings == {}


@given(st.binary(max_size=80))
def test_any_answer(data: bytes) -> None:
    for read in (
        lambda: nat_pmp.read_pcp(data, 9481, NONCE),
        lambda: nat_pmp.read_address(data),
        lambda: nat_pmp.read_map(data, 9481),
    ):
        try:
            read()
        except (DecodeError, nat_pmp.RefusedError):
            continue


def test_the_default_gateway_is_read_from_the_routes() -> None:
    def hexadecimal(host: str) -> str:
        return f"{int.from_bytes(bytes(map(int, host.split('.'))), sys.byteorder):08X}"

    def route(destination: str, gateway: str, flags: int, metric: int, mask: str) -> str:
        fields = [
            "eth0",
            hexadecimal(destination),
            hexadecimal(gateway),
            f"{flags:04X}",
            "0",
            "0",
            str(metric),
        ]
        return "\t".join([*fields, hexadecimal(mask), "0", "0", "0"])

    lines = [
        route("192.168.1.0", "0.0.0.0", 1, 0, "255.255.255.0"),
        route("0.0.0.0", "192.168.1.254", 3, 600, "0.0.0.0"),
        route("0.0.0.0", "192.168.1.1", 3, 100, "0.0.0.0"),
        route("0.0.0.0", "0.0.0.0", 1, 1, "0.0.0.0"),
    ]
    assert _gateway_of(lines) == "192.168.1.1"
    assert _gateway_of(lines[:1]) is None


# --- kept while the node runs ----------------------------------------------------------------------
async def test_the_mapping_is_announced_renewed_replaced_and_taken_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "PORT_MAPPING_LEASE_S_MIN", 0.02)
    monkeypatch.setattr(limits, "PORT_MAPPING_RETRY_S", 0.01)
    bound = "/ip4/192.168.1.20/udp/9481/quic-v1"
    changes: list[list[str]] = []
    told: list[str] = []
    reach = Reach(
        bound=lambda: [bound],
        is_member=lambda peer: False,
        changed=lambda: changes.append(reach.addresses()),
    )
    with fake_gateway() as gateway:
        gateway.lifetime_s = 0

        def by_it(port: int, *, nonce: bytes) -> PortMapping:
            return map_port(port, nonce=nonce, gateway=gateway.at, description_url=NO_UPNP)

        keeping = asyncio.ensure_future(reach.keep_mapped(told.append, by_it))
        await until(lambda: len(gateway.heard) >= 3)
        assert changes == [[bound, "/ip4/203.0.113.7/udp/9481/quic-v1"]]  # renewing is no news
        gateway.host = "203.0.113.8"
        await until(lambda: len(changes) == 2)
        assert changes[1] == [bound, "/ip4/203.0.113.8/udp/9481/quic-v1"]
        gateway.code = 2
        await until(lambda: changes[-1] == [bound])
        gateway.code = 0
        await until(lambda: len(changes) == 4)
        assert len(told) == 1
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        assert gateway.mappings == {}
        assert reach.addresses() == [bound]


async def test_without_a_router_one_word_is_told_and_that_is_all() -> None:
    told: list[str] = []
    reach = Reach(
        bound=lambda: ["/ip4/192.168.1.20/udp/9481/quic-v1"],
        is_member=lambda peer: False,
        changed=lambda: None,
    )
    with fake_gateway() as gateway:
        gateway.code = 2
        await reach.keep_mapped(
            told.append,
            lambda port, *, nonce: map_port(port, nonce=nonce, gateway=gateway.at, description_url=NO_UPNP),
        )
    assert len(told) == 1
    assert "does not allow mappings" in told[0]


# --- UPnP ------------------------------------------------------------------------------------------
def test_a_port_is_mapped_by_upnp_and_given_back() -> None:
    with fake_router() as router:
        mapping = upnp.map_port(9481, description_url=router.url)
        assert mapping.address == "/ip4/203.0.113.7/udp/9481/quic-v1"
        assert router.mappings == {9481: 9481}
        assert upnp.end_mapping(mapping)
        assert router.mappings == {}


def test_the_next_free_port_is_taken() -> None:
    with fake_router(9481, 9482) as router:
        assert upnp.map_port(9481, description_url=router.url).external_port == 9483
        assert router.mappings == {9483: 9481}


def test_a_router_that_refuses() -> None:
    with fake_router(*range(9481, 9500)) as router, pytest.raises(TransportError, match="did not map"):
        upnp.map_port(9481, description_url=router.url)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "miniupnpc", None)
    monkeypatch.setattr(port_mapping, "default_gateway", lambda: None)
    with pytest.raises(TransportError, match="miniupnpc") as refused:
        map_port(9481, nonce=NONCE)
    assert "pip install" in refused.value.hint
