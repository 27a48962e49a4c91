"""/dnsaddr names: what is taken from their records, and that whoever writes them cannot keep a node busy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode import limits
from p2pnode.errors import TransportError
from p2pnode.multiformats import DecodeError
from p2pnode.transport.dnsaddr import resolve
from p2pnode.transport.multiaddr import peer_address
from tests.kit.net import identity

PEER, OTHER = identity("peer").peer_id, identity("other").peer_id
QUIC = "/ip4/192.0.2.1/udp/4001/quic-v1"


class Names:
    def __init__(self, records: dict[str, list[str]]) -> None:
        self.records = records
        self.asked: list[str] = []

    async def __call__(self, name: str) -> list[str]:
        self.asked.append(name)
        if name not in self.records:
            raise TransportError(f"{name} does not resolve: no such name")
        return self.records[name]


async def test_the_peers_quic_addresses_are_taken_and_all_else_passed_over() -> None:
    names = Names({
        "_dnsaddr.example.org": [
            f"dnsaddr=/ip4/192.0.2.9/tcp/4001/p2p/{PEER}",
            f"dnsaddr={QUIC}/p2p/{OTHER}",
            f"dnsaddr={QUIC}/p2p/{PEER}",
            f"dnsaddr=/dns4/node.example.org/udp/4001/quic-v1/p2p/{PEER}",
            "dnsaddr=/ip6/2001:db8::1/udp/4001/quic-v1",
            f"dnsaddr={QUIC}/p2p/{OTHER}/p2p-circuit/p2p/{PEER}",
            "v=spf1 -all", "dnsaddr=", "dnsaddr=nonsense", f"dnsaddr={QUIC}/p2p/{PEER}",
        ]
    })  # fmt: skip
    assert await resolve(f"/dnsaddr/Example.org./p2p/{PEER}", PEER, names) == [
        QUIC,
        "/dns4/node.example.org/udp/4001/quic-v1",
        "/ip6/2001:db8::1/udp/4001/quic-v1",
    ]


async def test_names_may_name_names() -> None:
    names = Names({
        "_dnsaddr.example.org": [
            f"dnsaddr=/dnsaddr/b.example.org/p2p/{PEER}", f"dnsaddr=/dnsaddr/a.example.org/p2p/{OTHER}",
        ],
        "_dnsaddr.b.example.org": [f"dnsaddr={QUIC}/p2p/{PEER}"],
    })  # fmt: skip
    assert await resolve("/dnsaddr/example.org", PEER, names) == [QUIC]
    assert names.asked == ["_dnsaddr.example.org", "_dnsaddr.b.example.org"]


async def test_loops_depth_and_width_are_bounded() -> None:
    loop = Names({"_dnsaddr.a.example": ["dnsaddr=/dnsaddr/a.example", "dnsaddr=/dnsaddr/A.example."]})
    with pytest.raises(TransportError, match="no record"):
        await resolve("/dnsaddr/a.example", PEER, loop)
    assert loop.asked == ["_dnsaddr.a.example"]
    deep = Names({f"_dnsaddr.{n}.example": [f"dnsaddr=/dnsaddr/{n + 1}.example"] for n in range(50)})
    with pytest.raises(TransportError):
        await resolve("/dnsaddr/0.example", PEER, deep)
    assert len(deep.asked) == limits.DNSADDR_DEPTH_MAX
    wide = Names({"_dnsaddr.w.example": [f"dnsaddr=/dnsaddr/{n}.example" for n in range(500)]})
    with pytest.raises(TransportError):
        await resolve("/dnsaddr/w.example", PEER, wide)
    assert len(wide.asked) == limits.DNSADDR_LOOKUPS_MAX
    many = Names(
        {"_dnsaddr.m.example": [f"dnsaddr=/ip4/192.0.2.{n % 250}/udp/{n + 1}/quic-v1" for n in range(9999)]}
    )
    assert len(await resolve("/dnsaddr/m.example", PEER, many)) == limits.DIAL_ADDRESSES_MAX


async def test_why_nothing_was_found() -> None:
    with pytest.raises(TransportError, match=r"_dnsaddr\.nobody\.example does not resolve: no such name"):
        await resolve("/dnsaddr/nobody.example", PEER, Names({}))
    with pytest.raises(TransportError, match=r"no record of _dnsaddr\.a\.example is a QUIC address"):
        await resolve(
            "/dnsaddr/a.example", PEER, Names({"_dnsaddr.a.example": ["dnsaddr=/ip4/1.2.3.4/tcp/1"]})
        )


@pytest.mark.parametrize(
    "text", ["/dnsaddr/a.example/udp/4001/quic-v1", f"/dnsaddr/a.example/p2p/{OTHER}/p2p/{PEER}", "/dnsaddr/"]
)
async def test_what_is_no_name(text: str) -> None:
    with pytest.raises(DecodeError):
        await resolve(text, PEER, Names({}))


@given(
    records=st.lists(
        st.one_of(st.text(max_size=60), st.text(max_size=60).map("dnsaddr=/".__add__)), max_size=20
    )
)
async def test_any_records(records: list[str]) -> None:
    with pytest.raises(TransportError):
        await resolve("/dnsaddr/a.example", PEER, Names({"_dnsaddr.a.example": records}))


@pytest.mark.parametrize("address", [QUIC, "/dns4/home.example/udp/9481/quic-v1", "/dnsaddr/home.example"])
def test_what_a_person_may_give_as_a_peer(address: str) -> None:
    assert peer_address(f"{address}/p2p/{PEER}") == (address, PEER)
    with pytest.raises(DecodeError, match="does not name its peer"):
        peer_address(address)


@pytest.mark.parametrize(
    "address", ["/ip4/1.2.3.4/tcp/1", "/ip4/1.2.3.4/udp/1/quic", f"{QUIC}/p2p-circuit", "x"]
)
def test_what_a_person_may_not_give_as_a_peer(address: str) -> None:
    with pytest.raises(DecodeError):
        peer_address(f"{address}/p2p/{PEER}")
